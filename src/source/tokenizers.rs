//! Where tokenizers come from: files and folders, the metadata of a GGUF, or, for CLIP, the vocabulary that is public.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::slot::{PROCESSOR, TEXT_ENCODER};
use super::weight_file::WeightFile;
use super::{Component, Place, Slot, Text, TokenizerFiles, folder, keys};
use crate::bind::alias::{Kind, Reads};
use crate::bind::{self, alias};
use crate::gguf::{Gguf, Metadata};
use crate::index::{Storage, failed_text, tensor_at};
use crate::models::clip::WIDEST_OF_OPENAI;
use crate::text::{
    TokenizerConfig, byte_level_gguf_json, byte_level_tokenizer_json, clip_tokenizer_json, openai_clip_tokenizer_json,
    t5_spiece_json, t5_tokenizer_json, tekken_tokenizer_json,
};
use crate::{Error, Result, file, json};

/// Tokens of CLIP as OpenAI published it, the rows of its table.
const OPENAI_TOKENS: usize = 49408;

/// What SentencePiece's models are called.
const SPIECES: [&str; 2] = ["spiece.model", "tokenizer.model"];

/// The marks that a `special_tokens_map.json` may name.
const MARKS: [&str; 4] = ["bos_token", "eos_token", "unk_token", "pad_token"];

/// Somewhere that a tokenizer may be. It is read if it is needed.
#[derive(Clone, Debug)]
pub(super) enum Lexicon {
    /// What the user gave: a file or folder that must have one.
    Given(PathBuf),
    /// The metadata of a file with weights.
    Carried(Arc<WeightFile>),
    /// A folder for a tokenizer.
    Folder(PathBuf),
    /// A folder with files of all kinds.
    Among(PathBuf),
}

impl Lexicon {
    /// Where the tokenizer for `slot` may lie in `folder`, beside weights: in the folder that diffusers gives it, or among the
    /// files there.
    pub(super) fn beside(folder: Option<&Path>, slot: &Slot) -> Vec<Lexicon> {
        let (Some(folder), Some(name)) = (folder, slot.tokenizer) else { return Vec::new() };
        let mut found = vec![Lexicon::Folder(folder.join(name))];
        if *slot == TEXT_ENCODER {
            found.push(Lexicon::Folder(folder.join(PROCESSOR)));
        }
        found.push(Lexicon::Among(folder.to_owned()));
        found
    }

    /// The tokenizer for `component`, which takes `place`, if it is here.
    ///
    /// # Errors
    /// What reading it returns; [`Error::NotAModel`] if it must be here and is not.
    pub(super) fn read(&self, component: &Component, place: &Place) -> Result<Option<TokenizerFiles>> {
        let Place { slot, kind, .. } = *place;
        let Some(reads) = kind.reads else { return Ok(None) };
        let rows = rows(component, reads);
        match self {
            Lexicon::Given(path) => given(path, slot, kind, rows).map(Some),
            Lexicon::Carried(file) => match &file.metadata {
                Some(metadata) => carried(metadata, slot, reads),
                None if reads == Reads::T5 => pieces_among(file, rows),
                None => within(component, reads),
            },
            Lexicon::Folder(folder) => in_folder(folder, reads, rows),
            // What lies there may belong to something else, and this vocabulary is public.
            Lexicon::Among(_) if reads == Reads::Clip && rows == Some(OPENAI_TOKENS) => Ok(None),
            Lexicon::Among(folder) => {
                let found = in_folder(folder, reads, rows)?;
                Ok(found.filter(|files| reads_of(&files.tokenizer.text) == Some(reads)))
            }
        }
    }
}

/// How many tokens `component` has room for, if it says.
fn rows(component: &Component, reads: Reads) -> Option<usize> {
    let Component { index, prefix, .. } = component;
    let table = match reads {
        Reads::Clip => bind::shape_of(index, prefix, &alias::clip, "text_model.embeddings.token_embedding.weight"),
        Reads::T5 => bind::shape_of(index, prefix, &alias::t5, "token_embd.weight"),
        Reads::Words => bind::shape_of(index, prefix, &alias::language_model, "token_embd.weight"),
    };
    table.map(|table| table.rows())
}

/// What the user gives for the text encoder at `slot`, which is of `kind`. What a file is, its content says.
fn given(path: &Path, slot: &Slot, kind: &Kind, rows: Option<usize>) -> Result<TokenizerFiles> {
    let reads = kind.reads.unwrap_or(Reads::Clip);
    let found = if file::is_directory(path)? {
        let folder = folder::of(path)?;
        match in_folder(&folder, reads, rows)? {
            Some(files) => Some(files),
            None => in_folder(&folder.join(slot.tokenizer.unwrap_or_default()), reads, rows)?,
        }
    } else {
        in_file(path, slot, reads, rows)?
    };
    found.ok_or_else(|| Error::NotAModel {
        path: path.to_owned(),
        found: format!("it has no tokenizer for {}", kind.words),
        hint: Some(format!("give {}", kinds(reads))),
    })
}

/// What may be given as a tokenizer.
fn kinds(reads: Reads) -> &'static str {
    match reads {
        Reads::Clip => "a tokenizer.json, a folder with one or with vocab.json and merges.txt, or a bundle",
        Reads::Words => {
            "a tokenizer.json, a folder with one or with vocab.json and merges.txt, or a GGUF file that carries it"
        }
        Reads::T5 => "a tokenizer.json, a spiece.model, a folder with one, or a GGUF file that carries it",
    }
}

/// The tokenizer that the file at `path` is, or carries, if it does.
fn in_file(path: &Path, slot: &Slot, reads: Reads, rows: Option<usize>) -> Result<Option<TokenizerFiles>> {
    let mut start = Vec::new();
    let (opened, _) = file::open(path)?;
    opened.take(4096).read_to_end(&mut start).map_err(|source| Error::io("read", path, source))?;
    if let Some(error) = failed_text(path, &start) {
        return Err(error);
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    match start.trim_ascii_start() {
        [b'G', b'G', b'U', b'F', ..] => carried(&Gguf::open(path)?.metadata, slot, reads),
        [b'{', ..] => {
            let tokenizer = Text { text: file::text(path)?, origin: path.to_owned() };
            let is_bpe = reads != Reads::T5;
            if is_bpe && is_vocabulary(&tokenizer.text) && file::is_there(&folder.join("merges.txt")) {
                return pairs(path, &folder.join("merges.txt"), reads);
            }
            Ok(Some(TokenizerFiles { tokenizer, config: config(folder)? }))
        }
        // Behind the length of a safetensors file's header.
        _ if reads == Reads::T5 && start.get(8) == Some(&b'{') => pieces_among(&WeightFile::open(path)?, rows),
        // The first piece of a protobuf.
        _ if reads == Reads::T5 && start.starts_with(b"\n") => spiece(path, rows).map(Some),
        _ if reads != Reads::T5 && start.starts_with(b"#version") => pairs(&folder.join("vocab.json"), path, reads),
        _ => Ok(None),
    }
}

/// The tokenizer in `folder`, if there is one.
fn in_folder(folder: &Path, reads: Reads, rows: Option<usize>) -> Result<Option<TokenizerFiles>> {
    if let Some(tokenizer) = Text::read(&folder.join("tokenizer.json"))? {
        return Ok(Some(TokenizerFiles { tokenizer, config: config(folder)? }));
    }
    match reads {
        Reads::Clip | Reads::Words => pairs(&folder.join("vocab.json"), &folder.join("merges.txt"), reads),
        Reads::T5 => {
            let there = SPIECES.map(|name| folder.join(name)).into_iter().find(|path| file::is_there(path));
            there.map(|path| spiece(&path, rows)).transpose()
        }
    }
}

/// The settings of the tokenizer in `folder`: its `tokenizer_config.json`, in which the marks of an older
/// `special_tokens_map.json` replace others, as transformers has it. Stable Diffusion 2 pads as only the latter says.
fn config(folder: &Path) -> Result<Option<Text>> {
    let config = Text::read(&folder.join("tokenizer_config.json"))?;
    let Some(marks) = Text::read(&folder.join("special_tokens_map.json"))? else { return Ok(config) };
    let (text, origin) = match &config {
        Some(config) => (config.text.as_str(), config.origin.clone()),
        None => ("{}", marks.origin.clone()),
    };
    // What is no object is refused where the settings are used.
    let Ok(mut settings) = json::read::<Map<String, Value>>(text) else { return Ok(config) };
    if settings.contains_key("added_tokens_decoder") {
        return Ok(config);
    }
    let marks: Map<String, Value> = json::read(&marks.text).map_err(|error| {
        Error::malformed(&marks.origin, "special tokens", "a JSON object of tokens", error.to_string())
    })?;
    for (name, mark) in marks {
        if MARKS.contains(&name.as_str()) && !mark.is_null() {
            settings.insert(name, mark);
        }
    }
    Ok(Some(Text { text: Value::Object(settings).to_string(), origin }))
}

/// A BPE in two files, as the published models have it; `None` if one is missing.
fn pairs(vocab: &Path, merges: &Path, reads: Reads) -> Result<Option<TokenizerFiles>> {
    let (Some(tokens), Some(merges)) = (Text::read(vocab)?, Text::read(merges)?) else { return Ok(None) };
    let folder = vocab.parent().unwrap_or(Path::new(""));
    let config = config(folder)?;
    let parsed = match &config {
        Some(config) => TokenizerConfig::from_json(&config.text, &config.origin)?,
        None => TokenizerConfig::default(),
    };
    let text = match reads {
        Reads::Words => byte_level_tokenizer_json(&tokens.text, &merges.text, &parsed, folder)?,
        _ => clip_tokenizer_json(&tokens.text, &merges.text, &parsed, folder)?,
    };
    Ok(Some(TokenizerFiles { tokenizer: Text { text, origin: folder.to_owned() }, config }))
}

/// The same among the tensors of a file with weights, if it is there.
fn pieces_among(file: &WeightFile, rows: Option<usize>) -> Result<Option<TokenizerFiles>> {
    const TENSOR: &str = "spiece_model";
    let name = file.index.names().find(|name| name.rsplit('.').next() == Some(TENSOR));
    let Some(tensor) = name.and_then(|name| file.index.get(name)) else { return Ok(None) };
    let text = t5_spiece_json(tensor.bytes(), rows, &file.path)?;
    Ok(Some(TokenizerFiles { tokenizer: Text { text, origin: file.path.clone() }, config: None }))
}

/// T5's tokenizer as SentencePiece wrote it, for a text encoder with `rows` tokens.
fn spiece(path: &Path, rows: Option<usize>) -> Result<TokenizerFiles> {
    let text = t5_spiece_json(&file::bytes(path)?, rows, path)?;
    let config = config(path.parent().unwrap_or(Path::new("")))?;
    Ok(TokenizerFiles { tokenizer: Text { text, origin: path.to_owned() }, config })
}

/// The parts of a `tokenizer.json` that say what it is.
#[derive(Deserialize)]
struct Outline {
    model: Option<Model>,
}

#[derive(Deserialize)]
struct Model {
    r#type: Option<String>,
    end_of_word_suffix: Option<String>,
}

/// Whether the text of a JSON file is a vocabulary alone: it has tokens in the place of a tokenizer's parts.
fn is_vocabulary(text: &str) -> bool {
    serde_json::from_str::<Outline>(text).is_ok_and(|outline| outline.model.is_none())
        || serde_json::from_str::<HashMap<String, u32>>(text).is_ok()
}

/// Whose tokens a `tokenizer.json` makes, as far as it says.
fn reads_of(text: &str) -> Option<Reads> {
    let outline: Outline = serde_json::from_str(text).ok()?;
    let model = outline.model?;
    match model.r#type?.as_str() {
        // Only CLIP's pieces show that a word ends with them.
        "BPE" if model.end_of_word_suffix.is_some_and(|suffix| !suffix.is_empty()) => Some(Reads::Clip),
        "BPE" => Some(Reads::Words),
        "Unigram" => Some(Reads::T5),
        _ => None,
    }
}

/// The tokenizer in a GGUF's metadata: one of pinhole's own, or that of T5 or a language model as llama.cpp writes it.
fn carried(metadata: &Metadata, slot: &Slot, reads: Reads) -> Result<Option<TokenizerFiles>> {
    let text = |text: &str| Text { text: text.to_owned(), origin: metadata.path().to_owned() };
    let Some(name) = slot.tokenizer else { return Ok(None) };
    if let Some(tokenizer) = metadata.string(&keys::tokenizer(name))? {
        let config = metadata.string(&keys::tokenizer_config(name))?.map(text);
        return Ok(Some(TokenizerFiles { tokenizer: text(tokenizer), config }));
    }
    let json = match reads {
        Reads::Clip => None,
        Reads::T5 => t5_tokenizer_json(metadata)?,
        Reads::Words => byte_level_gguf_json(metadata)?,
    };
    Ok(json.map(|json| TokenizerFiles { tokenizer: text(&json), config: None }))
}

/// The tensor in which ComfyUI's files of Mistral carry a `tekken.json`, byte by byte.
const TEKKEN: &str = "tekken_model";

/// The tokenizer in a tensor beside the weights of `component`, if there is one.
fn within(component: &Component, reads: Reads) -> Result<Option<TokenizerFiles>> {
    let Component { index, prefix, origin, .. } = component;
    let names = [format!("{prefix}{TEKKEN}"), TEKKEN.to_owned()];
    let Some(tensor) = names.iter().find_map(|name| index.get(name)) else { return Ok(None) };
    if reads != Reads::Words || tensor.storage != Storage::U8 {
        return Ok(None);
    }
    let text = std::str::from_utf8(tensor.bytes());
    let text = text.map_err(|error| Error::malformed(origin, tensor_at(TEKKEN), "text", error.to_string()))?;
    let text = tekken_tokenizer_json(text, origin)?;
    Ok(Some(TokenizerFiles { tokenizer: Text { text, origin: origin.clone() }, config: None }))
}

/// What is set for OpenCLIP's text encoders: the token with id 0 pads.
const ZERO_PADDED: &str = r#"{"pad_token": "!"}"#;

/// Whether `component` is one of OpenCLIP's text encoders, by its names or, under those of transformers, by its width.
fn pads_with_zeros(component: &Component) -> bool {
    let Component { index, prefix, .. } = component;
    let table = bind::shape_of(index, prefix, &alias::clip, "text_model.embeddings.token_embedding.weight");
    alias::is_open_clip(index, prefix) || table.is_some_and(|table| table.row() > WIDEST_OF_OPENAI)
}

/// The tokenizer of `component`, a network of `kind`, if it need not be brought: CLIP's vocabulary is public.
pub(super) fn public(component: &Component, kind: &Kind) -> Result<Option<TokenizerFiles>> {
    if kind.reads != Some(Reads::Clip) || rows(component, Reads::Clip) != Some(OPENAI_TOKENS) {
        return Ok(None);
    }
    let text = |text: String| Text { text, origin: component.origin.clone() };
    let (settings, config) = match pads_with_zeros(component) {
        true => (TokenizerConfig::from_json(ZERO_PADDED, &component.origin)?, Some(text(ZERO_PADDED.to_owned()))),
        false => (TokenizerConfig::default(), None),
    };
    Ok(Some(TokenizerFiles { tokenizer: text(openai_clip_tokenizer_json(&settings)?), config }))
}
