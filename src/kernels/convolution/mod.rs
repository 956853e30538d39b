//! Convolutions of pictures in planes, `[w, h, channels]`, without a matrix of patches.
//!
//! A *tile* of the result (some rows of up to [`TILE_WIDTH`] pixels) is computed from [`CHANNELS`] channels of the input at a
//! time: their rows are brought together with zeros around, where a group norm and SiLU may be applied on the way, and weights
//! are reordered for [`OUTPUTS`] outputs at a time, both into memory that stays in the second-level cache. The innermost
//! loop then multiplies [`STRETCHES`] times [`PIXELS`] neighbouring pixels with the weights of a few outputs. Where there are fewer tiles
//! than threads, the outputs of a tile are shared out in parts.
//!
//! A number of the result is summed in one order, whatever tile it lies in and whatever thread computes it: some rows of a
//! picture are the same bits as the rows of the whole.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod geometry;
mod input;
mod micro;
mod moments;
mod weights;

use std::ops::Range;

use pinhole_quant::DType;

use super::Kernel;
use geometry::{Area, OUTPUTS, PIXELS, STRETCHES, Stretch};
use input::Patch;
use micro::{Micro, Portable, Sums};
use weights::WeightBlock;

pub use geometry::{Geometry, MOST_SIDE, Weights};
pub use input::{Normal, Source};
pub use moments::Moments;

/// Channels of the input that are summed at a time.
const CHANNELS: usize = 32;
/// Outputs whose weights are reordered together: a multiple of [`OUTPUTS`].
const GROUP: usize = 16 * OUTPUTS;
/// Pixels of a tile, across and in all.
const TILE_WIDTH: usize = 256;
const TILE_PIXELS: usize = 2048;
/// Tiles that there should be, so that many threads have something to do, of at least so many pixels.
const TILES: usize = 32;
const LEAST_PIXELS: usize = 256;
/// The fewest outputs of a part: each part brings the input together by itself.
const LEAST_OUTPUTS: usize = 2 * GROUP;

/// What is added to the result.
#[derive(Clone, Copy, Debug, Default)]
pub struct Added<'a> {
    /// To every output.
    pub bias: &'a [f32],
    /// A map of the result's shape.
    pub map: Option<&'a [f32]>,
}

/// A result that several threads write to, each its own tiles.
pub trait Planes {
    /// Some pixels of a row of the plane `output`, from column `x` on.
    fn row(&mut self, output: usize, y: usize, x: usize, len: usize) -> &mut [f32];
}

/// A convolution by one of pinhole's kernels.
#[derive(Clone, Copy, Debug)]
pub struct Convolution {
    kernel: Kernel,
    geometry: Geometry,
    tile: [usize; 2],
}

impl Convolution {
    /// A convolution of this geometry by `kernel`, or `None` where there is none.
    pub fn new(kernel: Kernel, geometry: Geometry, dtype: DType) -> Option<Convolution> {
        let Geometry { inputs, outputs, side, stride, result, .. } = geometry;
        let possible = side.iter().all(|side| (1..=MOST_SIDE).contains(side)) && (1..=2).contains(&stride);
        let empty = inputs == 0 || outputs == 0 || result.contains(&0);
        if !possible || empty || !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            return None;
        }
        let [w, h] = result;
        let pixels = (w.saturating_mul(h) / TILES).clamp(LEAST_PIXELS, TILE_PIXELS);
        let across = w.min(TILE_WIDTH);
        Some(Convolution { kernel, geometry, tile: [across, (pixels / across).clamp(1, h)] })
    }

    /// How many tiles the result of one picture has.
    pub fn tiles(&self) -> usize {
        let [across, down] = self.tile;
        let [w, h] = self.geometry.result;
        w.div_ceil(across) * h.div_ceil(down)
    }

    /// In how many parts a tile is computed so that there are at least `wanted`, if its outputs are enough.
    pub fn parts(&self, wanted: usize) -> usize {
        wanted.min(self.geometry.outputs / LEAST_OUTPUTS).max(1)
    }

    /// The outputs of part number `part` of `parts`.
    fn outputs(&self, [part, parts]: [usize; 2]) -> Range<usize> {
        let outputs = self.geometry.outputs;
        let each = outputs.div_ceil(parts).next_multiple_of(OUTPUTS);
        outputs.min(part * each)..outputs.min((part + 1) * each)
    }

    /// The columns and rows of tile number `tile`.
    fn area(&self, tile: usize) -> Area {
        let ([w, h], [across, down]) = (self.geometry.result, self.tile);
        let per_row = w.div_ceil(across);
        let (x, y) = (tile % per_row * across, tile / per_row * down);
        Area { columns: x..w.min(x + across), rows: y..h.min(y + down) }
    }

    /// Computes part `part[0]` of `part[1]` of tile number `tile` of `result`.
    ///
    /// # Errors
    /// How many bytes of work space could not be had.
    ///
    /// # Panics
    /// Where slices are shorter than the geometry says.
    pub fn compute(
        &self,
        tile: usize,
        part: [usize; 2],
        source: &Source<'_>,
        weights: Weights<'_>,
        added: Added<'_>,
        result: &mut impl Planes,
    ) -> Result<(), usize> {
        let (area, outputs) = (self.area(tile), self.outputs(part));
        let work = Work { geometry: &self.geometry, area, outputs, source, weights, added };
        match self.kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 | Kernel::Avx512Vnni => {
                // SAFETY: a kernel that is not there is not asked for (`Kernel::is_available`).
                unsafe { compute_avx2(&work, result) }
            }
            _ => work.compute::<Portable>(result),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn compute_avx2(work: &Work<'_>, result: &mut impl Planes) -> Result<(), usize> {
    work.compute::<avx2::Avx2>(result)
}

/// A part of one tile.
struct Work<'a> {
    geometry: &'a Geometry,
    area: Area,
    outputs: Range<usize>,
    source: &'a Source<'a>,
    weights: Weights<'a>,
    added: Added<'a>,
}

impl Work<'_> {
    // Inlined where the instructions of `M` are enabled, as everything is that it calls.
    #[inline(always)]
    fn compute<M: Micro>(&self, result: &mut impl Planes) -> Result<(), usize> {
        let (inputs, outputs) = (self.geometry.inputs, self.outputs.clone());
        let mut patch = Patch::new(self.geometry, &self.area, CHANNELS.min(inputs))?;
        let mut block = WeightBlock::new(self.geometry, CHANNELS.min(inputs), GROUP.min(outputs.len()))?;
        for first in (0..inputs).step_by(CHANNELS) {
            let channels = first..inputs.min(first + CHANNELS);
            patch.fill(self.geometry, self.source, channels.clone());
            for group in outputs.clone().step_by(GROUP) {
                let group = group..outputs.end.min(group + GROUP);
                block.fill(self.geometry, self.weights, channels.clone(), group.clone());
                self.group::<M>(&patch, &block, channels.clone(), group, result);
            }
        }
        Ok(())
    }

    /// Adds what `channels` give to the outputs of `group`.
    #[inline(always)]
    fn group<M: Micro>(
        &self,
        patch: &Patch,
        block: &WeightBlock,
        channels: Range<usize>,
        group: Range<usize>,
        result: &mut impl Planes,
    ) {
        let count = self.area.stretches();
        for first in (0..count).step_by(STRETCHES) {
            // The last one may be computed twice.
            let stretches: [Stretch; STRETCHES] =
                std::array::from_fn(|i| self.area.stretch((first + i).min(count - 1)));
            let inputs = stretches.each_ref().map(|&Stretch { x, y, .. }| self.patched(patch, x, y));
            // Neighbours in a row are written together.
            let [left, right] = stretches;
            let written: &[Stretch] = if left.reaches(right) {
                &[Stretch { pixels: PIXELS + right.pixels, ..left }]
            } else {
                &stretches[..STRETCHES.min(count - first)]
            };
            for (i, output) in group.clone().step_by(OUTPUTS).enumerate() {
                let mut sums: Sums = [[[0.0; PIXELS]; STRETCHES]; OUTPUTS];
                // SAFETY: `Patch` and `WeightBlock` hold as many numbers as are read; the instructions are there.
                unsafe {
                    M::sum(inputs, patch.offsets(), patch.plane(), channels.len(), block.of(i), &mut sums);
                }
                for (sums, output) in sums.iter().zip(output..group.end) {
                    let sums = sums.as_flattened().chunks(PIXELS * STRETCHES / written.len());
                    for (sums, &Stretch { x, y, pixels }) in sums.zip(written) {
                        let row = result.row(output, y, x, pixels);
                        if channels.start > 0 {
                            row.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
                        } else {
                            self.first(row, sums, output, y, x);
                        }
                    }
                }
            }
        }
    }

    /// Where `patch` has the pixels for the result's pixel at `x` and `y`.
    #[inline(always)]
    fn patched(&self, patch: &Patch, x: usize, y: usize) -> *const f32 {
        patch.at(x - self.area.columns.start, y - self.area.rows.start)
    }

    /// The first sums of some pixels, with all that is added to them.
    #[inline(always)]
    fn first(&self, row: &mut [f32], sums: &[f32], output: usize, y: usize, x: usize) {
        let bias = self.added.bias[output];
        match self.added.map {
            None => row.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum + bias),
            Some(map) => {
                let [w, h] = self.geometry.result;
                let start = (output * h + y) * w + x;
                let map = &map[start..start + row.len()];
                row.iter_mut().zip(sums).zip(map).for_each(|((out, sum), map)| *out = sum + bias + map);
            }
        }
    }
}
