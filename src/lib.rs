//! Diffusion models through a 4 GB pinhole.
//!
//! pinhole reads image and video diffusion models from GGUF bundles, diffusers directories and files of other tools, maps
//! them into memory and runs them through ggml. Data goes one way: file, map, index, bind, stages, executor, latents, autoencoder, picture.
//!
//! Modules import only from those before them in this order: [`error`], [`reserve`], [`size`], [`tensor`], [`index`], [`gguf`] and
//! [`safetensors`], [`kernels`], [`ggml`], [`weights`], [`stage`], [`models`], [`bind`], [`sample`], [`text`], [`image`], [`source`],
//! [`builtin`], [`inspect`], [`convert`], [`plan`], [`exec`], [`pipeline`]; [`memory`] and [`entries`] stand alone.

pub mod bind;
pub mod builtin;
pub mod convert;
pub mod entries;
pub mod error;
pub mod exec;
pub mod ggml;
pub mod gguf;
pub mod image;
pub mod index;
pub mod inspect;
pub mod kernels;
pub mod memory;
pub mod models;
pub mod pipeline;
pub mod plan;
pub mod reserve;
pub mod safetensors;
pub mod sample;
pub mod size;
pub mod source;
pub mod stage;
pub mod synthetic;
pub mod tensor;
pub mod text;
pub mod weights;

pub use error::{Error, Result};

/// Opens the model `name`: a bundle, a diffusers directory, a file or folder of files of other tools, or `mini`, the model that is
/// built in. Reads headers and configurations, no weights.
///
/// # Errors
/// As [`source::Source::open`] and [`pipeline::open`].
pub fn open(name: impl AsRef<std::path::Path>) -> Result<pipeline::Opened> {
    let name = name.as_ref();
    let source =
        if name == std::path::Path::new(builtin::MINI_NAME) { builtin::mini()? } else { source::Source::open(name)? };
    pipeline::open(&source)
}
