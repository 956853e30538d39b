//! Rows in the order in which they are multiplied.

use std::ops::Range;

use super::heads::Rows;
use super::micro::{LANES, Micro, SIX, SIXTEEN};

/// So many rows before one is read it is fetched: rows of one head are apart, and the processor does not foresee the next one.
pub(super) const AHEAD: usize = 16;

/// Queries as a left side: for six rows after six `[SIX, width]`, multiplied with `scale`. The last six are filled up with the last
/// row. `place` says of a row which query it is, and of what head.
///
/// # Safety
/// The processor has the instructions of `M`.
#[inline(always)]
pub(super) unsafe fn queries<M: Micro>(
    of: &impl Rows,
    place: impl Fn(usize) -> (usize, usize),
    count: usize,
    width: usize,
    scale: f32,
    to: &mut [f32],
) {
    for (i, first) in (0..count).step_by(SIX).enumerate() {
        for ahead in (first + AHEAD..count).take(SIX) {
            let (query, head) = place(ahead);
            M::fetch(&of.row(query, head)[..width]);
        }
        let rows: [*const f32; LANES] = std::array::from_fn(|r| {
            let (query, head) = place((first + r.min(SIX - 1)).min(count - 1));
            of.row(query, head)[..width].as_ptr()
        });
        // The last two are two more than six: what follows overwrites them.
        let to = &mut to[i * SIX * width..][..SIX * width + (LANES - SIX)];
        // SAFETY: `to` has room for the last two as well; the instructions are there.
        unsafe { M::transpose(rows, width, to.as_mut_ptr(), SIX) };
        to[..SIX * width].iter_mut().for_each(|number| *number *= scale);
    }
}

/// Keys as a right side: for sixteen keys after sixteen `[SIXTEEN, width]`. The last sixteen are filled up with the last key.
///
/// # Safety
/// The processor has the instructions of `M`.
#[inline(always)]
pub(super) unsafe fn keys<M: Micro>(of: &impl Rows, head: usize, keys: Range<usize>, width: usize, to: &mut [f32]) {
    for (panel, first) in to.chunks_exact_mut(SIXTEEN * width).zip(keys.clone().step_by(SIXTEEN)) {
        for ahead in (first + AHEAD..keys.end).take(SIXTEEN) {
            M::fetch(&of.row(ahead, head)[..width]);
        }
        for half in [0, LANES] {
            let rows: [*const f32; LANES] =
                std::array::from_fn(|r| of.row((first + half + r).min(keys.end - 1), head)[..width].as_ptr());
            // SAFETY: rows are `width` long and `panel` has as many rows of sixteen; the instructions are there.
            unsafe { M::transpose(rows, width, panel[half..].as_mut_ptr(), SIXTEEN) };
        }
    }
}

/// Values as right sides: for each of `panels`, which are columns of the result, `[panel, keys]`. What is wider than a row is 0. Panels
/// have room for `room` keys.
#[inline(always)]
pub(super) fn values<M: Micro>(
    of: &impl Rows,
    head: usize,
    keys: Range<usize>,
    width: usize,
    panels: impl Iterator<Item = Range<usize>> + Clone,
    (to, room): (&mut [f32], usize),
) {
    for (i, key) in keys.clone().enumerate() {
        if key + AHEAD < keys.end {
            M::fetch(&of.row(key + AHEAD, head)[..width]);
        }
        let (whole, rest) = of.row(key, head)[..width].as_chunks::<LANES>();
        for panel in panels.clone() {
            let to = to[panel.start * room + i * panel.len()..][..panel.len()].as_chunks_mut().0;
            let from = &whole[panel.start / LANES..whole.len().min(panel.end / LANES)];
            for (to, from) in to.iter_mut().zip(from) {
                *to = *from;
            }
            if let Some(last) = to.get_mut(from.len()) {
                *last = [0.0; LANES];
                last[..rest.len()].copy_from_slice(rest);
            }
        }
    }
}
