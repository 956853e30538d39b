//! Weights in the order in which they are used.

use std::ops::Range;

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use pinhole_quant::DType;

use super::geometry::{Geometry, OUTPUTS, Weights};
use super::input::clear;

/// The weights of some channels for some outputs: `[OUTPUTS, taps, channels]` for one set of outputs after the other, zeros
/// where a set has fewer.
#[derive(Default)]
pub(super) struct WeightBlock {
    numbers: Vec<f32>,
    /// Weights of one output, on their way.
    row: Vec<f32>,
    /// Numbers of one set.
    set: usize,
}

impl WeightBlock {
    /// Makes room for so many channels and outputs.
    ///
    /// # Errors
    /// How many bytes could not be had.
    pub(super) fn fit(&mut self, geometry: &Geometry, channels: usize, outputs: usize) -> Result<(), usize> {
        let taps = geometry.side[0] * geometry.side[1];
        self.set = OUTPUTS * taps * channels;
        clear(&mut self.numbers, self.set * outputs.div_ceil(OUTPUTS))?;
        clear(&mut self.row, taps * channels)
    }

    /// Holds the weights of `channels` for `outputs` from now on.
    #[inline(always)]
    pub(super) fn fill(
        &mut self,
        geometry: &Geometry,
        weights: Weights<'_>,
        channels: Range<usize>,
        outputs: Range<usize>,
    ) {
        let taps = geometry.side[0] * geometry.side[1];
        let len = taps * channels.len();
        let count = outputs.len();
        for (i, output) in outputs.enumerate() {
            let start = (output * geometry.inputs + channels.start) * taps;
            let row = &mut self.row[..len];
            read(weights, start, row);
            let set = &mut self.numbers[i / OUTPUTS * self.set..][..len * OUTPUTS];
            set.iter_mut().skip(i % OUTPUTS).step_by(OUTPUTS).zip(row).for_each(|(out, weight)| *out = *weight);
        }
        for missing in count..count.next_multiple_of(OUTPUTS) {
            let set = &mut self.numbers[missing / OUTPUTS * self.set..][..len * OUTPUTS];
            set.iter_mut().skip(missing % OUTPUTS).step_by(OUTPUTS).for_each(|out| *out = 0.0);
        }
    }

    /// Set number `set`.
    #[inline(always)]
    pub(super) fn of(&self, set: usize) -> &[f32] {
        &self.numbers[set * self.set..][..self.set]
    }
}

/// The weights from number `start` on.
#[inline(always)]
pub(super) fn read(weights: Weights<'_>, start: usize, out: &mut [f32]) {
    let Weights { dtype, bytes } = weights;
    match dtype {
        DType::F32 => {
            let numbers = &bytes.as_chunks::<4>().0[start..start + out.len()];
            out.iter_mut().zip(numbers).for_each(|(out, number)| *out = f32::from_ne_bytes(*number));
        }
        _ => {
            let halves = &bytes.as_chunks::<2>().0[start..start + out.len()];
            // A few at a time on the stack, so that their alignment does not matter.
            for (out, halves) in out.chunks_mut(64).zip(halves.chunks(64)) {
                let mut bits = [0u16; 64];
                bits.iter_mut().zip(halves).for_each(|(bits, half)| *bits = u16::from_ne_bytes(*half));
                if dtype == DType::F16 {
                    bits[..out.len()].reinterpret_cast::<f16>().convert_to_f32_slice(out);
                } else {
                    bits[..out.len()].reinterpret_cast::<bf16>().convert_to_f32_slice(out);
                }
            }
        }
    }
}
