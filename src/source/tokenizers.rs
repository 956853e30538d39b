//! Where tokenizers come from: files and folders, the metadata of a GGUF, or, for CLIP, the vocabulary that is public.

use std::path::Path;

use super::{Component, Slot, Text, TokenizerFiles, diffusers, keys};
use crate::bind::alias::{Kind, Reads};
use crate::bind::{self, alias};
use crate::gguf::{Gguf, Metadata};
use crate::text::{openai_clip_tokenizer_json, t5_tokenizer_json};
use crate::{Error, Result};

/// Tokens of CLIP as OpenAI published it, the rows of its table.
const OPENAI_TOKENS: usize = 49408;

/// The tokenizer that the user gives for the text encoder at `slot`, which is of `kind`: a `tokenizer.json`, a folder with one, or a GGUF that
/// carries it.
///
/// # Errors
/// [`Error::NotAModel`] if it is none of these.
pub(super) fn given(path: &Path, slot: &Slot, kind: &Kind) -> Result<TokenizerFiles> {
    let metadata = std::fs::metadata(path).map_err(|source| Error::io("open", path, source))?;
    let found = if metadata.is_dir() {
        diffusers::tokenizer_in(path)?
    } else if path.extension().is_some_and(|extension| extension == "gguf") {
        carried(&Gguf::open(path)?.metadata, slot, kind)?
    } else {
        let config = diffusers::read(&path.with_file_name("tokenizer_config.json"))?;
        diffusers::read(path)?.map(|tokenizer| TokenizerFiles { tokenizer, config })
    };
    found.ok_or_else(|| Error::NotAModel {
        path: path.to_owned(),
        found: format!("it has no tokenizer for {}", kind.words),
        hint: Some("give a tokenizer.json, a folder with one, or a GGUF file that carries the tokenizer".into()),
    })
}

/// The tokenizer in a GGUF's metadata: one of pinhole's own, or T5's as llama.cpp writes it.
pub(super) fn carried(metadata: &Metadata, slot: &Slot, kind: &Kind) -> Result<Option<TokenizerFiles>> {
    let text = |text: &str| Text { text: text.to_owned(), origin: metadata.path().to_owned() };
    let Some(name) = slot.tokenizer else { return Ok(None) };
    if let Some(tokenizer) = metadata.string(&keys::tokenizer(name))? {
        let config = metadata.string(&keys::tokenizer_config(name))?.map(text);
        return Ok(Some(TokenizerFiles { tokenizer: text(tokenizer), config }));
    }
    if kind.reads != Some(Reads::T5) {
        return Ok(None);
    }
    Ok(t5_tokenizer_json(metadata)?.map(|json| TokenizerFiles { tokenizer: text(&json), config: None }))
}

/// The tokenizer of `component`, a network of `kind`, if it need not be brought: CLIP's vocabulary is public.
pub(super) fn public(component: &Component, kind: &Kind) -> Result<Option<TokenizerFiles>> {
    const EMBEDDING: &str = "text_model.embeddings.token_embedding.weight";
    if kind.reads != Some(Reads::Clip) {
        return Ok(None);
    }
    let table = bind::shape_of(&component.index, &component.prefix, &alias::clip, EMBEDDING);
    if table.is_none_or(|table| table.rows() != OPENAI_TOKENS) {
        return Ok(None);
    }
    let tokenizer = Text { text: openai_clip_tokenizer_json()?, origin: component.origin.clone() };
    Ok(Some(TokenizerFiles { tokenizer, config: None }))
}
