//! The C library. `include/pinhole.h` is its documentation and its contract; each file here implements the functions of one
//! handle, and the private ones hold what they share.
//!
//! # What every entry point rests on
//!
//! A C caller promises what the header says: pointers are NULL or point to what their type says, alive for the call; handles
//! came from this library and were not freed. `SAFETY` notes call that *the header's contract*. Everything else is checked:
//! NULL, struct sizes, UTF-8, ranges, and whether a session is in use.
//!
//! Panics end in panics.rs, where they become `PINHOLE_E_PANIC`; none unwinds into C.

// Each function's contract is in the header, and the same for all: see above.
#![allow(clippy::missing_safety_doc)]

pub mod buffer;
pub mod cancel;
pub mod control;
pub mod convert;
pub mod device;
pub mod embeddings;
pub mod error;
pub mod generate;
pub mod image;
pub mod input;
pub mod log;
pub mod model;
pub mod plan;
pub mod request;
pub mod result;
pub mod session;
pub mod upscale;
pub mod version;

mod entry;
mod failure;
mod handle;
mod made;
mod options;
mod panics;
mod progress;
mod text;

pub use progress::Progress;
