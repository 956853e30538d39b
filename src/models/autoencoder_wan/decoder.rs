//! From latents to a picture.

use super::Config;
use super::blocks::{First, Head};
use crate::models::route::{Pixels, Route};
use crate::stage::{Model, Port};
use crate::{Error, Result};

/// The decoder, for one frame.
pub struct Decoder {
    /// Its stages, ports and weights.
    pub model: Model,
    /// `[w, h, C, B]`: in, the latents, with mean and deviation undone.
    pub latents: Port,
    /// `[W, H, 3, B]`: out, the picture, from -1 to 1 (and a little beyond: it is not clamped).
    pub picture: Port,
}

impl Decoder {
    /// The decoder that `config` describes.
    ///
    /// # Errors
    /// [`Error::Graph`] for settings that [`Config::validate`] refuses.
    pub fn new(config: &Config) -> Result<Decoder> {
        if config.levels() == 0 {
            return Err(Error::graph("declare", "an autoencoder without levels"));
        }
        let channels = config.channels(config.levels() - 1);
        let mut route = Route::new("latents", Pixels { channels: config.z_dim, factor: 1 });
        let latents = route.at();
        route.lead(("conv1", "conv1"), Pixels { channels, factor: 1 }, |scope| {
            First::decoder(scope, config, channels)
        })?;
        route.residuals_with_attention("decoder")?;
        let mut i = 0;
        for level in (0..config.levels()).rev() {
            for _ in 0..=config.num_res_blocks {
                route.residual("decoder", &format!("upsamples.{i}"), config.channels(level))?;
                i += 1;
            }
            if level > 0 {
                route.doubled(&format!("upsamples.{i}"))?;
                i += 1;
            }
        }
        let Pixels { channels, factor } = route.pixels();
        route.lead(("head", "picture"), Pixels { channels: config.input_channels, factor }, |scope| {
            Head::decoder(scope, config, channels)
        })?;
        let picture = route.at();
        Ok(Decoder { model: route.finish(), latents, picture })
    }
}
