//! Whole models and requests that are wrong in one way each: what the user is told, and that nothing is left behind. And models
//! that lie in an unusual way, which are not wrong.
//!
//! Every message is printed: `cargo test --test bad_input -- --nocapture` shows what people read.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod bundles;
mod configs;
mod conversion;
mod directories;
mod disk;
mod every_command;
mod folders;
mod layouts;
mod loose;
mod pictures;
mod requests;
mod special;
#[path = "../support/mod.rs"]
mod support;
mod tokenizers;
mod weights;
