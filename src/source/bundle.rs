//! pinhole's own GGUF bundles.

use std::path::Path;
use std::sync::Arc;

use super::{Component, ComponentKind, Layout, Source, Text, TokenizerFiles, list};
use crate::gguf::{Gguf, Metadata};
use crate::index::{Index, Map};
use crate::{Error, Result};

/// The metadata keys of a bundle: written by the converter, read here.
pub mod keys {
    /// GGUF's own: the model family.
    pub const ARCHITECTURE: &str = "general.architecture";
    /// GGUF's own: a name for people.
    pub const NAME: &str = "general.name";
    /// GGUF's own: the version of the quantized formats.
    pub const QUANTIZATION_VERSION: &str = "general.quantization_version";
    /// GGUF's own: what most matrices are.
    pub const FILE_TYPE: &str = "general.file_type";
    /// The version of the bundle's layout.
    pub const VERSION: &str = "pinhole.version";
    /// Which components the bundle holds.
    pub const COMPONENTS: &str = "pinhole.components";
    /// The text of `scheduler_config.json`.
    pub const SCHEDULER: &str = "pinhole.scheduler.config";
    /// The text of `generation_config.json`.
    pub const DEFAULTS: &str = "pinhole.defaults";

    /// The text of a component's `config.json`.
    pub fn component_config(component: &str) -> String {
        format!("pinhole.{component}.config")
    }

    /// The text of a `tokenizer.json`.
    pub fn tokenizer(name: &str) -> String {
        format!("pinhole.tokenizer.{name}")
    }

    /// The text of a `tokenizer_config.json`.
    pub fn tokenizer_config(name: &str) -> String {
        format!("pinhole.tokenizer.{name}.config")
    }
}

/// The layout that this version writes, and the newest that it reads.
pub(crate) const VERSION: u32 = 1;

pub(super) fn open(map: Arc<Map>) -> Result<Source> {
    if !map.bytes().starts_with(b"GGUF") {
        return Err(not_gguf(&map));
    }
    let gguf = Gguf::from_map(map)?;
    let metadata = &gguf.metadata;
    let path = metadata.path().to_owned();
    let architecture = metadata.string(keys::ARCHITECTURE)?.unwrap_or("").to_owned();
    let Some(version) = metadata.u32(keys::VERSION)? else { return Err(foreign(&path, &architecture, &gguf.index)) };
    if version > VERSION {
        return Err(Error::mismatch(&path, keys::VERSION, format!("at most {VERSION}"), version.to_string())
            .with_hint("this bundle was written by a newer pinhole"));
    }
    let index = Arc::new(gguf.index);
    let names = metadata.strings(keys::COMPONENTS)?;
    let mut components = Vec::new();
    for kind in ComponentKind::ALL {
        if names.is_some_and(|names| names.iter().any(|name| name == kind.name())) {
            let config = text(metadata, &keys::component_config(kind.name()), &path)?;
            let component =
                Component { index: Arc::clone(&index), prefix: kind.prefix(), config, origin: path.clone() };
            components.push((kind, component));
        }
    }
    Ok(Source {
        layout: Layout::Bundle,
        architecture,
        components,
        tokenizer: tokenizer(metadata, "tokenizer", &path)?,
        tokenizer_2: tokenizer(metadata, "tokenizer_2", &path)?,
        scheduler: text(metadata, keys::SCHEDULER, &path)?,
        defaults: text(metadata, keys::DEFAULTS, &path)?,
        path,
    })
}

fn text(metadata: &Metadata, key: &str, path: &Path) -> Result<Option<Text>> {
    Ok(metadata.string(key)?.map(|text| Text { text: text.to_owned(), origin: path.to_owned() }))
}

fn tokenizer(metadata: &Metadata, name: &str, path: &Path) -> Result<Option<TokenizerFiles>> {
    let Some(tokenizer) = text(metadata, &keys::tokenizer(name), path)? else { return Ok(None) };
    Ok(Some(TokenizerFiles { tokenizer, config: text(metadata, &keys::tokenizer_config(name), path)? }))
}

/// What to say of a GGUF that is no bundle.
fn foreign(path: &Path, architecture: &str, index: &Index) -> Error {
    let what = if architecture.is_empty() { "of no named architecture".into() } else { format!("of `{architecture}`") };
    let names: Vec<&str> = index.iter().map(|(name, _)| name).take(3).collect();
    Error::NotAModel {
        path: path.to_owned(),
        found: format!("a GGUF {what} with {} tensors ({}, ...) that is no pinhole bundle", index.len(), list(&names)),
        hint: Some("make a bundle of a diffusers directory with `pinhole convert DIR -o MODEL.gguf`".into()),
    }
}

fn not_gguf(map: &Map) -> Error {
    let found = match map.bytes() {
        [] => "an empty file",
        [b'P', b'K', ..] => "a zip archive or a Python pickle",
        [_, _, _, _, _, _, _, _, b'{', ..] => "a safetensors file, one part of a model",
        _ => "a file of an unknown kind",
    };
    Error::NotAModel {
        path: map.path().to_owned(),
        found: found.into(),
        hint: Some("give a pinhole bundle (.gguf) or a diffusers directory (with model_index.json)".into()),
    }
}
