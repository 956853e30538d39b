//! Number formats as files hold them, written for the tests alone: what they make is compared with what torch and the
//! Python package `gguf` make.

use half::{bf16, f16};
use safetensors::Dtype;

/// How many numbers share a scale in Q8_0.
const Q8_0_BLOCK: usize = 32;

/// A number format of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    F32,
    F16,
    BF16,
    /// torch's `float8_e4m3fn`.
    F8E4M3,
    F8E5M2,
    /// ggml's: 32 numbers of 8 bits and their scale, an F16.
    Q8_0,
}

impl Format {
    /// The format of this name: safetensors' or ggml's.
    pub(crate) fn named(name: &str) -> Format {
        match name {
            "F32" => Format::F32,
            "F16" => Format::F16,
            "BF16" => Format::BF16,
            "F8_E4M3" => Format::F8E4M3,
            "F8_E5M2" => Format::F8E5M2,
            "Q8_0" => Format::Q8_0,
            other => panic!("no format {other}"),
        }
    }

    /// What safetensors calls it.
    pub(crate) fn dtype(self) -> Dtype {
        match self {
            Format::F32 => Dtype::F32,
            Format::F16 => Dtype::F16,
            Format::BF16 => Dtype::BF16,
            Format::F8E4M3 => Dtype::F8_E4M3,
            Format::F8E5M2 => Dtype::F8_E5M2,
            Format::Q8_0 => panic!("safetensors has no Q8_0"),
        }
    }

    /// ggml's number for it (`enum ggml_type`).
    pub(crate) fn ggml_id(self) -> u32 {
        match self {
            Format::F32 => 0,
            Format::F16 => 1,
            Format::Q8_0 => 8,
            Format::BF16 => 30,
            other => panic!("ggml has no {other:?}"),
        }
    }

    /// How many numbers of a row are stored together.
    pub(crate) fn block(self) -> usize {
        if self == Format::Q8_0 { Q8_0_BLOCK } else { 1 }
    }

    /// The numbers as a file holds them, rounded to nearest.
    pub(crate) fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Format::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Format::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            Format::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
            Format::F8E4M3 | Format::F8E5M2 => {
                let table = self.magnitudes();
                values.iter().map(|v| encode_small(&table, *v)).collect()
            }
            Format::Q8_0 => values.chunks_exact(Q8_0_BLOCK).flat_map(encode_q8_0).collect(),
        }
    }

    /// What the bytes of a file stand for.
    pub(crate) fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Format::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            Format::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Format::BF16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Format::F8E4M3 | Format::F8E5M2 => {
                let table = self.magnitudes();
                bytes.iter().map(|b| table[usize::from(b & 0x7f)] * if *b < 0x80 { 1.0 } else { -1.0 }).collect()
            }
            Format::Q8_0 => bytes.chunks_exact(2 + Q8_0_BLOCK).flat_map(decode_q8_0).collect(),
        }
    }

    /// The numbers as they are after a stay in a file.
    pub(crate) fn round(self, values: &[f32]) -> Vec<f32> {
        self.decode(&self.encode(values))
    }

    /// The finite numbers of an 8-bit format that are not negative, in order of their codes, which is theirs too.
    fn magnitudes(self) -> Vec<f32> {
        let (mantissa_bits, bias, finite) = if self == Format::F8E4M3 { (3, 7, 0x7f) } else { (2, 15, 0x7c) };
        (0..finite)
            .map(|code: i32| {
                let (exponent, mantissa) = (code >> mantissa_bits, code & ((1 << mantissa_bits) - 1));
                let lead = if exponent > 0 { 1 << mantissa_bits } else { 0 };
                (lead + mantissa) as f32 * 2f32.powi(exponent.max(1) - bias - mantissa_bits)
            })
            .collect()
    }
}

/// The code of the nearest of `magnitudes`, the even one of two that are equally near.
fn encode_small(magnitudes: &[f32], value: f32) -> u8 {
    let (size, sign) = (value.abs(), if value.is_sign_negative() { 0x80 } else { 0 });
    let above = magnitudes.partition_point(|m| *m < size);
    assert!(above < magnitudes.len(), "{value} is beyond an 8-bit float");
    let below = above.saturating_sub(1);
    // Exact: neighbours differ by a factor of at most 2, or lie on a grid.
    let (up, down) = (magnitudes[above] - size, size - magnitudes[below]);
    let nearest = if up < down || (up == down && above % 2 == 0) { above } else { below };
    sign | u8::try_from(nearest).unwrap()
}

fn encode_q8_0(block: &[f32]) -> Vec<u8> {
    let largest = block.iter().fold(0f32, |most, v| most.max(v.abs()));
    let scale = largest / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    // Halves away from zero, as in C.
    let quants = block.iter().map(|v| ((v * inverse).round() as i8).to_le_bytes()[0]);
    f16::from_f32(scale).to_le_bytes().into_iter().chain(quants).collect()
}

fn decode_q8_0(block: &[u8]) -> Vec<f32> {
    let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
    block[2..].iter().map(|quant| f32::from(i8::from_le_bytes([*quant])) * scale).collect()
}
