//! The autoencoders of a model: the full one, and a tiny one for previews or in its stead.

use super::fit::{self, Side};
use super::opened::{Autoencoder, Direction, once, subject};
use super::request::Settings;
use super::run::{Run, Running};
use crate::models::autoencoder_tiny::softened;
use crate::plan::Phase;
use crate::plan::measure::Subject;
use crate::source::Source;
use crate::source::networks::{self, AutoencoderCausal, AutoencoderKl, AutoencoderTiny};
use crate::source::slot::{TINY_VAE, VAE};
use crate::stage::{Cadence, Dims, Symbol};
use crate::{Error, Result, reserve};

/// The names of its subjects.
const TINY_ENCODER: &str = "tiny_encoder";
const TINY_DECODER: &str = "tiny_decoder";

/// The autoencoder that a model has: the full one, or, if it has none, the tiny one.
pub(super) enum Vae {
    Kl(Box<AutoencoderKl>),
    Causal(Box<AutoencoderCausal>),
    Tiny(Box<AutoencoderTiny>),
}

impl Vae {
    /// That of `source`, with latents that are multiplied by `scale`, if it is given and the file of a full one does not say.
    ///
    /// # Errors
    /// [`Error::NotAModel`] if there is none; [`Error::Mismatch`] if it makes no pictures in colour.
    pub(super) fn open(source: &Source, scale: Option<f32>) -> Result<Vae> {
        let vae = match source.has(&TINY_VAE) && !source.has(&VAE) {
            true => Vae::Tiny(Box::new(networks::autoencoder_tiny(source.component(&TINY_VAE)?)?)),
            false => Vae::Kl(Box::new(networks::autoencoder_kl_of(source.component(&VAE)?, scale)?)),
        };
        let channels = match &vae {
            Vae::Kl(kl) => kl.config.out_channels,
            Vae::Causal(causal) => causal.config.colours(),
            Vae::Tiny(tiny) => tiny.config.out_channels,
        };
        vae.exactly("channels of a picture", channels, 3)?;
        Ok(vae)
    }

    /// That of `source`, of a family whose full one is causal.
    ///
    /// # Errors
    /// As [`open`](Vae::open).
    pub(super) fn open_causal(source: &Source) -> Result<Vae> {
        Vae::causal(networks::autoencoder_causal(source.component(&VAE)?)?)
    }

    /// The same, for films.
    ///
    /// # Errors
    /// As [`open`](Vae::open).
    pub(super) fn open_causal_of_films(source: &Source) -> Result<Vae> {
        Vae::causal(networks::autoencoder_causal_of_films(source.component(&VAE)?)?)
    }

    /// That of `source`, of a family whose full one is causal and makes pictures with an opacity.
    ///
    /// # Errors
    /// As [`open`](Vae::open).
    pub(super) fn open_causal_with_opacity(source: &Source) -> Result<Vae> {
        Vae::causal_of(networks::autoencoder_causal(source.component(&VAE)?)?, 4)
    }

    fn causal(causal: AutoencoderCausal) -> Result<Vae> {
        Vae::causal_of(causal, 3)
    }

    fn causal_of(causal: AutoencoderCausal, channels: usize) -> Result<Vae> {
        fit::exactly(&causal.decoder, "channels of a picture", causal.config.colours(), channels)?;
        Ok(Vae::Causal(Box::new(causal)))
    }

    /// The tiny one of `source` beside it, or once more; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if it is for other latents.
    pub(super) fn tiny(&self, source: &Source) -> Result<Option<Box<dyn Autoencoder>>> {
        if !source.has(&TINY_VAE) {
            return Ok(None);
        }
        let tiny = networks::autoencoder_tiny(source.component(&TINY_VAE)?)?;
        let latents = self.side("the latent channels of the autoencoder", self.channels());
        let tiny_latents = Side::of(&tiny.decoder, "latent channels of the tiny autoencoder", tiny.channels());
        fit::equal(source, tiny_latents, latents)?;
        fit::exactly(&tiny.decoder, "channels of a picture", tiny.config.out_channels, 3)?;
        fit::exactly(&tiny.decoder, "pixels to a latent", tiny.factor(), self.factor())?;
        Ok(Some(Box::new(tiny)))
    }

    /// `number`, which is `what` of it.
    pub(super) fn side<'a>(&'a self, what: &'a str, number: usize) -> Side<'a> {
        match self {
            Vae::Kl(kl) => Side::of(&kl.decoder, what, number),
            Vae::Causal(causal) => Side::of(&causal.decoder, what, number),
            Vae::Tiny(tiny) => Side::of(&tiny.decoder, what, number),
        }
    }

    /// Refuses `number`, which is `what` of it, unless it is `only`.
    ///
    /// # Errors
    /// [`Error::Mismatch`].
    pub(super) fn exactly(&self, what: &str, number: usize, only: usize) -> Result<()> {
        match self {
            Vae::Kl(kl) => fit::exactly(&kl.decoder, what, number, only),
            Vae::Causal(causal) => fit::exactly(&causal.decoder, what, number, only),
            Vae::Tiny(tiny) => fit::exactly(&tiny.decoder, what, number, only),
        }
    }

    /// Channels of the latents.
    pub(super) fn channels(&self) -> usize {
        self.autoencoder().channels()
    }

    /// Pixels of a latent, in both directions.
    pub(super) fn factor(&self) -> usize {
        self.autoencoder().factor()
    }

    fn autoencoder(&self) -> &dyn Autoencoder {
        match self {
            Vae::Kl(kl) => &**kl,
            Vae::Causal(causal) => &**causal,
            Vae::Tiny(tiny) => &**tiny,
        }
    }

    /// As the part of an opened model.
    pub(super) fn boxed(self) -> Box<dyn Autoencoder> {
        match self {
            Vae::Kl(kl) => kl,
            Vae::Causal(causal) => causal,
            Vae::Tiny(tiny) => tiny,
        }
    }
}

impl Autoencoder for AutoencoderTiny {
    fn channels(&self) -> usize {
        self.config.latent_channels
    }

    fn factor(&self) -> usize {
        self.config.factor()
    }

    fn goes(&self, direction: Direction) -> bool {
        direction == Direction::Decode || self.encoder.is_some()
    }

    fn draws(&self) -> bool {
        false
    }

    fn subjects(&self, settings: &Settings, direction: Direction, pictures: usize) -> Vec<Subject<'_>> {
        let [w, h, ..] = self.latents(settings);
        let dims = Dims::new().with(Symbol::BATCH, 1).with(Symbol::LATENT_WIDTH, w).with(Symbol::LATENT_HEIGHT, h);
        match direction {
            Direction::Decode => vec![subject(&self.decoder, TINY_DECODER, Phase::Decode, dims, once(pictures))],
            Direction::Encode => {
                let encoder = self.encoder.iter();
                let runs = once(pictures);
                encoder.map(|part| subject(part, TINY_ENCODER, Phase::Condition, dims.clone(), runs)).collect()
            }
        }
    }

    fn decode(&self, run: &mut Run<'_>, running: &mut Running<'_>, latents: &[f32]) -> Result<Vec<f32>> {
        let (net, config) = (&self.decoder.net, &self.config);
        let scaled = latents.iter().map(|x| softened(x / config.scaling_factor + config.shift_factor));
        running.set(net.latents, &reserve::collect("the latents", latents.len(), scaled)?)?;
        run.compute(running, Cadence::Request)?;
        let mut samples = running.get(net.picture)?;
        for sample in &mut samples {
            *sample = 2.0 * *sample - 1.0;
        }
        Ok(samples)
    }

    fn encode(&self, run: &mut Run<'_>, running: &mut Running<'_>, samples: &[f32]) -> Result<Vec<f32>> {
        let encoder = self.encoder.as_ref();
        let net = &encoder.ok_or_else(|| Error::graph("encode", "the tiny autoencoder has no encoder"))?.net;
        let levels = samples.iter().map(|sample| (sample + 1.0) / 2.0);
        running.set(net.picture, &reserve::collect("the picture", samples.len(), levels)?)?;
        run.compute(running, Cadence::Request)?;
        let mut moments = running.get(net.latents)?;
        // They stand for their own mean, and nothing is drawn.
        let both = 2 * moments.len();
        reserve::resize("the latents", &mut moments, both)?;
        Ok(moments)
    }

    fn normalize(&self, latents: &mut [f32]) -> Result<()> {
        let config = &self.config;
        for x in latents {
            *x = (*x - config.shift_factor) * config.scaling_factor;
        }
        Ok(())
    }
}
