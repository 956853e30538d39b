//! diffusers directories.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::component::list;
use super::folder::{self, MODEL_INDEXES};
use super::slot::{PROCESSOR, SLOTS, TEXT_ENCODER};
use super::tokenizers::Lexicon;
use super::weight_file::WeightFile;
use super::{Component, Layout, Slot, Source, Text};
use crate::index::Index;
use crate::{Error, Result, file, json, safetensors};

/// The stems of the files that weights are in.
pub(super) const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];

pub(super) fn open(path: &Path) -> Result<Source> {
    let mut text = None;
    for index in MODEL_INDEXES {
        text = text.or(Text::read(&path.join(index))?);
    }
    let Some(text) = text else { return Err(no_model(path)) };
    let mut source = Source::empty(path, Layout::Diffusers);
    let index = model_index(&text)?;
    source.says = Some(class_of(&index, &text)?);
    let slots: Vec<&Slot> = SLOTS.into_iter().filter(|slot| !index.get(slot.name).is_some_and(is_null)).collect();
    source.pipeline = settings_of(index, &text);
    source.scheduler = Text::read(&path.join("scheduler/scheduler_config.json"))?;
    source.defaults = Text::read(&path.join("generation_config.json"))?;
    for slot in slots {
        let folder = path.join(slot.name);
        if file::is_there(&folder) {
            match Component::open(&folder, slot) {
                Ok(component) => source.components.push(component),
                // Something else may take its place. If nothing does, opening it again says what is wrong.
                Err(_) => source.unopened.push((slot, folder)),
            }
        }
        if let Some(name) = slot.tokenizer {
            source.lexicons.push((slot, Lexicon::Folder(path.join(name))));
        }
        if *slot == TEXT_ENCODER {
            source.lexicons.push((slot, Lexicon::Folder(path.join(PROCESSOR))));
        }
    }
    Ok(source)
}

impl Component {
    /// The component in `folder`, as diffusers lays it out, for the place `slot`. If no file there has one of the usual names,
    /// the only one with weights will do.
    ///
    /// # Errors
    /// Those of [`crate::safetensors::find`].
    pub fn open(folder: &Path, slot: &'static Slot) -> Result<Component> {
        let index = match safetensors::find(folder, &STEMS) {
            Err(error @ Error::NotAModel { .. }) => only_weights(folder)?.ok_or(error)?,
            found => Arc::new(found?),
        };
        let config = Text::read(&folder.join("config.json"))?;
        let (prefix, layout) = (String::new(), Layout::Diffusers);
        Ok(Component { slot, index, prefix, layout, config, origin: folder.to_owned() })
    }

    /// The component whose tensors are those under `prefix` of `index`, which is read from the file or folder `origin`, by itself.
    ///
    /// # Errors
    /// What reading its configuration returns.
    pub fn lone(origin: &Path, index: &Arc<Index>, prefix: String, slot: &'static Slot) -> Result<Component> {
        let folder = if origin.is_dir() { Some(origin) } else { None };
        let config = folder.map(|folder| Text::read(&folder.join("config.json"))).transpose()?.flatten();
        let (index, layout, origin) = (Arc::clone(index), Layout::Files, origin.to_owned());
        Ok(Component { slot, index, prefix, layout, config, origin })
    }
}

/// The tensors in `folder`, if just one file, or the shards of one model, have weights.
fn only_weights(folder: &Path) -> Result<Option<Arc<Index>>> {
    match &folder::sets(folder)?[..] {
        [only] => Ok(Some(WeightFile::of(only)?.index)),
        _ => Ok(None),
    }
}

/// The key of the pipeline's name.
const CLASS_NAME: &str = "_class_name";

fn model_index(text: &Text) -> Result<Map<String, Value>> {
    let parsed: serde_json::Result<Value> = json::read(&text.text);
    let malformed = |found: String| Error::malformed(&text.origin, CLASS_NAME, "a pipeline's name", found);
    match parsed.map_err(|error| malformed(error.to_string()))? {
        Value::Object(index) => Ok(index),
        other => Err(malformed(other.to_string())),
    }
}

fn class_of(index: &Map<String, Value>, text: &Text) -> Result<String> {
    let found = index.get(CLASS_NAME).unwrap_or(&Value::Null);
    found
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| Error::malformed(&text.origin, CLASS_NAME, "a pipeline's name", found.to_string()))
}

/// Whether a component is none: diffusers writes `[null, null]` for a part that a pipeline was saved without.
fn is_null(component: &Value) -> bool {
    component.as_array().is_some_and(|parts| !parts.is_empty() && parts.iter().all(Value::is_null))
}

/// What is left of `index` without components, and without what names begin with an underscore.
fn settings_of(mut index: Map<String, Value>, text: &Text) -> Option<Text> {
    index.retain(|key, value| {
        // Components are lists of names.
        let is_component = value.as_array().is_some_and(|parts| !parts.iter().all(Value::is_number));
        !key.starts_with('_') && !is_component && !value.is_object() && !value.is_null()
    });
    if index.is_empty() {
        return None;
    }
    Some(Text { text: Value::Object(index).to_string(), origin: text.origin.clone() })
}

/// The error for a directory in which nothing of a model was found.
pub(super) fn no_model(path: &Path) -> Error {
    let mut names = folder::names(path).unwrap_or_default();
    names.sort();
    let download = names.iter().find(|name| name.starts_with("models--"));
    let inner = names.iter().map(|name| path.join(name)).find(|inner| folder::is_model(inner));
    let hint = match (download, inner) {
        (Some(first), _) => format!("it is a cache of downloads: give the folder of one model, such as {first}"),
        (None, Some(inner)) => format!("a model is in it: give {}", inner.display()),
        (None, None) => "give a pinhole bundle, a diffusers directory, or a folder with a model's files".into(),
    };
    names.truncate(5);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    Error::NotAModel {
        path: path.to_owned(),
        found: format!("a directory without model_index.json or files of a model (it holds {})", list(&names)),
        hint: Some(hint),
    }
}
