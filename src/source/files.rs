//! Models that lie in files of other tools: one for each part, several parts in one, or all together in a folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::component::list;
use super::model::Given;
use super::recognise::{self, recognise};
use super::slot::{self, SLOTS};
use super::weight_file::WeightFile;
use super::{Component, Layout, Place, Slot, Source, TokenizerFiles, diffusers, tokenizers};
use crate::bind::alias::Kind;
use crate::{Error, Result};

/// Files that are given one by one, each for a place in a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// Weights: a file, a folder of a diffusers directory, or a whole model.
    pub parts: Vec<(&'static Slot, PathBuf)>,
    /// Tokenizers: a `tokenizer.json`, a folder with one (or, for CLIP, with `vocab.json` and `merges.txt`), or a GGUF file that
    /// carries it.
    pub tokenizers: Vec<(&'static Slot, PathBuf)>,
}

impl Files {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.tokenizers.is_empty()
    }
}

impl Given {
    fn open(path: &Path, slot: &'static Slot) -> Result<Given> {
        let metadata = std::fs::metadata(path).map_err(|source| Error::io("open", path, source))?;
        if !metadata.is_dir() {
            return Ok(Given::File(Arc::new(WeightFile::open(path)?)));
        }
        if diffusers::is_model(path) {
            return Ok(Given::Model(Box::new(diffusers::open(path)?)));
        }
        Ok(Given::Folder(Box::new(Component::open(path, slot)?)))
    }

    /// The network for `place`, with the tokenizer that comes with it.
    fn take(&self, place: &Place) -> Result<(Component, Option<TokenizerFiles>)> {
        let Place { slot, kind, .. } = *place;
        match self {
            Given::File(file) => in_file(file, place),
            Given::Folder(component) => {
                require(component, kind)?;
                Ok(((**component).clone(), beside(&component.origin, slot)?))
            }
            Given::Model(source) => Ok((source.component(slot)?.clone(), source.tokenizer(slot).cloned())),
        }
    }
}

/// `base` with the parts that `files` gives in the place of its own; without a base, what `files` gives.
pub(super) fn assemble(base: Option<Source>, files: &Files) -> Result<Source> {
    let mut source = base.unwrap_or_else(|| {
        let path = files.parts.first().map_or(Path::new(""), |(_, path)| path);
        Source::empty(path, Layout::Files)
    });
    for (slot, path) in &files.parts {
        source.given.push((slot, Given::open(path, slot)?));
    }
    source.given_tokenizers.extend(files.tokenizers.iter().cloned());
    Ok(source)
}

/// See [`Source::arranged`].
pub(super) fn arrange(mut source: Source, places: &[Place]) -> Result<Source> {
    for (slot, _) in &source.given {
        known(places, slot, slot.option)?;
    }
    for (slot, _) in &source.given_tokenizers {
        known(places, slot, slot.tokenizer_option)?;
    }
    for place in places {
        let found = match source.given.iter().find(|(slot, _)| *slot == place.slot) {
            Some((_, given)) => Some(given.take(place)?),
            None if source.has(place.slot) => None,
            None => loose(&source, place)?,
        };
        if let Some((component, tokenizer)) = found {
            source.components.retain(|other| other.slot != place.slot);
            source.components.push(component);
            if let Some(files) = tokenizer {
                source.set_tokenizer(place.slot, files);
            }
        }
        add_tokenizer(&mut source, place)?;
    }
    source.components.sort_by_key(|component| slot::order(component.slot));
    source.loose.clear();
    source.given.clear();
    source.given_tokenizers.clear();
    Ok(source)
}

/// Refuses a slot that none of `places` has.
fn known(places: &[Place], slot: &Slot, option: &'static str) -> Result<()> {
    if places.iter().any(|place| place.slot == slot) {
        return Ok(());
    }
    let names: Vec<&str> = places.iter().map(|place| place.slot.name).collect();
    Err(Error::option(option, format!("a part of this kind of model: {}", list(&names)), slot.name))
}

/// Adds the tokenizer that the user gave for `place`, or the public one if there is no other.
fn add_tokenizer(source: &mut Source, place: &Place) -> Result<()> {
    let given = source.given_tokenizers.iter().find(|(slot, _)| *slot == place.slot).map(|(_, path)| path.clone());
    if let Some(path) = given {
        source.set_tokenizer(place.slot, tokenizers::given(&path, place.slot, place.kind)?);
        return Ok(());
    }
    if source.tokenizer(place.slot).is_none()
        && let Ok(component) = source.component(place.slot)
        && let Some(files) = tokenizers::public(component, place.kind)?
    {
        source.set_tokenizer(place.slot, files);
    }
    Ok(())
}

/// The network for `place` in the loose files of `source`.
fn loose(source: &Source, place: &Place) -> Result<Option<(Component, Option<TokenizerFiles>)>> {
    let having: Vec<&Arc<WeightFile>> = source.loose.iter().filter(|file| file.has(place.kind)).collect();
    match having[..] {
        [] => Ok(None),
        [file] => in_file(file, place).map(Some),
        _ => Err(several(&source.path, place, &having)),
    }
}

/// The network for `place` in `file`.
fn in_file(file: &WeightFile, place: &Place) -> Result<(Component, Option<TokenizerFiles>)> {
    let carried = match &file.metadata {
        Some(metadata) => tokenizers::carried(metadata, place.slot, place.kind)?,
        None => None,
    };
    let tokenizer = match carried {
        None => beside(&file.path, place.slot)?,
        carried => carried,
    };
    Ok((file.component(place.slot, place.kind)?, tokenizer))
}

/// Refuses a folder whose weights are not those of a `kind`.
fn require(component: &Component, kind: &Kind) -> Result<()> {
    if recognise::parts(&component.index).iter().any(|part| part.kind == kind) {
        return Ok(());
    }
    let held = recognise(component.index.iter().map(|(name, _)| name));
    let held = if held.is_empty() { "nothing that pinhole recognises".to_owned() } else { held.join("; ") };
    let found = format!("a folder that holds {held}, and no {}", kind.words);
    Err(Error::NotAModel { path: component.origin.clone(), found, hint: None })
}

/// The tokenizer in the folder that diffusers gives it, beside the weights at `path`.
fn beside(path: &Path, slot: &Slot) -> Result<Option<TokenizerFiles>> {
    let (Some(parent), Some(name)) = (path.parent(), slot.tokenizer) else { return Ok(None) };
    let folder = parent.join(name);
    if folder.is_dir() { diffusers::tokenizer_in(&folder) } else { Ok(None) }
}

/// The networks in one file.
pub(super) fn open_file(file: WeightFile) -> Result<Source> {
    if file.kinds().next().is_none() {
        return Err(Error::NotAModel {
            path: file.path.clone(),
            found: file.holds(),
            hint: Some("`pinhole inspect` says more".into()),
        });
    }
    let mut source = Source::empty(&file.path, Layout::Files);
    source.loose.push(Arc::new(file));
    Ok(source)
}

/// The networks in the files of the folder `dir`; `None` if no file there has any.
pub(super) fn open_folder(dir: &Path) -> Result<Option<Source>> {
    let mut source = Source::empty(dir, Layout::Files);
    source.loose = weight_files(dir)?;
    Ok((!source.loose.is_empty()).then_some(source))
}

/// The files in `dir` with networks that pinhole runs, by name. Files that are no models are passed over, and so are bundles:
/// each is a model of its own.
fn weight_files(dir: &Path) -> Result<Vec<Arc<WeightFile>>> {
    let entries = std::fs::read_dir(dir).map_err(|source| Error::io("open", dir, source))?;
    let mut paths = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        let extension = path.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("safetensors" | "gguf")) && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    let mut files = Vec::new();
    for path in paths {
        let file = WeightFile::open(&path)?;
        if file.kinds().next().is_some() && !file.is_bundle() {
            files.push(Arc::new(file));
        }
    }
    Ok(files)
}

fn several(dir: &Path, place: &Place, files: &[&Arc<WeightFile>]) -> Error {
    let mut names = Vec::new();
    for file in files {
        names.extend(file.path.file_name().and_then(|name| name.to_str()));
    }
    Error::NotAModel {
        path: dir.to_owned(),
        found: format!("it has {} of {} ({})", names.len(), place.kind.words, list(&names)),
        hint: Some(format!("say which with {} FILE", place.slot.option)),
    }
}

impl Files {
    /// Adds `path` for the slot `name`, if there is such a slot.
    pub fn add(&mut self, name: &str, path: PathBuf) {
        if let Some(slot) = slot::slot(name) {
            self.parts.push((slot, path));
        } else if let Some(slot) = SLOTS.into_iter().find(|slot| slot.tokenizer == Some(name)) {
            self.tokenizers.push((slot, path));
        }
    }
}
