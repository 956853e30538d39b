//! One file with weights, of whatever format, and what it says of itself.

use std::iter;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::component::list;
use super::recognise::{self, Recognised, recognise};
use super::slot::UPSCALER;
use super::{Component, Layout, Place, Slot, Text, keys, llama, pieces::piece};
use crate::bind;
use crate::bind::alias::{self, KINDS, Kind, Reads};
use crate::gguf::{Gguf, Metadata};
use crate::index::{Index, Map, failed_weights, looks_like};
use crate::safetensors::{self, Numbered, Safetensors, Set};
use crate::{Error, Result, pickle};

/// Weights, where they are, and a GGUF's metadata.
#[derive(Debug)]
pub(super) struct WeightFile {
    pub(super) path: PathBuf,
    pub(super) index: Arc<Index>,
    pub(super) metadata: Option<Metadata>,
    /// Whether it is one of PyTorch's own.
    pub(super) is_pickle: bool,
    parts: Vec<Recognised>,
}

impl WeightFile {
    /// Opens a GGUF file, a safetensors file, one of PyTorch's own, or the index of shards. A shard stands for all shards of its model.
    pub(super) fn open(path: &Path) -> Result<WeightFile> {
        let map = Map::open(path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if safetensors::is_index(path, map.bytes()) {
            return Ok(WeightFile::new(path, safetensors::open_sharded(path)?, None));
        }
        if let (Some(shards), Some(dir)) = (Numbered::parse(&name), path.parent()) {
            return Ok(WeightFile::new(path, shards.open(dir)?, None));
        }
        WeightFile::from_map(map)
    }

    /// Opens the files of `set`.
    pub(super) fn of(set: &Set) -> Result<WeightFile> {
        match set {
            Set::File(path) => WeightFile::open(path),
            Set::Index(_) | Set::Shards(..) => Ok(WeightFile::new(&set.path(), set.open()?, None)),
        }
    }

    pub(super) fn from_map(map: Arc<Map>) -> Result<WeightFile> {
        match map.bytes() {
            [b'G', b'G', b'U', b'F', ..] => {
                let Gguf { index, metadata, .. } = Gguf::from_map(map)?;
                if let Some(error) = piece(&metadata) {
                    return Err(error);
                }
                let path = metadata.path().to_owned();
                Ok(WeightFile::new(&path, index, Some(metadata)))
            }
            // The header of a safetensors file, behind its length.
            [_, _, _, _, _, _, _, _, b'{', ..] => {
                let path = map.path().to_owned();
                Ok(WeightFile::new(&path, Safetensors::from_map(map)?.index, None))
            }
            bytes if pickle::begins(bytes) => {
                let path = map.path().to_owned();
                Ok(WeightFile { is_pickle: true, ..WeightFile::new(&path, pickle::from_map(&map)?, None) })
            }
            bytes => Err(failed_weights(map.path(), bytes).unwrap_or_else(|| Error::NotAModel {
                path: map.path().to_owned(),
                found: looks_like(bytes).unwrap_or("a file of an unknown kind").into(),
                hint: Some("give a GGUF or safetensors file, or a diffusers directory (with model_index.json)".into()),
            })),
        }
    }

    fn new(path: &Path, index: Index, metadata: Option<Metadata>) -> WeightFile {
        let parts = recognise::parts(&index);
        WeightFile { path: path.to_owned(), index: Arc::new(index), metadata, is_pickle: false, parts }
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

    /// Its network of `kind`, as the component at `slot`: the one whose names begin with `asked`, if it is given. Of several, a
    /// running average of another is passed over, and one whose names say that it belongs at `slot` comes first.
    ///
    /// # Errors
    /// [`Error::NotAModel`] if it has none, or several that the rule does not tell apart.
    pub(super) fn component(&self, slot: &'static Slot, kind: &Kind, asked: Option<&str>) -> Result<Component> {
        let all: Vec<&str> =
            self.parts.iter().filter(|part| part.kind == kind).map(|part| part.prefix.as_str()).collect();
        let prefixes: Vec<&str> = match asked {
            Some(asked) => all.iter().copied().filter(|prefix| bare(prefix) == bare(asked)).collect(),
            None => foremost(&all, slot),
        };
        let [prefix] = prefixes[..] else { return Err(self.not_one(kind, slot, &all)) };
        let config = match &self.metadata {
            Some(metadata) => metadata.string(&keys::component_config(slot.name))?,
            None => None,
        };
        let own = config.map(|text| Text { text: text.to_owned(), origin: self.path.clone() });
        let config = match (&self.metadata, own) {
            (Some(metadata), None) if kind.reads == Some(Reads::Words) => {
                let table = bind::shape_of(&self.index, prefix, &alias::language_model, "token_embd.weight");
                llama::config(metadata, table.map_or(0, |table| table.rows()))?
            }
            (_, own) => own,
        };
        Ok(Component {
            slot,
            index: Arc::clone(&self.index),
            prefix: prefix.to_owned(),
            layout: Layout::Files,
            config,
            origin: self.path.clone(),
        })
    }

    /// Whether it has one network of the kind that `place` is for, whose names say that it belongs at another of `places`.
    pub(super) fn is_for_another(&self, place: &Place, places: &[Place]) -> bool {
        let mut own = self.parts.iter().filter(|part| part.kind == place.kind);
        let (Some(part), None) = (own.next(), own.next()) else { return false };
        let mut others = places.iter().filter(|other| other.kind == place.kind && other.slot != place.slot);
        !is_of(&part.prefix, place.slot) && others.any(|other| is_of(&part.prefix, other.slot))
    }

    fn not_one(&self, kind: &Kind, slot: &Slot, prefixes: &[&str]) -> Error {
        let (found, hint) = match prefixes {
            [] => (format!("{}, and no {}", self.holds(), kind.words), "`pinhole inspect` says more".to_owned()),
            [.., last] => {
                let bare: Vec<String> = prefixes.iter().map(|prefix| format!("`{}`", bare(prefix))).collect();
                let names: Vec<&str> = bare.iter().map(String::as_str).collect();
                let found = format!("it holds {} of {}, as {}", names.len(), kind.words, list(&names));
                let file = self.path.display();
                (found, format!("say which with {} {file}:{}", slot.option, self::bare(last)))
            }
        };
        let not_run = recognise::not_run(&self.path, &self.index).and_then(|error| error.hint().map(str::to_owned));
        let instead = not_run.or_else(|| match prefixes {
            [] => recognise::instead(&self.index).map(str::to_owned),
            _ => None,
        });
        Error::NotAModel { path: self.path.clone(), found, hint: Some(instead.unwrap_or(hint)) }
    }

    /// What is in it, for messages.
    pub(super) fn holds(&self) -> String {
        let found = recognise(self.index.names());
        let format = match (&self.metadata, self.is_pickle) {
            (Some(_), _) => "GGUF",
            (None, true) => "PyTorch",
            (None, false) => "safetensors",
        };
        if !found.is_empty() {
            return format!("a {format} file that holds {}", found.join("; "));
        }
        let names: Vec<&str> = self.index.names().take(3).collect();
        let more = if self.index.names().nth(names.len()).is_some() { ", ..." } else { "" };
        format!("a {format} file whose tensors it does not recognise ({}{more})", list(&names))
    }
}

/// What stands before the names of a network, without the dot that ends it.
fn bare(prefix: &str) -> &str {
    prefix.strip_suffix('.').unwrap_or(prefix)
}

/// Those of several networks of one kind, by what stands before their names, that come before the others at `slot`.
fn foremost<'a>(prefixes: &[&'a str], slot: &Slot) -> Vec<&'a str> {
    // Real-ESRGAN's own program takes the average, if both are there.
    if *slot == UPSCALER
        && let Some(average) = prefixes.iter().find(|prefix| bare(prefix) == "params_ema")
    {
        return vec![average];
    }
    let mut left: Vec<&str> = prefixes.iter().copied().filter(|prefix| !prefix.split('.').any(is_average)).collect();
    if left.is_empty() {
        left = prefixes.to_vec();
    }
    for words in iter::once(&slot.name).chain(slot.also) {
        let mut named = left.iter().copied().filter(|prefix| has_words(prefix, words));
        if let (Some(only), None) = (named.next(), named.next()) {
            return vec![only];
        }
    }
    left
}

/// Whether `words` are words of `prefix`.
fn has_words(prefix: &str, words: &str) -> bool {
    format!(".{prefix}.").contains(&format!(".{words}."))
}

/// Whether `prefix` is what names at `slot` begin with in some files.
fn is_of(prefix: &str, slot: &Slot) -> bool {
    iter::once(&slot.name).chain(slot.also).any(|words| has_words(prefix, words))
}

/// Whether a part of a name says that what is behind it is a running average of other weights.
fn is_average(word: &str) -> bool {
    word == "ema" || word.starts_with("ema_") || word.ends_with("_ema")
}
