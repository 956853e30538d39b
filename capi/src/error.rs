//! The error object that C programs hold, and the names of the status codes.

use std::ffi::{CString, c_char};

pub use crate::failure::*;
use crate::{handle, panics, text};

/// `pinhole_error`
#[derive(Debug)]
pub struct Error {
    code: i32,
    message: CString,
    hint: CString,
}

impl Error {
    pub(crate) fn new(failure: Failure) -> Error {
        let Failure { code, message, hint } = failure;
        Error { code, message: text::owned(message), hint: text::owned(hint) }
    }

    #[cfg(test)]
    pub(crate) fn code(&self) -> i32 {
        self.code
    }

    #[cfg(test)]
    pub(crate) fn message(&self) -> &str {
        self.message.to_str().unwrap_or_default()
    }
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn pinhole_status_name(status: i32) -> *const c_char {
    let found = CODES.iter().find(|(code, _)| *code == status);
    found.map_or(c"unknown", |(_, name)| name).as_ptr()
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_error_code(error: *const Error) -> i32 {
    // SAFETY: the header's contract.
    unsafe { error.as_ref() }.map_or(OK, |error| error.code)
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_error_message(error: *const Error) -> *const c_char {
    // SAFETY: the header's contract.
    unsafe { error.as_ref() }.map_or(c"", |error| &error.message).as_ptr()
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_error_hint(error: *const Error) -> *const c_char {
    // SAFETY: the header's contract.
    unsafe { error.as_ref() }.map_or(c"", |error| &error.hint).as_ptr()
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_error_free(error: *mut Error) {
    // SAFETY: the header's contract.
    panics::quietly(|| unsafe { handle::free(error) });
}
