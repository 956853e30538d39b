//! AVX2 with FMA: six outputs by two vectors of eight pixels, in twelve of the sixteen registers.

use std::arch::x86_64::*;

use super::geometry::{OUTPUTS, STRETCHES};
use super::micro::{Micro, Sums};

pub(super) struct Avx2;

/// The kernel's taps, where there are as many as most have: known to the compiler.
const SQUARE: usize = 9;

impl Micro for Avx2 {
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
