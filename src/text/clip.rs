//! CLIP's tokenizer: byte-level BPE over lower-case words.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::config::{AddedToken, Special};
use super::vocabulary::Vocabulary;
use super::{Encoded, TokenizerConfig};
use crate::index::CUT_SHORT;
use crate::{Error, Result};

/// The tokens that mark start and end (ids 49406 and 49407 in OpenAI's vocabulary). The end is also the unknown token
/// and, in most models, the padding.
pub(super) const START: &str = "<|startoftext|>";
pub(super) const END: &str = "<|endoftext|>";

/// How a BPE piece shows that a word ends with it.
pub(super) const WORD_END: &str = "</w>";

/// Words, single digits and runs of other signs; spaces separate and vanish. From transformers' `CLIPTokenizer`.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// The token of a comma behind a word: a chunk ends rather behind one, if it is among its last tokens.
const COMMA: &str = ",</w>";
const LAST_TOKENS: usize = 20;

/// CLIP's own length, and the longest that is believed of a tokenizer made for a longer text encoder.
const LENGTH: usize = 77;
const MAX_LENGTH: usize = 512;

/// Turns prompts into CLIP's ids: start, text, end, padding.
pub struct ClipTokenizer {
    vocabulary: Vocabulary,
    bos: u32,
    eos: u32,
    pad: u32,
    comma: Option<u32>,
    length: usize,
}

/// A part of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Span<'t> {
    /// Text that becomes tokens of the vocabulary.
    Text(&'t str),
    /// A word that a text encoder was taught, by the ids that stand for it.
    Taught(Range<u32>),
}

/// Parts of a prompt that count alike.
#[derive(Clone, Debug, PartialEq)]
pub enum Weighted<'t> {
    /// What follows begins a chunk of its own.
    Break,
    /// These, so much.
    Spans(Vec<Span<'t>>, f32),
}

impl ClipTokenizer {
    /// Reads the text of a `tokenizer.json`, with its `tokenizer_config.json` or [`TokenizerConfig::default`].
    /// `origin`, the file or directory that they came from, is for messages.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] where the text is no tokenizer, [`Error::Mismatch`] where the vocabulary lacks a special
    /// token or the length has no room for start and end.
    pub fn from_json(json: &str, config: &TokenizerConfig, origin: &Path) -> Result<ClipTokenizer> {
        let mut vocabulary = Vocabulary::from_json(json, origin)?;
        let named = [&config.bos_token, &config.eos_token, &config.pad_token];
        vocabulary.add_special(&named.into_iter().flatten().map(Special::text).collect::<Vec<_>>())?;
        let length = config.max_length(MAX_LENGTH).unwrap_or(LENGTH);
        if length < 2 {
            return Err(Error::mismatch(origin, "model_max_length", "at least 2", length.to_string()));
        }
        let eos = text_or(&config.eos_token, END);
        Ok(ClipTokenizer {
            bos: vocabulary.id(text_or(&config.bos_token, START), "bos_token")?,
            eos: vocabulary.id(eos, "eos_token")?,
            pad: vocabulary.id(text_or(&config.pad_token, eos), "pad_token")?,
            comma: vocabulary.id(COMMA, "comma").ok(),
            length,
            vocabulary,
        })
    }

    /// Builds the tokenizer of a folder that has only `vocab.json` and `merges.txt`, as those of the published models
    /// do.
    ///
    /// # Errors
    ///
    /// As [`clip_tokenizer_json`] and [`from_json`](ClipTokenizer::from_json).
    pub fn from_vocab_merges(
        vocab: &str,
        merges: &str,
        config: &TokenizerConfig,
        origin: &Path,
    ) -> Result<ClipTokenizer> {
        ClipTokenizer::from_json(&clip_tokenizer_json(vocab, merges, config, origin)?, config, origin)
    }

    /// The whole tokenizer as a `tokenizer.json`, for a bundle.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] where the library cannot write what it read.
    pub fn to_json(&self) -> Result<String> {
        self.vocabulary.to_json()
    }

    /// How many ids every prompt has.
    pub fn length(&self) -> usize {
        self.length
    }

    /// How many rows the encoder's embedding needs for every id.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.size()
    }

    /// The ids of `prompt`, [`length`](ClipTokenizer::length) of them.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] where the tokenizer's rules do not work.
    pub fn encode(&self, prompt: &str) -> Result<Encoded> {
        self.encode_spans(&[Span::Text(prompt)])
    }

    /// The same of a prompt with taught words.
    ///
    /// # Errors
    ///
    /// As [`encode`](ClipTokenizer::encode).
    pub fn encode_spans(&self, prompt: &[Span<'_>]) -> Result<Encoded> {
        let content = self.content(prompt)?.concat();
        let (mut encoded, left) = Encoded::frame(Some(self.bos), &content, self.eos, self.pad, self.length);
        if !left.is_empty() {
            // The byte-level decoder leaves the marks of word ends in the text.
            encoded.cut = Some(self.vocabulary.decode(left)?.replace(WORD_END, " ").trim().to_owned());
        }
        Ok(encoded)
    }

    /// The ids of a prompt of any length: chunks of [`length`](ClipTokenizer::length) ids, each with start and end, and at least one.
    /// As AUTOMATIC1111's web UI: a chunk that is full ends behind its last comma, if that is one of its last 20 tokens, and a
    /// taught word is in one chunk.
    ///
    /// # Errors
    ///
    /// As [`encode`](ClipTokenizer::encode).
    pub fn encode_chunks(&self, prompt: &[Weighted<'_>]) -> Result<Encoded> {
        let all = Encoded { ids: Vec::new(), used: 0, cut: None, weights: Vec::new() };
        let mut chunks = Chunks { tokenizer: self, all, open: Vec::new(), comma: None };
        for part in prompt {
            match part {
                Weighted::Break => chunks.close(),
                Weighted::Spans(spans, weight) => {
                    for word in self.content(spans)? {
                        chunks.add(&word, *weight);
                    }
                }
            }
        }
        if !chunks.open.is_empty() || chunks.all.ids.is_empty() {
            chunks.close();
        }
        Ok(chunks.all)
    }

    /// Adds chunks without text to `encoded`, up to `chunks` of them.
    pub fn pad(&self, encoded: &mut Encoded, chunks: usize) {
        for _ in encoded.ids.len() / self.length..chunks {
            let (chunk, _) = Encoded::frame(Some(self.bos), &[], self.eos, self.pad, self.length);
            encoded.ids.extend(chunk.ids);
            if !encoded.weights.is_empty() {
                encoded.weights.resize(encoded.ids.len(), 1.0);
            }
        }
    }

    /// The tokens of `spans`: single ones, and those of taught words together.
    fn content(&self, spans: &[Span<'_>]) -> Result<Vec<Vec<u32>>> {
        let mut content = Vec::new();
        for span in spans {
            match span {
                Span::Text(text) => content.extend(self.vocabulary.encode(text)?.into_iter().map(|id| vec![id])),
                Span::Taught(ids) => content.push(ids.clone().collect()),
            }
        }
        Ok(content)
    }
}

/// Chunks of a prompt that is being read.
struct Chunks<'a> {
    tokenizer: &'a ClipTokenizer,
    /// Those that are full.
    all: Encoded,
    /// Tokens of the next one, each with its weight.
    open: Vec<(u32, f32)>,
    /// Where in it the last comma stands.
    comma: Option<usize>,
}

impl Chunks<'_> {
    /// How many tokens a chunk has room for.
    fn room(&self) -> usize {
        self.tokenizer.length - 2
    }

    /// Adds a token, or those of a taught word.
    fn add(&mut self, word: &[u32], weight: f32) {
        let is_comma = word.first().is_some_and(|id| Some(*id) == self.tokenizer.comma);
        if is_comma {
            self.comma = Some(self.open.len());
        } else if let Some(comma) = self.comma
            && self.open.len() == self.room()
            && self.open.len() - comma <= LAST_TOKENS
        {
            let moved = self.open.split_off(comma + 1);
            self.close();
            self.open = moved;
        }
        if self.open.len() + word.len() > self.room() && !self.open.is_empty() {
            self.close();
        }
        // No chunk has room for the rest of a longer word.
        self.open.extend(word.iter().take(self.room()).map(|&id| (id, weight)));
    }

    /// Ends the open chunk, with what it has.
    fn close(&mut self) {
        let ClipTokenizer { bos, eos, pad, length, .. } = *self.tokenizer;
        let content: Vec<u32> = self.open.iter().map(|(id, _)| *id).collect();
        let (chunk, _) = Encoded::frame(Some(bos), &content, eos, pad, length);
        let all = &mut self.all;
        let before = all.ids.len();
        all.used = before + chunk.used;
        all.ids.extend(chunk.ids);
        all.weights.push(1.0);
        all.weights.extend(self.open.iter().map(|(_, weight)| weight));
        all.weights.resize(all.ids.len(), 1.0);
        self.open.clear();
        self.comma = None;
    }
}

fn text_or<'a>(token: &'a Option<Special>, default: &'a str) -> &'a str {
    token.as_ref().map_or(default, |token| token.text())
}

/// The `tokenizer.json` that belongs to a `vocab.json` and a `merges.txt`, with the normaliser, word rule and special
/// tokens that transformers' `CLIPTokenizer` has. `origin`, the directory that they came from, is for messages.
///
/// # Errors
///
/// [`Error::Malformed`] where the vocabulary is no JSON object of ids or a line of the merges is no pair,
/// [`Error::Mismatch`] where a special token is not in the vocabulary.
pub fn clip_tokenizer_json(vocab: &str, merges: &str, config: &TokenizerConfig, origin: &Path) -> Result<String> {
    let vocab: HashMap<String, u32> = serde_json::from_str(vocab)
        .map_err(|error| Error::malformed(origin, "vocab.json", "tokens with their ids", error.to_string()))?;
    let mut vocab = Tokens(vocab.into_iter().collect());
    vocab.0.sort_by(|(token, id), (other, other_id)| id.cmp(other_id).then_with(|| token.cmp(other)));
    tokenizer_json(&vocab, merges, config, origin)
}

/// Tokens with their ids, in the order in which they are written.
pub(super) struct Tokens(pub(super) Vec<(String, u32)>);

impl Tokens {
    fn id(&self, token: &str) -> Option<u32> {
        self.0.iter().find(|(known, _)| known == token).map(|&(_, id)| id)
    }
}

impl Serialize for Tokens {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(token, id)| (token, id)))
    }
}

/// The long part of a `tokenizer.json`, written straight away: as a tree of JSON values it would take several times as
/// long.
#[derive(Serialize)]
struct Model<'a> {
    r#type: &'a str,
    dropout: Option<f32>,
    unk_token: &'a str,
    continuing_subword_prefix: &'a str,
    end_of_word_suffix: &'a str,
    fuse_unk: bool,
    byte_fallback: bool,
    vocab: &'a Tokens,
    merges: Vec<(&'a str, &'a str)>,
}

#[derive(Serialize)]
struct Tokenizer<'a> {
    #[serde(flatten)]
    rules: Value,
    model: Model<'a>,
}

/// How many tokens are made by no merge, at most: every byte, also at the end of a word, the marks, and some that people add.
const UNMERGED: usize = 2 * 256 + 2 + 126;

/// The same from ids that are read already.
pub(super) fn tokenizer_json(vocab: &Tokens, merges: &str, config: &TokenizerConfig, origin: &Path) -> Result<String> {
    let merges = read_merges(merges, origin)?;
    if merges.len() + UNMERGED < vocab.0.len() {
        let expected = format!("the merges that make the {} tokens of vocab.json", vocab.0.len());
        let error = Error::malformed(origin, "merges.txt", expected, format!("{} of them", merges.len()));
        return Err(error.with_hint(CUT_SHORT));
    }
    let model = Model {
        r#type: "BPE",
        dropout: None,
        unk_token: text_or(&config.unk_token, END),
        continuing_subword_prefix: "",
        end_of_word_suffix: WORD_END,
        fuse_unk: false,
        byte_fallback: false,
        vocab,
        merges,
    };
    serde_json::to_string(&Tokenizer { rules: rules(vocab, config, origin)?, model })
        .map_err(|error| Error::malformed(origin, "tokenizer", "what can be written as JSON", error.to_string()))
}

/// All but the model: how text is cleaned and split, which tokens are special.
fn rules(vocab: &Tokens, config: &TokenizerConfig, origin: &Path) -> Result<Value> {
    let added = added_tokens(vocab, config, origin)?;
    let mark = |token, default| {
        let text = text_or(token, default);
        json!([text, vocab.id(text)])
    };
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "NFC" },
            { "type": "Replace", "pattern": { "Regex": r"\s+" }, "content": " " },
            { "type": "Lowercase" },
        ] },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": WORDS }, "behavior": "Removed", "invert": true },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        ] },
        "post_processor": {
            "type": "RobertaProcessing", "cls": mark(&config.bos_token, START), "sep": mark(&config.eos_token, END),
            "trim_offsets": false, "add_prefix_space": false,
        },
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
    }))
}

/// `merges.txt`: a version line, then one pair a line, the most frequent first.
pub(super) fn read_merges<'a>(text: &'a str, origin: &Path) -> Result<Vec<(&'a str, &'a str)>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with("#version"));
    lines
        .map(|(i, line)| match line.split_once(' ') {
            Some((left, right)) if !right.contains(' ') => Ok((left, right)),
            _ => {
                Err(Error::malformed(origin, format!("merges.txt, line {}", i + 1), "two pieces", format!("`{line}`")))
            }
        })
        .collect()
}

/// The tokens to look for before all else, by id: those that the configuration lists with their rules, then the named
/// ones.
fn added_tokens(vocab: &Tokens, config: &TokenizerConfig, origin: &Path) -> Result<Vec<Value>> {
    let mut tokens = BTreeMap::new();
    for (id, token) in &config.added_tokens_decoder {
        let id: u32 = id
            .parse()
            .map_err(|_| Error::malformed(origin, "added_tokens_decoder", "ids as keys", format!("`{id}`")))?;
        tokens.insert(id, token.clone());
    }
    for (role, token, default) in [
        ("bos_token", &config.bos_token, START),
        ("eos_token", &config.eos_token, END),
        ("unk_token", &config.unk_token, END),
        ("pad_token", &config.pad_token, END),
    ] {
        let token = match token {
            Some(Special::Token(token)) => token.clone(),
            _ => AddedToken { content: text_or(token, default).to_owned(), ..AddedToken::default() },
        };
        if tokens.values().any(|known| known.content == token.content) {
            continue;
        }
        let id = vocab
            .id(&token.content)
            .ok_or_else(|| Error::mismatch(origin, role, "a token of vocab.json", format!("`{}`", token.content)))?;
        tokens.insert(id, AddedToken { special: true, ..token });
    }
    Ok(tokens.into_iter().map(|(id, token)| added_token(id, &token)).collect())
}

pub(super) fn added_token(id: u32, token: &AddedToken) -> Value {
    json!({
        "id": id, "content": token.content, "single_word": token.single_word, "lstrip": token.lstrip,
        "rstrip": token.rstrip, "normalized": token.normalized, "special": token.special,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A vocabulary of four letters, whole and at a word's end, with one merge.
    const VOCAB: &str = r#"{"a": 0, "b": 1, "!": 2, "a</w>": 3, "b</w>": 4, "!</w>": 5, "ab</w>": 6,
        "<|startoftext|>": 7, "<|endoftext|>": 8}"#;
    const MERGES: &str = "#version: 0.2\na b</w>\n";

    fn build(vocab: &str, merges: &str, config: &str) -> Result<ClipTokenizer> {
        let origin = Path::new("tokenizer");
        ClipTokenizer::from_vocab_merges(vocab, merges, &TokenizerConfig::from_json(config, origin)?, origin)
    }

    fn encode(tokenizer: &ClipTokenizer, prompt: &str) -> Vec<u32> {
        let encoded = tokenizer.encode(prompt).unwrap();
        assert_eq!(encoded.ids.len(), tokenizer.length());
        assert!(encoded.ids[encoded.used..].iter().all(|&id| id == tokenizer.pad));
        encoded.ids[..encoded.used].to_vec()
    }

    fn encoded(ids: &[u32], used: usize, cut: &str) -> Encoded {
        Encoded { ids: ids.to_vec(), used, cut: Some(cut.to_owned()), weights: Vec::new() }
    }

    #[test]
    fn taught_words_are_among_the_tokens() {
        let tokenizer = build(VOCAB, MERGES, r#"{"model_max_length": 6}"#).unwrap();
        let spans = [Span::Text("a "), Span::Taught(100..102), Span::Text("b ab")];
        assert_eq!(tokenizer.encode_spans(&spans).unwrap(), encoded(&[7, 3, 100, 101, 4, 8], 6, "ab"));
    }

    #[test]
    fn long_prompts_become_chunks() {
        let vocab = VOCAB.replace(r#""ab</w>": 6"#, r#""ab</w>": 6, ",": 9, ",</w>": 10"#);
        let tokenizer = build(&vocab, MERGES, r#"{"model_max_length": 6, "pad_token": "!"}"#).unwrap();
        let chunks = |parts: &[Weighted<'_>]| {
            let Encoded { ids, weights, cut: None, .. } = tokenizer.encode_chunks(parts).unwrap() else {
                panic!("a chunk is cut")
            };
            assert_eq!(ids.len(), weights.len());
            (ids.chunks(6).map(<[u32]>::to_vec).collect::<Vec<_>>(), weights)
        };
        let text = |text| Weighted::Spans(vec![Span::Text(text)], 1.0);
        assert_eq!(chunks(&[]).0, [[7, 8, 2, 2, 2, 2]]);
        assert_eq!(chunks(&[text("")]).0, [[7, 8, 2, 2, 2, 2]]);
        assert_eq!(chunks(&[text("a b a b")]).0, [[7, 3, 4, 3, 4, 8]]);
        assert_eq!(chunks(&[text("a b a b a")]).0, [[7, 3, 4, 3, 4, 8], [7, 3, 8, 2, 2, 2]]);
        // What follows the last comma goes along.
        assert_eq!(chunks(&[text("a, b a b")]).0, [[7, 3, 10, 8, 2, 2], [7, 4, 3, 4, 8, 2]]);
        assert_eq!(chunks(&[text("a b a b, a")]).0, [[7, 3, 4, 3, 4, 8], [7, 10, 3, 8, 2, 2]]);
        assert_eq!(chunks(&[text("a"), Weighted::Break, text("b")]).0, [[7, 3, 8, 2, 2, 2], [7, 4, 8, 2, 2, 2]]);
        assert_eq!(chunks(&[Weighted::Break]).0.len(), 1);
        let taught = Weighted::Spans(vec![Span::Text("b"), Span::Taught(90..92), Span::Text("a")], 0.5);
        let (ids, weights) = chunks(&[text("a a"), taught]);
        assert_eq!(ids, [[7, 3, 3, 4, 8, 2], [7, 90, 91, 3, 8, 2]]);
        assert_eq!(weights, [1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 1.0, 1.0]);
        let mut padded = tokenizer.encode_chunks(&[text("a")]).unwrap();
        tokenizer.pad(&mut padded, 2);
        assert_eq!((&padded.ids[6..], padded.weights.len()), (&[7, 8, 2, 2, 2, 2][..], 12));
    }

    #[test]
    fn defaults_are_clips_own() {
        let tokenizer = build(VOCAB, MERGES, "{}").unwrap();
        assert_eq!((tokenizer.length(), tokenizer.vocab_size()), (77, 9));
        assert_eq!(encode(&tokenizer, "AB  a\tb"), [7, 6, 3, 4, 8]);
        assert_eq!(tokenizer.pad, 8);
    }

    #[test]
    fn a_prompt_that_does_not_fit_is_cut_before_the_end_mark() {
        let tokenizer = build(VOCAB, MERGES, r#"{"model_max_length": 4}"#).unwrap();
        let found = tokenizer.encode("a b ab a!").unwrap();
        assert_eq!(found, encoded(&[7, 3, 4, 8], 4, "ab a !"));
        assert_eq!(tokenizer.encode("a b").unwrap().cut, None);
        let tokenizer = build(VOCAB, MERGES, r#"{"model_max_length": 2}"#).unwrap();
        assert_eq!(tokenizer.encode("a").unwrap(), encoded(&[7, 8], 2, "a"));
    }

    /// SDXL's second tokenizer pads with `!`, which the configuration makes a special token, found before the words
    /// are.
    #[test]
    fn listed_tokens_are_found_first() {
        let config = r#"{"pad_token": "!", "added_tokens_decoder": {"2": {"content": "!", "special": true}}}"#;
        let tokenizer = build(VOCAB, MERGES, config).unwrap();
        assert_eq!(tokenizer.pad, 2);
        assert_eq!(encode(&tokenizer, "a!"), [7, 3, 2, 8]);
        assert_eq!(encode(&build(VOCAB, MERGES, "{}").unwrap(), "a!"), [7, 3, 5, 8]);
    }

    #[test]
    fn what_is_written_reads_back() {
        let tokenizer = build(VOCAB, MERGES, r#"{"model_max_length": 9}"#).unwrap();
        let config = TokenizerConfig::from_json(r#"{"model_max_length": 9}"#, Path::new("bundle")).unwrap();
        let again = ClipTokenizer::from_json(&tokenizer.to_json().unwrap(), &config, Path::new("bundle")).unwrap();
        assert_eq!(again.encode("ab<|endoftext|> b").unwrap(), tokenizer.encode("ab<|endoftext|> b").unwrap());
        assert_eq!(encode(&again, "ab<|endoftext|> b"), [7, 6, 8, 4, 8]);
    }

    #[test]
    fn broken_files_are_refused_by_name() {
        let message = |vocab, merges, config| build(vocab, merges, config).err().unwrap().to_string();
        assert!(message("[1]", MERGES, "{}").starts_with("tokenizer: vocab.json: expected tokens with their ids"));
        assert_eq!(
            message(VOCAB, "#version: 0.2\na b</w>\na b c\n", "{}"),
            "tokenizer: merges.txt, line 3: expected two pieces, found `a b c`"
        );
        assert!(message(VOCAB, "a x</w>", "{}").contains("x</w>"), "{}", message(VOCAB, "a x</w>", "{}"));
        assert_eq!(
            message(VOCAB, MERGES, r#"{"bos_token": "<s>"}"#),
            "tokenizer: bos_token: expected a token of vocab.json, found `<s>`"
        );
        assert_eq!(
            message(VOCAB, MERGES, r#"{"added_tokens_decoder": {"x": {"content": "!"}}}"#),
            "tokenizer: added_tokens_decoder: expected ids as keys, found `x`"
        );
        assert_eq!(
            message(VOCAB, MERGES, r#"{"model_max_length": 1}"#),
            "tokenizer: model_max_length: expected at least 2, found 1"
        );
    }
}
