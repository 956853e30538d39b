//! What ggml and its drivers say on the way. It goes to stderr by default, where a library prints nothing of its own accord:
//! here it is dropped, or handed to the function that asked for it. Failures reach the caller as errors either way.

use std::ffi::{CStr, c_char, c_void};
use std::sync::{Arc, Once, PoisonError, RwLock};

use ggml_sys as sys;

/// How serious a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For those who look for a fault.
    Debug,
    /// What happens.
    Info,
    /// What may be wrong.
    Warning,
    /// What failed.
    Error,
}

/// Who hears of messages: on any thread, on several at once.
pub type Hook = Arc<dyn Fn(Level, &str) + Send + Sync>;

static HOOK: RwLock<Option<Hook>> = RwLock::new(None);

/// From now on `hook` hears of every message in this process; no one does where there is none. The hook before has returned
/// from its last message when this returns, and must not call this itself.
pub fn set_hook(hook: Option<Hook>) {
    *HOOK.write().unwrap_or_else(PoisonError::into_inner) = hook;
}

/// Tells the hook, where there is one.
pub fn say(level: Level, message: &str) {
    // Held while the hook runs, so that it can be told apart when it is no longer called.
    if let Some(hook) = &*HOOK.read().unwrap_or_else(PoisonError::into_inner) {
        hook(level, message);
    }
}

/// Makes ggml tell the hook instead of writing to stderr.
pub(super) fn take_over() {
    static ONCE: Once = Once::new();
    // SAFETY: the callback has ggml's signature, never unwinds and uses no user data.
    ONCE.call_once(|| unsafe { sys::ggml_log_set(Some(heard), std::ptr::null_mut()) });
}

unsafe extern "C-unwind" fn heard(level: sys::ggml_log_level, text: *const c_char, _user: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: ggml passes a NUL-terminated string that lives through the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let level = match level {
        sys::GGML_LOG_LEVEL_ERROR => Level::Error,
        sys::GGML_LOG_LEVEL_WARN => Level::Warning,
        sys::GGML_LOG_LEVEL_INFO => Level::Info,
        _ => Level::Debug,
    };
    let text = text.trim_end();
    // A panic of the hook must not reach ggml, nor what may be on its way through it.
    let said = std::panic::catch_unwind(|| say(level, text));
    drop(said);
}
