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
    /// The same of the decoder, if it has others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decoder_base_dim: Option<usize>,
    /// `C`: channels of the latents.
    pub z_dim: usize,
    /// By what [`base_dim`](Config::base_dim) is multiplied on each level, that of the picture's own size first.
    pub dim_mult: Vec<usize>,
    /// `R`: how many residual blocks a level of the encoder has. The decoder's have one more.
    pub num_res_blocks: usize,
    /// Where levels have attention: nowhere.
    pub attn_scales: Vec<f32>,
    /// Which levels halve the frames as well. A single frame does not notice, unless there are shortcuts.
    pub temperal_downsample: Vec<bool>,
    /// Channels of a picture, or of a patch.
    #[serde(alias = "in_channels")]
    pub input_channels: usize,
    /// What is subtracted from each channel of the latents for the denoiser.
    pub latents_mean: Vec<f32>,
    /// By what each channel is divided after that.
    pub latents_std: Vec<f32>,
    /// Whether levels have shortcuts beside them, and the decoder keeps its channels when it doubles pixels, as in Wan 2.2.
    #[serde(skip_serializing_if = "is_false")]
    pub is_residual: bool,
    /// The side of the patches that pictures are cut into, if they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patch_size: Option<usize>,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// The side of Wan 2.2's patches, and the colours of a pixel.
const PATCH: usize = 2;
pub(super) const COLOURS: usize = 3;

/// The frames that a latent frame of a film stands for.
const FRAMES: usize = 4;

/// More levels than any autoencoder has.
const MOST_LEVELS: usize = 8;

/// Larger patches than any autoencoder has.
const MOST_PATCH: usize = 8;

/// Mean and standard deviation of each of 16 channels, as published.
const MEAN: [f32; 16] = [
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632, -0.1922,
    -0.9497, 0.2503, -0.2921,
];
const STD: [f32; 16] = [
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253,
    2.8251, 1.9160,
];

/// The same of 48 channels.
const MEAN_48: [f32; 48] = [
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891, 0.1570,
    -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502, -0.2055, -0.0322,
    0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520,
    0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
];
const STD_48: [f32; 48] = [
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165,
    0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338, 0.4889, 0.4917,
    0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600,
    0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
];

/// The same of 64 channels. That one of them is near pi / 6 means nothing.
#[allow(clippy::approx_constant)]
const MEAN_64: [f32; 64] = [
    0.5126, 0.7721, -0.0631, 1.3506, -0.7855, -2.1025, -0.3458, 1.3722, 1.8873, -1.7177, -0.6510, 0.2732, 0.7562,
    -0.6163, -1.0277, 3.8363, 2.0210, 0.0472, 0.9320, 2.0087, 2.4954, -0.1391, -1.4249, 1.8464, -0.5236, 1.2826,
    3.7046, -1.3035, 2.7286, -1.4518, -1.9036, -1.9955, -0.0342, -1.0265, -0.7636, 3.0555, 0.0746, -3.0751, -0.1076,
    1.7376, -1.0914, -1.9435, -0.2784, -1.3680, 0.4809, -0.4433, 0.3764, 0.5729, -2.0595, 1.0960, -1.3260, -2.0211,
    -5.0179, 0.5275, 4.0162, 1.8505, 0.3026, 1.9373, 1.4937, 0.2632, 0.5547, -1.7121, -0.1562, 0.0304,
];
const STD_64: [f32; 64] = [
    3.2001, 3.2936, 3.4321, 3.0091, 3.1061, 4.0379, 4.0705, 3.7910, 3.0785, 3.6500, 3.9308, 3.0904, 2.8778, 3.7675,
    3.7320, 5.0756, 3.2864, 4.0397, 3.1317, 4.0443, 2.9249, 3.9454, 3.0988, 4.2489, 3.4896, 3.8513, 3.9323, 3.4719,
    3.7498, 4.2830, 3.5694, 4.2467, 3.9037, 3.2947, 5.0770, 3.5075, 3.2700, 3.4767, 2.8063, 5.1125, 3.5327, 4.7833,
    3.1286, 4.1819, 3.8527, 3.8312, 3.5605, 4.3875, 3.9624, 4.0168, 3.5643, 4.0550, 5.5614, 4.2963, 4.4080, 3.4959,
    3.8747, 3.7608, 3.5735, 3.1490, 3.7662, 3.6746, 3.4563, 3.8161,
];

impl Default for Config {
    /// That of Wan 2.1 and Qwen-Image.
    fn default() -> Config {
        Config {
            base_dim: 96,
            decoder_base_dim: None,
            z_dim: 16,
            dim_mult: vec![1, 2, 4, 4],
            num_res_blocks: 2,
            attn_scales: Vec::new(),
            temperal_downsample: vec![false, true, true],
            input_channels: 3,
            latents_mean: MEAN.into(),
            latents_std: STD.into(),
            is_residual: false,
            patch_size: None,
        }
    }
}

/// The names of a side's blocks, in the order in which they run.
pub(super) struct Names {
    kind: &'static str,
    /// Whether levels have numbers of their own.
    nested: bool,
    level: usize,
    block: usize,
}

impl Names {
    /// The name of the next block.
    pub(super) fn next(&mut self) -> String {
        let Names { kind, nested, level, block } = *self;
        self.block += 1;
        if nested { format!("{kind}.{level}.{kind}.{block}") } else { format!("{kind}.{block}") }
    }

    /// What follows is of another level.
    pub(super) fn next_level(&mut self) {
        self.level += 1;
        self.block = if self.nested { 0 } else { self.block };
    }
}

impl Config {
    /// That of Wan 2.2 TI2V 5B.
    pub fn of_ti2v_5b() -> Config {
        Config {
            base_dim: 160,
            decoder_base_dim: Some(256),
            z_dim: MEAN_48.len(),
            input_channels: COLOURS * PATCH * PATCH,
            latents_mean: MEAN_48.into(),
            latents_std: STD_48.into(),
            is_residual: true,
            patch_size: Some(PATCH),
            ..Config::default()
        }
    }

    /// That of Qwen-Image 2.1, for pictures with an opacity.
    pub fn of_qwen_image_21() -> Config {
        Config {
            decoder_base_dim: Some(144),
            z_dim: MEAN_64.len(),
            dim_mult: vec![1, 2, 4, 8, 8],
            temperal_downsample: vec![false, true, true, true],
            input_channels: COLOURS + 1,
            latents_mean: MEAN_64.into(),
            latents_std: STD_64.into(),
            is_residual: true,
            ..Config::default()
        }
    }

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
    /// decoder, which every file has. What shapes do not tell is as published; latents of another number of channels than 16, 48 and 64 are
    /// taken as they are.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) where a weight is missing, and those of [`validate`](Config::validate).
    pub fn from_shapes(shape_of: impl Fn(&str) -> Option<Shape>, origin: &Path) -> Result<Config> {
        let shapes = Shapes::new(&shape_of, origin);
        let channels = |name: &str| Ok::<_, crate::Error>(shapes.dims(name)?.iter().product::<usize>());
        let (base, z_dim) = (channels("decoder.head.0.gamma")?, channels("conv2.bias")?);
        let input_channels = channels("decoder.head.2.bias")?;
        let is_residual = shapes.has("decoder.upsamples.0.upsamples.0.residual.2.bias");
        // The blocks of a level, and what doubles it. Of a single level, all blocks.
        let (levels, each) = if is_residual {
            let levels = shapes.count(|level| format!("decoder.upsamples.{level}.upsamples.0.residual.2.bias"));
            (levels, shapes.count(|block| format!("decoder.upsamples.0.upsamples.{block}.residual.2.bias")) + 1)
        } else {
            let resampled = |i: &usize| shapes.has(&format!("decoder.upsamples.{i}.resample.1.bias"));
            let first = (0..MOST_LAYERS).find(resampled);
            let all = shapes.count(|i| format!("decoder.upsamples.{i}.residual.2.bias"));
            ((0..MOST_LAYERS).filter(resampled).count() + 1, first.unwrap_or(all) + 1)
        };
        let block = |level: usize, block: usize| match is_residual {
            true => format!("decoder.upsamples.{level}.upsamples.{block}"),
            false => format!("decoder.upsamples.{}", level * each + block),
        };
        let mut dim_mult = Vec::with_capacity(levels);
        for level in (0..levels).rev() {
            dim_mult.push(channels(&format!("{}.residual.2.bias", block(level, 0)))? / base); // extents are never 0
        }
        // The decoder's levels are in the other order.
        let mut temperal_downsample = Vec::new();
        for level in (0..levels.saturating_sub(1)).rev() {
            temperal_downsample.push(shapes.has(&format!("{}.time_conv.bias", block(level, each.saturating_sub(1)))));
        }
        if !temperal_downsample.contains(&true) {
            temperal_downsample = (1..levels).map(|level| level > 1).collect();
        }
        let encoder = shape_of("encoder.conv1.bias").map_or(base, |shape| shape.elements());
        let published = Config::default();
        let (latents_mean, latents_std) = match z_dim {
            16 => (published.latents_mean, published.latents_std),
            48 => (MEAN_48.into(), STD_48.into()),
            64 => (MEAN_64.into(), STD_64.into()),
            _ => (vec![0.0; z_dim], vec![1.0; z_dim]),
        };
        let config = Config {
            base_dim: encoder,
            decoder_base_dim: (encoder != base).then_some(base),
            z_dim,
            dim_mult,
            num_res_blocks: each.saturating_sub(2),
            temperal_downsample,
            input_channels,
            latents_mean,
            latents_std,
            is_residual,
            patch_size: (is_residual && input_channels == COLOURS * PATCH * PATCH).then_some(PATCH),
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
        limit("decoder_base_dim", self.decoder_base_dim.unwrap_or(self.base_dim), MOST_WIDTH)?;
        let halved = (1..self.levels()).all(|level| self.decoder_channels(level).is_multiple_of(2));
        settings::require(
            origin,
            "dim_mult",
            halved || self.is_residual,
            || "even numbers of channels on all levels that are doubled".into(),
            format!("{:?}", self.dim_mult),
        )?;
        settings::require(
            origin,
            "dim_mult",
            self.has_shortcuts(),
            || "levels whose shortcuts are means and copies of whole channels".into(),
            format!("{:?}", self.dim_mult),
        )?;
        let (patch, square) = (self.patch(), self.patch().saturating_mul(self.patch()));
        limit("patch_size", patch, MOST_PATCH)?;
        let whole = self.input_channels.is_multiple_of(square);
        settings::require(
            origin,
            "in_channels",
            whole,
            || format!("a multiple of {square}, since patches are {patch}x{patch}"),
            self.input_channels,
        )?;
        let scales = format!("{:?}", self.attn_scales);
        settings::require(origin, "attn_scales", self.attn_scales.is_empty(), || "none".into(), scales)?;
        for (key, numbers) in [("latents_mean", &self.latents_mean), ("latents_std", &self.latents_std)] {
            let is_std = key == "latents_std";
            let all = numbers.len() == self.z_dim
                && numbers.iter().all(|number| number.is_finite() && (!is_std || *number > 0.0));
            settings::require(
                origin,
                key,
                all,
                || format!("{} {} numbers", self.z_dim, if is_std { "positive" } else { "finite" }),
                format!("{} numbers", numbers.len()),
            )?;
        }
        Ok(())
    }

    /// Checks that the settings, which `origin` holds, make an autoencoder that pinhole computes for films.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) if a latent frame is not four frames: the reference takes so many at a time.
    pub fn validate_films(&self, origin: &Path) -> Result<()> {
        let right = self.temperal_downsample.len() + 1 == self.levels() && self.frames_of_latent() == FRAMES;
        settings::require(
            origin,
            "temperal_downsample",
            right,
            || format!("one for each level except the last, two of them true, for {FRAMES} frames"),
            format!("{:?}", self.temperal_downsample),
        )
    }

    /// `L`: how many levels there are.
    pub fn levels(&self) -> usize {
        self.dim_mult.len()
    }

    /// The channels of a level. Level 0 is that of the picture's own size.
    pub(super) fn channels(&self, level: usize) -> usize {
        self.base_dim.saturating_mul(self.dim_mult.get(level).copied().unwrap_or(1))
    }

    /// The same of the decoder.
    pub(super) fn decoder_channels(&self, level: usize) -> usize {
        let base = self.decoder_base_dim.unwrap_or(self.base_dim);
        base.saturating_mul(self.dim_mult.get(level).copied().unwrap_or(1))
    }

    /// Whether frames are halved between `level` and the next.
    pub(super) fn is_temporal(&self, level: usize) -> bool {
        self.temperal_downsample.get(level).copied().unwrap_or(false)
    }

    /// The names of a side's blocks.
    pub(super) fn names(&self, kind: &'static str) -> Names {
        Names { kind, nested: self.is_residual, level: 0, block: 0 }
    }

    /// Whether every shortcut, if there are any, is one that is computed.
    fn has_shortcuts(&self) -> bool {
        let levels = if self.is_residual { self.levels() } else { 0 };
        (0..levels).all(|level| {
            let is_last = level + 1 == levels;
            let inputs = self.channels(level.saturating_sub(1));
            let inputs = if level == 0 { self.base_dim } else { inputs };
            let above = self.decoder_channels(if is_last { level } else { level + 1 });
            self.down(level, inputs, true).is_mean() && (level == 0 || self.up(level, above, true).is_copy())
        })
    }

    /// How many pixels of the picture a pixel of the latents stands for, each way: 8 for four levels, 16 if these are of patches.
    pub fn factor(&self) -> usize {
        (1 << self.levels().clamp(1, MOST_LEVELS).saturating_sub(1)) * self.patch()
    }

    /// The side of the patches that pictures are cut into: 1 if they are not.
    pub fn patch(&self) -> usize {
        self.patch_size.unwrap_or(1).max(1)
    }

    /// Channels of a picture: three colours, and the opacity if there are four.
    pub fn colours(&self) -> usize {
        self.input_channels / (self.patch() * self.patch())
    }

    /// How many frames a latent frame stands for, except the first of a film, which stands for one.
    pub fn frames_of_latent(&self) -> usize {
        let levels = 0..self.levels().saturating_sub(1);
        1 << levels.filter(|&level| self.is_temporal(level)).count().min(MOST_LEVELS)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::models::autoencoder_wan::{Decoder, Encoder, Whole};

    #[test]
    fn one_plane_of_three_is_left_of_the_published_size() {
        let config = Config::default();
        let (decoder, encoder) = (Decoder::new(&config).unwrap(), Encoder::new(&config).unwrap());
        let parameters = decoder.model.manifest().parameters() + encoder.model.manifest().parameters();
        // Of 126,892,531, without convolutions between frames, and without two of three planes of kernels.
        assert_eq!(parameters, 44_599_603);
        let all = |config: &Config| {
            let (decoder, encoder) = (Whole::decoder(config).unwrap(), Whole::encoder(config).unwrap());
            decoder.model.manifest().parameters() + encoder.model.manifest().parameters()
        };
        assert_eq!([all(&config), all(&Config::of_ti2v_5b())], [126_892_531, 704_688_668]);
        // Kernels of pictures alone: all that there is, without convolutions between frames.
        let config = Config::of_qwen_image_21();
        let (decoder, encoder) = (Decoder::new(&config).unwrap(), Encoder::new(&config).unwrap());
        assert_eq!(encoder.model.manifest().parameters(), 77_916_704);
        assert_eq!(decoder.model.manifest().parameters(), 253_070_484);
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
        for config in [Config::default(), odd, flat, Config::of_ti2v_5b(), Config::of_qwen_image_21()] {
            let (decoder, encoder) = (Decoder::new(&config).unwrap(), Encoder::new(&config).unwrap());
            let (decoder, encoder) = (decoder.model.manifest(), encoder.model.manifest());
            let found = Config::from_shapes(
                |name| decoder.shape(name).or_else(|| encoder.shape(name)),
                Path::new("vae.safetensors"),
            );
            assert_eq!(found.unwrap(), config);
        }
        let error = Config::from_shapes(|_| None, Path::new("vae.safetensors")).unwrap_err();
        assert_eq!(error.to_string(), "vae.safetensors: decoder.head.0.gamma: expected a tensor, found none");
    }

    #[test]
    fn impossible_settings_are_refused() {
        let refusal = |config: Config| config.validate(Path::new("c")).unwrap_err().to_string();
        let short = Config { latents_std: vec![1.0; 15], ..Config::default() };
        assert_eq!(refusal(short), "c: latents_std: expected 16 positive numbers, found 15 numbers");
        let odd = Config { is_residual: true, dim_mult: vec![1, 3, 4, 4], ..Config::default() };
        assert!(refusal(odd).contains("shortcuts"));
        assert!(refusal(Config { patch_size: Some(2), ..Config::default() }).contains("multiple of 4"));
        assert!(refusal(Config { attn_scales: vec![1.0], ..Config::default() }).contains("attn_scales"));
        assert!(refusal(Config { dim_mult: vec![], ..Config::default() }).contains("number of dim_mult"));
        assert!(refusal(Config { base_dim: 3, dim_mult: vec![1, 3], ..Config::default() }).contains("even numbers"));
        assert!(refusal(Config { dim_mult: vec![0; 4], ..Config::default() }).contains("dim_mult"));
    }
}
