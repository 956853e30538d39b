//! What a ControlNet has that its model does not.

use super::super::ports::{EPS, Extents};
use crate::Result;
use crate::ggml::Tensor;
use crate::models::layers::{Linear, RmsNorm};
use crate::stage::{Block, Build, Port, Symbol};

/// The first `count` of `x` along dimension `dim`.
fn first(b: &Build<'_>, x: Tensor, dim: usize, count: Symbol) -> Result<Tensor> {
    let count = b.dim(count)?;
    if b.g.shape(x)?.dims()[dim] == count { Ok(x) } else { b.g.slice(x, dim, 0, count) }
}

/// From the prompt's hidden states to the width of the blocks.
pub(super) struct Context {
    pub(super) norm: RmsNorm,
    pub(super) linear: Linear,
    /// `[J, Tt, B]`, of the model's batch.
    pub(super) text: Port,
    pub(super) to: Port,
}

impl Context {
    /// The epsilon of its norm.
    pub(super) const EPS: f32 = EPS;
}

impl Block for Context {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let items = first(b, b.read(self.text)?, 2, Extents::PROMPT.items)?;
        let text = b.g.contiguous(first(b, items, 1, Extents::PROMPT.text)?)?;
        b.write(self.to, self.linear.build(b, self.norm.build(b, text)?)?)
    }
}

/// The latents, and the picture added to them; and the prompt as every step begins with it.
pub(super) struct Embed {
    /// `[C, Ti, B]`, of the model's batch.
    pub(super) latents: (Linear, Port),
    /// `[C', Ti, N]`
    pub(super) picture: (Linear, Port),
    pub(super) img: Port,
    pub(super) context: Port,
    pub(super) txt: Port,
}

impl Block for Embed {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let ((img_in, latents), (x_embedder, picture)) = (&self.latents, &self.picture);
        let latents = first(b, b.read(*latents)?, 2, Extents::PROMPT.items)?;
        b.tokens(*picture, |seen, at| {
            let x = img_in.build(b, b.g.slice(latents, 1, at.start, at.len())?)?;
            b.write_tokens(self.img, at.start, b.g.add(x, x_embedder.build(b, seen)?)?)
        })?;
        b.write_tokens(self.txt, 0, b.read(self.context)?)
    }
}

/// What is added behind blocks of the model.
pub(super) struct ResidualOut {
    pub(super) linear: Linear,
    /// `[D, Ti, N]`
    pub(super) from: Port,
    pub(super) to: Port,
    /// `[1, times]`
    pub(super) scale: Port,
    /// `[B]`, of the model's batch.
    pub(super) condition: Port,
}

impl Block for ResidualOut {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let items = Extents::PROMPT.items;
        let scale = first(b, b.g.get_rows(b.read(self.scale)?, b.read(self.condition)?)?, 1, items)?; // [1, N]
        let scale = b.g.reshape(b.g.contiguous(scale)?, &[1, 1, b.dim(items)?])?;
        b.tokens(self.from, |x, at| {
            // Rows that do not stand one after the other are multiplied in another way: a picture alone would be another than in a batch.
            let residual = self.linear.build(b, b.g.contiguous(x)?)?;
            b.write_tokens(self.to, at.start, b.g.mul(residual, scale)?)
        })
    }
}
