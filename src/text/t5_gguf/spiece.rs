//! From SentencePiece's own file, `spiece.model`, to a `tokenizer.json`.
//!
//! It is a protobuf, whose messages are in `sentencepiece_model.proto` of <https://github.com/google/sentencepiece>. Of these
//! fields the tokenizer is made; all others are for SentencePiece's trainer and passed over:
//!
//! | message | field | |
//! |---|---|---|
//! | `ModelProto` | 1 `pieces` | a `SentencePiece` each |
//! | | 2 `trainer_spec`, 3 `normalizer_spec` | |
//! | `SentencePiece` | 1 `piece`, 2 `score`, 3 `type` | as in metadata |
//! | `TrainerSpec` | 3 `model_type` | 1 for unigrams |
//! | `NormalizerSpec` | 2 `precompiled_charsmap`, 3 `add_dummy_prefix` | as in metadata |

use std::path::Path;

use super::read::{SENTINELS, sentinels};
use super::{
    CHARSMAP, END, EOS, FILLER_SCORE, Kind, MAX_TOKENS, MODEL, PAD, PADDING, SCORES, SPACE_PREFIX, TOKENS, TYPES,
    filler, t5_tokenizer_json,
};
use crate::gguf::{Array, Metadata, Strings, Value};
use crate::{Error, Result};

/// The number of unigrams among SentencePiece's types of models.
const UNIGRAM: u64 = 1;

/// The `tokenizer.json` of a T5 encoder from the bytes of its `spiece.model`. `origin`, the file, is for messages.
///
/// The hundred `<extra_id_N>` (of umt5: 300) that transformers puts behind the pieces are there if `rows`, the rows of the encoder's embedding,
/// leave room for them, or are not known.
///
/// # Errors
///
/// [`Error::Malformed`] if the bytes are no such file, [`Error::Mismatch`] if it holds no unigrams; those of
/// [`t5_tokenizer_json`].
pub fn t5_spiece_json(bytes: &[u8], rows: Option<usize>, origin: &Path) -> Result<String> {
    let model =
        Model::read(bytes).map_err(|found| Error::malformed(origin, "tokenizer", "SentencePiece's model", found))?;
    if model.kind != UNIGRAM {
        return Err(Error::mismatch(origin, "model_type", "1, for unigrams", model.kind.to_string()));
    }
    let room = rows.map_or(SENTINELS, |rows| rows.saturating_sub(model.texts.len()));
    let metadata = Metadata::new(origin, model.entries(sentinels(room), origin)?)?;
    let json = t5_tokenizer_json(&metadata).map_err(in_its_words)?;
    json.ok_or_else(|| Error::malformed(origin, "tokenizer", "SentencePiece's model", "none"))
}

/// What of such a file becomes a tokenizer.
#[derive(Default)]
struct Model {
    texts: Vec<String>,
    scores: Vec<f32>,
    types: Vec<i32>,
    kind: u64,
    charsmap: Vec<u8>,
    no_space_prefix: bool,
}

impl Model {
    fn read(bytes: &[u8]) -> Result<Model, String> {
        let mut model = Model { kind: UNIGRAM, ..Model::default() };
        for field in Fields(bytes) {
            match field? {
                (1, Wire::Bytes(_)) if model.texts.len() == MAX_TOKENS => {
                    return Err(format!("more than {MAX_TOKENS} pieces"));
                }
                (1, Wire::Bytes(piece)) => model.add(piece)?,
                (2, Wire::Bytes(trainer)) => {
                    for field in Fields(trainer) {
                        if let (3, Wire::Number(kind)) = field? {
                            model.kind = kind;
                        }
                    }
                }
                (3, Wire::Bytes(normalizer)) => {
                    for field in Fields(normalizer) {
                        match field? {
                            (2, Wire::Bytes(map)) => model.charsmap = map.to_vec(),
                            (3, Wire::Number(prefix)) => model.no_space_prefix = prefix == 0,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        if model.texts.is_empty() { Err("a file without pieces".into()) } else { Ok(model) }
    }

    /// Adds a `SentencePiece`.
    fn add(&mut self, piece: &[u8]) -> Result<(), String> {
        let (mut text, mut score, mut kind) = ("", 0.0, Kind::Normal as i32);
        for field in Fields(piece) {
            match field? {
                (1, Wire::Bytes(bytes)) => {
                    text = std::str::from_utf8(bytes)
                        .map_err(|_| format!("bytes that are not UTF-8 as piece {}", self.texts.len()))?;
                }
                (2, Wire::Fixed(bits)) => score = f32::from_bits(bits),
                // What is no type at all is found where types are checked.
                (3, Wire::Number(number)) => kind = i32::try_from(number).unwrap_or(0),
                _ => {}
            }
        }
        self.texts.push(text.to_owned());
        self.scores.push(score);
        self.types.push(kind);
        Ok(())
    }

    /// The same as llama.cpp's converter writes it, with `fillers` rows behind the pieces.
    fn entries(mut self, fillers: usize, origin: &Path) -> Result<Vec<(String, Value)>> {
        let (end, padding) = (self.id(END, origin)?, self.id(PAD, origin)?);
        for _ in 0..fillers {
            self.texts.push(filler(self.texts.len()));
            self.scores.push(FILLER_SCORE);
            self.types.push(Kind::Unused as i32);
        }
        let texts: Strings = self.texts.iter().collect();
        let entries = [
            (MODEL, "t5".into()),
            (TOKENS, Value::Array(Array::String(texts))),
            (SCORES, Value::Array(Array::F32(self.scores))),
            (TYPES, Value::Array(Array::I32(self.types))),
            (CHARSMAP, Value::Array(Array::U8(self.charsmap))),
            (SPACE_PREFIX, Value::Bool(!self.no_space_prefix)),
            (EOS, end.into()),
            (PADDING, padding.into()),
        ];
        Ok(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }

    /// The id of the mark `text`.
    fn id(&self, text: &str, origin: &Path) -> Result<u32> {
        let id = self.texts.iter().position(|known| known == text).and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| Error::mismatch(origin, "pieces", format!("a piece `{text}`"), "none"))
    }
}

/// An error about metadata, in the words of this file: `scores, token 4`.
fn in_its_words(error: Error) -> Error {
    let rename = |at: String| at.replace("metadata `tokenizer.ggml.", "").replace('`', "");
    match error {
        Error::Malformed { path, at, expected, found, hint } => {
            Error::Malformed { path, at: rename(at), expected, found, hint }
        }
        Error::Mismatch { path, at, expected, found, hint } => {
            Error::Mismatch { path, at: rename(at), expected, found, hint }
        }
        other => other,
    }
}

/// The value of a field.
enum Wire<'a> {
    Number(u64),
    /// 4 bytes.
    Fixed(u32),
    /// A text, a message, or anything else of some length.
    Bytes(&'a [u8]),
    /// 8 bytes, which nothing here has.
    Long,
}

/// The fields of a message, by their numbers.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Wire<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or_else(|| "fields that break off or are none".into()))
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, Wire<'a>)> {
        let key = self.number()?;
        let value = match key & 7 {
            0 => Wire::Number(self.number()?),
            1 => self.take(8).map(|_| Wire::Long)?,
            2 => {
                let length = usize::try_from(self.number()?).ok()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Fixed(u32::from_le_bytes(*self.take(4)?.first_chunk()?)),
            // Groups, which no one writes any more.
            _ => return None,
        };
        Some((key >> 3, value))
    }

    /// A number of seven bits a byte, the lowest first.
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::text::{T5Tokenizer, TokenizerConfig};

    /// A field with a length.
    fn bytes(field: u8, content: &[u8]) -> Vec<u8> {
        let mut all = vec![field << 3 | 2];
        let mut length = content.len();
        while length > 0x7f {
            all.push(length as u8 | 0x80);
            length >>= 7;
        }
        all.push(length as u8);
        all.extend(content);
        all
    }

    fn piece(text: &str, score: f32, kind: u8) -> Vec<u8> {
        let mut content = bytes(1, text.as_bytes());
        content.push(2 << 3 | 5);
        content.extend(score.to_le_bytes());
        content.extend([3 << 3, kind]);
        bytes(1, &content)
    }

    fn small() -> Vec<u8> {
        let pieces = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2), ("▁", -2.0, 1), ("▁star", -1.0, 1)];
        pieces.into_iter().flat_map(|(text, score, kind)| piece(text, score, kind)).collect()
    }

    fn read(bytes: &[u8], rows: Option<usize>) -> Result<T5Tokenizer> {
        let json = t5_spiece_json(bytes, rows, Path::new("spiece.model"))?;
        T5Tokenizer::from_json(&json, &TokenizerConfig::default(), Path::new("spiece.model"))
    }

    #[test]
    fn pieces_become_tokens() {
        let encoded = |rows, text: &str| {
            let tokenizer = read(&small(), rows).unwrap();
            let encoded = tokenizer.encode(text, None).unwrap();
            (tokenizer.vocab_size(), encoded.ids[..encoded.used].to_vec())
        };
        assert_eq!(encoded(None, "star  star<extra_id_99>"), (105, vec![4, 4, 5, 1]));
        assert_eq!(encoded(Some(105), "star"), (105, vec![4, 1]));
        // Without room for the sentinels, as a miniature has it.
        assert_eq!(encoded(Some(104), "star"), (5, vec![4, 1]));
        assert_eq!(encoded(Some(3), "star"), (5, vec![4, 1]));
        // As many as T5 has, and as many as umt5 has, the last one first.
        assert_eq!(encoded(Some(5 + 128), "star<extra_id_0>"), (105, vec![4, 104, 1]));
        assert_eq!(encoded(Some(5 + 384), "star<extra_id_299><extra_id_0>"), (305, vec![4, 5, 304, 1]));
    }

    #[test]
    fn what_is_no_such_file_is_refused() {
        let message = |bytes: &[u8]| read(bytes, None).err().unwrap().to_string();
        assert!(message(b"").ends_with("tokenizer: expected SentencePiece's model, found a file without pieces"));
        for broken in [&small()[..small().len() - 1], b"\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\x0b", b"\x80"] {
            assert!(message(broken).ends_with("found fields that break off or are none"), "{broken:?}");
        }
        assert!(message(&bytes(1, &bytes(1, b"\xff"))).ends_with("found bytes that are not UTF-8 as piece 0"));
        assert!(
            message(&[small(), bytes(2, &[3 << 3, 2])].concat())
                .ends_with("model_type: expected 1, for unigrams, found 2")
        );
        assert!(message(&piece("a", 0.0, 1)).ends_with("pieces: expected a piece `</s>`, found none"));
        let with = |piece: Vec<u8>| [small(), piece].concat();
        assert_eq!(
            message(&with(piece("x", f32::NAN, 1))),
            "spiece.model: scores, token 5: expected a finite number, found NaN"
        );
        assert!(message(&with(piece("x", 0.0, 9))).starts_with("spiece.model: token_type, token 5: expected"));
        assert!(message(&with(piece("</s>", 0.0, 1))).contains("which token 1 is too"));
        assert!(message(&with(bytes(3, &[3 << 3, 0]))).contains("add_space_prefix: expected true"));
        assert!(
            message(&with(bytes(3, &bytes(2, b"abc")))).contains("precompiled_charsmap: expected SentencePiece's map")
        );
        assert!(message(&bytes(1, b"").repeat(MAX_TOKENS + 1)).ends_with("found more than 1048576 pieces"));
    }
}
