//! Opens models on disk.

use std::path::Path;
use std::sync::Arc;

use super::weight_file::WeightFile;
use super::{Component, Files, Layout, Place, Source, bundle, diffusers, files, folder};
use crate::index::Map;
use crate::{Result, file};

impl Source {
    /// Opens a bundle, a diffusers directory (or the folder that Hugging Face's tools keep one in), a file of another tool with
    /// parts of a model, or a folder with such files.
    /// Parts may be missing; the code that needs one asks for it.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io), [`Error::Malformed`](crate::Error::Malformed), or
    /// [`Error::NotAModel`](crate::Error::NotAModel) saying what was recognised.
    pub fn open(path: &Path) -> Result<Source> {
        if !file::is_directory(path)? {
            return open_file(WeightFile::open(path)?);
        }
        let folder = folder::of(path)?;
        let source = match folder::is_model(&folder) {
            true => diffusers::open(&folder)?,
            false => files::open_folder(&folder)?.ok_or_else(|| diffusers::no_model(path))?,
        };
        Ok(Source { path: path.to_owned(), ..source })
    }

    /// Opens a file in memory, as [`open`](Source::open) does.
    ///
    /// # Errors
    /// As [`open`](Source::open).
    pub fn from_map(map: Arc<Map>) -> Result<Source> {
        open_file(WeightFile::from_map(map)?)
    }

    /// The model at `base`, if there is one, with the parts that `files` gives in the place of its own.
    ///
    /// # Errors
    /// As [`open`](Source::open).
    pub fn assemble(base: Option<Source>, files: &Files) -> Result<Source> {
        files::assemble(base, files)
    }

    /// The network for `place` that lies at `path` by itself: a file, or a folder of a diffusers directory. Beside that of a model.
    ///
    /// # Errors
    /// As [`open`](Source::open); [`Error::NotAModel`](crate::Error::NotAModel) if none of its kind is there.
    pub fn lone(path: &Path, place: &Place) -> Result<Component> {
        files::lone(path, place)
    }

    /// The same as a source with nothing else, for a model of `family`.
    ///
    /// # Errors
    /// As [`lone`](Source::lone).
    pub fn alone(path: &Path, family: &'static str, place: &Place) -> Result<Source> {
        let mut source = Source { family, ..Source::empty(path, Layout::Files) };
        source.components.push(Source::lone(path, place)?);
        Ok(source)
    }

    /// The same as a model of `family`, with a component, and with the tokenizer it needs if there is one, at each of `places`:
    /// what the user gave for it, what is there, or the network of its kind in a loose file.
    ///
    /// # Errors
    /// [`Error::NotAModel`](crate::Error::NotAModel) if a file does not hold what it is given for, or if several files hold it; [`Error::Option`](crate::Error::Option) if
    /// something is given for which there is no place.
    pub fn arranged(&self, family: &'static str, places: &[Place]) -> Result<Source> {
        files::arrange(Source { family, ..self.clone() }, places)
    }
}

fn open_file(file: WeightFile) -> Result<Source> {
    if file.is_bundle() { bundle::open(file) } else { files::open_file(file) }
}
