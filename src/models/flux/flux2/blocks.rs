//! Double blocks, with text and image in streams of their own, and single blocks, with both in one sequence. As FLUX.1's, a double block is three
//! stages: attention, and the feed-forward layer of each stream.

use std::ops::Range;

use super::config::Config;
use crate::Result;
use crate::ggml::Tensor;
use crate::models::flux::attention::QkNorm;
use crate::models::flux::modulation::Modulation;
use crate::models::flux::shared::Shared;
use crate::models::layers::Linear;
use crate::stage::{Block, Build, Port};
use crate::weights::{Role, Scope};

fn qk_norm(s: &mut Scope<'_>, config: &Config) -> Result<QkNorm> {
    QkNorm::sized(&mut s.sub("norm"), config.attention_head_dim, config.num_attention_heads)
}

/// `silu(gate) * up`, where `linear` makes both of `x [D, n, B]`: `gate` are its outputs from `start` on, `up` as many behind them.
pub(in crate::models::flux) fn gated(
    b: &Build<'_>,
    linear: &Linear,
    x: Tensor,
    start: usize,
    width: usize,
) -> Result<Tensor> {
    let part = |outputs: Range<usize>| linear.build_outputs(b, x, outputs);
    let gate = b.g.silu(part(start..start + width)?)?; // [M, n, B]
    b.g.mul(gate, part(start + width..start + 2 * width)?)
}

/// How one of the two streams of a double block attends to both.
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
        let qkv = Linear::declare_unbiased(&mut attn.sub("qkv"), hidden, 3 * hidden, Role::MatMul)?;
        let norm = qk_norm(&mut attn, config)?;
        let proj = Linear::declare_unbiased(&mut attn.sub("proj"), hidden, hidden, Role::MatMul)?;
        Ok(Stream { qkv, norm, proj, from, to, modulation })
    }
}

/// Text and image with weights of their own, attending to each other.
pub(super) struct JointAttention {
    pub(super) img: Stream,
    pub(super) txt: Stream,
    pub(super) shared: Shared,
}

impl Block for JointAttention {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let Shared { rotary, sizes, .. } = self.shared;
        let modulation = |stream: &Stream| Modulation::read(b, stream.modulation, &self.shared, 6);
        // Text first: its tokens stand before the image's.
        let streams = [(&self.txt, modulation(&self.txt)?, 0), (&self.img, modulation(&self.img)?, b.dim(sizes.text)?)];
        let attention = self.img.norm.attention(b, sizes)?;
        for (stream, m, first) in &streams {
            b.tokens(stream.from, |x, at| {
                let start = first + at.start;
                let (k, v) = stream.norm.keys_and_values(b, &stream.qkv, m.modulate(x, 0)?)?;
                attention.set(b, start, (rotary.turn(b, k, start)?, v))
            })?;
        }
        for (stream, m, first) in &streams {
            b.tokens(stream.from, |x, at| {
                let q = stream.norm.queries(b, &stream.qkv, m.modulate(x, 0)?)?;
                let attended = attention.attend(b, rotary.turn(b, q, first + at.start)?)?;
                b.write_tokens(stream.to, at.start, m.gated(x, stream.proj.build(b, attended)?, 2)?)
            })?;
        }
        Ok(())
    }
}

/// The feed-forward layer of one of the two streams of a double block.
pub(super) struct FeedForward {
    mlp_0: Linear,
    mlp_2: Linear,
    width: usize,
    port: Port,
    modulation: Port,
    shared: Shared,
}

impl FeedForward {
    pub(super) fn declare(
        s: &mut Scope<'_>,
        [name, _]: [&str; 2],
        config: &Config,
        (port, modulation, shared): (Port, Port, Shared),
    ) -> Result<FeedForward> {
        let (hidden, width) = (config.hidden(), config.feed_forward());
        let mut mlp = s.sub(format!("{name}_mlp"));
        let mlp_0 = Linear::declare_unbiased(&mut mlp.sub(0), hidden, 2 * width, Role::MatMul)?;
        // The product of gate and input may leave F16's range.
        let mlp_2 = Linear::declare_unbiased(&mut mlp.sub(2), width, hidden, Role::WideMatMul)?;
        Ok(FeedForward { mlp_0, mlp_2, width, port, modulation, shared })
    }
}

impl Block for FeedForward {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let m = Modulation::read(b, self.modulation, &self.shared, 6)?;
        b.tokens(self.port, |x, at| {
            let inner = gated(b, &self.mlp_0, m.modulate(x, 3)?, 0, self.width)?;
            b.write_tokens(self.port, at.start, m.gated(x, self.mlp_2.build(b, inner)?, 5)?)
        })
    }
}

/// Attention and feed-forward side by side, over text and image in one sequence.
pub(super) struct SingleBlock {
    linear1: Linear,
    norm: QkNorm,
    linear2: Linear,
    hidden: usize,
    feed_forward: usize,
    joint: Port,
    modulation: Port,
    shared: Shared,
}

impl SingleBlock {
    pub(super) fn declare(
        s: &mut Scope<'_>,
        config: &Config,
        joint: Port,
        modulation: Port,
        shared: Shared,
    ) -> Result<SingleBlock> {
        let (hidden, feed_forward) = (config.hidden(), config.feed_forward());
        let outputs = 3 * hidden + 2 * feed_forward;
        let linear1 = Linear::declare_unbiased(&mut s.sub("linear1"), hidden, outputs, Role::MatMul)?;
        let norm = qk_norm(s, config)?;
        let inputs = hidden + feed_forward;
        let linear2 = Linear::declare_unbiased(&mut s.sub("linear2"), inputs, hidden, Role::WideMatMul)?;
        Ok(SingleBlock { linear1, norm, linear2, hidden, feed_forward, joint, modulation, shared })
    }
}

impl Block for SingleBlock {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let Shared { rotary, sizes, .. } = self.shared;
        let m = Modulation::read(b, self.modulation, &self.shared, 3)?;
        let attention = self.norm.attention(b, sizes)?;
        b.tokens(self.joint, |x, at| {
            let (k, v) = self.norm.keys_and_values(b, &self.linear1, m.modulate(x, 0)?)?;
            attention.set(b, at.start, (rotary.turn(b, k, at.start)?, v))
        })?;
        b.tokens(self.joint, |x, at| {
            let modulated = m.modulate(x, 0)?;
            let q = self.norm.queries(b, &self.linear1, modulated)?;
            let attended = attention.attend(b, rotary.turn(b, q, at.start)?)?; // [D, n, B]
            let mlp = gated(b, &self.linear1, modulated, 3 * self.hidden, self.feed_forward)?; // [M, n, B]
            let y = self.linear2.build(b, b.g.concat(attended, mlp, 0)?)?;
            b.write_tokens(self.joint, at.start, m.gated(x, y, 2)?)
        })
    }
}
