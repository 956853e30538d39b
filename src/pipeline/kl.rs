//! The KL autoencoder as a part of a model.

use super::opened::{Autoencoder, Direction, once, subject};
use super::request::Settings;
use super::run::{Run, Running};
use crate::plan::Phase;
use crate::plan::measure::Subject;
use crate::source::networks::AutoencoderKl;
use crate::stage::{Cadence, Dims, Symbol};
use crate::{Error, Result, reserve};

/// The names of its subjects.
const ENCODER: &str = "encoder";
const DECODER: &str = "decoder";

impl AutoencoderKl {
    fn dims(&self, settings: &Settings) -> Dims {
        let [w, h, ..] = self.latents(settings);
        Dims::new().with(Symbol::BATCH, 1).with(Symbol::LATENT_WIDTH, w).with(Symbol::LATENT_HEIGHT, h)
    }
}

impl Autoencoder for AutoencoderKl {
    fn channels(&self) -> usize {
        self.config.latent_channels
    }

    fn factor(&self) -> usize {
        self.config.factor()
    }

    fn goes(&self, direction: Direction) -> bool {
        direction == Direction::Decode || self.encoder.is_some()
    }

    fn subjects(&self, settings: &Settings, direction: Direction, pictures: usize) -> Vec<Subject<'_>> {
        let (dims, runs) = (self.dims(settings), once(pictures));
        match direction {
            Direction::Decode => vec![subject(&self.decoder, DECODER, Phase::Decode, dims, runs)],
            Direction::Encode => {
                let encoder = self.encoder.iter();
                encoder.map(|part| subject(part, ENCODER, Phase::Condition, dims.clone(), runs)).collect()
            }
        }
    }

    fn decode(&self, run: &mut Run<'_>, running: &mut Running<'_>, latents: &[f32]) -> Result<Vec<f32>> {
        let (net, config) = (&self.decoder.net, &self.config);
        let scaled = latents.iter().map(|x| x / config.scaling_factor + config.shift_factor);
        running.set(net.latents, &reserve::collect("the latents", latents.len(), scaled)?)?;
        run.compute(running, Cadence::Request)?;
        running.get(net.picture)
    }

    fn encode(&self, run: &mut Run<'_>, running: &mut Running<'_>, samples: &[f32]) -> Result<Vec<f32>> {
        let encoder = self.encoder.as_ref().ok_or_else(|| Error::graph("encode", "the autoencoder has no encoder"))?;
        running.set(encoder.net.picture, samples)?;
        run.compute(running, Cadence::Request)?;
        running.get(encoder.net.moments)
    }

    fn normalize(&self, latents: &mut [f32], _: [usize; 2]) {
        let config = &self.config;
        for x in latents {
            *x = (*x - config.shift_factor) * config.scaling_factor;
        }
    }
}
