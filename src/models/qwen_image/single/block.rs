//! Blocks: prompt and pictures through the same weights, the prompt without looking ahead, the picture that is drawn looking at all.

use super::config::Config;
use super::ports::{BETWEEN, PREFIX_TOKENS, Ports, REFERENCES, TEXT_OF_PASSES};
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

    /// Items of the batch and the tokens that the pictures look at which are drawn, for each pass in turn; none if all have as many as there is room for.
    fn lengths(b: &Build<'_>) -> Result<Vec<[usize; 2]>> {
        let passes = b.dim(Symbol::PASSES)?;
        let (items, longest) = (b.dim(Symbol::BATCH)? / passes, b.dim(Symbol::TEXT_TOKENS)?);
        // The last of the text stands behind all else.
        let others = b.dim(Symbol::IMAGE_TOKENS)? + b.dim(PREFIX_TOKENS)? - longest;
        let texts = TEXT_OF_PASSES.iter().take(passes).map(|&symbol| b.dim(symbol)).collect::<Result<Vec<_>>>()?;
        if texts.iter().all(|&text| text == longest) {
            return Ok(Vec::new());
        }
        Ok(texts.into_iter().map(|text| [items, others + text]).collect())
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

/// Tokens in a row before the picture that is drawn: where they begin and how many they are.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    pub(super) start: usize,
    pub(super) count: usize,
    /// Where they stand in the text; `None` for those of a picture.
    pub(super) in_text: Option<usize>,
}

/// All of these, as they stand.
pub(super) fn pieces(b: &Build<'_>) -> Result<Vec<Piece>> {
    let (mut pieces, mut start, mut text) = (Vec::new(), 0, 0);
    for between in BETWEEN.iter().take(b.dim(REFERENCES)?) {
        let (gap, picture) = (b.dim(between.text)?, b.dim(between.picture)?);
        pieces.push(Piece { start, count: gap, in_text: Some(text) });
        pieces.push(Piece { start: start + gap, count: picture, in_text: None });
        (start, text) = (start + gap + picture, text + gap);
    }
    pieces.push(Piece { start, count: b.dim(Symbol::TEXT_TOKENS)? - text, in_text: Some(text) });
    Ok(pieces)
}

impl Block {
    /// What comes of a piece of the prompt or of a picture in it: tokens of a text look at those before them, those of a picture at all of
    /// it as well. What is looked at stands behind the picture that is drawn in `attention`.
    fn go_on(&self, b: &Build<'_>, zero: &Modulation<'_, '_>, attention: &Attention, piece: Piece) -> Result<()> {
        let (all, image, prefix) = (b.read(self.txt)?, b.dim(Symbol::IMAGE_TOKENS)?, b.dim(PREFIX_TOKENS)?);
        let (seen, mask) = match piece.in_text {
            Some(text) => {
                let mask = b.g.to_f16(b.read(self.ports.mask)?)?;
                (attention.part(b, image, prefix)?, Some(b.g.slice(mask, 1, text, piece.count)?))
            }
            None => (attention.part(b, image, piece.start + piece.count)?, None),
        };
        for at in b.token_ranges(piece.count) {
            let start = piece.start + at.start;
            let x = if at.len() == prefix { all } else { b.g.slice(all, 1, start, at.len())? };
            let q = self.q.build(b, zero.scaled(x, self.eps, ATTENTION[0])?)?;
            let q = self.turned(b, &self.norm_q, q, image + start)?;
            let mask = match mask {
                Some(mask) => Some(b.g.slice(mask, 1, at.start, at.len())?),
                None => None,
            };
            let attended = seen.attend_masked(b, q, mask)?;
            b.write_tokens(self.txt, start, self.finish(b, zero, x, attended)?)?;
        }
        Ok(())
    }
}

impl crate::stage::Block for Block {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let (image, prefix) = (b.dim(Symbol::IMAGE_TOKENS)?, b.dim(PREFIX_TOKENS)?);
        let step = Modulation::read(b, self.modulation, At::Step(self.ports.condition, Symbol::BATCH), PARTS)?;
        let zero = Modulation::read(b, self.modulation, At::Last, PARTS)?;
        // The tokens of the picture that is drawn stand before the text's, so that texts may end early.
        let attention = Attention::new(b, [self.width, self.heads, image + prefix, b.dim(Symbol::BATCH)?])?;
        b.tokens(self.txt, |x, at| {
            self.look_at(b, &attention, zero.scaled(x, self.eps, ATTENTION[0])?, image + at.start)
        })?;
        b.tokens(self.img, |x, at| self.look_at(b, &attention, step.scaled(x, self.eps, ATTENTION[0])?, at.start))?;
        for piece in pieces(b)? {
            self.go_on(b, &zero, &attention, piece)?;
        }
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
