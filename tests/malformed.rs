//! Files that are wrong in one way each: one clear error, no panic, and no memory beyond what is really there.

#![allow(missing_docs, clippy::unwrap_used)]

#[path = "malformed/bend.rs"]
mod bend;
mod fixtures;
#[path = "malformed/folders.rs"]
mod folders;
#[path = "malformed/gguf.rs"]
mod gguf;
#[path = "malformed/pickles.rs"]
mod pickles;
#[path = "malformed/safetensors.rs"]
mod safetensors;
#[path = "malformed/texts.rs"]
mod texts;

use std::fs;

use fixtures::{
    ARRAY, BOOL, RawGguf, RawTensor, STRING, U8, U32, array, check_index, nested, safetensors, small_safetensors, text,
    typed,
};
use pinhole::error::{Error, Result};
use pinhole::gguf::Gguf;
use pinhole::index::{Index, Map, Other};
use pinhole::safetensors::{Safetensors, find, open_sharded};

/// The message of an error that [`Error`] has for what is wrong inside a file.
fn message<T>(result: Result<T>) -> String {
    match result.map(|_| ()) {
        Err(error @ (Error::Malformed { .. } | Error::Mismatch { .. } | Error::NotAModel { .. })) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

/// The only tensor of an index, which no weight can be read from.
#[track_caller]
fn only_other(index: &Index) -> Other {
    check_index(index);
    assert!(index.is_empty() && index.names().eq(["w"]) && index.has("w") && index.get("w").is_none());
    assert_eq!(index.others().len(), 1);
    index.other("w").unwrap().clone()
}

fn contains(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}
