//! VACE (Jiang et al., "VACE: All-in-One Video Creation and Editing", 2025; reference: diffusers' `WanVACETransformer3DModel`): blocks beside
//! those of the model, which see a film beside the latents. What they make is added behind some of the blocks.

use super::config::{Config, PATCH_LATENTS};
use crate::Result;
use crate::models::layers::Linear;
use crate::stage::{Block, Build, Port};
use crate::weights::{Role, Scope};

/// From the film beside the latents to hidden states of its own: the first block's input.
pub(super) struct GuideIn {
    embed: Linear,
    before: Linear,
    latents: Port,
    /// Numbers of a token that are latents; those of the film are behind them.
    own: usize,
    hidden: Port,
    guide: Port,
}

impl GuideIn {
    pub(super) fn declare(
        s: &mut Scope<'_>,
        config: &Config,
        latents: Port,
        (hidden, guide): (Port, Port),
    ) -> Result<GuideIn> {
        let width = config.hidden();
        let inputs = PATCH_LATENTS * config.guide_channels();
        let embed = Linear::declare(&mut s.sub("vace_patch_embedding"), inputs, width, Role::SensitiveMatMul)?;
        let mut blocks = s.sub("vace_blocks");
        let before = Linear::declare(&mut blocks.sub(0).sub("before_proj"), width, width, Role::MatMul)?;
        Ok(GuideIn { embed, before, latents, own: PATCH_LATENTS * config.in_channels, hidden, guide })
    }
}

impl Block for GuideIn {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        b.tokens(self.latents, |x, at| {
            let [numbers, ..] = b.g.shape(x)?.dims();
            let film = b.g.contiguous(b.g.slice(x, 0, self.own, numbers - self.own)?)?;
            let seen = self.before.build(b, self.embed.build(b, film)?)?; // [D, n, B]
            let hidden = b.piece(self.hidden, at.clone())?;
            b.write_tokens(self.guide, at.start, b.g.add(seen, hidden)?)
        })
    }
}

/// What is added behind a block of the model.
pub(super) struct GuideOut {
    after: Linear,
    hidden: Port,
    guide: Port,
    /// `[1]`: how strongly.
    scale: Port,
}

impl GuideOut {
    pub(super) fn declare(s: &mut Scope<'_>, width: usize, [hidden, guide, scale]: [Port; 3]) -> Result<GuideOut> {
        let after = Linear::declare(&mut s.sub("after_proj"), width, width, Role::WideMatMul)?;
        Ok(GuideOut { after, hidden, guide, scale })
    }
}

impl Block for GuideOut {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        b.tokens(self.guide, |guide, at| {
            let added = b.g.mul(self.after.build(b, guide)?, b.read(self.scale)?)?;
            let hidden = b.piece(self.hidden, at.clone())?;
            b.write_tokens(self.hidden, at.start, b.g.add(hidden, added)?)
        })
    }
}
