//! The families beside FLUX.1, against their references. One program, since each costs CI half a minute to link.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod devices;
mod flux2;
mod flux3;
mod published_tokens;
mod qwen_image;
mod qwen_image_21;
mod random_models;
mod rpc;
mod safety;
mod sd_controls;
mod stable_diffusion;
#[path = "../support/mod.rs"]
mod support;
mod tiny_vae;
mod two_passes;
mod unet;
mod upscale;
mod wan;
mod wan_caches;
mod wan_files;
mod wan_fun;
mod wan_vace;
mod wan_vae;
mod z_image;
