//! Scores become weights: softmax, as in `softmax.rs`, whose powers of two are whole numbers.

use super::super::powers::{TOGETHER, halve, larger};
use super::units::{ROUNDER, WEIGHT_BITS};

/// What scores are computed from: sums of products of codes, `units` of the keys and one of the query, and what is added.
pub(in crate::kernels::attention) struct Terms<'a> {
    pub(super) products: &'a [[i32; TOGETHER]],
    pub(super) units: &'a [[f32; TOGETHER]],
    pub(super) unit: f32,
    pub(super) mask: Option<&'a [[f32; TOGETHER]]>,
}

/// [`Micro::scores`](super::micro::Micro::scores).
#[inline(always)]
pub(super) fn scores(terms: &Terms<'_>, keys: usize, scores: &mut [[f32; TOGETHER]]) -> f32 {
    let mut largest = [f32::NEG_INFINITY; TOGETHER];
    let Terms { products, units, unit, mask } = *terms;
    for (i, ((scores, products), units)) in scores.iter_mut().zip(products).zip(units).enumerate() {
        for ((score, product), key_unit) in scores.iter_mut().zip(products).zip(units) {
            *score = *product as f32 * key_unit * unit;
        }
        if let Some(mask) = mask {
            let mask = scores.iter_mut().zip(&mask[i]);
            mask.for_each(|(score, number)| *score = number.mul_add(std::f32::consts::LOG2_E, *score));
        }
        if (i + 1) * TOGETHER > keys {
            scores[keys - i * TOGETHER..].fill(f32::NEG_INFINITY);
        }
        largest.iter_mut().zip(scores).for_each(|(most, score)| *most = larger(*most, *score));
    }
    halve(largest, larger)
}

/// What weights are relative to. Where every key is forbidden nothing is taken from minus infinity, so that all weights are 0.
#[inline(always)]
pub(super) fn start(most: f32) -> f32 {
    if most == f32::NEG_INFINITY { 0.0 } else { most }
}

/// [`Micro::weigh`](super::micro::Micro::weigh).
#[inline(always)]
pub(super) fn weigh(scores: &[[f32; TOGETHER]], most: f32, weights: &mut [[i16; TOGETHER]]) -> f32 {
    let from = start(most);
    let mut sums = [0.0; TOGETHER];
    for (scores, weights) in scores.iter().zip(weights) {
        for ((score, weight), sum) in scores.iter().zip(weights).zip(&mut sums) {
            let rounded = power(*score - from);
            *weight = rounded.to_bits() as i16;
            // What is not a number stays so.
            *sum += rounded - ROUNDER;
        }
    }
    halve(sums, |a, b| a + b)
}

/// `2^x` for `r` up to a half either way, with the least largest error relative to it: 2.6e-6 (found by Remez's algorithm).
pub(super) const EXP2: [f32; 5] = [0.009_570_102, 0.055_917_86, 0.240_247_45, 0.693_121_8, 0.999_999_3];

/// Added to a number, it leaves the exponent of its weight in the last bits.
pub(super) const EXPONENT: f32 = ((3 << 22) + 127 + WEIGHT_BITS) as f32;
/// Far enough for a weight of 0, and no exponent leaves its range.
pub(super) const LEAST: f32 = -30.0;

/// `2^x` of the largest weight, a whole number, in the last bits of the result, for `x <= 0`. What is not a number stays so.
#[inline(always)]
fn power(x: f32) -> f32 {
    let x = if x < LEAST { LEAST } else { x };
    let rounded = x + EXPONENT;
    let r = x - (rounded - EXPONENT);
    let mut value = EXP2[0];
    for coefficient in &EXP2[1..] {
        value = value.mul_add(r, *coefficient);
    }
    value.mul_add(f32::from_bits(rounded.to_bits() << 23), ROUNDER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_are_the_nearest_whole_numbers() {
        for i in 0..=40_000 {
            let x = -(i as f32) / 1000.0;
            let exact = f64::from(1 << WEIGHT_BITS) * f64::from(x).exp2();
            let error = (f64::from(power(x) - ROUNDER) - exact).abs();
            assert!(error <= 0.5 + 3e-6 * exact, "{x}: {error}");
        }
        assert_eq!(power(0.0) - ROUNDER, (1 << WEIGHT_BITS) as f32);
        assert_eq!(power(f32::NEG_INFINITY), ROUNDER);
        assert!(power(f32::NAN).is_nan());
    }
}
