//! Double blocks: text and image in streams of their own. A block is three stages: attention of both streams to each other, the feed-forward layer
//! of the image, and that of the text. Each has a third of the weights, so that a device has room for no more than that at a time.

use super::attention::QkNorm;
use super::config::Config;
use super::ip::Beside;
use super::modulation::Modulation;
use super::shared::{Residual, Shared, with_residuals};
use crate::Result;
use crate::ggml::Tensor;
use crate::models::layers::Linear;
use crate::stage::{Block, Build, Port};
use crate::weights::{Role, Scope};

/// What a stream is called in weights' names, and in stages'.
pub(super) const IMAGE: [&str; 2] = ["img", "image"];
/// The same of the text.
pub(super) const TEXT: [&str; 2] = ["txt", "text"];

/// How one of the two streams attends to both.
pub(super) struct Stream {
    qkv: Linear,
    norm: QkNorm,
    proj: Linear,
    from: Port,
    to: Port,
    modulation: Port,
}

impl Stream {
    pub(super) fn declare(
        s: &mut Scope<'_>,
        [name, _]: [&str; 2],
        config: &Config,
        (from, to): (Port, Port),
        modulation: Port,
    ) -> Result<Stream> {
        let hidden = config.hidden();
        let mut attn = s.sub(format!("{name}_attn"));
        let qkv = Linear::declare(&mut attn.sub("qkv"), hidden, 3 * hidden, Role::MatMul)?;
        let norm = QkNorm::declare(&mut attn.sub("norm"), config)?;
        let proj = Linear::declare(&mut attn.sub("proj"), hidden, hidden, Role::MatMul)?;
        Ok(Stream { qkv, norm, proj, from, to, modulation })
    }
}

/// The feed-forward layer of one of the two streams.
pub(super) struct FeedForward {
    mlp_0: Linear,
    mlp_2: Linear,
    port: Port,
    modulation: Port,
    shared: Shared,
    /// What ControlNets add to the stream's tokens.
    residuals: Vec<Residual>,
}

impl FeedForward {
    pub(super) fn declare(
        s: &mut Scope<'_>,
        [name, _]: [&str; 2],
        config: &Config,
        (port, modulation, shared): (Port, Port, Shared),
        residuals: Vec<Residual>,
    ) -> Result<FeedForward> {
        let (hidden, feed_forward) = (config.hidden(), config.feed_forward());
        let mut mlp = s.sub(format!("{name}_mlp"));
        let mlp_0 = Linear::declare(&mut mlp.sub(0), hidden, feed_forward, Role::MatMul)?;
        let mlp_2 = Linear::declare(&mut mlp.sub(2), feed_forward, hidden, Role::MatMul)?;
        Ok(FeedForward { mlp_0, mlp_2, port, modulation, shared, residuals })
    }

    /// The tokens `x [D, n, B]`, as attention left them, with what the layer adds.
    fn add(&self, b: &Build<'_>, m: &Modulation<'_, '_>, x: Tensor) -> Result<Tensor> {
        let inner = b.g.gelu_tanh(self.mlp_0.build(b, m.modulate(x, 3)?)?)?; // [M, n, B]
        m.gated(x, self.mlp_2.build(b, inner)?, 5)
    }
}

impl Block for FeedForward {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let m = Modulation::read(b, self.modulation, &self.shared, 6)?;
        b.tokens(self.port, |x, at| {
            let x = self.add(b, &m, x)?;
            b.write_tokens(self.port, at.start, with_residuals(b, x, at, &self.residuals)?)
        })
    }
}

/// Text and image with weights of their own, attending to each other.
pub(super) struct JointAttention {
    pub(super) img: Stream,
    pub(super) txt: Stream,
    pub(super) shared: Shared,
    /// What the image's queries see beside.
    pub(super) ip: Option<Beside>,
    /// The feed-forward layer of the image, if what the queries see beside is added behind it: it is no stage of its own then.
    pub(super) image_feed_forward: Option<FeedForward>,
}

impl Block for JointAttention {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let Shared { rotary, sizes, .. } = self.shared;
        let modulation = |stream: &Stream| Modulation::read(b, stream.modulation, &self.shared, 6);
        // Text first: its tokens stand before the image's.
        let streams = [
            (&self.txt, modulation(&self.txt)?, 0, None, None),
            (&self.img, modulation(&self.img)?, b.dim(sizes.text)?, self.ip, self.image_feed_forward.as_ref()),
        ];
        let attention = self.img.norm.attention(b, sizes)?;
        for (stream, m, first, ..) in &streams {
            b.tokens(stream.from, |x, at| {
                let start = first + at.start;
                let (k, v) = stream.norm.keys_and_values(b, &stream.qkv, m.modulate(x, 0)?)?;
                attention.set(b, start, (rotary.turn(b, k, start)?, v))
            })?;
        }
        for (stream, m, first, ip, feed_forward) in &streams {
            b.tokens(stream.from, |x, at| {
                let q = stream.norm.queries(b, &stream.qkv, m.modulate(x, 0)?)?;
                let attended = attention.attend(b, rotary.turn(b, q, first + at.start)?)?;
                let attended = Beside::to_attended(*ip, b, attended, q)?;
                let mut x = m.gated(x, stream.proj.build(b, attended)?, 2)?;
                let start = at.start;
                if let Some(layer) = feed_forward {
                    x = Beside::to_result(*ip, b, layer.add(b, m, x)?, q)?;
                    x = with_residuals(b, x, at, &layer.residuals)?;
                }
                b.write_tokens(stream.to, start, x)
            })?;
        }
        Ok(())
    }
}
