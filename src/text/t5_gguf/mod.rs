//! T5's tokenizer in the metadata of a GGUF file, and back.
//!
//! llama.cpp's converter writes SentencePiece's own parts, one key each, for the T5 files that people have:
//!
//! | key, after `tokenizer.ggml.` | value |
//! |---|---|
//! | `model` | `t5` |
//! | `tokens`, `scores`, `token_type` | the pieces, their log probabilities, and a [`Kind`] each |
//! | `precompiled_charsmap` | the normaliser: a trie of characters and what each becomes; missing where nothing changes |
//! | `add_space_prefix`, `remove_extra_whitespaces` | `true` for every T5 |
//! | `eos_token_id`, `unknown_token_id`, `padding_token_id` | 1, 2 and 0 where they are missing |
//!
//! The lists are as long as the embedding has rows. What the vocabulary does not fill has the names `[PAD32000]` and on, the
//! kind "unused" and a score of -10000.
//!
//! A whole `tokenizer.json` can go along under the format's own key, `tokenizer.huggingface.json`. The keys above cannot
//! say everything that such a file can (another normaliser, how special tokens take the spaces around them), so the
//! whole is written where reading them would not give the same tokenizer back, and is preferred where it is there.
//!
//! SentencePiece's own file holds the same parts and is read by way of them.

mod read;
mod spiece;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod write;

pub use read::t5_tokenizer_json;
pub use spiece::t5_spiece_json;
pub use write::t5_gguf_metadata;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const SCORES: &str = "tokenizer.ggml.scores";
const TYPES: &str = "tokenizer.ggml.token_type";
const CHARSMAP: &str = "tokenizer.ggml.precompiled_charsmap";
const SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";
const REMOVE_SPACES: &str = "tokenizer.ggml.remove_extra_whitespaces";
const EOS: &str = "tokenizer.ggml.eos_token_id";
const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";
const PADDING: &str = "tokenizer.ggml.padding_token_id";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
const WHOLE: &str = "tokenizer.huggingface.json";

/// The marks that [`T5Tokenizer`](super::T5Tokenizer) looks for.
const END: &str = "</s>";
const PAD: &str = "<pad>";

/// What llama.cpp's converter gives a row of the embedding that has no token.
const FILLER_SCORE: f32 = -10000.0;
/// What it gives a token that was added to SentencePiece's vocabulary from outside.
const ADDED_SCORE: f32 = -1000.0;

/// The most tokens that are believed: umT5 has 256 384.
const MAX_TOKENS: usize = 1 << 20;
/// The most bytes in all pieces together: umT5's take about 3 MB. The library's trie takes a few hundred bytes for each.
const MAX_PIECE_BYTES: usize = 8 << 20;

/// What a token is, by SentencePiece's own numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Normal = 1,
    Unknown = 2,
    /// A mark such as `</s>`, found in a prompt before its words are.
    Control = 3,
    /// A text that stays whole, found as a mark is.
    UserDefined = 4,
    Unused = 5,
    /// One byte of a character that has no piece.
    Byte = 6,
}

impl Kind {
    const ALL: [Kind; 6] = [Kind::Normal, Kind::Unknown, Kind::Control, Kind::UserDefined, Kind::Unused, Kind::Byte];

    fn from_id(id: i64) -> Option<Kind> {
        Kind::ALL.into_iter().find(|&kind| kind as i64 == id)
    }
}

fn filler(id: usize) -> String {
    format!("[PAD{id}]")
}

/// Whether a token only fills the list up. Converters did not always number them by their ids.
fn is_filler(text: &str, kind: Kind) -> bool {
    let number = text.strip_prefix("[PAD").and_then(|rest| rest.strip_suffix(']'));
    kind == Kind::Unused && number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// A key as the place of an error.
fn at(key: &str) -> String {
    format!("metadata `{key}`")
}
