//! pinhole's own GGUF bundles.

use std::path::Path;
use std::sync::Arc;

use super::slot::SLOTS;
use super::weight_file::WeightFile;
use super::{Component, Layout, Source, Text, TokenizerFiles};
use crate::gguf::Metadata;
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

pub(super) fn open(file: WeightFile) -> Result<Source> {
    let WeightFile { path, index, metadata, .. } = file;
    let metadata =
        &metadata.ok_or_else(|| Error::mismatch(&path, keys::VERSION, "a GGUF", "a file without metadata"))?;
    let version = metadata.u32(keys::VERSION)?.unwrap_or(0);
    if version > VERSION {
        return Err(Error::mismatch(&path, keys::VERSION, format!("at most {VERSION}"), version.to_string())
            .with_hint("this bundle was written by a newer pinhole"));
    }
    let names = metadata.strings(keys::COMPONENTS)?;
    let mut source = Source::empty(&path, Layout::Bundle);
    source.says = metadata.string(keys::ARCHITECTURE)?.map(str::to_owned);
    source.scheduler = text(metadata, keys::SCHEDULER, &path)?;
    source.defaults = text(metadata, keys::DEFAULTS, &path)?;
    for slot in SLOTS {
        if names.is_some_and(|names| names.iter().any(|name| name == slot.name)) {
            let config = text(metadata, &keys::component_config(slot.name), &path)?;
            let (index, prefix) = (Arc::clone(&index), slot.prefix.to_owned());
            let (layout, origin) = (Layout::Bundle, path.clone());
            source.components.push(Component { slot, index, prefix, layout, config, origin });
        }
        if let Some(name) = slot.tokenizer
            && let Some(files) = tokenizer(metadata, name, &path)?
        {
            source.set_tokenizer(slot, files);
        }
    }
    Ok(source)
}

fn text(metadata: &Metadata, key: &str, path: &Path) -> Result<Option<Text>> {
    Ok(metadata.string(key)?.map(|text| Text { text: text.to_owned(), origin: path.to_owned() }))
}

fn tokenizer(metadata: &Metadata, name: &str, path: &Path) -> Result<Option<TokenizerFiles>> {
    let Some(tokenizer) = text(metadata, &keys::tokenizer(name), path)? else { return Ok(None) };
    Ok(Some(TokenizerFiles { tokenizer, config: text(metadata, &keys::tokenizer_config(name), path)? }))
}
