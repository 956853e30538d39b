//! The causal autoencoder between pictures and latents that Wan 2.1 and Qwen-Image have, for one frame.
//!
//! Follows `AutoencoderKLQwenImage` of diffusers (`models/autoencoders/autoencoder_kl_qwenimage.py`), which is `AutoencoderKLWan` with
//! other names; the weights have the names of Wan's first publisher. Its convolutions reach back in time: a kernel over three frames
//! multiplies the newest frame with its last plane, and what was there before the first frame is zero. So of a single frame only the
//! last planes count, and the convolutions between frames (`time_conv`), which the first frame skips, are not part of the model. A film
//! would need both, and maps that are kept from frame to frame.
//!
//! Norms are over the channels of one pixel, so that no stage waits for the statistics of a map.
//!
//! Legend: `w`, `h` extents of the latents; `W`, `H` of the picture, `2^(L-1)` times those for `L` levels; `C` latent channels; `R`
//! residual blocks of a level; `B` batch.
//!
//! | stage of the [`Decoder`] | in | out |
//! |---|---|---|
//! | `conv1` | `latents [w, h, C, B]` | `conv1 [w, h, c, B]` |
//! | `middle.0`, `middle.1`, `middle.2` | `conv1` | `conv1` |
//! | `upsamples.{i}` | the level's pixels | of `R + 1` the same; of the one behind them, twice as wide and high, half the channels |
//! | `head` | the last level's pixels | `picture [W, H, 3, B]`, -1 to 1 |
//!
//! | stage of the [`Encoder`] | in | out |
//! |---|---|---|
//! | `conv1` | `picture [W, H, 3, B]`, -1 to 1 | `conv1 [W, H, c, B]` |
//! | `downsamples.{i}` | the level's pixels | of `R` the same, or with more channels; of the one behind them, half as wide and high |
//! | `middle.0`, `middle.1`, `middle.2` | the last level's pixels | the same |
//! | `head` | the last level's pixels | `moments [w, h, 2 C, B]`: mean, then logarithm of the variance |

mod attention;
mod blocks;
mod config;
mod decoder;
mod encoder;
mod norm;

pub use config::Config;
pub use decoder::Decoder;
pub use encoder::Encoder;
