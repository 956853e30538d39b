//! What is before and after the blocks.

use super::config::Config;
use super::modulation::{At, Modulation};
use super::ports::{EPS, Ports};
use crate::Result;
use crate::models::layers::{Linear, RmsNorm};
use crate::stage::{Block, Build, Port, Symbol};
use crate::weights::{Role, Scope};

/// From the prompt's hidden states to the width of the blocks.
pub(super) struct Context {
    norm: RmsNorm,
    linear: Linear,
    text: Port,
    context: Port,
}

impl Context {
    pub(super) fn declare(s: &mut Scope<'_>, config: &Config, text: Port, context: Port) -> Result<Context> {
        let width = config.joint_attention_dim;
        let norm = RmsNorm::declare(&mut s.sub("txt_norm"), "weight", width, EPS)?;
        let linear = Linear::declare(&mut s.sub("txt_in"), width, config.hidden(), Role::SensitiveMatMul)?;
        Ok(Context { norm, linear, text, context })
    }
}

impl Block for Context {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        b.write(self.context, self.linear.build(b, self.norm.build(b, b.read(self.text)?)?)?)
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
        let linear = Linear::declare(&mut s, config.in_channels, config.hidden(), Role::SensitiveMatMul)?;
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
    pub(super) linear: Linear,
    pub(super) modulated: Modulated,
    pub(super) img: Port,
    pub(super) modulation: Port,
    pub(super) condition: Port,
    pub(super) prediction: Port,
}

/// What time does to hidden states before the last matrix.
pub(super) enum Modulated {
    /// They are scaled and shifted.
    Shifted,
    /// They are scaled alone, behind a norm with this epsilon.
    Scaled(f32),
}

/// Where scale and shift stand in its modulation.
const SHIFT_SCALE: (usize, usize) = (1, 0);

impl FinalLayer {
    pub(super) fn declare(
        s: &mut Scope<'_>,
        config: &Config,
        ports: &Ports,
        (img, modulation): (Port, Port),
    ) -> Result<FinalLayer> {
        let mut s = s.sub("proj_out");
        let linear = Linear::declare(&mut s, config.hidden(), config.in_channels, Role::SensitiveMatMul)?;
        let Ports { condition, prediction, .. } = *ports;
        Ok(FinalLayer { linear, modulated: Modulated::Shifted, img, modulation, condition, prediction })
    }
}

impl Block for FinalLayer {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let parts = if matches!(self.modulated, Modulated::Shifted) { 2 } else { 1 };
        let m = Modulation::read(b, self.modulation, At::Step(self.condition, Symbol::BATCH), parts)?;
        b.tokens(self.img, |x, at| {
            let x = match self.modulated {
                Modulated::Shifted => m.modulate(x, SHIFT_SCALE)?,
                Modulated::Scaled(eps) => m.scaled(x, eps, 0)?,
            };
            b.write_tokens(self.prediction, at.start, self.linear.build(b, x)?)
        })
    }
}
