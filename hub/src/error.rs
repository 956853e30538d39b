//! Why something was not fetched, and what to do.

use std::io;
use std::path::{Path, PathBuf};

/// What the functions of this crate return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The most characters of a text from outside that a message quotes.
const QUOTED: usize = 200;

/// Why something was not found or fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name means nothing here.
    #[error("{name}: {problem}")]
    Name {
        /// What was asked for.
        name: String,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        hint: Option<String>,
    },
    /// The operating system refused something.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// A verb: `open`, `write`, ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's own error.
        source: io::Error,
    },
    /// No server answers.
    #[error("cannot reach {url}: {problem}")]
    Unreachable {
        /// The address.
        url: String,
        /// What happened.
        problem: String,
        /// What to do.
        hint: Option<String>,
    },
    /// A server answers that it does not give what was asked for.
    #[error("{url}: {problem} (HTTP {status})")]
    Refused {
        /// The address.
        url: String,
        /// The status of the answer.
        status: u16,
        /// What it means.
        problem: String,
        /// What to do.
        hint: Option<String>,
    },
    /// A server answers something else than what was asked for.
    #[error("{url}: expected {expected}, found {found}")]
    Answer {
        /// The address.
        url: String,
        /// What was asked for.
        expected: String,
        /// What came.
        found: String,
        /// What to do.
        hint: Option<String>,
    },
    /// A file came whole, and is not the one that the hub describes.
    #[error("{file}: expected {expected}, found {found}")]
    Checksum {
        /// The file, with its repository.
        file: String,
        /// What the hub says.
        expected: String,
        /// What came.
        found: String,
    },
    /// A disk has no room for what is to be fetched.
    #[error("{} needs {needed} bytes, and its disk has {available} left", path.display())]
    NoSpace {
        /// The folder.
        path: PathBuf,
        /// What is still to be fetched.
        needed: u64,
        /// What is free.
        available: u64,
    },
    /// Somebody raised the flag.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// A name that means nothing.
    pub(crate) fn name(name: &str, problem: impl Into<String>) -> Error {
        Error::Name { name: quoted(name), problem: problem.into(), hint: None }
    }

    /// Something that the system refused.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Error {
        Error::Io { action, path: path.to_owned(), source }
    }

    /// An answer that is not what was asked for.
    pub(crate) fn answer(url: &str, expected: impl Into<String>, found: impl Into<String>) -> Error {
        Error::Answer { url: quoted(url), expected: expected.into(), found: quoted(&found.into()), hint: None }
    }

    /// The same, with what to do, if it has room for that.
    #[must_use]
    pub(crate) fn with_hint(mut self, text: impl Into<String>) -> Error {
        if let Error::Name { hint, .. }
        | Error::Unreachable { hint, .. }
        | Error::Refused { hint, .. }
        | Error::Answer { hint, .. } = &mut self
        {
            *hint = Some(text.into());
        }
        self
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Error::Name { hint, .. }
            | Error::Unreachable { hint, .. }
            | Error::Refused { hint, .. }
            | Error::Answer { hint, .. } => hint.as_deref(),
            Error::Checksum { .. } => Some(
                "the file was fetched twice: a proxy changes it, or the hub's own copy is damaged; try another HF_ENDPOINT",
            ),
            Error::NoSpace { .. } => Some(
                "what was fetched stays, and the same command goes on from there: make room, or set HF_HUB_CACHE to a folder on another \
                 disk",
            ),
            Error::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Some("what was fetched stays, and the same command goes on from there")
            }
            Error::Io { source, .. } if source.kind() == io::ErrorKind::FileTooLarge => {
                Some("this process may not write files of that size: `ulimit -f` shows the limit")
            }
            Error::Io { .. } | Error::Cancelled => None,
        }
    }
}

/// A text from outside, made fit for a message: short, and without what steers a terminal.
pub(crate) fn quoted(text: &str) -> String {
    let mut short: String = text.chars().take(QUOTED).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(QUOTED).is_some() {
        short += "..";
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_from_outside_are_short_and_plain() {
        assert_eq!(quoted("a\u{1b}[2Jb"), "a\u{fffd}[2Jb");
        assert_eq!(quoted(&"x".repeat(5000)).len(), QUOTED + 2);
        assert_eq!(quoted(&"x".repeat(QUOTED)).len(), QUOTED);
    }
}
