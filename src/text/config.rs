//! `tokenizer_config.json`: which tokens are special, and how long the encoder's input is.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::{Error, Result, json};

/// What a `tokenizer_config.json` says that matters for ids. Every part may be missing: each tokenizer knows its
/// family's defaults. [`TokenizerConfig::default`] stands for a missing file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct TokenizerConfig {
    pub(super) bos_token: Option<Special>,
    pub(super) eos_token: Option<Special>,
    pub(super) unk_token: Option<Special>,
    pub(super) pad_token: Option<Special>,
    pub(super) added_tokens_decoder: BTreeMap<String, AddedToken>,
    /// transformers writes 1e30 for "no limit", others infinity.
    #[serde(deserialize_with = "json::optional_float")]
    model_max_length: Option<f64>,
}

/// A special token: its text, or its text with rules for finding it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub(super) enum Special {
    Text(String),
    Token(AddedToken),
}

impl Special {
    pub(super) fn text(&self) -> &str {
        match self {
            Special::Text(text) => text,
            Special::Token(token) => &token.content,
        }
    }
}

/// A token that is looked for in the prompt before anything else, and the rules for that.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct AddedToken {
    // Never optional: with serde_json's `arbitrary_precision`, which another crate may switch on, a plain number would
    // pass for an object of unknown keys.
    pub(super) content: String,
    #[serde(default)]
    pub(super) single_word: bool,
    #[serde(default)]
    pub(super) lstrip: bool,
    #[serde(default)]
    pub(super) rstrip: bool,
    #[serde(default)]
    pub(super) normalized: bool,
    #[serde(default)]
    pub(super) special: bool,
}

impl TokenizerConfig {
    /// Reads the text of a `tokenizer_config.json`. `origin`, the file that the text came from, is for messages.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] where the text is no JSON object, or one of the keys read here has another type.
    pub fn from_json(text: &str, origin: &Path) -> Result<TokenizerConfig> {
        let malformed =
            |error: serde_json::Error| Error::malformed(origin, "tokenizer config", "JSON settings", error.to_string());
        // Through a map, since serde would take an array for a struct.
        let settings: serde_json::Map<_, _> = json::read(text).map_err(malformed)?;
        TokenizerConfig::deserialize(serde_json::Value::Object(settings)).map_err(malformed)
    }

    /// How long the encoder's input is, where the file says so: `model_max_length`, if it is from 1 to `most`.
    pub(super) fn max_length(&self, most: usize) -> Option<usize> {
        let length = self.model_max_length?;
        // The range is checked, and a fraction of a token is none.
        (1.0..=most as f64).contains(&length).then_some(length as usize)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<TokenizerConfig> {
        TokenizerConfig::from_json(text, Path::new("tokenizer_config.json"))
    }

    #[test]
    fn tokens_are_text_or_objects() {
        let config = read(
            r#"{"bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>", "normalized": true},
                "pad_token": null, "do_lower_case": true}"#,
        )
        .unwrap();
        assert_eq!(config.bos_token.unwrap().text(), "<s>");
        let Some(Special::Token(eos)) = config.eos_token else { panic!("an object") };
        assert_eq!((eos.content.as_str(), eos.normalized, eos.lstrip), ("</s>", true, false));
        assert_eq!(config.pad_token, None);
    }

    #[test]
    fn lengths_without_meaning_are_no_lengths() {
        for (text, wanted) in [
            ("77", Some(77)),
            ("512.0", Some(512)),
            ("1e30", None),
            ("0", None),
            ("-3", None),
            ("null", None),
            ("Infinity", None),
        ] {
            let config = read(&format!(r#"{{"model_max_length": {text}}}"#)).unwrap();
            assert_eq!(config.max_length(512), wanted, "{text}");
        }
        let unlimited = read(r#"{"model_max_length": 1000000000000000019884624838656}"#).unwrap();
        assert_eq!(unlimited.max_length(512), None);
        assert_eq!(TokenizerConfig::default().max_length(512), None);
    }

    #[test]
    fn other_types_are_refused() {
        for text in
            ["", "[]", r#"{"eos_token": 3}"#, r#"{"model_max_length": "long"}"#, r#"{"added_tokens_decoder": [1]}"#]
        {
            assert!(matches!(read(text), Err(Error::Malformed { .. })), "{text}");
        }
    }
}
