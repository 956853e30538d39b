//! The tokenizers of language models: byte-level BPE, as a `tokenizer.json`.

use std::collections::HashMap;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use super::clip::{Tokens, added_token, read_merges};
use super::config::Special;
use super::vocabulary::Vocabulary;
use super::{Encoded, TokenizerConfig};
use crate::gguf::{Metadata, Strings};
use crate::index::quoted;
use crate::{Error, Result};

/// How texts are split into words. From the `tokenizer.json` of Qwen2 and later, and of Mistral's models with the tekken vocabulary.
const QWEN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How a vocabulary's texts are cleaned and split.
#[derive(Clone, Copy)]
pub(super) struct Rules<'a> {
    /// Its name in `tokenizer.ggml.pre`.
    pub(super) name: &'static str,
    pub(super) words: &'a str,
    /// Whether letters are composed first.
    pub(super) composes: bool,
    /// Whether a word that is a token needs no merges.
    pub(super) whole_words: bool,
}

static RULES: [Rules<'static>; 2] = [
    Rules { name: "qwen2", words: QWEN, composes: true, whole_words: false },
    Rules { name: "tekken", words: TEKKEN, composes: false, whole_words: true },
];

/// Turns texts into the ids of a language model, without marks: those are part of the text that a template makes.
pub struct ByteLevelTokenizer {
    vocabulary: Vocabulary,
    /// What fills up texts, as far as the settings say.
    pad: Option<String>,
}

impl ByteLevelTokenizer {
    /// Reads the text of a `tokenizer.json`, with its `tokenizer_config.json` or [`TokenizerConfig::default`].
    /// `origin`, the file or directory that they came from, is for messages.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] where the text is no tokenizer.
    pub fn from_json(json: &str, config: &TokenizerConfig, origin: &Path) -> Result<ByteLevelTokenizer> {
        let mut vocabulary = Vocabulary::from_json(json, origin)?;
        let named = [&config.eos_token, &config.pad_token].into_iter().flatten().map(Special::text);
        let listed = config.added_tokens_decoder.values().filter(|token| token.special);
        let marks: Vec<&str> = named.chain(listed.map(|token| token.content.as_str())).collect();
        vocabulary.add_special(&marks)?;
        Ok(ByteLevelTokenizer { vocabulary, pad: config.pad_token.as_ref().map(|token| token.text().to_owned()) })
    }

    /// How many rows the model's embedding needs for every id.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.size()
    }

    /// The id of `token`.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] where the vocabulary lacks it.
    pub fn id(&self, token: &str) -> Result<u32> {
        self.vocabulary.id(token, "the template's marks")
    }

    /// The ids of `text`, the first `length` of them, and as many others as are missing: of the token that the settings name for it, or
    /// else `pad`. They stand behind the text, or before it if it is filled up on the `left`.
    ///
    /// # Errors
    ///
    /// As [`encode`](ByteLevelTokenizer::encode); [`Error::Mismatch`] where the vocabulary lacks the token that fills up.
    pub fn encode_filled(&self, text: &str, length: usize, pad: &str, left: bool) -> Result<Encoded> {
        let mut encoded = self.encode(text, length)?;
        let pad = self.id(self.pad.as_deref().unwrap_or(pad))?;
        let missing = std::iter::repeat_n(pad, length - encoded.used);
        encoded.ids.splice(if left { 0..0 } else { encoded.used..encoded.used }, missing);
        Ok(encoded)
    }

    /// The ids of `text`, the first `most` of them.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] where the tokenizer's rules do not work.
    pub fn encode(&self, text: &str, most: usize) -> Result<Encoded> {
        let mut ids = self.vocabulary.encode(text)?;
        let cut = match ids.get(most..) {
            None | Some([]) => None,
            Some(left) => Some(self.vocabulary.decode(left)?),
        };
        ids.truncate(most);
        Ok(Encoded { used: ids.len(), ids, cut, weights: Vec::new() })
    }
}

/// The long part of a `tokenizer.json`.
#[derive(Serialize)]
struct Model<'a> {
    r#type: &'a str,
    dropout: Option<f32>,
    unk_token: Option<&'a str>,
    continuing_subword_prefix: &'a str,
    end_of_word_suffix: &'a str,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: &'a Tokens,
    merges: Vec<(&'a str, &'a str)>,
}

#[derive(Serialize)]
struct Tokenizer<'a> {
    #[serde(flatten)]
    rules: Value,
    model: Model<'a>,
}

/// The `tokenizer.json` of a vocabulary and its merges.
pub(super) fn tokenizer_json(
    rules: Rules<'_>,
    vocab: &Tokens,
    merges: Vec<(&str, &str)>,
    added_tokens: Vec<Value>,
    origin: &Path,
) -> Result<String> {
    let byte_level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false });
    let normalizer = if rules.composes { json!({ "type": "NFC" }) } else { Value::Null };
    let parts = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens,
        "normalizer": normalizer,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": rules.words }, "behavior": "Isolated", "invert": false },
            byte_level,
        ] },
        "post_processor": byte_level,
        "decoder": byte_level,
    });
    let model = Model {
        r#type: "BPE",
        dropout: None,
        unk_token: None,
        continuing_subword_prefix: "",
        end_of_word_suffix: "",
        fuse_unk: false,
        byte_fallback: false,
        ignore_merges: rules.whole_words,
        vocab,
        merges,
    };
    serde_json::to_string(&Tokenizer { rules: parts, model })
        .map_err(|error| Error::malformed(origin, "tokenizer", "what can be written as JSON", error.to_string()))
}

/// The `tokenizer.json` that belongs to a `vocab.json` and a `merges.txt` of Qwen's, with the rules of transformers' `Qwen2Tokenizer` and
/// the added tokens that `config` lists. `origin`, the directory that they came from, is for messages.
///
/// # Errors
///
/// [`Error::Malformed`] where the vocabulary is no JSON object of ids or a line of the merges is no pair.
pub fn byte_level_tokenizer_json(vocab: &str, merges: &str, config: &TokenizerConfig, origin: &Path) -> Result<String> {
    let vocab: HashMap<String, u32> = serde_json::from_str(vocab)
        .map_err(|error| Error::malformed(origin, "vocab.json", "tokens with their ids", error.to_string()))?;
    let mut vocab = Tokens(vocab.into_iter().collect());
    vocab.0.sort_by(|(token, id), (other, other_id)| id.cmp(other_id).then_with(|| token.cmp(other)));
    let mut added = Vec::new();
    for (id, token) in &config.added_tokens_decoder {
        let id: u32 = id
            .parse()
            .map_err(|_| Error::malformed(origin, "added_tokens_decoder", "ids as keys", format!("`{id}`")))?;
        added.push((id, added_token(id, token)));
    }
    added.sort_by_key(|(id, _)| *id);
    let added = added.into_iter().map(|(_, token)| token).collect();
    tokenizer_json(RULES[0], &vocab, read_merges(merges, origin)?, added, origin)
}

/// The marks of a turn.
const MARKS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// The letter that GPT-2 shows `byte` as: what is printed stands for itself, and the rest for letters from 256 on.
pub(super) fn shown(byte: u8) -> char {
    let at = match byte {
        33..=126 | 161..=172 | 174..=255 => return char::from(byte),
        0..=32 => u32::from(byte),
        127..=160 => u32::from(byte) - 127 + 33,
        173 => 67,
    };
    char::from_u32(256 + at).unwrap_or(' ')
}

/// A `tokenizer.json` that needs no vocabulary: each byte of a text is a token, and so are the marks of a turn.
///
/// # Errors
///
/// [`Error::Malformed`] where it cannot be written.
pub fn bytes_tokenizer_json() -> Result<String> {
    let vocab = (0..=255u8).map(|byte| (shown(byte).to_string(), u32::from(byte))).collect();
    let marks = (256..)
        .zip(&MARKS)
        .map(|(id, mark)| {
            json!({ "id": id, "content": mark, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true })
        })
        .collect();
    tokenizer_json(RULES[0], &Tokens(vocab), Vec::new(), marks, Path::new("tokenizer"))
}

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";

/// llama.cpp's types of tokens that are looked for before all else, with whether they are special.
const ADDED: [(i64, bool); 2] = [(3, true), (4, false)];
/// Its type of tokens that only fill up the list.
const UNUSED: i64 = 5;

/// The `tokenizer.json` of a language model from the metadata of its GGUF file, as llama.cpp writes it. `None` where the file has no
/// tokenizer.
///
/// # Errors
///
/// [`Error::Mismatch`] where a key has another type or the tokenizer is of another kind; [`Error::Malformed`] where a part is missing or
/// the parts contradict each other.
pub fn byte_level_gguf_json(metadata: &Metadata) -> Result<Option<String>> {
    let path = metadata.path();
    let Some(model) = metadata.string(MODEL)? else { return Ok(None) };
    if model != "gpt2" {
        return Err(Error::mismatch(path, at(MODEL), "`gpt2`, a byte-level BPE", quoted(model)));
    }
    let pre = metadata.string(PRE)?.unwrap_or_default();
    let names = RULES.map(|rules| format!("`{}`", rules.name)).join(" or ");
    let Some(rules) = RULES.iter().find(|rules| rules.name == pre) else {
        let error = Error::mismatch(path, at(PRE), names, quoted(pre));
        return Err(error.with_hint("give the model's tokenizer.json with the option for its tokenizer"));
    };
    let missing = |key: &str| Error::malformed(path, at(key), "a list", "none");
    let tokens = metadata.strings(TOKENS)?.ok_or_else(|| missing(TOKENS))?;
    let merges = metadata.strings(MERGES)?.ok_or_else(|| missing(MERGES))?;
    let types = metadata.integers(TYPES)?.unwrap_or_default();
    if !types.is_empty() && types.len() != tokens.len() {
        return Err(Error::malformed(path, at(TYPES), format!("{} of them", tokens.len()), types.len().to_string()));
    }
    let (mut vocab, mut added) = (Vec::with_capacity(tokens.len()), Vec::new());
    for (id, token) in (0u32..).zip(tokens.iter()) {
        let kind = types.get(id as usize).copied().unwrap_or(1);
        match ADDED.iter().find(|(known, _)| *known == kind) {
            Some((_, special)) => added.push(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special,
            })),
            None if kind == UNUSED => {}
            None => vocab.push((token.to_owned(), id)),
        }
    }
    let merges = merges_of(merges, path)?;
    tokenizer_json(*rules, &Tokens(vocab), merges, added, path).map(Some)
}

fn merges_of<'a>(merges: &'a Strings, path: &Path) -> Result<Vec<(&'a str, &'a str)>> {
    merges
        .iter()
        .map(|merge| {
            // A space of a text is another sign here, so that the only one stands between the pieces.
            merge.split_once(' ').ok_or_else(|| Error::malformed(path, at(MERGES), "two pieces", quoted(merge)))
        })
        .collect()
}

fn at(key: &str) -> String {
    format!("metadata `{key}`")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(json: &str) -> ByteLevelTokenizer {
        ByteLevelTokenizer::from_json(json, &TokenizerConfig::default(), Path::new("tokenizer")).unwrap()
    }

    #[test]
    fn bytes_alone_are_a_vocabulary() {
        let tokenizer = read(&bytes_tokenizer_json().unwrap());
        assert_eq!(tokenizer.vocab_size(), 259);
        assert_eq!(tokenizer.encode("<|im_start|>a \u{e9}<|im_end|>", 9).unwrap().ids, [257, 97, 32, 195, 169, 258]);
        let cut = tokenizer.encode("star<|im_end|>", 3).unwrap();
        assert_eq!((cut.ids.len(), cut.used, cut.cut.as_deref()), (3, 3, Some("r<|im_end|>")));
        assert!(tokenizer.id("<think>").is_err());
        let filled = |left| tokenizer.encode_filled("ab", 4, "<|endoftext|>", left).unwrap();
        assert_eq!((filled(false).ids, filled(false).used), (vec![97, 98, 256, 256], 2));
        assert_eq!(filled(true).ids, [256, 256, 97, 98]);
        let cut = tokenizer.encode_filled("abc", 2, "<|endoftext|>", true).unwrap();
        assert_eq!((cut.ids, cut.cut.as_deref()), (vec![97, 98], Some("c")));
    }

    #[test]
    fn vocabulary_and_merges_have_the_added_tokens_of_the_configuration() {
        let vocab = r#"{"a": 0, "b": 1, "ab": 2, "\u0120": 3}"#;
        let config = r#"{"added_tokens_decoder": {"4": {"content": "<|im_end|>", "special": true}}}"#;
        let config = TokenizerConfig::from_json(config, Path::new("t")).unwrap();
        let json = byte_level_tokenizer_json(vocab, "#version: 0.2\na b\n", &config, Path::new("t")).unwrap();
        assert_eq!(read(&json).encode("ab a<|im_end|>", 9).unwrap().ids, [2, 3, 0, 4]);
        let error = byte_level_tokenizer_json("[]", "", &config, Path::new("t")).unwrap_err().to_string();
        assert!(error.starts_with("t: vocab.json: expected tokens with their ids"), "{error}");
    }
}
