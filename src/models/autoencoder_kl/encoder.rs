//! From a picture to latents.

use super::Config;
use super::blocks::{ConvIn, ConvOut, Downsample};
use crate::models::route::{Pixels, Route};
use crate::stage::{Model, Port};
use crate::{Error, Result};

/// The encoder.
pub struct Encoder {
    /// Its stages, ports and weights.
    pub model: Model,
    /// `[W, H, 3, B]`: in, the picture, from -1 to 1.
    pub picture: Port,
    /// `[w, h, 2 C, B]`: out, the mean of the latents and the logarithm of their variance, before shift and scale.
    pub moments: Port,
}

impl Encoder {
    /// The encoder that `config` describes.
    ///
    /// # Errors
    /// [`Error::Graph`] for settings that [`Config::validate`] refuses.
    pub fn new(config: &Config) -> Result<Encoder> {
        let (inputs, factor) = (config.in_channels, config.factor());
        let first = config.block_out_channels.first().copied();
        let channels = first.ok_or_else(|| Error::graph("declare", "an autoencoder without levels"))?;
        let mut route = Route::new("picture", Pixels { channels: inputs, factor });
        let picture = route.at();
        route.lead(("conv_in", "conv_in"), Pixels { channels, factor }, |scope| {
            ConvIn::encoder(scope, inputs, channels)
        })?;
        for (level, &channels) in config.block_out_channels.iter().enumerate() {
            down(&mut route, config, level, channels)?;
        }
        route.middle("encoder", config)?;
        let Pixels { channels, factor } = route.pixels();
        route.lead(("out", "moments"), Pixels { channels: 2 * config.latent_channels, factor }, |scope| {
            ConvOut::encoder(scope, config, channels)
        })?;
        let moments = route.at();
        Ok(Encoder { model: route.finish(), picture, moments })
    }
}

/// Adds a level: residual blocks and then, but at the latents' own size, the halving.
fn down(route: &mut Route, config: &Config, level: usize, channels: usize) -> Result<()> {
    for block in 0..config.layers_per_block {
        route.resnet("encoder", &format!("down.{level}.block.{block}"), channels, config.norm_num_groups)?;
    }
    if level + 1 == config.levels() {
        return Ok(());
    }
    let name = format!("down.{level}.downsample");
    let pixels = Pixels { channels, factor: route.pixels().factor / 2 };
    route.lead((&name, &name), pixels, |scope| Downsample::declare(&mut scope.sub("encoder").sub(&name), channels))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::models::autoencoder_kl::config::tests::flux;
    use crate::stage::{Dims, Symbol};

    #[test]
    fn stages_go_down_to_the_moments() {
        let encoder = Encoder::new(&flux()).unwrap();
        let names: Vec<_> = encoder.model.stages().iter().map(|stage| stage.name.as_str()).collect();
        assert_eq!(names[..4], ["conv_in", "down.0.block.0", "down.0.block.1", "down.0.downsample"]);
        assert_eq!(
            names[10..],
            ["down.3.block.0", "down.3.block.1", "mid.block_1", "mid.attn_1", "mid.block_2", "out"]
        );
    }

    #[test]
    fn ports_shrink_eightfold() {
        let encoder = Encoder::new(&flux()).unwrap();
        let dims = Dims::new().with(Symbol::LATENT_WIDTH, 24).with(Symbol::LATENT_HEIGHT, 16).with(Symbol::BATCH, 2);
        let shape = |port: Port| encoder.model.ports()[port.index()].shape(&dims).unwrap();
        assert_eq!(shape(encoder.picture), [192, 128, 3, 2]);
        assert_eq!(shape(encoder.moments), [24, 16, 32, 2]);
    }
}
