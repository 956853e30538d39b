//! GGUF: the format's constants and metadata values, which reader and writer share, and the writer.
//!
//! A file is a header (magic, version, counts, metadata, tensor list), padding up to the alignment, and the tensors'
//! bytes, each at a multiple of the alignment. Every number is little-endian. The format is described in ggml's
//! `docs/gguf.md` and, as far as ggml reads it, at the top of its `include/gguf.h`.
//!
//! [`Layout`] computes every offset and the size of the file from the metadata and the list of tensors alone;
//! [`Writer`] then takes the tensors' bytes in that order, in chunks of any size, and holds none of them.

mod encode;
mod layout;
mod value;
mod writer;

pub use layout::{Layout, Placed, TensorSpec};
pub use value::{Array, Kind, Strings, Value};
pub use writer::Writer;

use std::io;

/// The first four bytes of every file.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// The version that the writer writes.
pub const VERSION: u32 = 3;
/// The metadata key that holds the alignment, a `u32`.
pub const ALIGNMENT_KEY: &str = "general.alignment";
/// The alignment of a file that does not name one, in bytes.
pub const DEFAULT_ALIGNMENT: u32 = 32;

// Limits. The format itself has hardly any; these bound what a reader spends on a hostile header, and the writer keeps
// to them, so that what it writes can be read.

/// Most bytes before the tensors' data. The largest parts are vocabularies and tokenizers, tens of megabytes at most.
pub const MAX_HEADER_BYTES: usize = 256 << 20;
/// Most tensors in a file. The largest models have a few thousand.
pub const MAX_TENSORS: usize = 1 << 16;
/// Most metadata entries in a file; converters that note reshaped tensors write one for each.
pub const MAX_KEYS: usize = 1 << 16;
/// Most bytes in a metadata key, which is the format's own limit.
pub const MAX_KEY_BYTES: usize = (1 << 16) - 1;
/// How deep arrays may hold arrays: a plain array is 1. ggml reads no deeper.
pub const MAX_NESTING: usize = 4;

/// Why a file cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// A key, a value or a tensor that the format, or ggml, could not read back.
    #[error("{at}: expected {expected}, found {found}")]
    Invalid {
        /// The key or tensor.
        at: String,
        /// What can be written.
        expected: String,
        /// What was given.
        found: String,
    },
    /// Tensors came in another order than the layout's.
    #[error("tensors out of order: expected {expected}, found {found}")]
    Order {
        /// The next tensor of the layout, or its end.
        expected: String,
        /// What the caller did instead.
        found: String,
    },
    /// A tensor got more or fewer bytes than its shape and format take.
    #[error("tensor `{tensor}`: expected {expected} bytes, found {found}")]
    Size {
        /// The tensor's name.
        tensor: String,
        /// Bytes that it takes.
        expected: u64,
        /// Bytes that came, at least.
        found: u64,
    },
    /// The sink refused the bytes.
    #[error("cannot write: {0}")]
    Io(#[from] io::Error),
}

impl WriteError {
    fn invalid(at: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> WriteError {
        WriteError::Invalid { at: at.into(), expected: expected.into(), found: found.into() }
    }
}
