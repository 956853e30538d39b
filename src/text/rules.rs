//! What of a `tokenizer.json` reaches the library `tokenizers`.
//!
//! Such a file comes inside any bundle, and the library was written for files that its own trainer made. It does whatever the
//! rules say: five rules that write a hundred letters for one make gigabytes of a word. So a file is looked at first, and
//! written anew from what was looked at: the library never reads the original.
//!
//! | part | what passes |
//! |---|---|
//! | `model` | `BPE` and `Unigram`, with a bounded vocabulary, and nothing drawn by lot |
//! | `normalizer`, `pre_tokenizer` | the kinds in the lists below; what they make of a text has a bound, [`Checked::growth`] |
//! | `post_processor` | marks before and after the text, which is there once |
//! | `decoder` | the kinds in the list below, with the same bound |
//! | `added_tokens` | bounded in number and size |
//! | `truncation`, `padding` | nothing: the length is the text encoder's business |
//!
//! Expressions have a [file](super::patterns) of their own.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::bounds::Model;
use super::charsmap;
use super::patterns::least_match;
use crate::index::quoted;
use crate::{Error, Result};

/// The largest file, in bytes. Gemma's, with 262 144 tokens, has 33 MB.
const MAX_JSON: usize = 64 << 20;
/// The largest part beside the model, in bytes. T5's normaliser has 316 kB, Gemma's added tokens 1.2 MB.
const MAX_PART: usize = 4 << 20;
/// How many rules a part may have, one inside the other or in a row.
const MAX_RULES: usize = 32;
/// How many times as long a text may get. T5's go furthest: NFKC's 11 times, and a mark of three bytes before a letter.
const MAX_GROWTH: u64 = 1024;
/// The most added tokens, bytes of one, and bytes of all after the normaliser.
const MAX_ADDED: usize = 1 << 16;
const MAX_ADDED_TOKEN: usize = 1024;
const MAX_ADDED_BYTES: u64 = 64 << 20;
/// Pieces of a template of marks.
const MAX_TEMPLATE: usize = 32;

/// A file that the library may have.
#[derive(Debug)]
pub(super) struct Checked {
    /// What it reads.
    pub(super) json: String,
    /// How many times as long as a text its pieces are, at most.
    pub(super) growth: u64,
}

/// The parts of a file, in the order in which the library writes them.
#[derive(Deserialize, Serialize)]
struct Document<P, M> {
    version: Option<P>,
    added_tokens: Option<P>,
    normalizer: Option<P>,
    pre_tokenizer: Option<P>,
    post_processor: Option<P>,
    decoder: Option<P>,
    model: M,
}

/// What was expected, and what was found.
struct Refused(String, String);

/// How many times as long a text gets, at most.
type Growth = Result<u64, Refused>;

/// Looks at the text of a `tokenizer.json`. `origin` is for messages.
///
/// # Errors
/// [`Error::Malformed`] for what does not pass.
pub(super) fn check(json: &str, origin: &Path) -> Result<Checked> {
    let fail = |at: &str, Refused(expected, found): Refused| {
        Error::malformed(origin, format!("tokenizer, {at}"), expected, found)
    };
    if json.len() > MAX_JSON {
        let found = format!("{} bytes", json.len());
        return Err(Error::malformed(origin, "tokenizer", format!("at most {MAX_JSON} bytes"), found));
    }
    let raw: Document<&RawValue, &RawValue> =
        serde_json::from_str(json).map_err(|error| malformed(origin, "tokenizer", &error))?;
    Model::check(raw.model.get()).map_err(|error| malformed(origin, "tokenizer, model", &error))?;
    let read = |at: &str, part: Option<&RawValue>| part.map(|part| value(origin, at, part)).transpose();
    let document = Document {
        version: read("version", raw.version)?,
        added_tokens: read("added_tokens", raw.added_tokens)?,
        normalizer: read("normalizer", raw.normalizer)?,
        pre_tokenizer: read("pre_tokenizer", raw.pre_tokenizer)?,
        post_processor: read("post_processor", raw.post_processor)?,
        decoder: read("decoder", raw.decoder)?,
        model: raw.model,
    };
    let normalized = chain(&NORMALIZERS, &document.normalizer).map_err(|refused| fail("normalizer", refused))?;
    let split = chain(&PRE_TOKENIZERS, &document.pre_tokenizer).map_err(|refused| fail("pre_tokenizer", refused))?;
    chain(&DECODERS, &document.decoder).map_err(|refused| fail("decoder", refused))?;
    chain(&POST_PROCESSORS, &document.post_processor).map_err(|refused| fail("post_processor", refused))?;
    added_tokens(&document.added_tokens, normalized).map_err(|refused| fail("added_tokens", refused))?;
    let growth = bounded(normalized.saturating_mul(split)).map_err(|refused| fail("pre_tokenizer", refused))?;
    let json = serde_json::to_string(&document).map_err(|error| malformed(origin, "tokenizer", &error))?;
    Ok(Checked { json, growth })
}

fn malformed(origin: &Path, at: &str, error: &serde_json::Error) -> Error {
    // Its text may quote the file.
    let found: String = error.to_string().escape_debug().take(300).collect();
    Error::malformed(origin, at, "a tokenizer.json that works", found)
}

fn value(origin: &Path, at: &str, part: &RawValue) -> Result<Value> {
    let at = format!("tokenizer, {at}");
    let bytes = part.get().len();
    if bytes > MAX_PART {
        return Err(Error::malformed(origin, at, format!("at most {MAX_PART} bytes"), format!("{bytes} bytes")));
    }
    serde_json::from_str(part.get()).map_err(|error| malformed(origin, &at, &error))
}

fn refused<T>(expected: impl Into<String>, found: impl Into<String>) -> Result<T, Refused> {
    Err(Refused(expected.into(), found.into()))
}

fn bounded(growth: u64) -> Growth {
    if growth > MAX_GROWTH {
        let expected = format!("rules that make a text at most {MAX_GROWTH} times as long");
        return refused(expected, format!("some that make it {growth} times as long"));
    }
    Ok(growth)
}

/// A part that is one rule, or several in a row.
struct Part {
    /// What the list of several is called.
    list: &'static str,
    /// The kinds that pass.
    kinds: &'static [&'static str],
    /// How many times as long one rule, of one of these kinds, makes a text.
    growth: fn(&str, &Map<String, Value>) -> Growth,
}

const NORMALIZERS: Part = Part {
    list: "normalizers",
    kinds: &[
        "NFC",
        "NFD",
        "NFKC",
        "NFKD",
        "Nmt",
        "Lowercase",
        "Strip",
        "StripAccents",
        "Replace",
        "Prepend",
        "Precompiled",
    ],
    growth: normalizer,
};
const PRE_TOKENIZERS: Part = Part {
    list: "pretokenizers",
    kinds: &["ByteLevel", "Metaspace", "Split", "Whitespace", "WhitespaceSplit", "Digits", "Punctuation"],
    growth: pre_tokenizer,
};
const DECODERS: Part = Part {
    list: "decoders",
    kinds: &["ByteLevel", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip", "BPEDecoder"],
    growth: decoder,
};
const POST_PROCESSORS: Part = Part {
    list: "processors",
    kinds: &["ByteLevel", "RobertaProcessing", "BertProcessing", "TemplateProcessing"],
    growth: post_processor,
};

/// How many times as long all rules of a part make a text.
fn chain(part: &Part, rules: &Option<Value>) -> Growth {
    let mut left = MAX_RULES;
    match rules {
        None | Some(Value::Null) => Ok(1),
        Some(rule) => links(part, rule, &mut left).and_then(bounded),
    }
}

fn links(part: &Part, rule: &Value, left: &mut usize) -> Growth {
    let Value::Object(fields) = rule else { return refused("a rule", "another value") };
    let Some(next) = left.checked_sub(1) else { return refused(format!("at most {MAX_RULES} rules"), "more") };
    *left = next;
    let kind = fields.get("type").and_then(Value::as_str).unwrap_or_default();
    match fields.get(part.list) {
        Some(Value::Array(rules)) if kind == SEQUENCE => {
            // The library goes by the members of some rules and not by their type.
            let mut growth = (part.growth)(kind, fields)?;
            for rule in rules {
                growth = growth.saturating_mul(links(part, rule, left)?);
            }
            Ok(growth)
        }
        Some(_) => refused(format!("a list `{}` in a Sequence", part.list), quoted(kind)),
        None if part.kinds.contains(&kind) => (part.growth)(kind, fields),
        None => refused(format!("one of {}, or a Sequence of them", part.kinds.join(", ")), quoted(kind)),
    }
}

/// The kind of several rules in a row.
const SEQUENCE: &str = "Sequence";

/// The furthest that Unicode's forms stretch UTF-8 is from its annex 15.
fn normalizer(kind: &str, fields: &Map<String, Value>) -> Growth {
    match kind {
        "NFC" | "NFD" => Ok(3),
        "NFKC" | "NFKD" => Ok(11),
        // Two bytes become three.
        "Lowercase" => Ok(2),
        "Replace" => replaced(fields),
        "Prepend" => Ok(1 + text(fields, "prepend")?.len() as u64),
        "Precompiled" => {
            let bytes = base64::decode(text(fields, "precompiled_charsmap")?);
            match bytes.map_err(|error| error.to_string()).and_then(|map| charsmap::growth(&map)) {
                Ok(growth) => Ok(growth as u64),
                Err(found) => refused("SentencePiece's map of characters", found),
            }
        }
        _ => Ok(1),
    }
}

fn pre_tokenizer(kind: &str, fields: &Map<String, Value>) -> Growth {
    match kind {
        // A byte becomes a character of two, and each piece may get a space.
        "ByteLevel" if fields.get("add_prefix_space") == Some(&Value::Bool(false)) => Ok(2),
        "ByteLevel" => Ok(4),
        // A character for a space, or before a piece.
        "Metaspace" => Ok(1 + text(fields, "replacement")?.len() as u64),
        "Split" => pattern(fields).map(|_| 1),
        _ => Ok(1),
    }
}

fn decoder(kind: &str, fields: &Map<String, Value>) -> Growth {
    match kind {
        // A byte that is no UTF-8 becomes a character of three.
        "ByteLevel" => Ok(3),
        "Replace" => replaced(fields),
        // A space for the mark of a word's end, which may be empty.
        "BPEDecoder" => Ok(2),
        _ => Ok(1),
    }
}

/// Only a template can repeat the text. Whatever the type says: the library goes by the members here.
fn post_processor(_: &str, fields: &Map<String, Value>) -> Growth {
    let Some(template) = fields.get("single") else { return Ok(1) };
    let Value::Array(pieces) = template else { return refused("a list of pieces", "another value") };
    let texts = pieces.iter().filter(|piece| piece.get("SpecialToken").is_none()).count();
    if pieces.len() > MAX_TEMPLATE || texts > 1 {
        let expected = format!("at most {MAX_TEMPLATE} pieces, one of them the text");
        return refused(expected, format!("{}, {texts} of them the text", pieces.len()));
    }
    Ok(1)
}

/// How many times as long a text gets if `content` takes the place of each match.
fn replaced(fields: &Map<String, Value>) -> Growth {
    let (least, content) = (pattern(fields)? as u64, text(fields, "content")?.len() as u64);
    Ok(match least {
        // Between all bytes.
        0 => content.saturating_add(1),
        _ => content.div_ceil(least).max(1),
    })
}

/// The fewest bytes that a rule's pattern matches.
fn pattern(fields: &Map<String, Value>) -> Result<usize, Refused> {
    let Some(Value::Object(pattern)) = fields.get("pattern") else {
        return refused("a `pattern` that is a String or a Regex", "another value");
    };
    match (pattern.get("String"), pattern.get("Regex"), pattern.len()) {
        (Some(Value::String(text)), None, 1) if text.len() <= MAX_ADDED_TOKEN => Ok(text.len()),
        (Some(Value::String(text)), None, 1) => {
            refused(format!("a text of at most {MAX_ADDED_TOKEN} bytes"), format!("{} bytes", text.len()))
        }
        (None, Some(Value::String(text)), 1) => least_match(text).or_else(|why| {
            refused("an expression that takes time in proportion to the text", format!("{}: {why}", quoted(text)))
        }),
        _ => refused("a `pattern` that is a String or a Regex", "another value"),
    }
}

fn text<'a>(fields: &'a Map<String, Value>, name: &str) -> Result<&'a str, Refused> {
    match fields.get(name) {
        Some(Value::String(text)) => Ok(text),
        _ => refused(format!("a text `{name}`"), "none"),
    }
}

/// Texts that are looked for before all else. Each goes through the normaliser once, which makes it `growth` times as long.
fn added_tokens(tokens: &Option<Value>, growth: u64) -> Result<(), Refused> {
    let tokens = match tokens {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Array(tokens)) if tokens.len() <= MAX_ADDED => tokens,
        Some(Value::Array(tokens)) => return refused(format!("at most {MAX_ADDED}"), tokens.len().to_string()),
        Some(_) => return refused("a list", "another value"),
    };
    let mut bytes = 0u64;
    for token in tokens {
        let content = token.get("content").and_then(Value::as_str).unwrap_or_default();
        if content.is_empty() || content.len() > MAX_ADDED_TOKEN {
            return refused(format!("tokens of 1 to {MAX_ADDED_TOKEN} bytes"), format!("one of {}", content.len()));
        }
        let id = token.get("id").and_then(Value::as_u64);
        if id.is_none_or(|id| id >= Model::MAX_TOKENS as u64) {
            let found = token.get("id").unwrap_or(&Value::Null).to_string();
            return refused(format!("ids below {}", Model::MAX_TOKENS), quoted(&found));
        }
        bytes += content.len() as u64;
    }
    let bytes = bytes.saturating_mul(growth);
    if bytes > MAX_ADDED_BYTES {
        return refused(format!("at most {MAX_ADDED_BYTES} bytes after the normalizer"), bytes.to_string());
    }
    Ok(())
}
