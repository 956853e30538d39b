//! The innermost loop.

use super::super::micro::{LANES, Micro as Rows, Portable};

/// Two neighbouring codes, which are multiplied and added at once.
pub(super) type Pair = [i16; 2];

/// Products of small matrices of codes. They are exact, as long as sums fit; those of numbers that are not finite may wrap.
pub(in crate::kernels) trait Micro: Rows {
    /// `out = left * right` for `ROWS` rows of `VECTORS` times [`LANES`] numbers, `stride` apart in `out`.
    ///
    /// Pair `k` of row `r` of `left` is `left[r * ROW + k * STEP]`; `right` has `depth` rows of pairs, one behind the other.
    ///
    /// # Safety
    /// So many pairs are there. The processor has the instructions.
    unsafe fn multiply<const ROWS: usize, const VECTORS: usize, const STEP: usize, const ROW: usize>(
        left: *const Pair,
        right: *const Pair,
        depth: usize,
        out: *mut i32,
        stride: usize,
    );

    /// The same for twice as many rows: the second half of `left` begins at `left + half`.
    ///
    /// # Safety
    /// As for [`multiply`](Micro::multiply).
    #[inline(always)]
    unsafe fn multiply_both<const ROWS: usize, const VECTORS: usize, const STEP: usize, const ROW: usize>(
        left: *const Pair,
        half: usize,
        right: *const Pair,
        depth: usize,
        out: *mut i32,
        stride: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            <Self as Micro>::multiply::<ROWS, VECTORS, STEP, ROW>(left, right, depth, out, stride);
            let (left, out) = (left.add(half), out.add(ROWS * stride));
            <Self as Micro>::multiply::<ROWS, VECTORS, STEP, ROW>(left, right, depth, out, stride);
        }
    }
}

impl Micro for Portable {
    #[inline(always)]
    unsafe fn multiply<const ROWS: usize, const VECTORS: usize, const STEP: usize, const ROW: usize>(
        left: *const Pair,
        right: *const Pair,
        depth: usize,
        out: *mut i32,
        stride: usize,
    ) {
        let mut sums = [[[0i32; LANES]; VECTORS]; ROWS];
        for k in 0..depth {
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: the caller's promise.
                let ([a, b], right) = unsafe {
                    let right = right.add(k * VECTORS * LANES).cast::<[[Pair; LANES]; VECTORS]>();
                    (*left.add(row * ROW + k * STEP), &*right)
                };
                for (sum, [c, d]) in sums.as_flattened_mut().iter_mut().zip(right.as_flattened()) {
                    let [first, second] = [i32::from(a) * i32::from(*c), i32::from(b) * i32::from(*d)];
                    *sum = sum.wrapping_add(first.wrapping_add(second));
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            // SAFETY: the caller's promise.
            let out = unsafe { std::slice::from_raw_parts_mut(out.add(row * stride), VECTORS * LANES) };
            out.copy_from_slice(sums.as_flattened());
        }
    }
}
