//! diffusers directories.

use std::io;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::component::list;
use super::slot::SLOTS;
use super::{Component, Layout, Slot, Source, Text, TokenizerFiles};
use crate::text::{TokenizerConfig, clip_tokenizer_json};
use crate::{Error, Result, safetensors};

/// The stems of the files that weights are in.
pub(super) const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];

/// No configuration or tokenizer is larger than this.
const MOST_BYTES: u64 = 64 << 20;

/// What lies at the top of such a directory.
const MODEL_INDEX: &str = "model_index.json";

/// Whether the directory `path` is one.
pub(super) fn is_model(path: &Path) -> bool {
    path.join(MODEL_INDEX).exists()
}

pub(super) fn open(path: &Path) -> Result<Source> {
    let Some(text) = read(&path.join(MODEL_INDEX))? else { return Err(no_model(path)) };
    let mut source = Source::empty(path, Layout::Diffusers);
    source.says = Some(class_of(&text)?);
    source.scheduler = read(&path.join("scheduler/scheduler_config.json"))?;
    source.defaults = read(&path.join("generation_config.json"))?;
    for slot in SLOTS {
        let folder = path.join(slot.name);
        if folder.is_dir() {
            source.components.push(Component::open(&folder, slot)?);
        }
        if let Some(name) = slot.tokenizer
            && let Some(files) = tokenizer_in(&path.join(name))?
        {
            source.set_tokenizer(slot, files);
        }
    }
    Ok(source)
}

impl Component {
    /// The component in `folder`, as diffusers lays it out, for the place `slot`.
    ///
    /// # Errors
    /// Those of [`crate::safetensors::find`].
    pub fn open(folder: &Path, slot: &'static Slot) -> Result<Component> {
        let index = Arc::new(safetensors::find(folder, &STEMS)?);
        let config = read(&folder.join("config.json"))?;
        let (prefix, layout) = (String::new(), Layout::Diffusers);
        Ok(Component { slot, index, prefix, layout, config, origin: folder.to_owned() })
    }
}

/// The text of a file, or `None` where there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<Text>> {
    let failed = |source| Error::io("read", path, source);
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if metadata.len() > MOST_BYTES => {
            let found = format!("{} bytes", metadata.len());
            return Err(Error::malformed(path, "file", format!("at most {MOST_BYTES} bytes"), found));
        }
        Ok(_) => {}
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    Ok(Some(Text { text, origin: path.to_owned() }))
}

fn class_of(model_index: &Text) -> Result<String> {
    let parsed: Result<Value, _> = serde_json::from_str(&model_index.text);
    let malformed = |found: String| Error::malformed(&model_index.origin, "_class_name", "a pipeline's name", found);
    let value = parsed.map_err(|error| malformed(error.to_string()))?;
    value["_class_name"].as_str().map(str::to_owned).ok_or_else(|| malformed(value["_class_name"].to_string()))
}

/// The tokenizer in `folder`, if there is one. A folder with only `vocab.json` and `merges.txt`, as CLIP's often is, will do.
pub(super) fn tokenizer_in(folder: &Path) -> Result<Option<TokenizerFiles>> {
    let config = read(&folder.join("tokenizer_config.json"))?;
    if let Some(tokenizer) = read(&folder.join("tokenizer.json"))? {
        return Ok(Some(TokenizerFiles { tokenizer, config }));
    }
    let (Some(vocab), Some(merges)) = (read(&folder.join("vocab.json"))?, read(&folder.join("merges.txt"))?) else {
        return Ok(None);
    };
    let parsed = match &config {
        Some(config) => TokenizerConfig::from_json(&config.text, &config.origin)?,
        None => TokenizerConfig::default(),
    };
    let text = clip_tokenizer_json(&vocab.text, &merges.text, &parsed, folder)?;
    Ok(Some(TokenizerFiles { tokenizer: Text { text, origin: folder.to_owned() }, config }))
}

/// The error for a directory in which nothing of a model was found.
pub(super) fn no_model(path: &Path) -> Error {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names.truncate(5);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    Error::NotAModel {
        path: path.to_owned(),
        found: format!("a directory without model_index.json or files of a model (it holds {})", list(&names)),
        hint: Some("give a pinhole bundle, a diffusers directory, or a folder with a model's files".into()),
    }
}
