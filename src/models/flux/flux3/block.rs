//! One kind of block for each mode by itself and for all of them in one sequence: attention and feed-forward side by side.

use super::config::Config;
use super::ports::{DRAWN_TOKENS, REFERENCE_TOKENS, TEXT_OF_PASSES};
use crate::Result;
use crate::ggml::Tensor;
use crate::models::attention::Attention;
use crate::models::flux::attention::QkNorm;
use crate::models::flux::flux2::gated;
use crate::models::flux::modulation::Modulation;
use crate::models::flux::shared::Shared;
use crate::models::layers::Linear;
use crate::stage::{Block, Build, Port, Symbol};
use crate::weights::{Role, Scope};

/// What tokens are of. Among all tokens, those of the picture that is drawn stand first and those of the text last, so that texts may end
/// early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Image,
    Reference,
    Text,
}

impl Mode {
    pub(super) const ALL: [Mode; 3] = [Mode::Image, Mode::Reference, Mode::Text];

    /// What it is called among the weights of modulations.
    pub(super) fn name(self) -> &'static str {
        match self {
            Mode::Image => "image",
            Mode::Reference => "image_cond",
            Mode::Text => "txt",
        }
    }

    /// Where its tokens begin among all.
    pub(super) fn first(self, b: &Build<'_>) -> Result<usize> {
        match self {
            Mode::Image => Ok(0),
            Mode::Reference => b.dim(DRAWN_TOKENS),
            Mode::Text => b.dim(Symbol::IMAGE_TOKENS),
        }
    }

    /// How many there are of them.
    pub(super) fn count(self, b: &Build<'_>) -> Result<usize> {
        b.dim(match self {
            Mode::Image => DRAWN_TOKENS,
            Mode::Reference => REFERENCE_TOKENS,
            Mode::Text => Symbol::TEXT_TOKENS,
        })
    }
}

/// What modulates the tokens of a mode.
#[derive(Clone, Copy)]
pub(super) struct Modulated {
    pub(super) mode: Mode,
    /// `[3D, N]`, or `[3D, 1]` if it is the same in all steps.
    pub(super) port: Port,
    pub(super) in_all_steps: bool,
}

impl Modulated {
    fn read<'b, 'a>(self, b: &'b Build<'a>, shared: &Shared) -> Result<Modulation<'b, 'a>> {
        match self.in_all_steps {
            true => Modulation::of_all(b, self.port, 3),
            false => Modulation::read(b, self.port, shared, 3),
        }
    }
}

/// The tokens that a block works on.
pub(super) struct Stream {
    /// `[D, .., B]`
    pub(super) port: Port,
    /// Whether `port` has the tokens of one mode and no others.
    pub(super) is_alone: bool,
    pub(super) modes: Vec<Modulated>,
}

/// Tokens of one mode, in pieces `[D, n, B]`: each with where it begins in the block's port, and among all tokens.
struct Tokens<'b, 'a> {
    modulation: Modulation<'b, 'a>,
    pieces: Vec<(Tensor, usize, usize)>,
}

impl Stream {
    /// All its tokens, and how many they are.
    fn tokens<'b, 'a>(&self, b: &'b Build<'a>, shared: &Shared) -> Result<(Vec<Tokens<'b, 'a>>, usize)> {
        let (mut all, mut count) = (Vec::with_capacity(self.modes.len()), 0);
        for modulated in &self.modes {
            let (first, own) = (modulated.mode.first(b)?, modulated.mode.count(b)?);
            let start = if self.is_alone { 0 } else { first };
            let mut pieces = Vec::new();
            for piece in b.token_ranges(own) {
                let at = start + piece.start;
                pieces.push((b.piece(self.port, at..at + piece.len())?, at, first + piece.start));
            }
            if own > 0 {
                all.push(Tokens { modulation: modulated.read(b, shared)?, pieces });
            }
            count += own;
        }
        Ok((all, count))
    }

    /// Items of the batch and their tokens, for each pass in turn; none if all have as many as there is room for.
    fn lengths(&self, b: &Build<'_>) -> Result<Vec<[usize; 2]>> {
        let (mut has_text, mut before) = (false, 0);
        for modulated in &self.modes {
            match modulated.mode {
                Mode::Text => has_text = true,
                other => before += other.count(b)?,
            }
        }
        let passes = b.dim(Symbol::PASSES)?;
        let (items, longest) = (b.dim(Symbol::BATCH)? / passes, b.dim(Symbol::TEXT_TOKENS)?);
        let texts = TEXT_OF_PASSES.iter().take(passes).map(|&symbol| b.dim(symbol)).collect::<Result<Vec<_>>>()?;
        if !has_text || texts.iter().all(|&text| text == longest) {
            return Ok(Vec::new());
        }
        Ok(texts.into_iter().map(|text| [items, before + text]).collect())
    }
}

/// Attention of a stream's tokens to each other, and the gated feed-forward layer beside it.
pub(super) struct ParallelBlock {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    norm: QkNorm,
    attn_out: Linear,
    mlp_in: Linear,
    mlp_out: Linear,
    width: usize,
    heads: usize,
    feed_forward: usize,
    stream: Stream,
    shared: Shared,
}

impl ParallelBlock {
    pub(super) fn declare(s: &mut Scope<'_>, config: &Config, stream: Stream, shared: Shared) -> Result<ParallelBlock> {
        let (hidden, feed_forward) = (config.hidden(), config.feed_forward());
        let (width, heads) = (config.attention_head_dim, config.num_attention_heads);
        let mut linear =
            |name: &str, inputs, outputs, role| Linear::declare_unbiased(&mut s.sub(name), inputs, outputs, role);
        let q_proj = linear("q_proj", hidden, hidden, Role::MatMul)?;
        let k_proj = linear("k_proj", hidden, hidden, Role::MatMul)?;
        let v_proj = linear("v_proj", hidden, hidden, Role::MatMul)?;
        let attn_out = linear("attn_out", hidden, hidden, Role::MatMul)?;
        let mlp_in = linear("mlp_in", hidden, 2 * feed_forward, Role::MatMul)?;
        // The product of gate and input may leave F16's range.
        let mlp_out = linear("mlp_out", feed_forward, hidden, Role::WideMatMul)?;
        let norm = QkNorm::sized(&mut s.sub("norm"), width, heads)?;
        Ok(ParallelBlock {
            q_proj,
            k_proj,
            v_proj,
            norm,
            attn_out,
            mlp_in,
            mlp_out,
            width,
            heads,
            feed_forward,
            stream,
            shared,
        })
    }
}

impl Block for ParallelBlock {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let rotary = self.shared.rotary;
        let (all, count) = self.stream.tokens(b, &self.shared)?;
        let lengths = self.stream.lengths(b)?;
        if count == 0 {
            return Ok(());
        }
        // The first of all tokens that are attended to.
        let before = all.first().and_then(|tokens| tokens.pieces.first()).map_or(0, |(_, _, first)| *first);
        let attention = Attention::new(b, [self.width, self.heads, count, b.dim(Symbol::BATCH)?])?;
        for Tokens { modulation, pieces } in &all {
            for &(x, _, first) in pieces {
                let x = modulation.modulate(x, 0)?;
                let k = self.norm.keys(b, &self.k_proj, x)?;
                let v = b.g.split_rows(self.v_proj.build(b, x)?, self.heads)?;
                attention.set(b, first - before, (rotary.turn(b, k, first)?, v))?;
            }
        }
        for Tokens { modulation, pieces } in &all {
            for &(x, at, first) in pieces {
                let modulated = modulation.modulate(x, 0)?;
                let q = rotary.turn(b, self.norm.queries(b, &self.q_proj, modulated)?, first)?;
                let attended = match lengths.is_empty() {
                    true => attention.attend(b, q)?,
                    false => attention.attend_each(b, q, &lengths)?,
                };
                let inner = gated(b, &self.mlp_in, modulated, 0, self.feed_forward)?; // [M, n, B]
                let y = b.g.add(self.attn_out.build(b, attended)?, self.mlp_out.build(b, inner)?)?;
                b.write_tokens(self.stream.port, at, modulation.gated(x, y, 2)?)?;
            }
        }
        Ok(())
    }
}
