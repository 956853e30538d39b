//! The autoencoder's settings.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::models::config::{self as settings, MOST_LAYERS, MOST_WIDTH, Shapes};
use crate::tensor::Shape;

/// The settings of an autoencoder, by their names in diffusers' `config.json` and with its defaults.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Config {
    /// Channels of the level of the picture's own size.
    pub base_dim: usize,
    /// `C`: channels of the latents.
    pub z_dim: usize,
    /// By what [`base_dim`](Config::base_dim) is multiplied on each level, that of the picture's own size first.
    pub dim_mult: Vec<usize>,
    /// `R`: how many residual blocks a level of the encoder has. The decoder's have one more.
    pub num_res_blocks: usize,
    /// Where levels have attention: nowhere.
    pub attn_scales: Vec<f32>,
    /// Which levels halve the frames as well. A single frame does not notice.
    pub temperal_downsample: Vec<bool>,
    /// Channels of a picture.
    #[serde(alias = "in_channels")]
    pub input_channels: usize,
    /// What is subtracted from each channel of the latents for the denoiser.
    pub latents_mean: Vec<f32>,
    /// By what each channel is divided after that.
    pub latents_std: Vec<f32>,
    /// Whether resampling has shortcuts beside it, as in Wan 2.2: it has none.
    #[serde(skip_serializing_if = "is_false")]
    pub is_residual: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// More levels than any autoencoder has.
const MOST_LEVELS: usize = 8;

/// Mean and standard deviation of each of 16 channels, as published.
const MEAN: [f32; 16] = [
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632, -0.1922,
    -0.9497, 0.2503, -0.2921,
];
const STD: [f32; 16] = [
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253,
    2.8251, 1.9160,
];

impl Default for Config {
    /// That of Wan 2.1 and Qwen-Image.
    fn default() -> Config {
        Config {
            base_dim: 96,
            z_dim: 16,
            dim_mult: vec![1, 2, 4, 4],
            num_res_blocks: 2,
            attn_scales: Vec::new(),
            temperal_downsample: vec![false, true, true],
            input_channels: 3,
            latents_mean: MEAN.into(),
            latents_std: STD.into(),
            is_residual: false,
        }
    }
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

    /// Reads the sizes off the weights in the file `origin`, where `shape_of` gives the shape of a canonical name: those of the
    /// decoder, which every file has. What shapes do not tell is as published; latents of another number of channels than 16 are taken
    /// as they are.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) where a weight is missing, and those of [`validate`](Config::validate).
    pub fn from_shapes(shape_of: impl Fn(&str) -> Option<Shape>, origin: &Path) -> Result<Config> {
        let shapes = Shapes::new(&shape_of, origin);
        let channels = |name: &str| Ok::<_, crate::Error>(shapes.dims(name)?.iter().product::<usize>());
        let (base_dim, z_dim) = (channels("decoder.head.0.gamma")?, channels("conv2.bias")?);
        let input_channels = channels("decoder.head.2.bias")?;
        let resampled = |i: &usize| shapes.has(&format!("decoder.upsamples.{i}.resample.1.bias"));
        let first = (0..MOST_LAYERS).find(resampled);
        // The blocks of a level, and what doubles it. Of a single level, all blocks.
        let each = first
            .map_or_else(|| shapes.count(|i| format!("decoder.upsamples.{i}.residual.2.bias")) + 1, |first| first + 1);
        let levels = (0..MOST_LAYERS).filter(resampled).count() + 1;
        let mut dim_mult = Vec::with_capacity(levels);
        for level in (0..levels).rev() {
            let outputs = channels(&format!("decoder.upsamples.{}.residual.2.bias", level * each))?;
            dim_mult.push(outputs / base_dim); // extents are never 0
        }
        let published = Config::default();
        let (latents_mean, latents_std) = match z_dim {
            16 => (published.latents_mean, published.latents_std),
            _ => (vec![0.0; z_dim], vec![1.0; z_dim]),
        };
        let temperal_downsample = (1..levels).map(|level| level > 1).collect();
        let num_res_blocks = each.saturating_sub(2);
        let config = Config {
            base_dim,
            z_dim,
            dim_mult,
            num_res_blocks,
            temperal_downsample,
            input_channels,
            latents_mean,
            latents_std,
            ..Config::default()
        };
        config.validate(origin)?;
        Ok(config)
    }

    /// Checks that the settings, which `origin` holds, make an autoencoder that pinhole computes.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for the first that does not.
    pub fn validate(&self, origin: &Path) -> Result<()> {
        let limit = |key, value, most| settings::limit(origin, key, value, 1..=most);
        limit("base_dim", self.base_dim, MOST_WIDTH)?;
        limit("z_dim", self.z_dim, MOST_WIDTH)?;
        limit("input_channels", self.input_channels, MOST_WIDTH)?;
        limit("num_res_blocks", self.num_res_blocks, MOST_LAYERS)?;
        limit("number of dim_mult", self.levels(), MOST_LEVELS)?;
        for level in 0..self.levels() {
            limit("dim_mult", self.dim_mult[level], MOST_WIDTH)?;
            limit("base_dim times dim_mult", self.channels(level), MOST_WIDTH)?;
        }
        let halved = (1..self.levels()).all(|level| self.channels(level).is_multiple_of(2));
        let expected = || "even numbers of channels on all levels that are doubled".into();
        settings::require(origin, "dim_mult", halved, expected, format!("{:?}", self.dim_mult))?;
        let plain = !self.is_residual;
        let known = || "false: the autoencoder of Wan 2.2 is not supported".into();
        settings::require(origin, "is_residual", plain, known, self.is_residual)?;
        let found = || format!("{:?}", self.attn_scales);
        settings::require(origin, "attn_scales", self.attn_scales.is_empty(), || "none".into(), found())?;
        for (key, numbers) in [("latents_mean", &self.latents_mean), ("latents_std", &self.latents_std)] {
            let is_std = key == "latents_std";
            let right = |number: &f32| number.is_finite() && (!is_std || *number > 0.0);
            let all = numbers.len() == self.z_dim && numbers.iter().all(right);
            let expected = || format!("{} {} numbers", self.z_dim, if is_std { "positive" } else { "finite" });
            settings::require(origin, key, all, expected, format!("{} numbers", numbers.len()))?;
        }
        Ok(())
    }

    /// `L`: how many levels there are.
    pub fn levels(&self) -> usize {
        self.dim_mult.len()
    }

    /// The channels of a level, of which 0 is that of the picture's own size.
    pub(super) fn channels(&self, level: usize) -> usize {
        self.base_dim.saturating_mul(self.dim_mult.get(level).copied().unwrap_or(1))
    }

    /// How many pixels of the picture a pixel of the latents stands for, each way: 8 for four levels.
    pub fn factor(&self) -> usize {
        1 << self.levels().clamp(1, MOST_LEVELS).saturating_sub(1)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::models::autoencoder_wan::{Decoder, Encoder};

    #[test]
    fn one_plane_of_three_is_left_of_the_published_size() {
        let config = Config::default();
        let (decoder, encoder) = (Decoder::new(&config).unwrap(), Encoder::new(&config).unwrap());
        let parameters = decoder.model.manifest().parameters() + encoder.model.manifest().parameters();
        // Of 126,892,531, without convolutions between frames, and without two of three planes of kernels.
        assert_eq!(parameters, 44_599_603);
    }

    #[test]
    fn shapes_tell_the_sizes() {
        let odd = Config {
            base_dim: 24,
            z_dim: 5,
            dim_mult: vec![1, 3, 2],
            num_res_blocks: 3,
            temperal_downsample: vec![false, true],
            latents_mean: vec![0.0; 5],
            latents_std: vec![1.0; 5],
            ..Config::default()
        };
        let flat = Config { dim_mult: vec![1], temperal_downsample: vec![], ..Config::default() };
        for config in [Config::default(), odd, flat] {
            let (decoder, encoder) = (Decoder::new(&config).unwrap(), Encoder::new(&config).unwrap());
            let shape_of = |name: &str| {
                let mut weights = decoder.model.manifest().iter().chain(encoder.model.manifest().iter());
                weights.find(|(_, weight)| weight.name == name).map(|(_, weight)| weight.shape)
            };
            assert_eq!(Config::from_shapes(shape_of, Path::new("vae.safetensors")).unwrap(), config);
        }
        let error = Config::from_shapes(|_| None, Path::new("vae.safetensors")).unwrap_err();
        assert_eq!(error.to_string(), "vae.safetensors: decoder.head.0.gamma: expected a tensor, found none");
    }

    #[test]
    fn impossible_settings_are_refused() {
        let refusal = |config: Config| config.validate(Path::new("c")).unwrap_err().to_string();
        let short = Config { latents_std: vec![1.0; 15], ..Config::default() };
        assert_eq!(refusal(short), "c: latents_std: expected 16 positive numbers, found 15 numbers");
        assert!(refusal(Config { is_residual: true, ..Config::default() }).contains("Wan 2.2"));
        assert!(refusal(Config { attn_scales: vec![1.0], ..Config::default() }).contains("attn_scales"));
        assert!(refusal(Config { dim_mult: vec![], ..Config::default() }).contains("number of dim_mult"));
        assert!(refusal(Config { base_dim: 3, dim_mult: vec![1, 3], ..Config::default() }).contains("even numbers"));
        assert!(refusal(Config { dim_mult: vec![0; 4], ..Config::default() }).contains("dim_mult"));
    }
}
