//! Weights in PyTorch's own files (`.pt`, `.pth`, `.bin`, `.ckpt`), read without running anything that is in them.
//!
//! `torch.save` writes a Python pickle: a program for a small stack machine, which may call any function of Python. The machine
//! here knows dictionaries, lists, texts, numbers and what PyTorch makes tensors of, and no more: a file that names another function is refused
//! with that name. It gives where each tensor's numbers lie, and the tensors stay in the mapped file.
//!
//! | format | layout |
//! |---|---|
//! | since PyTorch 1.6 | a zip archive of stored entries: `NAME/data.pkl`, `NAME/data/KEY` for each storage, `NAME/byteorder` |
//! | before | five pickles (magic number, version, machine, object, keys), then for each key a count and the numbers |
//!
//! Dictionaries within dictionaries give names with dots. What lies in `state_dict` is taken alone, without that word: a
//! training's other state is no part of a model.

mod archive;
mod format;
mod globals;
mod legacy;
mod machine;
mod tensors;
mod value;

use std::path::Path;
use std::sync::Arc;

use crate::error::Result;
use crate::index::{Index, Map, failed_weights};

/// What these files end in.
pub(crate) const ENDINGS: [&str; 4] = [".bin", ".pt", ".pth", ".ckpt"];

/// Whether a file that begins with `start` may be one of PyTorch's: a zip archive or a pickle.
pub(crate) fn begins(start: &[u8]) -> bool {
    matches!(start, [b'P', b'K', 3, 4, ..] | [0x80, 2..=5, ..])
}

/// Whether a file with this name is called as PyTorch's are.
pub(crate) fn is_named(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// The tensors of the file at `path`.
///
/// # Errors
/// Those of [`Map::open`] and [`from_map`].
pub fn open(path: &Path) -> Result<Index> {
    from_map(&Map::open(path)?)
}

/// The tensors of a mapped file. Those whose numbers lie apart from each other are copied; no other tensor's bytes are touched.
///
/// # Errors
///
/// [`Error::Malformed`](crate::Error::Malformed), which says what and where, for what breaks the format, for a function that is not
/// among those that tensors are made with, and for tensors that do not lie inside their storage; [`Error::NotAModel`](crate::Error::NotAModel) for files of
/// other formats.
pub fn from_map(map: &Arc<Map>) -> Result<Index> {
    if let Some(error) = failed_weights(map.path(), map.bytes()) {
        return Err(error);
    }
    match map.bytes() {
        [b'P', b'K', ..] => archive::read(map),
        _ => legacy::read(map),
    }
}
