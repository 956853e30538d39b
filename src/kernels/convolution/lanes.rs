//! Vectors of numbers, for formulas that are written once.

use half::{bf16, f16};

use super::geometry::PIXELS;

/// [`PIXELS`] numbers that are computed together. All instruction sets round alike. What takes and gives vectors is called without closures:
/// these would not be compiled for the instruction set.
pub(super) trait Lanes: Copy {
    /// The numbers of `from`.
    fn load(from: &[f32; PIXELS]) -> Self;
    /// The numbers that `bytes` are.
    fn from_f32(bytes: &[u8; 4 * PIXELS]) -> Self;
    fn from_f16(bytes: &[u8; 2 * PIXELS]) -> Self;
    fn from_bf16(bytes: &[u8; 2 * PIXELS]) -> Self;
    /// Writes them to `to`.
    fn store(self, to: &mut [f32; PIXELS]);
    fn plus(self, other: Self) -> Self;
    fn minus(self, other: Self) -> Self;
    fn times(self, factor: f32) -> Self;
    /// `self + factor * other`, rounded once.
    fn plus_times(self, factor: f32, other: Self) -> Self;
    /// Number `i` of each, for one `i` after the other.
    fn transpose(rows: [Self; PIXELS]) -> [Self; PIXELS];
    /// Number `i` of each, then number `i + 1`: what they are in memory, one vector after the other.
    fn interleave(quarters: [Self; 4]) -> [Self; 4];
    /// The reverse: every fourth number, from each of the first four on.
    fn deinterleave(neighbours: [Self; 4]) -> [Self; 4];
}

/// Plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Plain([f32; PIXELS]);

impl Lanes for Plain {
    #[inline(always)]
    fn load(from: &[f32; PIXELS]) -> Plain {
        Plain(*from)
    }

    #[inline(always)]
    fn from_f32(bytes: &[u8; 4 * PIXELS]) -> Plain {
        Plain(std::array::from_fn(|i| f32::from_ne_bytes(bytes.as_chunks().0[i])))
    }

    #[inline(always)]
    fn from_f16(bytes: &[u8; 2 * PIXELS]) -> Plain {
        Plain(std::array::from_fn(|i| f16::from_ne_bytes(bytes.as_chunks().0[i]).to_f32()))
    }

    #[inline(always)]
    fn from_bf16(bytes: &[u8; 2 * PIXELS]) -> Plain {
        Plain(std::array::from_fn(|i| bf16::from_ne_bytes(bytes.as_chunks().0[i]).to_f32()))
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; PIXELS]) {
        *to = self.0;
    }

    #[inline(always)]
    fn plus(self, other: Plain) -> Plain {
        Plain(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }

    #[inline(always)]
    fn minus(self, other: Plain) -> Plain {
        Plain(std::array::from_fn(|i| self.0[i] - other.0[i]))
    }

    #[inline(always)]
    fn times(self, factor: f32) -> Plain {
        Plain(self.0.map(|number| number * factor))
    }

    #[inline(always)]
    fn plus_times(self, factor: f32, other: Plain) -> Plain {
        Plain(std::array::from_fn(|i| other.0[i].mul_add(factor, self.0[i])))
    }

    #[inline(always)]
    fn transpose(rows: [Plain; PIXELS]) -> [Plain; PIXELS] {
        std::array::from_fn(|i| Plain(rows.map(|row| row.0[i])))
    }

    #[inline(always)]
    fn interleave(quarters: [Plain; 4]) -> [Plain; 4] {
        std::array::from_fn(|vector| {
            Plain(std::array::from_fn(|i| {
                let place = vector * PIXELS + i;
                quarters[place % 4].0[place / 4]
            }))
        })
    }

    #[inline(always)]
    fn deinterleave(neighbours: [Plain; 4]) -> [Plain; 4] {
        std::array::from_fn(|quarter| {
            Plain(std::array::from_fn(|i| {
                let place = i * 4 + quarter;
                neighbours[place / PIXELS].0[place % PIXELS]
            }))
        })
    }
}
