//! Double blocks: text and picture in streams of their own, attending to each other. A block is three stages: attention, and the feed-forward
//! layer of each stream. Each has a third of the weights, so that a device has room for no more than that at a time.

use super::config::Config;
use super::modulation::{At, Modulation};
use super::ports::{DRAWN_TOKENS, EPS, Extents, Ports, TEXT_OF_PASSES};
use crate::Result;
use crate::ggml::Tensor;
use crate::models::attention::Attention;
use crate::models::layers::{Linear, RmsNorm};
use crate::stage::{Block, Build, Port, Symbol};
use crate::weights::{Role, Scope};

/// What the layers of a stream are called.
pub(super) struct Names {
    /// Queries, keys and values.
    qkv: [&'static str; 3],
    /// The norms of queries and keys.
    norms: [&'static str; 2],
    out: &'static str,
    mlp: &'static str,
    /// What the stage of its feed-forward layer is called.
    pub(super) stage: &'static str,
}

/// Those of the picture.
pub(super) const IMAGE: Names = Names {
    qkv: ["to_q", "to_k", "to_v"],
    norms: ["norm_q", "norm_k"],
    out: "to_out.0",
    mlp: "img_mlp",
    stage: "image",
};

/// Those of the text.
pub(super) const TEXT: Names = Names {
    qkv: ["add_q_proj", "add_k_proj", "add_v_proj"],
    norms: ["norm_added_q", "norm_added_k"],
    out: "to_add_out",
    mlp: "txt_mlp",
    stage: "text",
};

/// How one of the two streams of a block attends to both.
pub(super) struct Stream {
    q: Linear,
    k: Linear,
    v: Linear,
    norm_q: RmsNorm,
    norm_k: RmsNorm,
    out: Linear,
    heads: usize,
    port: Port,
    modulation: Port,
}

impl Stream {
    pub(super) fn declare(
        s: &mut Scope<'_>,
        config: &Config,
        names: &Names,
        (port, modulation): (Port, Port),
    ) -> Result<Stream> {
        let (hidden, width) = (config.hidden(), config.attention_head_dim);
        let mut attn = s.sub("attn");
        let [q, k, v] = names.qkv;
        let mut linear = |name| Linear::declare(&mut attn.sub(name), hidden, hidden, Role::MatMul);
        let (q, k, v) = (linear(q)?, linear(k)?, linear(v)?);
        let mut norm = |name| RmsNorm::declare(&mut attn.sub(name), "weight", width, EPS);
        let (norm_q, norm_k) = (norm(names.norms[0])?, norm(names.norms[1])?);
        // What comes out of it leaves F16's range.
        let out = Linear::declare(&mut attn.sub(names.out), hidden, hidden, Role::WideMatMul)?;
        Ok(Stream { q, k, v, norm_q, norm_k, out, heads: config.num_attention_heads, port, modulation })
    }

    /// The keys and values, `[d, H, n, B]` each, of `x [D, n, B]`.
    fn keys_and_values(&self, b: &Build<'_>, x: Tensor) -> Result<(Tensor, Tensor)> {
        let k = self.norm_k.build(b, b.g.split_rows(self.k.build(b, x)?, self.heads)?)?;
        Ok((k, b.g.split_rows(self.v.build(b, x)?, self.heads)?))
    }

    /// The queries, `[d, H, n, B]`, of `x [D, n, B]`.
    fn queries(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        self.norm_q.build(b, b.g.split_rows(self.q.build(b, x)?, self.heads)?)
    }
}

/// What the stages of all blocks know.
#[derive(Clone, Copy)]
pub(super) struct Shared {
    pub(super) ports: Ports,
    pub(super) width: usize,
    /// Whether what stands behind the picture that is drawn is modulated as at the last of all times.
    pub(super) zero_cond_t: bool,
    pub(super) extents: Extents,
}

/// Some tokens of a stream that are modulated alike.
struct Tokens<'b, 'a> {
    port: Port,
    modulation: Modulation<'b, 'a>,
    /// The first of them in their stream, and how many they are.
    first: usize,
    count: usize,
}

/// Text and picture with weights of their own, attending to each other.
pub(super) struct JointAttention {
    pub(super) img: Stream,
    pub(super) txt: Stream,
    pub(super) shared: Shared,
}

/// The feed-forward layer of one of the two streams.
pub(super) struct FeedForward {
    mlp_0: Linear,
    mlp_2: Linear,
    port: Port,
    modulation: Port,
    is_image: bool,
    shared: Shared,
    /// What ControlNets add to the image's tokens.
    residuals: Vec<Residual>,
}

impl FeedForward {
    /// That of the image, whose tokens get what ControlNets add, or that of the text if there are no `residuals` at all.
    pub(super) fn declare(
        s: &mut Scope<'_>,
        config: &Config,
        (names, residuals): (&Names, Option<Vec<Residual>>),
        (port, modulation, shared): (Port, Port, Shared),
    ) -> Result<FeedForward> {
        let (hidden, inner) = (config.hidden(), config.feed_forward());
        let mut mlp = s.sub(names.mlp);
        let mlp_0 = Linear::declare(&mut mlp.sub("net.0.proj"), hidden, inner, Role::MatMul)?;
        // What comes out of it leaves F16's range.
        let mlp_2 = Linear::declare(&mut mlp.sub("net.2"), inner, hidden, Role::WideMatMul)?;
        let is_image = residuals.is_some();
        Ok(FeedForward { mlp_0, mlp_2, port, modulation, is_image, shared, residuals: residuals.unwrap_or_default() })
    }
}

/// What a ControlNet adds to the image's tokens: `[D, Ti, N]`. Each of its items counts for every pass.
#[derive(Clone, Copy)]
pub(super) struct Residual {
    pub(super) port: Port,
    /// Where the ControlNet does not run, this is 0.
    pub(super) runs_if: Option<Symbol>,
}

/// Where shift, scale and gate of attention, and of the feed-forward layer, stand in a modulation.
const ATTENTION: [usize; 3] = [0, 1, 2];
const FEED_FORWARD: [usize; 3] = [3, 4, 5];

impl Shared {
    /// The tokens of the image in `port`, by how they are modulated: what is drawn first.
    fn image<'b, 'a>(&self, b: &'b Build<'a>, (port, modulation): (Port, Port)) -> Result<Vec<Tokens<'b, 'a>>> {
        let image = b.dim(Symbol::IMAGE_TOKENS)?;
        let drawn = if self.zero_cond_t { b.dim(DRAWN_TOKENS)? } else { image };
        let of = |at, first, count| {
            let modulation = Modulation::read(b, modulation, at, 6)?;
            Ok::<_, crate::Error>(Tokens { port, modulation, first, count })
        };
        let mut all = vec![of(self.of_step(), 0, drawn)?];
        if drawn < image {
            all.push(of(At::Last, drawn, image - drawn)?);
        }
        Ok(all)
    }

    /// The tokens of the text in `port`.
    fn text<'b, 'a>(&self, b: &'b Build<'a>, (port, modulation): (Port, Port)) -> Result<Tokens<'b, 'a>> {
        let modulation = Modulation::read(b, modulation, self.of_step(), 6)?;
        Ok(Tokens { port, modulation, first: 0, count: b.dim(self.extents.text)? })
    }

    fn of_step(&self) -> At {
        At::Step(self.ports.condition, self.extents.items)
    }

    /// Items of the batch and their tokens, for each pass in turn; none if all have as many as there is room for.
    fn lengths(&self, b: &Build<'_>) -> Result<Vec<[usize; 2]>> {
        if self.extents.items != Symbol::BATCH {
            return Ok(Vec::new());
        }
        let passes = b.dim(Symbol::PASSES)?;
        let (items, longest) = (b.dim(Symbol::BATCH)? / passes, b.dim(Symbol::TEXT_TOKENS)?);
        let image = b.dim(Symbol::IMAGE_TOKENS)?;
        let texts = TEXT_OF_PASSES.iter().take(passes).map(|&symbol| b.dim(symbol)).collect::<Result<Vec<_>>>()?;
        if texts.iter().all(|&text| text == longest) {
            return Ok(Vec::new());
        }
        Ok(texts.into_iter().map(|text| [items, image + text]).collect())
    }

    /// Queries or keys `x [d, H, n, B]` of the tokens from `start` on, turned to their positions.
    fn turn(&self, b: &Build<'_>, x: Tensor, start: usize) -> Result<Tensor> {
        let [_, _, tokens, _] = b.g.shape(x)?.dims();
        let of = |table| b.g.slice(b.read(table)?, 2, start, tokens);
        b.g.rotate_pairs(x, of(self.ports.cos)?, of(self.ports.sin)?)
    }
}

impl Tokens<'_, '_> {
    /// Calls `compute` for a piece of them at a time, with where it begins in their stream.
    fn pieces(&self, b: &Build<'_>, mut compute: impl FnMut(Tensor, usize) -> Result<()>) -> Result<()> {
        for piece in b.token_ranges(self.count) {
            let start = self.first + piece.start;
            compute(b.piece(self.port, start..start + piece.len())?, start)?;
        }
        Ok(())
    }

    /// `x`, modulated for attention or the feed-forward layer.
    fn modulate(&self, x: Tensor, [shift, scale, _]: [usize; 3]) -> Result<Tensor> {
        self.modulation.modulate(x, (shift, scale))
    }

    /// `x` with what attention or the feed-forward layer made of it added.
    fn gated(&self, x: Tensor, y: Tensor, [.., gate]: [usize; 3]) -> Result<Tensor> {
        self.modulation.gated(x, y, gate)
    }
}

impl Block for JointAttention {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let JointAttention { img, txt, shared } = self;
        let Extents { items, joint, .. } = shared.extents;
        // Those of the picture stand before the text's, so that texts may end early.
        let mut all = Vec::new();
        for tokens in shared.image(b, (img.port, img.modulation))? {
            all.push((img, tokens, 0));
        }
        all.push((txt, shared.text(b, (txt.port, txt.modulation))?, b.dim(Symbol::IMAGE_TOKENS)?));
        let lengths = shared.lengths(b)?;
        let attention = Attention::new(b, [shared.width, img.heads, b.dim(joint)?, b.dim(items)?])?;
        for (stream, tokens, start) in &all {
            tokens.pieces(b, |x, at| {
                let (k, v) = stream.keys_and_values(b, tokens.modulate(x, ATTENTION)?)?;
                attention.set(b, start + at, (shared.turn(b, k, start + at)?, v))
            })?;
        }
        for (stream, tokens, start) in &all {
            tokens.pieces(b, |x, at| {
                let q = stream.queries(b, tokens.modulate(x, ATTENTION)?)?;
                let q = shared.turn(b, q, start + at)?;
                let attended = match lengths.is_empty() {
                    true => attention.attend(b, q)?,
                    false => attention.attend_each(b, q, &lengths)?,
                };
                b.write_tokens(stream.port, at, tokens.gated(x, stream.out.build(b, attended)?, ATTENTION)?)
            })?;
        }
        Ok(())
    }
}

impl Block for FeedForward {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let of = (self.port, self.modulation);
        let all = if self.is_image { self.shared.image(b, of)? } else { vec![self.shared.text(b, of)?] };
        for (i, tokens) in all.iter().enumerate() {
            // ControlNets know of what is drawn alone.
            let residuals = if i == 0 { &self.residuals[..] } else { &[] };
            tokens.pieces(b, |x, at| {
                let inner = self.mlp_0.build(b, tokens.modulate(x, FEED_FORWARD)?)?; // [F, n, B]
                let y = self.mlp_2.build(b, b.g.gelu_tanh(inner)?)?;
                let x = with_residuals(b, tokens.gated(x, y, FEED_FORWARD)?, at, residuals)?;
                b.write_tokens(self.port, at, x)
            })?;
        }
        Ok(())
    }
}

/// `x [D, n, B]`, the image's tokens from `start` on, with those of `residuals` added that are there.
fn with_residuals(b: &Build<'_>, x: Tensor, start: usize, residuals: &[Residual]) -> Result<Tensor> {
    let mut sum = x;
    for residual in residuals {
        if residual.runs_if.and_then(|symbol| b.dim_if_any(symbol)) != Some(0) {
            let [_, tokens, ..] = b.g.shape(x)?.dims();
            sum = b.g.add(sum, b.piece(residual.port, start..start + tokens)?)?;
        }
    }
    Ok(sum)
}
