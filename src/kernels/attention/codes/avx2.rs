//! AVX2: `vpmaddwd` multiplies and adds sixteen codes, twice as many as there are numbers in a multiplication of f32.

use std::arch::x86_64::*;

use super::super::avx2::Avx2;
use super::super::micro::LANES;
use super::micro::{Micro, Pair};

impl Micro for Avx2 {
    #[inline(always)]
    unsafe fn multiply<const ROWS: usize, const VECTORS: usize, const STEP: usize, const ROW: usize>(
        left: *const Pair,
        right: *const Pair,
        depth: usize,
        out: *mut i32,
        stride: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe { multiply::<ROWS, VECTORS, STEP, ROW>(left, right, depth, out, stride) }
    }
}

/// # Safety
/// As for [`Micro::multiply`].
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn multiply<const ROWS: usize, const VECTORS: usize, const STEP: usize, const ROW: usize>(
    mut left: *const Pair,
    mut right: *const Pair,
    depth: usize,
    out: *mut i32,
    stride: usize,
) {
    let mut all = [[_mm256_setzero_si256(); VECTORS]; ROWS];
    for _ in 0..depth {
        let mut vectors = [_mm256_setzero_si256(); VECTORS];
        for (i, vector) in vectors.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *vector = unsafe { _mm256_loadu_si256(right.add(i * LANES).cast()) };
        }
        for (row, sums) in all.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            let pair = unsafe { _mm256_set1_epi32(left.add(row * ROW).cast::<i32>().read_unaligned()) };
            for (sum, vector) in sums.iter_mut().zip(vectors) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pair, vector));
            }
        }
        (left, right) = (left.wrapping_add(STEP), right.wrapping_add(VECTORS * LANES));
    }
    for (row, sums) in all.into_iter().enumerate() {
        for (i, sum) in sums.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { _mm256_storeu_si256(out.add(row * stride + i * LANES).cast(), sum) };
        }
    }
}
