//! A few rows of weights over a stretch of columns, unpacked.

use super::BLOCK;
use super::format::Format;

/// Bytes of codes in a panel: half of a first-level cache of 32 KiB, so that activations have the other half.
const CODES: usize = 16 << 10;

/// The most scales of a panel: those of one-byte codes.
const SCALES: usize = CODES / BLOCK;

/// Unpacked weights: for each block of 32 columns the codes, 4 or 8 bytes of each row in turn; beside them a scale and a shift
/// of each row.
#[repr(C, align(64))]
pub(super) struct Panel {
    pub(super) codes: [u8; CODES],
    pub(super) scales: [f32; SCALES],
    pub(super) shifts: [f32; SCALES],
}

/// Blocks that fit a panel of `rows` rows, a multiple of 8, so that the super-blocks of K-quants are whole.
pub(super) const fn blocks(rows: usize, code_bytes: usize) -> usize {
    let blocks = CODES / (rows * BLOCK * code_bytes);
    assert!(blocks.is_multiple_of(8) && blocks * rows <= SCALES);
    blocks
}

impl Panel {
    pub(super) fn new() -> Panel {
        Panel { codes: [0; CODES], scales: [0.0; SCALES], shifts: [0.0; SCALES] }
    }

    /// Unpacks `rows`, at most `ROWS` of them, each the bytes of as many blocks; rows beyond keep what they had. Rows take
    /// turns of `TURN` bytes, `WIDE` ones of 4. Codes get `more` added, modulo 256; those of two bytes, `WIDE`, are signed and
    /// have no offset.
    #[inline(always)]
    pub(super) fn unpack<'a, const ROWS: usize, const TURN: usize, const WIDE: bool>(
        &mut self,
        format: Format,
        more: u8,
        rows: impl Iterator<Item = &'a [u8]>,
    ) {
        let code_bytes = if WIDE { 2 } else { 1 };
        let offset = i16::from(format.offset());
        for (row, bytes) in rows.take(ROWS).enumerate() {
            format.blocks(bytes, |i, block| {
                let codes = &mut self.codes[i * ROWS * BLOCK * code_bytes..][..ROWS * BLOCK * code_bytes];
                if WIDE {
                    let places = codes.as_chunks_mut::<4>().0.iter_mut().skip(row).step_by(ROWS);
                    for (place, codes) in places.zip(block.codes.as_chunks::<2>().0) {
                        let [[a0, a1], [b0, b1]] = codes.map(|code| (i16::from(code) - offset).to_ne_bytes());
                        *place = [a0, a1, b0, b1];
                    }
                } else {
                    let places = codes.as_chunks_mut::<TURN>().0.iter_mut().skip(row).step_by(ROWS);
                    for (place, codes) in places.zip(block.codes.as_chunks::<TURN>().0) {
                        *place = codes.map(|code| code.wrapping_add(more));
                    }
                }
                self.scales[i * ROWS + row] = block.scale;
                self.shifts[i * ROWS + row] = block.shift;
            });
        }
    }
}
