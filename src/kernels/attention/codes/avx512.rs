//! AVX-512 with VNNI: `vpdpwssd` also adds to the sums. As in `attention/avx512.rs`, twelve rows of two vectors are computed at once; products of
//! values go from the registers straight to the sums they are added to.

use std::arch::x86_64::*;

use super::super::avx2::Avx2;
use super::super::avx512::{Avx512, read};
use super::super::micro::{LANES, SIX, SIXTEEN};
use super::super::powers::TOGETHER;
use super::super::tiles::{PITCH, TWELVE};
use super::micro::{Factors, LAST, Micro, Pair};
use super::units::ROUNDER;
use super::weights::{EXP2, EXPONENT, LEAST, Terms, start};

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
        const { assert!(ROWS == SIX && VECTORS == 2) };
        // SAFETY: the caller's promise.
        unsafe { multiply::<1, STEP, ROW>(left, half, [right], depth, out, stride) }
    }

    #[inline(always)]
    unsafe fn multiply_wide<const STEP: usize, const ROW: usize>(
        left: *const Pair,
        half: usize,
        rights: [*const Pair; 2],
        depth: usize,
        out: *mut i32,
        stride: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe { multiply::<2, STEP, ROW>(left, half, rights, depth, out, stride) }
    }

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
        // SAFETY: the caller's promise.
        unsafe { add_values(left, rights, depth, units, factors, sums.as_mut_ptr(), stride) }
    }

    const ADDS_LAST: bool = true;

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
        // SAFETY: the caller's promise.
        unsafe { add_last_values(left, right, depth, units, factors, sums.as_mut_ptr(), stride) }
    }

    #[inline(always)]
    unsafe fn scores(terms: &Terms<'_>, keys: usize, to: &mut [[f32; TOGETHER]]) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { scores(terms, keys, to) }
    }

    #[inline(always)]
    unsafe fn weigh(scores: &[[f32; TOGETHER]], most: f32, weights: &mut [[i16; TOGETHER]]) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { weigh(scores, most, weights) }
    }
}

/// Sums of twelve rows of some times sixteen products.
type Sums<const RIGHTS: usize> = [[[__m512i; RIGHTS]; SIX]; 2];

/// # Safety
/// As for [`Micro::multiply_both`], of two vectors, for each of `rights`.
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
unsafe fn products<const RIGHTS: usize, const STEP: usize, const ROW: usize>(
    mut left: *const Pair,
    half: usize,
    mut rights: [*const Pair; RIGHTS],
    depth: usize,
) -> Sums<RIGHTS> {
    let mut all = [[[_mm512_setzero_si512(); RIGHTS]; SIX]; 2];
    for _ in 0..depth {
        let mut vectors = [_mm512_setzero_si512(); RIGHTS];
        for (vector, right) in vectors.iter_mut().zip(&mut rights) {
            // SAFETY: the caller's promise.
            *vector = unsafe { _mm512_loadu_si512(right.cast()) };
            *right = right.wrapping_add(2 * LANES);
        }
        for (i, rows) in all.iter_mut().enumerate() {
            for (row, sums) in rows.iter_mut().enumerate() {
                // SAFETY: the caller's promise.
                let pair = unsafe { left.add(i * half + row * ROW).cast::<i32>().read_unaligned() };
                let pair = _mm512_set1_epi32(pair);
                for (sum, vector) in sums.iter_mut().zip(vectors) {
                    *sum = _mm512_dpwssd_epi32(*sum, pair, vector);
                }
            }
        }
        left = left.wrapping_add(STEP);
    }
    all
}

/// # Safety
/// As for [`products`]; products of the second right side lie beside those of the first in `out`.
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
unsafe fn multiply<const RIGHTS: usize, const STEP: usize, const ROW: usize>(
    left: *const Pair,
    half: usize,
    rights: [*const Pair; RIGHTS],
    depth: usize,
    out: *mut i32,
    stride: usize,
) {
    // SAFETY: the caller's promise.
    let all = unsafe { products::<RIGHTS, STEP, ROW>(left, half, rights, depth) };
    // Three loops, of few turns each: the compiler unrolls them, and sums stay in registers.
    for (i, rows) in all.iter().enumerate() {
        for (row, sums) in rows.iter().enumerate() {
            for (panel, sum) in sums.iter().enumerate() {
                // SAFETY: the caller's promise.
                unsafe { _mm512_storeu_si512(out.add((i * SIX + row) * stride + panel * SIXTEEN).cast(), *sum) };
            }
        }
    }
}

/// # Safety
/// As for [`Micro::add_values`].
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
unsafe fn add_values<const RIGHTS: usize>(
    left: *const Pair,
    rights: [*const Pair; RIGHTS],
    depth: usize,
    units: &[[f32; SIXTEEN]; RIGHTS],
    factors: &Factors,
    sums: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller's promise.
    let all = unsafe { products::<RIGHTS, 1, { PITCH / 2 }>(left, SIX * PITCH / 2, rights, depth) };
    for (i, rows) in all.iter().enumerate() {
        for (row, products) in rows.iter().enumerate() {
            let [before, new] = factors[i * SIX + row].map(|factor| _mm512_set1_ps(factor));
            for (panel, product) in products.iter().enumerate() {
                let product = _mm512_mul_ps(_mm512_cvtepi32_ps(*product), read(&units[panel]));
                // SAFETY: the caller's promise.
                unsafe {
                    let sum = sums.add((i * SIX + row) * stride + panel * SIXTEEN);
                    let all = _mm512_fmadd_ps(product, new, _mm512_mul_ps(_mm512_loadu_ps(sum), before));
                    _mm512_storeu_ps(sum, all);
                }
            }
        }
    }
}

/// Sixteen numbers of a row are one vector, and eight are half of one.
///
/// # Safety
/// As for [`Micro::add_last_values`].
#[target_feature(enable = "avx512f,avx512vl,avx512vnni,fma")]
#[inline]
unsafe fn add_last_values(
    mut left: *const Pair,
    mut right: *const Pair,
    depth: usize,
    units: &[f32; LAST],
    factors: &Factors,
    sums: *mut f32,
    stride: usize,
) {
    let mut all = [(_mm512_setzero_si512(), _mm256_setzero_si256()); TWELVE];
    for _ in 0..depth {
        // SAFETY: the caller's promise.
        let (whole, half) =
            unsafe { (_mm512_loadu_si512(right.cast()), _mm256_loadu_si256(right.add(SIXTEEN).cast())) };
        for (row, (first, last)) in all.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            let pair = unsafe { left.add(row * PITCH / 2).cast::<i32>().read_unaligned() };
            let pair = _mm512_set1_epi32(pair);
            *first = _mm512_dpwssd_epi32(*first, pair, whole);
            *last = _mm256_dpwssd_epi32(*last, _mm512_castsi512_si256(pair), half);
        }
        (left, right) = (left.wrapping_add(1), right.wrapping_add(LAST));
    }
    let (first_units, last_units) = units.split_at(SIXTEEN);
    for (row, ((first, last), [before, new])) in all.into_iter().zip(factors).enumerate() {
        // SAFETY: the caller's promise; there are sixteen units and eight.
        unsafe {
            let sums = sums.add(row * stride);
            let first = _mm512_mul_ps(_mm512_cvtepi32_ps(first), _mm512_loadu_ps(first_units.as_ptr()));
            let earlier = _mm512_mul_ps(_mm512_loadu_ps(sums), _mm512_set1_ps(*before));
            _mm512_storeu_ps(sums, _mm512_fmadd_ps(first, _mm512_set1_ps(*new), earlier));
            let sums = sums.add(SIXTEEN);
            let last = _mm256_mul_ps(_mm256_cvtepi32_ps(last), _mm256_loadu_ps(last_units.as_ptr()));
            let earlier = _mm256_mul_ps(_mm256_loadu_ps(sums), _mm256_set1_ps(*before));
            _mm256_storeu_ps(sums, _mm256_fmadd_ps(last, _mm256_set1_ps(*new), earlier));
        }
    }
}

/// As [`weights::scores`](super::weights::scores), to the bit.
#[target_feature(enable = "avx512f")]
#[inline]
fn scores(terms: &Terms<'_>, keys: usize, to: &mut [[f32; TOGETHER]]) -> f32 {
    let Terms { products, units, unit, mask } = *terms;
    let unit = _mm512_set1_ps(unit);
    let mut largest = _mm512_set1_ps(f32::NEG_INFINITY);
    for (i, ((to, products), units)) in to.iter_mut().zip(products).zip(units).enumerate() {
        // SAFETY: there are sixteen products.
        let product = _mm512_cvtepi32_ps(unsafe { _mm512_loadu_si512(products.as_ptr().cast()) });
        let mut score = _mm512_mul_ps(_mm512_mul_ps(product, read(units)), unit);
        if let Some(mask) = mask {
            score = _mm512_fmadd_ps(read(&mask[i]), _mm512_set1_ps(std::f32::consts::LOG2_E), score);
        }
        let left = keys - i * TOGETHER;
        if left < TOGETHER {
            score = _mm512_mask_mov_ps(_mm512_set1_ps(f32::NEG_INFINITY), (1 << left) - 1, score);
        }
        // The second one, if the first is not a number.
        largest = _mm512_max_ps(score, largest);
        // SAFETY: there are sixteen.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), score) };
    }
    _mm512_reduce_max_ps(largest)
}

/// As [`weights::weigh`](super::weights::weigh), to the bit.
#[target_feature(enable = "avx512f")]
#[inline]
fn weigh(scores: &[[f32; TOGETHER]], most: f32, weights: &mut [[i16; TOGETHER]]) -> f32 {
    let [from, least] = [start(most), LEAST].map(|number| _mm512_set1_ps(number));
    let [exponent, rounder] = [EXPONENT, ROUNDER].map(|number| _mm512_set1_ps(number));
    let mut sums = _mm512_setzero_ps();
    for (scores, weights) in scores.iter().zip(weights) {
        // The second one, if it is not a number.
        let x = _mm512_max_ps(least, _mm512_sub_ps(read(scores), from));
        let rounded = _mm512_add_ps(x, exponent);
        let r = _mm512_sub_ps(x, _mm512_sub_ps(rounded, exponent));
        let mut value = _mm512_set1_ps(EXP2[0]);
        for coefficient in &EXP2[1..] {
            value = _mm512_fmadd_ps(value, r, _mm512_set1_ps(*coefficient));
        }
        let power = _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(rounded)));
        let weight = _mm512_fmadd_ps(value, power, rounder);
        let codes = _mm512_cvtepi32_epi16(_mm512_castps_si512(weight));
        // SAFETY: there are sixteen.
        unsafe { _mm256_storeu_si256(weights.as_mut_ptr().cast(), codes) };
        sums = _mm512_add_ps(sums, _mm512_sub_ps(weight, rounder));
    }
    // Whole numbers, whose sum is exact in any order.
    _mm512_reduce_add_ps(sums)
}
