//! From a picture to latents.

use super::Config;
use super::blocks::{First, Head};
use crate::models::route::{Pixels, Route};
use crate::stage::{Model, Port};
use crate::{Error, Result};

/// The encoder, for one frame.
pub struct Encoder {
    /// Its stages, ports and weights.
    pub model: Model,
    /// `[W, H, 3, B]`: in, the picture, from -1 to 1.
    pub picture: Port,
    /// `[w, h, 2 C, B]`: out, the mean of the latents and the logarithm of their variance, as they are before the denoiser's mean and
    /// deviation.
    pub moments: Port,
}

impl Encoder {
    /// The encoder that `config` describes.
    ///
    /// # Errors
    /// [`Error::Graph`] for settings that [`Config::validate`] refuses.
    pub fn new(config: &Config) -> Result<Encoder> {
        if config.levels() == 0 {
            return Err(Error::graph("declare", "an autoencoder without levels"));
        }
        let (inputs, factor, channels) = (config.input_channels, config.factor(), config.base_dim);
        let mut route = Route::new("picture", Pixels { channels: inputs, factor });
        let picture = route.at();
        route.lead(("conv1", "conv1"), Pixels { channels, factor }, |scope| First::encoder(scope, config, channels))?;
        let mut i = 0;
        for level in 0..config.levels() {
            for _ in 0..config.num_res_blocks {
                route.residual("encoder", &format!("downsamples.{i}"), config.channels(level))?;
                i += 1;
            }
            if level + 1 < config.levels() {
                route.halved(&format!("downsamples.{i}"))?;
                i += 1;
            }
        }
        route.residuals_with_attention("encoder")?;
        let Pixels { channels, factor } = route.pixels();
        route.lead(("head", "moments"), Pixels { channels: 2 * config.z_dim, factor }, |scope| {
            Head::encoder(scope, config, channels)
        })?;
        let moments = route.at();
        Ok(Encoder { model: route.finish(), picture, moments })
    }
}
