//! Blocks: prompt and picture through the same weights, the prompt without looking ahead, the picture looking at both.

use super::config::Config;
use super::ports::{Ports, TEXT_OF_PASSES};
use crate::Result;
use crate::ggml::Tensor;
use crate::models::attention::Attention;
use crate::models::layers::{Linear, RmsNorm};
use crate::models::qwen_image::modulation::{At, Modulation};
use crate::stage::{Build, Port, Symbol};
use crate::weights::{Role, Scope};

/// Where scale and gate of attention, and of the feed-forward layer, stand in a modulation.
const ATTENTION: [usize; 2] = [0, 1];
const FEED_FORWARD: [usize; 2] = [2, 3];
const PARTS: usize = 4;

/// Attention and feed-forward.
pub(super) struct Block {
    q: Linear,
    k: Linear,
    v: Linear,
    norm_q: RmsNorm,
    norm_k: RmsNorm,
    out: Linear,
    gate: Linear,
    up: Linear,
    down: Linear,
    width: usize,
    heads: usize,
    eps: f32,
    img: Port,
    txt: Port,
    modulation: Port,
    ports: Ports,
}

impl Block {
    pub(super) fn declare(
        s: &mut Scope<'_>,
        config: &Config,
        ports: &Ports,
        ([img, txt], modulation): ([Port; 2], Port),
    ) -> Result<Block> {
        let (hidden, inner, width) = (config.hidden(), config.feed_forward(), config.attention_head_dim);
        let mut linear =
            |name: &str, inputs, outputs, role| Linear::declare_unbiased(&mut s.sub(name), inputs, outputs, role);
        let mut projection = |name| linear(name, hidden, hidden, Role::MatMul);
        let (q, k, v) = (projection("attn.to_q")?, projection("attn.to_k")?, projection("attn.to_v")?);
        // What comes out of these two leaves F16's range.
        let out = linear("attn.to_out.0", hidden, hidden, Role::WideMatMul)?;
        let gate = linear("img_mlp.gate_layer", hidden, inner, Role::MatMul)?;
        let up = linear("img_mlp.proj", hidden, inner, Role::MatMul)?;
        let down = linear("img_mlp.out", inner, hidden, Role::WideMatMul)?;
        let mut norm = |name| RmsNorm::declare(&mut s.sub(name), "weight", width, config.eps);
        let (norm_q, norm_k) = (norm("attn.norm_q")?, norm("attn.norm_k")?);
        let (heads, eps, ports) = (config.num_attention_heads, config.eps, *ports);
        Ok(Block { q, k, v, norm_q, norm_k, out, gate, up, down, width, heads, eps, img, txt, modulation, ports })
    }

    /// Items of the batch and the tokens that their pictures look at, for each pass in turn; none if all have as many as there is room for.
    fn lengths(b: &Build<'_>) -> Result<Vec<[usize; 2]>> {
        let passes = b.dim(Symbol::PASSES)?;
        let (items, longest) = (b.dim(Symbol::BATCH)? / passes, b.dim(Symbol::TEXT_TOKENS)?);
        let image = b.dim(Symbol::IMAGE_TOKENS)?;
        let texts = TEXT_OF_PASSES.iter().take(passes).map(|&symbol| b.dim(symbol)).collect::<Result<Vec<_>>>()?;
        if texts.iter().all(|&text| text == longest) {
            return Ok(Vec::new());
        }
        Ok(texts.into_iter().map(|text| [items, image + text]).collect())
    }

    /// Queries or keys `x [D, n, B]` of the tokens from `start` on, normalised and turned to their positions: `[d, H, n, B]`.
    fn turned(&self, b: &Build<'_>, norm: &RmsNorm, x: Tensor, start: usize) -> Result<Tensor> {
        let x = norm.build(b, b.g.split_rows(x, self.heads)?)?;
        let [_, _, tokens, _] = b.g.shape(x)?.dims();
        let of = |table| b.g.slice(b.read(table)?, 2, start, tokens);
        b.g.rotate_pairs(x, of(self.ports.cos)?, of(self.ports.sin)?)
    }

    /// Gives `attention` the keys and values of `x [D, n, B]`, modulated tokens from `start` on.
    fn look_at(&self, b: &Build<'_>, attention: &Attention, x: Tensor, start: usize) -> Result<()> {
        let k = self.turned(b, &self.norm_k, self.k.build(b, x)?, start)?;
        attention.set(b, start, (k, b.g.split_rows(self.v.build(b, x)?, self.heads)?))
    }

    /// What comes of `x [D, n, B]`, which saw `attended`.
    fn finish(&self, b: &Build<'_>, m: &Modulation<'_, '_>, x: Tensor, attended: Tensor) -> Result<Tensor> {
        let x = m.gated_softly(x, self.out.build(b, attended)?, ATTENTION[1])?;
        let scaled = m.scaled(x, self.eps, FEED_FORWARD[0])?;
        let gate = b.g.silu(self.gate.build(b, scaled)?)?; // [F, n, B]
        let y = self.down.build(b, b.g.mul(gate, self.up.build(b, scaled)?)?)?;
        m.gated_softly(x, y, FEED_FORWARD[1])
    }
}

impl crate::stage::Block for Block {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let (image, text) = (b.dim(Symbol::IMAGE_TOKENS)?, b.dim(Symbol::TEXT_TOKENS)?);
        let step = Modulation::read(b, self.modulation, At::Step(self.ports.condition, Symbol::BATCH), PARTS)?;
        let zero = Modulation::read(b, self.modulation, At::Last, PARTS)?;
        // The picture's tokens stand before the text's, so that texts may end early.
        let attention = Attention::new(b, [self.width, self.heads, image + text, b.dim(Symbol::BATCH)?])?;
        b.tokens(self.txt, |x, at| {
            self.look_at(b, &attention, zero.scaled(x, self.eps, ATTENTION[0])?, image + at.start)
        })?;
        b.tokens(self.img, |x, at| self.look_at(b, &attention, step.scaled(x, self.eps, ATTENTION[0])?, at.start))?;
        let (own, mask) = (attention.part(b, image, text)?, b.g.to_f16(b.read(self.ports.mask)?)?);
        b.tokens(self.txt, |x, at| {
            let q = self.q.build(b, zero.scaled(x, self.eps, ATTENTION[0])?)?;
            let q = self.turned(b, &self.norm_q, q, image + at.start)?;
            let attended = own.attend_masked(b, q, Some(b.g.slice(mask, 1, at.start, at.len())?))?;
            b.write_tokens(self.txt, at.start, self.finish(b, &zero, x, attended)?)
        })?;
        let lengths = Block::lengths(b)?;
        b.tokens(self.img, |x, at| {
            let q = self.q.build(b, step.scaled(x, self.eps, ATTENTION[0])?)?;
            let q = self.turned(b, &self.norm_q, q, at.start)?;
            let attended = match lengths.is_empty() {
                true => attention.attend(b, q)?,
                false => attention.attend_each(b, q, &lengths)?,
            };
            b.write_tokens(self.img, at.start, self.finish(b, &step, x, attended)?)
        })
    }
}
