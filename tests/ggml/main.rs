//! The wrapper over ggml: right numbers, no abort whatever is asked of it, and everything given back.
//!
//! A failed assertion of ggml's while it computes ends the process, and with it this test: that these tests end at all
//! is part of what they show.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod array;
mod attention;
mod convolve;
mod elementwise;
mod memory;
mod misuse;
mod pictures;
mod products;
mod recovery;
mod rig;
mod rpc;
mod views;
