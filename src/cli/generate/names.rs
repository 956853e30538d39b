//! What outputs are called, and what they say of themselves.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// `OUT.png`, or `OUT-1.png`, `OUT-2.png`, ... for more than one.
pub(super) fn given_names(output: &Path, batch: usize) -> Vec<PathBuf> {
    let (stem, extension) = (output.file_stem().unwrap_or_default(), output.extension().unwrap_or_default());
    match batch {
        1 => vec![output.to_owned()],
        _ => (1..=batch).map(|i| output.with_file_name(numbered(stem, i, extension))).collect(),
    }
}

pub(super) fn numbered(stem: &OsStr, number: usize, extension: &OsStr) -> OsString {
    let mut name = stem.to_owned();
    name.push(format!("-{number}."));
    name.push(extension);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_numbered() {
        assert_eq!(given_names(Path::new("a/b.PNG"), 1), [Path::new("a/b.PNG")]);
        assert_eq!(given_names(Path::new("a/b.c.jpg"), 2), [Path::new("a/b.c-1.jpg"), Path::new("a/b.c-2.jpg")]);
    }
}
