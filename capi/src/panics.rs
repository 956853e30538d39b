//! Where panics end: each becomes a failure, and its message goes to the log instead of stderr.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use pinhole::ggml::log::{self, Level};

use crate::failure::Failure;

thread_local! {
    /// Where this thread's last panic was, and what it said.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
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

/// Runs work that returns nothing and cannot fail; a panic in it is lost.
pub(crate) fn quietly(work: impl FnOnce()) {
    let _ = catch(work);
}

/// Without this hook, panics print to stderr. The hook is set in this library's own copy of Rust's standard library, so no
/// setting of the host changes.
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
