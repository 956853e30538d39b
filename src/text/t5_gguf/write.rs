//! From a `tokenizer.json` to metadata.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value as Json;

use super::{
    ADD_BOS, ADD_EOS, ADDED_SCORE, CHARSMAP, END, EOS, FILLER_SCORE, Kind, MAX_TOKENS, MODEL, PAD, PADDING, PRE,
    REMOVE_SPACES, SCORES, SPACE_PREFIX, TOKENS, TYPES, UNKNOWN, WHOLE, filler, t5_tokenizer_json,
};
use crate::gguf::{Array, Metadata, Strings, Value};
use crate::index::quoted;
use crate::{Error, Result};

/// The metadata of a bare GGUF file with a T5 encoder, for the tokenizer in the text of a `tokenizer.json`: what llama.cpp's
/// converter writes, with as many tokens as the embedding has rows, `vocab_size`. `origin`, the file that the text came
/// from, is for messages.
///
/// Where these entries alone would not read back as the same tokenizer, the whole text goes along as
/// `tokenizer.huggingface.json`; programs that do not know that key then see an approximation (with no
/// normalisation, where the tokenizer's normaliser is another than SentencePiece's).
///
/// # Errors
///
/// [`Error::Malformed`] where the text is no tokenizer of SentencePiece unigrams, or its ids contradict each other;
/// [`Error::Mismatch`] where it has ids that the embedding has no row for, or no `</s>` or `<pad>`.
pub fn t5_gguf_metadata(tokenizer_json: &str, vocab_size: usize, origin: &Path) -> Result<Vec<(String, Value)>> {
    let malformed = |error: serde_json::Error| {
        Error::malformed(origin, "tokenizer", "a tokenizer.json of unigrams", error.to_string())
    };
    let json: Json = serde_json::from_str(tokenizer_json).map_err(malformed)?;
    let tokenizer = Tokenizer::deserialize(&json).map_err(malformed)?;
    if tokenizer.model.kind != "Unigram" {
        return Err(Error::malformed(origin, "model.type", "`Unigram`", quoted(&tokenizer.model.kind)));
    }
    let tokens = Tokens::new(&tokenizer, vocab_size, origin)?;
    let (end, pad) = (tokens.id(END, origin)?, tokens.id(PAD, origin)?);
    let unknown = tokenizer.model.unk_id;
    let mut entries = vec![
        (MODEL, "t5".into()),
        (PRE, "default".into()),
        (TOKENS, Value::Array(Array::String(tokens.texts))),
        (SCORES, Value::Array(Array::F32(tokens.scores))),
        (TYPES, Value::Array(Array::I32(tokens.kinds.iter().map(|&kind| kind as i32).collect()))),
        (SPACE_PREFIX, Value::Bool(prepends_space(&json["pre_tokenizer"]))),
        (REMOVE_SPACES, Value::Bool(merges_spaces(&json))),
    ];
    if let Some(map) = charsmap(&json["normalizer"], origin)? {
        entries.push((CHARSMAP, Value::Array(Array::U8(map))));
    }
    entries.extend([(EOS, end.into()), (UNKNOWN, unknown.into()), (PADDING, pad.into())]);
    entries.extend([(ADD_BOS, Value::Bool(false)), (ADD_EOS, Value::Bool(true))]);
    let mut entries: Vec<(String, Value)> = entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    if !reads_back(&entries, &json, origin)? {
        entries.push((WHOLE.to_owned(), tokenizer_json.into()));
    }
    Ok(entries)
}

/// The parts of a `tokenizer.json` that list tokens.
#[derive(Deserialize)]
struct Tokenizer {
    #[serde(default)]
    added_tokens: Vec<Added>,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: usize,
    content: String,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: String,
    unk_id: u32,
    vocab: Vec<(String, f64)>,
}

/// The three lists, by id.
struct Tokens {
    texts: Strings,
    scores: Vec<f32>,
    kinds: Vec<Kind>,
}

impl Tokens {
    fn new(tokenizer: &Tokenizer, rows: usize, origin: &Path) -> Result<Tokens> {
        if rows > MAX_TOKENS {
            let expected = format!("at most {MAX_TOKENS} rows in the embedding");
            return Err(Error::mismatch(origin, "vocab_size", expected, rows.to_string()));
        }
        let mut list: Vec<Option<(&str, f32, Kind)>> = vec![None; rows];
        for (id, (text, score)) in tokenizer.model.vocab.iter().enumerate() {
            let score = *score as f32;
            if !score.is_finite() {
                return Err(Error::malformed(
                    origin,
                    format!("score of token {id}"),
                    "a finite f32",
                    score.to_string(),
                ));
            }
            let kind = if id == tokenizer.model.unk_id as usize { Kind::Unknown } else { kind_of(text) };
            *row(&mut list, id, text, origin)? = Some((text, score, kind));
        }
        for added in &tokenizer.added_tokens {
            add(row(&mut list, added.id, &added.content, origin)?, added, origin)?;
        }
        let (mut texts, mut scores, mut kinds) = (Strings::with_capacity(rows), Vec::new(), Vec::new());
        for (id, token) in list.into_iter().enumerate() {
            let (text, score, kind) = match token {
                Some((text, score, kind)) => (text.to_owned(), score, kind),
                None => (filler(id), FILLER_SCORE, Kind::Unused),
            };
            texts.push(&text);
            scores.push(score);
            kinds.push(kind);
        }
        Ok(Tokens { texts, scores, kinds })
    }

    fn id(&self, text: &str, origin: &Path) -> Result<u32> {
        let id = self.texts.iter().position(|known| known == text).and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| Error::mismatch(origin, "vocabulary", format!("a token `{text}`"), "none"))
    }
}

/// What a piece is that no list of added tokens has: SentencePiece writes the pieces for bytes as `<0x41>`.
fn kind_of(text: &str) -> Kind {
    let digits = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    let byte = digits.is_some_and(|digits| digits.len() == 2 && digits.bytes().all(|c| c.is_ascii_hexdigit()));
    if byte { Kind::Byte } else { Kind::Normal }
}

/// The place of token `id`.
fn row<'a, T>(list: &'a mut [T], id: usize, text: &str, origin: &Path) -> Result<&'a mut T> {
    let rows = list.len();
    list.get_mut(id).ok_or_else(|| {
        let expected = format!("ids below {rows}, the rows of the embedding");
        Error::mismatch(origin, "vocabulary", expected, format!("{id} for {}", quoted(text)))
    })
}

/// Notes an added token at its place, where the vocabulary may have it already.
fn add<'a>(place: &mut Option<(&'a str, f32, Kind)>, added: &'a Added, origin: &Path) -> Result<()> {
    let kind = if added.special { Kind::Control } else { Kind::UserDefined };
    match place {
        None => *place = Some((&added.content, ADDED_SCORE, kind)),
        Some((text, _, known)) if *text == added.content => {
            if *known != Kind::Unknown {
                *known = kind;
            }
        }
        Some((text, ..)) => {
            let at = format!("added token {}", added.id);
            return Err(Error::malformed(origin, at, quoted(text), quoted(&added.content)));
        }
    }
    Ok(())
}

/// All parts of a normaliser or a word rule, which may be a sequence of them.
fn parts<'a>(rule: &'a Json, list: &str) -> &'a [Json] {
    rule[list].as_array().map_or(std::slice::from_ref(rule), Vec::as_slice)
}

fn word_rules(rule: &Json) -> &[Json] {
    parts(rule, "pretokenizers")
}

/// Whether the text gets a space before it.
fn prepends_space(rule: &Json) -> bool {
    let rules = word_rules(rule);
    let mut metaspaces = rules.iter().filter(|rule| rule["type"] == "Metaspace");
    metaspaces.any(|rule| rule["prepend_scheme"] != "never" && rule["add_prefix_space"] != false)
}

/// Whether several spaces count as one: words are split at them, or the normaliser replaces them.
fn merges_spaces(json: &Json) -> bool {
    word_rules(&json["pre_tokenizer"]).iter().any(|rule| rule["type"] == "WhitespaceSplit")
        || parts(&json["normalizer"], "normalizers").iter().any(|rule| rule["pattern"]["Regex"] == " {2,}")
}

/// SentencePiece's map of characters, where the normaliser has one.
fn charsmap(normalizer: &Json, origin: &Path) -> Result<Option<Vec<u8>>> {
    let map = parts(normalizer, "normalizers").iter().find(|rule| rule["type"] == "Precompiled");
    let Some(text) = map.and_then(|rule| rule["precompiled_charsmap"].as_str()) else { return Ok(None) };
    let map = base64::decode(text)
        .map_err(|error| Error::malformed(origin, "precompiled_charsmap", "base64", error.to_string()))?;
    match crate::text::charsmap::growth(&map) {
        Ok(_) => Ok(Some(map)),
        Err(found) => Err(Error::malformed(origin, "precompiled_charsmap", "SentencePiece's map of characters", found)),
    }
}

/// Whether the entries alone give the tokenizer `json` again.
fn reads_back(entries: &[(String, Value)], json: &Json, origin: &Path) -> Result<bool> {
    let metadata = Metadata::new(origin, entries.to_vec())?;
    // What cannot be read, such as a tokenizer that puts no space before the text, needs the whole as well.
    let Ok(Some(again)) = t5_tokenizer_json(&metadata) else { return Ok(false) };
    let again: Json = serde_json::from_str(&again)
        .map_err(|error| Error::malformed(origin, "tokenizer", "a tokenizer.json", error.to_string()))?;
    Ok(["added_tokens", "normalizer", "pre_tokenizer", "decoder", "model"]
        .iter()
        .all(|&part| again[part] == json[part]))
}
