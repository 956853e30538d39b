//! T5's tokenizer of the miniature as SentencePiece would have written it: the pieces of its `tokenizer.json`, without a map of
//! characters.

use std::fs;

use serde_json::Value;

use super::golden;

/// The bytes of a `spiece.model`.
pub(crate) fn spiece() -> Vec<u8> {
    let path = golden::directory().join("tokenizers/t5/tokenizer.json");
    let tokenizer: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let mut model = Vec::new();
    for piece in tokenizer["model"]["vocab"].as_array().unwrap() {
        let (text, score) = (piece[0].as_str().unwrap(), piece[1].as_f64().unwrap() as f32);
        let kind = match text {
            "<unk>" => 2,
            "<pad>" | "</s>" => 3,
            _ => 1,
        };
        // Of a piece, field 1 is its text, 2 its score, 3 its type; the model's field 1 is a piece.
        let mut message = vec![0x0a, text.len() as u8];
        message.extend(text.as_bytes());
        message.push(0x15);
        message.extend(score.to_le_bytes());
        message.extend([0x18, kind]);
        model.extend([0x0a, message.len() as u8]);
        model.extend(message);
    }
    model
}
