//! What is convolved: sizes, weights, and the part that is computed together.

use std::ops::Range;

use pinhole_quant::DType;

/// Neighbouring pixels that are computed together: a vector of most processors.
pub(super) const PIXELS: usize = 8;
/// How many such stretches of a tile are computed together. They need not lie in one row, so that narrow maps fill them, too.
pub(super) const STRETCHES: usize = 2;
/// Outputs that are computed together.
pub(super) const OUTPUTS: usize = 6;
/// The largest side of a kernel.
pub const MOST_SIDE: usize = 7;

/// What is convolved with what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Channels of the input.
    pub inputs: usize,
    /// Channels of the result.
    pub outputs: usize,
    /// The kernel's width and height, at most [`MOST_SIDE`].
    pub side: [usize; 2],
    /// From one pixel of the result to the next, in pixels of the input, both ways: 1 or 2.
    pub stride: usize,
    /// Columns of zeros left of the input, and rows above it.
    pub padding: [usize; 2],
    /// The input's width and height, after doubling.
    pub input: [usize; 2],
    /// The result's width and height.
    pub result: [usize; 2],
    /// Whether every pixel that is stored is read twice, both ways.
    pub doubled: bool,
    /// The first row of the doubled input that counts, or of the input as it is stored.
    pub first_row: usize,
    /// Whether the result's first row is an odd one of the whole picture's result, if the input is a strip of it.
    pub odd: bool,
    /// How many pictures there are.
    pub pictures: usize,
}

/// Weights `[kw, kh, inputs, outputs]`, contiguous, as their file has them.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    /// F32, F16 or BF16.
    pub dtype: DType,
    /// All of them.
    pub bytes: &'a [u8],
}

/// A result that several threads write to, each its own tiles.
pub trait Planes {
    /// Some pixels of a row of plane number `plane`, from column `x` on. The planes are the outputs of one picture after the other.
    fn row(&mut self, plane: usize, y: usize, x: usize, len: usize) -> &mut [f32];
}

/// A part of the result of one picture.
pub(super) struct Area {
    pub(super) picture: usize,
    pub(super) columns: Range<usize>,
    pub(super) rows: Range<usize>,
}

/// Neighbouring pixels of a row of the result: where the first is, and how many there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stretch {
    pub(super) x: usize,
    pub(super) y: usize,
    pub(super) pixels: usize,
}

impl Stretch {
    /// Whether `next` begins where this one ends.
    #[inline(always)]
    pub(super) fn reaches(self, next: Stretch) -> bool {
        (self.x + PIXELS, self.y) == (next.x, next.y)
    }
}

impl Area {
    /// How many stretches of at most [`PIXELS`] it is.
    #[inline(always)]
    pub(super) fn stretches(&self) -> usize {
        self.columns.len().div_ceil(PIXELS) * self.rows.len()
    }

    /// Stretch number `i`, row by row.
    #[inline(always)]
    pub(super) fn stretch(&self, i: usize) -> Stretch {
        let each = self.columns.len().div_ceil(PIXELS);
        let (x, y) = (self.columns.start + i % each * PIXELS, self.rows.start + i / each);
        Stretch { x, y, pixels: PIXELS.min(self.columns.end - x) }
    }
}
