//! How files store numbers.

use std::fmt;

use pinhole_quant::DType;

use crate::tensor::Shape;

/// How a file stores the numbers of a tensor: one of ggml's formats, or one that only safetensors has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Storage {
    /// A format that ggml has as well.
    Number(DType),
    /// 8-bit float with 4 exponent bits, no infinities ("fn").
    F8E4M3,
    /// 8-bit float with 5 exponent bits.
    F8E5M2,
    /// One byte, 0 or 1.
    Bool,
    /// Unsigned 8-bit integer.
    U8,
    /// Unsigned 16-bit integer.
    U16,
    /// Unsigned 32-bit integer.
    U32,
    /// Unsigned 64-bit integer.
    U64,
}

impl Storage {
    /// The lower-case name used in messages.
    pub fn name(self) -> &'static str {
        match self {
            Storage::Number(dtype) => dtype.name(),
            Storage::F8E4M3 => "f8_e4m3",
            Storage::F8E5M2 => "f8_e5m2",
            Storage::Bool => "bool",
            Storage::U8 => "u8",
            Storage::U16 => "u16",
            Storage::U32 => "u32",
            Storage::U64 => "u64",
        }
    }

    /// Bytes that a tensor of `shape` takes, or `None` where a block does not divide the row or the size overflows.
    pub fn bytes(self, shape: &Shape) -> Option<usize> {
        let each = match self {
            Storage::Number(dtype) => return shape.bytes(dtype),
            Storage::F8E4M3 | Storage::F8E5M2 | Storage::Bool | Storage::U8 => 1,
            Storage::U16 => 2,
            Storage::U32 => 4,
            Storage::U64 => 8,
        };
        shape.elements().checked_mul(each)
    }

    /// How many numbers share a block. Rows hold a whole number of blocks.
    pub fn block_size(self) -> usize {
        match self {
            Storage::Number(dtype) => dtype.block_size(),
            _ => 1,
        }
    }
}

impl From<DType> for Storage {
    fn from(dtype: DType) -> Storage {
        Storage::Number(dtype)
    }
}

impl PartialEq<DType> for Storage {
    fn eq(&self, dtype: &DType) -> bool {
        *self == Storage::Number(*dtype)
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
