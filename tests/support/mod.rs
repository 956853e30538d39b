//! What the integration tests share: the recorded goldens, and the synthetic models they were recorded from.
//!
//! Every test binary compiles this module and uses a part of it.
#![allow(dead_code, unused_imports, clippy::unwrap_used)]

pub(crate) mod bundle;
pub(crate) mod cases;
pub(crate) mod denoiser;
pub(crate) mod diffusers;
pub(crate) mod drawing;
#[path = "../fixtures/mod.rs"]
pub(crate) mod fixtures;
pub(crate) mod flux2;
pub(crate) mod flux3;
pub(crate) mod foreign;
pub(crate) mod formula;
pub(crate) mod given;
pub(crate) mod golden;
#[cfg(unix)]
pub(crate) mod hostile;
pub(crate) mod in_parts;
pub(crate) mod lora;
pub(crate) mod numbers;
pub(crate) mod parts;
pub(crate) mod pickle;
pub(crate) mod qwen_image;
pub(crate) mod qwen_image_21;
pub(crate) mod sd1;
pub(crate) mod spiece;
pub(crate) mod synth;
pub(crate) mod wan;
pub(crate) mod z_image;

pub(crate) use diffusers::{Layout, write_component, write_model, write_parts};
pub(crate) use golden::Golden;
pub(crate) use parts::Parts;
