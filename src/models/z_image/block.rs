//! One kind of block for picture, prompt, and both in one sequence.

use super::config::Config;
use super::ports::{HEAD_EPS, Ports, TEXT_OF_PASSES};
use crate::Result;
use crate::ggml::Tensor;
use crate::models::attention::Attention;
use crate::models::layers::{Last, Linear, RmsNorm};
use crate::stage::{Build, Port, Symbol};
use crate::weights::{Role, Scope};

/// What `linear` makes of `x [A, B]`. With one column, products are rounded in another way than with several: one item is computed twice,
/// so that a picture is the same in a batch and alone.
pub(super) fn of_items(b: &Build<'_>, linear: &Linear, x: Tensor) -> Result<Tensor> {
    let [_, items, ..] = b.g.shape(x)?.dims();
    match items {
        1 => b.g.slice(linear.build(b, b.g.concat(x, x, 1)?)?, 1, 0, 1),
        _ => linear.build(b, x),
    }
}

/// The tokens that a block works on.
#[derive(Clone, Copy)]
pub(super) struct Stream {
    port: Port,
    has_image: bool,
    has_text: bool,
}

impl Stream {
    pub(super) fn image(port: Port) -> Stream {
        Stream { port, has_image: true, has_text: false }
    }

    pub(super) fn text(port: Port) -> Stream {
        Stream { port, has_image: false, has_text: true }
    }

    pub(super) fn joint(port: Port) -> Stream {
        Stream { port, has_image: true, has_text: true }
    }

    /// Where its tokens begin in the rotary tables: the picture's stand before the prompt's.
    fn start(self, b: &Build<'_>) -> Result<usize> {
        if self.has_image { Ok(0) } else { b.dim(Symbol::IMAGE_TOKENS) }
    }

    /// Items of the batch and their tokens, for each pass in turn; none if all have as many as there is room for.
    fn lengths(self, b: &Build<'_>) -> Result<Vec<[usize; 2]>> {
        let passes = b.dim(Symbol::PASSES)?;
        if !self.has_text {
            return Ok(Vec::new());
        }
        let (items, longest) = (b.dim(Symbol::BATCH)? / passes, b.dim(Symbol::TEXT_TOKENS)?);
        let image = if self.has_image { b.dim(Symbol::IMAGE_TOKENS)? } else { 0 };
        let texts = TEXT_OF_PASSES.iter().take(passes).map(|&symbol| b.dim(symbol)).collect::<Result<Vec<_>>>()?;
        if texts.iter().all(|&text| text == longest) {
            return Ok(Vec::new());
        }
        Ok(texts.into_iter().map(|text| [items, image + text]).collect())
    }
}

/// What time does to a block: scales of what goes in, gates of what comes out.
struct Modulation {
    linear: Linear,
    vector: Port,
    condition: Port,
}

/// A block's modulation in one step; `None` if time does nothing to it.
struct Modulated<'b, 'a> {
    b: &'b Build<'a>,
    rows: Option<Tensor>, // [4D, 1, B]
    hidden: usize,
    /// Attention asks for what is scaled twice.
    last: Last<(Tensor, usize)>,
}

impl Modulated<'_, '_> {
    fn part(&self, i: usize) -> Result<Option<Tensor>> {
        self.rows.map(|rows| self.b.g.slice(rows, 0, i * self.hidden, self.hidden)).transpose()
    }

    /// `norm(x) (1 + scale)`, with the scale at part `i`.
    fn scaled(&self, norm: &RmsNorm, x: Tensor, i: usize) -> Result<Tensor> {
        let g = self.b.g;
        self.last.of((x, i), || {
            let normal = norm.build(self.b, x)?;
            match self.part(i)? {
                Some(scale) => g.mul(normal, g.scale_bias(scale, 1.0, 1.0)?),
                None => Ok(normal),
            }
        })
    }

    /// `x + tanh(gate) norm(y)`, with the gate at part `i`.
    fn gated(&self, norm: &RmsNorm, x: Tensor, y: Tensor, i: usize) -> Result<Tensor> {
        let g = self.b.g;
        let normal = norm.build(self.b, y)?;
        match self.part(i)? {
            Some(gate) => g.add(x, g.mul(normal, g.tanh(gate)?)?),
            None => g.add(x, normal),
        }
    }
}

/// Attention and feed-forward, each with a norm before and one behind.
pub(super) struct Block {
    qkv: Linear,
    q_norm: RmsNorm,
    k_norm: RmsNorm,
    out: Linear,
    attention_norm1: RmsNorm,
    attention_norm2: RmsNorm,
    w1: Linear,
    w2: Linear,
    w3: Linear,
    ffn_norm1: RmsNorm,
    ffn_norm2: RmsNorm,
    modulation: Option<Modulation>,
    hidden: usize,
    heads: usize,
    stream: Stream,
    /// Other tokens that it works on as well, and the size that steps have in which it does.
    copied: Option<(Stream, Symbol)>,
    cos: Port,
    sin: Port,
}

impl Block {
    /// The block that works on `stream`; `vector` is what it knows of time.
    pub(super) fn declare(
        s: &mut Scope<'_>,
        config: &Config,
        stream: Stream,
        ports: &Ports,
        vector: Option<Port>,
    ) -> Result<Block> {
        let (hidden, inner) = (config.dim, config.feed_forward());
        let mut linear =
            |name: &str, inputs, outputs, role| Linear::declare_unbiased(&mut s.sub(name), inputs, outputs, role);
        // What comes out of the last layer of each part leaves F16's range.
        let qkv = linear("attention.qkv", hidden, 3 * hidden, Role::MatMul)?;
        let out = linear("attention.out", hidden, hidden, Role::WideMatMul)?;
        let w1 = linear("feed_forward.w1", hidden, inner, Role::MatMul)?;
        let w2 = linear("feed_forward.w2", inner, hidden, Role::WideMatMul)?;
        let w3 = linear("feed_forward.w3", hidden, inner, Role::MatMul)?;
        let mut norm = |name: &str, width, eps| RmsNorm::declare(&mut s.sub(name), "weight", width, eps);
        let (q_norm, k_norm) = (
            norm("attention.q_norm", config.head_width(), HEAD_EPS)?,
            norm("attention.k_norm", config.head_width(), HEAD_EPS)?,
        );
        let (attention_norm1, attention_norm2) =
            (norm("attention_norm1", hidden, config.norm_eps)?, norm("attention_norm2", hidden, config.norm_eps)?);
        let (ffn_norm1, ffn_norm2) =
            (norm("ffn_norm1", hidden, config.norm_eps)?, norm("ffn_norm2", hidden, config.norm_eps)?);
        let modulation = match vector {
            Some(vector) => {
                let mut s = s.sub("adaLN_modulation.0");
                let linear = Linear::declare(&mut s, config.time_width(), 4 * hidden, Role::MatMul)?;
                Some(Modulation { linear, vector, condition: ports.condition })
            }
            None => None,
        };
        Ok(Block {
            qkv,
            q_norm,
            k_norm,
            out,
            attention_norm1,
            attention_norm2,
            w1,
            w2,
            w3,
            ffn_norm1,
            ffn_norm2,
            modulation,
            hidden,
            heads: config.n_heads,
            stream,
            copied: None,
            cos: ports.cos,
            sin: ports.sin,
        })
    }

    /// The same that works on other tokens as well, in steps where a size is not 0.
    pub(super) fn with(self, copied: Option<(Stream, Symbol)>) -> Block {
        Block { copied, ..self }
    }

    fn modulated<'b, 'a>(&self, b: &'b Build<'a>) -> Result<Modulated<'b, 'a>> {
        let rows = match &self.modulation {
            Some(Modulation { linear, vector, condition }) => {
                let vector = b.g.get_rows(b.read(*vector)?, b.read(*condition)?)?; // [A, B]
                let rows = of_items(b, linear, vector)?; // [4D, B]
                let [width, batch, ..] = b.g.shape(rows)?.dims();
                Some(b.g.reshape(rows, &[width, 1, batch])?)
            }
            None => None,
        };
        Ok(Modulated { b, rows, hidden: self.hidden, last: Last::default() })
    }

    /// Queries or keys `x [d, H, n, B]` of the tokens from `start` on, turned to their positions.
    fn turn(&self, b: &Build<'_>, x: Tensor, start: usize) -> Result<Tensor> {
        let [_, _, tokens, _] = b.g.shape(x)?.dims();
        let of = |table| b.g.slice(b.read(table)?, 2, start, tokens);
        b.g.rotate_pairs(x, of(self.cos)?, of(self.sin)?)
    }

    /// The outputs of `qkv` from `parts` on, split into heads.
    fn heads(&self, b: &Build<'_>, x: Tensor, part: usize) -> Result<Tensor> {
        let outputs = part * self.hidden..(part + 1) * self.hidden;
        b.g.split_rows(self.qkv.build_outputs(b, x, outputs)?, self.heads)
    }

    /// Works on `stream`.
    fn run(&self, b: &Build<'_>, m: &Modulated<'_, '_>, stream: Stream) -> Result<()> {
        let (start, lengths, port) = (stream.start(b)?, stream.lengths(b)?, stream.port);
        let tokens = b.shape(port)?.dims()[1];
        let dims = [self.hidden / self.heads, self.heads, tokens, b.dim(Symbol::BATCH)?];
        let attention = Attention::new(b, dims)?;
        b.tokens(port, |x, at| {
            let x = m.scaled(&self.attention_norm1, x, 0)?;
            let k = self.turn(b, self.k_norm.build(b, self.heads(b, x, 1)?)?, start + at.start)?;
            attention.set(b, at.start, (k, self.heads(b, x, 2)?))
        })?;
        b.tokens(port, |x, at| {
            let q = self.heads(b, m.scaled(&self.attention_norm1, x, 0)?, 0)?;
            let q = self.turn(b, self.q_norm.build(b, q)?, start + at.start)?;
            let attended = match lengths.is_empty() {
                true => attention.attend(b, q)?,
                false => attention.attend_each(b, q, &lengths)?,
            };
            let x = m.gated(&self.attention_norm2, x, self.out.build(b, attended)?, 1)?;
            let scaled = m.scaled(&self.ffn_norm1, x, 2)?;
            let inner = b.g.silu(self.w1.build(b, scaled)?)?; // [F, n, B]
            let y = self.w2.build(b, b.g.mul(inner, self.w3.build(b, scaled)?)?)?;
            b.write_tokens(port, at.start, m.gated(&self.ffn_norm2, x, y, 3)?)
        })
    }
}

impl crate::stage::Block for Block {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let m = self.modulated(b)?;
        self.run(b, &m, self.stream)?;
        match self.copied {
            Some((stream, runs_if)) if b.dim_if_any(runs_if) != Some(0) => self.run(b, &m, stream),
            _ => Ok(()),
        }
    }
}
