//! The weights in a folder of a diffusers model.

use std::fs;
use std::path::{Path, PathBuf};

use super::{open, open_sharded};
use crate::error::{Error, Result};
use crate::index::Index;

/// Precisions that file names carry, the wider range first. Files without one are complete, and come before all.
const VARIANTS: [&str; 2] = ["bf16", "fp16"];

/// Opens the weights in the folder `dir` whose file names begin with one of `stems`, tried in order:
/// `diffusion_pytorch_model`, `model`, ...
///
/// For each stem it takes the first there is of: one file, shards with an index, and then the same two in `bf16` and
/// `fp16`.
///
/// # Errors
///
/// [`Error::Io`] where there is no such folder, [`Error::NotAModel`] where there is none of them in it; those of [`open`]
/// and [`open_sharded`].
pub fn find(dir: &Path, stems: &[&str]) -> Result<Index> {
    fs::read_dir(dir).map_err(|source| Error::io("open", dir, source))?;
    let candidates = stems.iter().flat_map(|stem| candidates(stem)).map(|name| dir.join(name));
    match candidates.into_iter().find(|path| path.exists()) {
        Some(path) if path.extension().is_some_and(|extension| extension == "json") => open_sharded(&path),
        Some(path) => open(&path),
        None => Err(not_found(dir, stems)),
    }
}

/// The file names for a stem, in order of preference.
fn candidates(stem: &str) -> Vec<PathBuf> {
    let mut names = vec![format!("{stem}.safetensors"), format!("{stem}.safetensors.index.json")];
    for variant in VARIANTS {
        names.push(format!("{stem}.{variant}.safetensors"));
        // transformers and older versions of diffusers; newer ones; and by hand, after the single file.
        names.push(format!("{stem}.safetensors.index.{variant}.json"));
        names.push(format!("{stem}.safetensors.{variant}.index.json"));
        names.push(format!("{stem}.{variant}.safetensors.index.json"));
    }
    names.into_iter().map(PathBuf::from).collect()
}

fn not_found(dir: &Path, stems: &[&str]) -> Error {
    let names: Vec<_> = stems.iter().map(|stem| format!("{stem}.safetensors")).collect();
    let found = format!("no {} in it", names.join(" or "));
    let pickled = stems.iter().any(|stem| dir.join(format!("{stem}.bin")).exists());
    let hint =
        pickled.then(|| "its .bin file is a Python pickle, which can run code: convert it to safetensors".into());
    Error::NotAModel { path: dir.to_owned(), found, hint }
}
