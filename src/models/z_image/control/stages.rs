//! What a ControlNet has that its model does not.

use super::super::ports::Ports as ModelPorts;
use crate::Result;
use crate::models::layers::Linear;
use crate::stage::{Block, Build, Port, Symbol};

/// The picture that is seen, as tokens like those of the latents.
pub(super) struct Embed {
    pub(super) linear: Linear,
    /// What it goes through before it meets the latents, if it does so here.
    pub(super) before: Option<Linear>,
    /// `[C', Ti, 1]`
    pub(super) picture: Port,
    pub(super) of_model: ModelPorts,
    /// `[D, Ti, B]`: the model's tokens of the latents, and behind the picture those that fill it up.
    pub(super) img: Port,
    pub(super) to: Port,
}

impl Block for Embed {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        b.tokens(self.picture, |seen, at| {
            let some = |port| b.piece(port, at.clone());
            let (img, kept) = (some(self.img)?, some(self.of_model.image_kept)?); // [D, n, B], [1, n]
            let seen = b.g.mul(self.linear.build(b, seen)?, kept)?; // [D, n, 1]
            // What fills up a picture is learned, and the model's.
            let filled = b.g.mul(img, b.g.scale_bias(kept, -1.0, 1.0)?)?;
            let seen = b.g.add(filled, seen)?;
            let seen = match &self.before {
                Some(before) => b.g.add(before.build(b, seen)?, img)?,
                None => seen,
            };
            b.write_tokens(self.to, at.start, seen)
        })
    }
}

/// What is seen and the prompt become one sequence, and meet picture and prompt.
pub(super) struct Join {
    pub(super) before: Linear,
    /// `[D, Ti, B]`
    pub(super) seen: Port,
    /// `[D, Ti, B]`
    pub(super) img: Port,
    /// `[D, Tt, B]`
    pub(super) context: Port,
    /// `[D, T, B]`
    pub(super) to: Port,
}

impl Block for Join {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let text = b.dim(Symbol::IMAGE_TOKENS)?;
        for (seen, met, start) in [(self.seen, self.img, 0), (self.context, self.context, text)] {
            b.tokens(seen, |x, at| {
                let met = b.piece(met, at.clone())?;
                let x = self.before.build(b, b.g.contiguous(x)?)?;
                b.write_tokens(self.to, start + at.start, b.g.add(x, met)?)
            })?;
        }
        Ok(())
    }
}

/// What is added to tokens of the model.
pub(super) struct Residual {
    pub(super) linear: Linear,
    pub(super) from: Port,
    /// What it is added to, and where the sum goes.
    pub(super) onto: (Port, Port),
    /// `[1, conditions]`
    pub(super) scale: Port,
    pub(super) condition: Port,
}

impl Block for Residual {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let scale = b.g.get_rows(b.read(self.scale)?, b.read(self.condition)?)?; // [1, B]
        let scale = b.g.reshape(scale, &[1, 1, b.dim(Symbol::BATCH)?])?;
        let (onto, to) = self.onto;
        b.tokens(self.from, |x, at| {
            // Rows that do not stand one after the other are multiplied in another way: a picture alone would be another than in a batch.
            let residual = b.g.mul(self.linear.build(b, b.g.contiguous(x)?)?, scale)?;
            let met = b.piece(onto, at.clone())?;
            b.write_tokens(to, at.start, b.g.add(met, residual)?)
        })
    }
}
