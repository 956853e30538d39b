//! Convolutions of pictures in planes, `[w, h, channels]`, without a matrix of patches.
//!
//! A *tile* of the result is computed from some channels of the input at a time: their rows are brought together with zeros
//! around, where a group norm and SiLU may be applied on the way, and weights are brought into the order in which they are used, both
//! into memory that stays in the second-level cache. The innermost loop multiplies 16 numbers with the weights of [`OUTPUTS`] outputs. If
//! there are fewer tiles than threads want, the outputs of a tile are shared out in *parts*; a part of a tile is a *piece*.
//!
//! A number of the result is summed in one order, whatever piece it lies in, whatever thread computes it and by whatever instructions: some
//! rows of a picture are the same bits as the rows of the whole, if they say whether they begin with an odd row.
//!
//! # Every product
//!
//! `direct.rs` multiplies every pixel with every weight that it meets. Strided convolutions go this way, and kernels that are not 3x3, and
//! convolutions of few channels.
//!
//! # A third of the products
//!
//! `winograd.rs` computes convolutions of 3x3 pixels by minimal filtering: Winograd, "Arithmetic Complexity of Computations" (1980); Lavin
//! and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015). The result is cut into *cells* of 4x2 pixels, and a cell needs a
//! *window* of 6x4 pixels of the input. Window and kernel are transformed, both to 6x4 numbers, one for each *position*. At each position
//! there is one product for each channel and output, summed over channels; the sums of the 24 positions, transformed back, are the
//! cell's pixels. So there are 24 products for eight pixels instead of 72. A *span* is 16 cells, which are computed together, and may lie
//! in several rows and pictures: narrow maps fill vectors, too, and weights are transformed once for a batch.
//!
//! Four pixels `y` of a row come from six pixels `d` and three weights `g`, F(4, 3), by polynomials at 0, r, -r, 1/r, -1/r and infinity,
//! where r is the root of 2:
//!
//! ```text
//! v0 = d0 - 5/2 d2 + d4                  u0 = g0                           m = u v
//! v1 = (d4 - d2/2) + r (d3 - d1/2)       u1 = (g0 + r g1 + 2 g2) / 6       y0 = m0 + (m1 + m2) + (m3 + m4)
//! v2 = (d4 - d2/2) - r (d3 - d1/2)       u2 = (g0 - r g1 + 2 g2) / 6       y1 = r (m1 - m2) + 1/r (m3 - m4)
//! v3 = (d4 - 2 d2) + 1/r (d3 - 2 d1)     u3 = -2/3 (g0 + g1/r + g2/2)      y2 = 2 (m1 + m2) + 1/2 (m3 + m4)
//! v4 = (d4 - 2 d2) - 1/r (d3 - 2 d1)     u4 = -2/3 (g0 - g1/r + g2/2)      y3 = 2r (m1 - m2) + 1/2r (m3 - m4) + m5
//! v5 = d1 - 5/2 d3 + d5                  u5 = g2
//! ```
//!
//! and two pixels of a column from four, F(2, 3), at 0, 1, -1 and infinity:
//!
//! ```text
//! v0 = d0 - d2                           u0 = g0                           y0 = m0 + m1 + m2
//! v1 = d1 + d2                           u1 = (g0 + g1 + g2) / 2           y1 = m1 - m2 - m3
//! v2 = d2 - d1                           u2 = (g0 - g1 + g2) / 2
//! v3 = d1 - d3                           u3 = g2
//! ```
//!
//! In the column, `y0` does without `d3` and `y1` without `d0`. So a row of the result depends on its own three rows of the input, and a
//! strip of a picture may end in the middle of a cell, or begin there. F(4, 3) both ways would need a quarter of the products, but has no
//! such rows, and nearly twice the error.
//!
//! Errors are those of single precision. At the usual points, 0, 1, -1, 2, -2 and infinity, factors lie further apart, and errors are half as
//! large again. Measured against sums in double precision, of SiLU of normally distributed numbers, over the root of the mean square of
//! the result:
//!
//! | map and channels | every product, rms | most | Winograd, rms | most |
//! |---|---|---|---|---|
//! | 64x64, 320 to 320 | 3.1e-7 | 1.2e-6 | 3.4e-7 | 1.5e-6 |
//! | 16x16, 1280 to 1280 | 3.3e-7 | 1.3e-6 | 3.7e-7 | 1.3e-6 |
//! | 128x128, 512 to 512 | 3.1e-7 | 1.2e-6 | 3.4e-7 | 1.4e-6 |
//!
//! Of uniform numbers around zero, whose sums cancel more, the rms error is 1.6 times that of every product.

mod added;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod cells;
mod direct;
mod filters;
mod formulas;
mod geometry;
mod input;
mod lanes;
mod micro;
mod moments;
mod weights;
mod windows;
mod winograd;

use std::ops::Range;

use pinhole_quant::DType;

use super::Kernel;
use cells::Grid;
use geometry::{Area, OUTPUTS};
use micro::Portable;

pub use added::Added;
pub use geometry::{Geometry, MOST_SIDE, Planes, Weights};
pub use input::{Normal, Source};
pub use moments::Moments;

/// Pixels of a tile where every product is computed, across and in all.
const TILE_WIDTH: usize = 256;
const TILE_PIXELS: usize = 2048;
/// Tiles that there should be, so that many threads have something to do, of at least so many pixels.
const TILES: usize = 32;
const LEAST_PIXELS: usize = 256;
/// The fewest outputs of a part: each part brings the input together by itself.
const LEAST_OUTPUTS: usize = 2 * direct::GROUP;

/// The most and the fewest cells of a tile of Winograd's filtering. Kernels are transformed for each tile by itself.
const TILE_CELLS: usize = 128;
const LEAST_CELLS: usize = 16;
/// The fewest outputs of a part of such a tile.
const LEAST_PART: usize = 8 * OUTPUTS;
/// The fewest inputs and outputs for which transforming pays.
const LEAST_CHANNELS: usize = 16;

/// A convolution by one of pinhole's kernels.
#[derive(Clone, Copy, Debug)]
pub struct Convolution {
    kernel: Kernel,
    geometry: Geometry,
}

/// A convolution in pieces that any thread may compute: tiles of the result, and parts of the outputs of each.
#[derive(Clone, Copy, Debug)]
pub struct Pieces {
    convolution: Convolution,
    method: Method,
    tiles: usize,
    parts: usize,
}

/// How a convolution is computed, and in tiles of how many columns and rows.
#[derive(Clone, Copy, Debug)]
enum Method {
    /// Every product: tiles of pixels of one picture.
    Direct([usize; 2]),
    /// Winograd's filtering: tiles of cells of all pictures.
    Winograd(Grid, [usize; 2]),
}

impl Convolution {
    /// A convolution of this geometry by `kernel`, or `None` where there is none.
    pub fn new(kernel: Kernel, geometry: Geometry, dtype: DType) -> Option<Convolution> {
        let Geometry { inputs, outputs, side, stride, result, pictures, .. } = geometry;
        let possible = side.iter().all(|side| (1..=MOST_SIDE).contains(side)) && (1..=2).contains(&stride);
        let empty = inputs == 0 || outputs == 0 || pictures == 0 || result.contains(&0);
        if !possible || empty || !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            return None;
        }
        Some(Convolution { kernel, geometry })
    }

    /// At least `wanted` pieces, if it has so many. Which bits come out does not depend on it.
    pub fn pieces(self, wanted: usize) -> Pieces {
        // The method depends on nothing in which a strip differs from the whole.
        let Geometry { inputs, outputs, side, stride, .. } = self.geometry;
        if side == [3, 3] && stride == 1 && inputs.min(outputs) >= LEAST_CHANNELS {
            self.pieces_of_cells(wanted)
        } else {
            self.pieces_of_pixels(wanted)
        }
    }

    fn pieces_of_pixels(self, wanted: usize) -> Pieces {
        let Geometry { outputs, result: [w, h], pictures, .. } = self.geometry;
        let pixels = (w.saturating_mul(h) / TILES).clamp(LEAST_PIXELS, TILE_PIXELS);
        let across = w.min(TILE_WIDTH);
        let size = [across, (pixels / across).clamp(1, h)];
        let tiles = w.div_ceil(size[0]) * h.div_ceil(size[1]) * pictures;
        let parts = wanted.div_ceil(tiles).min(outputs / LEAST_OUTPUTS).max(1);
        Pieces { convolution: self, method: Method::Direct(size), tiles, parts }
    }

    /// Every tile transforms the kernels and every part the input, so neither is much smaller than the other.
    fn pieces_of_cells(self, wanted: usize) -> Pieces {
        let grid = Grid::new(&self.geometry);
        let outputs = self.geometry.outputs;
        let (mut cells, mut parts) = (TILE_CELLS, 1);
        loop {
            let size = grid.tile_size(cells);
            let tiles = grid.tiles(size);
            let more_parts = outputs / (parts + 1) >= LEAST_PART;
            if tiles * parts >= wanted || !more_parts && cells == LEAST_CELLS {
                return Pieces { convolution: self, method: Method::Winograd(grid, size), tiles, parts };
            }
            if more_parts && (outputs / parts > cells || cells == LEAST_CELLS) {
                parts += 1;
            } else {
                cells /= 2;
            }
        }
    }
}

impl Pieces {
    /// How many they are.
    pub fn count(&self) -> usize {
        self.tiles * self.parts
    }

    /// The outputs of part number `part` of a tile.
    fn outputs(&self, part: usize) -> Range<usize> {
        let outputs = self.convolution.geometry.outputs;
        let each = outputs.div_ceil(self.parts).next_multiple_of(OUTPUTS);
        outputs.min(part * each)..outputs.min((part + 1) * each)
    }

    /// The columns and rows of tile number `tile` of pixels.
    fn area(&self, [across, down]: [usize; 2], tile: usize) -> Area {
        let [w, h] = self.convolution.geometry.result;
        let (per_row, per_column) = (w.div_ceil(across), h.div_ceil(down));
        let (picture, tile) = (tile / (per_row * per_column), tile % (per_row * per_column));
        let (x, y) = (tile % per_row * across, tile / per_row * down);
        Area { picture, columns: x..w.min(x + across), rows: y..h.min(y + down) }
    }

    /// Computes piece number `piece` of `result` in `space`, which may have been that of any other piece.
    ///
    /// # Errors
    /// How many bytes of work space could not be had.
    ///
    /// # Panics
    /// Where slices are shorter than the geometry says.
    pub fn compute(
        &self,
        piece: usize,
        source: &Source<'_>,
        weights: Weights<'_>,
        added: Added<'_>,
        space: &mut ConvolutionSpace,
        result: &mut impl Planes,
    ) -> Result<(), usize> {
        let (tile, outputs) = (piece / self.parts, self.outputs(piece % self.parts));
        let Convolution { kernel, geometry } = &self.convolution;
        let work = match self.method {
            Method::Direct(size) => {
                let area = self.area(size, tile);
                Work::Direct(direct::Work { geometry, area, outputs, source, weights, added })
            }
            Method::Winograd(grid, size) => {
                let tile = grid.tile(size, tile);
                Work::Winograd(winograd::Work { geometry, tile, outputs, source, weights, added })
            }
        };
        match kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 | Kernel::AvxVnni => {
                // SAFETY: a kernel that is not there is not asked for (`Kernel::is_available`).
                unsafe { compute_avx2(&work, space, result) }
            }
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512Vnni => {
                // SAFETY: as above.
                unsafe { compute_avx512(&work, space, result) }
            }
            _ => work.compute::<Portable>(space, result),
        }
    }
}

/// What one thread computes pieces in, one after the other: megabytes, which the system would have to clear for each piece anew.
#[derive(Default)]
pub struct ConvolutionSpace {
    direct: direct::Space,
    winograd: winograd::Space,
}

/// A part of one tile.
enum Work<'a> {
    Direct(direct::Work<'a>),
    Winograd(winograd::Work<'a>),
}

impl Work<'_> {
    // Inlined where the instructions of `M` are enabled, as everything is that it calls.
    #[inline(always)]
    fn compute<M: micro::Micro>(&self, space: &mut ConvolutionSpace, result: &mut impl Planes) -> Result<(), usize> {
        match self {
            Work::Direct(work) => work.compute::<M>(&mut space.direct, result),
            Work::Winograd(work) => work.compute::<M>(&mut space.winograd, result),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn compute_avx2(work: &Work<'_>, space: &mut ConvolutionSpace, result: &mut impl Planes) -> Result<(), usize> {
    work.compute::<avx2::Avx2>(space, result)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
fn compute_avx512(work: &Work<'_>, space: &mut ConvolutionSpace, result: &mut impl Planes) -> Result<(), usize> {
    work.compute::<avx512::Avx512>(space, result)
}

#[cfg(test)]
mod tests;
