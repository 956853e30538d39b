//! Opens files with weights, of safetensors or PyTorch's own.

use std::collections::BTreeMap;
use std::path::Path;

use super::file::Safetensors;
use crate::error::Result;
use crate::index::{Index, Map};
use crate::pickle;

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
