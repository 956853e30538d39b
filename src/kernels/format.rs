//! Blocks of 32 weights, as whole codes with a scale, and a shift or an offset. The layouts are those of ggml-common.h, the arithmetic
//! that of `dequantize_row_*` in ggml-quants.c.

use half::f16;
use pinhole_quant::DType;

/// Numbers that share a scale, in weights and in activations.
pub const BLOCK: usize = 32;

/// Rows that are unpacked side by side: with 4 bytes of each they fill a vector of 32.
pub(super) const EIGHT: usize = 8;

/// 32 weights: `scale * factor * (code - offset) + shift` each, with the format's offset. One of offset and shift is always 0.
pub(super) struct Block {
    pub(super) codes: [u8; BLOCK],
    /// The factor of the first 16, and of the last: 1, except for q6_k.
    pub(super) factors: [i8; 2],
    pub(super) scale: f32,
    pub(super) shift: f32,
}

/// How a format's bytes are read, `BYTES` of them for `BLOCKS` blocks.
pub(super) trait Coding<const BYTES: usize> {
    const BLOCKS: usize = 1;
    /// Whether factors are others than 1.
    const HAS_FACTORS: bool = false;
    /// What is worked out once for all these blocks.
    type Head: Copy;

    fn head(bytes: &[u8; BYTES]) -> Self::Head;

    /// Block number `i` of those in `bytes`, which have this `head`.
    fn block(head: &Self::Head, bytes: &[u8; BYTES], i: usize) -> Block;
}

/// A format of weights that there are kernels for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

impl Format {
    pub(super) fn of(dtype: DType) -> Option<Format> {
        Some(match dtype {
            DType::Q4_0 => Format::Q4_0,
            DType::Q4_1 => Format::Q4_1,
            DType::Q5_0 => Format::Q5_0,
            DType::Q5_1 => Format::Q5_1,
            DType::Q8_0 => Format::Q8_0,
            DType::Q4_K => Format::Q4K,
            DType::Q5_K => Format::Q5K,
            DType::Q6_K => Format::Q6K,
            _ => return None,
        })
    }

    /// What is taken from codes, where a format has no shifts.
    pub(super) const fn offset(self) -> u8 {
        match self {
            Format::Q4_0 => 8,
            Format::Q5_0 => 16,
            Format::Q6K => 32,
            Format::Q8_0 => 128,
            Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => 0,
        }
    }

    /// Whether blocks have shifts.
    #[cfg(target_arch = "x86_64")]
    pub(super) const fn has_shifts(self) -> bool {
        matches!(self, Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K)
    }
}

#[inline(always)]
fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Numbers 0 to 15 in the low halves of 16 bytes, 16 to 31 in the high ones.
#[inline(always)]
fn nibbles(bytes: &[u8]) -> [u8; BLOCK] {
    let mut codes = [0; BLOCK];
    for i in 0..16 {
        codes[i] = bytes[i] & 15;
        codes[i + 16] = bytes[i] >> 4;
    }
    codes
}

/// As [`nibbles`], with bit `i` of `high` above number `i`.
#[inline(always)]
fn five_bits(bytes: &[u8], high: &[u8]) -> [u8; BLOCK] {
    let mut codes = nibbles(bytes);
    let high = u32::from_le_bytes([high[0], high[1], high[2], high[3]]);
    for (i, code) in codes.iter_mut().enumerate() {
        *code |= ((high >> i & 1) as u8) << 4;
    }
    codes
}

pub(super) struct Q4_0;

impl Coding<18> for Q4_0 {
    type Head = ();

    #[inline(always)]
    fn head(_: &[u8; 18]) {}

    #[inline(always)]
    fn block((): &(), bytes: &[u8; 18], _: usize) -> Block {
        Block { codes: nibbles(&bytes[2..]), factors: [1; 2], scale: half_at(bytes, 0), shift: 0.0 }
    }
}

pub(super) struct Q4_1;

impl Coding<20> for Q4_1 {
    type Head = ();

    #[inline(always)]
    fn head(_: &[u8; 20]) {}

    #[inline(always)]
    fn block((): &(), bytes: &[u8; 20], _: usize) -> Block {
        Block { codes: nibbles(&bytes[4..]), factors: [1; 2], scale: half_at(bytes, 0), shift: half_at(bytes, 2) }
    }
}

pub(super) struct Q5_0;

impl Coding<22> for Q5_0 {
    type Head = ();

    #[inline(always)]
    fn head(_: &[u8; 22]) {}

    #[inline(always)]
    fn block((): &(), bytes: &[u8; 22], _: usize) -> Block {
        Block { codes: five_bits(&bytes[6..], &bytes[2..6]), factors: [1; 2], scale: half_at(bytes, 0), shift: 0.0 }
    }
}

pub(super) struct Q5_1;

impl Coding<24> for Q5_1 {
    type Head = ();

    #[inline(always)]
    fn head(_: &[u8; 24]) {}

    #[inline(always)]
    fn block((): &(), bytes: &[u8; 24], _: usize) -> Block {
        let codes = five_bits(&bytes[8..], &bytes[4..8]);
        Block { codes, factors: [1; 2], scale: half_at(bytes, 0), shift: half_at(bytes, 2) }
    }
}

/// Codes are the stored ones and 128 more.
pub(super) struct Q8_0;

impl Coding<34> for Q8_0 {
    type Head = ();

    #[inline(always)]
    fn head(_: &[u8; 34]) {}

    #[inline(always)]
    fn block((): &(), bytes: &[u8; 34], _: usize) -> Block {
        let mut codes = [0; BLOCK];
        for (code, stored) in codes.iter_mut().zip(&bytes[2..]) {
            *code = stored ^ 0x80;
        }
        Block { codes, factors: [1; 2], scale: half_at(bytes, 0), shift: 0.0 }
    }
}

pub(super) struct Q4K;

impl Coding<144> for Q4K {
    const BLOCKS: usize = 8;

    /// Scales and shifts.
    type Head = [[f32; 8]; 2];

    #[inline(always)]
    fn head(bytes: &[u8; 144]) -> Self::Head {
        scales_and_shifts(bytes)
    }

    #[inline(always)]
    fn block([scales, shifts]: &Self::Head, bytes: &[u8; 144], i: usize) -> Block {
        Block { codes: k_nibbles(&bytes[16..], i), factors: [1; 2], scale: scales[i], shift: shifts[i] }
    }
}

pub(super) struct Q5K;

impl Coding<176> for Q5K {
    const BLOCKS: usize = 8;

    /// Scales and shifts.
    type Head = [[f32; 8]; 2];

    #[inline(always)]
    fn head(bytes: &[u8; 176]) -> Self::Head {
        scales_and_shifts(bytes)
    }

    #[inline(always)]
    fn block([scales, shifts]: &Self::Head, bytes: &[u8; 176], i: usize) -> Block {
        let mut codes = k_nibbles(&bytes[48..], i);
        for (code, high) in codes.iter_mut().zip(&bytes[16..48]) {
            *code |= (high >> i & 1) << 4;
        }
        Block { codes, factors: [1; 2], scale: scales[i], shift: shifts[i] }
    }
}

pub(super) struct Q6K;

impl Coding<210> for Q6K {
    const BLOCKS: usize = 8;
    const HAS_FACTORS: bool = true;
    type Head = f32;

    #[inline(always)]
    fn head(bytes: &[u8; 210]) -> f32 {
        half_at(bytes, 208)
    }

    #[inline(always)]
    fn block(scale: &f32, bytes: &[u8; 210], i: usize) -> Block {
        let [low, high, factors] = q6k_places(i);
        let [low_shift, high_shift] = q6k_shifts(i);
        let mut codes = [0; BLOCK];
        for (n, code) in codes.iter_mut().enumerate() {
            *code = bytes[low + n] >> low_shift & 15 | (bytes[high + n] >> high_shift & 3) << 4;
        }
        let factors = [bytes[factors].cast_signed(), bytes[factors + 1].cast_signed()];
        Block { codes, factors, scale: *scale, shift: 0.0 }
    }
}

/// Where block `i` of a q6_k has the low four bits of its codes, their high two, and its factors.
#[inline(always)]
pub(super) fn q6k_places(i: usize) -> [usize; 3] {
    let (half, quarter) = (i / 4, i % 4);
    [half * 64 + quarter % 2 * 32, 128 + half * 32, 192 + half * 8 + quarter * 2]
}

/// By how many bits the low ones and the high ones of block `i` are shifted.
#[inline(always)]
pub(super) fn q6k_shifts(i: usize) -> [usize; 2] {
    [i % 4 / 2 * 4, i % 4 * 2]
}

/// Scales and shifts of the eight parts of a K-quant whose bytes begin with what is common to them.
#[inline(always)]
fn scales_and_shifts(bytes: &[u8]) -> [[f32; 8]; 2] {
    let (scale, min) = (half_at(bytes, 0), half_at(bytes, 2));
    let [scales, mins] = scales_and_mins(&bytes[4..16]);
    [scales.map(|own| scale * f32::from(own)), mins.map(|own| -min * f32::from(own))]
}

/// Scales and minima of the eight parts of a K-quant, 6 bits each: those of the first four in bytes of their own, where
/// the last four have their high bits; their low ones are in the third word (`get_scale_min_k4`).
#[inline(always)]
pub(super) fn scales_and_mins(packed: &[u8]) -> [[u8; 8]; 2] {
    let word = |at: usize| u32::from_le_bytes([packed[at], packed[at + 1], packed[at + 2], packed[at + 3]]);
    let (scales, mins, rest) = (word(0), word(4), word(8));
    let all = |word: u32, low: u32| {
        let (first, last) = (word & 0x3F3F_3F3F, low & 0x0F0F_0F0F | word >> 2 & 0x3030_3030);
        (u64::from(last) << 32 | u64::from(first)).to_le_bytes()
    };
    [all(scales, rest), all(mins, rest >> 4)]
}

/// Low halves of 32 bytes for even parts, high halves for odd ones.
#[inline(always)]
fn k_nibbles(bytes: &[u8], part: usize) -> [u8; BLOCK] {
    let mut codes = [0; BLOCK];
    let shift = 4 * (part % 2);
    for (code, byte) in codes.iter_mut().zip(&bytes[part / 2 * 32..]) {
        *code = byte >> shift & 15;
    }
    codes
}
