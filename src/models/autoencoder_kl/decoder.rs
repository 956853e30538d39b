//! From latents to a picture.

use super::Config;
use super::blocks::{ConvIn, ConvOut, Upsample};
use super::config::STATISTICS;
use super::patches::PATCH;
use crate::models::route::{Pixels, Route};
use crate::stage::{Model, Port};
use crate::weights::{Role, WeightId};
use crate::{Error, Result};

/// The decoder.
pub struct Decoder {
    /// Its stages, ports and weights.
    pub model: Model,
    /// `[w, h, C, B]`: in, the latents, with scale and shift undone.
    pub latents: Port,
    /// `[W, H, 3, B]`: out, the picture, from -1 to 1 (and a little beyond: it is not clamped).
    pub picture: Port,
    /// `[4 C]` each, on the host: mean and variance of patches of latents, if these are normalised by them.
    pub statistics: Option<[WeightId; 2]>,
}

impl Decoder {
    /// The decoder that `config` describes.
    ///
    /// # Errors
    /// [`Error::Graph`] for settings that [`Config::validate`] refuses.
    pub fn new(config: &Config) -> Result<Decoder> {
        let last = config.decoder_channels().last().copied();
        let channels = last.ok_or_else(|| Error::graph("declare", "an autoencoder without levels"))?;
        let mut route = Route::new("latents", Pixels { channels: config.latent_channels, factor: 1 });
        let latents = route.at();
        route.lead(("conv_in", "conv_in"), Pixels { channels, factor: 1 }, |scope| {
            ConvIn::decoder(scope, config, channels)
        })?;
        route.middle("decoder", config)?;
        for (level, &channels) in config.decoder_channels().iter().enumerate().rev() {
            up(&mut route, config, level, channels)?;
        }
        let Pixels { channels, factor } = route.pixels();
        route.lead(("out", "picture"), Pixels { channels: config.out_channels, factor }, |scope| {
            ConvOut::decoder(scope, config, channels)
        })?;
        let picture = route.at();
        let mut model = route.finish();
        let mut statistics = None;
        if config.batch_norm_eps.is_some() {
            let channels = PATCH * PATCH * config.latent_channels;
            let [mean, variance] = STATISTICS;
            statistics = Some(model.on_host(|s| {
                Ok([s.weight(mean, &[channels], Role::Vector)?, s.weight(variance, &[channels], Role::Vector)?])
            })?);
        }
        Ok(Decoder { model, latents, picture, statistics })
    }
}

/// Adds a level: one residual block more than the encoder has, and then, but at the picture's own size, the doubling.
fn up(route: &mut Route, config: &Config, level: usize, channels: usize) -> Result<()> {
    for block in 0..=config.layers_per_block {
        route.resnet("decoder", &format!("up.{level}.block.{block}"), channels, config.norm_num_groups)?;
    }
    if level == 0 {
        return Ok(());
    }
    let name = format!("up.{level}.upsample");
    let pixels = Pixels { channels, factor: 2 * route.pixels().factor };
    route.lead((&name, &name), pixels, |scope| Upsample::declare(&mut scope.sub("decoder").sub(&name), channels))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::models::autoencoder_kl::config::tests::flux;
    use crate::stage::{Dims, Symbol};

    #[test]
    fn stages_go_up_to_the_picture() {
        let decoder = Decoder::new(&flux()).unwrap();
        let names: Vec<_> = decoder.model.stages().iter().map(|stage| stage.name.as_str()).collect();
        assert_eq!(names[..6], ["conv_in", "mid.block_1", "mid.attn_1", "mid.block_2", "up.3.block.0", "up.3.block.1"]);
        assert_eq!(names[7..9], ["up.3.upsample", "up.2.block.0"]);
        assert_eq!(names[names.len() - 2..], ["up.0.block.2", "out"]);
        assert_eq!(names.len(), 4 + 4 * 3 + 3 + 1);
    }

    #[test]
    fn ports_grow_eightfold() {
        let decoder = Decoder::new(&flux()).unwrap();
        let dims = Dims::new().with(Symbol::LATENT_WIDTH, 24).with(Symbol::LATENT_HEIGHT, 16).with(Symbol::BATCH, 2);
        let shape = |port: Port| decoder.model.ports()[port.index()].shape(&dims).unwrap();
        assert_eq!(shape(decoder.latents), [24, 16, 16, 2]);
        assert_eq!(shape(decoder.picture), [192, 128, 3, 2]);
        let names: Vec<_> = decoder.model.ports().iter().map(|port| port.name.as_str()).collect();
        let expected = [
            "latents",
            "conv_in",
            "up.3.upsample",
            "up.2.upsample",
            "up.1.block.0",
            "up.1.upsample",
            "up.0.block.0",
            "picture",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn no_levels_are_an_error() {
        assert!(Decoder::new(&Config { block_out_channels: vec![], ..flux() }).is_err());
    }
}
