//! Why a call failed: the status codes, and a failure on its way to C. Knows no pointer and no handle.

use std::ffi::CStr;
use std::path::Path;

use pinhole_quant::output::OutputError;

/// Done.
pub const OK: i32 = 0;

/// The codes with their names, as the header has them. A number is never used for anything else.
macro_rules! codes {
    ($($name:ident = $code:literal, $text:literal;)*) => {
        $(#[doc = concat!("`", $text, "`")] pub const $name: i32 = $code;)*

        /// Every code with its name.
        pub const CODES: &[(i32, &CStr)] = &[(OK, c"PINHOLE_OK"), $(($name, {
            match CStr::from_bytes_with_nul(concat!($text, "\0").as_bytes()) {
                Ok(text) => text,
                Err(_) => panic!("a name with a NUL"),
            }
        })),*];
    };
}

codes! {
    E_ARGUMENT = 1, "PINHOLE_E_ARGUMENT";
    E_OPTION = 2, "PINHOLE_E_OPTION";
    E_IO = 3, "PINHOLE_E_IO";
    E_MALFORMED = 4, "PINHOLE_E_MALFORMED";
    E_NOT_A_MODEL = 5, "PINHOLE_E_NOT_A_MODEL";
    E_MISMATCH = 6, "PINHOLE_E_MISMATCH";
    E_NOT_FINITE = 7, "PINHOLE_E_NOT_FINITE";
    E_EXISTS = 8, "PINHOLE_E_EXISTS";
    E_NO_SPACE = 9, "PINHOLE_E_NO_SPACE";
    E_DEVICE = 10, "PINHOLE_E_DEVICE";
    E_OUT_OF_MEMORY = 11, "PINHOLE_E_OUT_OF_MEMORY";
    E_OVER_BUDGET = 12, "PINHOLE_E_OVER_BUDGET";
    E_INTERNAL = 13, "PINHOLE_E_INTERNAL";
    E_CANCELLED = 14, "PINHOLE_E_CANCELLED";
    E_PANIC = 15, "PINHOLE_E_PANIC";
    E_BUSY = 16, "PINHOLE_E_BUSY";
}

/// Why a call failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: i32,
    pub(crate) message: String,
    pub(crate) hint: String,
}

impl Failure {
    fn new(code: i32, message: impl Into<String>, hint: impl Into<String>) -> Failure {
        Failure { code, message: message.into(), hint: hint.into() }
    }

    /// A wrong call.
    pub(crate) fn argument(message: impl Into<String>, hint: impl Into<String>) -> Failure {
        Failure::new(E_ARGUMENT, message, hint)
    }

    /// NULL where that is not allowed.
    pub(crate) fn null(name: &str) -> Failure {
        Failure::argument(format!("{name}: expected a pointer, found NULL"), "")
    }

    pub(crate) fn busy() -> Failure {
        let hint =
            "a session takes one call at a time, and none from its own callbacks: make one session for each thread";
        Failure::new(E_BUSY, "session: in use by another call", hint)
    }

    pub(crate) fn panic(said: &str) -> Failure {
        let hint = "this is a bug in pinhole: please report it with this message";
        Failure::new(E_PANIC, format!("pinhole panicked: {said}"), hint)
    }

    pub(crate) fn poisoned() -> Failure {
        Failure::new(E_PANIC, "session: an earlier call panicked in it", "free the session and make another")
    }

    pub(crate) fn out_of_memory(what: &str, bytes: usize) -> Failure {
        pinhole::Error::OutOfMemory { what: what.to_owned(), bytes, hint: None }.into()
    }

    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Failure {
        pinhole::Error::io(action, path, source).into()
    }
}

impl From<pinhole::Error> for Failure {
    fn from(error: pinhole::Error) -> Failure {
        use pinhole::Error as E;
        let code = match &error {
            E::Io { .. } => E_IO,
            E::Malformed { .. } => E_MALFORMED,
            E::NotAModel { .. } => E_NOT_A_MODEL,
            E::Mismatch { .. } => E_MISMATCH,
            E::NotFinite { .. } => E_NOT_FINITE,
            E::Option { .. } => E_OPTION,
            E::Exists { .. } => E_EXISTS,
            E::NoSpace { .. } => E_NO_SPACE,
            E::Device { .. } => E_DEVICE,
            E::OutOfMemory { .. } => E_OUT_OF_MEMORY,
            E::OverBudget { .. } => E_OVER_BUDGET,
            E::Cancelled => E_CANCELLED,
            _ => E_INTERNAL,
        };
        Failure::new(code, error.to_string(), error.hint().unwrap_or_default())
    }
}

impl From<OutputError> for Failure {
    fn from(error: OutputError) -> Failure {
        match error {
            OutputError::Io { action, path, source } => Failure::io(action, &path, source),
            OutputError::Exists { path } => pinhole::Error::Exists { path, hint: None }.into(),
            other => Failure::new(E_INTERNAL, other.to_string(), ""),
        }
    }
}
