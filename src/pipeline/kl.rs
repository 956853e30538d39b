//! The KL autoencoder as a part of a model.

use super::opened::{Autoencoder, Direction, once, subject};
use super::request::Settings;
use super::run::{Run, Running};
use crate::models::autoencoder_kl::{PATCH, patched, unpatched};
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
        let ([w, h, ..], side) = (self.latents(settings), self.side());
        Dims::new().with(Symbol::BATCH, 1).with(Symbol::LATENT_WIDTH, side * w).with(Symbol::LATENT_HEIGHT, side * h)
    }

    /// The side of a patch of its own latents that is one of the denoiser's.
    fn side(&self) -> usize {
        if self.decoder.net.statistics.is_some() { PATCH } else { 1 }
    }

    /// Columns and rows of the denoiser's latents in the size of `running`.
    fn columns_and_rows(&self, running: &Running<'_>) -> Result<[usize; 2]> {
        let side = self.side();
        Ok([running.dim(Symbol::LATENT_WIDTH)? / side, running.dim(Symbol::LATENT_HEIGHT)? / side])
    }

    /// Mean and standard deviation of each channel of patches, if latents are normalised by them.
    fn statistics(&self) -> Result<Option<Vec<[f32; 2]>>> {
        let (Some(ids), Some(eps)) = (self.decoder.net.statistics, self.config.batch_norm_eps) else { return Ok(None) };
        let of = |id| self.decoder.bound.gather(id, self.channels(), &[0]);
        let (means, variances) = (of(ids[0])?, of(ids[1])?);
        let both = means.into_iter().zip(variances).map(|(mean, variance)| [mean, (variance + eps).sqrt()]);
        Ok(Some(both.collect()))
    }
}

/// Each channel of `latents` with its number among `statistics`.
fn channels<'l, 's>(
    latents: &'l mut [f32],
    statistics: &'s [[f32; 2]],
) -> impl Iterator<Item = (&'l mut [f32], &'s [f32; 2])> {
    let plane = (latents.len() / statistics.len().max(1)).max(1);
    latents.chunks_exact_mut(plane).zip(statistics)
}

impl Autoencoder for AutoencoderKl {
    fn channels(&self) -> usize {
        self.config.latent_channels * self.side() * self.side()
    }

    fn factor(&self) -> usize {
        self.config.factor() * self.side()
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
        let own = match self.statistics()? {
            Some(statistics) => {
                let mut own = reserve::repeat("the latents", latents, 1)?;
                for (plane, [mean, deviation]) in channels(&mut own, &statistics) {
                    plane.iter_mut().for_each(|x| *x = *x * deviation + mean);
                }
                unpatched(&own, self.columns_and_rows(running)?)?
            }
            None => {
                let scaled = latents.iter().map(|x| x / config.scaling_factor + config.shift_factor);
                reserve::collect("the latents", latents.len(), scaled)?
            }
        };
        running.set(net.latents, &own)?;
        run.compute(running, Cadence::Request)?;
        running.get(net.picture)
    }

    fn encode(&self, run: &mut Run<'_>, running: &mut Running<'_>, samples: &[f32]) -> Result<Vec<f32>> {
        let encoder = self.encoder.as_ref().ok_or_else(|| Error::graph("encode", "the autoencoder has no encoder"))?;
        running.set(encoder.net.picture, samples)?;
        run.compute(running, Cadence::Request)?;
        let moments = running.get(encoder.net.moments)?;
        match self.side() {
            1 => Ok(moments),
            _ => patched(&moments, self.columns_and_rows(running)?),
        }
    }

    fn normalize(&self, latents: &mut [f32]) -> Result<()> {
        if let Some(statistics) = self.statistics()? {
            for (plane, [mean, deviation]) in channels(latents, &statistics) {
                plane.iter_mut().for_each(|x| *x = (*x - mean) / deviation);
            }
            return Ok(());
        }
        let config = &self.config;
        for x in latents {
            *x = (*x - config.shift_factor) * config.scaling_factor;
        }
        Ok(())
    }
}
