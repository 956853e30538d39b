//! From pictures to latents.

use super::causal::Chain;
use super::resample::Change;
use super::{Config, Whole};
use crate::models::route::{Pixels, Route};
use crate::stage::{Cadence, Model, Port};
use crate::{Error, Result};

/// The encoder, for one picture.
pub struct Encoder {
    /// Its stages, ports and weights.
    pub model: Model,
    /// `[W, H, 3, B]`: in, the picture, from -1 to 1. If it is taken in patches, `[W / 2, H / 2, 12, B]`.
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
        let mut route = Route::new("picture", pixels(config));
        let picture = route.at();
        build(&mut route, config, Chain::Picture)?;
        let moments = route.at();
        Ok(Encoder { model: route.finish(), picture, moments })
    }
}

/// The encoder, for films: the stages of a request are for the first frame, those of a step for each four of the others. What one run
/// leaves to the next stays in ports.
pub struct FilmEncoder {
    /// Its stages, ports and weights.
    pub model: Model,
    /// `[W, H, 3, 1]`: in, the first frame, as [`Encoder::picture`].
    pub first_picture: Port,
    /// `[w, h, 2 C, 1]`: out, the moments of the first latent frame, as [`Encoder::moments`].
    pub first_moments: Port,
    /// `[W, H, 3, 4]`: in, the frames of another latent frame.
    pub pictures: Port,
    /// `[w, h, 2 C, 1]`: out, its moments.
    pub moments: Port,
    /// What is to be zero when a film begins.
    pub cleared: Vec<Port>,
}

impl FilmEncoder {
    /// The encoder that `config` describes.
    ///
    /// # Errors
    /// As [`Encoder::new`].
    pub fn new(config: &Config) -> Result<FilmEncoder> {
        let input = ("picture", pixels(config));
        let mut first = Route::of_frames(Model::new(), ("first.", Cadence::Request), 1, input);
        let first_picture = first.at();
        build(&mut first, config, Chain::First)?;
        let first_moments = first.at();
        let frames = config.frames_of_latent();
        let mut route = Route::of_frames(first.finish(), ("", Cadence::Step), frames, input);
        let pictures = route.at();
        build(&mut route, config, Chain::Following)?;
        let moments = route.at();
        let cleared = route.kept_ports();
        let model = route.finish();
        Ok(FilmEncoder { model, first_picture, first_moments, pictures, moments, cleared })
    }
}

impl Whole {
    /// The encoder's.
    ///
    /// # Errors
    /// As [`Encoder::new`].
    pub fn encoder(config: &Config) -> Result<Whole> {
        let (input, frames) = (("picture", pixels(config)), config.frames_of_latent());
        let mut route = Route::of_frames(Model::new(), ("", Cadence::Request), frames, input);
        build(&mut route, config, Chain::Following)?;
        Ok(Whole { model: route.finish() })
    }
}

/// What comes in.
fn pixels(config: &Config) -> Pixels {
    Pixels { channels: config.input_channels, factor: config.factor() / config.patch() }
}

/// Adds the layers of `chain`.
fn build(route: &mut Route, config: &Config, chain: Chain) -> Result<()> {
    if config.levels() == 0 {
        return Err(Error::graph("declare", "an autoencoder without levels"));
    }
    route.encoder_first(chain, config.base_dim)?;
    let mut frames = if chain == Chain::Following { config.frames_of_latent() } else { 1 };
    let mut layers = config.names("downsamples");
    for level in 0..config.levels() {
        let (start, inputs, outputs) = (route.at(), route.pixels().channels, config.channels(level));
        for block in 0..config.num_res_blocks {
            route.residual(chain, ("encoder", &layers.next()), outputs, config.is_residual && block == 0)?;
        }
        let name = layers.next();
        if level + 1 < config.levels() {
            route.halved(&name)?;
            if config.is_temporal(level) {
                route.frames_halved(chain, &name, frames)?;
                frames = frames.div_ceil(2);
            }
        }
        if config.is_residual {
            route.shortcut(&name, start, config.down(level, inputs, chain == Chain::Following), true)?;
        }
        layers.next_level();
    }
    route.residuals_with_attention(chain, "encoder")?;
    route.encoder_head(chain, config)
}

impl Config {
    /// The shortcut of `level` of the encoder, which begins with `inputs` channels.
    pub(super) fn down(&self, level: usize, inputs: usize, follows: bool) -> Change {
        let is_last = level + 1 == self.levels();
        let frames = if !is_last && self.is_temporal(level) { 2 } else { 1 };
        let side = if is_last { 1 } else { 2 };
        Change { channels: (inputs, self.channels(level)), frames, side, first: !follows }
    }
}
