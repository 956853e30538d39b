//! The vocabulary of OpenAI's CLIP, which `clip_l.safetensors` and its like need and do not carry.
//!
//! It is public: the file `bpe_simple_vocab_16e6.txt` of <https://github.com/openai/CLIP> (MIT). Its first
//! 48 894 merges are used. build.rs takes them from a package that has the file.

use std::path::Path;

use super::TokenizerConfig;
use super::clip::{END, START, Tokens, WORD_END, tokenizer_json};
use crate::Result;

/// One pair of pieces a line.
const MERGES: &str = include_str!(concat!(env!("OUT_DIR"), "/clip_merges.txt"));

/// The `tokenizer.json` of OpenAI's CLIP, for [`ClipTokenizer`](super::ClipTokenizer) and bundles: 49 408 tokens. Made anew
/// at each call.
///
/// It is that of CLIP-L. CLIP-G's and CLIP-H's have the same ids, and `config` that says that they pad with `!`: it is a token
/// before all words then.
///
/// # Errors
///
/// Those of [`clip_tokenizer_json`](super::clip_tokenizer_json), which the vocabulary gives no reason for.
pub fn openai_clip_tokenizer_json(config: &TokenizerConfig) -> Result<String> {
    let origin = Path::new("OpenAI's CLIP vocabulary");
    tokenizer_json(&Tokens(tokens().zip(0..).collect()), MERGES, config, origin)
}

/// All tokens by id: bytes, bytes at a word's end, merged pairs, marks.
fn tokens() -> impl Iterator<Item = String> {
    let ends = alphabet().map(|byte| format!("{byte}{WORD_END}"));
    let merged = MERGES.lines().map(|pair| pair.replace(' ', ""));
    alphabet().map(String::from).chain(ends).chain(merged).chain([START.to_owned(), END.to_owned()])
}

/// The characters that stand for the 256 bytes, as in GPT-2 (`bytes_to_unicode`): those that print stand for themselves
/// and come first, the others for those from U+0100 on.
fn alphabet() -> impl Iterator<Item = char> {
    let printable = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ');
    printable.chain('\u{100}'..='\u{143}')
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use instant_clip_tokenizer::{Token, Tokenizer};
    use serde_json::Value;

    use super::*;
    use crate::text::ClipTokenizer;

    /// The package's own encoder has the same vocabulary. It does not compose characters, knows a word's last sigma, and
    /// has other names for the marks.
    #[test]
    fn the_packages_encoder_agrees() {
        let ours = ClipTokenizer::from_json(
            &openai_clip_tokenizer_json(&TokenizerConfig::default()).unwrap(),
            &TokenizerConfig::default(),
            Path::new("clip"),
        )
        .unwrap();
        let theirs = Tokenizer::new();
        let golden: Value = serde_json::from_str(include_str!("../../tests/goldens/clip_openai.json")).unwrap();
        let mut compared = 0;
        for case in golden["cases"].as_array().unwrap() {
            let (text, repeat) = (case["text"].as_str().unwrap(), case["repeat"].as_u64().unwrap());
            // Long ones would be cut, and take their encoder seconds.
            if repeat > 1 || text.contains("<|") || text.contains('Σ') || !composed(text) {
                continue;
            }
            let mut tokens = vec![theirs.start_of_text()];
            theirs.encode(text, &mut tokens);
            tokens.push(theirs.end_of_text());
            let wanted: Vec<u32> = tokens.into_iter().map(|token: Token| token.to_u16().into()).collect();
            let found = ours.encode(text).unwrap();
            if found.cut.is_none() {
                assert_eq!(found.ids[..found.used], wanted, "{text:?}");
                compared += 1;
            }
        }
        assert!(compared >= 30, "{compared}");
    }

    /// Whether composing characters changes nothing in `text`: no combining marks, no Hangul in parts.
    fn composed(text: &str) -> bool {
        !text.chars().any(|c| matches!(c, '\u{300}'..='\u{36f}' | '\u{1100}'..='\u{11ff}' | '\u{3099}' | '\u{212b}'))
    }

    #[test]
    fn tokens_stand_where_openai_has_them() {
        let tokens: Vec<String> = tokens().collect();
        assert_eq!(tokens.len(), 49_408);
        for (id, token) in [(0, "!"), (255, "\u{143}"), (256, "!</w>"), (512, "in"), (320, "a</w>"), (49_407, END)] {
            assert_eq!(tokens[id], token);
        }
    }
}
