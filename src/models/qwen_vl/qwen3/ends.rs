//! Where a picture comes into the tower, and where its tokens come out.

use super::super::config::MERGED;
use super::super::ends::PatchKernels;
use super::super::ports::EPS;
use super::super::windows::TOKENS;
use super::config::Config;
use crate::Result;
use crate::models::layers::{LayerNorm, Linear};
use crate::stage::{Block, Build, Port};
use crate::weights::{Role, Scope, WeightId};

/// A vector for each patch, with that of its place.
pub(super) struct Embed {
    kernels: PatchKernels,
    bias: WeightId,
    pixels: Port,
    places: Port,
    hidden: Port,
}

impl Embed {
    pub(super) fn declare(s: &mut Scope<'_>, config: &Config, [pixels, places, hidden]: [Port; 3]) -> Result<Embed> {
        let mut s = s.sub("patch_embed.proj");
        let kernels = PatchKernels::declare(&mut s, [config.patch_size, config.in_channels, config.hidden_size])?;
        let bias = s.weight("bias", &[config.hidden_size], Role::Vector)?;
        Ok(Embed { kernels, bias, pixels, places, hidden })
    }
}

impl Block for Embed {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let places = b.read(self.places)?;
        b.tokens(self.pixels, |x, at| {
            let embedded = b.g.add(self.kernels.build(b, x)?, b.weight(self.bias)?)?;
            let placed = b.g.add(embedded, b.g.slice(places, 1, at.start, at.len())?)?;
            b.write_tokens(self.hidden, at.start, placed)
        })
    }
}

/// Four neighbouring patches become one token of the language model.
pub(super) struct Merger {
    norm: LayerNorm,
    linear_fc1: Linear,
    linear_fc2: Linear,
    /// How many numbers are normalised together: those of a patch, or those of a token.
    normalised: usize,
    width: usize,
    hidden: Port,
    result: Port,
}

impl Merger {
    /// The last one, in which each patch is normalised.
    pub(super) fn declare(s: &mut Scope<'_>, config: &Config, ports: (Port, Port)) -> Result<Merger> {
        Merger::declare_with(s, config, config.hidden_size, ports)
    }

    /// One behind a block, in which all numbers of a token are normalised together.
    pub(super) fn declare_whole(s: &mut Scope<'_>, config: &Config, ports: (Port, Port)) -> Result<Merger> {
        Merger::declare_with(s, config, MERGED * MERGED * config.hidden_size, ports)
    }

    fn declare_with(
        s: &mut Scope<'_>,
        config: &Config,
        normalised: usize,
        (hidden, result): (Port, Port),
    ) -> Result<Merger> {
        let width = MERGED * MERGED * config.hidden_size;
        let norm = LayerNorm::declare(&mut s.sub("norm"), normalised, EPS)?;
        let linear_fc1 = Linear::declare(&mut s.sub("linear_fc1"), width, width, Role::MatMul)?;
        let linear_fc2 = Linear::declare(&mut s.sub("linear_fc2"), width, config.out_hidden_size, Role::MatMul)?;
        Ok(Merger { norm, linear_fc1, linear_fc2, normalised, width, hidden, result })
    }
}

impl Block for Merger {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let merged = b.g.reshape(b.read(self.hidden)?, &[self.width, b.dim(TOKENS)?])?;
        for piece in b.token_ranges(b.dim(TOKENS)?) {
            let x = b.g.slice(merged, 1, piece.start, piece.len())?;
            let rows = b.g.reshape(x, &[self.normalised, self.width / self.normalised * piece.len()])?;
            let normal = b.g.reshape(self.norm.build(b, rows)?, &[self.width, piece.len()])?;
            let inner = b.g.gelu_erf(self.linear_fc1.build(b, normal)?)?;
            b.write_tokens(self.result, piece.start, self.linear_fc2.build(b, inner)?)?;
        }
        Ok(())
    }
}
