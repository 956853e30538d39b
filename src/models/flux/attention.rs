//! What both kinds of blocks do for their attention.

use super::config::Config;
use super::ports::EPS;
use super::shared::{SEEN_BY, Sizes, UNSEEN};
use crate::Result;
use crate::ggml::Tensor;
use crate::models::attention::{Attention, Narrower};
use crate::models::layers::{Linear, RmsNorm};
use crate::stage::{Build, Symbol};
use crate::weights::Scope;

/// The normalisation of queries and keys.
pub(super) struct QkNorm {
    query_norm: RmsNorm,
    key_norm: RmsNorm,
    width: usize,
    heads: usize,
}

impl QkNorm {
    pub(super) fn declare(s: &mut Scope<'_>, config: &Config) -> Result<QkNorm> {
        QkNorm::sized(s, config.attention_head_dim, config.num_attention_heads)
    }

    /// Of `heads` heads of `width` numbers.
    pub(super) fn sized(s: &mut Scope<'_>, width: usize, heads: usize) -> Result<QkNorm> {
        let query_norm = RmsNorm::declare(&mut s.sub("query_norm"), "scale", width, EPS)?;
        let key_norm = RmsNorm::declare(&mut s.sub("key_norm"), "scale", width, EPS)?;
        Ok(QkNorm { query_norm, key_norm, width, heads })
    }

    /// Attention to all tokens of text and image.
    pub(super) fn attention(&self, b: &Build<'_>, sizes: Sizes) -> Result<Attention> {
        let items = b.dim(sizes.batch)?;
        let narrower = match (b.dim_if_any(SEEN_BY), b.dim_if_any(UNSEEN)) {
            // A ControlNet computes for the prompt, in every pass.
            (Some(item), Some(token)) if sizes.batch == Symbol::BATCH && item < items => Some(Narrower { item, token }),
            _ => None,
        };
        Ok(Attention::new(b, [self.width, self.heads, b.dim(sizes.joint)?, items])?.narrowed(narrower))
    }

    /// The queries, `[d, H, n, B]`, of `x [D, n, B]`. `qkv` is the layer that makes queries, keys and values, in this order.
    pub(super) fn queries(&self, b: &Build<'_>, qkv: &Linear, x: Tensor) -> Result<Tensor> {
        let q = qkv.build_outputs(b, x, 0..self.width * self.heads)?;
        self.query_norm.build(b, b.g.split_rows(q, self.heads)?)
    }

    /// The keys, `[d, H, n, B]`, of `x [D, n, B]`, which `k` makes alone.
    pub(super) fn keys(&self, b: &Build<'_>, k: &Linear, x: Tensor) -> Result<Tensor> {
        self.key_norm.build(b, b.g.split_rows(k.build(b, x)?, self.heads)?)
    }

    /// The keys and values, `[d, H, n, B]` each, of `x [D, n, B]`.
    pub(super) fn keys_and_values(&self, b: &Build<'_>, qkv: &Linear, x: Tensor) -> Result<(Tensor, Tensor)> {
        let hidden = self.width * self.heads;
        let both = qkv.build_outputs(b, x, hidden..3 * hidden)?; // [2D, n, B]
        let heads = |i: usize| b.g.split_rows(b.g.slice(both, 0, i * hidden, hidden)?, self.heads);
        Ok((self.key_norm.build(b, heads(0)?)?, heads(1)?))
    }
}
