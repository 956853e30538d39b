//! The log hook.

use std::ffi::{c_char, c_void};
use std::sync::Arc;

use pinhole::ggml::log::{self, Level};

use crate::{entry, text};

/// `pinhole_log_fn`
pub type LogFn = Option<unsafe extern "C" fn(i32, *const c_char, *mut c_void)>;

/// The header's numbers.
fn number(level: Level) -> i32 {
    match level {
        Level::Debug => 1,
        Level::Info => 2,
        Level::Warning => 3,
        Level::Error => 4,
    }
}

/// What a callback is given back.
struct UserData(*mut c_void);

// SAFETY: it is only handed to the callback, which the header says may be called from any thread.
unsafe impl Send for UserData {}
// SAFETY: as above, from several at once.
unsafe impl Sync for UserData {}

impl UserData {
    fn get(&self) -> *mut c_void {
        self.0
    }
}

/// See the header.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pinhole_set_log(level: i32, log: LogFn, user_data: *mut c_void) {
    let user_data = UserData(user_data);
    let hook = log.map(|log| -> log::Hook {
        Arc::new(move |of, message: &str| {
            if number(of) >= level {
                let message = text::owned(message.to_owned());
                // SAFETY: the header's contract for the callback; the text lives through the call.
                unsafe { log(number(of), message.as_ptr(), user_data.get()) };
            }
        })
    });
    entry::quietly(|| log::set_hook(hook));
}
