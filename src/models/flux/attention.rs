//! What both kinds of blocks do for their attention.

use super::{Config, EPS, Ports};
use crate::Result;
use crate::ggml::Tensor;
use crate::models::layers::{Linear, RmsNorm, join_heads};
use crate::stage::{Build, Port, Symbol};
use crate::weights::Scope;

/// Where the rotary tables are.
#[derive(Clone, Copy)]
pub(super) struct Rotary {
    cos: Port,
    sin: Port,
}

impl Rotary {
    pub(super) fn of(ports: &Ports) -> Rotary {
        Rotary { cos: ports.cos, sin: ports.sin }
    }

    /// Queries or keys `x [d, H, n, B]` of the tokens from `start` on, turned to their positions.
    pub(super) fn turn(self, b: &Build<'_>, x: Tensor, start: usize) -> Result<Tensor> {
        let [_, _, tokens, _] = b.g.shape(x)?.dims();
        let of = |table| b.g.slice(b.read(table)?, 2, start, tokens);
        b.g.rotate_pairs(x, of(self.cos)?, of(self.sin)?)
    }
}

/// Keys and values of all tokens. They are made before the first query looks at them, some tokens at a time.
pub(super) struct Attention {
    k: Tensor, // [d, H, T, B]
    v: Tensor, // [d, H, T, B]
}

impl Attention {
    /// For `tokens` tokens, whose keys and values come with [`set`](Attention::set).
    pub(super) fn new(b: &Build<'_>, norm: &QkNorm, tokens: usize) -> Result<Attention> {
        let dims = [norm.width, norm.heads, tokens, b.dim(Symbol::BATCH)?];
        Ok(Attention { k: b.g.unfilled(&dims)?, v: b.g.unfilled(&dims)? })
    }

    /// The keys and values of the tokens from `start` on.
    pub(super) fn set(&self, b: &Build<'_>, start: usize, (k, v): (Tensor, Tensor)) -> Result<()> {
        b.g.fill(self.k, 2, start, k)?;
        b.g.fill(self.v, 2, start, v)
    }

    /// What some queries `q [d, H, n, B]` see: `[D, n, B]`.
    pub(super) fn attend(&self, b: &Build<'_>, q: Tensor) -> Result<Tensor> {
        let [d, ..] = b.g.shape(q)?.dims();
        let tokens_second = |x| b.g.permute(x, [0, 2, 1, 3]);
        let (q, k, v) = (tokens_second(q)?, tokens_second(self.k)?, tokens_second(self.v)?);
        join_heads(b.g, b.g.flash_attention(q, k, v, 1.0 / (d as f32).sqrt(), None)?)
    }
}

/// The normalisation of queries and keys.
pub(super) struct QkNorm {
    query_norm: RmsNorm,
    key_norm: RmsNorm,
    width: usize,
    heads: usize,
}

impl QkNorm {
    pub(super) fn declare(s: &mut Scope<'_>, config: &Config) -> Result<QkNorm> {
        let width = config.attention_head_dim;
        Ok(QkNorm {
            query_norm: RmsNorm::declare(&mut s.sub("query_norm"), "scale", width, EPS)?,
            key_norm: RmsNorm::declare(&mut s.sub("key_norm"), "scale", width, EPS)?,
            width,
            heads: config.num_attention_heads,
        })
    }

    /// The queries, `[d, H, n, B]`, of `x [D, n, B]`. `qkv` is the layer that makes queries, keys and values, in this order.
    pub(super) fn queries(&self, b: &Build<'_>, qkv: &Linear, x: Tensor) -> Result<Tensor> {
        let q = qkv.build_outputs(b, x, 0..self.width * self.heads)?;
        self.query_norm.build(b, b.g.split_rows(q, self.heads)?)
    }

    /// The keys and values, `[d, H, n, B]` each, of `x [D, n, B]`.
    pub(super) fn keys_and_values(&self, b: &Build<'_>, qkv: &Linear, x: Tensor) -> Result<(Tensor, Tensor)> {
        let hidden = self.width * self.heads;
        let both = qkv.build_outputs(b, x, hidden..3 * hidden)?; // [2D, n, B]
        let heads = |i: usize| b.g.split_rows(b.g.slice(both, 0, i * hidden, hidden)?, self.heads);
        Ok((self.key_norm.build(b, heads(0)?)?, heads(1)?))
    }
}
