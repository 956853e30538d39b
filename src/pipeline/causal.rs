//! The causal autoencoder, for one frame, as a part of a model.

use super::opened::{Autoencoder, Direction, once, subject};
use super::request::Settings;
use super::run::{Run, Running};
use crate::plan::Phase;
use crate::plan::measure::Subject;
use crate::source::networks::AutoencoderCausal;
use crate::stage::{Cadence, Dims, Symbol};
use crate::{Error, Result, reserve};

/// Frames of a latent frame, from the second on.
const FRAME_FACTOR: usize = 4;

/// The names of its subjects.
const ENCODER: &str = "encoder";
const DECODER: &str = "decoder";

impl Autoencoder for AutoencoderCausal {
    fn channels(&self) -> usize {
        self.config.z_dim
    }

    fn factor(&self) -> usize {
        self.config.factor()
    }

    fn frame_factor(&self) -> usize {
        FRAME_FACTOR
    }

    fn goes(&self, direction: Direction) -> bool {
        direction == Direction::Decode || self.encoder.is_some()
    }

    fn subjects(&self, settings: &Settings, direction: Direction, pictures: usize) -> Vec<Subject<'_>> {
        let [w, h, ..] = self.latents(settings);
        let dims = Dims::new().with(Symbol::BATCH, 1).with(Symbol::LATENT_WIDTH, w).with(Symbol::LATENT_HEIGHT, h);
        let runs = once(pictures);
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
        let plane = (latents.len() / config.z_dim).max(1);
        let mut own = reserve::repeat("the latents", latents, 1)?;
        let statistics = config.latents_mean.iter().zip(&config.latents_std);
        for (plane, (mean, std)) in own.chunks_exact_mut(plane).zip(statistics) {
            plane.iter_mut().for_each(|x| *x = *x / (1.0 / std) + mean);
        }
        running.set(net.latents, &own)?;
        run.compute(running, Cadence::Request)?;
        running.get(net.picture)
    }

    fn encode(&self, run: &mut Run<'_>, running: &mut Running<'_>, samples: &[f32]) -> Result<Vec<f32>> {
        let encoder = self.encoder.as_ref().ok_or_else(|| Error::graph("encode", "the autoencoder has no encoder"))?;
        running.set(encoder.net.picture, samples)?;
        run.compute(running, Cadence::Request)?;
        running.get(encoder.net.moments)
    }

    fn normalize(&self, latents: &mut [f32]) -> Result<()> {
        let config = &self.config;
        let plane = (latents.len() / config.latents_mean.len().max(1)).max(1);
        let statistics = config.latents_mean.iter().zip(&config.latents_std);
        for (plane, (mean, std)) in latents.chunks_exact_mut(plane).zip(statistics) {
            plane.iter_mut().for_each(|x| *x = (*x - mean) * (1.0 / std));
        }
        Ok(())
    }
}
