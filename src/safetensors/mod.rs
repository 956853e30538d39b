//! safetensors files, alone or in shards, validated before anything is used.
//!
//! A file is the length of its header (`u64`), a JSON header and the tensors' bytes without gaps. The crate `safetensors` would
//! refuse a whole file for one tensor of a format that it does not know, lets duplicate keys pass, and its errors name no tensor:
//! so headers are read and checked here.

mod file;
mod find;
mod header;
mod set;
mod sharded;

use std::collections::BTreeMap;
use std::path::Path;

pub use file::Safetensors;
pub use find::find;
pub use set::{Numbered, Set, sets};
pub(crate) use sharded::is_index;
pub use sharded::open_sharded;

use crate::error::Result;
use crate::index::{Index, Map};
use crate::pickle;

/// Whether a file of `length` bytes that begins with `start` begins as these files do: with the length of a header, and the
/// header.
pub(crate) fn begins(start: &[u8], length: u64) -> bool {
    let header = start.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    start.get(8) == Some(&b'{') && header.is_some_and(|header| header < length)
}

/// The tensors of the file at `path`, which may also be one of PyTorch's own. [`Safetensors::open`] gives a file's metadata as well.
///
/// # Errors
///
/// Those of [`Safetensors::open`] and [`pickle::from_map`].
pub fn open(path: &Path) -> Result<Index> {
    Ok(open_described(path)?.index)
}

/// As [`open`], with the metadata; PyTorch's files have none.
///
/// # Errors
///
/// As [`open`].
pub fn open_described(path: &Path) -> Result<Safetensors> {
    let map = Map::open(path)?;
    if pickle::begins(map.bytes()) {
        return Ok(Safetensors { metadata: BTreeMap::new(), index: pickle::from_map(&map)? });
    }
    Safetensors::from_map(map)
}
