//! Films, written and read: each kind is read back by something else than what wrote it. With ffmpeg, if this machine has it; where
//! `PINHOLE_FFMPEG` is `required`, as in CI, it must.

#![allow(clippy::print_stdout, clippy::print_stderr, clippy::unwrap_used)]

mod decoders;
mod frames;
mod generating;
mod kinds;
mod reading;
#[path = "../support/mod.rs"]
mod support;
mod writing;
