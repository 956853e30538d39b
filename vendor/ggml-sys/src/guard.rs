//! Turning ggml's failed assertions and C++ exceptions into values.
//!
//! # How it works
//!
//! [`guard`] calls C++ (`ph_guard` in shim/shim.cpp), which calls back into a Rust trampoline inside `try`/`catch`; the
//! trampoline runs the closure, and the closure calls ggml. A failed `GGML_ASSERT` reaches ggml's abort callback, which
//! throws an exception of a private type if this thread is inside a guard. That exception, or one that a backend
//! throws, unwinds ggml's frames, the closure and the trampoline, and ends in `ph_guard`'s handler.
//!
//! # Why it is sound
//!
//! - ggml's C files are compiled with `-fexceptions`, and every binding has the ABI `C-unwind`, so each frame on
//!   the way may be unwound. Destructors in the Rust frames run.
//! - A foreign exception never meets [`std::panic::catch_unwind`], whose behaviour it would leave unspecified: there
//!   is none between ggml and the handler.
//! - A Rust panic never meets the C++ handler, since the language gives no guarantee for a panic that foreign code catches
//!   or rethrows: [`StopPanic`] ends the process first. A closure is therefore a few calls of ggml, with everything that
//!   can panic done before or after, just as the body of an `extern "C"` function.
//! - With `panic = "abort"` foreign exceptions abort as well, so this crate refuses to be compiled that way.
//!
//! What an unwound ggml function was working on is another matter: see the crate's page.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;

#[cfg(not(panic = "unwind"))]
compile_error!("pinhole-ggml-sys catches C++ exceptions, which needs `panic = \"unwind\"`");

unsafe extern "C-unwind" {
    fn ph_guard(
        call: unsafe extern "C-unwind" fn(*mut c_void),
        data: *mut c_void,
        assertions: c_int,
        message: *mut c_char,
        size: usize,
    ) -> c_int;
    safe fn ph_exceptions_in_flight() -> c_int;
}

/// What ended a guarded call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaughtKind {
    /// `ggml_abort`: a failed `GGML_ASSERT`, or a small allocation inside ggml that failed.
    Assertion,
    /// `std::bad_alloc`.
    OutOfMemory,
    /// Another `std::exception`.
    Exception,
    /// A C++ exception that is no `std::exception`.
    Unknown,
}

/// A failed assertion or C++ exception that [`guard`] or [`guard_compute`] caught.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caught {
    /// What it was.
    pub kind: CaughtKind,
    /// Its own text: for an assertion `file:line: GGML_ASSERT(condition) failed`, for an exception what it says of itself.
    pub message: String,
}

impl Caught {
    fn new(status: c_int, message: &Message) -> Self {
        let kind = match status {
            1 => CaughtKind::Assertion,
            2 => CaughtKind::OutOfMemory,
            3 => CaughtKind::Exception,
            _ => CaughtKind::Unknown,
        };
        Caught { kind, message: message.text() }
    }
}

impl fmt::Display for Caught {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            CaughtKind::Assertion => "assertion failed in ggml",
            CaughtKind::OutOfMemory => "out of memory in ggml",
            CaughtKind::Exception | CaughtKind::Unknown => "exception in ggml",
        };
        write!(f, "{what}: {}", self.message)
    }
}

impl std::error::Error for Caught {}

/// Runs `f`, and returns what it returns, or the failed assertion or C++ exception that ended it.
///
/// For everything but computing a graph: there use [`guard_compute`]. Guards may nest; the innermost catches. A guard
/// covers the thread that it is on.
///
/// # Errors
///
/// [`Caught`], after the destructors of `f`'s own values have run.
///
/// # Aborts
///
/// When `f` panics, once the panic's message is printed.
pub fn guard<R>(f: impl FnOnce() -> R) -> Result<R, Caught> {
    run(f, true)
}

/// As [`guard`], but only C++ exceptions are caught: a failed assertion prints its message and ends the process.
///
/// For calls that compute a graph. The CPU backend's worker threads wait at barriers for the calling thread and read
/// what lies on its stack; unwinding it would leave them waiting for ever, on memory that is gone.
///
/// # Errors
///
/// [`Caught`], never of kind [`CaughtKind::Assertion`].
///
/// # Aborts
///
/// When `f` panics, and when an assertion fails.
pub fn guard_compute<R>(f: impl FnOnce() -> R) -> Result<R, Caught> {
    run(f, false)
}

/// The closure on its way in and its result on its way out.
struct Call<F, R> {
    f: Option<F>,
    result: Option<R>,
}

fn run<F: FnOnce() -> R, R>(f: F, assertions: bool) -> Result<R, Caught> {
    let mut call = Call { f: Some(f), result: None };
    let mut message = Message::new();
    // SAFETY: `trampoline::<F, R>` gets the `Call<F, R>` that it expects, which outlives the call; `message` is writable
    // for its size. What may unwind out of here is only the thread's cancellation.
    let status = unsafe {
        ph_guard(
            trampoline::<F, R>,
            (&raw mut call).cast(),
            c_int::from(assertions),
            message.0.as_mut_ptr().cast(),
            message.0.len(),
        )
    };
    // Status 0 says that the trampoline returned, and then it has stored a result.
    call.result.ok_or_else(|| Caught::new(status, &message))
}

/// # Safety
///
/// `data` points to a `Call<F, R>` that nothing else uses meanwhile.
unsafe extern "C-unwind" fn trampoline<F: FnOnce() -> R, R>(data: *mut c_void) {
    // SAFETY: the caller passes a `Call<F, R>` and keeps off it until this returns.
    let call = unsafe { &mut *data.cast::<Call<F, R>>() };
    let stop = StopPanic { in_flight: ph_exceptions_in_flight() };
    call.result = call.f.take().map(|f| f());
    std::mem::forget(stop);
}

/// Dropped only when the trampoline is unwound. C++ exceptions may pass, and a panic may not.
struct StopPanic {
    /// C++ exceptions in flight when the closure began, as when a destructor calls [`guard`].
    in_flight: c_int,
}

impl Drop for StopPanic {
    fn drop(&mut self) {
        // A thread that was panicking before still may have a C++ exception pass here: it is the one in flight.
        if std::thread::panicking() && ph_exceptions_in_flight() == self.in_flight {
            std::process::abort();
        }
    }
}

/// Room for ggml's longest message (`ggml_abort` has 2048 bytes).
struct Message([u8; 2048]);

impl Message {
    fn new() -> Self {
        Message([0; 2048])
    }

    fn text(&self) -> String {
        let text = CStr::from_bytes_until_nul(&self.0).unwrap_or_default();
        text.to_string_lossy().into_owned()
    }
}
