//! Transformers over all pixels of a map, as tokens.

use super::config::Config;
use super::ip::Beside;
use super::maps::first;
use crate::Result;
use crate::ggml::Tensor;
use crate::models::attention::Attention;
use crate::models::layers::{GroupNorm, Last, LayerNorm, Linear};
use crate::stage::{Block, Build, Port};
use crate::weights::{Role, Scope};

/// What is added to the variance in the norm before a transformer, and in those inside.
const MAP_EPS: f32 = 1e-6;
const TOKEN_EPS: f32 = 1e-5;

/// How much wider than a token the feed-forward is inside.
const WIDER: usize = 4;

/// Pixels become tokens.
pub(super) struct ProjIn {
    norm: GroupNorm,
    proj_in: Linear,
    from: Port,
    to: Port,
}

impl ProjIn {
    pub(super) fn declare(
        s: &mut Scope<'_>,
        config: &Config,
        channels: usize,
        (from, to): (Port, Port),
    ) -> Result<ProjIn> {
        let norm = GroupNorm::declare(&mut s.sub("norm"), channels, config.norm_num_groups, MAP_EPS)?;
        let proj_in = Linear::declare(&mut s.sub("proj_in"), channels, channels, Role::MatMul)?;
        Ok(ProjIn { norm, proj_in, from, to })
    }
}

impl Block for ProjIn {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let normal = self.norm.build(b, b.read(self.from)?)?; // [w, h, C, B]
        let [w, h, channels, batch] = b.g.shape(normal)?.dims();
        let pixels = b.g.reshape(normal, &[w * h, channels, batch])?;
        let tokens = b.g.contiguous(b.g.permute(pixels, [1, 0, 2, 3])?)?; // [C, T, B]
        b.write(self.to, self.proj_in.build(b, tokens)?)
    }
}

/// Tokens become pixels again, and are added to those that the transformer began with.
pub(super) struct ProjOut {
    pub(super) proj_out: Linear,
    pub(super) tokens: Port,
    pub(super) from: Port,
    pub(super) to: Port,
}

impl Block for ProjOut {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let x = b.read(self.from)?; // [w, h, C, B]
        let tokens = self.proj_out.build(b, b.read(self.tokens)?)?; // [C, T, B]
        let pixels = b.g.permute(tokens, [1, 0, 2, 3])?; // [T, C, B]
        b.write(self.to, b.g.add(x, b.g.reshape(pixels, &b.g.shape(x)?.dims())?)?)
    }
}

/// The projections of one attention.
struct Projections {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: usize,
}

impl Projections {
    /// Of tokens `width` wide that look at those of `context`.
    fn declare(s: &mut Scope<'_>, width: usize, context: usize, heads: usize) -> Result<Projections> {
        let mut linear = |name, inputs| Linear::declare_unbiased(&mut s.sub(name), inputs, width, Role::MatMul);
        let (to_q, to_k, to_v) = (linear("to_q", width)?, linear("to_k", context)?, linear("to_v", context)?);
        let to_out = Linear::declare(&mut s.sub("to_out.0"), width, width, Role::MatMul)?;
        Ok(Projections { to_q, to_k, to_v, to_out, heads })
    }

    /// The queries, `[d, H, n, B]`, of `x [C, n, B]`.
    fn queries(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        b.g.split_rows(self.to_q.build(b, x)?, self.heads)
    }

    /// The keys and values, `[d, H, n, B]` each, of `x [.., n, B]`.
    fn keys_and_values(&self, b: &Build<'_>, x: Tensor) -> Result<(Tensor, Tensor)> {
        let heads = |linear: &Linear| b.g.split_rows(linear.build(b, x)?, self.heads);
        Ok((heads(&self.to_k)?, heads(&self.to_v)?))
    }
}

/// Two linear layers; the first gives twice what the second takes, and one half opens and closes the other by GELU
/// (Shazeer, *GLU Variants Improve Transformer*, arXiv:2002.05202).
struct FeedForward {
    proj: Linear,
    out: Linear,
    inner: usize,
}

impl FeedForward {
    fn declare(s: &mut Scope<'_>, width: usize) -> Result<FeedForward> {
        let inner = WIDER * width;
        let proj = Linear::declare(&mut s.sub("net.0.proj"), width, 2 * inner, Role::MatMul)?;
        Ok(FeedForward { proj, out: Linear::declare(&mut s.sub("net.2"), inner, width, Role::MatMul)?, inner })
    }

    fn build(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        let value = self.proj.build_outputs(b, x, 0..self.inner)?; // [4C, n, B]
        let gate = self.proj.build_outputs(b, x, self.inner..2 * self.inner)?;
        self.out.build(b, b.g.mul(value, b.g.gelu_erf(gate)?)?)
    }
}

/// Attention of the tokens to each other, attention to the prompt, and a feed-forward: each normalised first and added to
/// what came in. Keys and values of the prompt are made in every step: kept for the request they would take 51 MiB of the
/// device for each item of Stable Diffusion XL's batch, to save less than a hundredth of the computation.
pub(super) struct TransformerBlock {
    norm1: LayerNorm,
    attn1: Projections,
    norm2: LayerNorm,
    attn2: Projections,
    norm3: LayerNorm,
    ff: FeedForward,
    tokens: Port,
    context: Port,
    /// What the second attention looks at beside the prompt.
    ip: Option<Beside>,
}

impl TransformerBlock {
    pub(super) fn declare(
        s: &mut Scope<'_>,
        config: &Config,
        (width, heads): (usize, usize),
        (tokens, context, ip): (Port, Port, Option<Beside>),
    ) -> Result<TransformerBlock> {
        let mut norm = |name| LayerNorm::declare(&mut s.sub(name), width, TOKEN_EPS);
        let [norm1, norm2, norm3] = [norm("norm1")?, norm("norm2")?, norm("norm3")?];
        Ok(TransformerBlock {
            norm1,
            attn1: Projections::declare(&mut s.sub("attn1"), width, width, heads)?,
            norm2,
            attn2: Projections::declare(&mut s.sub("attn2"), width, config.cross_attention_dim, heads)?,
            norm3,
            ff: FeedForward::declare(&mut s.sub("ff"), width)?,
            tokens,
            context,
            ip,
        })
    }
}

impl Block for TransformerBlock {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let Self { norm1, attn1, norm2, attn2, norm3, ff, .. } = self;
        let [width, tokens, batch, _] = b.shape(self.tokens)?.dims();
        let all = Attention::new(b, [width / attn1.heads, attn1.heads, tokens, batch])?;
        let context = first(b, b.read(self.context)?, 2, batch)?;
        let (k, v) = attn2.keys_and_values(b, context)?;
        let prompt = Attention::of(k, v);
        let pictures = self.ip.map(|ip| ip.attention(b, attn2.heads)).transpose()?;
        let normal = Last::default();
        b.tokens(self.tokens, |x, at| {
            let normal = normal.of(x, || norm1.build(b, x))?;
            all.set(b, at.start, attn1.keys_and_values(b, normal)?)
        })?;
        b.tokens(self.tokens, |x, at| {
            let normal = normal.of(x, || norm1.build(b, x))?;
            let seen = all.attend(b, attn1.queries(b, normal)?)?; // [C, n, B]
            let x = b.g.add(x, attn1.to_out.build(b, seen)?)?;
            let queries = attn2.queries(b, norm2.build(b, x)?)?;
            let mut seen = prompt.attend(b, queries)?;
            if let Some(pictures) = &pictures {
                seen = b.g.add(seen, pictures.attend(b, queries)?)?;
            }
            let x = b.g.add(x, attn2.to_out.build(b, seen)?)?;
            let x = b.g.add(x, ff.build(b, norm3.build(b, x)?)?)?;
            b.write_tokens(self.tokens, at.start, x)
        })
    }
}
