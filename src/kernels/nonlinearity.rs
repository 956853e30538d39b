//! GELU and SiLU, exact to the last bits.
//!
//! GELU is computed in f64 and rounded once: its exponents are products, whose rounding errors a power would magnify. SiLU needs
//! no product, and f32 is enough.
//!
//! The formulas are written once, for one number and without branches; the compiler makes vectors of them for each instruction
//! set. `mul_add` is one rounding everywhere, so every kernel, every split of the work and every place in a vector give the same
//! bits.

use super::Kernel;

/// A function of one number that stands between two linear layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nonlinearity {
    /// `x * sigmoid(x)`
    Silu,
    /// GELU by the tanh approximation: PyTorch's `gelu(approximate="tanh")`.
    GeluTanh,
    /// GELU by the error function: PyTorch's `gelu`.
    GeluErf,
    /// `x * sigmoid(1.702 x)`
    GeluQuick,
    /// `x`, or 0 where it is negative.
    Relu,
}

impl Nonlinearity {
    /// Replaces each of `numbers` by the function of it: GELU within 0.6 units in the last place, SiLU within 2.5, subnormal
    /// results included, ReLU exactly. NaN stays NaN. Positive infinity stays, and the negative one becomes NaN, as in PyTorch's
    /// formulas; ReLU makes 0 of it.
    ///
    /// A `kernel` that the processor does not have is taken for [`Kernel::Portable`].
    pub fn apply(self, kernel: Kernel, numbers: &mut [f32]) {
        self.apply_by(kernel, None, numbers);
    }

    /// As [`apply`](Self::apply), of the numbers `from`, into `to`. If one is longer, the rest of it is left alone.
    pub fn apply_to(self, kernel: Kernel, from: &[f32], to: &mut [f32]) {
        self.apply_by(kernel, Some(from), to);
    }

    fn apply_by(self, kernel: Kernel, from: Option<&[f32]>, to: &mut [f32]) {
        match kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 | Kernel::AvxVnni if kernel.is_available() => {
                // SAFETY: the processor has the instructions, as was just seen.
                unsafe { by_avx2(self, from, to) }
            }
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512Vnni if kernel.is_available() => {
                // SAFETY: as above.
                unsafe { by_avx512(self, from, to) }
            }
            _ => by_any(self, from, to),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn by_avx2(function: Nonlinearity, from: Option<&[f32]>, to: &mut [f32]) {
    by_any(function, from, to);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
fn by_avx512(function: Nonlinearity, from: Option<&[f32]>, to: &mut [f32]) {
    by_any(function, from, to);
}

// Inlined where the instructions are enabled, as everything is that it calls.
#[inline(always)]
fn by_any(function: Nonlinearity, from: Option<&[f32]>, to: &mut [f32]) {
    match function {
        Nonlinearity::Silu => each(from, to, silu),
        Nonlinearity::GeluTanh => each(from, to, gelu_tanh),
        Nonlinearity::GeluErf => each(from, to, gelu_erf),
        Nonlinearity::GeluQuick => each(from, to, gelu_quick),
        // NaN stays.
        Nonlinearity::Relu => each(from, to, |x| if x < 0.0 { 0.0 } else { x }),
    }
}

#[inline(always)]
fn each(from: Option<&[f32]>, to: &mut [f32], function: impl Fn(f32) -> f32) {
    match from {
        Some(from) => to.iter_mut().zip(from).for_each(|(to, from)| *to = function(*from)),
        None => to.iter_mut().for_each(|number| *number = function(*number)),
    }
}

/// `x * sigmoid(x)`
///
/// Where `e^-x` would pass the largest number it is kept smaller by `SMALL`, and the quotient larger until the end.
#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    /// Added, it leaves a whole number in the last bits.
    const ROUNDER: f32 = (3 << 22) as f32;
    /// 2^-32
    const SMALL: f32 = 1.0 / (1u64 << 32) as f32;
    /// What `ln 2` has beyond single precision.
    const LN_2_REST: f32 = (std::f64::consts::LN_2 - std::f32::consts::LN_2 as f64) as f32;
    // From there on the power is infinite and the result is zero, and `n` still fits an exponent.
    let y = (-x).clamp(-87.0, 110.9);
    let scale = if x < -64.0 { SMALL } else { 1.0 };
    let rounded = y.mul_add(std::f32::consts::LOG2_E, ROUNDER);
    let n = rounded - ROUNDER;
    let r = n.mul_add(-LN_2_REST, n.mul_add(-std::f32::consts::LN_2, y));
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(scale.to_bits()));
    let mut e = EXP[0] as f32;
    for coefficient in &EXP[1..] {
        e = e.mul_add(r, *coefficient as f32);
    }
    x / e.mul_add(power, scale) * scale
}

#[inline(always)]
fn gelu_quick(x: f32) -> f32 {
    let x = f64::from(x);
    by_sigmoid(x, 1.702 * x)
}

/// `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`, which is `x` times the sigmoid of twice what `tanh` is taken of.
#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    /// `2 sqrt(2 / pi)`
    const LINEAR: f64 = std::f64::consts::SQRT_2 * std::f64::consts::FRAC_2_SQRT_PI;
    const CUBIC: f64 = 0.044715 * LINEAR;
    let x = f64::from(x);
    by_sigmoid(x, x * (CUBIC * x).mul_add(x, LINEAR))
}

/// `x * sigmoid(z)`
#[inline(always)]
fn by_sigmoid(x: f64, z: f64) -> f32 {
    (x / (1.0 + exp(-z))) as f32
}

/// `x` times the share of the normal distribution below `x`.
///
/// The share below `-t`, for `t >= 0`, is `exp(-t^2 / 2) w p(q)` with `w = 3 / (3 + t)` and `q = 1 - 2 w`, which goes from -1
/// to 1. The polynomial `p` was fitted to 1e-9 of its values for `t` up to 14.5, where the result vanishes, by least squares whose
/// weights were raised where the error was largest (Lawson's algorithm).
#[inline(always)]
fn gelu_erf(x: f32) -> f32 {
    const P: [f64; 11] = [
        1.815_146_979_417_675_6e-5,
        4.375_070_758_486_088e-5,
        -8.158_522_443_518_779e-5,
        -3.441_744_305_033_301e-4,
        3.415_949_752_977_876e-4,
        2.323_100_750_407_938_7e-3,
        -3.487_506_847_605_973e-3,
        -1.575_422_920_691_297_4e-2,
        7.667_256_665_577_832e-2,
        -1.697_773_304_686_661_6e-1,
        2.430_278_967_899_969_2e-1,
    ];
    let x = f64::from(x);
    let w = 3.0 / (3.0 + x.abs());
    let tail = exp(-0.5 * x * x) * w * polynomial(&P, 1.0 - 2.0 * w);
    let share = if x < 0.0 { tail } else { 1.0 - tail };
    (x * share) as f32
}

/// The polynomial for `e^r`, for `r` up to half of `ln 2` either way: within 3e-9 of it, and fitted as that of [`gelu_erf`].
pub(super) const EXP: [f64; 7] = [
    1.381_446_475_233_612_2e-3,
    8.368_780_622_225_642e-3,
    4.166_839_425_915_862e-2,
    1.666_652_010_554_62e-1,
    4.999_999_341_226_097e-1,
    1.0,
    1.0,
];

/// `e^x` to within 4e-9 of it, up to infinity; below the smallest normal number it stays there.
#[inline(always)]
fn exp(x: f64) -> f64 {
    /// Added, it leaves a whole number in the last bits.
    const ROUNDER: f64 = (3u64 << 51) as f64;
    // From there on `2^n` is infinite, and `n` still fits an exponent.
    let x = x.clamp(-708.0, 709.8);
    let rounded = x.mul_add(std::f64::consts::LOG2_E, ROUNDER);
    let n = rounded - ROUNDER;
    let r = n.mul_add(-std::f64::consts::LN_2, x);
    let power = f64::from_bits((rounded.to_bits() << 52).wrapping_add(1f64.to_bits()));
    polynomial(&EXP, r) * power
}

/// The polynomial of these coefficients, the highest first.
#[inline(always)]
fn polynomial<const N: usize>(coefficients: &[f64; N], x: f64) -> f64 {
    let mut value = coefficients[0];
    for coefficient in &coefficients[1..] {
        value = value.mul_add(x, *coefficient);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_are_those_of_the_library() {
        for i in -70_800..70_900 {
            let x = f64::from(i) / 100.0;
            let error = (exp(x) / x.exp() - 1.0).abs();
            assert!(error < 4e-9, "{x}: {error:e}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(710.0), f64::INFINITY);
    }
}
