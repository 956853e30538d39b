//! A `tokenizer.json` in use: text to ids and back, with the library's failures as our errors.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use tokenizers::{AddedToken, Tokenizer};

use super::rules::{self, Checked};
use crate::{Error, Result, quiet};

/// How many bytes the library may have of one text, after its rules. It takes a hundred times as much.
const MOST_BYTES: u64 = 4 << 20;

/// A tokenizer without marks, padding or truncation, and the file that it came from.
pub(super) struct Vocabulary {
    tokenizer: Tokenizer,
    /// How many times as long as a text its pieces are, at most.
    growth: u64,
    origin: PathBuf,
}

impl Vocabulary {
    pub(super) fn from_json(json: &str, origin: &Path) -> Result<Vocabulary> {
        let Checked { json, growth } = rules::check(json, origin)?;
        let tokenizer = guarded(origin, || Tokenizer::from_str(&json))?;
        Ok(Vocabulary { tokenizer, growth, origin: origin.to_owned() })
    }

    /// Finds `tokens` before all words from now on, if the vocabulary has them, as transformers does with the tokens that a
    /// `tokenizer_config.json` names.
    pub(super) fn add_special(&mut self, tokens: &[&str]) -> Result<()> {
        let known = self.tokenizer.get_added_tokens_decoder();
        let new = tokens.iter().filter(|token| known.values().all(|added| added.content != **token));
        let new = new.filter(|token| self.tokenizer.token_to_id(token).is_some());
        let added: Vec<AddedToken> = new.map(|token| AddedToken::from(*token, true)).collect();
        let tokenizer = &mut self.tokenizer;
        guarded(&self.origin, move || tokenizer.add_special_tokens(added)).map(drop)
    }

    /// The whole tokenizer as a `tokenizer.json`.
    pub(super) fn to_json(&self) -> Result<String> {
        guarded(&self.origin, || self.tokenizer.to_string(false))
    }

    /// The id of `token`, which `role` names in messages.
    pub(super) fn id(&self, token: &str, role: &str) -> Result<u32> {
        self.tokenizer.token_to_id(token).ok_or_else(|| {
            Error::mismatch(
                &self.origin,
                role,
                "a token of the vocabulary",
                format!("`{token}`, which it does not have"),
            )
        })
    }

    /// One more than the largest id: how many rows the encoder's embedding needs.
    pub(super) fn size(&self) -> usize {
        self.tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
    }

    /// The ids of `text` alone.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let most = MOST_BYTES / self.growth.max(1);
        if text.len() as u64 > most {
            let expected = format!("at most {most} bytes, from which the tokenizer could make {MOST_BYTES}");
            return Err(Error::option("--prompt", expected, text.len().to_string()));
        }
        let encoding = guarded(&self.origin, || self.tokenizer.encode_fast(text, false))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids`, special tokens included.
    pub(super) fn decode(&self, ids: &[u32]) -> Result<String> {
        guarded(&self.origin, || self.tokenizer.decode(ids, false))
    }
}

/// Runs a part of the library over rules that were looked at. It indexes without checking in places (the character map of
/// T5's normaliser, for one), so a hostile file can make it panic. That ends here, and says nothing: every call goes through a
/// shared reference, and what a panic leaves behind is at most a poisoned cache.
fn guarded<T>(origin: &Path, call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    let malformed = |found: String| Error::malformed(origin, "tokenizer", "a tokenizer.json that works", found);
    match quiet::caught(call) {
        Some(Ok(value)) => Ok(value),
        Some(Err(error)) => Err(malformed(error.to_string())),
        None => Err(malformed("rules that contradict each other".into())),
    }
}
