//! What is before, between and after the blocks.

use super::block::of_items;
use super::config::Config;
use super::ports::{FINAL_EPS, Ports, TIME_WIDTH};
use crate::Result;
use crate::ggml::Tensor;
use crate::models::layers::{Linear, RmsNorm};
use crate::stage::{Block, Build, Port, Symbol};
use crate::weights::{Role, Scope, WeightId};

/// The inner width of the embedding of time.
const TIME_INNER: usize = 1024;

/// From the sinusoid of time to what blocks know of it.
pub(super) struct TimeIn {
    mlp_0: Linear,
    mlp_2: Linear,
    time: Port,
    vector: Port,
}

impl TimeIn {
    pub(super) fn declare(s: &mut Scope<'_>, config: &Config, time: Port, vector: Port) -> Result<TimeIn> {
        let mut s = s.sub("t_embedder.mlp");
        let mlp_0 = Linear::declare(&mut s.sub(0), TIME_WIDTH, TIME_INNER, Role::SensitiveMatMul)?;
        let mlp_2 = Linear::declare(&mut s.sub(2), TIME_INNER, config.time_width(), Role::SensitiveMatMul)?;
        Ok(TimeIn { mlp_0, mlp_2, time, vector })
    }
}

impl Block for TimeIn {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let inner = b.g.silu(self.mlp_0.build(b, b.read(self.time)?)?)?;
        b.write(self.vector, self.mlp_2.build(b, inner)?)
    }
}

/// Learned tokens that fill up others.
struct PadToken(WeightId);

impl PadToken {
    fn declare(s: &mut Scope<'_>, name: &str, config: &Config) -> Result<PadToken> {
        Ok(PadToken(s.weight(name, &[config.dim, 1], Role::Vector)?))
    }

    /// `x [D, n, B]` where `kept [1, n, B or 1]` is 1, and the learned token where it is 0.
    fn build(&self, b: &Build<'_>, x: Tensor, kept: Tensor) -> Result<Tensor> {
        let pad = b.weight(self.0)?;
        b.g.add(b.g.mul(b.g.sub(x, pad)?, kept)?, pad)
    }
}

/// From the prompt's hidden states to the width of the blocks.
pub(super) struct Context {
    norm: RmsNorm,
    linear: Linear,
    pad: PadToken,
    text: Port,
    kept: Port,
    context: Port,
}

impl Context {
    pub(super) fn declare(s: &mut Scope<'_>, config: &Config, ports: &Ports, context: Port) -> Result<Context> {
        let pad = PadToken::declare(s, "cap_pad_token", config)?;
        let mut s = s.sub("cap_embedder");
        let norm = RmsNorm::declare(&mut s.sub(0), "weight", config.cap_feat_dim, config.norm_eps)?;
        let linear = Linear::declare(&mut s.sub(1), config.cap_feat_dim, config.dim, Role::SensitiveMatMul)?;
        Ok(Context { norm, linear, pad, text: ports.text, kept: ports.text_kept, context })
    }
}

impl Block for Context {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let x = self.linear.build(b, self.norm.build(b, b.read(self.text)?)?)?;
        b.write(self.context, self.pad.build(b, x, b.read(self.kept)?)?)
    }
}

/// From latents to the width of the blocks.
pub(super) struct Embed {
    linear: Linear,
    pad: PadToken,
    latents: Port,
    kept: Port,
    img: Port,
}

impl Embed {
    pub(super) fn declare(s: &mut Scope<'_>, config: &Config, ports: &Ports, img: Port) -> Result<Embed> {
        let pad = PadToken::declare(s, "x_pad_token", config)?;
        let mut s = s.sub("x_embedder");
        let linear = Linear::declare(&mut s, config.token_width(), config.dim, Role::SensitiveMatMul)?;
        Ok(Embed { linear, pad, latents: ports.latents, kept: ports.image_kept, img })
    }
}

impl Block for Embed {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        b.tokens(self.latents, |x, at| {
            let kept = b.g.slice(b.read(self.kept)?, 1, at.start, at.len())?;
            b.write_tokens(self.img, at.start, self.pad.build(b, self.linear.build(b, x)?, kept)?)
        })
    }
}

/// Picture and prompt become one sequence.
pub(super) struct Join {
    pub(super) img: Port,
    pub(super) context: Port,
    pub(super) joint: Port,
}

impl Block for Join {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        b.write_tokens(self.joint, 0, b.read(self.img)?)?;
        b.write_tokens(self.joint, b.dim(Symbol::IMAGE_TOKENS)?, b.read(self.context)?)
    }
}

/// From hidden states to the prediction for every token of the picture.
pub(super) struct FinalLayer {
    linear: Linear,
    modulation: Linear,
    joint: Port,
    vector: Port,
    condition: Port,
    prediction: Port,
}

impl FinalLayer {
    pub(super) fn declare(
        s: &mut Scope<'_>,
        config: &Config,
        ports: &Ports,
        (joint, vector): (Port, Port),
    ) -> Result<FinalLayer> {
        let mut s = s.sub("final_layer");
        let linear = Linear::declare(&mut s.sub("linear"), config.dim, config.token_width(), Role::SensitiveMatMul)?;
        let mut s = s.sub("adaLN_modulation.1");
        let modulation = Linear::declare(&mut s, config.time_width(), config.dim, Role::SensitiveMatMul)?;
        let Ports { condition, prediction, .. } = *ports;
        Ok(FinalLayer { linear, modulation, joint, vector, condition, prediction })
    }
}

impl Block for FinalLayer {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let vector = b.g.silu(b.g.get_rows(b.read(self.vector)?, b.read(self.condition)?)?)?; // [A, B]
        let scale = of_items(b, &self.modulation, vector)?; // [D, B]
        let [hidden, batch, ..] = b.g.shape(scale)?.dims();
        let scale = b.g.scale_bias(b.g.reshape(scale, &[hidden, 1, batch])?, 1.0, 1.0)?;
        for piece in b.token_ranges(b.dim(Symbol::IMAGE_TOKENS)?) {
            let x = b.piece(self.joint, piece.clone())?;
            let x = b.g.mul(b.g.norm(x, FINAL_EPS)?, scale)?;
            b.write_tokens(self.prediction, piece.start, self.linear.build(b, x)?)?;
        }
        Ok(())
    }
}
