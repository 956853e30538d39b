//! Parts of models, samplers and what tests are made of, each by itself. One program, since each costs CI half a minute to link.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod activations;
mod beside;
mod clip;
mod manifests;
mod rows;
mod sampling;
#[path = "../support/mod.rs"]
mod support;
mod synth;
