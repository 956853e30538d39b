//! The autoencoder between pictures and latents: convolutions in levels of halving size, each level a few residual
//! blocks.
//!
//! Follows `AutoencoderKL` of diffusers (`models/autoencoders/autoencoder_kl.py`, `vae.py`); the weights have the original
//! names of *High-Resolution Image Synthesis with Latent Diffusion Models* (Rombach et al., arXiv:2112.10752;
//! `ldm/modules/diffusionmodules/model.py`), which files outside diffusers have too. Levels count from the picture's side:
//! level `l` works at `1 / 2^l` of the picture's size.
//!
//! Legend: `w`, `h` extents of the latents; `W`, `H` of the picture, `2^(L-1)` times those for `L` levels; `C` latent
//! channels; `B` batch.
//!
//! | stage of the [`Decoder`] | in | out |
//! |---|---|---|
//! | `conv_in` | `latents [w, h, C, B]` | `conv_in [w, h, c, B]` |
//! | `mid.block_1`, `mid.attn_1`, `mid.block_2` | `conv_in` | `conv_in` |
//! | `up.{l}.block.{i}` | the level's pixels | the same, or with fewer channels |
//! | `up.{l}.upsample` | the level's pixels | twice as wide and high |
//! | `out` | level 0's pixels | `picture [W, H, 3, B]`, -1 to 1 |
//!
//! | stage of the [`Encoder`] | in | out |
//! |---|---|---|
//! | `conv_in` | `picture [W, H, 3, B]`, -1 to 1 | `conv_in [W, H, c, B]` |
//! | `down.{l}.block.{i}` | the level's pixels | the same, or with more channels |
//! | `down.{l}.downsample` | the level's pixels | half as wide and high |
//! | `mid.block_1`, `mid.attn_1`, `mid.block_2` | the last level's pixels | the same |
//! | `out` | the last level's pixels | `moments [w, h, 2 C, B]`: mean, then logarithm of the variance |
//!
//! Stages that keep the shape work in place; the others begin a port that has their name.

mod attention;
mod blocks;
mod config;
mod decoder;
mod encoder;
mod patches;

pub use config::{BATCH_NORM_EPS, Config};
pub use decoder::Decoder;
pub use encoder::Encoder;
pub use patches::{PATCH, patched, unpatched};
