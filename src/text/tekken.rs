//! Mistral's own form of a byte-level BPE: `tekken.json`, which has bytes with their ranks and no merges.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::json;

use super::byte_level::{Rules, shown, tokenizer_json};
use super::clip::Tokens;
use crate::{Error, Result, json};

/// The parts of a `tekken.json` that count.
#[derive(Deserialize)]
struct Tekken {
    config: Config,
    vocab: Vec<Word>,
    special_tokens: Option<Vec<Mark>>,
}

#[derive(Deserialize)]
struct Config {
    pattern: String,
    default_vocab_size: Option<usize>,
    default_num_special_tokens: Option<usize>,
}

#[derive(Deserialize)]
struct Word {
    token_bytes: String,
}

#[derive(Deserialize)]
struct Mark {
    rank: usize,
    token_str: String,
}

/// More special tokens than any vocabulary has: nothing is believed beyond.
const MOST_MARKS: usize = 1 << 16;

/// The longest token in bytes.
const MOST_BYTES: usize = 1 << 10;

/// The `tokenizer.json` that belongs to the text of a `tekken.json`, which `origin` holds. Its special tokens come first, and others by their
/// rank: as transformers makes it, two tokens are merged that make a third, in the order of that one's rank.
///
/// # Errors
///
/// [`Error::Malformed`] where the text is no such vocabulary.
pub fn tekken_tokenizer_json(text: &str, origin: &Path) -> Result<String> {
    let malformed = |expected: &str, found: String| Error::malformed(origin, "tekken", expected, found);
    let tekken: Tekken = json::read(text).map_err(|error| malformed("a tekken.json", error.to_string()))?;
    let marks = marks(&tekken, origin)?;
    let most = tekken.config.default_vocab_size.map_or(tekken.vocab.len(), |size| size.saturating_sub(marks.len()));
    let mut words = Vec::with_capacity(most.min(tekken.vocab.len()));
    let mut ranks = HashMap::new();
    for word in tekken.vocab.iter().take(most) {
        let bytes = base64::decode(&word.token_bytes).map_err(|error| malformed("base64", error.to_string()))?;
        if bytes.is_empty() || bytes.len() > MOST_BYTES || ranks.insert(bytes.clone(), words.len()).is_some() {
            return Err(malformed("tokens of one to 1024 bytes, each once", format!("`{}`", word.token_bytes)));
        }
        words.push(bytes);
    }
    let spelt: Vec<String> = words.iter().map(|word| word.iter().map(|&byte| shown(byte)).collect()).collect();
    let mut merges = Vec::new();
    for word in &words {
        let mut pairs: Vec<(usize, usize)> =
            (1..word.len()).filter_map(|at| Some((*ranks.get(&word[..at])?, *ranks.get(&word[at..])?))).collect();
        pairs.sort_unstable();
        merges.extend(pairs.into_iter().map(|(left, right)| (spelt[left].as_str(), spelt[right].as_str())));
    }
    let id = |id: usize| u32::try_from(id).map_err(|_| malformed("ids of 32 bits", id.to_string()));
    let (mut vocab, mut added) = (Vec::with_capacity(words.len() + marks.len()), Vec::with_capacity(marks.len()));
    for (i, mark) in marks.iter().enumerate() {
        vocab.push((mark.clone(), id(i)?));
        added.push(json!({
            "id": i, "content": mark, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true,
        }));
    }
    for (i, word) in spelt.iter().enumerate() {
        vocab.push((word.clone(), id(marks.len() + i)?));
    }
    let rules = Rules { name: "tekken", words: &tekken.config.pattern, composes: false, whole_words: true };
    tokenizer_json(rules, &Tokens(vocab), merges, added, origin)
}

/// The special tokens by their ids, with names for those that have none.
fn marks(tekken: &Tekken, origin: &Path) -> Result<Vec<String>> {
    let expected = "special tokens with ranks from 0 on";
    let Some(given) = &tekken.special_tokens else {
        return Err(Error::malformed(origin, "tekken", expected, "none"));
    };
    let count = tekken.config.default_num_special_tokens.unwrap_or(given.len());
    let fits = given.len() <= count && count <= MOST_MARKS;
    let mut marks: Vec<String> = (0..if fits { count } else { 0 }).map(|id| format!("<SPECIAL_{id}>")).collect();
    let mut ranks: Vec<usize> = given.iter().map(|mark| mark.rank).collect();
    ranks.sort_unstable();
    if !fits || !ranks.into_iter().eq(0..given.len()) {
        return Err(Error::malformed(origin, "tekken", expected, format!("{} of {count}", given.len())));
    }
    for mark in given {
        marks[mark.rank].clone_from(&mark.token_str);
    }
    Ok(marks)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{ByteLevelTokenizer, TokenizerConfig};
    use super::*;

    fn tekken(words: &[&[u8]], more: serde_json::Value) -> String {
        let vocab: Vec<_> = words.iter().map(|word| json!({ "token_bytes": base64::encode(word) })).collect();
        let mut made = json!({
            "config": { "pattern": r"\s+|\S+", "default_vocab_size": 9, "default_num_special_tokens": 3 },
            "vocab": vocab,
            "special_tokens": [{ "rank": 1, "token_str": "<s>" }, { "rank": 0, "token_str": "<unk>" }],
        });
        made.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        made.to_string()
    }

    #[test]
    fn ranks_become_merges() {
        let words: [&[u8]; 7] = [b"a", b"b", b" ", b"ab", b"abb", b"ba", b"bab"];
        let text = tokenizer(&tekken(&words, json!({})));
        // The last is past the end of the vocabulary: `bab` is `b` and `ab`.
        assert_eq!(text.encode("<s>abb bab", 9).unwrap().ids, [1, 7, 5, 4, 6]);
        assert_eq!((text.id("<SPECIAL_2>").unwrap(), text.id("<unk>").unwrap()), (2, 0));
    }

    fn tokenizer(text: &str) -> ByteLevelTokenizer {
        let json = tekken_tokenizer_json(text, Path::new("t")).unwrap();
        ByteLevelTokenizer::from_json(&json, &TokenizerConfig::default(), Path::new("t")).unwrap()
    }

    #[test]
    fn what_is_no_vocabulary_is_refused() {
        let said = |text: &str| tekken_tokenizer_json(text, Path::new("t")).unwrap_err().to_string();
        assert!(said("[]").starts_with("t: tekken: expected a tekken.json"));
        assert!(said(&tekken(&[b"a", b"a"], json!({}))).contains("each once"));
        assert!(said(&tekken(&[b""], json!({}))).contains("one to 1024 bytes"));
        assert!(said(&tekken(&[b"a"], json!({ "vocab": [{ "token_bytes": "*" }] }))).contains("base64"));
        assert!(said(&tekken(&[b"a"], json!({ "special_tokens": null }))).contains("special tokens with ranks"));
        let gap = json!({ "special_tokens": [{ "rank": 1, "token_str": "x" }] });
        assert!(said(&tekken(&[b"a"], gap)).contains("1 of 3"));
    }
}
