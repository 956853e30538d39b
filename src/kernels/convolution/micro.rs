//! The innermost loop.

use super::geometry::{OUTPUTS, PIXELS, STRETCHES};

/// What the stretches give to a few outputs.
pub(super) type Sums = [[[f32; PIXELS]; STRETCHES]; OUTPUTS];

/// Sums of a few stretches of pixels for a few outputs.
pub(super) trait Micro {
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
}

/// Plain Rust.
pub(super) struct Portable;

impl Micro for Portable {
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
                        sums[stretch].iter_mut().zip(pixels).for_each(|(sum, pixel)| *sum += weight * pixel);
                    }
                }
            }
        }
    }
}
