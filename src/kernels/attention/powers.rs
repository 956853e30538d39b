//! Powers of two of scores, and the largest of these.
//!
//! As in `nonlinearity.rs`, formulas are written once, for the compiler to make vectors of them.

use super::super::nonlinearity::EXP;

/// Scores that are taken at once: rows are a multiple of it long.
pub(super) const TOGETHER: usize = 16;

/// The largest score: [`Micro::largest`](super::micro::Micro::largest).
#[inline(always)]
pub(super) fn largest(scores: &[[f32; TOGETHER]]) -> f32 {
    let mut largest = [f32::NEG_INFINITY; TOGETHER];
    for scores in scores {
        largest.iter_mut().zip(scores).for_each(|(most, score)| *most = larger(*most, *score));
    }
    halve(largest, larger)
}

/// Powers of two of scores, and their sum: [`Micro::powers`](super::micro::Micro::powers).
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
    use super::*;

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
}
