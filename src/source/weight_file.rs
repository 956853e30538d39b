//! One file with weights, of whatever format, and what it says of itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::component::list;
use super::recognise::{self, Recognised, recognise};
use super::{Component, Layout, Slot, Text, keys};
use crate::bind::alias::{KINDS, Kind};
use crate::gguf::{Gguf, Metadata};
use crate::index::{Index, Map};
use crate::safetensors::{self, Safetensors};
use crate::{Error, Result};

/// What `index.json` files of sharded safetensors end in.
const SHARD_INDEX: &str = ".safetensors.index.json";

/// Weights, where they are, and a GGUF's metadata.
#[derive(Debug)]
pub(super) struct WeightFile {
    pub(super) path: PathBuf,
    pub(super) index: Arc<Index>,
    pub(super) metadata: Option<Metadata>,
    parts: Vec<Recognised>,
}

impl WeightFile {
    /// Opens a GGUF file, a safetensors file, or the index of shards.
    pub(super) fn open(path: &Path) -> Result<WeightFile> {
        if WeightFile::is_shard_index(path) {
            return Ok(WeightFile::new(path, safetensors::open_sharded(path)?, None));
        }
        WeightFile::from_map(Map::open(path)?)
    }

    pub(super) fn from_map(map: Arc<Map>) -> Result<WeightFile> {
        match map.bytes() {
            [b'G', b'G', b'U', b'F', ..] => {
                let Gguf { index, metadata, .. } = Gguf::from_map(map)?;
                let path = metadata.path().to_owned();
                Ok(WeightFile::new(&path, index, Some(metadata)))
            }
            // The header of a safetensors file, behind its length.
            [_, _, _, _, _, _, _, _, b'{', ..] => {
                let path = map.path().to_owned();
                Ok(WeightFile::new(&path, Safetensors::from_map(map)?.index, None))
            }
            bytes => Err(Error::NotAModel {
                path: map.path().to_owned(),
                found: unknown(bytes).into(),
                hint: Some("give a GGUF or safetensors file, or a diffusers directory (with model_index.json)".into()),
            }),
        }
    }

    fn new(path: &Path, index: Index, metadata: Option<Metadata>) -> WeightFile {
        let parts = recognise::parts(&index);
        WeightFile { path: path.to_owned(), index: Arc::new(index), metadata, parts }
    }

    /// Whether `path` is named as the index of shards is.
    pub(super) fn is_shard_index(path: &Path) -> bool {
        path.to_string_lossy().ends_with(SHARD_INDEX)
    }

    /// Whether it is one of pinhole's own, with a whole model inside.
    pub(super) fn is_bundle(&self) -> bool {
        self.metadata.as_ref().is_some_and(|metadata| metadata.get(keys::VERSION).is_some())
    }

    /// The kinds of networks that it has.
    pub(super) fn kinds(&self) -> impl Iterator<Item = &'static Kind> {
        KINDS.iter().copied().filter(|kind| self.has(kind))
    }

    /// Whether it has a network of `kind`.
    pub(super) fn has(&self, kind: &Kind) -> bool {
        self.parts.iter().any(|part| part.kind == kind)
    }

    /// Its network of `kind`, as the component at `slot`.
    ///
    /// # Errors
    /// [`Error::NotAModel`] if it has none or several.
    pub(super) fn component(&self, slot: &'static Slot, kind: &Kind) -> Result<Component> {
        let prefixes: Vec<&str> =
            self.parts.iter().filter(|part| part.kind == kind).map(|part| part.prefix.as_str()).collect();
        let [prefix] = prefixes[..] else { return Err(self.not_one(kind, &prefixes)) };
        let config = match &self.metadata {
            Some(metadata) => metadata.string(&keys::component_config(slot.name))?,
            None => None,
        };
        Ok(Component {
            slot,
            index: Arc::clone(&self.index),
            prefix: prefix.to_owned(),
            layout: Layout::Files,
            config: config.map(|text| Text { text: text.to_owned(), origin: self.path.clone() }),
            origin: self.path.clone(),
        })
    }

    fn not_one(&self, kind: &Kind, prefixes: &[&str]) -> Error {
        let found = match prefixes {
            [] => format!("{}, and no {}", self.holds(), kind.words),
            several => format!("it holds {} of {}, as {}", several.len(), kind.words, list(several)),
        };
        Error::NotAModel { path: self.path.clone(), found, hint: None }
    }

    /// What is in it, for messages.
    pub(super) fn holds(&self) -> String {
        let found = recognise(self.index.iter().map(|(name, _)| name));
        let format = if self.metadata.is_some() { "GGUF" } else { "safetensors" };
        if !found.is_empty() {
            return format!("a {format} file that holds {}", found.join("; "));
        }
        let names: Vec<&str> = self.index.iter().map(|(name, _)| name).take(3).collect();
        let more = if self.index.len() > names.len() { ", ..." } else { "" };
        format!("a {format} file whose tensors it does not recognise ({}{more})", list(&names))
    }
}

/// What a file that is neither GGUF nor safetensors looks like.
fn unknown(bytes: &[u8]) -> &'static str {
    match bytes {
        [] => "an empty file",
        [b'P', b'K', ..] => "a zip archive or a Python pickle",
        _ => "a file of an unknown kind",
    }
}
