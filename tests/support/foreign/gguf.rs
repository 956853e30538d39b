//! GGUF of other tools, by the few lines that the tests of the readers have for it, and not by pinhole's writer.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{Foreign, Part, Rules};
use crate::support::fixtures::{BOOL, F32, RawGguf, RawTensor, STRING, U8, U32, array, string, text, typed};
use crate::support::golden;
use crate::support::numbers::Format;

/// GGUF's number for a list element of 32 bits with a sign.
const I32: u32 = 5;

/// Kinds of tokens, by llama.cpp's numbers.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const UNUSED: i32 = 5;

/// The score of a row of the embedding that no token has.
const NO_TOKEN: f32 = -10000.0;

pub(super) fn write(foreign: &Foreign, part: &Part, path: &Path) {
    let mut file = RawGguf::empty();
    match part.rules {
        Rules::City96 => {
            file.push("general.architecture", text(b"flux"));
            file.push("general.quantization_version", u32_value(2));
            file.push("general.file_type", u32_value(file_type(part.format)));
        }
        Rules::LlamaCpp => t5_metadata(&mut file, foreign, part),
        Rules::Throughout => {}
        Rules::Plain => panic!("no rules of a GGUF file"),
    }
    for tensor in foreign.tensors(&part.component) {
        let format = part.format_of(&tensor.name, &tensor.shape);
        let dims: Vec<u64> = tensor.shape.iter().rev().map(|extent| *extent as u64).collect();
        file.tensors.push(RawTensor::new(&tensor.name, &dims, format.ggml_id(), file.data.len() as u64));
        file.data.extend(format.encode(&tensor.values));
        file.data.resize(file.data.len().next_multiple_of(file.alignment), 0);
    }
    fs::write(path, file.bytes()).unwrap();
}

/// llama.cpp's number for a file that is mostly `format` (`enum llama_ftype`).
fn file_type(format: Format) -> u32 {
    match format {
        Format::F32 => 0,
        Format::Q8_0 => 7,
        Format::BF16 => 32,
        other => panic!("no file type for {other:?}"),
    }
}

/// What llama.cpp's converter writes for a T5 encoder.
fn t5_metadata(file: &mut RawGguf, foreign: &Foreign, part: &Part) {
    let config = |key: &str| foreign.case.at(&format!("/components/text_encoder_2/config/{key}"));
    let number = |key: &str| u32_value(config(key).as_u64().unwrap() as u32);
    let epsilon = || typed(F32, &(config("layer_norm_epsilon").as_f64().unwrap() as f32).to_le_bytes());
    file.push("general.architecture", text(b"t5encoder"));
    file.push("general.type", text(b"model"));
    file.push("general.name", text(b"T5 Encoder"));
    file.push("t5encoder.context_length", u32_value(512));
    file.push("t5encoder.embedding_length", number("d_model"));
    file.push("t5encoder.feed_forward_length", number("d_ff"));
    file.push("t5encoder.block_count", number("num_layers"));
    file.push("t5encoder.attention.head_count", number("num_heads"));
    file.push("t5encoder.attention.key_length", number("d_kv"));
    file.push("t5encoder.attention.value_length", number("d_kv"));
    file.push("t5encoder.attention.layer_norm_epsilon", epsilon());
    file.push("t5encoder.attention.relative_buckets_count", number("relative_attention_num_buckets"));
    file.push("t5encoder.attention.layer_norm_rms_epsilon", epsilon());
    file.push("general.file_type", u32_value(file_type(part.format)));
    tokenizer(file, foreign, config("vocab_size").as_u64().unwrap() as usize);
    file.push("general.quantization_version", u32_value(2));
}

/// The tokenizer: unigrams of `tokenizer.json`, padded to the rows of the embedding.
fn tokenizer(file: &mut RawGguf, foreign: &Foreign, rows: usize) {
    let json = fs::read_to_string(golden::directory().join("tokenizers/t5/tokenizer.json")).unwrap();
    let json: Value = serde_json::from_str(&json).unwrap();
    let vocab = json["model"]["vocab"].as_array().unwrap();
    let piece = |row: usize| vocab.get(row).map(|entry| entry[0].as_str().unwrap());
    let (mut tokens, mut scores) = (Vec::new(), Vec::new());
    for row in 0..rows {
        tokens.extend(string(piece(row).map_or_else(|| format!("[PAD{row}]"), str::to_owned).as_bytes()));
        let score = vocab.get(row).map_or(NO_TOKEN, |entry| entry[1].as_f64().unwrap() as f32);
        scores.extend(score.to_le_bytes());
    }
    let kind = |row| match piece(row) {
        Some("<pad>" | "</s>") => CONTROL,
        Some("<unk>") => UNKNOWN,
        Some(_) => NORMAL,
        None => UNUSED,
    };
    let list = |kind, elements: Vec<u8>| array(kind, rows as u64, &elements);
    file.push("tokenizer.ggml.model", text(b"t5"));
    file.push("tokenizer.ggml.pre", text(b"default"));
    file.push("tokenizer.ggml.tokens", list(STRING, tokens));
    file.push("tokenizer.ggml.scores", list(F32, scores));
    file.push("tokenizer.ggml.token_type", list(I32, (0..rows).flat_map(|row| kind(row).to_le_bytes()).collect()));
    file.push("tokenizer.ggml.add_space_prefix", typed(BOOL, &[1]));
    file.push("tokenizer.ggml.remove_extra_whitespaces", typed(BOOL, &[1]));
    let charsmap = charsmap(foreign);
    file.push("tokenizer.ggml.precompiled_charsmap", array(U8, charsmap.len() as u64, &charsmap));
    file.push("tokenizer.ggml.eos_token_id", u32_value(1));
    file.push("tokenizer.ggml.unknown_token_id", u32_value(2));
    file.push("tokenizer.ggml.padding_token_id", u32_value(0));
    file.push("tokenizer.ggml.add_eos_token", typed(BOOL, &[1]));
    file.push("tokenizer.ggml.add_sep_token", typed(BOOL, &[0]));
}

/// SentencePiece's map of characters, which the golden holds in hexadecimal.
fn charsmap(foreign: &Foreign) -> Vec<u8> {
    let digits = foreign.golden.text("/charsmap");
    (0..digits.len()).step_by(2).map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap()).collect()
}

fn u32_value(value: u32) -> Vec<u8> {
    typed(U32, &value.to_le_bytes())
}
