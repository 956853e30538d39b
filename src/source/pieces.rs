//! GGUF files that are pieces of one.

use crate::Error;
use crate::gguf::Metadata;

/// Where llama.cpp's `llama-gguf-split` says how many pieces there are, and which this is, from 0 on.
const COUNT: &str = "split.count";
const NUMBER: &str = "split.no";

/// The error for a file with `metadata`, if it is one of several pieces: each has some layers and none has a network.
pub fn piece(metadata: &Metadata) -> Option<Error> {
    let number = |key: &str| metadata.integer(key).ok().flatten();
    let count = number(COUNT).filter(|&count| count > 1)?;
    let which = number(NUMBER).map_or("one".to_owned(), |number| format!("piece {}", number.saturating_add(1)));
    let path = metadata.path();
    let first = first_of(&path.file_name()?.to_string_lossy()).unwrap_or_else(|| "FIRST.gguf".to_owned());
    let hint = format!("make one file of them: llama-gguf-split --merge {first} WHOLE.gguf");
    let found = format!("{which} of {count} of a GGUF file that was split");
    Some(Error::NotAModel { path: path.to_owned(), found, hint: Some(hint) })
}

/// The name of the first piece, if `name` is that of any: `model-00002-of-00003.gguf`.
fn first_of(name: &str) -> Option<String> {
    let (before, count) = name.rsplit_once("-of-")?;
    let (stem, number) = before.rsplit_once('-')?;
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| format!("{stem}-{:0width$}-of-{count}", 1, width = number.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_piece_has_a_name() {
        assert_eq!(first_of("dev-00003-of-00004.gguf").as_deref(), Some("dev-00001-of-00004.gguf"));
        assert_eq!(first_of("dev.gguf"), None);
        assert_eq!(first_of("one-of-many.gguf"), None);
    }
}
