//! Where tokenizers come from: files and folders, the metadata of a GGUF, or, for CLIP, the vocabulary that is public.

use std::path::Path;

use super::{Component, ComponentKind, Text, TokenizerFiles, diffusers, keys};
use crate::bind::{self, alias};
use crate::gguf::{Gguf, Metadata};
use crate::text::{openai_clip_tokenizer_json, t5_tokenizer_json};
use crate::{Error, Result};

/// Tokens of CLIP as OpenAI published it, the rows of its table.
const OPENAI_TOKENS: usize = 49408;

/// The tokenizer that the user gives for `kind`: a `tokenizer.json`, a folder with one, or a GGUF that carries it.
///
/// # Errors
/// [`Error::NotAModel`] where it is none of these.
pub(super) fn given(path: &Path, kind: ComponentKind) -> Result<TokenizerFiles> {
    let metadata = std::fs::metadata(path).map_err(|source| Error::io("open", path, source))?;
    let found = if metadata.is_dir() {
        diffusers::tokenizer_in(path, kind)?
    } else if path.extension().is_some_and(|extension| extension == "gguf") {
        carried(&Gguf::open(path)?.metadata, kind)?
    } else {
        let config = diffusers::read(&path.with_file_name("tokenizer_config.json"))?;
        diffusers::read(path)?.map(|tokenizer| TokenizerFiles { tokenizer, config })
    };
    found.ok_or_else(|| Error::NotAModel {
        path: path.to_owned(),
        found: format!("it has no tokenizer for {}", kind.words()),
        hint: Some("give a tokenizer.json, a folder with one, or a GGUF file that carries the tokenizer".into()),
    })
}

/// The tokenizer in a GGUF's metadata.
pub(super) fn carried(metadata: &Metadata, kind: ComponentKind) -> Result<Option<TokenizerFiles>> {
    let text = |text: &str| Text { text: text.to_owned(), origin: metadata.path().to_owned() };
    let Some(name) = kind.tokenizer() else { return Ok(None) };
    if let Some(tokenizer) = metadata.string(&keys::tokenizer(name))? {
        let config = metadata.string(&keys::tokenizer_config(name))?.map(text);
        return Ok(Some(TokenizerFiles { tokenizer: text(tokenizer), config }));
    }
    if kind != ComponentKind::TextEncoder2 {
        return Ok(None);
    }
    Ok(t5_tokenizer_json(metadata)?.map(|json| TokenizerFiles { tokenizer: text(&json), config: None }))
}

/// The tokenizer of `component` where nothing brings one: CLIP's vocabulary is public.
pub(super) fn public(component: &Component, kind: ComponentKind) -> Result<Option<TokenizerFiles>> {
    const EMBEDDING: &str = "text_model.embeddings.token_embedding.weight";
    if kind != ComponentKind::TextEncoder {
        return Ok(None);
    }
    let table = bind::shape_of(&component.index, &component.prefix, alias::clip, EMBEDDING);
    if table.is_none_or(|table| table.rows() != OPENAI_TOKENS) {
        return Ok(None);
    }
    let tokenizer = Text { text: openai_clip_tokenizer_json()?, origin: component.origin.clone() };
    Ok(Some(TokenizerFiles { tokenizer, config: None }))
}
