//! The innermost loop.

use half::f16;

use super::super::attention::micro::{LANES, Micro as Rows};

/// Rows of a panel.
pub(super) const PANEL: usize = 2 * LANES;

/// Products of a few tokens with a panel, and what brings rows into it.
pub(super) trait Micro {
    /// Adds to `N` times [`PANEL`] sums, `stride` apart in `sums`, the products of tokens, `PITCH` apart, with a panel of `depth` columns, one
    /// behind the other. Each begins with 0 and is summed in order, with one rounding for a product and an addition, before it is added.
    ///
    /// # Safety
    /// So many numbers are there. The processor has the instructions.
    unsafe fn meet<const N: usize, const PITCH: usize>(
        tokens: *const f32,
        panel: *const f32,
        depth: usize,
        sums: *mut f32,
        stride: usize,
    );

    /// As [`Rows::transpose`].
    ///
    /// # Safety
    /// As there.
    unsafe fn transpose(rows: [*const f32; LANES], len: usize, to: *mut f32, stride: usize);

    /// Numbers in F16 as f32.
    fn widen(halves: &[[u8; 2]], numbers: &mut [f32]) {
        for (number, bytes) in numbers.iter_mut().zip(halves) {
            *number = f16::from_ne_bytes(*bytes).to_f32();
        }
    }

    /// Has the processor fetch `bytes`, which are soon read.
    fn fetch(_bytes: &[u8]) {}
}

/// Plain Rust.
pub(super) struct Portable;

impl Micro for Portable {
    #[inline(always)]
    unsafe fn meet<const N: usize, const PITCH: usize>(
        tokens: *const f32,
        panel: *const f32,
        depth: usize,
        sums: *mut f32,
        stride: usize,
    ) {
        let mut all = [[0f32; PANEL]; N];
        for k in 0..depth {
            // SAFETY: the caller's promise.
            let right = unsafe { &*panel.add(k * PANEL).cast::<[f32; PANEL]>() };
            for (i, sums) in all.iter_mut().enumerate() {
                // SAFETY: as above.
                let left = unsafe { *tokens.add(i * PITCH + k) };
                sums.iter_mut().zip(right).for_each(|(sum, right)| *sum = left.mul_add(*right, *sum));
            }
        }
        for (i, all) in all.iter().enumerate() {
            // SAFETY: the caller's promise.
            let sums = unsafe { std::slice::from_raw_parts_mut(sums.add(i * stride), PANEL) };
            sums.iter_mut().zip(all).for_each(|(sum, new)| *sum += new);
        }
    }

    #[inline(always)]
    unsafe fn transpose(rows: [*const f32; LANES], len: usize, to: *mut f32, stride: usize) {
        // SAFETY: the caller's promise.
        unsafe { super::super::attention::micro::Portable::transpose(rows, len, to, stride) }
    }
}
