//! The tiny autoencoder's settings.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::models::config::{self as settings, MOST_LAYERS, MOST_WIDTH, Shapes};
use crate::tensor::Shape;

/// The settings of a tiny autoencoder's decoder, by their names in diffusers' `config.json` and with its defaults.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Config {
    /// Channels of a decoded picture.
    pub out_channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Channels of each level of the decoder, the smallest map first: all the same.
    pub decoder_block_out_channels: Vec<usize>,
    /// How many blocks each level of the decoder has, the smallest map first.
    pub num_decoder_blocks: Vec<usize>,
    /// How much larger a map becomes, each way, from one level to the next: 2.
    pub upsampling_scaling_factor: usize,
    /// The function after convolutions: `relu`.
    pub act_fn: String,
    /// How maps become larger: `nearest`.
    pub upsample_fn: String,
    /// What latents are multiplied by for the denoiser, after [`shift_factor`](Config::shift_factor) is subtracted.
    pub scaling_factor: f32,
    /// What is subtracted from latents for the denoiser.
    pub shift_factor: f32,
}

/// More levels than any autoencoder has.
const MOST_LEVELS: usize = 8;

/// Channels of every published one.
const CHANNELS: usize = 64;

impl Default for Config {
    fn default() -> Config {
        Config {
            out_channels: 3,
            latent_channels: 4,
            decoder_block_out_channels: vec![CHANNELS; 4],
            num_decoder_blocks: vec![3, 3, 3, 1],
            upsampling_scaling_factor: 2,
            act_fn: "relu".into(),
            upsample_fn: "nearest".into(),
            scaling_factor: 1.0,
            shift_factor: 0.0,
        }
    }
}

/// A layer that has weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layer {
    /// The convolution of the latents, before a ReLU.
    First,
    /// Three convolutions, added to what came in.
    Block,
    /// The convolution of a map that was doubled.
    Upsample,
    /// The convolution that gives the picture.
    Last,
}

impl Config {
    /// Reads the text of a `config.json`, which `origin` holds, and validates it.
    ///
    /// # Errors
    /// [`Error::Malformed`](crate::Error::Malformed) where it is not such a configuration, and those of
    /// [`validate`](Config::validate).
    pub fn from_json(text: &str, origin: &Path) -> Result<Config> {
        let config: Config = settings::from_json(text, origin)?;
        config.validate(origin)?;
        Ok(config)
    }

    /// Reads the sizes off the weights in the file `origin`, where `shape_of` gives the shape of a canonical name.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) where a weight is missing, and those of [`validate`](Config::validate).
    pub fn from_shapes(shape_of: impl Fn(&str) -> Option<Shape>, origin: &Path) -> Result<Config> {
        let shapes = Shapes::new(&shape_of, origin);
        let layer = |number: usize| format!("decoder.layers.{number}.weight");
        let [_, _, latent_channels, channels] = shapes.dims(&layer(0))?;
        // The first layer is followed by its ReLU.
        let (mut number, mut blocks) = (2, Vec::new());
        while blocks.len() < MOST_LEVELS {
            let block = |i: &usize| shapes.has(&format!("decoder.layers.{}.conv.0.weight", number + i));
            let count = (0..MOST_LAYERS).take_while(block).count();
            blocks.push(count);
            number += count;
            if shapes.has(&layer(number)) {
                break;
            }
            // Where a map is doubled, the doubling has a number of its own.
            number += 2;
            shapes.dims(&layer(number - 1))?;
        }
        let [_, _, _, out_channels] = shapes.dims(&layer(number))?;
        let config = Config {
            out_channels,
            latent_channels,
            decoder_block_out_channels: vec![channels; blocks.len()],
            num_decoder_blocks: blocks,
            ..Config::default()
        };
        config.validate(origin)?;
        Ok(config)
    }

    /// Checks that the settings, which `origin` holds, make a decoder that pinhole computes.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for the first that does not.
    pub fn validate(&self, origin: &Path) -> Result<()> {
        let limit = |key, value, most| settings::limit(origin, key, value, 1..=most);
        limit("out_channels", self.out_channels, MOST_WIDTH)?;
        limit("latent_channels", self.latent_channels, MOST_WIDTH)?;
        let (channels, levels) = (&self.decoder_block_out_channels, self.num_decoder_blocks.len());
        limit("number of num_decoder_blocks", levels, MOST_LEVELS)?;
        let same = channels.len() == levels && channels.iter().all(|other| *other == channels[0]);
        let found = || format!("{channels:?}");
        settings::require(origin, "decoder_block_out_channels", same, || format!("{levels} times the same"), found())?;
        limit("decoder_block_out_channels", channels[0], MOST_WIDTH)?;
        for &blocks in &self.num_decoder_blocks {
            settings::limit(origin, "num_decoder_blocks", blocks, 0..=MOST_LAYERS)?;
        }
        settings::limit(origin, "upsampling_scaling_factor", self.upsampling_scaling_factor, 2..=2)?;
        settings::require(origin, "act_fn", self.act_fn == "relu", || "relu".into(), &self.act_fn)?;
        settings::require(
            origin,
            "upsample_fn",
            self.upsample_fn == "nearest",
            || "nearest".into(),
            &self.upsample_fn,
        )?;
        let scales = self.scaling_factor.is_normal();
        settings::require(origin, "scaling_factor", scales, || "a number other than 0".into(), self.scaling_factor)?;
        let shifts = self.shift_factor.is_finite();
        settings::require(origin, "shift_factor", shifts, || "a finite number".into(), self.shift_factor)
    }

    /// How many pixels of the picture a pixel of the latents stands for, each way: 8 for four levels.
    pub fn factor(&self) -> usize {
        1 << self.num_decoder_blocks.len().clamp(1, MOST_LEVELS).saturating_sub(1)
    }

    /// Channels of every map in between; `None` without levels.
    pub(super) fn channels(&self) -> Option<usize> {
        self.decoder_block_out_channels.first().copied()
    }

    /// The layers that have weights, each with its number. ReLU and doubling have numbers of their own.
    pub(super) fn layers(&self) -> Vec<(usize, Layer)> {
        let (mut number, mut layers) = (2, vec![(0, Layer::First)]);
        for (level, &blocks) in self.num_decoder_blocks.iter().enumerate() {
            layers.extend((number..number + blocks).map(|number| (number, Layer::Block)));
            number += blocks;
            if level + 1 < self.num_decoder_blocks.len() {
                layers.push((number + 1, Layer::Upsample));
                number += 2;
            }
        }
        layers.push((number, Layer::Last));
        layers
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::models::autoencoder_tiny::TinyDecoder;

    #[test]
    fn configuration_is_read_off_the_shapes() {
        for config in [
            Config::default(),
            Config { latent_channels: 16, ..Config::default() },
            Config {
                decoder_block_out_channels: vec![8; 3],
                num_decoder_blocks: vec![1, 2, 0],
                out_channels: 4,
                ..Config::default()
            },
        ] {
            let model = TinyDecoder::new(&config).unwrap().model;
            let shapes: HashMap<String, Shape> =
                model.manifest().iter().map(|(_, weight)| (weight.name.clone(), weight.shape)).collect();
            let found = Config::from_shapes(|name| shapes.get(name).copied(), Path::new("taesd.safetensors"));
            assert_eq!(found.unwrap(), config);
        }
        let error = Config::from_shapes(|_| None, Path::new("f")).unwrap_err();
        assert_eq!(error.to_string(), "f: decoder.layers.0.weight: expected a tensor, found none");
    }

    #[test]
    fn other_settings_are_refused() {
        let refused = |text: &str| Config::from_json(text, Path::new("config.json")).unwrap_err().to_string();
        assert!(refused(r#"{"act_fn": "silu"}"#).contains("act_fn: expected relu, found silu"));
        assert!(refused(r#"{"upsampling_scaling_factor": 4}"#).contains("upsampling_scaling_factor"));
        assert!(refused(r#"{"decoder_block_out_channels": [64, 32, 64, 64]}"#).contains("4 times the same"));
        assert!(
            refused(r#"{"decoder_block_out_channels": [], "num_decoder_blocks": []}"#).contains("num_decoder_blocks")
        );
        assert!(refused(r#"{"scaling_factor": 0}"#).contains("scaling_factor"));
    }
}
