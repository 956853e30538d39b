//! The formulas of Winograd's filtering: F(4, 3) along a row and F(2, 3) down a column.

use super::cells::CELL;
use super::lanes::Lanes;

/// Columns and rows of the pixels that a cell is computed from.
pub(super) const WINDOW: [usize; 2] = [6, 4];
/// Products for each cell, channel and output.
pub(super) const POSITIONS: usize = WINDOW[0] * WINDOW[1];

/// Channels of the input that are summed at a time.
pub(super) const CHANNELS: usize = 64;

const ROOT: f32 = std::f32::consts::SQRT_2;
const HALF_ROOT: f32 = std::f32::consts::FRAC_1_SQRT_2;

/// Six neighbours in a row.
#[inline(always)]
pub(super) fn window_row<L: Lanes>([a, b, c, d, e, f]: [L; WINDOW[0]]) -> [L; WINDOW[0]] {
    let (even, odd) = (e.plus_times(-0.5, c), d.plus_times(-0.5, b));
    let (even_2, odd_2) = (e.plus_times(-2.0, c), d.plus_times(-2.0, b));
    [
        a.plus(e).plus_times(-2.5, c),
        even.plus_times(ROOT, odd),
        even.plus_times(-ROOT, odd),
        even_2.plus_times(HALF_ROOT, odd_2),
        even_2.plus_times(-HALF_ROOT, odd_2),
        b.plus(f).plus_times(-2.5, d),
    ]
}

/// Four neighbours in a column.
#[inline(always)]
pub(super) fn window_column<L: Lanes>([a, b, c, d]: [L; WINDOW[1]]) -> [L; WINDOW[1]] {
    [a.minus(c), b.plus(c), c.minus(b), b.minus(d)]
}

/// A row of a kernel.
#[inline(always)]
pub(super) fn kernel_row<L: Lanes>([a, b, c]: [L; 3]) -> [L; WINDOW[0]] {
    let even = a.plus_times(2.0, c).times(1.0 / 6.0);
    let even_2 = a.plus_times(0.5, c).times(-2.0 / 3.0);
    [
        a,
        even.plus_times(ROOT / 6.0, b),
        even.plus_times(-ROOT / 6.0, b),
        even_2.plus_times(-ROOT / 3.0, b),
        even_2.plus_times(ROOT / 3.0, b),
        c,
    ]
}

/// A column of a kernel.
#[inline(always)]
pub(super) fn kernel_column<L: Lanes>([a, b, c]: [L; 3]) -> [L; WINDOW[1]] {
    let ends = a.plus(c).times(0.5);
    [a, ends.plus_times(0.5, b), ends.plus_times(-0.5, b), c]
}

/// A row of sums gives four pixels.
#[inline(always)]
pub(super) fn cell_row<L: Lanes>([a, b, c, d, e, f]: [L; WINDOW[0]]) -> [L; CELL[0]] {
    let (even, odd, even_2, odd_2) = (b.plus(c), b.minus(c), d.plus(e), d.minus(e));
    [
        a.plus(even).plus(even_2),
        odd.plus_times(0.5, odd_2).times(ROOT),
        even_2.times(0.5).plus_times(2.0, even),
        f.plus_times(ROOT, odd_2.times(0.25).plus_times(2.0, odd)),
    ]
}

/// A column of sums gives two rows. The upper one does not depend on the last sum, nor the lower one on the first: a row
/// is computed from its own three rows of the input alone.
#[inline(always)]
pub(super) fn cell_column<L: Lanes>([a, b, c, d]: [L; WINDOW[1]]) -> [L; CELL[1]] {
    [a.plus(b).plus(c), b.minus(c).minus(d)]
}
