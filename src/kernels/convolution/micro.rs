//! The innermost loop.

use std::ops::Range;

use super::cells::SPAN;
use super::geometry::{OUTPUTS, PIXELS, STRETCHES};
use super::lanes::{Lanes, Plain};

/// What the stretches give to a few outputs.
pub(super) type Sums = [[[f32; PIXELS]; STRETCHES]; OUTPUTS];

/// What a span gives to a few outputs at one position.
pub(super) type Products = [[f32; SPAN]; OUTPUTS];

/// Sums of a few stretches of pixels, or of a span of cells, for a few outputs. It is used where the processor has its instructions.
pub(super) trait Micro {
    /// Its vectors.
    type Lanes: Lanes;

    /// Fills `sums` with what `channels` channels of the input give: for each, `offsets` say where the kernel's taps find their
    /// pixels behind each of `inputs`; one channel lies `plane` numbers behind the other. `weights` are `[OUTPUTS, taps, channels]`.
    ///
    /// # Safety
    /// Behind each of these places there are [`PIXELS`] numbers, and so many weights. The processor has the instructions.
    unsafe fn sum(
        inputs: [*const f32; STRETCHES],
        offsets: &[usize],
        plane: usize,
        channels: usize,
        weights: &[f32],
        sums: &mut Sums,
    );

    /// Hints that `range` of `numbers` is read soon, if it is there.
    fn expect<T>(_numbers: &[T], _range: Range<usize>) {}

    /// Fills `products` with the sums over channels of a span's numbers times those of a few sets of outputs, one channel after the other.
    fn multiply<const N: usize>(cells: &[[f32; SPAN]], weights: [&[[f32; OUTPUTS]]; N], products: &mut [Products; N]);
}

/// Plain Rust.
pub(super) struct Portable;

impl Micro for Portable {
    type Lanes = Plain;

    #[inline(always)]
    unsafe fn sum(
        inputs: [*const f32; STRETCHES],
        offsets: &[usize],
        plane: usize,
        channels: usize,
        weights: &[f32],
        sums: &mut Sums,
    ) {
        *sums = [[[0.0; PIXELS]; STRETCHES]; OUTPUTS];
        let mut weights = weights.as_chunks::<OUTPUTS>().0.iter();
        for channel in 0..channels {
            for offset in offsets {
                let Some(weights) = weights.next() else { return };
                for (stretch, input) in inputs.iter().enumerate() {
                    // SAFETY: the caller's promise.
                    let pixels = unsafe { &*input.add(channel * plane + offset).cast::<[f32; PIXELS]>() };
                    for (sums, weight) in sums.iter_mut().zip(weights) {
                        let sums = sums[stretch].iter_mut().zip(pixels);
                        sums.for_each(|(sum, pixel)| *sum = weight.mul_add(*pixel, *sum));
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn multiply<const N: usize>(cells: &[[f32; SPAN]], weights: [&[[f32; OUTPUTS]]; N], products: &mut [Products; N]) {
        for (weights, products) in weights.into_iter().zip(products) {
            *products = [[0.0; SPAN]; OUTPUTS];
            for (cells, weights) in cells.iter().zip(weights) {
                for (products, weight) in products.iter_mut().zip(weights) {
                    products
                        .iter_mut()
                        .zip(cells)
                        .for_each(|(product, cell)| *product = weight.mul_add(*cell, *product));
                }
            }
        }
    }
}
