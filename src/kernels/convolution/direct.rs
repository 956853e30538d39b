//! Every product of a pixel and a weight.

use std::ops::Range;

use super::added::Added;
use super::geometry::{Area, Geometry, OUTPUTS, PIXELS, Planes, STRETCHES, Stretch, Weights};
use super::input::{Patch, Source};
use super::micro::{Micro, Sums};
use super::weights::WeightBlock;

/// Channels of the input that are summed at a time.
const CHANNELS: usize = 32;
/// Outputs whose weights are reordered together: a multiple of [`OUTPUTS`].
pub(super) const GROUP: usize = 16 * OUTPUTS;

/// What a part is computed in.
#[derive(Default)]
pub(super) struct Space {
    patch: Patch,
    block: WeightBlock,
}

/// A part of one tile.
pub(super) struct Work<'a> {
    pub(super) geometry: &'a Geometry,
    pub(super) area: Area,
    pub(super) outputs: Range<usize>,
    pub(super) source: &'a Source<'a>,
    pub(super) weights: Weights<'a>,
    pub(super) added: Added<'a>,
}

impl Work<'_> {
    // Inlined where the instructions of `M` are enabled, as everything is that it calls.
    #[inline(always)]
    pub(super) fn compute<M: Micro>(&self, space: &mut Space, result: &mut impl Planes) -> Result<(), usize> {
        let (inputs, outputs) = (self.geometry.inputs, self.outputs.clone());
        let Space { patch, block } = space;
        patch.fit(self.geometry, &self.area, CHANNELS.min(inputs))?;
        block.fit(self.geometry, CHANNELS.min(inputs), GROUP.min(outputs.len()))?;
        for first in (0..inputs).step_by(CHANNELS) {
            let channels = first..inputs.min(first + CHANNELS);
            patch.fill(self.geometry, self.source, self.area.picture, channels.clone());
            for group in outputs.clone().step_by(GROUP) {
                let group = group..outputs.end.min(group + GROUP);
                block.fill(self.geometry, self.weights, channels.clone(), group.clone());
                self.group::<M>(patch, block, channels.clone(), group, result);
            }
        }
        Ok(())
    }

    /// Adds what `channels` give to the outputs of `group`.
    #[inline(always)]
    fn group<M: Micro>(
        &self,
        patch: &Patch,
        block: &WeightBlock,
        channels: Range<usize>,
        group: Range<usize>,
        result: &mut impl Planes,
    ) {
        let count = self.area.stretches();
        for first in (0..count).step_by(STRETCHES) {
            // The last one may be computed twice.
            let stretches: [Stretch; STRETCHES] =
                std::array::from_fn(|i| self.area.stretch((first + i).min(count - 1)));
            let inputs = stretches.each_ref().map(|&Stretch { x, y, .. }| self.patched(patch, x, y));
            // Neighbours in a row are written together.
            let [left, right] = stretches;
            let written: &[Stretch] = if left.reaches(right) {
                &[Stretch { pixels: PIXELS + right.pixels, ..left }]
            } else {
                &stretches[..STRETCHES.min(count - first)]
            };
            for (i, output) in group.clone().step_by(OUTPUTS).enumerate() {
                let mut sums: Sums = [[[0.0; PIXELS]; STRETCHES]; OUTPUTS];
                // SAFETY: `Patch` and `WeightBlock` hold as many numbers as are read; the instructions are there.
                unsafe {
                    M::sum(inputs, patch.offsets(), patch.plane(), channels.len(), block.of(i), &mut sums);
                }
                for (sums, output) in sums.iter().zip(output..group.end) {
                    let sums = sums.as_flattened().chunks(PIXELS * STRETCHES / written.len());
                    for (sums, &Stretch { x, y, pixels }) in sums.zip(written) {
                        let plane = self.area.picture * self.geometry.outputs + output;
                        let row = result.row(plane, y, x, pixels);
                        if channels.start > 0 {
                            row.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
                        } else {
                            self.added.first(row, sums, self.geometry, (plane, output), [x, y]);
                        }
                    }
                }
            }
        }
    }

    /// Where `patch` has the pixels for the result's pixel at `x` and `y`.
    #[inline(always)]
    fn patched(&self, patch: &Patch, x: usize, y: usize) -> *const f32 {
        patch.at(x - self.area.columns.start, y - self.area.rows.start)
    }
}
