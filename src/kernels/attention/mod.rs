//! Attention without a matrix of scores: `softmax(scale * q k^T + mask) v`.
//!
//! A *tile* is some queries of the heads that share keys and values. It is computed from a *block* of keys at a time, whose keys and
//! values are brought into the order in which they are used. Then, for [`TWELVE`] queries after the other, scores are
//! computed, weighed (`softmax.rs`), and the sums of weighed values are added to those of the blocks before. Scores stay in the
//! first-level cache, keys and values of the block in the second-level one.
//!
//! | | left side | right side | out |
//! |---|---|---|---|
//! | scores | six queries, side by side: `[6, width]` | sixteen keys, side by side: `[16, width]` | scores `[keys, 12]` |
//! | values | six queries' weights `[keys, 12]` | sixteen channels of the values: `[16, keys]` | sums `[width, queries]` |
//!
//! Where the width is an odd number of vectors, the last three vectors of the values are one right side for three queries at a
//! time, and a single vector is one for twelve: there are nine vectors of sums or twelve, which keep the processor busy.
//! AVX-512 takes two right sides of sixteen at once where there are two.
//!
//! A number of the result is summed in one order, whatever tile it lies in and whatever thread computes it: blocks begin at
//! the same keys always, and no query knows of another.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod codes;
mod heads;
pub(super) mod micro;
mod pack;
mod powers;
mod softmax;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod tiles;

use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::Kernel;
use micro::{LANES, Micro, Portable, SIX, SIXTEEN};
use powers::TOGETHER;
use softmax::Row;
use tiles::{MOST_KEYS, PITCH, TWELVE, Tiling, panels, room};

pub use heads::{Attended, Heads, Outputs, Rows};

/// What an attention is computed with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Single precision.
    #[default]
    Exact,
    /// Whole numbers of 11 to 13 bits, where heads are not too wide for it.
    Codes,
}

/// An attention by one of pinhole's kernels.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    kernel: Kernel,
    precision: Precision,
    tiling: Tiling,
}

/// What a thread computes with: about a mebibyte, or more if heads are wider than 2048.
#[derive(Debug, Default)]
pub struct Space {
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    scores: Vec<f32>,
    sums: Vec<f32>,
    rows: Vec<Row>,
    /// Where whole numbers are computed with; what stands before it is empty then.
    codes: codes::Space,
}

impl Attention {
    /// An attention of these heads by `kernel`, or `None` where there is none.
    pub fn new(kernel: Kernel, heads: Heads, scale: f32, precision: Precision) -> Option<Attention> {
        let tiling = Tiling::new(heads, scale)?;
        let precision = if heads.width > codes::WIDEST { Precision::Exact } else { precision };
        Some(Attention { kernel, precision, tiling })
    }

    /// How many tiles the result of one item of a batch has.
    pub fn tiles(&self) -> usize {
        self.tiling.heads.groups * self.tiling.tiles_of_group()
    }

    /// Room to compute with.
    ///
    /// # Errors
    /// How many bytes could not be had.
    pub fn space(&self) -> Result<Space, usize> {
        if self.precision == Precision::Codes {
            return Ok(Space { codes: codes::Space::new(&self.tiling)?, ..Space::default() });
        }
        let Tiling { heads: Heads { width, .. }, tile, block, .. } = self.tiling;
        let (tile, padded) = (tile.next_multiple_of(TWELVE), self.tiling.padded());
        Ok(Space {
            queries: room(tile.saturating_mul(width).saturating_add(LANES), 0.0)?,
            keys: room(block.saturating_mul(width), 0.0)?,
            values: room(block.saturating_mul(padded), 0.0)?,
            scores: room(TWELVE * PITCH, 0.0)?,
            sums: room(tile.saturating_mul(padded), 0.0)?,
            rows: room(tile, Row::EMPTY)?,
            codes: codes::Space::default(),
        })
    }

    /// Computes tile number `tile` of `result` in `space`, which this attention made.
    ///
    /// # Panics
    /// Where slices are shorter than the heads say.
    pub fn compute(
        &self,
        tile: usize,
        attended: &Attended<'_, impl Rows>,
        space: &mut Space,
        result: &mut impl Outputs,
    ) {
        match self.kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 | Kernel::AvxVnni => {
                // SAFETY: a kernel that is not there is not asked for (`Kernel::is_available`).
                unsafe { compute_avx2(self, tile, attended, space, result) }
            }
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512Vnni => {
                // SAFETY: as above.
                unsafe { compute_avx512(self, tile, attended, space, result) }
            }
            _ => self.compute_by::<Portable>(tile, attended, space, result),
        }
    }

    // Inlined where the instructions of `M` are enabled, as everything is that it calls.
    #[inline(always)]
    fn compute_by<M: codes::micro::Micro>(
        &self,
        tile: usize,
        attended: &Attended<'_, impl Rows>,
        space: &mut Space,
        result: &mut impl Outputs,
    ) {
        match self.precision {
            Precision::Exact => self.compute_exactly::<M>(tile, attended, space, result),
            Precision::Codes => codes::compute::<M>(&self.tiling, tile, attended, &mut space.codes, result),
        }
    }

    #[inline(always)]
    fn compute_exactly<M: Micro>(
        &self,
        tile: usize,
        attended: &Attended<'_, impl Rows>,
        space: &mut Space,
        result: &mut impl Outputs,
    ) {
        let Tiling { heads: Heads { width, keys, .. }, scale, block: most, .. } = self.tiling;
        let (group, place, count) = self.tiling.rows_of(tile);
        let scale = scale * std::f32::consts::LOG2_E;
        // SAFETY: the instructions are there.
        unsafe { pack::queries::<M>(&attended.q, &place, count, width, scale, &mut space.queries) };
        space.rows.fill(Row::EMPTY);
        space.sums.fill(0.0);
        for start in (0..keys).step_by(most) {
            if !result.wanted() {
                return;
            }
            let block = start..keys.min(start + most);
            // SAFETY: the instructions are there.
            unsafe { pack::keys::<M>(&attended.k, group, block.clone(), width, &mut space.keys) };
            pack::values::<M>(&attended.v, group, block.clone(), width, panels(width), (&mut space.values, most));
            for row in (0..count).step_by(TWELVE) {
                let rows = row..count.min(row + TWELVE);
                self.scores::<M>(rows.clone(), block.len(), space);
                let factors = weigh::<M>(
                    rows.clone(),
                    block.len(),
                    |row| attended.mask.map(|mask| &mask[place(row).0 * keys..][..keys][block.clone()]),
                    space,
                );
                self.values::<M>(rows, block.len(), &factors, space);
            }
        }
        for (row, sums) in space.sums.chunks_exact(self.tiling.padded()).take(count).enumerate() {
            let (query, head) = place(row);
            let reciprocal = space.rows[row].reciprocal();
            result.row(query, head).iter_mut().zip(sums).for_each(|(out, sum)| *out = sum * reciprocal);
        }
    }

    /// The scores of `rows` for the first `keys` of the block.
    #[inline(always)]
    fn scores<M: Micro>(&self, rows: Range<usize>, keys: usize, space: &mut Space) {
        let width = self.tiling.heads.width;
        let left = &space.queries[rows.start * width..][..rows.len().next_multiple_of(SIX) * width];
        let right = &space.keys[..keys.next_multiple_of(SIXTEEN) * width];
        let (panel, both) = (SIXTEEN * width, SIX * width);
        for (i, right) in right.chunks(2 * panel).enumerate() {
            let out = &mut space.scores[2 * i * SIXTEEN..][..(TWELVE - 1) * PITCH + right.len() / width];
            let (left_at, out) = (left.as_ptr(), out.as_mut_ptr());
            // SAFETY: six queries or twelve, and sixteen keys or twice as many, of `width` numbers; `out` ends with the last of twelve
            // scores; the instructions are there.
            unsafe {
                if left.len() > both && right.len() > panel {
                    let rights = [right.as_ptr(), right[panel..].as_ptr()];
                    M::multiply_wide::<SIX, 1>(left_at, both, rights, width, out, PITCH, None);
                    continue;
                }
                for (i, right) in right.chunks_exact(panel).enumerate() {
                    let (right, out) = (right.as_ptr(), out.add(i * SIXTEEN));
                    if left.len() > both {
                        M::multiply_both::<SIX, 2, SIX, 1>(left_at, both, right, width, out, PITCH, None);
                    } else {
                        M::multiply::<SIX, 2, SIX, 1>(left_at, right, width, out, PITCH, None);
                    }
                }
            }
        }
    }

    /// Adds the values of the first `keys` of the block, weighed, to the sums of `rows`, after these are multiplied with `factors`.
    #[inline(always)]
    fn values<M: Micro>(&self, rows: Range<usize>, keys: usize, factors: &[f32; TWELVE], space: &mut Space) {
        let (padded, block) = (self.tiling.padded(), self.tiling.block);
        let mut panels = panels(self.tiling.heads.width).peekable();
        while let Some(panel) = panels.next() {
            let right = &space.values[panel.start * block..][..panel.len() * keys];
            let sums = &mut space.sums[rows.start * padded + panel.start..];
            if let Some(next) = panels.next_if(|next| rows.len() > SIX && next.len() == SIXTEEN) {
                let out = &mut sums[..(TWELVE - 1) * padded + 2 * SIXTEEN];
                let rights = [right.as_ptr(), space.values[next.start * block..][..SIXTEEN * keys].as_ptr()];
                let (left, half, factors) = (space.scores.as_ptr(), SIX * PITCH, Some(factors.as_slice()));
                // SAFETY: twelve rows of `PITCH` weights, the first `keys` of them used, and as many rows of both right sides, which are
                // neighbours; `out` ends with the last sum; the instructions are there.
                unsafe { M::multiply_wide::<1, PITCH>(left, half, rights, keys, out.as_mut_ptr(), padded, factors) };
                continue;
            }
            match panel.len() / LANES {
                1 => add_values::<M, TWELVE, 1>(&space.scores, right, keys, rows.len(), (sums, padded), factors),
                2 if rows.len() > SIX => {
                    let out = &mut sums[..(TWELVE - 1) * padded + SIXTEEN];
                    let (left, half, right) = (space.scores.as_ptr(), SIX * PITCH, right.as_ptr());
                    // SAFETY: twelve rows of `PITCH` weights, the first `keys` of them used, and as many rows of `right`; `out` ends with
                    // the last sum; the instructions are there.
                    unsafe {
                        M::multiply_both::<SIX, 2, 1, PITCH>(
                            left,
                            half,
                            right,
                            keys,
                            out.as_mut_ptr(),
                            padded,
                            Some(factors),
                        );
                    }
                }
                2 => add_values::<M, SIX, 2>(&space.scores, right, keys, rows.len(), (sums, padded), factors),
                _ => add_values::<M, 3, 3>(&space.scores, right, keys, rows.len(), (sums, padded), factors),
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn compute_avx2(
    attention: &Attention,
    tile: usize,
    attended: &Attended<'_, impl Rows>,
    space: &mut Space,
    result: &mut impl Outputs,
) {
    attention.compute_by::<avx2::Avx2>(tile, attended, space, result);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512vnni,avx2,fma,f16c")]
fn compute_avx512(
    attention: &Attention,
    tile: usize,
    attended: &Attended<'_, impl Rows>,
    space: &mut Space,
    result: &mut impl Outputs,
) {
    attention.compute_by::<avx512::Avx512>(tile, attended, space, result);
}

/// `ROWS` of the `rows` rows at a time, of up to [`TWELVE`].
#[inline(always)]
fn add_values<M: Micro, const ROWS: usize, const VECTORS: usize>(
    weights: &[f32],
    right: &[f32],
    keys: usize,
    rows: usize,
    (sums, stride): (&mut [f32], usize),
    factors: &[f32; TWELVE],
) {
    assert!(right.len() >= keys * VECTORS * LANES && keys <= MOST_KEYS && rows <= TWELVE);
    for first in (0..rows).step_by(ROWS) {
        let left = &weights[first * PITCH..][..ROWS * PITCH];
        let out = &mut sums[first * stride..][..(ROWS - 1) * stride + VECTORS * LANES];
        let factors = &factors[first..first + ROWS];
        // SAFETY: `ROWS` rows of `PITCH` weights, the first `keys` of them used, and as many rows of `right`, as was just seen; `out` ends
        // with the last sum; the instructions are there.
        unsafe {
            M::multiply::<ROWS, VECTORS, 1, PITCH>(
                left.as_ptr(),
                right.as_ptr(),
                keys,
                out.as_mut_ptr(),
                stride,
                Some(factors),
            );
        }
    }
}

/// Weighs the scores of `rows` for the first `keys` of the block, with a row's `mask` added where there is one, and gives the factors for
/// the sums of what came before.
#[inline(always)]
fn weigh<'a, M: Micro>(
    rows: Range<usize>,
    keys: usize,
    mask: impl Fn(usize) -> Option<&'a [f16]>,
    space: &mut Space,
) -> [f32; TWELVE] {
    let mut factors = [0.0; TWELVE];
    let states = space.rows[rows.clone()].iter_mut();
    for (((row, state), factor), scores) in rows.zip(states).zip(&mut factors).zip(space.scores.chunks_exact_mut(PITCH))
    {
        let (real, rest) = scores.split_at_mut(keys);
        if let Some(mask) = mask(row) {
            let mut numbers = [0.0; MOST_KEYS];
            mask.convert_to_f32_slice(&mut numbers[..keys]);
            let scores = real.iter_mut().zip(&numbers);
            scores.for_each(|(score, number)| *score = number.mul_add(std::f32::consts::LOG2_E, *score));
        }
        let whole = keys.next_multiple_of(TOGETHER);
        rest[..whole - keys].fill(f32::NEG_INFINITY);
        // SAFETY: the instructions are there.
        *factor = unsafe { state.weigh::<M>(scores[..whole].as_chunks_mut().0) };
    }
    factors
}
