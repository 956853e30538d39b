//! Models, each a list of stages in the words of its paper. No files, no devices, no number formats.

mod attention;
pub mod autoencoder_kl;
pub mod autoencoder_tiny;
pub mod autoencoder_wan;
mod branches;
pub mod clip;
mod config;
pub mod control_runs;
pub mod flux;
pub mod language_model;
pub mod layers;
mod pixel_attention;
pub mod qwen_image;
pub mod qwen_vl;
pub mod resampler;
mod route;
pub mod safety_checker;
pub mod step_cache;
pub mod t5;
mod transposed;
pub mod unet;
pub mod upscaler;
pub mod vision;
pub mod wan;
pub mod z_image;

pub use config::missing_tensor;
