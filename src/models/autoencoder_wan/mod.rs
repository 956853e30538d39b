//! The causal autoencoder between pictures or films and latents that Wan and Qwen-Image have, one latent frame after the other.
//!
//! Follows `AutoencoderKLWan` of diffusers (`models/autoencoders/autoencoder_kl_wan.py`), which `AutoencoderKLQwenImage` is with other
//! names; the weights have the names of Wan's first publisher.
//!
//! # Time
//!
//! Convolutions reach back in time: a kernel over three frames gives a frame of itself and the two before it. What was there before the
//! first frame is zero. So a kernel is three kernels of pictures, its planes, each for one of these frames; of the first frame, only the
//! last plane counts. A latent frame stands for four frames, except the first, which stands for one: it does not go through what doubles
//! and halves frames (`time_conv`).
//!
//! There are three chains of the same layers. That of a [picture](Decoder) has the last planes alone. A [film](FilmDecoder) has one for its
//! first latent frame, in the stages of a request, which is the same and leaves its newest frames behind; and one for each latent frame that
//! follows, in those of a step, with all planes. It finds two frames of every map that a kernel over time reads in ports of
//! their own, which live from run to run, and leaves its newest there. These frames are as they are before norms: zeros stay zeros there.
//! A pass must not overwrite what the neighbours of a strip still read. So frames are left in passes of their own, which read the
//! strip's own rows. In a band of rows these passes have more rows than the convolution before them, whose halo has to be left, too.
//!
//! Frames lie in the last extent of a map. Attention is within a frame, and norms are over the channels of one pixel, so that no stage waits
//! for the statistics of a map.
//!
//! # Kinds
//!
//! That of Wan 2.2's 5B takes pictures in [patches](Config::taken) and has shortcuts beside its levels: what comes in is averaged to what goes out
//! of the encoder's, and repeated to what goes out of the decoder's (`is_residual`).
//!
//! That of Qwen-Image 2.1 has such shortcuts, one level more, pictures with an opacity, and kernels of pictures alone, without the planes of
//! older frames.
//!
//! Legend: `w`, `h` extents of the latents; `W`, `H` of the picture, `2^(L-1)` times those for `L` levels; `C` latent channels; `R`
//! residual blocks of a level; `T` frames: `B`, a batch, of pictures.
//!
//! | stage of the [`Decoder`] | in | out |
//! |---|---|---|
//! | `conv2`, of films | `latents [w, h, C, T]` | `conv2 [w, h, C, T]` |
//! | `conv1` | `latents`, or `conv2` | `conv1 [w, h, c, T]` |
//! | `middle.0`, `middle.1`, `middle.2` | `conv1` | `conv1` |
//! | `upsamples.{i}` | the level's pixels | of `R + 1` the same; of the one behind them, twice as wide and high, half the channels |
//! | `upsamples.{i}.time_conv`, before that | the level's pixels | twice as many frames |
//! | `upsamples.{i}.shortcut`, of 2.2, behind it | the pixels, and those of the level's beginning | the same |
//! | `head` | the last level's pixels | `picture [W, H, 3, T]`, -1 to 1 |
//!
//! | stage of the [`Encoder`] | in | out |
//! |---|---|---|
//! | `conv1` | `picture [W, H, 3, T]`, -1 to 1 | `conv1 [W, H, c, T]` |
//! | `downsamples.{i}` | the level's pixels | of `R` the same, or with more channels; of the one behind them, half as wide and high |
//! | `downsamples.{i}.time_conv`, behind that | the pixels | half as many frames |
//! | `downsamples.{i}.shortcut`, of 2.2, behind it | the pixels, and those of the level's beginning | the same |
//! | `middle.0`, `middle.1`, `middle.2` | the last level's pixels | the same |
//! | `head` | the last level's pixels | `moments [w, h, 2 C, T]`: mean, then logarithm of the variance |

mod attention;
mod blocks;
mod causal;
mod config;
mod decoder;
mod encoder;
mod norm;
mod patches;
mod resample;

pub use config::Config;
pub use decoder::{Decoder, FilmDecoder};
pub use encoder::{Encoder, FilmEncoder};

use crate::stage::Model;

/// All weights of one direction, each once: what files have.
pub struct Whole {
    /// Its stages, ports and weights.
    pub model: Model,
}
