//! Any text as a tokenizer.json, and a line before it as a prompt: an error or ids, never a panic that is heard, nor more memory
//! than the text is worth.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use pinhole::text::{ClipTokenizer, T5Tokenizer, TokenizerConfig, t5_gguf_metadata};

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let (prompt, json) = text.split_once('\n').unwrap_or(("a red circle", &text));
    let (config, origin) = (TokenizerConfig::default(), Path::new("fuzz.json"));
    if let Ok(clip) = ClipTokenizer::from_json(json, &config, origin) {
        if let Ok(encoded) = clip.encode(prompt) {
            assert!(encoded.ids.len() == clip.length() && encoded.used <= clip.length());
        }
        let again = clip.to_json().and_then(|json| ClipTokenizer::from_json(&json, &config, origin));
        assert!(again.is_err() || again.is_ok_and(|again| again.vocab_size() == clip.vocab_size()));
    }
    if let Ok(t5) = T5Tokenizer::from_json(json, &config, origin) {
        if let Ok(encoded) = t5.encode(prompt, Some(64)) {
            assert!(encoded.ids.len() == 64 && encoded.used <= 64);
        }
        let _ = t5.to_json().map(|json| t5_gguf_metadata(&json, t5.vocab_size(), origin));
    }
});
