//! Softmax of rows whose scores come in blocks: what comes is weighed against the largest score so far, and what came before is
//! weighed anew if a larger one comes.
//!
//! Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018). Scores come multiplied with `log2 e`, and powers are
//! powers of two.
//!
//! As in `nonlinearity.rs`, formulas are written once, for the compiler to make vectors of them.

use super::super::nonlinearity::EXP;
use super::micro::Micro;

/// Scores that are taken at once: rows are a multiple of it long.
pub(super) const TOGETHER: usize = 16;

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

/// The largest score: [`Micro::largest`].
#[inline(always)]
pub(super) fn largest(scores: &[[f32; TOGETHER]]) -> f32 {
    let mut largest = [f32::NEG_INFINITY; TOGETHER];
    for scores in scores {
        largest.iter_mut().zip(scores).for_each(|(most, score)| *most = larger(*most, *score));
    }
    halve(largest, larger)
}

/// Powers of two of scores, and their sum: [`Micro::powers`].
#[inline(always)]
pub(super) fn powers(scores: &mut [[f32; TOGETHER]], most: f32) -> f32 {
    let mut sums = [0.0; TOGETHER];
    for scores in scores {
        for (score, sum) in scores.iter_mut().zip(&mut sums) {
            let power = power_of_two(*score - most);
            *score = power;
            *sum += power;
        }
    }
    halve(sums, |a, b| a + b)
}

/// The larger one, or `a` if `b` is not a number.
#[inline(always)]
pub(super) fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// All numbers in one: the first half takes in the second one, until one number is left. No number waits for more than four others.
#[inline(always)]
pub(super) fn halve<T: Copy>(mut numbers: [T; TOGETHER], join: impl Fn(T, T) -> T) -> T {
    let mut len = TOGETHER / 2;
    while len > 0 {
        let (left, right) = numbers.split_at_mut(len);
        left.iter_mut().zip(right).for_each(|(left, right)| *left = join(*left, *right));
        len /= 2;
    }
    numbers[0]
}

/// `2^r` for `r` up to a half either way: the polynomial of [`EXP`] for `r ln 2`.
pub(super) const EXP2: [f32; 7] = {
    let mut coefficients = [0.0; 7];
    let (mut i, mut power) = (6, 1.0);
    loop {
        coefficients[i] = (EXP[i] * power) as f32;
        if i == 0 {
            break coefficients;
        }
        (i, power) = (i - 1, power * std::f64::consts::LN_2);
    }
};

/// Added to a number, it leaves the exponent of its power of two in the last bits.
pub(super) const ROUNDER: f32 = ((3 << 22) + 127) as f32;

/// `2^x` for `x <= 0` to within a unit in the last place: exactly 1 for 0, and exactly 0 below -126.5, minus infinity
/// included. What is not a number stays so.
#[inline(always)]
pub(super) fn power_of_two(x: f32) -> f32 {
    // The exponent of -127 is that of 0.
    let x = if x < -127.0 { -127.0 } else { x };
    let rounded = x + ROUNDER;
    let r = x - (rounded - ROUNDER);
    let mut value = EXP2[0];
    for coefficient in &EXP2[1..] {
        value = value.mul_add(r, *coefficient);
    }
    value * f32::from_bits(rounded.to_bits() << 23)
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
    fn powers_are_within_a_unit_in_the_last_place() {
        for i in 0..=126_000 {
            let x = -(i as f32) / 1000.0;
            let exact = f64::from(x).exp2();
            let unit = f64::from(f32::EPSILON) * (exact.log2().floor()).exp2();
            let error = (f64::from(power_of_two(x)) - exact).abs() / unit;
            assert!(error <= 1.0, "{x}: {error}");
        }
        assert_eq!(power_of_two(0.0), 1.0);
        for small in [-126.6, -127.0, -1e4, f32::MIN, f32::NEG_INFINITY] {
            assert_eq!(power_of_two(small), 0.0, "{small}");
        }
        assert!(power_of_two(f32::NAN).is_nan());
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
