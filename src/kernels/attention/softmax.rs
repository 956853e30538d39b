//! Softmax of rows whose scores come in blocks: what comes is weighed against the largest score so far, and what came before is
//! weighed anew if a larger one comes.
//!
//! Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018). Scores come multiplied with `log2 e`, and powers are
//! powers of two.

use super::micro::Micro;
use super::powers::{TOGETHER, larger, power_of_two};

/// What is known of a row so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    /// The largest score.
    most: f32,
    /// The sum of `2^(score - most)`.
    sum: f32,
}

impl Row {
    /// Of no scores.
    pub(super) const EMPTY: Row = Row { most: f32::NEG_INFINITY, sum: 0.0 };

    /// Replaces each of `scores` by `2^(score - most)`, whose `most` is the largest of them and of those that came before. Gives the
    /// factor for sums of what came before.
    ///
    /// # Safety
    /// The processor has the instructions of `M`.
    #[inline(always)]
    pub(super) unsafe fn weigh<M: Micro>(&mut self, scores: &mut [[f32; TOGETHER]]) -> f32 {
        let before = self.most;
        // SAFETY: the caller's promise.
        self.most = larger(before, unsafe { M::largest(scores) });
        // Where every key is forbidden: nothing is taken from minus infinity, so that all powers are 0.
        let most = if self.most == f32::NEG_INFINITY { 0.0 } else { self.most };
        // SAFETY: as above.
        let sum = unsafe { M::powers(scores, most) };
        let factor = power_of_two(before - most);
        self.sum = self.sum.mul_add(factor, sum);
        factor
    }

    /// Takes in scores whose largest is `most`, and the sum of their `2^(score - most)`. Gives the factors for sums of what came before
    /// and for sums that are relative to `most`.
    #[inline(always)]
    pub(super) fn join(&mut self, most: f32, sum: f32) -> [f32; 2] {
        let before = self.most;
        self.most = larger(before, most);
        // As in `weigh`.
        let all = if self.most == f32::NEG_INFINITY { 0.0 } else { self.most };
        let factors = [power_of_two(before - all), power_of_two(most - all)];
        self.sum = self.sum.mul_add(factors[0], sum * factors[1]);
        factors
    }

    /// One over the sum; 0 where every key was forbidden, so that the result is 0, as ggml's is.
    #[inline(always)]
    pub(super) fn reciprocal(self) -> f32 {
        if self.sum == 0.0 { 0.0 } else { self.sum.recip() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::micro::Portable;
    use super::*;

    fn weigh(row: &mut Row, scores: &mut [[f32; TOGETHER]]) -> f32 {
        // SAFETY: plain Rust.
        unsafe { row.weigh::<Portable>(scores) }
    }

    #[test]
    fn rows_are_weighed_as_they_come() {
        let mut row = Row::EMPTY;
        let mut scores = [f32::NEG_INFINITY; TOGETHER];
        assert_eq!((weigh(&mut row, &mut [scores]), row.reciprocal()), (0.0, 0.0));
        scores[3] = 5.0;
        let mut block = [scores];
        assert_eq!(weigh(&mut row, &mut block), 0.0);
        assert_eq!((block[0][3], block[0][4], row.sum), (1.0, 0.0, 1.0));
        scores[4] = 7.0;
        let mut block = [scores];
        assert_eq!(weigh(&mut row, &mut block), 0.25);
        assert_eq!((block[0][3], block[0][4], row.sum), (0.25, 1.0, 1.5));
    }
}
