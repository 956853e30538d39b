//! Attention by whole numbers: queries, keys, weights and values become codes of 11 to 13 bits, whose products and sums are exact.
//!
//! A query, a key, and a channel of the values of one block have a unit each, in which their largest number has the largest code; a
//! weight's unit is the largest one of its query in the block. Sums of a block are exact, since all fit 32 bits:
//!
//! | | left | right | terms | sum below |
//! |---|---|---|---|---|
//! | scores | 2047 | 2047 | 512 channels | 2^31 |
//! | values | 8192 | 1023 | 256 keys | 2^31 |
//!
//! Zhang et al., "SageAttention" (2024), have codes of 8 bits here, and take the keys' mean out first because it leaves few of them to
//! what differs. An x86 processor without VNNI multiplies codes of 16 bits as fast as those of 8 (`vpmaddwd`, and `vpmaddubsw`
//! before `vpmaddwd`), and with VNNI half as fast. With four bits more, the keys' mean may stay.
//!
//! Otherwise it is as in `attention/mod.rs`: tiles, blocks, the order of what is multiplied.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(super) mod micro;
mod pack;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod units;
mod weights;

use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::heads::{Attended, Outputs, Rows};
use super::micro::{LANES, SIX, SIXTEEN};
use super::powers::TOGETHER;
use super::softmax::Row;
use super::tiles::{MOST_KEYS, PITCH, TWELVE, Tiling, panels, room};
use micro::{Factors, LAST, Micro, Pair};
use units::{MOST_CODE, MOST_VALUE, WEIGHT_BITS};
use weights::Terms;

pub(super) use units::WIDEST;

const _: () = assert!(MOST_CODE as u64 * MOST_CODE as u64 * (WIDEST as u64) < 1 << 31);
const _: () = assert!((1u64 << WEIGHT_BITS) * MOST_VALUE as u64 * (MOST_KEYS as u64) < 1 << 31);

/// What a thread computes with.
#[derive(Debug, Default)]
pub(super) struct Space {
    queries: Vec<Pair>,
    query_units: Vec<f32>,
    keys: Vec<Pair>,
    key_units: Vec<f32>,
    values: Vec<Pair>,
    value_units: Vec<f32>,
    reciprocals: Vec<f32>,
    largest: Vec<u32>,
    /// Eight rows, before they lie side by side.
    codes: Vec<i16>,
    scores: Vec<i32>,
    weights: Vec<i16>,
    sums: Vec<f32>,
    rows: Vec<Row>,
}

impl Space {
    /// # Errors
    /// How many bytes could not be had.
    pub(super) fn new(tiling: &Tiling) -> Result<Space, usize> {
        let (pairs, padded, block) = (pairs(tiling), tiling.padded(), tiling.block);
        let tile = tiling.tile.next_multiple_of(TWELVE);
        Ok(Space {
            queries: room(tile * pairs + LANES, [0; 2])?,
            query_units: room(tile, 0.0)?,
            keys: room(block * pairs, [0; 2])?,
            key_units: room(block, 0.0)?,
            values: room(block.div_ceil(2) * padded, [0; 2])?,
            value_units: room(padded, 0.0)?,
            reciprocals: room(padded, 0.0)?,
            largest: room(padded, 0)?,
            codes: room(2 * LANES * pairs, 0)?,
            scores: room(TWELVE * PITCH, 0)?,
            weights: room(TWELVE * PITCH, 0)?,
            sums: room(tile * padded, 0.0)?,
            rows: room(tile, Row::EMPTY)?,
        })
    }
}

#[cfg(test)]
impl Space {
    /// What it takes.
    pub(super) fn bytes(&self) -> usize {
        let numbers = [&self.query_units, &self.key_units, &self.value_units, &self.reciprocals, &self.sums];
        let numbers: usize = numbers.map(Vec::len).iter().sum();
        let pairs = self.queries.len() + self.keys.len() + self.values.len();
        let codes = self.codes.len() + self.weights.len();
        4 * (numbers + pairs + self.largest.len() + self.scores.len()) + 2 * codes + size_of_val(self.rows.as_slice())
    }
}

/// Pairs of codes of a query or a key.
fn pairs(tiling: &Tiling) -> usize {
    tiling.heads.width.div_ceil(2)
}

// Inlined where the instructions of `M` are enabled, as everything is that it calls.
#[inline(always)]
pub(super) fn compute<M: Micro>(
    tiling: &Tiling,
    tile: usize,
    attended: &Attended<'_, impl Rows>,
    space: &mut Space,
    result: &mut impl Outputs,
) {
    let (width, keys) = (tiling.heads.width, tiling.heads.keys);
    let (group, place, count) = tiling.rows_of(tile);
    let query = |row: usize| {
        let (query, head) = place(row);
        &attended.q.row(query, head)[..width]
    };
    // SAFETY: the instructions are there.
    unsafe { pack::queries::<M>(query, count, (&mut space.queries, &mut space.query_units), &mut space.codes) };
    space.rows.fill(Row::EMPTY);
    space.sums.fill(0.0);
    for start in (0..keys).step_by(tiling.block) {
        if !result.wanted() {
            return;
        }
        let block = start..keys.min(start + tiling.block);
        // SAFETY: the instructions are there.
        unsafe {
            pack::keys::<M>(
                |i| &attended.k.row(block.start + i, group)[..width],
                block.len(),
                (&mut space.keys, &mut space.key_units),
                &mut space.codes,
            )
        };
        let (to, units) = (&mut space.values, [space.value_units.as_mut_slice(), &mut space.reciprocals]);
        let room = tiling.block.div_ceil(2);
        pack::values::<M>(
            |i| &attended.v.row(block.start + i, group)[..width],
            block.len(),
            panels(width),
            (to, room),
            units,
            &mut space.largest,
        );
        for row in (0..count).step_by(TWELVE) {
            let rows = row..count.min(row + TWELVE);
            scores::<M>(pairs(tiling), rows.clone(), block.len(), space);
            let factors = weigh::<M>(
                tiling.scale,
                rows.clone(),
                block.len(),
                |row| attended.mask.map(|mask| &mask[place(row).0 * keys..][..keys][block.clone()]),
                space,
            );
            values::<M>(tiling, rows, block.len(), &factors, space);
        }
    }
    for (row, sums) in space.sums.chunks_exact(tiling.padded()).take(count).enumerate() {
        let (query, head) = place(row);
        let reciprocal = space.rows[row].reciprocal();
        result.row(query, head).iter_mut().zip(sums).for_each(|(out, sum)| *out = sum * reciprocal);
    }
}

/// The scores of `rows` for the first `keys` of the block, in the units of both.
#[inline(always)]
fn scores<M: Micro>(pairs: usize, rows: Range<usize>, keys: usize, space: &mut Space) {
    let left = &space.queries[rows.start * pairs..][..rows.len().next_multiple_of(SIX) * pairs];
    let right = &space.keys[..keys.next_multiple_of(SIXTEEN) * pairs];
    let (panel, both) = (SIXTEEN * pairs, SIX * pairs);
    for (i, right) in right.chunks(2 * panel).enumerate() {
        let out = &mut space.scores[2 * i * SIXTEEN..][..(TWELVE - 1) * PITCH + right.len() / pairs];
        let (left_at, out) = (left.as_ptr(), out.as_mut_ptr());
        // SAFETY: six queries or twelve, and sixteen keys or twice as many, of so many pairs; `out` ends with the last of twelve
        // scores; the instructions are there.
        unsafe {
            if left.len() > both && right.len() > panel {
                let rights = [right.as_ptr(), right[panel..].as_ptr()];
                <M as Micro>::multiply_wide::<SIX, 1>(left_at, both, rights, pairs, out, PITCH);
                continue;
            }
            for (i, right) in right.chunks_exact(panel).enumerate() {
                let (right, out) = (right.as_ptr(), out.add(i * SIXTEEN));
                if left.len() > both {
                    <M as Micro>::multiply_both::<SIX, 2, SIX, 1>(left_at, both, right, pairs, out, PITCH);
                } else {
                    <M as Micro>::multiply::<SIX, 2, SIX, 1>(left_at, right, pairs, out, PITCH);
                }
            }
        }
    }
}

/// Makes weights of the scores of `rows` for the first `keys` of the block, with a row's `mask` added where there is one, and gives the
/// factors for sums.
#[inline(always)]
fn weigh<'a, M: Micro>(
    scale: f32,
    rows: Range<usize>,
    keys: usize,
    mask: impl Fn(usize) -> Option<&'a [f16]>,
    space: &mut Space,
) -> Factors {
    let mut factors = [[0.0; 2]; TWELVE];
    let (mut scores, mut numbers) = ([[0.0; TOGETHER]; MOST_KEYS / TOGETHER], [[0.0; TOGETHER]; MOST_KEYS / TOGETHER]);
    let scores = &mut scores[..keys.div_ceil(TOGETHER)];
    let products = space.scores.chunks_exact(PITCH).zip(space.weights.chunks_exact_mut(PITCH));
    for ((row, factors), (products, weights)) in rows.zip(&mut factors).zip(products) {
        let mask = mask(row);
        if let Some(mask) = mask {
            mask.convert_to_f32_slice(&mut numbers.as_flattened_mut()[..keys]);
        }
        let terms = Terms {
            products: products.as_chunks().0,
            units: space.key_units.as_chunks().0,
            unit: space.query_units[row] * (scale * std::f32::consts::LOG2_E),
            mask: mask.is_some().then_some(&numbers),
        };
        // SAFETY: the instructions are there.
        let (most, sum) = unsafe {
            let most = M::scores(&terms, keys, scores);
            (most, <M as Micro>::weigh(scores, most, weights.as_chunks_mut().0))
        };
        *factors = space.rows[row].join(most, sum);
    }
    factors
}

/// Multiplies the sums of `rows` with the first of their factors, and adds the values of the first `keys` of the block, weighed.
#[inline(always)]
fn values<M: Micro>(tiling: &Tiling, rows: Range<usize>, keys: usize, factors: &Factors, space: &mut Space) {
    let (padded, room, depth) = (tiling.padded(), tiling.block.div_ceil(2), keys.div_ceil(2));
    let mut panels = panels(tiling.heads.width).peekable();
    while let Some(panel) = panels.next() {
        let sums = &mut space.sums[rows.start * padded + panel.start..];
        if panel.len() == SIXTEEN && rows.len() > SIX {
            let units = space.value_units[panel.start..].as_chunks().0;
            match panels.next_if(|next| next.len() == SIXTEEN) {
                Some(next) => {
                    let rights = [right(&space.values, &panel, room, depth), right(&space.values, &next, room, depth)];
                    add_values::<M, 2>(&space.weights, rights, units, factors, (sums, padded));
                }
                None => add_values::<M, 1>(
                    &space.weights,
                    [right(&space.values, &panel, room, depth)],
                    units,
                    factors,
                    (sums, padded),
                ),
            }
            continue;
        }
        if M::ADDS_LAST && panel.len() == LAST && rows.len() > SIX {
            let units = space.value_units[panel.start..].first_chunk().expect("as many units as columns");
            let sums = &mut sums[..(TWELVE - 1) * padded + LAST];
            let (left, right) = (left(&space.weights, depth), right(&space.values, &panel, room, depth).as_ptr());
            // SAFETY: twelve rows of `PITCH` weights, as many pairs of them used as `right` has; `sums` ends with the last one; the
            // instructions are there.
            unsafe { M::add_last_values(left, right, depth, units, factors, sums, padded) };
            continue;
        }
        let mut products = [0; TWELVE * LAST];
        match panel.len() / LANES {
            1 => multiply::<M, TWELVE, 1>(
                &space.weights,
                right(&space.values, &panel, room, depth),
                rows.len(),
                &mut products,
            ),
            2 => multiply::<M, SIX, 2>(
                &space.weights,
                right(&space.values, &panel, room, depth),
                rows.len(),
                &mut products,
            ),
            _ => multiply::<M, 3, 3>(
                &space.weights,
                right(&space.values, &panel, room, depth),
                rows.len(),
                &mut products,
            ),
        }
        let (units, products) = (&space.value_units[panel.clone()], &products[..rows.len() * panel.len()]);
        micro::add(products, units, factors, sums, padded);
    }
}

/// The values of a panel with room for `room` pairs of keys, `depth` of them used.
#[inline(always)]
fn right<'a>(values: &'a [Pair], panel: &Range<usize>, room: usize, depth: usize) -> &'a [Pair] {
    &values[panel.start * room..][..panel.len() * depth]
}

/// Twelve rows of weights as pairs, with `depth` of them in a row.
#[inline(always)]
fn left(weights: &[i16], depth: usize) -> *const Pair {
    let weights = weights.as_chunks().0;
    assert!(weights.len() >= TWELVE * PITCH / 2 && depth <= PITCH / 2);
    weights.as_ptr()
}

/// [`Micro::add_values`] of twelve rows.
#[inline(always)]
fn add_values<M: Micro, const RIGHTS: usize>(
    weights: &[i16],
    rights: [&[Pair]; RIGHTS],
    units: &[[f32; SIXTEEN]],
    factors: &Factors,
    (sums, stride): (&mut [f32], usize),
) {
    let depth = rights[0].len() / SIXTEEN;
    let left = left(weights, depth);
    assert!(rights.iter().all(|right| right.len() == rights[0].len()));
    let sums = &mut sums[..(TWELVE - 1) * stride + RIGHTS * SIXTEEN];
    let units = units.first_chunk().expect("as many units as columns");
    // SAFETY: twelve rows of `PITCH` weights, as many pairs of them used as each right side has; `sums` ends with the last one; the
    // instructions are there.
    unsafe { M::add_values(left, rights.map(<[Pair]>::as_ptr), depth, units, factors, sums, stride) };
}

/// Weights times values, `ROWS` of the `rows` rows at a time, of up to [`TWELVE`].
#[inline(always)]
fn multiply<M: Micro, const ROWS: usize, const VECTORS: usize>(
    weights: &[i16],
    right: &[Pair],
    rows: usize,
    products: &mut [i32; TWELVE * LAST],
) {
    let (panel, depth) = (VECTORS * LANES, right.len() / (VECTORS * LANES));
    assert!(rows <= TWELVE);
    let left = left(weights, depth);
    for first in (0..rows).step_by(ROWS) {
        let out = &mut products[first * panel..][..ROWS * panel];
        // SAFETY: twelve rows of `PITCH` weights, as many pairs of them used as `right` has; there is room for as many products; the
        // instructions are there.
        unsafe {
            let (left, out) = (left.add(first * PITCH / 2), out.as_mut_ptr());
            <M as Micro>::multiply::<ROWS, VECTORS, 1, { PITCH / 2 }>(left, right.as_ptr(), depth, out, panel);
        }
    }
}
