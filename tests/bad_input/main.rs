//! Whole models and requests that are wrong in one way each: what the user is told, and that nothing is left behind.
//!
//! Every message is printed: `cargo test --test bad_input -- --nocapture` shows what people read.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod bundles;
mod configs;
mod conversion;
mod directories;
mod disk;
mod pictures;
mod requests;
#[path = "../support/mod.rs"]
mod support;
mod tokenizers;
mod weights;
