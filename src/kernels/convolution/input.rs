//! The input's pixels, brought together for one tile: zeros around, a norm and SiLU applied.

use std::mem::take;
use std::ops::Range;

use super::super::nonlinearity::silu;
use super::geometry::{Area, Geometry, MOST_SIDE, PIXELS};

/// All pictures.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Their pixels as they are stored, `[w, rows, inputs, pictures]`.
    pub pixels: &'a [f32],
    /// Width and rows as they are stored.
    pub stored: [usize; 2],
    /// What is done with them before they are convolved.
    pub normal: Option<Normal<'a>>,
}

impl Source<'_> {
    /// What is stored of row `y` of the padded input, of channel number `plane` of all pictures' channels. `None` above and below them.
    #[inline(always)]
    pub(super) fn row(&self, geometry: &Geometry, plane: usize, y: usize) -> Option<&[f32]> {
        let [w, h] = self.stored;
        let y = y.checked_sub(geometry.padding[1]).filter(|&y| y < geometry.input[1])?;
        let row = plane * h + ((y + geometry.first_row) >> usize::from(geometry.doubled));
        Some(&self.pixels[row * w..][..w])
    }
}

/// A group norm, then SiLU.
#[derive(Clone, Copy, Debug)]
pub struct Normal<'a> {
    /// The mean of the channel's group, `[inputs, pictures]`.
    pub mean: &'a [f32],
    /// One over its standard deviation, `[inputs, pictures]`.
    pub scale: &'a [f32],
    /// The norm's weight, `[inputs]`.
    pub weight: &'a [f32],
    /// The norm's bias, `[inputs]`.
    pub bias: &'a [f32],
}

/// The pixels that a tile reads of some channels.
#[derive(Default)]
pub(super) struct Patch {
    numbers: Vec<f32>,
    /// Where the kernel's taps find their pixels.
    offsets: Vec<usize>,
    /// Numbers of one row of one phase: pixels that are a stride apart lie side by side.
    pitch: usize,
    /// Rows of one channel, and the phases of each.
    rows: usize,
    phases: usize,
    stride: usize,
    /// The column and the row of the padded input with which it begins.
    origin: [usize; 2],
}

/// Makes `numbers` so many zeros, in the memory that they have if it is enough.
///
/// # Errors
/// How many bytes could not be had.
pub(super) fn clear(numbers: &mut Vec<f32>, len: usize) -> Result<(), usize> {
    numbers.clear();
    numbers.try_reserve_exact(len).map_err(|_| len.saturating_mul(size_of::<f32>()))?;
    numbers.resize(len, 0.0);
    Ok(())
}

/// Makes `numbers` so many numbers, whichever they are: zeros if there were not as many.
///
/// # Errors
/// How many bytes could not be had.
pub(super) fn fit(numbers: &mut Vec<f32>, len: usize) -> Result<(), usize> {
    if numbers.len() == len { Ok(()) } else { clear(numbers, len) }
}

impl Patch {
    /// Makes room for what `area` reads of so many channels.
    ///
    /// # Errors
    /// How many bytes could not be had.
    pub(super) fn fit(&mut self, geometry: &Geometry, area: &Area, channels: usize) -> Result<(), usize> {
        let Geometry { side: [kw, kh], stride, .. } = *geometry;
        // The last pixels of a row are computed as many together as all others.
        let pitch = area.columns.len().next_multiple_of(PIXELS) + MOST_SIDE;
        let rows = (area.rows.len() - 1) * stride + kh;
        self.offsets.clear();
        for ky in 0..kh {
            self.offsets.extend((0..kw).map(|kx| (ky * stride + kx % stride) * pitch + kx / stride));
        }
        let origin = [area.columns.start * stride, area.rows.start * stride];
        clear(&mut self.numbers, pitch * stride * rows * channels)?;
        let (numbers, offsets) = (take(&mut self.numbers), take(&mut self.offsets));
        *self = Patch { numbers, offsets, pitch, rows, phases: stride, stride, origin };
        Ok(())
    }

    /// Holds the pixels of `channels` of picture number `picture` from now on.
    #[inline(always)]
    pub(super) fn fill(&mut self, geometry: &Geometry, source: &Source<'_>, picture: usize, channels: Range<usize>) {
        let planes = self.numbers.chunks_exact_mut(self.pitch * self.phases * self.rows);
        for (channel, plane) in channels.zip(planes) {
            for (row, lines) in plane.chunks_exact_mut(self.pitch * self.phases).enumerate() {
                let y = Some(self.origin[1] + row);
                for (phase, line) in lines.chunks_exact_mut(self.pitch).enumerate() {
                    fill_row(line, geometry, source, (picture, channel), (self.origin[0] + phase, self.stride), y);
                }
            }
        }
    }

    /// The pixels for the result's pixel at `x` and `y` of the tile.
    #[inline(always)]
    pub(super) fn at(&self, x: usize, y: usize) -> *const f32 {
        let start = y * self.stride * self.phases * self.pitch + x;
        self.numbers[start..].as_ptr()
    }

    /// Where the kernel's taps find theirs, from there.
    #[inline(always)]
    pub(super) fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// Numbers of one channel.
    #[inline(always)]
    pub(super) fn plane(&self) -> usize {
        self.pitch * self.phases * self.rows
    }
}

/// Fills `line` with every `stride`-th pixel of row `y` of the padded input, from column `first` on, normalised. A row that is not there is
/// zeros.
#[inline(always)]
pub(super) fn fill_row(
    line: &mut [f32],
    geometry: &Geometry,
    source: &Source<'_>,
    (picture, channel): (usize, usize),
    (first, stride): (usize, usize),
    y: Option<usize>,
) {
    let plane = picture * geometry.inputs + channel;
    let Some(stored) = y.and_then(|y| source.row(geometry, plane, y)) else {
        line.fill(0.0);
        return;
    };
    let (padding, halved) = (geometry.padding[0], usize::from(geometry.doubled));
    let line = fill_line(line, stored, (first, stride, padding), geometry.input[0], halved);
    if let Some(normal) = &source.normal {
        normal.apply(plane, channel, line);
    }
}

/// Fills `line` with every `stride`-th pixel of `stored` (each read twice where `halved` is 1) from column `first` of the padded
/// input on, zeros beside it. Gives the part that is no zeros beside.
#[inline(always)]
fn fill_line<'a>(
    line: &'a mut [f32],
    stored: &[f32],
    (first, stride, padding): (usize, usize, usize),
    width: usize,
    halved: usize,
) -> &'a mut [f32] {
    // The numbers of the line whose column, `first + i * stride - padding`, lies in the input.
    let start = padding.saturating_sub(first).div_ceil(stride).min(line.len());
    let end = (width + padding).saturating_sub(first).div_ceil(stride).clamp(start, line.len());
    line[..start].fill(0.0);
    line[end..].fill(0.0);
    let line = &mut line[start..end];
    if line.is_empty() {
        // All of it lies beside the input.
        return line;
    }
    let column = first + start * stride - padding;
    match (stride, halved) {
        (1, 0) => line.copy_from_slice(&stored[column..column + line.len()]),
        _ => line.iter_mut().enumerate().for_each(|(i, out)| *out = stored[(column + i * stride) >> halved]),
    }
    line
}

impl Normal<'_> {
    /// Normalises pixels of `channel`, which is number `plane` of all pictures' channels, rounded as the operations one after the other are, and applies SiLU.
    #[inline(always)]
    fn apply(&self, plane: usize, channel: usize, pixels: &mut [f32]) {
        let (mean, scale) = (self.mean[plane], self.scale[plane]);
        let (weight, bias) = (self.weight[channel], self.bias[channel]);
        for pixel in pixels {
            *pixel = silu((*pixel - mean) * scale * weight + bias);
        }
    }
}
