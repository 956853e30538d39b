//! Names of tensors, and how messages say them.

use std::path::Path;

use crate::error::{Error, Result};

/// Most bytes of a tensor's name. GGUF asks for 64 at most and stock ggml keeps 63, but builds with room for 127 write
/// files too, and names in safetensors have no limit.
const MAX_NAME_BYTES: usize = 512;

/// Refuses a tensor's name that is empty, too long, or would play tricks on a terminal.
pub(crate) fn check_name(path: &Path, name: &str) -> Result<()> {
    let fail = |expected: String, found: String| Err(Error::malformed(path, tensor_at(name), expected, found));
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return fail(format!("a name of 1 to {MAX_NAME_BYTES} bytes"), format!("{} bytes", name.len()));
    }
    if name.contains(char::is_control) {
        return fail("a name without control characters".into(), "some".into());
    }
    Ok(())
}

/// A tensor as the place of an error.
pub(crate) fn tensor_at(name: &str) -> String {
    format!("tensor {}", quoted(name))
}

/// Text from a file, fit for a message: in backticks, shortened, control characters escaped.
pub(crate) fn quoted(text: &str) -> String {
    const SHOWN: usize = 80;
    let more = if text.chars().nth(SHOWN).is_some() { "..." } else { "" };
    let shown: String = text.chars().take(SHOWN).collect();
    format!("`{}{more}`", shown.escape_debug())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_shown_harmless() {
        assert_eq!(quoted("a\x1b[2J"), "`a\\u{1b}[2J`");
        assert_eq!(quoted(&"x".repeat(81)).len(), 85);
        assert!(check_name(Path::new("f"), "a\x1bb").is_err());
        assert!(check_name(Path::new("f"), "").is_err());
        assert!(check_name(Path::new("f"), &"é".repeat(256)).is_ok());
        assert!(check_name(Path::new("f"), &"é".repeat(257)).is_err());
    }
}
