//! AVX-512: twelve outputs by a whole span, which is one vector.

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx2::{Avx2, Eight};
use super::cells::SPAN;
use super::geometry::{OUTPUTS, STRETCHES};
use super::micro::{Micro, Products, Sums};

pub(super) struct Avx512;

impl Micro for Avx512 {
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
        // SAFETY: the caller's promise.
        unsafe { Avx2::sum(inputs, offsets, plane, channels, weights, sums) }
    }

    #[inline(always)]
    fn expect<T>(numbers: &[T], range: Range<usize>) {
        Avx2::expect(numbers, range);
    }

    #[inline(always)]
    fn multiply<const N: usize>(cells: &[[f32; SPAN]], weights: [&[[f32; OUTPUTS]]; N], products: &mut [Products; N]) {
        // SAFETY: this type is used where the processor has the instructions.
        unsafe { multiply(cells, weights, products) }
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn multiply<const N: usize>(cells: &[[f32; SPAN]], weights: [&[[f32; OUTPUTS]]; N], products: &mut [Products; N]) {
    let channels = weights.iter().fold(cells.len(), |channels, weights| channels.min(weights.len()));
    let mut all = [[_mm512_setzero_ps(); OUTPUTS]; N];
    for channel in 0..channels {
        // SAFETY: a span is one vector; there are as many channels of everything.
        unsafe {
            let cells = _mm512_loadu_ps(cells.get_unchecked(channel).as_ptr());
            for (all, weights) in all.iter_mut().zip(weights) {
                for (sum, weight) in all.iter_mut().zip(weights.get_unchecked(channel)) {
                    *sum = _mm512_fmadd_ps(_mm512_set1_ps(*weight), cells, *sum);
                }
            }
        }
    }
    for (products, all) in products.as_flattened_mut().iter_mut().zip(all.as_flattened()) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(products.as_mut_ptr(), *all) };
    }
}
