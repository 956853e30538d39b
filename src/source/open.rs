//! Opens models on disk.

use std::path::Path;
use std::sync::Arc;

use super::weight_file::WeightFile;
use super::{Files, Place, Source, bundle, diffusers, files};
use crate::index::Map;
use crate::{Error, Result};

impl Source {
    /// Opens a bundle, a diffusers directory, a file of another tool with parts of a model, or a folder with such files.
    /// Parts may be missing; whoever needs one asks for it.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Malformed`], or [`Error::NotAModel`] saying what was recognised.
    pub fn open(path: &Path) -> Result<Source> {
        let metadata = std::fs::metadata(path).map_err(|source| Error::io("open", path, source))?;
        if !metadata.is_dir() {
            return match WeightFile::is_shard_index(path) {
                true => files::open_file(WeightFile::open(path)?),
                false => Source::from_map(Map::open(path)?),
            };
        }
        if diffusers::is_model(path) {
            return diffusers::open(path);
        }
        files::open_folder(path)?.ok_or_else(|| diffusers::no_model(path))
    }

    /// Opens a file in memory, as [`open`](Source::open) does.
    ///
    /// # Errors
    /// As [`open`](Source::open).
    pub fn from_map(map: Arc<Map>) -> Result<Source> {
        let file = WeightFile::from_map(map)?;
        if file.is_bundle() { bundle::open(file) } else { files::open_file(file) }
    }

    /// The model at `base`, if there is one, with the parts that `files` gives in the place of its own.
    ///
    /// # Errors
    /// As [`open`](Source::open).
    pub fn assemble(base: Option<Source>, files: &Files) -> Result<Source> {
        files::assemble(base, files)
    }

    /// The same as a model of `family`, with a component, and with the tokenizer it needs if there is one, at each of `places`:
    /// what the user gave for it, what is there, or the network of its kind in a loose file.
    ///
    /// # Errors
    /// [`Error::NotAModel`] if a file does not hold what it is given for, or if several files hold it; [`Error::Option`] if
    /// something is given for which there is no place.
    pub fn arranged(&self, family: &'static str, places: &[Place]) -> Result<Source> {
        files::arrange(Source { family, ..self.clone() }, places)
    }
}
