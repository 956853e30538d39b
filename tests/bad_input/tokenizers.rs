//! Tokenizers that are missing, broken, or of another model.

use serde_json::json;

use crate::disk::{Disk, refused};

#[test]
fn the_tokenizer_is_missing() {
    let disk = Disk::new();
    disk.remove("tokenizer_2/tokenizer.json");
    let error = refused!(NotAModel, disk.open(), "tokenizer_2");
    assert!(error.hint().unwrap().contains("save_pretrained"));
    for name in ["tokenizer", "tokenizer_2"] {
        let disk = Disk::new();
        disk.remove(name);
        refused!(NotAModel, disk.open(), name);
    }
}

#[test]
fn clip_s_may_come_in_two_files() {
    let disk = Disk::new();
    disk.remove("tokenizer/tokenizer.json");
    disk.open().unwrap();
    disk.write("tokenizer/vocab.json", "{}");
    refused!(Mismatch, disk.open(), "tokenizer");
    disk.remove("tokenizer/vocab.json");
    refused!(NotAModel, disk.open(), "tokenizer");
    // Without its merges a vocabulary would read every word letter by letter.
    for merges in ["", "#version: 0.2\n", "#version: 0.2\na b\n"] {
        let disk = Disk::new();
        disk.remove("tokenizer/tokenizer.json");
        disk.write("tokenizer/merges.txt", merges);
        let error = refused!(Malformed, disk.open(), "merges.txt", "of them");
        assert!(error.hint().unwrap().contains("cut short"));
    }
}

#[test]
fn more_ids_than_rows() {
    for (folder, who) in [("tokenizer", "CLIP"), ("tokenizer_2", "T5")] {
        let disk = Disk::new();
        disk.edit(&format!("{folder}/tokenizer.json"), |tokenizer| {
            let token = json!({ "id": 70_000, "content": "<more>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true });
            tokenizer["added_tokens"].as_array_mut().unwrap().push(token);
            for i in 0..300 {
                let text = format!("zz{i}");
                match &mut tokenizer["model"]["vocab"] {
                    serde_json::Value::Object(vocab) => drop(vocab.insert(text, json!(1000 + i))),
                    vocab => vocab.as_array_mut().unwrap().push(json!([text, -9.0])),
                }
            }
        });
        refused!(Mismatch, disk.open(), who, "tokenizer", "at least");
    }
}

#[test]
fn no_tokenizer_at_all() {
    for folder in ["tokenizer", "tokenizer_2"] {
        let disk = Disk::new();
        for text in ["", "null", "{}", "[]", r#"{"model": {"type": "BPE", "vocab": {}, "merges": []}}"#] {
            disk.write(&format!("{folder}/tokenizer.json"), text);
            let error = disk.open().map(|_| ()).unwrap_err();
            crate::disk::show(&error);
            let message = error.to_string();
            assert!(message.contains(&format!("{folder}/tokenizer.json")), "{message}");
        }
        disk.write(&format!("{folder}/tokenizer.json"), [0xff; 10]);
        refused!(Io, disk.open(), &format!("{folder}/tokenizer.json"));
    }
}
