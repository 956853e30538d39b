//! Attention of some tokens at a time to all of them.

use super::layers::join_heads;
use crate::ggml::Tensor;
use crate::stage::Build;
use crate::{Error, Result};

/// Keys and values of all tokens that are looked at.
pub(super) struct Attention {
    k: Tensor, // [d, H, T, B]
    v: Tensor, // [d, H, T, B]
    narrower: Option<Narrower>,
}

/// Items of the batch that do not look at all tokens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Narrower {
    /// The first of them. All behind it are like it.
    pub(super) item: usize,
    /// The first token that they look at.
    pub(super) token: usize,
}

impl Attention {
    /// To tokens whose keys and values, `dims` of `[d, H, T, B]`, come with [`set`](Attention::set): all of them before the first
    /// query looks at them.
    pub(super) fn new(b: &Build<'_>, dims: [usize; 4]) -> Result<Attention> {
        Ok(Attention { k: b.gathered(dims)?, v: b.gathered(dims)?, narrower: None })
    }

    /// To tokens whose keys and values, `[d, H, T, B]` each, are there.
    pub(super) fn of(k: Tensor, v: Tensor) -> Attention {
        Attention { k, v, narrower: None }
    }

    /// The same, with some items of the batch that look at less.
    pub(super) fn narrowed(self, narrower: Option<Narrower>) -> Attention {
        Attention { narrower, ..self }
    }

    /// To `count` of these tokens alone, from `first` on.
    pub(super) fn part(&self, b: &Build<'_>, first: usize, count: usize) -> Result<Attention> {
        Ok(Attention::of(b.g.slice(self.k, 2, first, count)?, b.g.slice(self.v, 2, first, count)?))
    }

    /// The keys and values of the tokens from `start` on.
    pub(super) fn set(&self, b: &Build<'_>, start: usize, (k, v): (Tensor, Tensor)) -> Result<()> {
        b.gather(self.k, start, k)?;
        b.gather(self.v, start, v)
    }

    /// What some queries `q [d, H, n, B]` see: `[D, n, B]`.
    pub(super) fn attend(&self, b: &Build<'_>, q: Tensor) -> Result<Tensor> {
        let Some(Narrower { item, token }) = self.narrower else { return self.attend_masked(b, q, None) };
        let [_, _, tokens, items] = b.g.shape(self.k)?.dims();
        let of = |x, start, count| b.g.slice(x, 3, start, count);
        if item == 0 {
            let narrow = |x| b.g.slice(x, 2, token, tokens - token);
            return see(b, [q, narrow(self.k)?, narrow(self.v)?], None);
        }
        let all = see(b, [of(q, 0, item)?, of(self.k, 0, item)?, of(self.v, 0, item)?], None)?;
        let others = |x| b.g.slice(of(x, item, items - item)?, 2, token, tokens - token);
        let less = see(b, [of(q, item, items - item)?, others(self.k)?, others(self.v)?], None)?;
        b.g.concat(all, less, 2)
    }

    /// The same with `mask [T, n]`, of F16, added to the scores. Neighbouring heads of queries may share keys and values.
    pub(super) fn attend_masked(&self, b: &Build<'_>, q: Tensor, mask: Option<Tensor>) -> Result<Tensor> {
        see(b, [q, self.k, self.v], mask)
    }

    /// What some queries `q [d, H, n, B]` see where items of the batch have different lengths: in `lengths`, for so many items in turn
    /// the tokens that there are, `[items, tokens]`; what stands behind them is not looked at.
    pub(super) fn attend_each(&self, b: &Build<'_>, q: Tensor, lengths: &[[usize; 2]]) -> Result<Tensor> {
        let (mut attended, mut first) = (None, 0);
        for &[items, tokens] in lengths {
            let of = |x| b.g.slice(x, 3, first, items);
            let there = |x| b.g.slice(of(x)?, 2, 0, tokens);
            let part = Attention::of(there(self.k)?, there(self.v)?).attend(b, of(q)?)?; // [D, n, items]
            attended = Some(match attended {
                Some(before) => b.g.concat(before, part, 2)?,
                None => part,
            });
            first += items;
        }
        attended.ok_or_else(|| Error::graph("attention", "no items"))
    }
}

/// What queries see of keys and values, `[d, H, .., B]` each, with a mask that is added to the scores: `[D, n, B]`.
fn see(b: &Build<'_>, [q, k, v]: [Tensor; 3], mask: Option<Tensor>) -> Result<Tensor> {
    let [d, ..] = b.g.shape(q)?.dims();
    let tokens_second = |x| b.g.permute(x, [0, 2, 1, 3]);
    let (q, k, v) = (tokens_second(q)?, tokens_second(k)?, tokens_second(v)?);
    join_heads(b.g, b.g.flash_attention(q, k, v, 1.0 / (d as f32).sqrt(), mask)?)
}
