//! The one error type of the library.

use std::fmt::Display;
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
    #[error("cannot {action} {}: {source}", brief(path.display()))]
    Io {
        /// A verb: `open`, `read`, `write`, ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's own error.
        source: io::Error,
    },
    /// A file breaks the rules of its own format.
    #[error("{}: {}: expected {}, found {}", brief(path.display()), brief(at), brief(expected), brief(found))]
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
    #[error("{} is no model that pinhole knows: {}", brief(path.display()), brief(found))]
    NotAModel {
        /// The file or directory.
        path: PathBuf,
        /// What was recognised there.
        found: String,
        /// What to do.
        hint: Option<String>,
    },
    /// A well-formed file holds weights or settings that do not fit the model.
    #[error("{}: {}: expected {}, found {}", brief(path.display()), brief(at), brief(expected), brief(found))]
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
    #[error("{} holds a value that is not finite", brief(at))]
    NotFinite {
        /// The tensor, with its file where it has one.
        at: String,
        /// What to do.
        hint: Option<String>,
    },
    /// An option has a value that cannot work.
    #[error("{option}: expected {}, found {}", brief(expected), brief(found))]
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
    #[error("{} exists already", brief(path.display()))]
    Exists {
        /// The output.
        path: PathBuf,
        /// What to do.
        hint: Option<String>,
    },
    /// A disk has no room for an output.
    #[error("{} needs {needed} bytes, and its disk has {available} left", brief(path.display()))]
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
    /// A film broke off before its last frame.
    #[error("cannot write {}: {source}: {made} of {frames} frames were made", brief(path.display()))]
    Unfinished {
        /// The film.
        path: PathBuf,
        /// How many frames were made before.
        made: usize,
        /// How many were asked for.
        frames: usize,
        /// The system's own error.
        source: io::Error,
        /// What became of them.
        hint: Option<String>,
    },
    /// A device is unknown, or failed.
    #[error("device {}: {}", brief(device), brief(message))]
    Device {
        /// The device's name.
        device: String,
        /// What happened.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// An allocation failed.
    #[error("cannot allocate {} for {}", memory(*bytes), brief(what))]
    OutOfMemory {
        /// What the memory was for.
        what: String,
        /// How much was asked for; 0 if that is not known.
        bytes: usize,
        /// What to do.
        hint: Option<String>,
    },
    /// A request takes more device memory than it may.
    #[error("needs {} for {}; given {}", Size(*needed as u64), brief(what), Size(*given as u64))]
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
    #[error("{op}: {}", brief(message))]
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

/// How many characters of a value or a path a message quotes, and how many of them are its last.
const MOST_QUOTED: usize = 400;
const LAST_QUOTED: usize = 100;

/// How many characters a hint has at most: it may be a list of names.
const MOST_OF_HINT: usize = 900;

/// `text` without its middle, and how many bytes it has, if it is longer than anyone reads: files and options may hold anything.
pub fn shortened(text: String) -> String {
    shortened_to(MOST_QUOTED, text)
}

fn shortened_to(most: usize, text: String) -> String {
    let length = text.chars().count();
    if length <= most {
        return text;
    }
    let start: String = text.chars().take(most - LAST_QUOTED).collect();
    let end: String = text.chars().skip(length - LAST_QUOTED).collect();
    format!("{start} [...] {end} ({} bytes)", text.len())
}

/// What a message has of a value or a path.
fn brief(text: impl Display) -> String {
    shortened(text.to_string())
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
            | Error::Unfinished { hint, .. }
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
        Error::Malformed {
            path: path.to_owned(),
            at: at.into(),
            expected: expected.into(),
            found: found.into(),
            hint: None,
        }
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
            at: at.into(),
            expected: expected.into(),
            found: found.into(),
            hint: None,
        }
    }

    /// An [`Error::Option`] without a hint.
    pub fn option(option: &'static str, expected: impl Into<String>, found: impl Into<String>) -> Error {
        Error::Option { option, expected: expected.into(), found: found.into(), hint: None }
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

    /// The same error. If a device failed, it says in which of a request's `steps`.
    #[must_use]
    pub(crate) fn in_step(mut self, step: usize, steps: usize) -> Error {
        if let Error::Device { message, .. } = &mut self {
            *message += &format!(" in step {step} of {steps}");
        }
        self
    }

    /// The same error with `text` as its hint, where its kind carries one.
    #[must_use]
    pub fn with_hint(mut self, text: impl Into<String>) -> Error {
        let text = shortened_to(MOST_OF_HINT, text.into());
        if let Error::Malformed { hint, .. } = &mut self {
            *hint = Some(text.into_boxed_str());
        } else if let Error::NotAModel { hint, .. }
        | Error::Mismatch { hint, .. }
        | Error::NotFinite { hint, .. }
        | Error::Option { hint, .. }
        | Error::Exists { hint, .. }
        | Error::NoSpace { hint, .. }
        | Error::Unfinished { hint, .. }
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
    fn values_and_paths_of_any_length_make_short_messages() {
        let long = "\u{e4}".repeat(5000);
        let (short_path, long_path) = (Path::new("model.gguf"), Path::new(&long));
        let not_found = || io::Error::from(io::ErrorKind::NotFound);
        for error in [
            Error::malformed(short_path, long.clone(), "a name", long.clone()),
            Error::malformed(long_path, "header", "a name", "none"),
            Error::mismatch(short_path, "_class_name", "FluxPipeline", long.clone()),
            Error::option("--sampler", "euler", long.clone()).with_hint(long.clone()),
            Error::Option { option: "--lora", expected: long.clone(), found: long.clone(), hint: None },
            Error::NotAModel { path: long_path.to_owned(), found: long.clone(), hint: None },
            Error::NotFinite { at: long.clone(), hint: None },
            Error::io("open", long_path, not_found()),
            Error::output(OutputError::Io { action: "create", path: long_path.to_owned(), source: not_found() }),
            Error::output(OutputError::Exists { path: long_path.to_owned() }),
            Error::NoSpace { path: long_path.to_owned(), needed: 1, available: 0, hint: None },
            Error::Device { device: long.clone(), message: long.clone(), hint: None },
            Error::OutOfMemory { what: long.clone(), bytes: 0, hint: None },
            Error::OverBudget { what: long.clone(), needed: 1, given: 0, hint: None },
            Error::graph("add", long.clone()),
        ] {
            let message = error.to_string();
            assert!(message.chars().count() < 1000 && message.contains(" [...] "), "{message}");
            assert!(message.contains("\u{e4} (10000 bytes)"), "{message}");
            assert!(error.hint().is_none_or(|hint| hint.chars().count() < 1000));
        }
        assert_eq!(Error::option("--x", "a", "b").to_string(), "--x: expected a, found b");
    }
}
