//! Attention of some tokens at a time to all of them.

use super::layers::join_heads;
use crate::Result;
use crate::ggml::Tensor;
use crate::stage::Build;

/// Keys and values of all tokens that are looked at.
pub(super) struct Attention {
    k: Tensor, // [d, H, T, B]
    v: Tensor, // [d, H, T, B]
}

impl Attention {
    /// To tokens whose keys and values, `dims` of `[d, H, T, B]`, come with [`set`](Attention::set): all of them before the first
    /// query looks at them.
    pub(super) fn new(b: &Build<'_>, dims: [usize; 4]) -> Result<Attention> {
        Ok(Attention { k: b.g.unfilled(&dims)?, v: b.g.unfilled(&dims)? })
    }

    /// To tokens whose keys and values, `[d, H, T, B]` each, are there.
    pub(super) fn of(k: Tensor, v: Tensor) -> Attention {
        Attention { k, v }
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
