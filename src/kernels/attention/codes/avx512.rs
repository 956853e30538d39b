//! AVX-512 with VNNI: `vpdpwssd` also adds to the sums. Not yet run on such a processor.

use std::arch::x86_64::*;

use super::super::avx2::Avx2;
use super::super::avx512::Avx512;
use super::super::micro::LANES;
use super::micro::{Micro, Pair};

impl Micro for Avx512 {
    #[inline(always)]
    unsafe fn multiply<const ROWS: usize, const VECTORS: usize, const STEP: usize, const ROW: usize>(
        left: *const Pair,
        right: *const Pair,
        depth: usize,
        out: *mut i32,
        stride: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe { <Avx2 as Micro>::multiply::<ROWS, VECTORS, STEP, ROW>(left, right, depth, out, stride) }
    }

    #[inline(always)]
    unsafe fn multiply_both<const ROWS: usize, const VECTORS: usize, const STEP: usize, const ROW: usize>(
        left: *const Pair,
        half: usize,
        right: *const Pair,
        depth: usize,
        out: *mut i32,
        stride: usize,
    ) {
        const { assert!(VECTORS == 2) };
        // SAFETY: the caller's promise.
        unsafe { multiply_both::<ROWS, STEP, ROW>(left, half, right, depth, out, stride) }
    }
}

/// # Safety
/// As for [`Micro::multiply_both`], of two vectors.
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
unsafe fn multiply_both<const ROWS: usize, const STEP: usize, const ROW: usize>(
    mut left: *const Pair,
    half: usize,
    mut right: *const Pair,
    depth: usize,
    out: *mut i32,
    stride: usize,
) {
    let mut all = [[_mm512_setzero_si512(); ROWS]; 2];
    for _ in 0..depth {
        // SAFETY: the caller's promise.
        let vector = unsafe { _mm512_loadu_si512(right.cast()) };
        for (i, sums) in all.iter_mut().enumerate() {
            for (row, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the caller's promise.
                let pair = unsafe { left.add(i * half + row * ROW).cast::<i32>().read_unaligned() };
                *sum = _mm512_dpwssd_epi32(*sum, _mm512_set1_epi32(pair), vector);
            }
        }
        (left, right) = (left.wrapping_add(STEP), right.wrapping_add(2 * LANES));
    }
    for (row, sum) in all.into_iter().flatten().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_si512(out.add(row * stride).cast(), sum) };
    }
}
