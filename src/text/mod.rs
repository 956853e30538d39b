//! Tokenizers: a prompt becomes the ids that the text encoders were trained on, padded and cut as diffusers does it.
//!
//! | tokenizer | files | ids |
//! |---|---|---|
//! | [`ClipTokenizer`] | `tokenizer.json`, or `vocab.json` and `merges.txt` | start, text, end, padded to the model's length (77) |
//! | [`T5Tokenizer`] | `tokenizer.json` | text, end, padded to a length that the request may choose (512) |
//!
//! diffusers' `FluxPipeline` calls both with `padding="max_length"` and `truncation=True`, and passes on no attention
//! mask: the text encoders see the padding. The reference is transformers 5, which builds both kinds on the
//! `tokenizers` library. Its version 4 had a slow CLIP tokenizer besides, which set Chinese characters apart by
//! spaces and dropped control characters; that one is not followed.
//!
//! Truncation and padding that a `tokenizer.json` sets for itself are ignored: the length is the text encoder's
//! business.

mod clip;
mod config;
mod t5;
mod vocabulary;

pub use clip::{ClipTokenizer, clip_tokenizer_json};
pub use config::TokenizerConfig;
pub use t5::{MAX_SEQUENCE_LENGTH, T5Tokenizer};

/// A prompt as a text encoder takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids, padded to the full length.
    pub ids: Vec<u32>,
    /// How many of them are not padding; start and end marks count.
    pub used: usize,
    /// The end of the prompt, where it did not fit: what was left out, decoded from its ids, and so normalised
    /// (CLIP's is in lower case). The text that diffusers warns of.
    pub cut: Option<String>,
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
        (Encoded { ids, used, cut: None }, left)
    }
}

/// OpenAI's tokenizer of CLIP.
///
/// # Errors
/// Always, as yet.
pub fn openai_clip_tokenizer_json() -> crate::Result<String> {
    Err(crate::Error::graph("tokenizer", "the public vocabulary is not built in yet"))
}

/// The tokenizer of T5 in a GGUF's metadata.
///
/// # Errors
/// None, as yet.
pub fn t5_tokenizer_json(_: &crate::gguf::Metadata) -> crate::Result<Option<String>> {
    Ok(None)
}

/// A tokenizer of T5 as a GGUF's metadata.
///
/// # Errors
/// None, as yet.
pub fn t5_gguf_metadata(_: &str, _: usize, _: &std::path::Path) -> crate::Result<Vec<(String, crate::gguf::Value)>> {
    Ok(Vec::new())
}

/// Ids against those that transformers gave (tests/goldens/tokens.json), for the tokenizers of the miniature.
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::time::{Duration, Instant};

    use serde_json::{Value, json};

    use super::*;

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

    fn recorded() -> Value {
        let golden: Value = serde_json::from_str(&fs::read_to_string(goldens().join("tokens.json")).unwrap()).unwrap();
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
        let golden = recorded();
        assert_eq!(json!(tokenizer.length()), golden["clip"]["length"]);
        for case in golden["cases"].as_array().unwrap() {
            let prompt = prompt(case);
            check(&tokenizer.encode(&prompt).unwrap(), &case["clip"], tokenizer.length(), &golden["clip"], &prompt);
        }
    }

    fn check_t5(tokenizer: &T5Tokenizer) {
        let golden = recorded();
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
