//! The way in and out: every function that can fail runs inside [`call`].

use std::any::Any;
use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use pinhole::ggml::log::{self, Level};

use crate::error::{Error, Failure, OK};

thread_local! {
    /// Where this thread's last panic was, and what it said.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs `work` and returns its status. Where it fails, `error` is given what happened, unless it is NULL.
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

/// Runs `work`; a panic becomes a failure.
pub(crate) fn catch<R>(work: impl FnOnce() -> R) -> Result<R, Failure> {
    hush_panics();
    // Whatever `work` can leave half done is given up: a session by being poisoned, everything else is made by the call.
    panic::catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        let said = PANIC.take().unwrap_or_else(|| words(payload.as_ref()));
        // Dropping it could panic again.
        std::mem::forget(payload);
        Failure::panic(&said)
    })
}

/// Runs what returns nothing and cannot fail; a panic is lost.
pub(crate) fn quietly(work: impl FnOnce()) {
    let _ = catch(work);
}

/// Panics print to stderr otherwise. The hook belongs to this library's own copy of Rust's standard library: it is none of the
/// host's settings.
fn hush_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if cfg!(test) {
                // Or a test that fails could not say why.
                before(info);
            }
            let place = info.location().map_or(String::new(), |at| format!(" ({}:{})", at.file(), at.line()));
            let said = words(info.payload()) + &place;
            log::say(Level::Error, &format!("panic: {said}"));
            PANIC.set(Some(said));
        }));
    });
}

fn words(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("of an unknown kind").to_owned()
}
