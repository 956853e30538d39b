//! The innermost loops of a product: one panel meets one tile.

use super::BLOCK;
use super::activations::Layout;
use super::format::Format;
use super::panel::{self, Panel};

/// What differs between instruction sets: a tile of `ROWS` rows by `TOKENS` tokens.
pub(super) trait Micro<const ROWS: usize, const TOKENS: usize> {
    /// Bytes of a code, in panels and in tiles of tokens.
    const CODE_BYTES: usize;
    /// Rows of a panel, and tokens of a tile, are interleaved in chunks of this many bytes.
    const TURN: usize = 4;
    /// How activations lie.
    const LAYOUT: Layout = Layout {
        tokens: TOKENS,
        code_bytes: Self::CODE_BYTES,
        turn: Self::TURN,
        stretch: panel::blocks(ROWS, Self::CODE_BYTES) * BLOCK,
    };

    /// [`Panel::unpack`], compiled for the instruction set.
    ///
    /// # Safety
    /// The processor has the instructions.
    unsafe fn unpack(panel: &mut Panel, format: Format, rows: &[&[u8]]);

    /// [`Layout::pack`], compiled for the instruction set.
    ///
    /// # Safety
    /// The processor has the instructions.
    unsafe fn pack(rows: &[&[f32]], tile: &mut [u8]);

    /// Multiplies the panel with a tile's `records` and adds the products to `sums`, by token and row. The panel's weights were of
    /// `format`. Records are whole, and no more than the panel has blocks. Only the sums of the first `tokens` are wanted, which are
    /// at least one.
    ///
    /// # Safety
    /// The processor has the instructions.
    unsafe fn tile(format: Format, panel: &Panel, records: &[u8], tokens: usize, sums: &mut [[f32; ROWS]; TOKENS]);
}
