//! Numbers become codes, in the order in which they are multiplied.

use std::ops::Range;

use super::super::micro::{LANES, SIX, SIXTEEN};
use super::super::pack::AHEAD;
use super::micro::{Micro, Pair};
use super::units::{MOST_CODE, MOST_VALUE, ROUNDER};

/// The code of a number for the reciprocal of its unit.
#[inline(always)]
fn code(number: f32, reciprocal: f32) -> i16 {
    number.mul_add(reciprocal, ROUNDER).to_bits() as i16
}

/// A number's bits without its sign: they are ordered as sizes are, and those of infinity and of what is not a number come last.
#[inline(always)]
fn size(number: f32) -> u32 {
    number.to_bits() & !(1 << 31)
}

/// A unit in which the largest number has the code `most`, and its reciprocal. If that number is not finite the unit is not, and
/// codes may be anything.
#[inline(always)]
fn unit(largest: u32, most: f32) -> [f32; 2] {
    let largest = f32::from_bits(largest);
    let reciprocal = if largest > 0.0 { most / largest } else { 0.0 };
    // Infinity shall not come to be, times 0, a number.
    [if largest.is_finite() { largest / most } else { f32::NAN }, reciprocal]
}

/// A row as codes. Gives their unit.
#[inline(always)]
fn encode(row: &[f32], codes: &mut [i16]) -> f32 {
    // One maximum, which the compiler makes of several vectors: of sixteen written here it makes gathers of single numbers.
    let largest = row.iter().fold(0, |most, number| size(*number).max(most));
    let [unit, reciprocal] = unit(largest, MOST_CODE);
    codes.iter_mut().zip(row).for_each(|(to, number)| *to = code(*number, reciprocal));
    unit
}

/// Queries as a left side: for six rows after six `[SIX, pairs]`, and their units. The last six are filled up with the last row.
/// `codes` has room for eight rows.
///
/// # Safety
/// The processor has the instructions of `M`.
#[inline(always)]
pub(super) unsafe fn queries<'a, M: Micro>(
    row: impl Fn(usize) -> &'a [f32],
    count: usize,
    (to, units): (&mut [Pair], &mut [f32]),
    codes: &mut [i16],
) {
    let pitch = codes.len() / LANES;
    for (i, first) in (0..count).step_by(SIX).enumerate() {
        for ahead in (first + AHEAD..count).take(SIX) {
            M::fetch(row(ahead));
        }
        for (r, codes) in codes.chunks_exact_mut(pitch).take(SIX).enumerate() {
            units[first + r] = encode(row((first + r).min(count - 1)), codes);
        }
        let rows = std::array::from_fn(|r| codes[r.min(SIX - 1) * pitch..][..pitch].as_ptr().cast());
        // The last two are two more than six: what follows overwrites them.
        let to = &mut to[i * SIX * pitch / 2..][..SIX * pitch / 2 + (LANES - SIX)];
        // SAFETY: rows of `pitch` codes, which are moved by twos as numbers of four bytes are; `to` has room for the last two rows
        // as well; the instructions are there.
        unsafe { M::transpose(rows, pitch / 2, to.as_mut_ptr().cast(), SIX) };
    }
}

/// Keys as a right side: for sixteen keys after sixteen `[SIXTEEN, pairs]`, and their units. The last sixteen are filled up with the
/// last key. `codes` has room for eight rows.
///
/// # Safety
/// The processor has the instructions of `M`.
#[inline(always)]
pub(super) unsafe fn keys<'a, M: Micro>(
    row: impl Fn(usize) -> &'a [f32],
    count: usize,
    (to, units): (&mut [Pair], &mut [f32]),
    codes: &mut [i16],
) {
    let pitch = codes.len() / LANES;
    for (panel, first) in to.chunks_exact_mut(SIXTEEN * pitch / 2).zip((0..count).step_by(SIXTEEN)) {
        for ahead in (first + AHEAD..count).take(SIXTEEN) {
            M::fetch(row(ahead));
        }
        for half in [0, LANES] {
            for (r, codes) in codes.chunks_exact_mut(pitch).enumerate() {
                units[first + half + r] = encode(row((first + half + r).min(count - 1)), codes);
            }
            let rows = std::array::from_fn(|r| codes[r * pitch..][..pitch].as_ptr().cast());
            // SAFETY: rows of `pitch` codes, which are moved by twos as numbers of four bytes are; `panel` has as many rows of
            // sixteen; the instructions are there.
            unsafe { M::transpose(rows, pitch / 2, panel[half..].as_mut_ptr().cast(), SIXTEEN) };
        }
    }
}

/// Values as right sides: for each of `panels`, which are columns of the result, `[panel, pairs of keys]`, and the units of the
/// columns. What is wider than a row is 0. Panels have room for `room` pairs. `reciprocals` and `largest` are as long as `units`.
#[inline(always)]
pub(super) fn values<'a, M: Micro>(
    row: impl Fn(usize) -> &'a [f32],
    count: usize,
    panels: impl Iterator<Item = Range<usize>> + Clone,
    (to, room): (&mut [Pair], usize),
    [units, reciprocals]: [&mut [f32]; 2],
    largest: &mut [u32],
) {
    largest.fill(0);
    for key in 0..count {
        if key + AHEAD < count {
            M::fetch(row(key + AHEAD));
        }
        largest.iter_mut().zip(row(key)).for_each(|(most, number)| *most = size(*number).max(*most));
    }
    for ((unit_of, reciprocal), largest) in units.iter_mut().zip(&mut *reciprocals).zip(largest) {
        [*unit_of, *reciprocal] = unit(*largest, MOST_VALUE);
    }
    for (i, key) in (0..count).step_by(2).enumerate() {
        // Where there is no second key, its weight is 0.
        let [first, second] = [row(key), row((key + 1).min(count - 1))];
        for panel in panels.clone() {
            let to = &mut to[panel.start * room + i * panel.len()..][..panel.len()];
            let real = panel.start..panel.end.min(first.len());
            let (to, beyond) = to.split_at_mut(real.len());
            let numbers = first[real.clone()].iter().zip(&second[real.clone()]).zip(&reciprocals[real]);
            for (to, ((first, second), reciprocal)) in to.iter_mut().zip(numbers) {
                *to = [code(*first, *reciprocal), code(*second, *reciprocal)];
            }
            beyond.fill([0, 0]);
        }
    }
}
