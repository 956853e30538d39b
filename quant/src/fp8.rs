//! The two 8-bit floating-point formats of "FP8 Formats for Deep Learning" (Micikevicius et al., 2022, arXiv:2209.05433,
//! table 1), in which checkpoints are published. ggml has neither, so they are widened on reading.

/// An 8-bit floating-point format. F16 holds every value of both exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fp8 {
    /// Four bits of exponent with bias 7, three of mantissa; no infinities; `0x7f` and `0xff` are NaN, so that the largest
    /// number is 448. `float8_e4m3fn` in PyTorch, `F8_E4M3` in safetensors.
    E4M3Fn,
    /// Five bits of exponent with bias 15, two of mantissa, and infinities and NaNs as in IEEE 754: the upper half of an F16.
    /// `float8_e5m2` in PyTorch, `F8_E5M2` in safetensors.
    E5M2,
}

impl Fp8 {
    /// The number that `bits` stands for.
    pub fn to_f32(self, bits: u8) -> f32 {
        self.table()[usize::from(bits)]
    }

    /// Widens as many numbers as both slices have.
    pub fn row_to_f32(self, bits: &[u8], out: &mut [f32]) {
        let table = self.table();
        out.iter_mut().zip(bits).for_each(|(to, from)| *to = table[usize::from(*from)]);
    }

    fn table(self) -> &'static [f32; 256] {
        static E4M3FN: [f32; 256] = table(4, 7, false);
        static E5M2: [f32; 256] = table(5, 15, true);
        match self {
            Fp8::E4M3Fn => &E4M3FN,
            Fp8::E5M2 => &E5M2,
        }
    }
}

/// Every value of the format with a sign bit, `exponent_bits` and the rest mantissa. With `ieee` the largest exponent is
/// kept for infinities and NaNs, otherwise only its largest mantissa is, for NaN.
const fn table(exponent_bits: u32, bias: i32, ieee: bool) -> [f32; 256] {
    let mut table = [0.0; 256];
    let mut bits = 0;
    while bits < 256 {
        let magnitude = widen(bits & 0x7f, exponent_bits, bias, ieee);
        table[bits as usize] = if bits < 128 { magnitude } else { -magnitude };
        bits += 1;
    }
    table
}

/// The number without its sign.
const fn widen(bits: u32, exponent_bits: u32, bias: i32, ieee: bool) -> f32 {
    let mantissa_bits = 7 - exponent_bits;
    let last_exponent = (1 << exponent_bits) - 1;
    let (exponent, mantissa) = (bits >> mantissa_bits, bits & ((1 << mantissa_bits) - 1));
    if exponent == last_exponent && ieee {
        return if mantissa == 0 { f32::INFINITY } else { f32::NAN };
    }
    if bits == 0x7f {
        return f32::NAN;
    }
    // A subnormal has no leading one and the exponent of the smallest normal number.
    let (lead, power) = if exponent == 0 { (0, 1) } else { (1 << mantissa_bits, exponent as i32) };
    (lead + mantissa) as f32 * power_of_two(power - bias - mantissa_bits as i32)
}

/// `2^power` for a normal f32.
const fn power_of_two(power: i32) -> f32 {
    f32::from_bits(((power + 127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    #[test]
    fn every_e4m3fn_value_is_the_formula_s() {
        for bits in 0..=255u8 {
            let sign = if bits & 0x80 == 0 { 1.0 } else { -1.0f64 };
            let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f64::from(bits & 7));
            let expected = match (exponent, bits & 7) {
                (15, 7) => f64::NAN,
                (0, _) => sign * mantissa / 8.0 * 2f64.powi(-6),
                _ => sign * (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
            };
            let found = Fp8::E4M3Fn.to_f32(bits);
            assert!(f64::from(found) == expected || found.is_nan() && expected.is_nan(), "{bits:#04x}: {found}");
            assert!(found.is_nan() || found.is_sign_negative() == (bits >= 128), "{bits:#04x}: {found}");
        }
    }

    #[test]
    fn every_e5m2_value_is_the_upper_half_of_an_f16() {
        for bits in 0..=255u8 {
            let expected = f16::from_bits(u16::from(bits) << 8).to_f32();
            let found = Fp8::E5M2.to_f32(bits);
            assert!(
                found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(),
                "{bits:#04x}: {found}"
            );
        }
    }

    #[test]
    fn the_corners_are_the_paper_s() {
        let e4m3 = |bits| Fp8::E4M3Fn.to_f32(bits);
        assert_eq!([e4m3(0x7e), e4m3(0x08), e4m3(0x01)], [448.0, 2f32.powi(-6), 2f32.powi(-9)]);
        let e5m2 = |bits| Fp8::E5M2.to_f32(bits);
        assert_eq!([e5m2(0x7b), e5m2(0x04), e5m2(0x01)], [57344.0, 2f32.powi(-14), 2f32.powi(-16)]);
        assert_eq!(e5m2(0xfc), f32::NEG_INFINITY);
    }

    #[test]
    fn f16_holds_every_value() {
        for (format, bits) in [Fp8::E4M3Fn, Fp8::E5M2].into_iter().flat_map(|f| (0..=255).map(move |b| (f, b))) {
            let value = format.to_f32(bits);
            assert!(value.is_nan() || f16::from_f32(value).to_f32() == value, "{format:?} {bits:#04x}");
        }
    }

    #[test]
    fn rows_are_widened_one_by_one() {
        let mut out = [0.0; 3];
        Fp8::E4M3Fn.row_to_f32(&[0x38, 0xb8, 0x40], &mut out);
        assert_eq!(out, [1.0, -1.0, 2.0]);
    }
}
