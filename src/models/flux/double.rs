//! Double blocks: text and image in streams of their own.

use std::ops::Range;

use super::Config;
use super::attention::{Attention, QkNorm, Rotary};
use super::modulation::Modulation;
use crate::Result;
use crate::ggml::Tensor;
use crate::models::layers::Linear;
use crate::stage::{Block, Build, Port, Symbol};
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

/// A stream in one step: its modulation, and where its tokens stand among all.
struct Running<'s, 'b, 'a> {
    stream: &'s Stream,
    m: Modulation<'b, 'a>,
    tokens: Range<usize>,
    rotary: Rotary,
}

impl Running<'_, '_, '_> {
    /// The pieces in which it is computed, counted from the stream's first token.
    fn pieces(&self) -> Vec<Range<usize>> {
        self.m.b.token_ranges(self.tokens.len())
    }

    fn read(&self, piece: &Range<usize>) -> Result<Tensor> {
        let b = self.m.b;
        b.g.slice(b.read(self.stream.from)?, 1, piece.start, piece.len()) // [D, n, B]
    }

    /// Brings keys and values of the modulated stream. Where that is one piece it is returned, for the queries.
    fn set_attention(&self, attention: &Attention) -> Result<Option<Tensor>> {
        let Running { stream, m, .. } = self;
        let pieces = self.pieces();
        let mut modulated = None;
        for piece in &pieces {
            let start = self.tokens.start + piece.start;
            let x = m.modulate(self.read(piece)?, 0)?;
            modulated = Some(x);
            let (k, v) = stream.norm.keys_and_values(m.b, &stream.qkv, x)?;
            attention.set(m.b, start, (self.rotary.turn(m.b, k, start)?, v))?;
        }
        Ok(modulated.filter(|_| pieces.len() == 1))
    }

    /// The stream after its share of the attention, and after the feed-forward. `modulated` is what
    /// [`set_attention`](Running::set_attention) returned.
    fn advance(&self, attention: &Attention, modulated: Option<Tensor>) -> Result<()> {
        let Running { stream, m, .. } = self;
        let b = m.b;
        for piece in self.pieces() {
            let x = self.read(&piece)?;
            let modulated = modulated.map_or_else(|| m.modulate(x, 0), Ok)?;
            let q = stream.norm.queries(b, &stream.qkv, modulated)?;
            let q = self.rotary.turn(b, q, self.tokens.start + piece.start)?;
            let x = m.gated(x, stream.proj.build(b, attention.attend(b, q)?)?, 2)?;
            let inner = b.g.gelu_tanh(stream.mlp_0.build(b, m.modulate(x, 3)?)?)?; // [M, n, B]
            b.write_tokens(stream.to, piece.start, m.gated(x, stream.mlp_2.build(b, inner)?, 5)?)?;
        }
        Ok(())
    }
}

/// Text and image with weights of their own, attending to each other.
pub(super) struct DoubleBlock {
    pub(super) img: Stream,
    pub(super) txt: Stream,
    pub(super) rotary: Rotary,
    pub(super) condition: Port,
}

impl Block for DoubleBlock {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let (text, all) = (b.dim(Symbol::TEXT_TOKENS)?, b.dim(Symbol::JOINT_TOKENS)?);
        // Text first.
        let streams = [(&self.txt, 0..text), (&self.img, text..all)];
        let [txt, img] = streams.map(|(stream, tokens)| {
            let m = Modulation::read(b, stream.modulation, self.condition, 6)?;
            Ok(Running { stream, m, tokens, rotary: self.rotary })
        });
        let streams = [txt?, img?];
        let attention = Attention::new(b, &self.img.norm, all)?;
        let [txt, img] = [0, 1].map(|i: usize| streams[i].set_attention(&attention));
        streams.iter().zip([txt?, img?]).try_for_each(|(stream, modulated)| stream.advance(&attention, modulated))
    }
}
