//! What is before, between and after the blocks.

use super::modulation::Modulation;
use super::shared::Shared;
use crate::Result;
use crate::models::layers::Linear;
use crate::stage::{Block, Build, Port, Symbol};

/// A linear layer from port to port.
pub(super) struct Embed {
    pub(super) linear: Linear,
    pub(super) from: Port,
    pub(super) to: Port,
}

impl Block for Embed {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        b.write(self.to, self.linear.build(b, b.read(self.from)?)?)
    }
}

/// Text and image become one sequence.
pub(super) struct Join {
    pub(super) txt: Port,
    pub(super) img: Port,
    pub(super) joint: Port,
    /// Tokens of the text.
    pub(super) text: Symbol,
}

impl Block for Join {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        b.write_tokens(self.joint, 0, b.read(self.txt)?)?;
        b.write_tokens(self.joint, b.dim(self.text)?, b.read(self.img)?)
    }
}

/// From hidden states to the velocity of every image token.
pub(super) struct FinalLayer {
    pub(super) linear: Linear,
    pub(super) joint: Port,
    pub(super) modulation: Port,
    pub(super) shared: Shared,
    pub(super) velocity: Port,
}

impl Block for FinalLayer {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let m = Modulation::read(b, self.modulation, &self.shared, 2)?;
        let (text, image) = (b.dim(self.shared.sizes.text)?, b.dim(Symbol::IMAGE_TOKENS)?);
        for piece in b.token_ranges(image) {
            let x = b.piece(self.joint, text + piece.start..text + piece.end)?;
            b.write_tokens(self.velocity, piece.start, self.linear.build(b, m.modulate(x, 0)?)?)?;
        }
        Ok(())
    }
}
