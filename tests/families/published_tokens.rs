//! The ids of published tokenizers, which are not part of this repository: a test is told a folder with `tokenizer.json`, or does nothing.
//! Recorded by `tests/reference/published_tokens.py`, which says where to find them.

use std::path::Path;

use crate::support::Golden;
use pinhole::text::{ByteLevelTokenizer, MAX_SEQUENCE_LENGTH, T5Tokenizer};

/// Holds what `encode` makes of each recorded prompt, of the text and the path of the `tokenizer.json` in the folder that `variable` names,
/// to the ids in `golden`.
fn ids_equal_the_reference(golden: &str, variable: &str, encode: impl Fn(&str, &Path, &[String]) -> Vec<Vec<u32>>) {
    let golden = Golden::load(golden);
    let Some(folder) = std::env::var_os(variable) else { return };
    let path = Path::new(&folder).join("tokenizer.json");
    let json = std::fs::read_to_string(&path).unwrap();
    let mut prompts = Vec::new();
    for case in golden.list("/cases") {
        prompts.push(case["text"].as_str().unwrap().repeat(case["repeat"].as_u64().unwrap() as usize));
    }
    let found = encode(&json, &path, &prompts);
    for (case, ids) in golden.list("/cases").iter().zip(found) {
        assert_eq!(serde_json::json!(ids), case["ids"], "{}", case["text"]);
    }
}

/// Z-Image's language model, inside its template.
#[test]
fn of_qwen() {
    ids_equal_the_reference("qwen_tokens", "PINHOLE_QWEN_TOKENIZER", |json, path, prompts| {
        let tokenizer = ByteLevelTokenizer::from_json(json, &Default::default(), path).unwrap();
        let mut ids = Vec::new();
        for prompt in prompts {
            let whole = format!("<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n");
            ids.push(tokenizer.encode(&whole, MAX_SEQUENCE_LENGTH).unwrap().ids);
        }
        ids
    });
}

/// Wan's text encoder.
#[test]
fn of_umt5() {
    ids_equal_the_reference("umt5_tokens", "PINHOLE_UMT5_TOKENIZER", |json, path, prompts| {
        let tokenizer = T5Tokenizer::from_json(json, &Default::default(), path).unwrap();
        let mut ids = Vec::new();
        for prompt in prompts {
            let encoded = tokenizer.encode(prompt, Some(MAX_SEQUENCE_LENGTH)).unwrap();
            ids.push(encoded.ids[..encoded.used].to_vec());
        }
        ids
    });
}
