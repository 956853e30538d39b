//! The networks of a FLUX model, each as its own type: what tests look into.

use pinhole::Result;
use pinhole::bind::lora;
use pinhole::models::flux::Flux;
use pinhole::models::{clip, t5};
use pinhole::source::networks::{self, AutoencoderKl};
use pinhole::source::slot::{TEXT_ENCODER, TEXT_ENCODER_2, TRANSFORMER, VAE};
use pinhole::source::{Part, Source};

/// The parts of a model.
pub(crate) struct Parts {
    pub(crate) transformer: Part<Flux>,
    pub(crate) clip: Part<clip::Clip>,
    pub(crate) clip_config: clip::Config,
    pub(crate) t5: Part<t5::T5>,
    pub(crate) t5_config: t5::Config,
    pub(crate) vae: AutoencoderKl,
}

impl Parts {
    /// Those of `source`, which has to be a whole model.
    pub(crate) fn open(source: &Source) -> Result<Parts> {
        let source = pinhole::pipeline::open(source)?.source;
        let (clip, clip_config) = networks::clip(source.component(&TEXT_ENCODER)?)?;
        let (t5, t5_config) = networks::t5(source.component(&TEXT_ENCODER_2)?)?;
        Ok(Parts {
            transformer: networks::flux(source.component(&TRANSFORMER)?)?,
            clip,
            clip_config,
            t5,
            t5_config,
            vae: networks::autoencoder_kl(source.component(&VAE)?)?,
        })
    }

    /// What LoRAs change: the transformer and the text encoders.
    pub(crate) fn lora_targets(&mut self) -> [lora::Target<'_>; 3] {
        [self.transformer.target(), self.clip.target(), self.t5.target()]
    }
}
