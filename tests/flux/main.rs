//! FLUX.1, whole, and all that goes beside it, against diffusers. One program, since each costs CI half a minute to link.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod bare;
mod caches;
mod controls;
mod foreign;
mod image_prompts;
mod lora;
mod miniature;
mod parity;
mod pictures_in;
#[path = "../support/mod.rs"]
mod support;
