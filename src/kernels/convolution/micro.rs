//! The innermost loop.

use super::geometry::{OUTPUTS, PIXELS};

/// Sums of neighbouring pixels for a few outputs.
pub(super) trait Micro {
    /// Adds to `sums` what `channels` channels of the input give: for each, `offsets` say where the kernel's taps find their
    /// pixels behind `input`; one channel lies `plane` numbers behind the other. `weights` are `[OUTPUTS, taps, channels]`.
    ///
    /// # Safety
    /// Behind each of these places there are [`PIXELS`] numbers, and so many weights. The processor has the instructions.
    unsafe fn sum(
        input: *const f32,
        offsets: &[usize],
        plane: usize,
        channels: usize,
        weights: &[f32],
        sums: &mut [[f32; PIXELS]; OUTPUTS],
    );
}

/// Plain Rust.
pub(super) struct Portable;

impl Micro for Portable {
    #[inline(always)]
    unsafe fn sum(
        input: *const f32,
        offsets: &[usize],
        plane: usize,
        channels: usize,
        weights: &[f32],
        sums: &mut [[f32; PIXELS]; OUTPUTS],
    ) {
        let mut weights = weights.as_chunks::<OUTPUTS>().0.iter();
        for channel in 0..channels {
            for offset in offsets {
                // SAFETY: the caller's promise.
                let pixels = unsafe { &*input.add(channel * plane + offset).cast::<[f32; PIXELS]>() };
                let Some(weights) = weights.next() else { return };
                for (sums, weight) in sums.iter_mut().zip(weights) {
                    sums.iter_mut().zip(pixels).for_each(|(sum, pixel)| *sum += weight * pixel);
                }
            }
        }
    }
}
