//! Tokenizers: a prompt becomes the ids that the text encoders were trained on, padded and cut as diffusers does it.
//!
//! | tokenizer | files | ids |
//! |---|---|---|
//! | [`ClipTokenizer`] | `tokenizer.json`, or `vocab.json` and `merges.txt` | start, text, end, padded to the model's length (77) |
//! | [`T5Tokenizer`] | `tokenizer.json`, or `spiece.model` | text, end, padded to a length that the request may choose (512) |
//! | [`ByteLevelTokenizer`] | `tokenizer.json`, or `vocab.json` and `merges.txt` | text, as a template has it, as long as it is |
//!
//! Both are made of a `tokenizer.json`, which is also what a bundle carries. A loose file of weights has none beside it:
//! for T5, [`t5_tokenizer_json`] makes it from the metadata of a GGUF file ([`t5_gguf_metadata`] is the way back), and
//! [`t5_spiece_json`] from SentencePiece's own file; for CLIP, [`openai_clip_tokenizer_json`] gives OpenAI's own, which is built in;
//! for language models, [`byte_level_gguf_json`] makes it from the metadata of a GGUF file, and [`tekken_tokenizer_json`] from Mistral's own
//! form.
//!
//! The pipelines of diffusers that use both call them with `padding="max_length"` and `truncation=True`, and pass on no
//! attention mask: the text encoders see the padding. The reference is transformers 5, which builds both kinds on the
//! `tokenizers` library. Its version 4 had a slow CLIP tokenizer besides, which set Chinese characters apart by
//! spaces and dropped control characters; that one is not followed.
//!
//! A `tokenizer.json` is a program that another wrote. What of it reaches the library, and how long it may make a text, is
//! decided before: `BPE` and `Unigram` models, with the rules that the text encoders of image models have.
//!
//! Truncation and padding that a `tokenizer.json` sets for itself are ignored: the length is the text encoder's
//! business.

mod bounds;
mod byte_level;
mod charsmap;
mod cleaned;
mod clip;
mod config;
mod emphasis;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod hostile;
mod openai_clip;
mod patterns;
mod rules;
mod t5;
mod t5_gguf;
mod tekken;
mod vocabulary;

pub use byte_level::{ByteLevelTokenizer, byte_level_gguf_json, byte_level_tokenizer_json, bytes_tokenizer_json};
pub use cleaned::cleaned;
pub use clip::{ClipTokenizer, Span, Weighted, clip_tokenizer_json};
pub use config::TokenizerConfig;
pub use emphasis::{Piece, PromptSyntax, pieces};
pub use openai_clip::openai_clip_tokenizer_json;
pub use t5::{MAX_SEQUENCE_LENGTH, T5Tokenizer};
pub use t5_gguf::{t5_gguf_metadata, t5_spiece_json, t5_tokenizer_json};
pub use tekken::tekken_tokenizer_json;

/// A prompt as a text encoder takes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// Token ids, padded to the full length, or to that of every chunk.
    pub ids: Vec<u32>,
    /// How many of them are not padding; start and end marks count.
    pub used: usize,
    /// The end of the prompt, where it did not fit: what was left out, decoded from its ids, and so normalised
    /// (CLIP's is in lower case). The text that diffusers warns of.
    pub cut: Option<String>,
    /// How much each token counts; none if all count alike.
    pub weights: Vec<f32>,
}

impl Encoded {
    /// `start`, as much of `content` as fits, `end`, and `pad` up to `length`, which is at least the number of marks.
    /// Returns the ids with what of `content` was left over.
    fn frame(start: Option<u32>, content: &[u32], end: u32, pad: u32, length: usize) -> (Encoded, &[u32]) {
        let room = length.saturating_sub(1 + usize::from(start.is_some()));
        let (kept, left) = content.split_at(content.len().min(room));
        let mut ids: Vec<u32> = start.into_iter().chain(kept.iter().copied()).chain([end]).collect();
        let used = ids.len();
        ids.resize(length.max(used), pad);
        (Encoded { ids, used, cut: None, weights: Vec::new() }, left)
    }
}

/// Ids against those that transformers gave: for the tokenizers of the miniature (tests/goldens/tokens.json), for OpenAI's
/// CLIP (clip_openai.json), and for a T5 in a GGUF file (t5_gguf.json).
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::time::{Duration, Instant};

    use serde_json::{Value, json};

    use super::*;
    use crate::gguf::{Gguf, Metadata};

    fn goldens() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
    }

    fn text(folder: &str, file: &str) -> String {
        fs::read_to_string(goldens().join("tokenizers").join(folder).join(file)).unwrap()
    }

    fn config(folder: &str) -> TokenizerConfig {
        TokenizerConfig::from_json(&text(folder, "tokenizer_config.json"), Path::new(folder)).unwrap()
    }

    fn clip(json: &str) -> ClipTokenizer {
        ClipTokenizer::from_json(json, &config("clip"), Path::new("clip")).unwrap()
    }

    fn t5(json: &str) -> T5Tokenizer {
        T5Tokenizer::from_json(json, &config("t5"), Path::new("t5")).unwrap()
    }

    fn recorded(file: &str) -> Value {
        let golden: Value = serde_json::from_str(&fs::read_to_string(goldens().join(file)).unwrap()).unwrap();
        assert_eq!(golden["format"], 1);
        assert!(golden["cases"].as_array().unwrap().len() > 40);
        golden
    }

    fn prompt(case: &Value) -> String {
        case["text"].as_str().unwrap().repeat(case["repeat"].as_u64().unwrap() as usize)
    }

    /// `family` is the golden's entry for the tokenizer, `wanted` that for one prompt.
    fn check(found: &Encoded, wanted: &Value, length: usize, family: &Value, prompt: &str) {
        let prompt: String = prompt.chars().take(60).collect();
        assert_eq!(found.ids.len(), length, "{prompt:?}");
        let (used, padding) = found.ids.split_at(found.used);
        assert_eq!(json!(used), wanted["ids"], "{prompt:?}");
        assert!(padding.iter().all(|&id| json!(id) == family["pad"]), "{prompt:?}");
        match &wanted["removed"] {
            Value::Object(long) => {
                let cut = found.cut.as_ref().unwrap();
                assert_eq!(json!(cut.chars().count()), long["chars"], "{prompt:?}");
                assert!(cut.starts_with(long["starts"].as_str().unwrap()), "{prompt:?}");
            }
            removed => assert_eq!(json!(found.cut), *removed, "{prompt:?}"),
        }
    }

    fn check_clip(tokenizer: &ClipTokenizer) {
        check_clip_against(&recorded("tokens.json"), tokenizer);
    }

    fn check_clip_against(golden: &Value, tokenizer: &ClipTokenizer) {
        assert_eq!(json!(tokenizer.length()), golden["clip"]["length"]);
        for case in golden["cases"].as_array().unwrap() {
            let prompt = prompt(case);
            check(&tokenizer.encode(&prompt).unwrap(), &case["clip"], tokenizer.length(), &golden["clip"], &prompt);
        }
    }

    fn check_t5(tokenizer: &T5Tokenizer) {
        check_t5_against(&recorded("tokens.json"), tokenizer);
    }

    fn check_t5_against(golden: &Value, tokenizer: &T5Tokenizer) {
        let default = tokenizer.default_length();
        assert_eq!(json!(default), golden["t5"]["length"]);
        for case in golden["cases"].as_array().unwrap() {
            let prompt = prompt(case);
            for wanted in case["t5"].as_array().unwrap() {
                let length = wanted["length"].as_u64().unwrap() as usize;
                let found = tokenizer.encode(&prompt, Some(length)).unwrap();
                check(&found, wanted, length, &golden["t5"], &prompt);
                if length == default {
                    assert_eq!(tokenizer.encode(&prompt, None).unwrap(), found);
                }
            }
        }
    }

    #[test]
    fn clip_from_either_kind_of_file_equals_transformers() {
        check_clip(&clip(&text("clip", "tokenizer.json")));
        let (vocab, merges) = (text("clip", "vocab.json"), text("clip", "merges.txt"));
        check_clip(&ClipTokenizer::from_vocab_merges(&vocab, &merges, &config("clip"), Path::new("clip")).unwrap());
        check_clip(&clip(&clip_tokenizer_json(&vocab, &merges, &config("clip"), Path::new("clip")).unwrap()));
    }

    #[test]
    fn t5_equals_transformers() {
        check_t5(&t5(&text("t5", "tokenizer.json")));
    }

    #[test]
    fn openais_clip_equals_transformers() {
        let golden = recorded("clip_openai.json");
        let json = openai_clip_tokenizer_json(&TokenizerConfig::default()).unwrap();
        let tokenizer = ClipTokenizer::from_json(&json, &TokenizerConfig::default(), Path::new("clip")).unwrap();
        assert_eq!(json!(tokenizer.vocab_size()), golden["clip"]["tokens"]);
        check_clip_against(&golden, &tokenizer);
    }

    fn t5_entries() -> Vec<(String, crate::gguf::Value)> {
        let gguf = Gguf::open(&goldens().join("t5_gguf.gguf")).unwrap();
        gguf.metadata.iter().map(|(key, value)| (key.to_owned(), value.clone())).collect()
    }

    fn t5_from(entries: Vec<(String, crate::gguf::Value)>, config: &TokenizerConfig) -> T5Tokenizer {
        let metadata = Metadata::new(Path::new("t5.gguf"), entries).unwrap();
        let json = t5_tokenizer_json(&metadata).unwrap().unwrap();
        T5Tokenizer::from_json(&json, config, metadata.path()).unwrap()
    }

    #[test]
    fn t5_of_a_gguf_file_equals_transformers() {
        let golden = recorded("t5_gguf.json");
        let tokenizer = t5_from(t5_entries(), &TokenizerConfig::default());
        assert_eq!(json!(tokenizer.vocab_size()), golden["t5"]["tokens"]);
        check_t5_against(&golden, &tokenizer);
    }

    /// The golden was recorded from this file itself, which `t5_gguf.py` trained.
    #[test]
    fn t5_of_sentencepiece_equals_transformers() {
        let golden = recorded("t5_gguf.json");
        let path = goldens().join("tokenizers/spiece/spiece.model");
        let json = t5_spiece_json(&fs::read(&path).unwrap(), None, &path).unwrap();
        let tokenizer = T5Tokenizer::from_json(&json, &TokenizerConfig::default(), &path).unwrap();
        assert_eq!(json!(tokenizer.vocab_size()), golden["t5"]["tokens"]);
        check_t5_against(&golden, &tokenizer);
    }

    /// Another writer's file becomes a tokenizer.json and the same file again, key for key.
    #[test]
    fn t5_of_a_gguf_file_comes_back() {
        let entries = t5_entries();
        let metadata = Metadata::new(Path::new("t5.gguf"), entries.clone()).unwrap();
        let json = t5_tokenizer_json(&metadata).unwrap().unwrap();
        let rows = metadata.strings("tokenizer.ggml.tokens").unwrap().unwrap().len();
        let again = t5_gguf_metadata(&json, rows, Path::new("t5")).unwrap();
        assert!(again.iter().all(|(key, _)| key.starts_with("tokenizer.ggml.")), "{:?}", again.last());
        let again = Metadata::new(Path::new("again.gguf"), again).unwrap();
        for (key, theirs) in metadata.iter().filter(|(key, _)| key.starts_with("tokenizer.")) {
            let lists = ["tokens", "scores", "token_type"].iter().any(|list| key.ends_with(list));
            assert!(lists || again.get(key) == Some(theirs), "{key}");
        }
        // Where their list has nothing, the hundred <extra_id_N> are now marks.
        let tokens = |metadata: &Metadata| -> Vec<(String, f32, i64)> {
            let texts = metadata.strings("tokenizer.ggml.tokens").unwrap().unwrap().iter();
            let scores = metadata.floats("tokenizer.ggml.scores").unwrap().unwrap();
            let types = metadata.integers("tokenizer.ggml.token_type").unwrap().unwrap();
            texts.zip(scores).zip(types).map(|((text, &score), kind)| (text.to_owned(), score, kind)).collect()
        };
        let (ours, theirs) = (tokens(&again), tokens(&metadata));
        assert_eq!(ours[..360], theirs[..360]);
        assert_eq!((&ours[360], &ours[459]), (&("<extra_id_99>".into(), 0.0, 3), &("<extra_id_0>".into(), 0.0, 3)));
        assert_eq!(ours[460..], theirs[460..]);
        let again = again.iter().map(|(key, value)| (key.to_owned(), value.clone())).collect();
        check_t5_against(&recorded("t5_gguf.json"), &t5_from(again, &TokenizerConfig::default()));
    }

    /// The miniature's normaliser is no map of characters, so the whole goes along.
    #[test]
    fn t5_survives_a_gguf_file() {
        let json = text("t5", "tokenizer.json");
        let entries = t5_gguf_metadata(&json, 160, Path::new("t5")).unwrap();
        assert_eq!(entries.last().unwrap(), &("tokenizer.huggingface.json".to_owned(), json.into()));
        check_t5(&t5_from(entries, &config("t5")));
    }

    /// gguf-rs switches on a feature of serde_json for the whole program: numbers are kept as they were written. All ids in here are
    /// those of transformers with it; without it, or with one more feature, they have to be looked at again.
    #[test]
    fn numbers_are_kept_as_text_while_ids_are_compared() {
        let large: Value = serde_json::from_str("1e400").unwrap();
        assert_eq!(large.to_string(), "1e+400", "arbitrary_precision is off");
        let sorted: Value = serde_json::from_str(r#"{"b": 1, "a": 2}"#).unwrap();
        assert_eq!(sorted.to_string(), r#"{"a":2,"b":1}"#, "preserve_order is on");
    }

    #[test]
    fn lengths_in_a_tokenizer_json_do_not_interfere() {
        let interfere = |json: &str, pad: &str| {
            let mut tokenizer: Value = serde_json::from_str(json).unwrap();
            tokenizer["truncation"] =
                json!({ "direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0 });
            tokenizer["padding"] = json!({ "strategy": { "Fixed": 9 }, "direction": "Left", "pad_to_multiple_of": null,
                "pad_id": 3, "pad_type_id": 0, "pad_token": pad });
            tokenizer.to_string()
        };
        check_clip(&clip(&interfere(&text("clip", "tokenizer.json"), "x")));
        check_t5(&t5(&interfere(&text("t5", "tokenizer.json"), "x")));
    }

    #[test]
    fn tokenizers_survive_a_bundle() {
        check_clip(&clip(&clip(&text("clip", "tokenizer.json")).to_json().unwrap()));
        check_t5(&t5(&t5(&text("t5", "tokenizer.json")).to_json().unwrap()));
    }

    #[test]
    fn long_prompts_take_no_time() {
        let (clip, t5) = (clip(&text("clip", "tokenizer.json")), t5(&text("t5", "tokenizer.json")));
        for prompt in
            ["a yellow star, ".repeat(5_000), "x".repeat(50_000), " ".repeat(50_000), "<|endoftext|>".repeat(5_000)]
        {
            let start = Instant::now();
            assert!(clip.encode(&prompt).unwrap().used <= clip.length());
            assert!(t5.encode(&prompt, None).unwrap().used <= t5.default_length());
            assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        }
    }
}
