//! Three by three pixels without a stride, by fewer products.

use std::ops::Range;

use super::added::Added;
use super::cells::{CELL, Run, SPAN, Tile};
use super::filters::Filters;
use super::formulas::{CHANNELS, POSITIONS, WINDOW, cell_column, cell_row};
use super::geometry::{Geometry, OUTPUTS, PIXELS, Planes, Weights};
use super::input::Source;
use super::lanes::Lanes;
use super::micro::{Micro, Products};
use super::windows::{Windows, first_lanes};

/// Outputs whose kernels are transformed together: a multiple of [`OUTPUTS`].
const GROUP: usize = 8 * OUTPUTS;

/// Sets of outputs that meet a span's windows at one position while these stay in the first-level cache.
const SETS: usize = 4;

/// Pixels of a span, row by row.
type Pixels = [[f32; SPAN * CELL[0]]; CELL[1]];

/// What a part is computed in.
#[derive(Default)]
pub(super) struct Space {
    windows: Windows,
    filters: Filters,
}

/// A part of one tile.
pub(super) struct Work<'a> {
    pub(super) geometry: &'a Geometry,
    pub(super) tile: Tile,
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
        let Space { windows, filters } = space;
        windows.fit(&self.tile)?;
        filters.fit(GROUP.min(outputs.len()))?;
        for first in (0..inputs).step_by(CHANNELS) {
            let channels = first..inputs.min(first + CHANNELS);
            windows.fill::<M>(self.geometry, self.source, &self.tile, channels.clone());
            for group in outputs.clone().step_by(GROUP) {
                let group = group..outputs.end.min(group + GROUP);
                filters.fill::<M>(self.geometry, self.weights, channels.clone(), group.clone());
                for span in 0..self.tile.spans() {
                    self.span::<M>(windows, filters, (span, first == 0), group.clone(), result);
                }
            }
        }
        Ok(())
    }

    /// Adds what the windows of span number `span` give to the outputs of `group`: the first channels, or further ones.
    #[inline(always)]
    fn span<M: Micro>(
        &self,
        windows: &Windows,
        filters: &Filters,
        (span, first): (usize, bool),
        group: Range<usize>,
        result: &mut impl Planes,
    ) {
        let runs = self.tile.runs(span);
        let mut products = [[[[0.0; SPAN]; OUTPUTS]; SETS]; POSITIONS];
        for (round, outputs) in group.clone().step_by(SETS * OUTPUTS).enumerate() {
            let some = outputs..group.end.min(outputs + SETS * OUTPUTS);
            let sets = some.len().div_ceil(OUTPUTS);
            for (position, products) in products.iter_mut().enumerate() {
                // What is written after all positions: as many outputs as there are positions, or fewer.
                if let Some(output) = some.clone().nth(position) {
                    for run in runs.iter().flatten() {
                        self.expect::<M>(run, output, result);
                    }
                }
                let windows = windows.of(span, position);
                let (pairs, rest) = products[..sets].as_chunks_mut::<2>();
                let mut set = round * SETS;
                for pair in pairs {
                    M::multiply(windows, [filters.of(set, position), filters.of(set + 1, position)], pair);
                    set += 2;
                }
                if let [last] = rest {
                    M::multiply(windows, [filters.of(set, position)], std::array::from_mut(last));
                }
            }
            for (i, output) in some.enumerate() {
                let mut pixels = [[0.0; SPAN * CELL[0]]; CELL[1]];
                cells::<M::Lanes>(&products, [i / OUTPUTS, i % OUTPUTS], &mut pixels);
                for run in runs.iter().flatten() {
                    self.write(run, &pixels, output, first, result);
                }
            }
        }
    }

    /// Hints that the pixels of `run` of the plane of `output` are soon written.
    #[inline(always)]
    fn expect<M: Micro>(&self, run: &Run, output: usize, result: &mut impl Planes) {
        let plane = run.picture * self.geometry.outputs + output;
        for y in run.y..run.y + run.halves.len() {
            let row = result.row(plane, y, run.columns.start, run.columns.len());
            M::expect(row, 0..row.len());
        }
    }

    /// Adds the pixels of `run` to the plane of `output`.
    #[inline(always)]
    fn write(&self, run: &Run, pixels: &Pixels, output: usize, first: bool, result: &mut impl Planes) {
        let plane = run.picture * self.geometry.outputs + output;
        let x = run.columns.start;
        for (y, half) in (run.y..).zip(run.halves.clone()) {
            let sums = &pixels[half][run.lane * CELL[0]..][..run.columns.len()];
            let row = result.row(plane, y, x, sums.len());
            if first {
                self.added.first(row, sums, self.geometry, (plane, output), [x, y]);
            } else {
                row.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
            }
        }
    }
}

/// The pixels of a span's cells for output number `output` of set number `set` of those that `products` are for.
#[inline(always)]
fn cells<L: Lanes>(products: &[[Products; SETS]; POSITIONS], [set, output]: [usize; 2], pixels: &mut Pixels) {
    for lane in (0..SPAN).step_by(PIXELS) {
        let mut halves = [[L::load(&[0.0; PIXELS]); WINDOW[0]]; CELL[1]];
        for column in 0..WINDOW[0] {
            let mut sums = [L::load(&[0.0; PIXELS]); WINDOW[1]];
            for (row, sums) in sums.iter_mut().enumerate() {
                *sums = first_lanes(&products[row * WINDOW[0] + column][set][output][lane..]);
            }
            [halves[0][column], halves[1][column]] = cell_column(sums);
        }
        for (half, pixels) in halves.into_iter().zip(pixels.iter_mut()) {
            let pixels = pixels[lane * CELL[0]..].as_chunks_mut().0;
            for (numbers, to) in L::interleave(cell_row(half)).into_iter().zip(pixels) {
                numbers.store(to);
            }
        }
    }
}
