//! How a command fails: a message, a hint where there is one, an exit code.

use std::fmt;
use std::io;
use std::process::ExitCode;

use pinhole::Error;
use pinhole_quant::output::OutputError;

/// Something failed.
pub(super) const FAILED: u8 = 1;
/// An option has a value that cannot work; clap's code for arguments that it refuses.
const USAGE: u8 = 2;
/// What a shell gives for a process that SIGINT ended: 128 + 2.
pub(super) const INTERRUPTED: u8 = 130;

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub(super) enum Failure {
    /// The library refused.
    Library(Error),
    /// A model was not fetched.
    Hub(pinhole_hub::Error),
    /// What the command was asked to check does not hold.
    Check(String),
    /// Another program of pinhole's does not start.
    Program {
        /// Its name.
        name: &'static str,
        /// The system's own error.
        source: io::Error,
    },
    /// stdout does not take what is written to it.
    Stdout(io::Error),
}

impl Failure {
    /// The code that the process ends with.
    pub(super) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Failure::Library(Error::Cancelled) | Failure::Hub(pinhole_hub::Error::Cancelled) => INTERRUPTED,
            Failure::Library(Error::Option { .. }) | Failure::Hub(pinhole_hub::Error::Name { .. }) => USAGE,
            // The reader of stdout has seen enough, as `head` has.
            Failure::Stdout(error) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
            _ => FAILED,
        })
    }

    /// Whether there is nothing to say about it.
    pub(super) fn is_silent(&self) -> bool {
        matches!(self, Failure::Stdout(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// What to do about it.
    pub(super) fn hint(&self) -> Option<&str> {
        match self {
            Failure::Library(error) => error.hint(),
            Failure::Hub(error) => error.hint(),
            Failure::Program { source, .. } if source.kind() == io::ErrorKind::NotFound => Some(
                "it is a program of its own: put it beside pinhole or into PATH; `cargo build --release --workspace` makes both",
            ),
            _ => None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Library(Error::Cancelled) | Failure::Hub(pinhole_hub::Error::Cancelled) => {
                f.write_str("interrupted")
            }
            Failure::Library(error) => error.fmt(f),
            Failure::Hub(error) => error.fmt(f),
            Failure::Check(text) => f.write_str(text),
            Failure::Program { name, source } => write!(f, "cannot run {name}: {source}"),
            Failure::Stdout(error) => write!(f, "cannot write to stdout: {error}"),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Library(error)
    }
}

impl From<pinhole_hub::Error> for Failure {
    fn from(error: pinhole_hub::Error) -> Failure {
        Failure::Hub(error)
    }
}

impl From<OutputError> for Failure {
    fn from(error: OutputError) -> Failure {
        Failure::Library(Error::output(error))
    }
}
