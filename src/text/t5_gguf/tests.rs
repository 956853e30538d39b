//! What goes wrong, by its message, and the rarer shapes of vocabularies. Ids of ordinary ones are compared with
//! transformers' in `text::tests`.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use super::*;
use crate::Result;
use crate::gguf::{Array, Metadata, Strings, Value};
use crate::text::{T5Tokenizer, TokenizerConfig};

type Entries = Vec<(String, Value)>;

/// `(piece, score, type)`
const PIECES: [(&str, f32, i32); 7] = [
    ("<pad>", 0.0, 3),
    ("</s>", 0.0, 3),
    ("<unk>", 0.0, 2),
    ("▁", -2.0, 1),
    ("▁star", -1.0, 1),
    ("st", -3.0, 1),
    ("ar", -3.5, 1),
];

fn entries(pieces: &[(&str, f32, i32)]) -> Entries {
    let texts: Strings = pieces.iter().map(|piece| piece.0).collect();
    let lists = [
        (MODEL, "t5".into()),
        (TOKENS, Value::Array(Array::String(texts))),
        (SCORES, Value::Array(Array::F32(pieces.iter().map(|piece| piece.1).collect()))),
        (TYPES, Value::Array(Array::I32(pieces.iter().map(|piece| piece.2).collect()))),
    ];
    lists.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// The entries for `PIECES` with another value at `key`, or none.
fn with(key: &str, value: Option<Value>) -> Entries {
    let mut entries = entries(&PIECES);
    entries.retain(|(known, _)| known != key);
    entries.extend(value.map(|value| (key.to_owned(), value)));
    entries
}

fn json(entries: Entries) -> Result<Option<String>> {
    t5_tokenizer_json(&Metadata::new(Path::new("t5.gguf"), entries)?)
}

fn tokenizer(entries: Entries) -> T5Tokenizer {
    T5Tokenizer::from_json(&json(entries).unwrap().unwrap(), &TokenizerConfig::default(), Path::new("t5.gguf")).unwrap()
}

/// The ids before the padding.
fn encode(tokenizer: &T5Tokenizer, prompt: &str) -> Vec<u32> {
    let encoded = tokenizer.encode(prompt, None).unwrap();
    encoded.ids[..encoded.used].to_vec()
}

fn message(entries: Entries) -> String {
    json(entries).unwrap_err().to_string()
}

#[test]
fn a_file_without_a_tokenizer_has_none() {
    assert_eq!(json(vec![("general.architecture".into(), "t5encoder".into())]).unwrap(), None);
    // The architecture's name does not matter, and neither do the keys that have a default.
    assert_eq!(encode(&tokenizer(entries(&PIECES)), "star  star"), [4, 4, 1]);
}

#[test]
fn other_tokenizers_and_types_are_refused() {
    assert_eq!(
        message(with(MODEL, Some("gpt2".into()))),
        "t5.gguf: metadata `tokenizer.ggml.model`: expected `t5`, found `gpt2`"
    );
    assert_eq!(message(with(MODEL, None)), "t5.gguf: metadata `tokenizer.ggml.model`: expected `t5`, found nothing");
    for (key, value, wanted) in [
        (TOKENS, Value::Bool(true), "expected array of string, found bool"),
        (SCORES, Value::Array(Array::F64(vec![0.0; 7])), "expected array of f32, found array of f64"),
        (TYPES, Value::Array(Array::F32(vec![1.0; 7])), "expected array of integers, found array of f32"),
        (CHARSMAP, Value::Array(Array::I32(vec![1])), "expected array of u8 or i8, found array of i32"),
        (EOS, "</s>".into(), "expected integer, found string"),
        (SPACE_PREFIX, 1.into(), "expected bool, found u32"),
        (SPACE_PREFIX, Value::Bool(false), "expected true, as for every T5, found false"),
    ] {
        assert_eq!(message(with(key, Some(value))), format!("t5.gguf: metadata `{key}`: {wanted}"));
    }
}

#[test]
fn missing_and_contradicting_lists_are_refused() {
    for key in [TOKENS, SCORES, TYPES] {
        let wanted = "expected an array with a value for each token, found nothing";
        assert_eq!(message(with(key, None)), format!("t5.gguf: metadata `{key}`: {wanted}"));
    }
    for (key, value) in
        [(SCORES, Value::Array(Array::F32(vec![0.0; 6]))), (TYPES, Value::Array(Array::I32(vec![1; 6])))]
    {
        let wanted = "expected 7 values, one for each of `tokenizer.ggml.tokens`, found 6";
        assert_eq!(message(with(key, Some(value))), format!("t5.gguf: metadata `{key}`: {wanted}"));
    }
    let double = [&PIECES[..], &[("st", -1.0, 1)]].concat();
    assert_eq!(
        message(entries(&double)),
        "t5.gguf: metadata `tokenizer.ggml.tokens`, token 7: expected another token, found `st`, which token 5 is too"
    );
}

#[test]
fn impossible_values_are_refused() {
    for (score, found) in [(f32::NAN, "NaN"), (f32::NEG_INFINITY, "-inf")] {
        let mut scores = PIECES.map(|piece| piece.1).to_vec();
        scores[4] = score;
        assert_eq!(
            message(with(SCORES, Some(Value::Array(Array::F32(scores))))),
            format!("t5.gguf: metadata `tokenizer.ggml.scores`, token 4: expected a finite number, found {found}")
        );
    }
    for kind in [0, 7, -1] {
        let mut kinds = PIECES.map(|piece| piece.2).to_vec();
        kinds[6] = kind;
        assert_eq!(
            message(with(TYPES, Some(Value::Array(Array::I32(kinds))))),
            format!(
                "t5.gguf: metadata `tokenizer.ggml.token_type`, token 6: expected a type from 1 to 6, found {kind}"
            )
        );
    }
}

#[test]
fn ids_that_are_none_are_refused() {
    for key in [EOS, PADDING, UNKNOWN] {
        for (value, found) in [(Value::U32(7), "7"), (Value::I32(-1), "-1"), (Value::U64(1 << 40), "1099511627776")] {
            assert_eq!(
                message(with(key, Some(value))),
                format!("t5.gguf: metadata `{key}`: expected the id of one of 7 tokens, found {found}")
            );
        }
    }
    assert_eq!(
        message(with(EOS, Some(4.into()))),
        "t5.gguf: metadata `tokenizer.ggml.eos_token_id`: expected the id of `</s>`, found 4, which is `▁star`"
    );
    assert_eq!(
        message(with(PADDING, Some(1.into()))),
        "t5.gguf: metadata `tokenizer.ggml.padding_token_id`: expected the id of `<pad>`, found 1, which is `</s>`"
    );
    assert!(message(entries(&[])).ends_with("expected 1 to 1048576 tokens, found 0"), "{}", message(entries(&[])));
    let empty = [("[PAD0]", -10000.0, 5); 3];
    assert!(message(entries(&empty)).ends_with("expected the id of one of 0 tokens, found 2"));
}

#[test]
fn sizes_that_no_vocabulary_has_are_refused() {
    let many: Strings = std::iter::repeat_n("", MAX_TOKENS + 1).collect();
    assert_eq!(
        message(with(TOKENS, Some(Value::Array(Array::String(many))))),
        "t5.gguf: metadata `tokenizer.ggml.tokens`: expected 1 to 1048576 tokens, found 1048577"
    );
    let long: Strings = [&"x".repeat(MAX_PIECE_BYTES), "y"].into_iter().collect();
    assert_eq!(
        message(with(TOKENS, Some(Value::Array(Array::String(long))))),
        "t5.gguf: metadata `tokenizer.ggml.tokens`: expected tokens of at most 8388608 bytes together, found 8388609"
    );
}

#[test]
fn maps_that_are_none_are_refused() {
    let long = [&[4, 0, 0, 0, 0, 0, 0, 0], [b'x'; 1025].as_slice()].concat();
    for (map, found) in [
        (vec![1, 2, 3], "3 bytes"),
        (vec![0, 0, 0, 0, 0], "0 bytes of trie in 5 bytes"),
        (vec![2, 0, 0, 0, 1, 2, 3], "2 bytes of trie in 7 bytes"),
        (vec![255, 255, 255, 252, 1, 2, 3, 4], "4244635647 bytes of trie in 8 bytes"),
        (vec![4, 0, 0, 0, 1, 2, 3, 4], "4 bytes of trie in 8 bytes"),
        (vec![4, 0, 0, 0, 1, 2, 3, 4, b'a', 0xff], "texts that are not UTF-8 from byte 9 on"),
        (long, "a text of 1025 bytes for one character"),
    ] {
        let wanted =
            "t5.gguf: metadata `tokenizer.ggml.precompiled_charsmap`: expected SentencePiece's map of characters";
        let signed = map.iter().map(|byte: &u8| byte.cast_signed()).collect();
        for value in [Array::I8(signed), Array::U8(map)] {
            assert_eq!(message(with(CHARSMAP, Some(Value::Array(value)))), format!("{wanted}, found {found}"));
        }
    }
    assert!(
        json(with(CHARSMAP, Some(Value::Array(Array::U8(vec![]))))).unwrap().unwrap().contains(r#""normalizer":null"#)
    );
}

/// llama.cpp's converter fills gaps with -10000 and gives tokens from outside -1000. transformers has neither in its
/// vocabulary: an unknown character costs 10 more than the worst piece, so that `abcdef` below is an unknown character and
/// a good piece, where with those scores it would be three bad pieces.
#[test]
fn fillers_and_added_tokens_change_no_other_ids() {
    let bad = [("ab", -20.0, 1), ("cd", -20.0, 1), ("ef", -20.0, 1), ("bcdef", -3.0, 1)];
    let plain = [&PIECES[..], &bad].concat();
    let more = [("[PAD11]", -10000.0, 5), ("<mark>", -1000.0, 4), ("[PAD13]", -10000.0, 5), ("[PAD14]", -10000.0, 5)];
    let (plain, more) = (tokenizer(entries(&plain)), tokenizer(entries(&[&plain[..], &more].concat())));
    assert_eq!((plain.vocab_size(), more.vocab_size()), (11, 13));
    assert_eq!(encode(&plain, "abcdef"), [3, 2, 10, 1]);
    for prompt in ["star", "abcdef", "starx staxr", "[PAD11] [PAD13]", "unused 11"] {
        assert_eq!(encode(&more, prompt), encode(&plain, prompt), "{prompt}");
    }
    assert_eq!(encode(&more, "star<mark> st"), [4, 12, 3, 5, 1]);
}

/// umT5 has four marks, the unknown one last, pieces for bytes, and its own sentinels; its rows are 256 384.
#[test]
fn umt5s_vocabulary_is_read_in_time() {
    let words: Vec<String> = (0..256_000).map(|n| format!("▁w{n}")).collect();
    let mut pieces = vec![("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<s>", 0.0, 3), ("<unk>", 0.0, 2), ("<0x41>", 0.0, 6)];
    pieces.extend(words.iter().map(|word| (word.as_str(), -9.0, 1)));
    pieces.push(("<extra_id_0>", -1000.0, 4));
    pieces.push(("▁", -5.0, 1));
    let fillers: Vec<String> = (pieces.len()..256_384).map(filler).collect();
    pieces.extend(fillers.iter().map(|filler| (filler.as_str(), -10000.0, 5)));
    let start = Instant::now();
    let tokenizer = tokenizer(entries(&pieces));
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert_eq!(tokenizer.vocab_size(), 256_007);
    assert_eq!(encode(&tokenizer, "w7 A w255999<extra_id_0> <s>"), [12, 256_006, 3, 256_004, 256_005, 2, 1]);
}

#[test]
fn a_whole_tokenizer_is_preferred() {
    assert_eq!(json(with(WHOLE, Some("{}".into()))).unwrap().unwrap(), "{}");
    assert_eq!(json(vec![(WHOLE.into(), "{}".into())]).unwrap().unwrap(), "{}");
    assert_eq!(
        message(with(WHOLE, Some(1.into()))),
        "t5.gguf: metadata `tokenizer.huggingface.json`: expected string, found u32"
    );
}

/// The tokenizer of `PIECES`, changed.
fn changed(change: impl FnOnce(&mut Json)) -> String {
    let mut tokenizer = serde_json::from_str(&json(entries(&PIECES)).unwrap().unwrap()).unwrap();
    change(&mut tokenizer);
    tokenizer.to_string()
}

fn value<'a>(entries: &'a Entries, key: &str) -> &'a Value {
    &entries.iter().find(|(known, _)| known == key).unwrap().1
}

#[test]
fn rows_without_a_token_are_filled() {
    let entries = t5_gguf_metadata(&changed(|_| ()), 9, Path::new("tokenizer.json")).unwrap();
    let Value::Array(Array::String(texts)) = value(&entries, TOKENS) else { panic!("no strings") };
    assert_eq!(texts.iter().collect::<Vec<_>>()[5..], ["st", "ar", "[PAD7]", "[PAD8]"]);
    assert_eq!(*value(&entries, SCORES), Value::Array(Array::F32(vec![0., 0., 0., -2., -1., -3., -3.5, -1e4, -1e4])));
    assert_eq!(*value(&entries, TYPES), Value::Array(Array::I32(vec![3, 3, 2, 1, 1, 1, 1, 5, 5])));
    assert_eq!([EOS, UNKNOWN, PADDING].map(|key| value(&entries, key)), [&1.into(), &2.into(), &0.into()]);
    assert_eq!([SPACE_PREFIX, REMOVE_SPACES].map(|key| value(&entries, key)), [&Value::Bool(true), &Value::Bool(true)]);
    assert!(!entries.iter().any(|(key, _)| key == WHOLE || key == CHARSMAP));
}

/// With room for a hundred sentinels that the tokenizer does not have, or with rules of its own, the keys alone would
/// read back as something else.
#[test]
fn what_the_keys_cannot_say_goes_along_whole() {
    let space = |json: &mut Json| json["pre_tokenizer"]["pretokenizers"][1]["prepend_scheme"] = "never".into();
    let stripped = changed(|json: &mut Json| json["added_tokens"][1]["rstrip"] = true.into());
    for (text, rows) in [(changed(|_| ()), 107), (changed(space), 7), (stripped, 7)] {
        let entries = t5_gguf_metadata(&text, rows, Path::new("tokenizer.json")).unwrap();
        assert_eq!(*value(&entries, WHOLE), text.clone().into());
        assert_eq!(json(entries).unwrap().unwrap(), text);
    }
    let entries = t5_gguf_metadata(&changed(space), 7, Path::new("tokenizer.json")).unwrap();
    assert_eq!(*value(&entries, SPACE_PREFIX), Value::Bool(false));
}

#[test]
fn tokenizers_that_cannot_be_written_are_refused() {
    let message = |text: &str, rows| t5_gguf_metadata(text, rows, Path::new("t.json")).unwrap_err().to_string();
    for text in ["", "[]", "{}"] {
        assert!(message(text, 7).starts_with("t.json: tokenizer: expected a tokenizer.json of unigrams, found "));
    }
    let added = |id: u32, content: &str| {
        let content = content.to_owned();
        changed(move |json| json["added_tokens"][2] = json!({ "id": id, "content": content }))
    };
    let map = |map: &str| {
        let map = map.to_owned();
        changed(move |json| json["normalizer"] = json!({ "type": "Precompiled", "precompiled_charsmap": map }))
    };
    for (text, wanted) in [
        (changed(|json| json["model"]["type"] = "BPE".into()), "model.type: expected `Unigram`, found `BPE`"),
        (
            changed(|json| json["model"]["vocab"][3][1] = 1e300.into()),
            "score of token 3: expected a finite f32, found inf",
        ),
        (
            changed(|json| json["model"]["vocab"][1][0] = "<end>".into()),
            "added token 1: expected `<end>`, found `</s>`",
        ),
        (added(7, "<x>"), "vocabulary: expected ids below 7, the rows of the embedding, found 7 for `<x>`"),
        (added(4, "<x>"), "added token 4: expected `▁star`, found `<x>`"),
        (map("AAA"), "precompiled_charsmap: expected SentencePiece's map of characters, found 2 bytes"),
        (
            map("BAAAAAAAAAA"),
            "precompiled_charsmap: expected SentencePiece's map of characters, found 4 bytes of trie in 8 bytes",
        ),
    ] {
        assert_eq!(message(&text, 7), format!("t.json: {wanted}"));
    }
    assert!(message(&map("*"), 7).starts_with("t.json: precompiled_charsmap: expected base64, found "));
    assert_eq!(
        message(&changed(|_| ()), 6),
        "t.json: vocabulary: expected ids below 6, the rows of the embedding, found 6 for `ar`"
    );
    assert!(message(&changed(|_| ()), usize::MAX).starts_with("t.json: vocab_size: expected at most 1048576 rows"));
    let nameless = changed(|json| {
        json["added_tokens"] = json!([]);
        json["model"]["vocab"][0][0] = "<nothing>".into();
    });
    assert_eq!(message(&nameless, 7), "t.json: vocabulary: expected a token `<pad>`, found none");
}
