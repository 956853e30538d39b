//! AVX-512: a vector is two of the others' vectors. Twelve rows of two vectors keep the processor busy: of its 32 registers, 24 hold sums, and a
//! number of the left side is read once for two products.

use std::arch::x86_64::*;

use super::avx2::Avx2;
use super::micro::{LANES, Micro, SIX};
use super::powers::{EXP2, ROUNDER, TOGETHER};

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
        unsafe { multiply_both::<ROWS, 1, STEP, ROW>(left, half, [right], depth, out, stride, factors) }
    }

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
        // SAFETY: the caller's promise.
        unsafe { multiply_both::<SIX, 2, STEP, ROW>(left, half, rights, depth, out, stride, factors) }
    }

    #[inline(always)]
    unsafe fn largest(scores: &[[f32; TOGETHER]]) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { largest(scores) }
    }

    #[inline(always)]
    unsafe fn powers(scores: &mut [[f32; TOGETHER]], most: f32) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { powers(scores, most) }
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
/// As for [`Micro::multiply_both`], of two vectors, for each of `rights`: products of the second one lie beside those of the first.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn multiply_both<const ROWS: usize, const RIGHTS: usize, const STEP: usize, const ROW: usize>(
    mut left: *const f32,
    half: usize,
    mut rights: [*const f32; RIGHTS],
    depth: usize,
    out: *mut f32,
    stride: usize,
    factors: Option<&[f32]>,
) {
    let mut all = [[[_mm512_setzero_ps(); RIGHTS]; ROWS]; 2];
    for _ in 0..depth {
        let mut vectors = [_mm512_setzero_ps(); RIGHTS];
        for (vector, right) in vectors.iter_mut().zip(&mut rights) {
            // SAFETY: the caller's promise.
            *vector = unsafe { _mm512_loadu_ps(*right) };
            *right = right.wrapping_add(2 * LANES);
        }
        for (i, rows) in all.iter_mut().enumerate() {
            for (row, sums) in rows.iter_mut().enumerate() {
                // SAFETY: the caller's promise.
                let number = _mm512_set1_ps(unsafe { *left.add(i * half + row * ROW) });
                for (sum, vector) in sums.iter_mut().zip(vectors) {
                    *sum = _mm512_fmadd_ps(number, vector, *sum);
                }
            }
        }
        left = left.wrapping_add(STEP);
    }
    // Three loops, of few turns each: the compiler unrolls them, and sums stay in registers.
    for (i, rows) in all.iter().enumerate() {
        for (row, sums) in rows.iter().enumerate() {
            for (panel, sum) in sums.iter().enumerate() {
                let row = i * ROWS + row;
                // SAFETY: the caller's promise.
                unsafe {
                    let out = out.add(row * stride + panel * 2 * LANES);
                    let sum = match factors {
                        Some(factors) => {
                            let factor = _mm512_set1_ps(*factors.get_unchecked(row));
                            _mm512_fmadd_ps(_mm512_loadu_ps(out), factor, *sum)
                        }
                        None => *sum,
                    };
                    _mm512_storeu_ps(out, sum);
                }
            }
        }
    }
}

/// The sixteen numbers in a vector.
#[inline(always)]
pub(super) fn read(numbers: &[f32; TOGETHER]) -> __m512 {
    // SAFETY: there are sixteen.
    unsafe { _mm512_loadu_ps(numbers.as_ptr()) }
}

/// As [`powers::largest`](super::powers::largest).
#[target_feature(enable = "avx512f")]
#[inline]
fn largest(scores: &[[f32; TOGETHER]]) -> f32 {
    let mut largest = _mm512_set1_ps(f32::NEG_INFINITY);
    for scores in scores {
        // The second one, if the first is not a number.
        largest = _mm512_max_ps(read(scores), largest);
    }
    _mm512_reduce_max_ps(largest)
}

/// As [`powers::powers`](super::powers::powers), to the bit.
#[target_feature(enable = "avx512f")]
#[inline]
fn powers(scores: &mut [[f32; TOGETHER]], most: f32) -> f32 {
    let (most, least, rounder) = (_mm512_set1_ps(most), _mm512_set1_ps(-127.0), _mm512_set1_ps(ROUNDER));
    let mut sums = _mm512_setzero_ps();
    for scores in scores {
        // The second one, if it is not a number.
        let x = _mm512_max_ps(least, _mm512_sub_ps(read(scores), most));
        let rounded = _mm512_add_ps(x, rounder);
        let r = _mm512_sub_ps(x, _mm512_sub_ps(rounded, rounder));
        let mut value = _mm512_set1_ps(EXP2[0]);
        for coefficient in &EXP2[1..] {
            value = _mm512_fmadd_ps(value, r, _mm512_set1_ps(*coefficient));
        }
        let exponent = _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(rounded)));
        let power = _mm512_mul_ps(value, exponent);
        // SAFETY: there are sixteen.
        unsafe { _mm512_storeu_ps(scores.as_mut_ptr(), power) };
        sums = _mm512_add_ps(sums, power);
    }
    let mut all = [0.0; TOGETHER];
    // SAFETY: as above.
    unsafe { _mm512_storeu_ps(all.as_mut_ptr(), sums) };
    super::powers::halve(all, |a, b| a + b)
}
