//! What is before and after the blocks.

use super::config::Config;
use super::ports::Ports;
use crate::Result;
use crate::models::layers::Linear;
use crate::models::qwen_image::modulation::{At, Modulation};
use crate::stage::{Block, Build, Port, Symbol};
use crate::weights::{Role, Scope, WeightId};

/// From the prompt's hidden states to the width of the blocks.
pub(super) struct Context {
    /// What is added to 1 in the scale of the norm.
    norm: WeightId,
    inner: Linear,
    outer: Linear,
    eps: f32,
    text: Port,
    context: Port,
}

impl Context {
    pub(super) fn declare(s: &mut Scope<'_>, config: &Config, text: Port, context: Port) -> Result<Context> {
        let (width, hidden) = (config.context_in_dim, config.hidden());
        let mut s = s.sub("txt_in");
        let norm = s.sub("text_norm").weight("weight", &[width], Role::Vector)?;
        let mut linear =
            |name, inputs| Linear::declare_unbiased(&mut s.sub(name), inputs, hidden, Role::SensitiveMatMul);
        let (inner, outer) = (linear("in_layer", width)?, linear("out_layer", hidden)?);
        Ok(Context { norm, inner, outer, eps: config.eps, text, context })
    }
}

impl Block for Context {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let scale = b.g.scale_bias(b.weight(self.norm)?, 1.0, 1.0)?;
        let normal = b.g.mul(b.g.rms_norm(b.read(self.text)?, self.eps)?, scale)?;
        let inner = b.g.gelu_tanh(self.inner.build(b, normal)?)?;
        b.write(self.context, self.outer.build(b, inner)?)
    }
}

/// From latents to the width of the blocks; and the prompt as every step begins with it.
pub(super) struct Embed {
    linear: Linear,
    latents: Port,
    img: Port,
    context: Port,
    txt: Port,
}

impl Embed {
    pub(super) fn declare(
        s: &mut Scope<'_>,
        config: &Config,
        (latents, img): (Port, Port),
        (context, txt): (Port, Port),
    ) -> Result<Embed> {
        let mut s = s.sub("img_in");
        let linear = Linear::declare_unbiased(&mut s, config.in_channels, config.hidden(), Role::SensitiveMatMul)?;
        Ok(Embed { linear, latents, img, context, txt })
    }
}

impl Block for Embed {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        b.tokens(self.latents, |x, at| b.write_tokens(self.img, at.start, self.linear.build(b, x)?))?;
        b.write_tokens(self.txt, 0, b.read(self.context)?)
    }
}

/// From hidden states to the velocity of every token.
pub(super) struct FinalLayer {
    linear: Linear,
    eps: f32,
    img: Port,
    modulation: Port,
    condition: Port,
    prediction: Port,
}

impl FinalLayer {
    pub(super) fn declare(
        s: &mut Scope<'_>,
        config: &Config,
        ports: &Ports,
        (img, modulation): (Port, Port),
    ) -> Result<FinalLayer> {
        let mut s = s.sub("proj_out");
        let linear = Linear::declare_unbiased(&mut s, config.hidden(), config.in_channels, Role::SensitiveMatMul)?;
        let Ports { condition, prediction, .. } = *ports;
        Ok(FinalLayer { linear, eps: config.eps, img, modulation, condition, prediction })
    }
}

impl Block for FinalLayer {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let m = Modulation::read(b, self.modulation, At::Step(self.condition, Symbol::BATCH), 1)?;
        b.tokens(self.img, |x, at| {
            b.write_tokens(self.prediction, at.start, self.linear.build(b, m.scaled(x, self.eps, 0)?)?)
        })
    }
}
