//! The innermost loops.

use super::powers::{self, TOGETHER};

/// Numbers of a vector of most processors: rows are as many, or a multiple of it, wide.
pub(in crate::kernels) const LANES: usize = 8;

/// Queries whose scores are computed at once.
pub(super) const SIX: usize = 6;
/// Keys, or channels of the values, that are computed at once.
pub(super) const SIXTEEN: usize = 2 * LANES;

/// Products of small matrices, and what brings rows into the order in which they are multiplied.
pub(in crate::kernels) trait Micro {
    /// `out = factor * out + left * right` for `ROWS` rows of `VECTORS` times [`LANES`] numbers, `stride` apart in `out`; each row
    /// has a factor. Without factors, `out = left * right`.
    ///
    /// Number `k` of row `r` of `left` is `left[r * ROW + k * STEP]`; `right` has `depth` rows, one behind the other. Every sum begins
    /// with 0 and is summed in order, with one rounding for a product and an addition.
    ///
    /// # Safety
    /// So many numbers are there, and as many factors as rows. The processor has the instructions.
    unsafe fn multiply<const ROWS: usize, const VECTORS: usize, const STEP: usize, const ROW: usize>(
        left: *const f32,
        right: *const f32,
        depth: usize,
        out: *mut f32,
        stride: usize,
        factors: Option<&[f32]>,
    );

    /// The same for twice as many rows: the second half of `left` begins at `left + half`.
    ///
    /// # Safety
    /// As for [`multiply`](Micro::multiply).
    #[inline(always)]
    unsafe fn multiply_both<const ROWS: usize, const VECTORS: usize, const STEP: usize, const ROW: usize>(
        left: *const f32,
        half: usize,
        right: *const f32,
        depth: usize,
        out: *mut f32,
        stride: usize,
        factors: Option<&[f32]>,
    ) {
        let [first, second] = match factors {
            Some(factors) => [Some(&factors[..ROWS]), Some(&factors[ROWS..])],
            None => [None, None],
        };
        // SAFETY: the caller's promise.
        unsafe {
            Self::multiply::<ROWS, VECTORS, STEP, ROW>(left, right, depth, out, stride, first);
            let (left, out) = (left.add(half), out.add(ROWS * stride));
            Self::multiply::<ROWS, VECTORS, STEP, ROW>(left, right, depth, out, stride, second);
        }
    }

    /// The same for twelve rows and two right sides of sixteen numbers, whose products lie side by side in `out`.
    ///
    /// # Safety
    /// As for [`multiply`](Micro::multiply).
    #[inline(always)]
    unsafe fn multiply_wide<const STEP: usize, const ROW: usize>(
        left: *const f32,
        half: usize,
        rights: [*const f32; 2],
        depth: usize,
        out: *mut f32,
        stride: usize,
        factors: Option<&[f32]>,
    ) {
        for (i, right) in rights.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let out = out.add(i * SIXTEEN);
                Self::multiply_both::<SIX, 2, STEP, ROW>(left, half, right, depth, out, stride, factors);
            }
        }
    }

    /// The largest of `scores`, except what is not a number.
    ///
    /// # Safety
    /// The processor has the instructions.
    #[inline(always)]
    unsafe fn largest(scores: &[[f32; TOGETHER]]) -> f32 {
        powers::largest(scores)
    }

    /// Replaces each of `scores` by `2^(score - most)`, and gives their sum.
    ///
    /// # Safety
    /// The processor has the instructions.
    #[inline(always)]
    unsafe fn powers(scores: &mut [[f32; TOGETHER]], most: f32) -> f32 {
        powers::powers(scores, most)
    }

    /// Number `i` of row `r` goes to `to[i * stride + r]`, for the `len` numbers of all [`LANES`] rows, in the order of `i`: if
    /// `stride` is less than the rows, the numbers of the last rows are overwritten by the next ones.
    ///
    /// # Safety
    /// Every row has `len` numbers, and `to` has room for `(len - 1) * stride + LANES`. The processor has the instructions.
    unsafe fn transpose(rows: [*const f32; LANES], len: usize, to: *mut f32, stride: usize);

    /// Has the processor fetch `row`, which is soon read.
    fn fetch(_row: &[f32]) {}
}

/// Plain Rust.
pub(in crate::kernels) struct Portable;

impl Micro for Portable {
    #[inline(always)]
    unsafe fn multiply<const ROWS: usize, const VECTORS: usize, const STEP: usize, const ROW: usize>(
        left: *const f32,
        right: *const f32,
        depth: usize,
        out: *mut f32,
        stride: usize,
        factors: Option<&[f32]>,
    ) {
        let mut sums = [[[0f32; LANES]; VECTORS]; ROWS];
        for k in 0..depth {
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: the caller's promise.
                let (left, right) = unsafe {
                    let right = right.add(k * VECTORS * LANES).cast::<[[f32; LANES]; VECTORS]>();
                    (*left.add(row * ROW + k * STEP), &*right)
                };
                for (sums, right) in sums.iter_mut().zip(right) {
                    sums.iter_mut().zip(right).for_each(|(sum, right)| *sum = left.mul_add(*right, *sum));
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            // SAFETY: the caller's promise.
            let out = unsafe { std::slice::from_raw_parts_mut(out.add(row * stride), VECTORS * LANES) };
            match factors {
                Some(factors) => {
                    let factor = factors[row];
                    out.iter_mut().zip(sums.as_flattened()).for_each(|(out, sum)| *out = out.mul_add(factor, *sum));
                }
                None => out.copy_from_slice(sums.as_flattened()),
            }
        }
    }

    #[inline(always)]
    unsafe fn transpose(rows: [*const f32; LANES], len: usize, to: *mut f32, stride: usize) {
        for i in 0..len {
            for (r, row) in rows.iter().enumerate() {
                // SAFETY: the caller's promise.
                unsafe { to.add(i * stride + r).write(*row.add(i)) };
            }
        }
    }
}
