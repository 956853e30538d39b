//! Number formats, as PyTorch has them.

use crate::index::Storage;

/// How the numbers of a tensor are stored: in one of the formats that are known, or in another one of this name.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Format {
    Known(Storage),
    /// The name, and bytes of each number.
    Other(&'static str, usize),
    /// Bytes, which each tensor says the format of.
    Untyped,
}

impl Format {
    /// Bytes of each number.
    pub(super) fn width(&self) -> usize {
        match self {
            Format::Known(Storage::Number(dtype)) => dtype.block_bytes(),
            Format::Known(Storage::U16) => 2,
            Format::Known(Storage::U32) => 4,
            Format::Known(Storage::U64) => 8,
            Format::Known(_) | Format::Untyped => 1,
            Format::Other(_, width) => *width,
        }
    }
}
