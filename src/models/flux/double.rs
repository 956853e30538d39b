//! Double blocks: text and image in streams of their own.

use super::attention::QkNorm;
use super::config::Config;
use super::ip::Beside;
use super::modulation::Modulation;
use super::shared::{Residual, Shared, with_residuals};
use crate::Result;
use crate::models::layers::Linear;
use crate::stage::{Block, Build, Port};
use crate::weights::{Role, Scope};

/// One of the two streams of a double block.
pub(super) struct Stream {
    qkv: Linear,
    norm: QkNorm,
    proj: Linear,
    mlp_0: Linear,
    mlp_2: Linear,
    from: Port,
    to: Port,
    modulation: Port,
}

impl Stream {
    pub(super) fn declare(
        s: &mut Scope<'_>,
        name: &str,
        config: &Config,
        (from, to): (Port, Port),
        modulation: Port,
    ) -> Result<Stream> {
        let (hidden, feed_forward) = (config.hidden(), config.feed_forward());
        let mut attn = s.sub(format!("{name}_attn"));
        let qkv = Linear::declare(&mut attn.sub("qkv"), hidden, 3 * hidden, Role::MatMul)?;
        let norm = QkNorm::declare(&mut attn.sub("norm"), config)?;
        let proj = Linear::declare(&mut attn.sub("proj"), hidden, hidden, Role::MatMul)?;
        let mut mlp = s.sub(format!("{name}_mlp"));
        let mlp_0 = Linear::declare(&mut mlp.sub(0), hidden, feed_forward, Role::MatMul)?;
        let mlp_2 = Linear::declare(&mut mlp.sub(2), feed_forward, hidden, Role::MatMul)?;
        Ok(Stream { qkv, norm, proj, mlp_0, mlp_2, from, to, modulation })
    }
}

/// Text and image with weights of their own, attending to each other.
pub(super) struct DoubleBlock {
    pub(super) img: Stream,
    pub(super) txt: Stream,
    pub(super) shared: Shared,
    /// What the image's queries see beside.
    pub(super) ip: Option<Beside>,
    /// What ControlNets add to the image's tokens.
    pub(super) residuals: Vec<Residual>,
}

impl Block for DoubleBlock {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let Shared { rotary, sizes, .. } = self.shared;
        let modulation = |stream: &Stream| Modulation::read(b, stream.modulation, &self.shared, 6);
        // Text first: its tokens stand before the image's.
        let streams = [
            (&self.txt, modulation(&self.txt)?, 0, None, &[][..]),
            (&self.img, modulation(&self.img)?, b.dim(sizes.text)?, self.ip, &self.residuals[..]),
        ];
        let attention = self.img.norm.attention(b, sizes)?;
        for (stream, m, first, ..) in &streams {
            b.tokens(stream.from, |x, at| {
                let start = first + at.start;
                let (k, v) = stream.norm.keys_and_values(b, &stream.qkv, m.modulate(x, 0)?)?;
                attention.set(b, start, (rotary.turn(b, k, start)?, v))
            })?;
        }
        for (stream, m, first, ip, residuals) in &streams {
            b.tokens(stream.from, |x, at| {
                let q = stream.norm.queries(b, &stream.qkv, m.modulate(x, 0)?)?;
                let attended = attention.attend(b, rotary.turn(b, q, first + at.start)?)?;
                let attended = Beside::to_attended(*ip, b, attended, q)?;
                let x = m.gated(x, stream.proj.build(b, attended)?, 2)?;
                let inner = b.g.gelu_tanh(stream.mlp_0.build(b, m.modulate(x, 3)?)?)?; // [M, n, B]
                let x = m.gated(x, stream.mlp_2.build(b, inner)?, 5)?;
                let x = Beside::to_result(*ip, b, x, q)?;
                b.write_tokens(stream.to, at.start, with_residuals(b, x, at, residuals)?)
            })?;
        }
        Ok(())
    }
}
