//! Attention by two matrix products, for devices whose own attention [sums in F16](super::Device::sums_attention_in_f16).

use std::ops::Range;

use ggml_sys as sys;

use super::{Graph, Tensor};
use crate::Result;

/// How many bytes of scores are made at a time.
const SCORES_BYTES: usize = 32 << 20;

/// Into how many parts the queries of all tokens are divided at most, so that graphs stay small however many tokens there are.
const MOST_PARTS: usize = 512;

/// Queries of a part at least, where there are as many: products of few columns go through kernels that sum in another order.
const FEWEST_QUERIES: usize = 32;

/// A power of two that brings shares into the middle of F16's range, to which products on such devices round what they multiply. A share of
/// one among thousands of tokens is below the normal numbers of F16 otherwise, where it has fewer digits, or none.
const SHARES_SCALE: f32 = 16384.0;

impl Graph {
    /// What [`flash_attention`](Self::flash_attention) gives, for operands that were checked, where every query sees a key. Keys and
    /// values become F16, as the products would make them. Scores take up to `bytes` at a time.
    pub(super) fn attend_by_products(
        &self,
        [q, k, v]: [Tensor; 3],
        scale: f32,
        mask: Option<Tensor>,
        bytes: usize,
    ) -> Result<Tensor> {
        let ([_, queries, heads, batch], [_, keys, ..]) = (self.shape(q)?.dims(), self.shape(k)?.dims());
        let attention = Products {
            g: self,
            q: self.contiguous(q)?,
            k: self.rounded(k)?,
            v: self.rounded(self.permute(v, [1, 0, 2, 3])?)?,
            scale,
            mask,
            most: queries_at_a_time(keys, heads.saturating_mul(batch), bytes),
        };
        let attended = attention.of(0..queries)?; // [d, n, heads, batch]
        let attended = self.scale(attended, SHARES_SCALE.recip())?;
        self.contiguous(self.permute(attended, [0, 2, 1, 3])?)
    }

    /// The same with as many scores at a time as are usual.
    pub(super) fn attend_in_parts(&self, qkv: [Tensor; 3], scale: f32, mask: Option<Tensor>) -> Result<Tensor> {
        self.attend_by_products(qkv, scale, mask, SCORES_BYTES)
    }

    /// `a`, which is F32, in F16 and in order.
    fn rounded(&self, a: Tensor) -> Result<Tensor> {
        let raw = self.raw(a)?;
        // SAFETY: a live F32 tensor. ggml copies it, whatever its strides are.
        self.node("round", |context| unsafe { sys::ggml_cast(context, raw, sys::GGML_TYPE_F16) })
    }
}

/// How many queries look at `keys` in all of some `heads` at a time, so that their scores take up to `bytes`.
fn queries_at_a_time(keys: usize, heads: usize, bytes: usize) -> usize {
    let row_bytes = keys.saturating_mul(heads).saturating_mul(size_of::<f32>()).max(1);
    (bytes / row_bytes).max(keys.div_ceil(MOST_PARTS)).max(FEWEST_QUERIES)
}

/// `softmax(scale * q k^T + mask) v` times [`SHARES_SCALE`], computed for some queries at a time: these do not depend on each other.
struct Products<'a> {
    g: &'a Graph,
    /// `[d, n, heads, batch]`
    q: Tensor,
    /// `[d, m, groups, batch]`, F16
    k: Tensor,
    /// `[m, d, groups, batch]`, F16
    v: Tensor,
    scale: f32,
    /// `[m, n]`, F16
    mask: Option<Tensor>,
    /// How many queries are computed at a time.
    most: usize,
}

impl Products<'_> {
    /// The result for some `queries`: `[d, queries, heads, batch]`. By halves, so that results are copied a few times only.
    fn of(&self, queries: Range<usize>) -> Result<Tensor> {
        if queries.len() <= self.most {
            return self.part(queries);
        }
        let middle = queries.start + queries.len() / 2;
        let (first, second) = (self.of(queries.start..middle)?, self.of(middle..queries.end)?);
        self.g.concat(first, second, 1)
    }

    fn part(&self, queries: Range<usize>) -> Result<Tensor> {
        let g = self.g;
        let of = |all| g.slice(all, 1, queries.start, queries.len());
        let scores = g.mul_mat(self.k, of(self.q)?)?; // [m, queries, heads, batch]
        let shares = g.soft_max(scores, self.mask.map(of).transpose()?, self.scale)?;
        g.mul_mat(self.v, g.scale(shares, SHARES_SCALE)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_as_large_as_allowed() {
        // FLUX.1 at 1024x1024: 62 parts of 32 MiB.
        assert_eq!(queries_at_a_time(4608, 24, SCORES_BYTES), 75);
        // A film of Wan's larger model: 512 parts, of more bytes.
        assert_eq!(queries_at_a_time(32760, 40, SCORES_BYTES), 64);
        assert!(queries_at_a_time(256, 24, SCORES_BYTES) > 256);
        assert_eq!(queries_at_a_time(usize::MAX, 2, 1), usize::MAX.div_ceil(MOST_PARTS));
        assert_eq!(queries_at_a_time(0, 0, 1), FEWEST_QUERIES);
    }
}
