//! From latents to pictures.

use super::causal::Chain;
use super::resample::Change;
use super::{Config, Whole};
use crate::models::route::{Pixels, Route};
use crate::stage::{Cadence, Model, Port};
use crate::{Error, Result};

/// The decoder, for one picture.
pub struct Decoder {
    /// Its stages, ports and weights.
    pub model: Model,
    /// `[w, h, C, B]`: in, the latents, with mean and deviation undone.
    pub latents: Port,
    /// `[W, H, 3, B]`: out, the picture, from -1 to 1 (and a little beyond: it is not clamped). If it comes in patches,
    /// `[W / 2, H / 2, 12, B]`.
    pub picture: Port,
}

impl Decoder {
    /// The decoder that `config` describes.
    ///
    /// # Errors
    /// [`Error::Graph`] for settings that [`Config::validate`] refuses.
    pub fn new(config: &Config) -> Result<Decoder> {
        let mut route = Route::new("latents", Pixels { channels: config.z_dim, factor: 1 });
        let latents = route.at();
        build(&mut route, config, Chain::Picture)?;
        let picture = route.at();
        Ok(Decoder { model: route.finish(), latents, picture })
    }
}

/// The decoder, for films: the stages of a request are for the first latent frame, those of a step for each of the others. What one run
/// leaves to the next stays in ports.
pub struct FilmDecoder {
    /// Its stages, ports and weights.
    pub model: Model,
    /// `[w, h, C, 1]`: in, the first latent frame, with mean and deviation undone.
    pub first_latents: Port,
    /// `[W, H, 3, 1]`: out, the first frame, as [`Decoder::picture`].
    pub first_picture: Port,
    /// `[w, h, C, 1]`: in, another latent frame.
    pub latents: Port,
    /// `[W, H, 3, 4]`: out, the frames that it becomes.
    pub pictures: Port,
    /// What is to be zero when a film begins.
    pub cleared: Vec<Port>,
}

impl FilmDecoder {
    /// The decoder that `config` describes.
    ///
    /// # Errors
    /// As [`Decoder::new`].
    pub fn new(config: &Config) -> Result<FilmDecoder> {
        let input = ("latents", Pixels { channels: config.z_dim, factor: 1 });
        let mut first = Route::of_frames(Model::new(), ("first.", Cadence::Request), 1, input);
        let first_latents = first.at();
        build(&mut first, config, Chain::First)?;
        let first_picture = first.at();
        let mut route = Route::of_frames(first.finish(), ("", Cadence::Step), 1, input);
        let latents = route.at();
        build(&mut route, config, Chain::Following)?;
        let pictures = route.at();
        let cleared = route.kept_ports();
        let model = route.finish();
        Ok(FilmDecoder { model, first_latents, first_picture, latents, pictures, cleared })
    }
}

impl Whole {
    /// The decoder's.
    ///
    /// # Errors
    /// As [`Decoder::new`].
    pub fn decoder(config: &Config) -> Result<Whole> {
        let input = ("latents", Pixels { channels: config.z_dim, factor: 1 });
        let mut route = Route::of_frames(Model::new(), ("", Cadence::Request), 1, input);
        build(&mut route, config, Chain::Following)?;
        Ok(Whole { model: route.finish() })
    }
}

/// Adds the layers of `chain`.
fn build(route: &mut Route, config: &Config, chain: Chain) -> Result<()> {
    if config.levels() == 0 {
        return Err(Error::graph("declare", "an autoencoder without levels"));
    }
    route.decoder_first(chain, config.decoder_channels(config.levels() - 1))?;
    route.residuals_with_attention(chain, "decoder")?;
    let (mut frames, mut layers) = (1, config.names("upsamples"));
    for level in (0..config.levels()).rev() {
        let (start, inputs) = (route.at(), route.pixels().channels);
        let outputs = config.decoder_channels(level);
        for block in 0..=config.num_res_blocks {
            route.residual(chain, ("decoder", &layers.next()), outputs, config.is_residual && block == 0)?;
        }
        if level == 0 {
            break;
        }
        let (name, in_time) = (layers.next(), config.is_temporal(level - 1));
        if in_time {
            route.frames_doubled(chain, &name, frames)?;
        }
        frames *= if in_time && chain == Chain::Following { 2 } else { 1 };
        route.doubled(&name, if config.is_residual { outputs } else { outputs / 2 })?;
        if config.is_residual {
            let change = config.up(level, inputs, chain == Chain::Following);
            route.shortcut(&name, start, change, false)?;
        }
        layers.next_level();
    }
    route.decoder_head(chain, config)
}

impl Config {
    /// The shortcut from `level` of the decoder to the next, which begins with `inputs` channels.
    pub(super) fn up(&self, level: usize, inputs: usize, follows: bool) -> Change {
        let frames = if self.is_temporal(level - 1) { 2 } else { 1 };
        Change { channels: (inputs, self.decoder_channels(level)), frames, side: 2, first: !follows }
    }
}
