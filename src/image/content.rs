//! What a file is, by its first bytes.

use std::path::Path;

use ::image::{ImageFormat, guess_format};

use super::Format;
use crate::{Error, Result};

/// What pictures may be.
pub(super) const EXPECTED: &str = "a PNG, JPEG or WebP picture";

/// The format of a picture.
///
/// # Errors
/// [`Error::Mismatch`] for anything else, with what it is.
pub(super) fn format(bytes: &[u8], path: &Path) -> Result<Format> {
    match guess_format(bytes) {
        Ok(ImageFormat::Png) => Ok(Format::Png),
        Ok(ImageFormat::Jpeg) => Ok(Format::Jpeg),
        Ok(ImageFormat::WebP) => Ok(Format::WebP),
        other => {
            let (found, hint) = match other {
                Ok(format) => (format!("a picture in the format {}", name(format)), CONVERT),
                Err(_) => unknown(bytes),
            };
            Err(Error::mismatch(path, "picture", EXPECTED, found).with_hint(hint))
        }
    }
}

const CONVERT: &str = "save it as PNG, JPEG or WebP";

fn name(format: ImageFormat) -> String {
    format.extensions_str().first().map(|extension| extension.to_ascii_uppercase()).unwrap_or_default()
}

/// What is no picture in a format that the crate `image` knows, and what to do.
fn unknown(bytes: &[u8]) -> (String, &'static str) {
    const OTHER: &str = "give a picture";
    if bytes.is_empty() {
        return ("an empty file".into(), "copy or download it again");
    }
    if bytes.get(4..8) == Some(b"ftyp") {
        return ("HEIF, AVIF or a video".into(), CONVERT);
    }
    for (magic, found, hint) in [
        (&b"%PDF"[..], "a PDF", CONVERT),
        (b"PK\x03\x04", "a ZIP archive", "unpack it first"),
        (b"GGUF", "a GGUF model", OTHER),
        (b"\xff\x0a", "a picture in the format JPEG XL", CONVERT),
        (b"\0\0\0\x0cJXL ", "a picture in the format JPEG XL", CONVERT),
        (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "`git lfs pull` fetches the file"),
    ] {
        if bytes.starts_with(magic) {
            return (found.into(), hint);
        }
    }
    if bytes.get(8) == Some(&b'{') && bytes[..8].contains(&0) {
        return ("a safetensors file".into(), OTHER);
    }
    match text(bytes) {
        Some(text) => written(text),
        None => ("data that is none of these".into(), OTHER),
    }
}

/// The beginning of a file of text.
fn text(bytes: &[u8]) -> Option<&str> {
    let start = bytes.get(..512).unwrap_or(bytes);
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        // A letter may go on behind the cut.
        Err(error) if error.error_len().is_none() => std::str::from_utf8(&start[..error.valid_up_to()]).ok()?,
        Err(_) => return None,
    };
    text.chars()
        .all(|letter| !letter.is_control() || letter.is_whitespace())
        .then(|| text.trim_start_matches('\u{feff}').trim_start())
}

fn written(text: &str) -> (String, &'static str) {
    let start: String = text.chars().take(14).collect::<String>().to_ascii_lowercase();
    let (found, hint) = match start.as_str() {
        start if start.starts_with("<!doctype html") || start.starts_with("<html") => {
            ("a web page", "the server sent a page about the picture: take the link to the file itself")
        }
        start if start.starts_with("<svg") => ("an SVG drawing", CONVERT),
        start if start.starts_with('<') => ("XML", CONVERT),
        start if start.starts_with(['{', '[']) => ("JSON", "the server sent an answer in the picture's place"),
        _ => ("text", "give a picture"),
    };
    (found.into(), hint)
}
