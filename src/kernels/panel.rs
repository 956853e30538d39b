//! A few rows of weights over a stretch of columns, unpacked.

use super::BLOCK;
use super::format::{self, Coding, EIGHT, Format};

/// Bytes of codes in a panel: half of a first-level cache of 32 KiB, so that activations have the other half.
const CODES: usize = 16 << 10;

/// The most scales of a panel: those of one-byte codes.
const SCALES: usize = CODES / BLOCK;

/// Unpacked weights. For each block of 32 columns: the codes, rows interleaved by 4 or 8 bytes; a scale of each row; a shift of
/// each row, or the factors of the row's halves.
#[repr(C, align(64))]
pub(super) struct Panel {
    pub(super) codes: [u8; CODES],
    pub(super) scales: [f32; SCALES],
    pub(super) shifts: [f32; SCALES],
    /// Those of a format that has them.
    pub(super) factors: [[i8; 2]; SCALES],
}

/// The codes of one block of eight rows, and for each row the factors of its block's halves.
pub(super) struct Codes {
    pub(super) rows: [[u8; BLOCK]; EIGHT],
    pub(super) factors: [[i8; 2]; EIGHT],
}

/// Blocks that fit a panel of `rows` rows, a multiple of 8, so that the super-blocks of K-quants are whole.
pub(super) const fn blocks(rows: usize, code_bytes: usize) -> usize {
    let blocks = CODES / (rows * BLOCK * code_bytes);
    assert!(blocks.is_multiple_of(8) && blocks * rows <= SCALES);
    blocks
}

impl Panel {
    pub(super) fn new() -> Panel {
        Panel { codes: [0; CODES], scales: [0.0; SCALES], shifts: [0.0; SCALES], factors: [[1; 2]; SCALES] }
    }

    /// Unpacks `rows`, at most `ROWS`, each the bytes of equally many blocks. Rows of the panel beyond them have no meaning.
    /// `lay` stores the codes of one block of eight rows, and what these are multiplied by, interleaved; its slice begins at the turn of
    /// the first of them.
    #[inline(always)]
    pub(super) fn unpack<const ROWS: usize, const TURN: usize, const CODE_BYTES: usize>(
        &mut self,
        format: Format,
        rows: &[&[u8]],
        lay: impl Fn(&Codes, &mut [u8]),
    ) {
        match format {
            Format::Q4_0 => self.read::<format::Q4_0, 18, ROWS, TURN, CODE_BYTES>(rows, lay),
            Format::Q4_1 => self.read::<format::Q4_1, 20, ROWS, TURN, CODE_BYTES>(rows, lay),
            Format::Q5_0 => self.read::<format::Q5_0, 22, ROWS, TURN, CODE_BYTES>(rows, lay),
            Format::Q5_1 => self.read::<format::Q5_1, 24, ROWS, TURN, CODE_BYTES>(rows, lay),
            Format::Q8_0 => self.read::<format::Q8_0, 34, ROWS, TURN, CODE_BYTES>(rows, lay),
            Format::Q4K => self.read::<format::Q4K, 144, ROWS, TURN, CODE_BYTES>(rows, lay),
            Format::Q5K => self.read::<format::Q5K, 176, ROWS, TURN, CODE_BYTES>(rows, lay),
            Format::Q6K => self.read::<format::Q6K, 210, ROWS, TURN, CODE_BYTES>(rows, lay),
        }
    }

    /// Indices rather than iterators over rows: these are not always compiled away, which shows in products of few tokens.
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    fn read<C: Coding<BYTES>, const BYTES: usize, const ROWS: usize, const TURN: usize, const CODE_BYTES: usize>(
        &mut self,
        rows: &[&[u8]],
        lay: impl Fn(&Codes, &mut [u8]),
    ) {
        const { assert!(ROWS.is_multiple_of(EIGHT)) };
        assert!(rows.len() <= ROWS);
        let bytes = ROWS * BLOCK * CODE_BYTES;
        for (first, rows) in (0..ROWS).step_by(EIGHT).zip(rows.chunks(EIGHT)) {
            // Where fewer than eight are left, the first stands in for them.
            let rows: [&[[u8; BYTES]]; EIGHT] = std::array::from_fn(|i| rows.get(i).unwrap_or(&rows[0]).as_chunks().0);
            let mut eight = Codes { rows: [[0; BLOCK]; EIGHT], factors: [[1; 2]; EIGHT] };
            for all in 0..rows[0].len() {
                let mut heads = [C::head(&rows[0][all]); EIGHT];
                for row in 1..EIGHT {
                    heads[row] = C::head(&rows[row][all]);
                }
                for part in 0..C::BLOCKS {
                    let i = all * C::BLOCKS + part;
                    let (scales, shifts) = (&mut self.scales[i * ROWS + first..], &mut self.shifts[i * ROWS + first..]);
                    for row in 0..EIGHT {
                        let block = C::block(&heads[row], &rows[row][all], part);
                        (eight.rows[row], eight.factors[row]) = (block.codes, block.factors);
                        (scales[row], shifts[row]) = (block.scale, block.shift);
                    }
                    if C::HAS_FACTORS {
                        self.factors[i * ROWS + first..][..EIGHT].copy_from_slice(&eight.factors);
                    }
                    lay(&eight, &mut self.codes[i * bytes..][first * TURN..bytes]);
                }
            }
        }
    }
}

/// Stores the codes of one block of eight rows, interleaved by `TURN` bytes in a panel of `ROWS` rows. Adds `more` to each code,
/// modulo 256.
#[inline(always)]
pub(super) fn turns<const ROWS: usize, const TURN: usize>(eight: &[[u8; BLOCK]; EIGHT], more: u8, codes: &mut [u8]) {
    for (turn, places) in codes.chunks_mut(ROWS * TURN).enumerate() {
        for (row, place) in eight.iter().zip(places.as_chunks_mut::<TURN>().0) {
            *place = std::array::from_fn(|i| row[turn * TURN + i].wrapping_add(more));
        }
    }
}

/// As [`turns`] of 4 bytes, of codes less `offset` times their factors, in words: two in each turn.
#[inline(always)]
pub(super) fn turns_of_words<const ROWS: usize>(eight: &Codes, offset: u8, codes: &mut [u8]) {
    for (turn, places) in codes.chunks_mut(ROWS * 4).enumerate() {
        let rows = eight.rows.iter().zip(&eight.factors);
        for ((row, factors), place) in rows.zip(places.as_chunks_mut::<4>().0) {
            let word = |i: usize| (i16::from(row[i]) - i16::from(offset)) * i16::from(factors[i / 16]);
            let ([a, b], [c, d]) = (word(2 * turn).to_ne_bytes(), word(2 * turn + 1).to_ne_bytes());
            *place = [a, b, c, d];
        }
    }
}
