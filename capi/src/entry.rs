//! The way in and out: every function that can fail runs inside [`call`].

use crate::error::{Error, Failure, OK};
pub(crate) use crate::panics::{catch, quietly};

/// Runs `work` and returns its status. If it fails and `error` is not NULL, `error` is set to what happened.
///
/// # Safety
/// The header's contract for `error`.
pub(crate) unsafe fn call(error: *mut *mut Error, work: impl FnOnce() -> Result<(), Failure>) -> i32 {
    if !error.is_null() {
        // SAFETY: not NULL, and the header's contract makes it writable.
        unsafe { *error = std::ptr::null_mut() };
    }
    let Err(failure) = catch(work).unwrap_or_else(Err) else { return OK };
    let code = failure.code;
    if !error.is_null() {
        // SAFETY: as above.
        unsafe { *error = Box::into_raw(Box::new(Error::new(failure))) };
    }
    code
}
