//! Blocks of 32 weights, as whole codes with a scale, and a shift or an offset. The layouts are those of ggml-common.h, the arithmetic
//! that of `dequantize_row_*` in ggml-quants.c.

use half::f16;
use pinhole_quant::DType;

use super::BLOCK;

/// Rows that are unpacked side by side: with 4 bytes of each they fill a vector of 32.
pub(super) const EIGHT: usize = 8;

/// 32 weights: `scale * (code - offset) + shift` each, with the format's offset. One of offset and shift is always 0.
pub(super) struct Block {
    pub(super) codes: [u8; BLOCK],
    pub(super) scale: f32,
    pub(super) shift: f32,
}

/// How a format's bytes are read, `BYTES` of them for `BLOCKS` blocks.
pub(super) trait Coding<const BYTES: usize> {
    const BLOCKS: usize = 1;

    /// Block number `i` of those in `bytes`.
    fn block(bytes: &[u8; BYTES], i: usize) -> Block;
}

/// A format of weights that there are kernels for. Not q5_k: with AVX2 ggml's own takes nine tenths of the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
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
            _ => return None,
        })
    }

    /// What is taken from codes, where a format has no shifts.
    pub(super) const fn offset(self) -> u8 {
        match self {
            Format::Q4_0 => 8,
            Format::Q5_0 => 16,
            Format::Q8_0 => 128,
            Format::Q4_1 | Format::Q5_1 | Format::Q4K => 0,
        }
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
    #[inline(always)]
    fn block(bytes: &[u8; 18], _: usize) -> Block {
        Block { codes: nibbles(&bytes[2..]), scale: half_at(bytes, 0), shift: 0.0 }
    }
}

pub(super) struct Q4_1;

impl Coding<20> for Q4_1 {
    #[inline(always)]
    fn block(bytes: &[u8; 20], _: usize) -> Block {
        Block { codes: nibbles(&bytes[4..]), scale: half_at(bytes, 0), shift: half_at(bytes, 2) }
    }
}

pub(super) struct Q5_0;

impl Coding<22> for Q5_0 {
    #[inline(always)]
    fn block(bytes: &[u8; 22], _: usize) -> Block {
        Block { codes: five_bits(&bytes[6..], &bytes[2..6]), scale: half_at(bytes, 0), shift: 0.0 }
    }
}

pub(super) struct Q5_1;

impl Coding<24> for Q5_1 {
    #[inline(always)]
    fn block(bytes: &[u8; 24], _: usize) -> Block {
        let codes = five_bits(&bytes[8..], &bytes[4..8]);
        Block { codes, scale: half_at(bytes, 0), shift: half_at(bytes, 2) }
    }
}

/// Codes are the stored ones and 128 more.
pub(super) struct Q8_0;

impl Coding<34> for Q8_0 {
    #[inline(always)]
    fn block(bytes: &[u8; 34], _: usize) -> Block {
        let mut codes = [0; BLOCK];
        for (code, stored) in codes.iter_mut().zip(&bytes[2..]) {
            *code = stored ^ 0x80;
        }
        Block { codes, scale: half_at(bytes, 0), shift: 0.0 }
    }
}

pub(super) struct Q4K;

impl Coding<144> for Q4K {
    const BLOCKS: usize = 8;

    #[inline(always)]
    fn block(bytes: &[u8; 144], i: usize) -> Block {
        let (scale, min) = scale_and_min(&bytes[4..16], i);
        Block {
            codes: k_nibbles(&bytes[16..], i),
            scale: half_at(bytes, 0) * f32::from(scale),
            shift: -half_at(bytes, 2) * f32::from(min),
        }
    }
}

/// Scale and minimum of one of the eight parts of a K-quant, 6 bits each (`get_scale_min_k4`).
#[inline(always)]
fn scale_and_min(packed: &[u8], part: usize) -> (u8, u8) {
    if part < 4 {
        (packed[part] & 63, packed[part + 4] & 63)
    } else {
        let low = packed[part + 4];
        (low & 15 | packed[part - 4] >> 6 << 4, low >> 4 | packed[part] >> 6 << 4)
    }
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
