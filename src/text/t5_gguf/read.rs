//! From metadata to a `tokenizer.json`.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::{Value as Json, json};

use super::{
    ADDED_SCORE, CHARSMAP, END, EOS, Kind, MAX_PIECE_BYTES, MAX_TOKENS, MODEL, PAD, PADDING, SCORES, SPACE_PREFIX,
    TOKENS, TYPES, UNKNOWN, WHOLE, at, is_filler,
};
use crate::gguf::{Array, Metadata, Strings, Value};
use crate::index::quoted;
use crate::text::charsmap;
use crate::{Error, Result};

/// How many `<extra_id_N>` transformers' `T5Tokenizer` adds to SentencePiece's pieces, which have none themselves.
pub(super) const SENTINELS: usize = 100;

/// How many those are that umt5 has.
const SENTINELS_OF_UMT5: usize = 300;

/// How many sentinels stand behind the pieces where the embedding has room for so many rows. T5 has 128 rows more than pieces, and umt5
/// has 384.
pub(super) fn sentinels(room: usize) -> usize {
    [SENTINELS_OF_UMT5, SENTINELS].into_iter().find(|&count| count <= room).unwrap_or(0)
}

/// The `tokenizer.json` of a T5 encoder, for [`T5Tokenizer`](crate::text::T5Tokenizer), from the metadata of its GGUF
/// file. `None` where the file has no tokenizer.
///
/// The ids are those of transformers' `T5Tokenizer` for the same vocabulary, with its normaliser and word rule: a word
/// ends at any space, whatever `remove_extra_whitespaces` says. The hundred `<extra_id_N>` (of umt5: 300) that it puts
/// behind SentencePiece's pieces, highest first, are there where rows without a token leave room for them. As with
/// transformers, a character without a piece is unknown even where the vocabulary has pieces for bytes.
///
/// # Errors
///
/// [`Error::Mismatch`] where a key has another type, the tokenizer is no T5's, or the ends and paddings are not `</s>`
/// and `<pad>`; [`Error::Malformed`] where a part is missing, the parts contradict each other or hold impossible
/// values.
pub fn t5_tokenizer_json(metadata: &Metadata) -> Result<Option<String>> {
    match metadata.string(MODEL)? {
        Some("t5") => {}
        Some(other) => return Err(Error::mismatch(metadata.path(), at(MODEL), "`t5`", quoted(other))),
        None if metadata.get(TOKENS).is_some() => {
            return Err(Error::mismatch(metadata.path(), at(MODEL), "`t5`", "nothing"));
        }
        None => {}
    }
    if let Some(whole) = metadata.string(WHOLE)? {
        return Ok(Some(whole.to_owned()));
    }
    if metadata.get(MODEL).is_none() {
        return Ok(None);
    }
    Vocabulary::read(metadata)?.to_json(metadata).map(Some)
}

struct Piece<'a> {
    text: Cow<'a, str>,
    score: f64,
    kind: Kind,
}

/// The tokens by id, without those that only fill the list up at its end.
struct Vocabulary<'a> {
    pieces: Vec<Piece<'a>>,
    unknown: usize,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a Metadata) -> Result<Vocabulary<'a>> {
        let mut pieces = read_pieces(metadata)?;
        let rows = pieces.len();
        let used = pieces.iter().rposition(|piece| !is_filler(&piece.text, piece.kind)).map_or(0, |last| last + 1);
        pieces.truncate(used);
        check_unique(metadata, &pieces)?;
        let unknown_piece = pieces.iter().position(|piece| piece.kind == Kind::Unknown).unwrap_or(2);
        let unknown = special(metadata, UNKNOWN, unknown_piece, &pieces)?;
        for (key, default, text) in [(EOS, 1, END), (PADDING, 0, PAD)] {
            let id = special(metadata, key, default, &pieces)?;
            if pieces[id].text != text {
                let found = format!("{id}, which is {}", quoted(&pieces[id].text));
                return Err(Error::mismatch(metadata.path(), at(key), format!("the id of `{text}`"), found));
            }
        }
        settle(&mut pieces);
        add_sentinels(&mut pieces, rows);
        Ok(Vocabulary { pieces, unknown })
    }

    /// The whole, as transformers writes a `T5Tokenizer`.
    fn to_json(&self, metadata: &Metadata) -> Result<String> {
        if metadata.bool(SPACE_PREFIX)? == Some(false) {
            let expected = "true, as for every T5";
            return Err(Error::mismatch(metadata.path(), at(SPACE_PREFIX), expected, "false"));
        }
        let normalizer = match read_charsmap(metadata)? {
            Some(map) => json!({ "type": "Precompiled", "precompiled_charsmap": base64::encode(map) }),
            None => Json::Null,
        };
        let metaspace = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true });
        let end = json!({ "SpecialToken": { "id": END, "type_id": 0 } });
        let text = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
        let end_id = self.pieces.iter().position(|piece| piece.text == END);
        let vocab: Vec<_> = self.pieces.iter().map(|piece| (&piece.text, piece.score)).collect();
        let tokenizer = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added_tokens(),
            "normalizer": normalizer,
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": [{ "type": "WhitespaceSplit" }, metaspace] },
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [text("A"), end], "pair": [text("A"), end, text("B"), end],
                "special_tokens": { END: { "id": END, "ids": [end_id], "tokens": [END] } },
            },
            "decoder": metaspace,
            "model": { "type": "Unigram", "unk_id": self.unknown, "vocab": vocab, "byte_fallback": false },
        });
        Ok(tokenizer.to_string())
    }

    /// The tokens to look for before all else, by id.
    fn added_tokens(&self) -> Vec<Json> {
        let added = self.pieces.iter().enumerate().filter_map(|(id, piece)| {
            let special = match piece.kind {
                Kind::Control | Kind::Unknown => true,
                _ if id == self.unknown || piece.text == END || piece.text == PAD => true,
                Kind::UserDefined => false,
                Kind::Normal | Kind::Unused | Kind::Byte => return None,
            };
            Some(json!({
                "id": id, "content": piece.text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special,
            }))
        });
        added.collect()
    }
}

fn malformed(metadata: &Metadata, at: String, expected: impl Into<String>, found: impl Into<String>) -> Error {
    Error::malformed(metadata.path(), at, expected, found)
}

fn missing(metadata: &Metadata, key: &str) -> Error {
    malformed(metadata, at(key), "an array with a value for each token", "nothing")
}

/// Refuses `key`'s array where it has not one value for each of `tokens`.
fn check_length(metadata: &Metadata, key: &str, found: usize, tokens: usize) -> Result<()> {
    if found != tokens {
        let expected = format!("{tokens} values, one for each of `{TOKENS}`");
        return Err(malformed(metadata, at(key), expected, found.to_string()));
    }
    Ok(())
}

/// All tokens, whatever they are for.
fn read_pieces(metadata: &Metadata) -> Result<Vec<Piece<'_>>> {
    let tokens = metadata.strings(TOKENS)?.ok_or_else(|| missing(metadata, TOKENS))?;
    check_size(metadata, tokens)?;
    let scores = metadata.floats(SCORES)?.ok_or_else(|| missing(metadata, SCORES))?;
    check_length(metadata, SCORES, scores.len(), tokens.len())?;
    if let Some(Value::Array(types)) = metadata.get(TYPES) {
        check_length(metadata, TYPES, types.len(), tokens.len())?;
    }
    let types = metadata.integers(TYPES)?.ok_or_else(|| missing(metadata, TYPES))?;
    tokens
        .iter()
        .zip(scores)
        .zip(types)
        .enumerate()
        .map(|(id, ((text, &score), kind))| piece(metadata, id, text, score, kind))
        .collect()
}

fn piece<'a>(metadata: &Metadata, id: usize, text: &'a str, score: f32, kind: i64) -> Result<Piece<'a>> {
    let at = |key| format!("{}, token {id}", at(key));
    if !score.is_finite() {
        return Err(malformed(metadata, at(SCORES), "a finite number", score.to_string()));
    }
    let kind =
        Kind::from_id(kind).ok_or_else(|| malformed(metadata, at(TYPES), "a type from 1 to 6", kind.to_string()))?;
    Ok(Piece { text: text.into(), score: score.into(), kind })
}

fn check_size(metadata: &Metadata, tokens: &Strings) -> Result<()> {
    if tokens.is_empty() || tokens.len() > MAX_TOKENS {
        let expected = format!("1 to {MAX_TOKENS} tokens");
        return Err(malformed(metadata, at(TOKENS), expected, tokens.len().to_string()));
    }
    let bytes: usize = tokens.iter().map(str::len).sum();
    if bytes > MAX_PIECE_BYTES {
        let expected = format!("tokens of at most {MAX_PIECE_BYTES} bytes together");
        return Err(malformed(metadata, at(TOKENS), expected, bytes.to_string()));
    }
    Ok(())
}

/// Refuses a token that is there twice: one of its ids would never be used.
fn check_unique(metadata: &Metadata, pieces: &[Piece<'_>]) -> Result<()> {
    let mut ids = HashMap::with_capacity(pieces.len());
    for (id, piece) in pieces.iter().enumerate() {
        if let Some(first) = ids.insert(piece.text.as_ref(), id) {
            let found = format!("{}, which token {first} is too", quoted(&piece.text));
            return Err(malformed(metadata, format!("{}, token {id}", at(TOKENS)), "another token", found));
        }
    }
    Ok(())
}

/// The id at `key`, or `default`, in the range of `pieces`.
fn special(metadata: &Metadata, key: &str, default: usize, pieces: &[Piece<'_>]) -> Result<usize> {
    let id = match metadata.integer(key)? {
        Some(id) => usize::try_from(id).map_err(|_| id.to_string()),
        None => Ok(default),
    };
    id.and_then(|id| if id < pieces.len() { Ok(id) } else { Err(id.to_string()) })
        .map_err(|found| malformed(metadata, at(key), format!("the id of one of {} tokens", pieces.len()), found))
}

/// Takes out what llama.cpp's converter puts in for tokens that SentencePiece's vocabulary does not have, because the
/// lowest score decides what an unknown character costs: fillers between tokens get a name that no word has, tokens
/// from outside the lowest real score.
fn settle(pieces: &mut [Piece<'_>]) {
    let outside = |piece: &Piece<'_>| {
        is_filler(&piece.text, piece.kind)
            || (matches!(piece.kind, Kind::UserDefined | Kind::Control) && piece.score == f64::from(ADDED_SCORE))
    };
    let lowest = pieces.iter().filter(|piece| !outside(piece)).map(|piece| piece.score).fold(0.0, f64::min);
    for (id, piece) in pieces.iter_mut().enumerate().filter(|(_, piece)| outside(piece)) {
        piece.score = lowest;
        if is_filler(&piece.text, piece.kind) {
            // Words are split at spaces before their pieces are looked for.
            piece.text = format!("unused {id}").into();
        }
    }
}

/// Adds the sentinels where `rows` of the embedding have room for all, and the vocabulary has none of its own.
fn add_sentinels(pieces: &mut Vec<Piece<'_>>, rows: usize) {
    if pieces.iter().any(|piece| piece.text.contains("<extra_id_")) {
        return;
    }
    let count = sentinels(rows - pieces.len());
    pieces.extend((0..count).rev().map(|n| Piece {
        text: format!("<extra_id_{n}>").into(),
        score: 0.0,
        kind: Kind::Control,
    }));
}

fn read_charsmap(metadata: &Metadata) -> Result<Option<Vec<u8>>> {
    let map = match metadata.get(CHARSMAP) {
        None => return Ok(None),
        Some(Value::Array(Array::U8(map))) => map.clone(),
        // Some writers sign the bytes.
        Some(Value::Array(Array::I8(map))) => map.iter().map(|byte| byte.cast_unsigned()).collect(),
        Some(other) => {
            return Err(Error::mismatch(metadata.path(), at(CHARSMAP), "array of u8 or i8", other.describe()));
        }
    };
    if map.is_empty() {
        return Ok(None);
    }
    match charsmap::growth(&map) {
        Ok(_) => Ok(Some(map)),
        Err(found) => Err(malformed(metadata, at(CHARSMAP), "SentencePiece's map of characters", found)),
    }
}
