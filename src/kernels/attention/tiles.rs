//! How an attention is cut: into tiles of queries, blocks of keys, and panels of columns.

use std::ops::Range;

use super::heads::Heads;
use super::micro::{LANES, SIX, SIXTEEN};

/// Queries whose scores are in the first-level cache together.
pub(super) const TWELVE: usize = 2 * SIX;
/// Keys of a block at most, and from one query's scores to the next: a little more, so that no two rows begin in one bank of
/// the cache.
pub(super) const MOST_KEYS: usize = 256;
pub(super) const PITCH: usize = MOST_KEYS + SIXTEEN;
/// Numbers of a block's keys at most, if heads are not too wide for [`SIXTEEN`] of them.
const BLOCK: usize = 32 * 1024;
/// Numbers of a tile's queries at most, if heads are not too wide for [`TWELVE`] of them; and how many queries.
const TILE: usize = 90 * 1024;
const MOST_QUERIES: usize = 128 * TWELVE;
/// Tiles that there should be, so that many threads have something to do, of at least so many queries.
const TILES: usize = 32;
const LEAST_QUERIES: usize = 4 * TWELVE;

/// An attention, and how it is cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tiling {
    pub(super) heads: Heads,
    pub(super) scale: f32,
    /// Queries of a tile, and keys of a block.
    pub(super) tile: usize,
    pub(super) block: usize,
}

impl Tiling {
    /// None for heads that do not exist.
    pub(super) fn new(heads: Heads, scale: f32) -> Option<Tiling> {
        let Heads { width, queries, keys, heads: count, groups } = heads;
        if [width, queries, keys, count, groups].contains(&0) || !count.is_multiple_of(groups) {
            return None;
        }
        let block = (BLOCK / width / SIXTEEN * SIXTEEN).clamp(SIXTEEN, MOST_KEYS);
        let block = block.min(keys.next_multiple_of(SIXTEEN));
        let most = (TILE / width / TWELVE * TWELVE).clamp(TWELVE, MOST_QUERIES);
        let each = queries.checked_mul(count / groups)?;
        let wanted = (each.saturating_mul(groups) / TILES).max(LEAST_QUERIES).next_multiple_of(TWELVE);
        Some(Tiling { heads, scale, tile: most.min(wanted).min(each), block })
    }

    pub(super) fn tiles_of_group(&self) -> usize {
        (self.heads.queries * self.shared()).div_ceil(self.tile)
    }

    /// How many heads share keys and values.
    fn shared(&self) -> usize {
        self.heads.heads / self.heads.groups
    }

    /// The width of sums: whole vectors.
    pub(super) fn padded(&self) -> usize {
        self.heads.width.next_multiple_of(LANES)
    }

    /// Whose keys the rows of a tile attend to, which query each of them is, and of what head, and how many they are.
    #[inline(always)]
    pub(super) fn rows_of(&self, tile: usize) -> (usize, impl Fn(usize) -> (usize, usize), usize) {
        let (queries, shared) = (self.heads.queries, self.shared());
        let (group, first) = (tile / self.tiles_of_group(), tile % self.tiles_of_group() * self.tile);
        (
            group,
            move |row: usize| ((first + row) % queries, group * shared + (first + row) / queries),
            self.tile.min(queries * shared - first),
        )
    }
}

/// The columns of the result that are computed at once.
#[inline(always)]
pub(super) fn panels(width: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let vectors = width.div_ceil(LANES);
    // The last panel takes the odd vector.
    let count = (vectors / 2).max(1);
    (0..count).map(move |i| {
        let end = if i + 1 == count { vectors } else { 2 * i + 2 };
        2 * i * LANES..end * LANES
    })
}

/// `len` numbers.
pub(super) fn room<T: Copy>(len: usize, number: T) -> Result<Vec<T>, usize> {
    let mut numbers = Vec::new();
    numbers.try_reserve_exact(len).map_err(|_| len.saturating_mul(size_of::<T>()))?;
    numbers.resize(len, number);
    Ok(numbers)
}
