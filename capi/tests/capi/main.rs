//! The C library as C sees it: its header, its exports, and programs in C and Python that use an installed copy.
//!
//! `.ci/capi` runs these once more, with every failed allocation, under sanitizers and under Valgrind, by environment variables:
//! - `PINHOLE_C_EVERY_POINT`: fails every allocation, and not every seventh;
//! - `PINHOLE_C_FLAGS`: more flags for the C compiler, `-fsanitize=address,undefined`;
//! - `PINHOLE_C_RUNNER`: what programs run under, `valgrind --leak-check=full ...`. Tests that need no memory checker, or would
//!   take hours under one, are left out then, and say so.

#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout, reason = "tests")]

mod exports;
mod header;
mod hostile;
mod layout;
mod parity;
mod programs;
mod rig;
#[path = "../../../tests/support/mod.rs"]
mod support;
#[cfg(unix)]
use support::hostile as suite;
