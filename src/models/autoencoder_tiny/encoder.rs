//! The tiny autoencoder's encoder: from a picture to latents, without a distribution around them.
//!
//! Legend: as the [decoder](super)'s, which has half as many pixels at a level as this has at the level before.
//!
//! | stage | in | out |
//! |---|---|---|
//! | `layers.0` | `picture [W, H, 3, B]`, 0 to 1 | `layers.0 [W, H, c, B]` |
//! | `layers.N` (three convolutions, added to what came in) | a level's pixels | the same |
//! | `layers.N` (a convolution at every other pixel) | a level's pixels | half as wide and high |
//! | `layers.N`, the last | the last level's pixels | `latents [w, h, C, B]` |

use super::{Config, Direction, without_levels};
use crate::Result;
use crate::models::route::{Pixels, Route};
use crate::stage::{Model, Port};

/// The encoder.
pub struct TinyEncoder {
    /// Its stages, ports and weights.
    pub model: Model,
    /// `[W, H, 3, B]`: in, the picture, from 0 to 1.
    pub picture: Port,
    /// `[w, h, C, B]`: out, the latents, before shift and scale.
    pub latents: Port,
}

impl TinyEncoder {
    /// The encoder that `config` describes.
    ///
    /// # Errors
    /// [`Error::Graph`](crate::Error::Graph) for settings that [`Config::validate_encoder`] refuses.
    pub fn new(config: &Config) -> Result<TinyEncoder> {
        let mut route = Route::new("picture", Pixels { channels: config.in_channels, factor: config.factor() });
        let picture = route.at();
        let Some(channels) = config.encoder_channels() else { return Err(without_levels()) };
        let (layers, output) = (config.encoder_layers(), ("latents", config.latent_channels));
        Direction { name: "encoder", activated: false, layers, channels, output }.declare(&mut route)?;
        let latents = route.at();
        Ok(TinyEncoder { model: route.finish(), picture, latents })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn published_sizes() {
        for (latent_channels, expected) in [(4, 1_222_532), (16, 1_229_456)] {
            let config = Config { latent_channels, ..Config::default() };
            assert_eq!(TinyEncoder::new(&config).unwrap().model.manifest().parameters(), expected);
        }
    }

    #[test]
    fn layers_are_counted_as_diffusers_counts_them() {
        let encoder = TinyEncoder::new(&Config::default()).unwrap();
        let names: Vec<&str> = encoder.model.stages().iter().map(|stage| stage.name.as_str()).collect();
        assert_eq!(names, (0..15).map(|number| format!("layers.{number}")).collect::<Vec<_>>());
    }
}
