//! The one error type of the library.

use std::io;
use std::path::{Path, PathBuf};

use pinhole_quant::output::OutputError;

use crate::size::Size;

/// What the library's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, each with what its reader needs: the file, the tensor or key, what was expected and
/// what was found. [`Error::hint`] says what to do, where something can be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused something.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// A verb: `open`, `read`, `write`, ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's own error.
        source: io::Error,
    },
    /// A file breaks the rules of its own format.
    #[error("{}: {at}: expected {expected}, found {found}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The section, key or tensor.
        at: String,
        /// What the format asks for.
        expected: String,
        /// What is there.
        found: String,
        /// What to do. In a box, so that the error is no larger for it.
        hint: Option<Box<str>>,
    },
    /// A path holds nothing that pinhole can load.
    #[error("{} is no model that pinhole knows: {found}", path.display())]
    NotAModel {
        /// The file or directory.
        path: PathBuf,
        /// What was recognised there.
        found: String,
        /// What to do.
        hint: Option<String>,
    },
    /// A well-formed file holds weights or settings that do not fit the model.
    #[error("{}: {at}: expected {expected}, found {found}", path.display())]
    Mismatch {
        /// The file or directory.
        path: PathBuf,
        /// The tensor or configuration key.
        at: String,
        /// What the model needs.
        expected: String,
        /// What is there.
        found: String,
        /// What to do.
        hint: Option<String>,
    },
    /// A weight or an intermediate result is not a finite number.
    #[error("{at} holds a value that is not finite")]
    NotFinite {
        /// The tensor, with its file where it has one.
        at: String,
        /// What to do.
        hint: Option<String>,
    },
    /// An option has a value that cannot work.
    #[error("{option}: expected {expected}, found {found}")]
    Option {
        /// The option, as it is spelt on the command line.
        option: &'static str,
        /// What would be accepted.
        expected: String,
        /// What was given.
        found: String,
        /// What to do.
        hint: Option<String>,
    },
    /// An output exists already, and the caller did not ask to replace it.
    #[error("{} exists already", path.display())]
    Exists {
        /// The output.
        path: PathBuf,
        /// What to do.
        hint: Option<String>,
    },
    /// A disk has no room for an output.
    #[error("{} needs {needed} bytes, and its disk has {available} left", path.display())]
    NoSpace {
        /// The output.
        path: PathBuf,
        /// Its size.
        needed: u64,
        /// What is free.
        available: u64,
        /// What to do.
        hint: Option<String>,
    },
    /// A device is unknown, or failed.
    #[error("device {device}: {message}")]
    Device {
        /// The device's name.
        device: String,
        /// What happened.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// An allocation failed.
    #[error("cannot allocate {} for {what}", memory(*bytes))]
    OutOfMemory {
        /// What the memory was for.
        what: String,
        /// How much was asked for; 0 if that is not known.
        bytes: usize,
        /// What to do.
        hint: Option<String>,
    },
    /// A request takes more device memory than it may.
    #[error("needs {} for {what}; given {}", Size(*needed as u64), Size(*given as u64))]
    OverBudget {
        /// The component and the size of the picture.
        what: String,
        /// The least budget, in bytes, that works.
        needed: usize,
        /// The budget, in bytes.
        given: usize,
        /// What to do.
        hint: Option<String>,
    },
    /// A graph operation was called with tensors that it cannot take, or ggml failed below it. A bug in pinhole
    /// unless a file's shapes led here.
    #[error("{op}: {message}")]
    Graph {
        /// The operation.
        op: &'static str,
        /// What is wrong.
        message: String,
    },
    /// The caller asked for a stop.
    #[error("cancelled")]
    Cancelled,
}

/// `bytes` in words.
fn memory(bytes: usize) -> String {
    if bytes == 0 { "memory".to_owned() } else { format!("{bytes} bytes") }
}

/// What to do about a malformed file, unless more is known.
const DAMAGED: &str = "the file is damaged, or no file of this kind: copy or download it again";

/// What to do about a file that does not match, unless more is known.
const OTHER: &str = "this file was made for something else: take one that fits";

/// How many characters of a value a message quotes, and how many of them are its last.
const MOST_QUOTED: usize = 400;
const LAST_QUOTED: usize = 100;

/// `text` without its middle, if it is longer than anyone reads: files may hold anything.
pub fn shortened(text: String) -> String {
    let length = text.chars().count();
    if length <= MOST_QUOTED {
        return text;
    }
    let start: String = text.chars().take(MOST_QUOTED - LAST_QUOTED).collect();
    let end: String = text.chars().skip(length - LAST_QUOTED).collect();
    format!("{start} [...] {end}")
}

impl Error {
    /// A lower-case fact or instruction that helps to get past the error.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Error::Malformed { hint, .. } => hint.as_deref().or(Some(DAMAGED)),
            Error::Mismatch { hint, .. } => hint.as_deref().or(Some(OTHER)),
            Error::NotAModel { hint, .. }
            | Error::NotFinite { hint, .. }
            | Error::Option { hint, .. }
            | Error::Exists { hint, .. }
            | Error::NoSpace { hint, .. }
            | Error::Device { hint, .. }
            | Error::OutOfMemory { hint, .. }
            | Error::OverBudget { hint, .. } => hint.as_deref(),
            _ => None,
        }
    }

    /// An [`Error::Io`].
    pub fn io(action: &'static str, path: &Path, source: io::Error) -> Error {
        Error::Io { action, path: path.to_owned(), source }
    }

    /// An [`Error::Malformed`] without a hint.
    pub fn malformed(
        path: &Path,
        at: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Error {
        let (at, expected, found) = (shortened(at.into()), shortened(expected.into()), shortened(found.into()));
        Error::Malformed { path: path.to_owned(), at, expected, found, hint: None }
    }

    /// An [`Error::Mismatch`] without a hint.
    pub fn mismatch(
        path: &Path,
        at: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Error {
        Error::Mismatch {
            path: path.to_owned(),
            at: shortened(at.into()),
            expected: shortened(expected.into()),
            found: shortened(found.into()),
            hint: None,
        }
    }

    /// An [`Error::Option`] without a hint.
    pub fn option(option: &'static str, expected: impl Into<String>, found: impl Into<String>) -> Error {
        Error::Option { option, expected: shortened(expected.into()), found: shortened(found.into()), hint: None }
    }

    /// What writing an output returned. It is no `From`, so that `?` in a closure needs no type.
    pub fn output(error: OutputError) -> Error {
        match error {
            OutputError::Exists { path } => Error::Exists { path, hint: Some("--overwrite replaces it".into()) },
            OutputError::Io { action, path, source } => Error::Io { action, path, source },
            other => Error::graph("output", other.to_string()),
        }
    }

    /// The system starts no thread, for want of memory or because of a limit.
    pub fn no_thread() -> Error {
        let hint = "take fewer threads, close other programs, or raise the limits of processes and of memory: \
                    `ulimit -u` and `ulimit -v` show them";
        Error::OutOfMemory { what: "a thread".into(), bytes: 0, hint: Some(hint.into()) }
    }

    /// An [`Error::Graph`].
    pub fn graph(op: &'static str, message: impl Into<String>) -> Error {
        Error::Graph { op, message: message.into() }
    }

    /// The same error with `text` as its hint, where its kind carries one.
    #[must_use]
    pub fn with_hint(mut self, text: impl Into<String>) -> Error {
        let text = text.into();
        if let Error::Malformed { hint, .. } = &mut self {
            *hint = Some(text.into_boxed_str());
        } else if let Error::NotAModel { hint, .. }
        | Error::Mismatch { hint, .. }
        | Error::NotFinite { hint, .. }
        | Error::Option { hint, .. }
        | Error::Exists { hint, .. }
        | Error::NoSpace { hint, .. }
        | Error::Device { hint, .. }
        | Error::OutOfMemory { hint, .. }
        | Error::OverBudget { hint, .. } = &mut self
        {
            *hint = Some(text);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_any_length_make_short_messages() {
        let long = "\u{e4}".repeat(5000);
        let path = Path::new("model.gguf");
        for error in [
            Error::malformed(path, long.clone(), "a name", long.clone()),
            Error::mismatch(path, "_class_name", "FluxPipeline", long.clone()),
            Error::option("--sampler", "euler", long.clone()),
        ] {
            let message = error.to_string();
            assert!(message.chars().count() < 1000 && message.contains(" [...] "), "{message}");
        }
        assert_eq!(Error::option("--x", "a", "b").to_string(), "--x: expected a, found b");
    }
}
