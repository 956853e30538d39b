//! What a download that failed leaves in the place of a file.

use std::path::Path;

use serde_json::{Map, Value};

use super::name::quoted;
use crate::error::Error;

/// What to do about a file that ends too early.
pub(crate) const CUT_SHORT: &str = "the file is cut short, or damaged: copy or download it again";

/// How many bytes a text has that stands where weights should be.
const LEAST_TEXT: usize = 5;
const MOST_TEXT: usize = 1 << 16;

/// How many bytes are looked at, at least, before a file of zeros is called one.
const ZEROS: usize = 64;

/// More bytes than an answer has that refuses a download.
const MOST_ANSWER: usize = 1 << 12;

/// How such answers begin if they are plain text.
const REFUSALS: [&str; 8] = [
    "Access to model",
    "Access denied",
    "Entry not found",
    "Repository not found",
    "Invalid username or password",
    "Not Found",
    "404: Not Found",
    "Unauthorized",
];

/// How the pointer begins that Git LFS keeps in the place of a large file.
const LFS: &[u8] = b"version https://git-lfs";

/// How web pages and the answers of storage services begin, in lower case.
const PAGES: [&[u8]; 5] = [b"<!doctype", b"<html", b"<head", b"<?xml", b"<error"];

/// The error for `bytes` at `path`, where weights should be, if they are what a download that failed leaves there.
pub(crate) fn failed_weights(path: &Path, bytes: &[u8]) -> Option<Error> {
    if let Some(error) = failed_text(path, bytes) {
        return Some(error);
    }
    let looked_at = &bytes[..bytes.len().min(MOST_TEXT)];
    if looked_at.len() >= ZEROS && looked_at.iter().all(|byte| *byte == 0) {
        return Some(error(path, "zeros, as a download leaves that did not come to its end".into()));
    }
    // A file with a hole could be text from its first byte to its last.
    let text = str::from_utf8(bytes.get(..bytes.len().min(MOST_TEXT + 1))?).ok();
    let text = text.filter(|text| bytes.len() <= MOST_TEXT && is_text(text))?;
    let what = if text.trim_start().starts_with('{') { "a JSON text" } else { "a text" };
    Some(error(path, format!("{what} and no weights, {}", quoted(text.trim()))))
}

/// The error for `bytes` at `path`, where a text should be, if they are what a download that failed leaves there.
pub(crate) fn failed_text(path: &Path, bytes: &[u8]) -> Option<Error> {
    if bytes.starts_with(LFS) {
        let size = str::from_utf8(bytes).ok().and_then(size_in_pointer);
        let size = size.map(|size| format!(" of {size} bytes")).unwrap_or_default();
        let found = format!("a pointer of Git LFS to a file{size}, and not that file");
        let hint = Some("fetch it with `git lfs pull`, or download it again".into());
        return Some(Error::NotAModel { path: path.to_owned(), found, hint });
    }
    if let Some(said) = answer(bytes) {
        return Some(error(path, format!("an answer and not the file, {}", quoted(said))));
    }
    let begins = bytes.trim_ascii_start().strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes.trim_ascii_start());
    let page = |start: &&[u8]| begins.len() >= start.len() && begins[..start.len()].eq_ignore_ascii_case(start);
    PAGES.iter().any(page).then(|| error(path, "a web page, as a download leaves that was refused".into()))
}

/// What `bytes` say if they are a short answer that refuses a download.
fn answer(bytes: &[u8]) -> Option<&str> {
    let text = str::from_utf8(bytes).ok().filter(|text| text.len() <= MOST_ANSWER)?.trim();
    let refuses = REFUSALS.iter().any(|start| text.starts_with(start));
    // Configurations have no such key.
    let object: Option<Map<String, Value>> = serde_json::from_str(text).ok();
    (refuses || object.is_some_and(|object| object.contains_key("error"))).then_some(text)
}

fn error(path: &Path, found: String) -> Error {
    let hint = "give a file with weights; if a download left this one, download it again, with a token if the model asks for one";
    Error::NotAModel { path: path.to_owned(), found, hint: Some(hint.into()) }
}

/// What a file that is not of safetensors looks like, by its first bytes; `None` if it may be of it, or of no kind that is known.
pub(crate) fn looks_like(bytes: &[u8]) -> Option<&'static str> {
    Some(match bytes {
        // The header of a safetensors file, behind its length.
        [_, _, _, _, _, _, _, _, b'{', ..] => return None,
        [] => "an empty file",
        [b'G', b'G', b'U', b'F', ..] => "a GGUF file",
        [b'P', b'K', ..] | [0x80, 2..=5, ..] => "a zip archive or a file of PyTorch's",
        [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] | [b'7', b'z', 0xbc, ..] | [b'R', b'a', b'r', b'!', ..] => {
            "an archive: unpack it first"
        }
        [0x89, b'P', b'N', b'G', ..] | [0xff, 0xd8, 0xff, ..] => "a picture",
        [b'l', b'm', b'g', b'g', ..] | [b't', b'j', b'g', b'g', ..] | [b'f', b'm', b'g', b'g', ..] => {
            "a file of ggml from before GGUF"
        }
        _ => return None,
    })
}

fn size_in_pointer(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("size ")?.trim().parse().ok())
}

/// Whether there is something to read and nothing that no text has.
fn is_text(text: &str) -> bool {
    text.trim().len() >= LEAST_TEXT && !text.chars().any(|c| c.is_control() && !c.is_ascii_whitespace())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn failed_downloads_are_called_that() {
        let found = |bytes: &[u8]| failed_weights(Path::new("f"), bytes).map(|error| error.to_string());
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 23802932552\n";
        assert!(
            found(pointer).unwrap().ends_with("a pointer of Git LFS to a file of 23802932552 bytes, and not that file")
        );
        for page in ["<!DOCTYPE html><p>", "\u{feff}<html>", " \n<?xml version='1.0'?>", "<Error><Code>AccessDenied"] {
            assert!(found(page.as_bytes()).unwrap().contains("a web page"), "{page}");
        }
        let json = found(br#"{"error":"Access to model is restricted"}"#).unwrap();
        assert!(json.contains("an answer and not the file, `{"), "{json}");
        assert!(found(b"Entry not found").unwrap().ends_with("an answer and not the file, `Entry not found`"));
        assert!(found(br#"{"weights": "elsewhere"}"#).unwrap().contains("a JSON text and no weights, `{"));
        assert!(found(b"notes of mine").unwrap().ends_with("a text and no weights, `notes of mine`"));
        for other in [&b""[..], b"GGUF", b"PK\x03\x04", b"\x10\0\0\0\0\0\0\0{}", b"  ", &[0; 8], &[0xff; 100]] {
            assert_eq!(found(other), None);
        }
        for text in ["{}", "", "null", r#"{"num_layers": 3}"#, "#version: 0.2"] {
            assert!(failed_text(Path::new("f"), text.as_bytes()).is_none(), "{text}");
        }
    }
}
