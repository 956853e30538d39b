//! The causal autoencoder, for pictures and for films, as a part of a model.

use super::opened::{Autoencoder, Direction, FrameSink, once, subject};
use super::request::Settings;
use super::run::{Run, Running};
use crate::plan::measure::Subject;
use crate::plan::{Phase, Runs};
use crate::source::networks::AutoencoderCausal;
use crate::stage::{Cadence, Dims, Model, Port, Symbol};
use crate::{Error, Result, reserve};

/// The names of its subjects.
const ENCODER: &str = "encoder";
const DECODER: &str = "decoder";

impl AutoencoderCausal {
    /// Latent frame number `frame` of `latents [w, h, F, C]` in the denoiser's space, with planes of so many numbers, as the decoder takes it.
    fn latent_frame(&self, latents: &[f32], plane: usize, frame: usize) -> Result<Vec<f32>> {
        let config = &self.config;
        let mut own = reserve::room("the latents", plane * config.z_dim)?;
        let channels = latents.chunks_exact((latents.len() / config.z_dim).max(1));
        for (channel, (mean, std)) in channels.zip(config.latents_mean.iter().zip(&config.latents_std)) {
            let numbers = channel.iter().skip(frame * plane).take(plane);
            own.extend(numbers.map(|x| *x / (1.0 / std) + mean));
        }
        Ok(own)
    }

    /// What the stages of `cadence` give for `input`.
    fn compute(
        &self,
        run: &mut Run<'_>,
        running: &mut Running<'_>,
        cadence: Cadence,
        (from, input, to): (Port, &[f32], Port),
    ) -> Result<Vec<f32>> {
        running.set(from, input)?;
        run.compute(running, cadence)?;
        running.get(to)
    }

    /// The decoder's or the encoder's subject for films of so many latent frames, as `runs` says.
    fn film_subject(&self, direction: Direction, dims: Dims, runs: Runs) -> Option<Subject<'_>> {
        let film = self.film.as_ref()?;
        match direction {
            Direction::Decode => Some(subject(&film.decoder, DECODER, Phase::Decode, dims, runs)),
            Direction::Encode => film.encoder.as_ref().map(|part| subject(part, ENCODER, Phase::Condition, dims, runs)),
        }
    }
}

/// Whether `running` computes `model`.
fn is_of(running: &mut Running<'_>, model: &Model) -> bool {
    std::ptr::eq(running.session().model(), model)
}

/// Zeros what a film may not find of another.
fn forget(running: &mut Running<'_>, ports: &[Port]) -> Result<()> {
    ports.iter().try_for_each(|&port| running.session().clear(port))
}

impl Autoencoder for AutoencoderCausal {
    fn channels(&self) -> usize {
        self.config.z_dim
    }

    fn factor(&self) -> usize {
        self.config.factor()
    }

    fn frame_factor(&self) -> usize {
        self.config.frames_of_latent()
    }

    fn goes(&self, direction: Direction) -> bool {
        direction == Direction::Decode || self.encoder.is_some()
    }

    fn subjects(&self, settings: &Settings, direction: Direction, pictures: usize) -> Vec<Subject<'_>> {
        // What a video refers to is encoded picture by picture, and not decoded.
        let [w, h, frames, ..] = self.latents(&Settings { front_frames: 0, ..settings.clone() });
        let dims = Dims::new().with(Symbol::BATCH, 1).with(Symbol::LATENT_WIDTH, w).with(Symbol::LATENT_HEIGHT, h);
        if frames > 1 {
            let runs = Runs::of_films(pictures, frames - 1);
            return self.film_subject(direction, dims, runs).into_iter().collect();
        }
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
        let (net, width) = (&self.decoder.net, self.factor() * running.dim(Symbol::LATENT_WIDTH)?);
        let own = self.latent_frame(latents, latents.len() / self.config.z_dim.max(1), 0)?;
        let ports = (net.latents, &own[..], net.picture);
        self.config.given(self.compute(run, running, Cadence::Request, ports)?, width)
    }

    fn decode_video(
        &self,
        run: &mut Run<'_>,
        running: &mut Running<'_>,
        latents: &[f32],
        sink: &mut FrameSink<'_>,
    ) -> Result<()> {
        let [w, h] = [running.dim(Symbol::LATENT_WIDTH)?, running.dim(Symbol::LATENT_HEIGHT)?];
        let frames = latents.len() / (w * h * self.config.z_dim).max(1);
        let film = self.film.as_ref().filter(|film| is_of(running, &film.decoder.net.model));
        let Some(net) = film.map(|film| &film.decoder.net) else {
            let samples = self.decode(run, running, latents)?;
            return sink(run, 0, 0..h * self.factor(), samples);
        };
        for band in 0..running.session().bands() {
            running.session().choose_band(band)?;
            forget(running, &net.cleared)?;
            let mut number = 0;
            for frame in 0..frames {
                let own = self.latent_frame(latents, w * h, frame)?;
                let (cadence, from, to) = match frame {
                    0 => (Cadence::Request, net.first_latents, net.first_picture),
                    _ => (Cadence::Step, net.latents, net.pictures),
                };
                let made = self.compute(run, running, cadence, (from, &own, to))?;
                let (rows, patch) = (running.session().rows(to)?, self.config.patch());
                let count = if frame == 0 { 1 } else { self.frame_factor() };
                for samples in made.chunks_exact((made.len() / count).max(1)) {
                    let samples = self.config.given(reserve::repeat("a frame", samples, 1)?, w * self.factor())?;
                    sink(run, number, rows.start * patch..rows.end * patch, samples)?;
                    number += 1;
                }
            }
        }
        Ok(())
    }

    fn encode(&self, run: &mut Run<'_>, running: &mut Running<'_>, samples: &[f32]) -> Result<Vec<f32>> {
        let encoder = self.encoder.as_ref().ok_or_else(|| Error::graph("encode", "the autoencoder has no encoder"))?;
        let width = self.factor() * running.dim(Symbol::LATENT_WIDTH)?;
        let taken = self.config.taken(reserve::repeat("a picture", samples, 1)?, width)?;
        let film = self.film.as_ref().and_then(|film| film.encoder.as_ref()).map(|part| &part.net);
        let ports = match film {
            Some(film) if is_of(running, &film.model) => (film.first_picture, &taken[..], film.first_moments),
            _ => (encoder.net.picture, &taken[..], encoder.net.moments),
        };
        self.compute(run, running, Cadence::Request, ports)
    }

    fn encode_video(
        &self,
        run: &mut Run<'_>,
        running: &mut Running<'_>,
        frames: usize,
        source: &mut dyn FnMut(usize) -> Result<Vec<f32>>,
    ) -> Result<Vec<f32>> {
        let film = self.film.as_ref().and_then(|film| film.encoder.as_ref()).map(|part| &part.net);
        let Some(net) = film.filter(|film| is_of(running, &film.model)) else {
            return match frames {
                1 => self.encode(run, running, &source(0)?),
                _ => Err(Error::graph("encode", "an autoencoder of pictures, and a video")),
            };
        };
        forget(running, &net.cleared)?;
        let [w, h] = [running.dim(Symbol::LATENT_WIDTH)?, running.dim(Symbol::LATENT_HEIGHT)?];
        let (each, latent_frames) = (self.frame_factor(), frames.saturating_sub(1) / self.frame_factor() + 1);
        let (plane, channels) = (w * h, 2 * self.config.z_dim);
        let mut all = reserve::zeros("the latents", plane * latent_frames * channels)?;
        for frame in 0..latent_frames {
            let numbers = if frame == 0 { 0..1 } else { 1 + (frame - 1) * each..1 + frame * each };
            let mut taken = Vec::new();
            for number in numbers {
                let samples = self.config.taken(source(number)?, w * self.factor())?;
                if taken.is_empty() {
                    taken = reserve::room("frames", samples.len() * each)?;
                }
                taken.extend_from_slice(&samples);
            }
            let (cadence, from, to) = match frame {
                0 => (Cadence::Request, net.first_picture, net.first_moments),
                _ => (Cadence::Step, net.pictures, net.moments),
            };
            let moments = self.compute(run, running, cadence, (from, &taken, to))?;
            let planes = all.chunks_exact_mut(plane).skip(frame).step_by(latent_frames);
            planes.zip(moments.chunks_exact(plane)).for_each(|(to, from)| to.copy_from_slice(from));
        }
        Ok(all)
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
