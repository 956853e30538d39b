//! The tiny autoencoder's settings.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::models::config::{self as settings, MOST_LAYERS, MOST_WIDTH, Shapes};
use crate::tensor::Shape;

/// The settings of a tiny autoencoder, by their names in diffusers' `config.json` and with its defaults.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Config {
    /// Channels of a picture that is encoded.
    pub in_channels: usize,
    /// Channels of a decoded picture.
    pub out_channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Channels of each level of the encoder, the largest map first: all the same.
    pub encoder_block_out_channels: Vec<usize>,
    /// How many blocks each level of the encoder has, the largest map first.
    pub num_encoder_blocks: Vec<usize>,
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
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            encoder_block_out_channels: vec![CHANNELS; 4],
            num_encoder_blocks: vec![1, 3, 3, 3],
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
    /// The convolution of what comes in; the decoder's is before a ReLU.
    First,
    /// Three convolutions, added to what came in.
    Block,
    /// The convolution of a map that was doubled.
    Upsample,
    /// The convolution at every other pixel.
    Downsample,
    /// The convolution that gives the picture, or the latents.
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
            let count = (0..MOST_LAYERS)
                .take_while(|i| shapes.has(&format!("decoder.layers.{}.conv.0.weight", number + i)))
                .count();
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

    /// The same with the sizes of the encoder, read off its weights in the file `origin`.
    ///
    /// # Errors
    /// As [`from_shapes`](Config::from_shapes), and those of [`validate_encoder`](Config::validate_encoder).
    pub fn with_encoder(self, shape_of: impl Fn(&str) -> Option<Shape>, origin: &Path) -> Result<Config> {
        let shapes = Shapes::new(&shape_of, origin);
        let layer = |number: usize| format!("encoder.layers.{number}.weight");
        let [_, _, in_channels, channels] = shapes.dims(&layer(0))?;
        let (mut number, mut blocks) = (0, Vec::new());
        for _ in 0..self.num_decoder_blocks.len() {
            // A convolution, and the blocks of its level.
            shapes.dims(&layer(number))?;
            let mut count = 0;
            while count < MOST_LAYERS && shapes.has(&format!("encoder.layers.{}.conv.0.weight", number + 1 + count)) {
                count += 1;
            }
            blocks.push(count);
            number += 1 + count;
        }
        shapes.dims(&layer(number))?;
        let config = Config {
            in_channels,
            encoder_block_out_channels: vec![channels; blocks.len()],
            num_encoder_blocks: blocks,
            ..self
        };
        config.validate_encoder(origin)?;
        Ok(config)
    }

    /// Checks that the settings, which `origin` holds, make an encoder that pinhole computes, and one of the decoder's size.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for the first that does not.
    pub fn validate_encoder(&self, origin: &Path) -> Result<()> {
        let limit = |key, value, most| settings::limit(origin, key, value, 1..=most);
        limit("in_channels", self.in_channels, MOST_WIDTH)?;
        let levels = self.num_decoder_blocks.len();
        let (key, found) = ("number of num_encoder_blocks", self.num_encoder_blocks.len());
        settings::require(origin, key, found == levels, || format!("{levels}, as the decoder has"), found)?;
        let (key, channels) = ("encoder_block_out_channels", &self.encoder_block_out_channels);
        same_channels(origin, key, channels, levels)?;
        for &blocks in &self.num_encoder_blocks {
            settings::limit(origin, "num_encoder_blocks", blocks, 0..=MOST_LAYERS)?;
        }
        Ok(())
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
        same_channels(origin, "decoder_block_out_channels", channels, levels)?;
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

    /// Channels of every map in between, of the decoder; `None` without levels.
    pub(super) fn channels(&self) -> Option<usize> {
        self.decoder_block_out_channels.first().copied()
    }

    /// The same of the encoder.
    pub(super) fn encoder_channels(&self) -> Option<usize> {
        self.encoder_block_out_channels.first().copied()
    }

    /// The encoder's layers, each with its number. All have weights.
    pub(super) fn encoder_layers(&self) -> Vec<(usize, Layer)> {
        let mut layers = Vec::new();
        for (level, &blocks) in self.num_encoder_blocks.iter().enumerate() {
            layers.push((layers.len(), if level == 0 { Layer::First } else { Layer::Downsample }));
            layers.extend((layers.len()..layers.len() + blocks).map(|number| (number, Layer::Block)));
        }
        layers.push((layers.len(), Layer::Last));
        layers
    }

    /// The decoder's layers that have weights, each with its number. ReLU and doubling have numbers of their own.
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

/// Checks that each of `levels` levels has the same channels, which the setting `key` gives.
fn same_channels(origin: &Path, key: &str, channels: &[usize], levels: usize) -> Result<()> {
    let same = channels.len() == levels && channels.iter().all(|other| *other == channels[0]);
    settings::require(origin, key, same, || format!("{levels} times the same"), format!("{channels:?}"))?;
    settings::limit(origin, key, channels[0], 1..=MOST_WIDTH)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {

    use super::*;
    use crate::models::autoencoder_tiny::{TinyDecoder, TinyEncoder};

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
            let found = Config::from_shapes(|name| model.manifest().shape(name), Path::new("taesd.safetensors"));
            assert_eq!(found.unwrap(), config);
        }
        let error = Config::from_shapes(|_| None, Path::new("f")).unwrap_err();
        assert_eq!(error.to_string(), "f: decoder.layers.0.weight: expected a tensor, found none");
    }

    #[test]
    fn an_encoder_is_read_off_the_shapes() {
        for config in [
            Config::default(),
            Config {
                in_channels: 4,
                encoder_block_out_channels: vec![24; 3],
                num_encoder_blocks: vec![2, 0, 1],
                decoder_block_out_channels: vec![8; 3],
                num_decoder_blocks: vec![1, 2, 0],
                latent_channels: 16,
                ..Config::default()
            },
        ] {
            let model = TinyEncoder::new(&config).unwrap().model;
            let decoder = Config {
                in_channels: 3,
                encoder_block_out_channels: Vec::new(),
                num_encoder_blocks: Vec::new(),
                ..config.clone()
            };
            let found = decoder.clone().with_encoder(|name| model.manifest().shape(name), Path::new("f"));
            assert_eq!(found.unwrap(), config);
            let error = decoder.with_encoder(|_| None, Path::new("f")).unwrap_err();
            assert_eq!(error.to_string(), "f: encoder.layers.0.weight: expected a tensor, found none");
        }
    }

    #[test]
    fn encoders_of_other_settings_are_refused() {
        let refused = |text: &str| {
            let config = Config::from_json(text, Path::new("config.json")).unwrap();
            config.validate_encoder(Path::new("config.json")).unwrap_err().to_string()
        };
        let said = refused(r#"{"num_encoder_blocks": [1, 3, 3]}"#);
        assert!(said.contains("num_encoder_blocks: expected 4, as the decoder has, found 3"), "{said}");
        assert!(refused(r#"{"encoder_block_out_channels": [64, 64, 32, 64]}"#).contains("4 times the same"));
        assert!(refused(r#"{"in_channels": 0}"#).contains("in_channels"));
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
