//! The innermost loop.

use super::super::micro::{LANES, Micro as Rows, Portable, SIX, SIXTEEN};
use super::super::powers::TOGETHER;
use super::super::tiles::{PITCH, TWELVE};
use super::weights::{self, Terms};

/// Two neighbouring codes, which are multiplied and added at once.
pub(super) type Pair = [i16; 2];

/// Products of small matrices of codes. They are exact, as long as sums fit; those of numbers that are not finite may wrap.
pub(in crate::kernels::attention) trait Micro: Rows {
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

    /// The same for twelve rows and two right sides of sixteen numbers, whose products lie side by side in `out`.
    ///
    /// # Safety
    /// As for [`multiply`](Micro::multiply).
    #[inline(always)]
    unsafe fn multiply_wide<const STEP: usize, const ROW: usize>(
        left: *const Pair,
        half: usize,
        rights: [*const Pair; 2],
        depth: usize,
        out: *mut i32,
        stride: usize,
    ) {
        for (i, right) in rights.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let out = out.add(i * SIXTEEN);
                <Self as Micro>::multiply_both::<SIX, 2, STEP, ROW>(left, half, right, depth, out, stride);
            }
        }
    }

    /// `sums = sums * before + products * units * new` for twelve rows, which are `stride` apart in `sums`. Products are those of rows of
    /// weights, [`PITCH`] apart, and of right sides of sixteen numbers and `depth` pairs; both `factors` are a row's.
    ///
    /// # Safety
    /// So many pairs and sums are there. The processor has the instructions.
    #[inline(always)]
    unsafe fn add_values<const RIGHTS: usize>(
        left: *const Pair,
        rights: [*const Pair; RIGHTS],
        depth: usize,
        units: &[[f32; SIXTEEN]; RIGHTS],
        factors: &Factors,
        sums: &mut [f32],
        stride: usize,
    ) {
        for (i, right) in rights.into_iter().enumerate() {
            let mut products = [0; TWELVE * SIXTEEN];
            let (half, out) = (SIX * PITCH / 2, products.as_mut_ptr());
            // SAFETY: the caller's promise; there is room for as many products.
            unsafe {
                let multiply = <Self as Micro>::multiply_both::<SIX, 2, 1, { PITCH / 2 }>;
                multiply(left, half, right, depth, out, SIXTEEN);
            }
            add(&products, &units[i], factors, &mut sums[i * SIXTEEN..], stride);
        }
    }

    /// Whether [`add_last_values`](Micro::add_last_values) is better than products that are added afterwards.
    const ADDS_LAST: bool = false;

    /// The same for one right side of 24 numbers.
    ///
    /// # Safety
    /// As for [`add_values`](Micro::add_values).
    #[inline(always)]
    unsafe fn add_last_values(
        left: *const Pair,
        right: *const Pair,
        depth: usize,
        units: &[f32; LAST],
        factors: &Factors,
        sums: &mut [f32],
        stride: usize,
    ) {
        let mut products = [0; TWELVE * LAST];
        for row in (0..TWELVE).step_by(3) {
            // SAFETY: the caller's promise; there is room for as many products.
            unsafe {
                let (left, out) = (left.add(row * PITCH / 2), products.as_mut_ptr().add(row * LAST));
                <Self as Micro>::multiply::<3, 3, 1, { PITCH / 2 }>(left, right, depth, out, LAST);
            }
        }
        add(&products, units, factors, sums, stride);
    }

    /// Computes `scores`, where the first `keys` are real and the others minus infinity, and gives the largest.
    ///
    /// # Safety
    /// The processor has the instructions.
    #[inline(always)]
    unsafe fn scores(terms: &Terms<'_>, keys: usize, scores: &mut [[f32; TOGETHER]]) -> f32 {
        weights::scores(terms, keys, scores)
    }

    /// Makes weights of scores, whose largest is `most`, and gives their sum.
    ///
    /// # Safety
    /// The processor has the instructions.
    #[inline(always)]
    unsafe fn weigh(scores: &[[f32; TOGETHER]], most: f32, weights: &mut [[i16; TOGETHER]]) -> f32 {
        weights::weigh(scores, most, weights)
    }
}

/// The widest right side, in numbers: the last one, where their number is odd.
pub(super) const LAST: usize = 3 * LANES;

/// Factors of twelve rows, for what came before a block and for the block.
pub(super) type Factors = [[f32; 2]; TWELVE];

/// `sums = sums * before + products * units * new` for rows of `units.len()` products, which are `stride` apart in `sums`.
#[inline(always)]
pub(super) fn add(products: &[i32], units: &[f32], factors: &[[f32; 2]], sums: &mut [f32], stride: usize) {
    let units = units.as_chunks::<LANES>().0;
    let rows = products.chunks_exact(units.len() * LANES).zip(sums.chunks_mut(stride));
    for ((products, sums), [before, new]) in rows.zip(factors) {
        let sums = sums.as_chunks_mut::<LANES>().0.iter_mut();
        for ((sums, products), units) in sums.zip(products.as_chunks::<LANES>().0).zip(units) {
            // Eight are made before one is written, so that they are made at once.
            let mut all = *sums;
            for ((sum, product), unit) in all.iter_mut().zip(products).zip(units) {
                *sum = (*product as f32 * unit).mul_add(*new, *sum * before);
            }
            *sums = all;
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
