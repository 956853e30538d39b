//! What is before and after the blocks.

use super::block::{Piece, pieces};
use super::config::Config;
use super::ports::Ports;
use crate::Result;
use crate::ggml::Tensor;
use crate::models::layers::Linear;
use crate::models::qwen_image::ends::{FinalLayer, Modulated};
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

/// From latents to the width of the blocks; and the prompt as every step begins with it, with the pictures in it.
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

impl Embed {
    /// Writes the picture whose latents are those from `first` on of `latents` to `to`, where `piece` says.
    fn picture(&self, b: &Build<'_>, latents: Tensor, (first, piece): (usize, Piece), to: Port) -> Result<()> {
        for at in b.token_ranges(piece.count) {
            let x = b.g.slice(latents, 1, first + at.start, at.len())?;
            b.write_tokens(to, piece.start + at.start, self.linear.build(b, x)?)?;
        }
        Ok(())
    }
}

impl Block for Embed {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let (latents, context) = (b.read(self.latents)?, b.read(self.context)?);
        let image = b.dim(Symbol::IMAGE_TOKENS)?;
        let whole = Piece { start: 0, count: image, in_text: None };
        self.picture(b, latents, (0, whole), self.img)?;
        let mut first = image;
        for piece in pieces(b)? {
            match piece.in_text {
                Some(text) => b.write_tokens(self.txt, piece.start, b.g.slice(context, 1, text, piece.count)?)?,
                None => {
                    self.picture(b, latents, (first, piece), self.txt)?;
                    first += piece.count;
                }
            }
        }
        Ok(())
    }
}

/// From hidden states to the velocity of every token.
pub(super) fn declare_final_layer(
    s: &mut Scope<'_>,
    config: &Config,
    ports: &Ports,
    (img, modulation): (Port, Port),
) -> Result<FinalLayer> {
    let mut s = s.sub("proj_out");
    let linear = Linear::declare_unbiased(&mut s, config.hidden(), config.in_channels, Role::SensitiveMatMul)?;
    let (modulated, Ports { condition, prediction, .. }) = (Modulated::Scaled(config.eps), *ports);
    Ok(FinalLayer { linear, modulated, img, modulation, condition, prediction })
}
