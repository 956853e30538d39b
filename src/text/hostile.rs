//! What may and what may not be in a `tokenizer.json`: the shapes of the tokenizers that there are give the library's own ids,
//! and a file that would kill the process is an error.

use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::vocabulary::Vocabulary;
use crate::Error;

fn open(json: &Value) -> Result<Vocabulary, Error> {
    Vocabulary::from_json(&json.to_string(), Path::new("tokenizer.json"))
}

fn replace(from: &str, to: &str) -> Value {
    json!({ "type": "Replace", "pattern": { "String": from }, "content": to })
}

fn sequence(list: &str, rules: &[Value]) -> Value {
    json!({ "type": "Sequence", list: rules })
}

fn byte_level() -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false })
}

fn metaspace() -> Value {
    json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true })
}

/// A file with `parts` in the place of nothing.
fn file(model: Value, parts: Value) -> Value {
    let mut file = json!({ "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null, "model": model });
    for (name, part) in parts.as_object().unwrap() {
        file[name] = part.clone();
    }
    file
}

fn bpe() -> Value {
    json!({ "type": "BPE", "dropout": null, "unk_token": "?", "continuing_subword_prefix": null, "end_of_word_suffix": null,
        "fuse_unk": false, "byte_fallback": true, "ignore_merges": false,
        "vocab": { "?": 0, "a": 1, "b": 2, "ab": 3, "Ġ": 4, "▁": 5, "▁ab": 6, "1": 7, "<0xC5>": 8, "<0xBC>": 9, "!": 10 },
        "merges": [["a", "b"], ["▁", "ab"]] })
}

fn unigram() -> Value {
    json!({ "type": "Unigram", "unk_id": 0, "byte_fallback": false,
        "vocab": [["<unk>", 0.0], ["▁", -2.0], ["▁star", -1.0], ["s", -3.0], ["t", -3.5], ["ar", -4.0]] })
}

/// A trie with room for all letters and none in it, and a text that no leaf points to.
fn charsmap(text: &str) -> Value {
    let map = [&1024u32.to_le_bytes()[..], &[0; 1024], text.as_bytes()].concat();
    json!({ "type": "Precompiled", "precompiled_charsmap": base64::encode(map) })
}

#[test]
fn the_shapes_of_real_tokenizers_give_the_librarys_ids() {
    let special = json!({ "id": 11, "content": "<|im_end|>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true });
    let split = |pattern: Value, behavior: &str| json!({ "type": "Split", "pattern": pattern, "behavior": behavior, "invert": false });
    let words = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let template = json!({ "type": "TemplateProcessing", "single": [{ "Sequence": { "id": "A", "type_id": 0 } }], "pair": [],
        "special_tokens": {} });
    let byte_words = file(
        bpe(),
        json!({ "added_tokens": [special], "normalizer": { "type": "NFC" }, "decoder": byte_level(),
        "post_processor": byte_level(),
        "pre_tokenizer": sequence("pretokenizers", &[split(json!({ "Regex": words }), "Isolated"), byte_level()]) }),
    );
    let gemma = file(
        bpe(),
        json!({ "normalizer": replace(" ", "▁"),
        "pre_tokenizer": split(json!({ "String": " " }), "MergedWithPrevious"),
        "decoder": sequence("decoders", &[replace("▁", " "), json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" })]) }),
    );
    let mistral = file(
        bpe(),
        json!({
        "normalizer": sequence("normalizers", &[json!({ "type": "Prepend", "prepend": "▁" }), replace(" ", "▁")]),
        "post_processor": template,
        "decoder": sequence("decoders", &[replace("▁", " "), json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" }),
            json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 })]) }),
    );
    let spaces = json!({ "type": "Replace", "pattern": { "Regex": " {2,}" }, "content": "▁" });
    let strip = json!({ "type": "Strip", "strip_left": false, "strip_right": true });
    let xlmr = file(
        unigram(),
        json!({ "normalizer": sequence("normalizers", &[strip, charsmap("x\0"), spaces]),
        "pre_tokenizer": sequence("pretokenizers", &[json!({ "type": "WhitespaceSplit" }), metaspace()]), "decoder": metaspace() }),
    );
    let umt5 =
        file(unigram(), json!({ "normalizer": charsmap("x\0"), "pre_tokenizer": metaspace(), "decoder": metaspace() }));
    let mut old = bpe();
    old.as_object_mut().unwrap().remove("type");
    old["merges"] = json!(["a b", "▁ ab"]);
    for (name, json) in [
        ("byte-level words", byte_words),
        ("gemma", gemma),
        ("mistral", mistral),
        ("xlm-r", xlmr),
        ("umt5", umt5),
        ("old", file(old, json!({}))),
    ] {
        let ours = open(&json).unwrap_or_else(|error| panic!("{name}: {error}"));
        let library = tokenizers::Tokenizer::from_str(&json.to_string()).unwrap();
        for prompt in ["", "ab ab", "  ab  1!\n", "a star<|im_end|>ż", "star  star "] {
            let ids = library.encode_fast(prompt, false).unwrap().get_ids().to_vec();
            assert_eq!(ours.encode(prompt).unwrap(), ids, "{name}: {prompt:?}");
            assert_eq!(ours.decode(&ids).unwrap(), library.decode(&ids, false).unwrap(), "{name}: {prompt:?}");
        }
        // What a bundle carries is the same again.
        let again = Vocabulary::from_json(&ours.to_json().unwrap(), Path::new("bundle")).unwrap();
        assert_eq!(again.encode("ab star 1!").unwrap(), ours.encode("ab star 1!").unwrap(), "{name}");
    }
}

/// `json` is refused at once, and `part` is named.
#[track_caller]
fn refused(json: &Value, part: &str, found: &str) {
    let start = Instant::now();
    let error = open(json).err().unwrap().to_string();
    assert!(error.starts_with(&format!("tokenizer.json: tokenizer{part}: expected ")), "{error}");
    assert!(error.contains(found), "{error}");
    assert!(start.elapsed() < Duration::from_secs(2), "{error}");
}

#[test]
fn rules_that_multiply_are_refused() {
    let many = replace("a", &"a".repeat(100));
    for (part, list) in [("normalizer", "normalizers"), ("decoder", "decoders")] {
        let rules = sequence(list, &[many.clone(), many.clone(), many.clone(), many.clone(), many.clone()]);
        refused(&file(bpe(), json!({ part: rules })), &format!(", {part}"), "10000000000 times as long");
        refused(&file(bpe(), json!({ part: replace("", &"a".repeat(2000)) })), &format!(", {part}"), "2001 times");
        let regex = json!({ "type": "Replace", "pattern": { "Regex": "a*" }, "content": "b".repeat(2000) });
        refused(&file(bpe(), json!({ part: regex })), &format!(", {part}"), "2001 times");
    }
    refused(
        &file(bpe(), json!({ "normalizer": { "type": "Prepend", "prepend": "x".repeat(5000) } })),
        ", normalizer",
        "5001 times",
    );
    refused(
        &file(bpe(), json!({ "normalizer": charsmap(&"x".repeat(5000)) })),
        ", normalizer",
        "5000 bytes for one character",
    );
    let levels = vec![byte_level(); 20];
    refused(
        &file(bpe(), json!({ "pre_tokenizer": sequence("pretokenizers", &levels) })),
        ", pre_tokenizer",
        "1048576 times",
    );
    // Each alone would pass.
    let [one, other] = [replace("a", &"a".repeat(400)), sequence("pretokenizers", &[byte_level(), byte_level()])];
    refused(&file(bpe(), json!({ "normalizer": one, "pre_tokenizer": other })), ", pre_tokenizer", "1600 times");
    let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    for kind in ["TemplateProcessing", "RobertaProcessing"] {
        let template = json!({ "type": kind, "single": [text, text], "pair": [], "special_tokens": {} });
        refused(&file(bpe(), json!({ "post_processor": template })), ", post_processor", "2, 2 of them the text");
        let nested = json!({ "type": "Sequence", "processors": [{ "type": "Sequence", "processors": [template] }] });
        refused(&file(bpe(), json!({ "post_processor": nested })), ", post_processor", "2 of them the text");
    }
    // The library goes by the type here, and there by the members.
    let mut both = many.clone();
    both["normalizers"] = json!([]);
    refused(&file(bpe(), json!({ "normalizer": both })), ", normalizer", "`Replace`");
    let both =
        json!({ "type": "Sequence", "processors": [], "single": [text, text], "pair": [], "special_tokens": {} });
    refused(&file(bpe(), json!({ "post_processor": both })), ", post_processor", "2 of them the text");
    let rules = sequence("normalizers", &vec![json!({ "type": "Strip" }); 40]);
    refused(&file(bpe(), json!({ "normalizer": rules })), ", normalizer", "found more");
}

#[test]
fn texts_that_could_grow_too_much_are_refused_before_they_do() {
    let grows = open(&file(bpe(), json!({ "normalizer": replace("a", &"b".repeat(1000)) }))).unwrap();
    assert_eq!(grows.encode("a").unwrap().len(), 1000);
    let error = grows.encode(&"a".repeat(5000)).unwrap_err().to_string();
    assert!(error.starts_with("--prompt: expected at most 4194 bytes"), "{error}");
    assert_eq!(open(&file(bpe(), json!({}))).unwrap().encode(&"a".repeat(5000)).unwrap().len(), 5000);
}

#[test]
fn maps_that_claim_what_is_not_there_are_refused() {
    for (size, found) in
        [(u32::MAX, "4294967295 bytes of trie in 8 bytes"), (0xffff_fffc, "4294967292 bytes"), (8, "8 bytes of trie")]
    {
        let map = [&size.to_le_bytes()[..], &[0; 4]].concat();
        let map = json!({ "type": "Precompiled", "precompiled_charsmap": base64::encode(map) });
        refused(&file(unigram(), json!({ "normalizer": map })), ", normalizer", found);
        refused(&file(unigram(), json!({ "normalizer": sequence("normalizers", &[map]) })), ", normalizer", found);
    }
    for map in [json!("%%"), json!([1, 2]), Value::Null] {
        let map = json!({ "type": "Precompiled", "precompiled_charsmap": map });
        refused(&file(unigram(), json!({ "normalizer": map })), ", normalizer", "");
    }
}

#[test]
fn expressions_that_take_for_ever_are_refused() {
    for regex in [r"(x+x+)+y(?!\S)", r"(a|\s+(?!\S))*b", r"(a+)\1", r"(?<=(a|b)*)c", &"a?".repeat(3000)] {
        let pattern = json!({ "Regex": regex });
        let split = json!({ "type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false });
        refused(&file(bpe(), json!({ "pre_tokenizer": split })), ", pre_tokenizer", "");
        let replace = json!({ "type": "Replace", "pattern": pattern, "content": " " });
        refused(&file(bpe(), json!({ "normalizer": replace })), ", normalizer", "");
        refused(&file(bpe(), json!({ "decoder": replace })), ", decoder", "");
    }
    // Compiled, it would take gigabytes; the library has a bound of its own.
    let huge = json!({ "type": "Split", "pattern": { "Regex": r"((\p{L}{1000}){1000}){1000}" }, "behavior": "Isolated", "invert": false });
    let start = Instant::now();
    assert!(open(&file(bpe(), json!({ "pre_tokenizer": huge }))).is_err());
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn models_out_of_proportion_are_refused() {
    let with = |change: &dyn Fn(&mut Value), mut model: Value| {
        change(&mut model);
        file(model, json!({}))
    };
    refused(&with(&|m| m["vocab"]["z"] = json!(u32::MAX), bpe()), ", model", "4294967295");
    refused(&with(&|m| m["vocab"]["z"] = json!(-1), bpe()), ", model", "");
    refused(&with(&|m| m["vocab"]["z"] = json!(10), bpe()), ", model", "two tokens with the id 10");
    refused(&with(&|m| m["dropout"] = json!(0.5), bpe()), ", model", "by lot");
    refused(&with(&|m| m["end_of_word_suffix"] = json!("x".repeat(1000)), bpe()), ", model", "a mark of 1000 bytes");
    refused(&with(&|m| m["other"] = json!([0, 1]), bpe()), ", model", "unknown field");
    refused(&with(&|m| m["merges"] = json!(vec![""; (1 << 20) + 1]), bpe()), ", model", "more than 1048576");
    refused(&with(&|m| m["vocab"][1][0] = json!("x".repeat(300)), unigram()), ", model", "a piece of 300 bytes");
    refused(&with(&|m| m["vocab"][1][0] = json!("x".repeat(9 << 20)), unigram()), ", model", "8388608 bytes");
    refused(&with(&|m| m["type"] = json!("WordPiece"), bpe()), ", model", "`WordPiece`");
    refused(&with(&|m| m["type"] = json!("Unigram"), bpe()), ", model", "parts of a BPE");
    refused(
        &file(json!({ "type": "WordLevel", "vocab": { "a": 0 }, "unk_token": "a" }), json!({})),
        ", model",
        "neither",
    );
    let token =
        |id: Value, content: &str| json!({ "added_tokens": [{ "id": id, "content": content, "special": true }] });
    refused(&file(bpe(), token(json!(u32::MAX), "x")), ", added_tokens", "4294967295");
    refused(&file(bpe(), token(json!(1), &"x".repeat(2000))), ", added_tokens", "one of 2000");
    refused(
        &file(bpe(), json!({ "added_tokens": vec![json!({ "id": 1, "content": "x" }); 70_000] })),
        ", added_tokens",
        "70000",
    );
    // What is written twice is not read twice in two ways.
    let text = file(bpe(), json!({})).to_string().replacen("{", r#"{"normalizer": null, "#, 1);
    assert!(Vocabulary::from_json(&text, Path::new("twice")).is_err());
}

#[test]
fn rules_that_no_tokenizer_of_ours_has_are_refused() {
    refused(
        &file(bpe(), json!({ "pre_tokenizer": { "type": "FixedLength", "length": 0 } })),
        ", pre_tokenizer",
        "`FixedLength`",
    );
    refused(&file(bpe(), json!({ "normalizer": { "type": "BertNormalizer" } })), ", normalizer", "`BertNormalizer`");
    refused(
        &file(bpe(), json!({ "normalizer": { "pattern": { "String": "a" }, "content": "b" } })),
        ", normalizer",
        "``",
    );
    refused(&file(bpe(), json!({ "decoder": { "type": "CTC" } })), ", decoder", "`CTC`");
    refused(&file(bpe(), json!({ "normalizer": ["NFC"] })), ", normalizer", "another value");
    refused(&json!({ "model": 1 }), ", model", "");
}
