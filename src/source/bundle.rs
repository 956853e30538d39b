//! pinhole's own GGUF bundles.

use std::path::Path;
use std::sync::Arc;

use super::slot::SLOTS;
use super::weight_file::WeightFile;
use super::{Component, Layout, Source, Text, TokenizerFiles, keys};
use crate::gguf::{Metadata, Strings};
use crate::{Error, Result};

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
    source.pipeline = text(metadata, keys::PIPELINE, &path)?;
    source.feature_extractor = text(metadata, keys::FEATURE_EXTRACTOR, &path)?;
    source.merged.extend(metadata.strings(keys::MERGED)?.into_iter().flat_map(Strings::iter).map(str::to_owned));
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
