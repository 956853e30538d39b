//! The model of a `tokenizer.json`, looked at without being kept: its kind, how many tokens it has, how long they are, and their
//! ids.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// What passes of a model. Its fields are all that the library knows: it would buffer others, however large they are.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Model {
    r#type: Option<String>,
    dropout: Option<f64>,
    unk_token: Option<Short>,
    continuing_subword_prefix: Option<Short>,
    end_of_word_suffix: Option<Short>,
    #[serde(rename = "fuse_unk")]
    _fuse_unk: Option<bool>,
    #[serde(rename = "byte_fallback")]
    _byte_fallback: Option<bool>,
    #[serde(rename = "ignore_merges")]
    _ignore_merges: Option<bool>,
    #[serde(rename = "unk_id")]
    _unk_id: Option<u64>,
    vocab: Vocabulary,
    merges: Option<Merges>,
}

impl Model {
    /// The most tokens, merges, and ids: UMT5 and Gemma have 262 144. The library counts up to the largest id when it writes.
    pub(super) const MAX_TOKENS: usize = 1 << 20;

    /// Looks at the text of a model.
    ///
    /// # Errors
    /// What is wrong, with its place in the text.
    pub(super) fn check(json: &str) -> serde_json::Result<()> {
        let model: Model = serde_json::from_str(json)?;
        let kind = match (&model.vocab, &model.merges) {
            (Vocabulary::Map, Some(Merges)) => "BPE",
            (Vocabulary::List, None) => "Unigram",
            _ => return Err(serde_json::Error::custom("neither the parts of a BPE nor those of a Unigram")),
        };
        // Files of the library's first years do not say.
        match model.r#type.as_deref() {
            None => {}
            Some(named) if named == kind => {}
            Some(named) => {
                let named: String = named.chars().take(40).collect();
                return Err(serde_json::Error::custom(format!("`{named}` with the parts of a {kind}")));
            }
        }
        if model.dropout.is_some_and(|dropout| dropout != 0.0) {
            return Err(serde_json::Error::custom("a dropout, which draws ids by lot"));
        }
        let _ = (model.unk_token, model.continuing_subword_prefix, model.end_of_word_suffix);
        Ok(())
    }
}

/// The most bytes of all tokens together. The library's trie takes a few hundred for each.
const MAX_BYTES: usize = 8 << 20;
/// The longest piece of a Unigram, in bytes: from every letter of a text on, the library looks at all pieces that begin there.
const MAX_PIECE: usize = 256;
/// The longest mark, in bytes: it is put to every letter.
const MAX_SHORT: usize = 256;

/// A short text.
struct Short;

impl<'de> Deserialize<'de> for Short {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Short, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.len() {
            0..=MAX_SHORT => Ok(Short),
            len => Err(D::Error::custom(format!("a mark of {len} bytes, and {MAX_SHORT} at most"))),
        }
    }
}

/// What is counted while a list is read.
#[derive(Default)]
struct Count {
    items: usize,
    bytes: usize,
}

impl Count {
    fn add<E: serde::de::Error>(&mut self, bytes: usize) -> Result<(), E> {
        self.items += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        if self.items > Model::MAX_TOKENS || self.bytes > MAX_BYTES {
            let most = format!("more than {} tokens or {MAX_BYTES} bytes of them", Model::MAX_TOKENS);
            return Err(E::custom(most));
        }
        Ok(())
    }
}

/// Tokens with their ids, or pieces with their scores.
enum Vocabulary {
    Map,
    List,
}

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Vocabulary, D::Error> {
        deserializer.deserialize_any(VocabularyVisitor)
    }
}

struct VocabularyVisitor;

impl<'de> Visitor<'de> for VocabularyVisitor {
    type Value = Vocabulary;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tokens with their ids, or pieces with their scores")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocabulary, A::Error> {
        let (mut count, mut taken) = (Count::default(), Vec::new());
        while let Some((token, id)) = map.next_entry::<String, u64>()? {
            count.add(token.len())?;
            let index = usize::try_from(id).unwrap_or(usize::MAX);
            if index >= Model::MAX_TOKENS {
                return Err(A::Error::custom(format!("the id {id}, and ids are below {}", Model::MAX_TOKENS)));
            }
            if index >= taken.len() {
                taken.resize(index + 1, false);
            }
            // The library would keep either of them, by lot.
            if std::mem::replace(&mut taken[index], true) {
                return Err(A::Error::custom(format!("two tokens with the id {id}")));
            }
        }
        Ok(Vocabulary::Map)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vocabulary, A::Error> {
        let mut count = Count::default();
        while let Some((piece, score)) = list.next_element::<(String, f64)>()? {
            count.add(piece.len())?;
            if piece.len() > MAX_PIECE {
                return Err(A::Error::custom(format!("a piece of {} bytes, and {MAX_PIECE} at most", piece.len())));
            }
            if !score.is_finite() {
                return Err(A::Error::custom("a score that is not finite"));
            }
        }
        Ok(Vocabulary::List)
    }
}

/// Pairs of tokens: as many as there may be tokens.
struct Merges;

impl<'de> Deserialize<'de> for Merges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Merges, D::Error> {
        deserializer.deserialize_seq(MergesVisitor)
    }
}

struct MergesVisitor;

impl<'de> Visitor<'de> for MergesVisitor {
    type Value = Merges;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of merges")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Merges, A::Error> {
        let mut count = Count::default();
        while list.next_element::<IgnoredAny>()?.is_some() {
            count.add(0)?;
        }
        Ok(Merges)
    }
}
