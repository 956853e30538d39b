//! The weights in a folder of a diffusers model.

use std::fs;
use std::path::Path;

use super::file::Safetensors;
use super::set::{Set, sets};
use super::sharded::{self, is_index_name, open_sharded};
use crate::error::{Error, Result};
use crate::index::Index;
use crate::{file, pickle};

/// Precisions that file names carry, the wider range first. Files without one are complete, and come before all.
const VARIANTS: [&str; 2] = ["bf16", "fp16"];

/// What the files of PyTorch are called in a diffusers directory and in one of transformers.
const PICKLED: [&str; 2] = ["diffusion_pytorch_model.bin", "pytorch_model.bin"];

/// Opens the weights in the folder `dir` whose file names begin with one of `stems`, tried in order:
/// `diffusion_pytorch_model`, `model`, ...
///
/// For each stem it takes the first there is of: one file, shards with an index, and then the same two in `bf16` and
/// `fp16`. An index without any of its shards, as a download of one precision leaves it, counts as missing if there is
/// something else, and so do shards without their index if there is something better. PyTorch's own files come last.
///
/// # Errors
///
/// [`Error::Io`] where there is no such folder, [`Error::NotAModel`] where there is none of them in it; those of
/// [`Safetensors::open`] and [`open_sharded`].
pub fn find(dir: &Path, stems: &[&str]) -> Result<Index> {
    let names = names(dir)?;
    let mut bare = None;
    for name in stems.iter().flat_map(|stem| candidates(stem)).filter(|name| names.contains(name)) {
        let path = dir.join(&name);
        if !is_index_name(&name) {
            return Ok(Safetensors::open(&path)?.index);
        }
        if sharded::shards(&path)?.iter().any(|shard| names.contains(shard)) {
            return open_sharded(&path);
        }
        bare.get_or_insert(path);
    }
    for set in sets(dir, names.clone()) {
        if let Set::Shards(_, shards) = &set
            && stems.iter().any(|stem| shards.stem.split('.').next() == Some(stem))
        {
            return set.open();
        }
    }
    for name in PICKLED {
        let (path, index) = (dir.join(name), format!("{name}.index.json"));
        if names.iter().any(|known| known == name) {
            return pickle::open(&path);
        }
        if names.contains(&index) {
            return open_sharded(&dir.join(index));
        }
    }
    match bare {
        Some(index) => open_sharded(&index),
        None => Err(not_found(dir, stems)),
    }
}

/// The names in `dir`, those of links to nothing included.
fn names(dir: &Path) -> Result<Vec<String>> {
    file::is_directory(dir)?;
    let entries = fs::read_dir(dir).map_err(|source| Error::io("open", dir, source))?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

/// The file names for a stem, in order of preference.
fn candidates(stem: &str) -> Vec<String> {
    let mut names = vec![format!("{stem}.safetensors"), format!("{stem}.safetensors.index.json")];
    for variant in VARIANTS {
        names.push(format!("{stem}.{variant}.safetensors"));
        // transformers and older versions of diffusers; newer ones; and by hand, after the single file.
        names.push(format!("{stem}.safetensors.index.{variant}.json"));
        names.push(format!("{stem}.safetensors.{variant}.index.json"));
        names.push(format!("{stem}.{variant}.safetensors.index.json"));
    }
    names
}

fn not_found(dir: &Path, stems: &[&str]) -> Error {
    let expected: Vec<_> = stems.iter().map(|stem| format!("{stem}.safetensors")).collect();
    let found = format!("no {} in it", expected.join(" or "));
    let names = names(dir).unwrap_or_default();
    let hint = match names.iter().find(|name| pickle::is_named(name)) {
        Some(name) => format!("{name} in it has an unusual name: give it by itself"),
        None => "the folder is incomplete, or another one is meant: download what is missing".to_owned(),
    };
    Error::NotAModel { path: dir.to_owned(), found, hint: Some(hint) }
}
