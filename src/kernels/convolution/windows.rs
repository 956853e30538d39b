//! The input, transformed for the cells of a tile.

use std::ops::Range;

use super::cells::{CELL, Part, SPAN, Tile};
use super::formulas::{CHANNELS, POSITIONS, WINDOW, window_column, window_row};
use super::geometry::{Geometry, PIXELS};
use super::input::{Source, fill_row, fit};
use super::lanes::Lanes;
use super::micro::Micro;

/// Numbers of one position of a span: of [`CHANNELS`] channels, and a few between positions, so that these do not all fall into the same
/// lines of the first-level cache.
const POSITION: usize = CHANNELS * SPAN + SPAN;

/// Windows of one span of cells: for each position, `[SPAN, channels]`.
type Span = [[f32; POSITION]; POSITIONS];

/// Windows of at most [`CHANNELS`] channels.
#[derive(Default)]
pub(super) struct Windows {
    /// One [`Span`] after the other.
    numbers: Vec<f32>,
    rows: Rows,
}

/// Rows of one channel of one part of a tile, transformed along themselves: even rows and odd rows of the windows apart, so that
/// those of one cell's window lie at its own number or a row further.
#[derive(Default)]
struct Rows {
    line: Vec<f32>,
    even: [Vec<f32>; WINDOW[0]],
    odd: [Vec<f32>; WINDOW[0]],
}

impl Windows {
    /// Makes room for the windows of a tile.
    ///
    /// # Errors
    /// How many bytes could not be had.
    pub(super) fn fit(&mut self, tile: &Tile) -> Result<(), usize> {
        fit(&mut self.numbers, tile.spans() * POSITIONS * POSITION)?;
        self.rows.fit(tile)
    }

    /// Holds the windows of `channels` from now on.
    #[inline(always)]
    pub(super) fn fill<M: Micro>(
        &mut self,
        geometry: &Geometry,
        source: &Source<'_>,
        tile: &Tile,
        channels: Range<usize>,
    ) {
        for part in tile.parts() {
            for (i, channel) in channels.clone().enumerate() {
                self.rows.fill::<M>(geometry, source, tile, &part, channel);
                self.take::<M::Lanes>(tile, &part, i);
            }
        }
    }

    /// Position number `position` of span number `span`, `[SPAN, channels]`.
    #[inline(always)]
    pub(super) fn of(&self, span: usize, position: usize) -> &[[f32; SPAN]] {
        self.numbers[(span * POSITIONS + position) * POSITION..][..CHANNELS * SPAN].as_chunks().0
    }

    /// Transforms the rows of channel number `channel` along the columns.
    #[inline(always)]
    fn take<L: Lanes>(&mut self, tile: &Tile, part: &Part, channel: usize) {
        let across = tile.columns.len();
        let cells = part.rows.len() * across;
        let spans: &mut [Span] = self.numbers.as_chunks_mut().0.as_chunks_mut().0;
        let mut cell = 0;
        while cell < cells {
            let place = part.first + cell;
            let lane = place % SPAN;
            let count = (PIXELS - lane % PIXELS).min(cells - cell);
            let span: &mut Span = &mut spans[place / SPAN];
            for (column, (even, odd)) in self.rows.even.iter().zip(&self.rows.odd).enumerate() {
                let upper = [first_lanes::<L>(&even[cell..]), first_lanes(&odd[cell..])];
                let lower = [first_lanes(&even[cell + across..]), first_lanes(&odd[cell + across..])];
                let window = window_column([upper[0], upper[1], lower[0], lower[1]]);
                for (row, numbers) in window.into_iter().enumerate() {
                    let position = &mut span[row * WINDOW[0] + column];
                    store_some(numbers, &mut position[channel * SPAN + lane..], count);
                }
            }
            cell += count;
        }
    }
}

/// The first numbers of `from`, which has as many.
#[inline(always)]
pub(super) fn first_lanes<L: Lanes>(from: &[f32]) -> L {
    match from.first_chunk() {
        Some(from) => L::load(from),
        None => L::load(&[0.0; PIXELS]),
    }
}

/// Writes the first `count` of `numbers` to `to`.
#[inline(always)]
fn store_some<L: Lanes>(numbers: L, to: &mut [f32], count: usize) {
    match to.first_chunk_mut() {
        Some(to) if count == PIXELS => numbers.store(to),
        _ => {
            let mut all = [0.0; PIXELS];
            numbers.store(&mut all);
            to[..count].copy_from_slice(&all[..count]);
        }
    }
}

impl Rows {
    fn fit(&mut self, tile: &Tile) -> Result<(), usize> {
        let across = tile.columns.len();
        // Whole vectors are written and read at any of these.
        let len = (tile.rows.len().min(tile.grid.down) + 1) * across + PIXELS;
        for numbers in self.even.iter_mut().chain(&mut self.odd) {
            fit(numbers, len)?;
        }
        fit(&mut self.line, (across.next_multiple_of(PIXELS) + PIXELS) * CELL[0])
    }

    /// Holds the rows of `channel` that `part` reads from now on.
    #[inline(always)]
    fn fill<M: Micro>(&mut self, geometry: &Geometry, source: &Source<'_>, tile: &Tile, part: &Part, channel: usize) {
        let across = tile.columns.len();
        for row in 0..(part.rows.len() + 1) * CELL[1] {
            // Of the padded input. Above the first row of a strip there may be none, and nothing that counts depends on it.
            let y = (part.rows.start * CELL[1] + row).checked_sub(tile.grid.lacking());
            // What the next channel reads, which the processor does not foresee: rows lie far apart.
            let plane = part.picture * geometry.inputs + (channel + 1).min(geometry.inputs - 1);
            if let Some(next) = y.and_then(|y| source.row(geometry, plane, y)) {
                let columns = tile.columns.start * CELL[0]..tile.columns.end * CELL[0];
                let halved = usize::from(geometry.doubled);
                M::expect(next, columns.start >> halved..(columns.end >> halved).min(next.len()));
            }
            let line = &mut self.line[..(across + 1) * CELL[0]];
            fill_row(line, geometry, source, (part.picture, channel), (tile.columns.start * CELL[0], 1), y);
            let rows = if row % CELL[1] == 0 { &mut self.even } else { &mut self.odd };
            transform::<M::Lanes>(&self.line, rows, row / CELL[1] * across, across);
        }
    }
}

/// Transforms the windows of `across` cells along `line`, and writes them to `rows` from number `start` on. Whole vectors are written.
#[inline(always)]
fn transform<L: Lanes>(line: &[f32], rows: &mut [Vec<f32>; WINDOW[0]], start: usize, across: usize) {
    for cell in (0..across).step_by(PIXELS) {
        let numbers = &line[cell * CELL[0]..][..(PIXELS + 2) * CELL[0]];
        let [a, b, c, d] = quarters::<L>(numbers);
        let [e, f, ..] = quarters::<L>(&numbers[CELL[0]..]);
        for (row, numbers) in rows.iter_mut().zip(window_row([a, b, c, d, e, f])) {
            if let Some(to) = row[start + cell..].first_chunk_mut() {
                numbers.store(to);
            }
        }
    }
}

/// Every fourth number of `numbers`, from each of the first four on.
#[inline(always)]
fn quarters<L: Lanes>(numbers: &[f32]) -> [L; CELL[0]] {
    let (left, right) = numbers.split_at(2 * PIXELS);
    L::deinterleave([
        first_lanes(left),
        first_lanes(&left[PIXELS..]),
        first_lanes(right),
        first_lanes(&right[PIXELS..]),
    ])
}
