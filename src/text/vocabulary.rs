//! A `tokenizer.json` in use: text to ids and back, with the library's failures as our errors.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tokenizers::Tokenizer;

use crate::{Error, Result};

/// A tokenizer without marks, padding or truncation, and the file that it came from.
pub(super) struct Vocabulary {
    tokenizer: Tokenizer,
    origin: PathBuf,
}

impl Vocabulary {
    pub(super) fn from_json(json: &str, origin: &Path) -> Result<Vocabulary> {
        let mut tokenizer = guarded(origin, || Tokenizer::from_str(json))?;
        tokenizer.with_padding(None);
        guarded(origin, || tokenizer.with_truncation(None).map(|_| ()))?;
        Ok(Vocabulary { tokenizer, origin: origin.to_owned() })
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
        let encoding = guarded(&self.origin, || self.tokenizer.encode_fast(text, false))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids`, special tokens included.
    pub(super) fn decode(&self, ids: &[u32]) -> Result<String> {
        guarded(&self.origin, || self.tokenizer.decode(ids, false))
    }
}

/// Runs a part of the library over a file's rules. It is written for files that its own trainer made, and indexes
/// without checking in places (the character map of T5's normaliser, for one), so a hostile file can make it panic.
/// That ends here: every call goes through a shared reference, and what a panic leaves behind is at most a poisoned
/// cache.
fn guarded<T>(origin: &Path, call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    let malformed = |found: String| Error::malformed(origin, "tokenizer", "a tokenizer.json that works", found);
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(malformed(error.to_string())),
        Err(_) => Err(malformed("rules that contradict each other".into())),
    }
}
