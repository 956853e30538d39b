//! AVX2 with FMA: six outputs by two vectors of eight pixels, in twelve of the sixteen registers.

use std::arch::x86_64::*;
use std::ops::Range;

use super::cells::SPAN;
use super::geometry::{OUTPUTS, PIXELS, STRETCHES};
use super::lanes::Lanes;
use super::micro::{Micro, Products, Sums};

pub(super) struct Avx2;

/// The kernel's taps, where there are as many as most have: known to the compiler.
const SQUARE: usize = 9;

/// Bytes that a cache holds together.
const LINE: usize = 64;

impl Micro for Avx2 {
    type Lanes = Eight;

    #[inline(always)]
    unsafe fn sum(
        inputs: [*const f32; STRETCHES],
        offsets: &[usize],
        plane: usize,
        channels: usize,
        weights: &[f32],
        sums: &mut Sums,
    ) {
        debug_assert!(weights.len() >= channels * offsets.len() * OUTPUTS);
        // SAFETY: the caller's promise, for all that is called here.
        unsafe {
            match <&[usize; SQUARE]>::try_from(offsets) {
                Ok(square) => sum_taps(inputs, square, plane, channels, weights.as_ptr(), sums),
                Err(_) => sum_taps(inputs, offsets, plane, channels, weights.as_ptr(), sums),
            }
        }
    }

    #[inline(always)]
    fn expect<T>(numbers: &[T], range: Range<usize>) {
        for line in range.step_by(LINE / size_of::<T>().clamp(1, LINE)) {
            // SAFETY: a hint, which reads nothing; the instruction is part of the architecture.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(numbers.as_ptr().wrapping_add(line).cast()) };
        }
    }

    #[inline(always)]
    fn multiply<const N: usize>(cells: &[[f32; SPAN]], weights: [&[[f32; OUTPUTS]]; N], products: &mut [Products; N]) {
        for (weights, products) in weights.into_iter().zip(products) {
            // SAFETY: this type is used where the processor has the instructions.
            unsafe { multiply(cells, weights, products) }
        }
    }
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn multiply(cells: &[[f32; SPAN]], weights: &[[f32; OUTPUTS]], products: &mut Products) {
    let mut all = [[_mm256_setzero_ps(); STRETCHES]; OUTPUTS];
    for (cells, weights) in cells.iter().zip(weights) {
        // SAFETY: a span is two vectors.
        let (left, right) = unsafe { (_mm256_loadu_ps(cells.as_ptr()), _mm256_loadu_ps(cells[PIXELS..].as_ptr())) };
        for ([sum_left, sum_right], weight) in all.iter_mut().zip(weights) {
            let weight = _mm256_broadcast_ss(weight);
            *sum_left = _mm256_fmadd_ps(weight, left, *sum_left);
            *sum_right = _mm256_fmadd_ps(weight, right, *sum_right);
        }
    }
    for (products, [left, right]) in products.iter_mut().zip(all) {
        // SAFETY: as above.
        unsafe {
            _mm256_storeu_ps(products.as_mut_ptr(), left);
            _mm256_storeu_ps(products[PIXELS..].as_mut_ptr(), right);
        }
    }
}

/// A vector of eight numbers. It is used where the processor has the instructions: what all of its `unsafe` rests on.
#[derive(Clone, Copy)]
pub(super) struct Eight(__m256);

#[allow(clippy::undocumented_unsafe_blocks)] // All for the reason above.
impl Lanes for Eight {
    #[inline(always)]
    fn load(from: &[f32; PIXELS]) -> Eight {
        Eight(unsafe { _mm256_loadu_ps(from.as_ptr()) })
    }

    #[inline(always)]
    fn from_f32(bytes: &[u8; 4 * PIXELS]) -> Eight {
        Eight(unsafe { _mm256_loadu_ps(bytes.as_ptr().cast()) })
    }

    #[inline(always)]
    fn from_f16(bytes: &[u8; 2 * PIXELS]) -> Eight {
        Eight(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(bytes.as_ptr().cast())) })
    }

    #[inline(always)]
    fn from_bf16(bytes: &[u8; 2 * PIXELS]) -> Eight {
        let bits = unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(bytes.as_ptr().cast())) };
        Eight(unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits)) })
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; PIXELS]) {
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), self.0) }
    }

    #[inline(always)]
    fn plus(self, other: Eight) -> Eight {
        Eight(unsafe { _mm256_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn minus(self, other: Eight) -> Eight {
        Eight(unsafe { _mm256_sub_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn times(self, factor: f32) -> Eight {
        Eight(unsafe { _mm256_mul_ps(self.0, _mm256_set1_ps(factor)) })
    }

    #[inline(always)]
    fn plus_times(self, factor: f32, other: Eight) -> Eight {
        Eight(unsafe { _mm256_fmadd_ps(other.0, _mm256_set1_ps(factor), self.0) })
    }

    #[inline(always)]
    fn transpose([a, b, c, d, e, f, g, h]: [Eight; PIXELS]) -> [Eight; PIXELS] {
        let upper = unsafe { transpose([a.0, b.0, c.0, d.0]) };
        let lower = unsafe { transpose([e.0, f.0, g.0, h.0]) };
        let mut all = [a; PIXELS];
        for i in 0..PIXELS / 2 {
            unsafe {
                all[i] = Eight(_mm256_permute2f128_ps::<0x20>(upper[i], lower[i]));
                all[PIXELS / 2 + i] = Eight(_mm256_permute2f128_ps::<0x31>(upper[i], lower[i]));
            }
        }
        all
    }

    #[inline(always)]
    fn interleave(quarters: [Eight; 4]) -> [Eight; 4] {
        let [a, b, c, d] = quarters;
        let [a, b, c, d] = unsafe { interleave([a.0, b.0, c.0, d.0]) };
        [Eight(a), Eight(b), Eight(c), Eight(d)]
    }

    #[inline(always)]
    fn deinterleave(neighbours: [Eight; 4]) -> [Eight; 4] {
        let [a, b, c, d] = neighbours;
        let [a, b, c, d] = unsafe { deinterleave([a.0, b.0, c.0, d.0]) };
        [Eight(a), Eight(b), Eight(c), Eight(d)]
    }
}

/// Rows and columns of a square of four by four numbers exchanged, in either half.
#[target_feature(enable = "avx2")]
#[inline]
fn transpose([a, b, c, d]: [__m256; 4]) -> [__m256; 4] {
    let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    let (low_2, high_2) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    let pairs = |first: __m256, second: __m256| {
        let (first, second) = (_mm256_castps_pd(first), _mm256_castps_pd(second));
        [_mm256_unpacklo_pd(first, second), _mm256_unpackhi_pd(first, second)].map(|pair| _mm256_castpd_ps(pair))
    };
    let ([a, b], [c, d]) = (pairs(low, low_2), pairs(high, high_2));
    [a, b, c, d]
}

#[target_feature(enable = "avx2")]
#[inline]
fn interleave(quarters: [__m256; 4]) -> [__m256; 4] {
    let [a, b, c, d] = transpose(quarters);
    [
        _mm256_permute2f128_ps::<0x20>(a, b),
        _mm256_permute2f128_ps::<0x20>(c, d),
        _mm256_permute2f128_ps::<0x31>(a, b),
        _mm256_permute2f128_ps::<0x31>(c, d),
    ]
}

#[target_feature(enable = "avx2")]
#[inline]
fn deinterleave([a, b, c, d]: [__m256; 4]) -> [__m256; 4] {
    transpose([
        _mm256_permute2f128_ps::<0x20>(a, c),
        _mm256_permute2f128_ps::<0x31>(a, c),
        _mm256_permute2f128_ps::<0x20>(b, d),
        _mm256_permute2f128_ps::<0x31>(b, d),
    ])
}

/// # Safety
/// As for [`Micro::sum`].
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn sum_taps(
    [mut left, mut right]: [*const f32; STRETCHES],
    offsets: &(impl AsRef<[usize]> + ?Sized),
    plane: usize,
    channels: usize,
    mut weights: *const f32,
    sums: &mut Sums,
) {
    let mut all = [[_mm256_setzero_ps(); STRETCHES]; OUTPUTS];
    // Two places that move on together: with one and a multiple of `plane`, registers do not suffice.
    for _ in 0..channels {
        for &offset in offsets.as_ref() {
            // SAFETY: the caller's promise.
            unsafe {
                let (left, right) = (_mm256_loadu_ps(left.add(offset)), _mm256_loadu_ps(right.add(offset)));
                for (i, [sum_left, sum_right]) in all.iter_mut().enumerate() {
                    let weight = _mm256_broadcast_ss(&*weights.add(i));
                    *sum_left = _mm256_fmadd_ps(weight, left, *sum_left);
                    *sum_right = _mm256_fmadd_ps(weight, right, *sum_right);
                }
                weights = weights.add(OUTPUTS);
            }
        }
        (left, right) = (left.wrapping_add(plane), right.wrapping_add(plane));
    }
    for (sums, all) in sums.iter_mut().zip(all) {
        for (sums, all) in sums.iter_mut().zip(all) {
            // SAFETY: `PIXELS` numbers.
            unsafe { _mm256_storeu_ps(sums.as_mut_ptr(), all) };
        }
    }
}
