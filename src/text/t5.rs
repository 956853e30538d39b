//! T5's tokenizer: SentencePiece unigrams, as a `tokenizer.json`.
//!
//! The file's own normaliser and word rule are used, as in transformers 4. transformers 5 puts others in their place
//! for a `T5Tokenizer`. Over all of Unicode the two differ, with the published vocabulary, for U+0085 (a control
//! character, unknown here, a space there) and for text right after a special token such as `</s>`, which there
//! begins a new word.

use std::path::Path;

use super::vocabulary::Vocabulary;
use super::{Encoded, TokenizerConfig};
use crate::{Error, Result};

/// The longest T5 input that diffusers' pipelines allow (`max_sequence_length`), and the default if the tokenizer names no
/// length.
pub const MAX_SEQUENCE_LENGTH: usize = 512;

/// Turns prompts into T5's ids: the text, the end mark, padding.
pub struct T5Tokenizer {
    vocabulary: Vocabulary,
    eos: u32,
    pad: u32,
    max_length: usize,
}

impl T5Tokenizer {
    /// Reads the text of a `tokenizer.json`, with its `tokenizer_config.json` or [`TokenizerConfig::default`].
    /// `origin`, the file or directory that they came from, is for messages.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] where the text is no tokenizer, [`Error::Mismatch`] where the vocabulary lacks the end or
    /// padding token.
    pub fn from_json(json: &str, config: &TokenizerConfig, origin: &Path) -> Result<T5Tokenizer> {
        let vocabulary = Vocabulary::from_json(json, origin)?;
        let eos = config.eos_token.as_ref().map_or("</s>", |token| token.text());
        let pad = config.pad_token.as_ref().map_or("<pad>", |token| token.text());
        Ok(T5Tokenizer {
            eos: vocabulary.id(eos, "eos_token")?,
            pad: vocabulary.id(pad, "pad_token")?,
            max_length: config.max_length(MAX_SEQUENCE_LENGTH).unwrap_or(MAX_SEQUENCE_LENGTH),
            vocabulary,
        })
    }

    /// The whole tokenizer as a `tokenizer.json`, for a bundle.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] where the library cannot write what it read.
    pub fn to_json(&self) -> Result<String> {
        self.vocabulary.to_json()
    }

    /// How many tokens a prompt has unless the request says otherwise: the tokenizer's `model_max_length`, at most
    /// [`MAX_SEQUENCE_LENGTH`].
    pub fn default_length(&self) -> usize {
        self.max_length
    }

    /// How many rows the encoder's embedding needs for every id.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.size()
    }

    /// The ids of `prompt`, `max_sequence_length` of them ([`default_length`](T5Tokenizer::default_length) where it
    /// is `None`).
    ///
    /// # Errors
    ///
    /// [`Error::Option`] where the length is 0 or above [`MAX_SEQUENCE_LENGTH`], [`Error::Malformed`] where the
    /// tokenizer's rules do not work.
    pub fn encode(&self, prompt: &str, max_sequence_length: Option<usize>) -> Result<Encoded> {
        let length = max_sequence_length.unwrap_or(self.max_length);
        if !(1..=MAX_SEQUENCE_LENGTH).contains(&length) {
            let expected = format!("1 to {MAX_SEQUENCE_LENGTH}");
            return Err(Error::option("--max-sequence-length", expected, length.to_string()));
        }
        let content = self.vocabulary.encode(prompt)?;
        let (mut encoded, left) = Encoded::frame(None, &content, self.eos, self.pad, length);
        if !left.is_empty() {
            encoded.cut = Some(self.vocabulary.decode(left)?);
        }
        Ok(encoded)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn unigrams(normalizer: Value) -> String {
        let special = |id, content| {
            json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
        };
        json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": normalizer,
            "added_tokens": [special(0, "<pad>"), special(1, "</s>"), special(2, "<unk>")],
            "pre_tokenizer": { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true },
            "post_processor": null,
            "decoder": { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true },
            "model": { "type": "Unigram", "unk_id": 2, "byte_fallback": false,
                "vocab": [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["▁star", -1.0], ["▁", -2.0], ["s", -3.0]] },
        })
        .to_string()
    }

    fn build(json: &str, config: &str) -> Result<T5Tokenizer> {
        let origin = Path::new("tokenizer_2");
        T5Tokenizer::from_json(json, &TokenizerConfig::from_json(config, origin)?, origin)
    }

    fn encoded(ids: &[u32], used: usize, cut: Option<&str>) -> Encoded {
        Encoded { ids: ids.to_vec(), used, cut: cut.map(str::to_owned), weights: Vec::new() }
    }

    #[test]
    fn a_request_may_choose_the_length() {
        let tokenizer = build(&unigrams(Value::Null), r#"{"model_max_length": 5}"#).unwrap();
        assert_eq!((tokenizer.default_length(), tokenizer.vocab_size()), (5, 6));
        assert_eq!(tokenizer.encode("star s", None).unwrap(), encoded(&[3, 4, 5, 1, 0], 4, None));
        let cut = tokenizer.encode("star star", Some(2)).unwrap();
        assert_eq!(cut, encoded(&[3, 1], 2, Some("star")));
        assert_eq!(tokenizer.encode("", Some(8)).unwrap(), encoded(&[1, 0, 0, 0, 0, 0, 0, 0], 1, None));
        for length in [0, 513, usize::MAX] {
            let message = tokenizer.encode("star", Some(length)).unwrap_err().to_string();
            assert_eq!(message, format!("--max-sequence-length: expected 1 to 512, found {length}"));
        }
    }

    #[test]
    fn without_a_length_it_is_512() {
        for config in ["{}", r#"{"model_max_length": 1e30}"#, r#"{"model_max_length": 4096}"#] {
            assert_eq!(build(&unigrams(Value::Null), config).unwrap().default_length(), 512, "{config}");
        }
    }

    #[test]
    fn broken_files_are_refused() {
        for json in ["", "{}", "[]", "null", &unigrams(Value::Null).replace("Unigram", "Bigram")] {
            assert!(matches!(build(json, "{}"), Err(Error::Malformed { .. })), "{json}");
        }
        let error = build(&unigrams(Value::Null), r#"{"pad_token": "<none>"}"#).err().unwrap();
        assert_eq!(
            error.to_string(),
            "tokenizer_2: pad_token: expected a token of the vocabulary, found `<none>`, which it does not have"
        );
    }

    /// The character map is a trie of one unit that points far outside it: the library indexes with it unchecked.
    #[test]
    fn a_map_that_points_outside_itself_is_an_error_and_no_panic() {
        let map = json!({ "type": "Precompiled", "precompiled_charsmap": "BAAAAAD8/394AA==" });
        let tokenizer = build(&unigrams(map), "{}").unwrap();
        assert!(matches!(tokenizer.encode("star", None), Err(Error::Malformed { .. })));
    }
}
