//! GGUF files, validated before anything is used.
//!
//! A file is opened in two steps, both pure. `walk` reads the header with every length bounded by what is there;
//! `validate` holds what it says against the file and gives an [`Index`]. What comes out has no surprises left:
//! known types, shapes that ggml can hold (a fifth dimension is folded), aligned bytes inside the file, unique names.
//!
//! No other parser needs to follow them: the walk has seen every byte of the header by then, values included. `inspect --check`
//! holds it against the crate `gguf-rs`, which reads no arrays in arrays, no 5-D tensors and not all types.
//!
//! What is read beyond stock ggml, because such files exist: five dimensions, names longer than 63 bytes, tensors in
//! any order with gaps between them, no padding behind the last one.

mod cursor;
mod metadata;
mod validate;
mod walk;

use std::path::Path;
use std::sync::Arc;

pub use metadata::Metadata;
pub use pinhole_quant::gguf::{Array, Kind, Strings, Value};

use crate::error::Result;
use crate::index::{Index, Map, failed_weights};

/// An open GGUF file.
#[derive(Clone, Debug)]
pub struct Gguf {
    /// Its metadata.
    pub metadata: Metadata,
    /// Its tensors.
    pub index: Index,
    /// The version of the format: 2 or 3.
    pub version: u32,
    /// What the offsets of its tensors are multiples of, in bytes: a power of two of at least 8.
    pub alignment: u64,
}

impl Gguf {
    /// Opens the file at `path`.
    ///
    /// # Errors
    ///
    /// Those of [`Map::open`] and [`Gguf::from_map`].
    pub fn open(path: &Path) -> Result<Gguf> {
        Gguf::from_map(Map::open(path)?)
    }

    /// Reads the header of a mapped file and checks it. No tensor's bytes are touched.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`](crate::error::Error::Malformed), which says what and where, for anything that breaks the
    /// format or reaches outside the file; [`Error::Mismatch`](crate::error::Error::Mismatch) where the alignment is
    /// no `u32`; [`Error::NotAModel`](crate::error::Error::NotAModel) for what a download that failed leaves.
    pub fn from_map(map: Arc<Map>) -> Result<Gguf> {
        if let Some(error) = failed_weights(map.path(), map.bytes()).filter(|_| !map.bytes().starts_with(b"GGUF")) {
            return Err(error);
        }
        let header = walk::walk(map.path(), map.bytes())?;
        let metadata = Metadata::new(map.path(), header.metadata)?;
        let alignment = validate::alignment(&metadata)?;
        let index = validate::index(&map, &metadata, header.tensors, header.bytes, alignment)?;
        Ok(Gguf { metadata, index, version: header.version, alignment })
    }
}
