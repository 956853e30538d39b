//! What is before and behind the blocks of a ControlNet.

use super::super::shared::{Shared, Sizes, first};
use crate::Result;
use crate::models::layers::Linear;
use crate::stage::{Block, Build, Port, Symbol};

/// The prompt, behind a token for the mode if there are modes.
pub(super) struct Context {
    pub(super) linear: Linear,
    /// `[J, Tt, B]`, of the model's batch.
    pub(super) from: Port,
    /// `[D, 1, N]`
    pub(super) mode: Option<Port>,
    pub(super) to: Port,
}

impl Block for Context {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let text = first(b, b.read(self.from)?, 2, Symbol::PICTURES)?;
        let text = self.linear.build(b, text)?;
        match self.mode {
            Some(mode) => b.write(self.to, b.g.concat(b.read(mode)?, text, 1)?),
            None => b.write(self.to, text),
        }
    }
}

/// The latents, and the picture added to them.
pub(super) struct Embed {
    /// `[C, Ti, B]`, of the model's batch.
    pub(super) latents: (Linear, Port),
    /// `[C', Ti, N]`, or one for all of them.
    pub(super) picture: (Linear, Port),
    pub(super) to: Port,
    pub(super) sizes: Sizes,
}

impl Block for Embed {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let ((x_embedder, latents), (picture_embedder, picture)) = (&self.latents, &self.picture);
        let latents = first(b, b.read(*latents)?, 2, self.sizes.batch)?;
        for at in b.token_ranges(b.dim(Symbol::IMAGE_TOKENS)?) {
            let some = |x| b.g.slice(x, 1, at.start, at.len());
            let x = x_embedder.build(b, some(latents)?)?;
            let seen = picture_embedder.build(b, some(b.read(*picture)?)?)?;
            b.write_tokens(self.to, at.start, b.g.add(x, seen)?)?;
        }
        Ok(())
    }
}

/// What is added behind blocks of the model.
pub(super) struct ResidualOut {
    pub(super) linear: Linear,
    pub(super) from: Port,
    /// Whether the text stands before the image there.
    pub(super) is_joint: bool,
    pub(super) to: Port,
    /// `[1, conditions]`
    pub(super) scale: Port,
    pub(super) shared: Shared,
}

impl Block for ResidualOut {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let scale = self.shared.of_condition(b, self.scale)?; // [1, N]
        let scale = b.g.reshape(scale, &[1, 1, b.dim(self.shared.sizes.batch)?])?;
        let before = if self.is_joint { b.dim(self.shared.sizes.text)? } else { 0 };
        for at in b.token_ranges(b.dim(Symbol::IMAGE_TOKENS)?) {
            // Rows that do not stand one after the other are multiplied in another way: a picture alone would be another than in a batch.
            let x = b.g.contiguous(b.piece(self.from, before + at.start..before + at.end)?)?;
            b.write_tokens(self.to, at.start, b.g.mul(self.linear.build(b, x)?, scale)?)?;
        }
        Ok(())
    }
}
