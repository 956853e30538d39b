//! Raw bindings to ggml 0.26.0 with its CPU backend, compiled from source, and a [`guard`] around calls that may abort.
//!
//! Sources come from a Cargo package that is fetched and never built; `build.rs` says how they are compiled, and for
//! which processor. The bindings are bindgen's and committed. Every function has the ABI `C-unwind`, because an assertion
//! or a C++ exception may unwind through it. Constants of C enums are plain constants.
//!
//! # What can still end the process
//!
//! A failed assertion calls `ggml_abort`, and [`guard`] makes that a value. This is what it does not reach, read from the
//! source of ggml 0.26.0:
//!
//! - **Assertions while a CPU graph is computed** (`ggml_backend_graph_compute`, `ggml_graph_compute` and what calls them),
//!   on the calling thread and on ggml's worker threads. The workers wait at barriers for one another, so none may
//!   be unwound; a wrapper checks shape, type and contiguity before it builds a node, so that there is nothing to
//!   assert. With [`guard_compute`] such a failure prints its message and aborts. That includes a worker thread that
//!   cannot be started: a pool made beforehand (`ggml_threadpool_new`) under [`guard`] takes that out of computing.
//! - **Assertions outside any guard**: message to stderr, then `abort`. Once a guard has run, no debugger is forked and no
//!   backtrace printed.
//! - **Plain memory errors**: ggml trusts its pointers: a null or dangling tensor, buffer or context, a file that is
//!   truncated under its map (`SIGBUS`). Its plain C `assert`s are compiled out, as in any release build of it.
//! - **Memory exhausted** where the source does not look at what `malloc` returns (the grids in
//!   `ggml_quantize_init` for IQ formats, log messages over 128 bytes), or where the system hands out memory that it
//!   does not have and kills later.
//! - **Stack overflow.** `ggml_build_forward_expand` recurses over a node's sources, as deep as the graph is long.
//! - **A panic in a guarded closure**, by intent (see [`guard`]).
//!
//! # What is left behind by a call that was caught
//!
//! C has no destructors, so the call's own allocations leak. Beyond that:
//!
//! - A context holds the tensors made before, and its owner frees it as ever.
//! - A graph whose expansion was caught (`ggml_build_forward_expand`) is half visited: use another.
//! - `ggml_init` leaks the few bytes of the context it could not fill.
//! - A backend whose **compute** was caught (the CPU backend: `std::bad_alloc` for its work buffer, which it has freed and not
//!   forgotten) must neither be used nor freed again: leak it.
//! - An allocator (`ggml_gallocr`) whose reserve was caught may have freed a buffer it still names: leak it.
//! - `ggml_threadpool_new` that could not start a thread has ended those it started, and freed the pool.
//! - ggml's one global lock is held only over code that asserts nothing, except for the IQ grids above.

pub mod account;
pub mod cuda;
mod guard;
pub mod processor;

#[allow(
    missing_docs,
    missing_debug_implementations,
    non_camel_case_types,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    rustdoc::all
)]
mod bindings;

pub use bindings::*;
pub use guard::{Caught, CaughtKind, guard, guard_compute};

/// What the tests of this crate call in C.
#[doc(hidden)]
pub mod testing {
    use std::ffi::c_int;

    unsafe extern "C-unwind" {
        /// Throws `std::runtime_error` (0), `std::bad_alloc` (1) or an `int` (2).
        pub safe fn ph_test_throw(kind: c_int);
        /// Fails a `GGML_ASSERT`.
        pub safe fn ph_test_assert();
        /// Writes at most `count` sizes and offsets as ggml's compiler sees them, and returns how many there are.
        ///
        /// # Safety
        ///
        /// `values` is writable for `count` numbers.
        pub fn ph_layout(values: *mut usize, count: usize) -> usize;
    }
}
