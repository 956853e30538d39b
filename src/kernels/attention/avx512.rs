//! AVX-512: a vector is two of the others' vectors, and twelve rows keep the processor busy. Not yet run on such a processor.

use std::arch::x86_64::*;

use super::avx2::Avx2;
use super::micro::{LANES, Micro};

pub(super) struct Avx512;

impl Micro for Avx512 {
    #[inline(always)]
    unsafe fn multiply<const ROWS: usize, const VECTORS: usize, const STEP: usize, const ROW: usize>(
        left: *const f32,
        right: *const f32,
        depth: usize,
        out: *mut f32,
        stride: usize,
        factors: Option<&[f32]>,
    ) {
        // SAFETY: the caller's promise.
        unsafe { Avx2::multiply::<ROWS, VECTORS, STEP, ROW>(left, right, depth, out, stride, factors) }
    }

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
        const { assert!(VECTORS == 2) };
        // SAFETY: the caller's promise.
        unsafe { multiply_both::<ROWS, STEP, ROW>(left, half, right, depth, out, stride, factors) }
    }

    #[inline(always)]
    fn fetch(row: &[f32]) {
        Avx2::fetch(row);
    }

    #[inline(always)]
    unsafe fn transpose(rows: [*const f32; LANES], len: usize, to: *mut f32, stride: usize) {
        // SAFETY: the caller's promise.
        unsafe { Avx2::transpose(rows, len, to, stride) }
    }
}

/// # Safety
/// As for [`Micro::multiply_both`], of two vectors.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn multiply_both<const ROWS: usize, const STEP: usize, const ROW: usize>(
    mut left: *const f32,
    half: usize,
    mut right: *const f32,
    depth: usize,
    out: *mut f32,
    stride: usize,
    factors: Option<&[f32]>,
) {
    let mut all = [[_mm512_setzero_ps(); ROWS]; 2];
    for _ in 0..depth {
        // SAFETY: the caller's promise.
        let vector = unsafe { _mm512_loadu_ps(right) };
        for (i, sums) in all.iter_mut().enumerate() {
            for (row, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the caller's promise.
                let number = unsafe { *left.add(i * half + row * ROW) };
                *sum = _mm512_fmadd_ps(_mm512_set1_ps(number), vector, *sum);
            }
        }
        (left, right) = (left.wrapping_add(STEP), right.wrapping_add(2 * LANES));
    }
    for (row, sum) in all.into_iter().flatten().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let out = out.add(row * stride);
            let sum = match factors {
                Some(factors) => _mm512_fmadd_ps(_mm512_loadu_ps(out), _mm512_set1_ps(factors[row]), sum),
                None => sum,
            };
            _mm512_storeu_ps(out, sum);
        }
    }
}
