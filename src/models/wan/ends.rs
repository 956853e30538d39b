//! What is before and after the blocks.

use super::config::{Config, PATCH_LATENTS};
use super::modulation::{At, Table};
use super::ports::{GIVEN_TOKENS, Ports, REFERENCE_TOKENS};
use crate::Result;
use crate::models::layers::{LayerNorm, Linear};
use crate::stage::{Block, Build, Port, Symbol};
use crate::weights::{Role, Scope, WeightId};

/// From the prompt's hidden states to the width of the blocks.
pub(super) struct Context {
    linear_0: Linear,
    linear_2: Linear,
    text: Port,
    context: Port,
}

impl Context {
    pub(super) fn declare(s: &mut Scope<'_>, config: &Config, text: Port, context: Port) -> Result<Context> {
        let (width, hidden) = (config.text_dim, config.hidden());
        let linear_0 = Linear::declare(&mut s.sub("text_embedding.0"), width, hidden, Role::SensitiveMatMul)?;
        let linear_2 = Linear::declare(&mut s.sub("text_embedding.2"), hidden, hidden, Role::SensitiveMatMul)?;
        Ok(Context { linear_0, linear_2, text, context })
    }
}

impl Block for Context {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let inner = b.g.gelu_tanh(self.linear_0.build(b, b.read(self.text)?)?)?;
        b.write(self.context, self.linear_2.build(b, inner)?)
    }
}

/// The epsilon of the norms of what is seen.
const SEEN_EPS: f32 = 1e-5;

/// From what a vision tower sees to the width of the blocks.
pub(super) struct Looking {
    positions: Option<WeightId>,
    norm_0: LayerNorm,
    linear_1: Linear,
    linear_3: Linear,
    norm_4: LayerNorm,
    seen: Port,
    context: Port,
}

impl Looking {
    pub(super) fn declare(
        s: &mut Scope<'_>,
        config: &Config,
        width: usize,
        (seen, context): (Port, Port),
    ) -> Result<Looking> {
        let hidden = config.hidden();
        let mut s = s.sub("img_emb");
        let positions = config.pos_embed_seq_len.map(|tokens| s.weight("emb_pos", &[width, tokens], Role::Vector));
        let positions = positions.transpose()?;
        let mut s = s.sub("proj");
        let norm_0 = LayerNorm::declare(&mut s.sub(0), width, SEEN_EPS)?;
        let linear_1 = Linear::declare(&mut s.sub(1), width, width, Role::SensitiveMatMul)?;
        let linear_3 = Linear::declare(&mut s.sub(3), width, hidden, Role::SensitiveMatMul)?;
        let norm_4 = LayerNorm::declare(&mut s.sub(4), hidden, SEEN_EPS)?;
        Ok(Looking { positions, norm_0, linear_1, linear_3, norm_4, seen, context })
    }
}

impl Block for Looking {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let mut x = b.read(self.seen)?; // [V, Ts, B]
        if let Some(positions) = self.positions {
            x = b.g.add(x, b.weight(positions)?)?;
        }
        let inner = b.g.gelu_erf(self.linear_1.build(b, self.norm_0.build(b, x)?)?)?;
        b.write(self.context, self.norm_4.build(b, self.linear_3.build(b, inner)?)?)
    }
}

/// From the latents of a picture that is referred to, to tokens before those of the video. Without a picture, they are zeros.
pub(super) struct Refer {
    linear: Linear,
    reference: Port,
    hidden: Port,
}

impl Refer {
    pub(super) fn declare(s: &mut Scope<'_>, config: &Config, [reference, hidden]: [Port; 2]) -> Result<Refer> {
        let inputs = PATCH_LATENTS * config.latent_channels();
        let linear = Linear::declare(&mut s.sub("ref_conv"), inputs, config.hidden(), Role::SensitiveMatMul)?;
        Ok(Refer { linear, reference, hidden })
    }
}

impl Block for Refer {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        b.write_tokens(self.hidden, 0, self.linear.build(b, b.read(self.reference)?)?)
    }
}

/// From latents to the width of the blocks.
pub(super) struct Embed {
    linear: Linear,
    /// Numbers of a token that are embedded; a film may be behind them.
    inputs: usize,
    latents: Port,
    hidden: Port,
}

impl Embed {
    pub(super) fn declare(s: &mut Scope<'_>, config: &Config, latents: Port, hidden: Port) -> Result<Embed> {
        let mut s = s.sub("patch_embedding");
        let inputs = PATCH_LATENTS * config.in_channels;
        let linear = Linear::declare(&mut s, inputs, config.hidden(), Role::SensitiveMatMul)?;
        Ok(Embed { linear, inputs, latents, hidden })
    }
}

impl Block for Embed {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let before = b.dim(REFERENCE_TOKENS)?;
        b.tokens(self.latents, |x, at| {
            let [numbers, ..] = b.g.shape(x)?.dims();
            let own = if numbers == self.inputs { x } else { b.g.contiguous(b.g.slice(x, 0, 0, self.inputs)?)? };
            b.write_tokens(self.hidden, before + at.start, self.linear.build(b, own)?)
        })
    }
}

/// From hidden states to the velocity of every token.
pub(super) struct FinalLayer {
    table: Table,
    linear: Linear,
    hidden: Port,
    vector: Port,
    ports: Ports,
    eps: f32,
}

/// Where shift and scale stand in its modulation.
const SHIFT_SCALE: [usize; 2] = [0, 1];

impl FinalLayer {
    pub(super) fn declare(
        s: &mut Scope<'_>,
        config: &Config,
        ports: &Ports,
        (hidden, vector): (Port, Port),
    ) -> Result<FinalLayer> {
        let (width, eps) = (config.hidden(), config.eps);
        let mut s = s.sub("head");
        let table = Table::declare(&mut s, width, 2)?;
        let outputs = PATCH_LATENTS * config.latent_channels();
        let linear = Linear::declare(&mut s.sub("head"), width, outputs, Role::SensitiveMatMul)?;
        Ok(FinalLayer { table, linear, hidden, vector, ports: *ports, eps })
    }
}

impl Block for FinalLayer {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let (all, given) = (b.dim(Symbol::IMAGE_TOKENS)?, b.dim(GIVEN_TOKENS)?);
        let before = b.dim(REFERENCE_TOKENS)?;
        for (at, first, end) in [(At::Last, 0, given), (At::Step(self.ports.condition), given, all)] {
            if first == end {
                continue;
            }
            let m = self.table.read(b, self.vector, at)?;
            for piece in b.token_ranges(end - first) {
                let start = first + piece.start;
                let at = before + start;
                let x = b.piece(self.hidden, at..at + piece.len())?;
                let y = self.linear.build(b, m.modulate(x, SHIFT_SCALE, self.eps)?)?;
                b.write_tokens(self.ports.prediction, start, y)?;
            }
        }
        Ok(())
    }
}
