//! Colours as films have them, and back: BT.709 in limited range, where two by two pixels share Cb and Cr (4:2:0).
//!
//! ITU-R BT.709-6, sections 3 and 4: Y = 0.2126 R + 0.7152 G + 0.0722 B, Cb = (B - Y) / 1.8556, Cr = (R - Y) / 1.5748. Eight bits hold
//! 219 Y + 16, 224 Cb + 128 and 224 Cr + 128.

use crate::image::{CHANNELS, Image};
use crate::{Result, reserve};

const RED: f32 = 0.2126;
const BLUE: f32 = 0.0722;
const GREEN: f32 = 1.0 - RED - BLUE;
/// The widest B - Y and R - Y.
const TO_BLUE: f32 = 2.0 * (1.0 - BLUE);
const TO_RED: f32 = 2.0 * (1.0 - RED);

/// A frame of three planes: brightness, and two of colour with half its sides, rounded up. The colours lie on the left of two pixels and
/// half-way between two rows, as H.264 has them unless it is told otherwise.
pub(super) struct Yuv {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) planes: [Vec<u8>; 3],
}

impl Yuv {
    /// The planes of `image`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub(super) fn of(image: &Image) -> Result<Yuv> {
        let (width, height, rgb) = (image.width(), image.height(), image.rgb());
        let (across, down) = (width.div_ceil(2), height.div_ceil(2));
        let mut luma = reserve::room("a frame", width * height)?;
        for pixel in rgb.chunks_exact(CHANNELS) {
            luma.push(to_byte(16.0, 219.0 / 255.0 * brightness(pixel[0].into(), pixel[1].into(), pixel[2].into())));
        }
        let (mut blue, mut red) = (reserve::room("a frame", across * down)?, reserve::room("a frame", across * down)?);
        for y in 0..down {
            let rows = [2 * y, (2 * y + 1).min(height - 1)];
            for x in 0..across {
                let [r, g, b] = filtered(rgb, width, 2 * x, rows);
                let y = brightness(r, g, b);
                blue.push(to_byte(128.0, 224.0 / 255.0 / TO_BLUE * (b - y)));
                red.push(to_byte(128.0, 224.0 / 255.0 / TO_RED * (r - y)));
            }
        }
        Ok(Yuv { width, height, planes: [luma, blue, red] })
    }

    /// Bytes in a row of each plane.
    pub(super) fn strides(&self) -> [usize; 3] {
        [self.width, self.width.div_ceil(2), self.width.div_ceil(2)]
    }
}

fn brightness(red: f32, green: f32, blue: f32) -> f32 {
    RED * red + GREEN * green + BLUE * blue
}

fn to_byte(zero: f32, number: f32) -> u8 {
    // A cast takes numbers below 0 and above 255 to the nearest byte.
    (zero + number).round() as u8
}

/// The colour at column `x`, half-way between two rows: a quarter of each neighbour, a half of its own column.
fn filtered(rgb: &[u8], width: usize, x: usize, rows: [usize; 2]) -> [f32; CHANNELS] {
    let columns = [(x.saturating_sub(1), 1), (x, 2), ((x + 1).min(width - 1), 1)];
    let mut sums = [0u16; CHANNELS];
    for row in rows {
        for (column, weight) in columns {
            let pixel = &rgb[(row * width + column) * CHANNELS..][..CHANNELS];
            for (sum, &colour) in sums.iter_mut().zip(pixel) {
                *sum += weight * u16::from(colour);
            }
        }
    }
    sums.map(|sum| f32::from(sum) / 8.0)
}

/// How the samples of colour lie along one side of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sited {
    /// One for each pixel.
    Full,
    /// One for two pixels, on the first.
    First,
    /// One for two pixels, between them.
    Between,
}

impl Sited {
    /// How many samples there are for `pixels`.
    pub(super) fn samples(self, pixels: usize) -> usize {
        if self == Sited::Full { pixels } else { pixels.div_ceil(2) }
    }

    /// The two samples nearest to `pixel`, and how many quarters the second counts.
    fn nearest(self, pixel: usize, samples: usize) -> (usize, usize, f32) {
        let (half, is_odd) = (pixel / 2, pixel % 2 == 1);
        let next = (half + 1).min(samples - 1);
        match self {
            Sited::Full => (pixel, pixel, 0.0),
            Sited::First if is_odd => (half, next, 2.0),
            Sited::First => (half, half, 0.0),
            Sited::Between if is_odd => (half, next, 1.0),
            Sited::Between => (half, half.saturating_sub(1), 1.0),
        }
    }
}

/// What the planes of a frame mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// How the colours lie in a row and in a column; `None` for gray.
    pub(super) colours: Option<[Sited; 2]>,
    /// Whether bytes go from 0 to 255, and not from 16 to 235.
    pub(super) is_full_range: bool,
}

impl Layout {
    /// Bytes of each plane of a frame.
    pub(super) fn sizes(&self, width: usize, height: usize) -> [usize; 3] {
        let colours = self.colours.map_or(0, |[across, down]| across.samples(width) * down.samples(height));
        [width * height, colours, colours]
    }

    /// The picture of a frame whose planes follow each other in `bytes`, as many as [`sizes`](Layout::sizes) says.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub(super) fn rgb(&self, bytes: &[u8], width: usize, height: usize) -> Result<Vec<u8>> {
        let [luma, colours, _] = self.sizes(width, height);
        let (luma, rest) = bytes.split_at(luma);
        let (blue, red) = rest.split_at(colours);
        let (low, range, spread) =
            if self.is_full_range { (0.0, 1.0, 1.0) } else { (16.0, 255.0 / 219.0, 255.0 / 224.0) };
        let mut rgb = reserve::room("a frame", width * height * CHANNELS)?;
        for y in 0..height {
            for x in 0..width {
                let at = |plane: &[u8]| self.colour(plane, (x, y), (width, height)) * spread;
                let (cb, cr) = (at(blue), at(red));
                let bright = (f32::from(luma[y * width + x]) - low) * range;
                let (r, b) = (bright + TO_RED * cr, bright + TO_BLUE * cb);
                let g = (bright - RED * r - BLUE * b) / GREEN;
                rgb.extend([r, g, b].map(|colour| to_byte(0.0, colour)));
            }
        }
        Ok(rgb)
    }

    /// The colour of a pixel in `plane`, around 0.
    fn colour(&self, plane: &[u8], (x, y): (usize, usize), (width, height): (usize, usize)) -> f32 {
        let Some([across, down]) = self.colours else { return 0.0 };
        let (columns, rows) = (across.samples(width), down.samples(height));
        let ((left, right, quarters), (top, bottom, rest)) = (across.nearest(x, columns), down.nearest(y, rows));
        let row = |row: usize| {
            let [one, other] = [left, right].map(|column| f32::from(plane[row * columns + column]));
            (one * (4.0 - quarters) + other * quarters) / 4.0
        };
        (row(top) * (4.0 - rest) + row(bottom) * rest) / 4.0 - 128.0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// White, black and the three colours, as in the table of ITU-R BT.709 that every test card follows.
    #[test]
    fn colours_are_those_of_bt_709() {
        for (rgb, wanted) in [
            ([255, 255, 255], [235, 128, 128]),
            ([0, 0, 0], [16, 128, 128]),
            ([255, 0, 0], [63, 102, 240]),
            ([0, 255, 0], [173, 42, 26]),
            ([0, 0, 255], [32, 240, 118]),
        ] {
            let image = Image::new(3, 3, rgb.repeat(9)).unwrap();
            let yuv = Yuv::of(&image).unwrap();
            assert_eq!([0, 1, 2].map(|plane| yuv.planes[plane][0]), wanted, "{rgb:?}");
            assert_eq!(yuv.planes.each_ref().map(Vec::len), [9, 4, 4]);
        }
    }

    #[test]
    fn what_goes_there_comes_back() {
        // Slow changes of colour, sides of all kinds.
        for (width, height) in [(16, 8), (7, 5), (1, 1), (2, 9)] {
            let mut rgb = Vec::new();
            for y in 0..height {
                for x in 0..width {
                    rgb.extend([40 + 3 * x as u8, 200 - 4 * y as u8, 90 + 2 * (x + y) as u8]);
                }
            }
            let image = Image::new(width, height, rgb.clone()).unwrap();
            let layout = Layout { colours: Some([Sited::First, Sited::Between]), is_full_range: false };
            let back = layout.rgb(&Yuv::of(&image).unwrap().planes.concat(), width, height).unwrap();
            let worst = rgb.iter().zip(&back).map(|(&a, &b)| a.abs_diff(b)).max().unwrap();
            // The last column has no sample of its own, nor a next one.
            assert!(worst <= 5, "{width}x{height}: {worst}");
        }
    }

    #[test]
    fn gray_and_full_range_are_taken_as_they_are() {
        let gray = Layout { colours: None, is_full_range: true };
        assert_eq!(gray.sizes(2, 1), [2, 0, 0]);
        assert_eq!(gray.rgb(&[0, 200], 2, 1).unwrap(), [0, 0, 0, 200, 200, 200]);
        let full = Layout { colours: Some([Sited::Full; 2]), is_full_range: true };
        // Red, as far as bytes go.
        assert_eq!(full.rgb(&[54, 99, 255], 1, 1).unwrap(), [254, 0, 0]);
    }
}
