//! The autoencoder's settings.

use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};

use super::patches::PATCH;
use crate::Result;
use crate::models::config::{self as settings, MOST_LAYERS, MOST_WIDTH, Shapes};
use crate::tensor::Shape;

/// The settings of an autoencoder, by their names in diffusers' `config.json` and with its defaults.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Config {
    /// Channels of a picture to encode.
    pub in_channels: usize,
    /// Channels of a decoded picture.
    pub out_channels: usize,
    /// Channels of each level, level 0 first.
    pub block_out_channels: Vec<usize>,
    /// How many residual blocks a level of the encoder has. The decoder's have one more.
    pub layers_per_block: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// How many groups of channels are normalised each by itself.
    pub norm_num_groups: usize,
    /// The function after norms: `silu`.
    pub act_fn: String,
    /// What latents are multiplied by for the denoiser, after [`shift_factor`](Config::shift_factor) is subtracted.
    pub scaling_factor: f32,
    /// What is subtracted from latents for the denoiser; 0 where the file says null.
    #[serde(deserialize_with = "null_as_zero")]
    pub shift_factor: f32,
    /// Whether the encoder ends in a convolution of the moments.
    pub use_quant_conv: bool,
    /// Whether the decoder begins with a convolution of the latents.
    pub use_post_quant_conv: bool,
    /// Whether the middle has attention.
    pub mid_block_add_attention: bool,
    /// Channels of each level of the decoder, if these are not the encoder's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decoder_block_out_channels: Option<Vec<usize>>,
    /// What is added to the variance of latents in patches of 2x2, by which these are normalised for the denoiser; `None` if latents
    /// are scaled and shifted instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_norm_eps: Option<f32>,
    /// Height and width of these patches: 2 and 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patch_size: Option<Vec<usize>>,
    /// The kinds of the encoder's levels, all `DownEncoderBlock2D`.
    pub down_block_types: Vec<String>,
    /// The kinds of the decoder's levels, all `UpDecoderBlock2D`.
    pub up_block_types: Vec<String>,
}

/// What is added to the variance in norms: diffusers' encoders and decoders have no setting for it.
pub(super) const NORM_EPS: f32 = 1e-6;

/// [`batch_norm_eps`](Config::batch_norm_eps) as published: taken if latents are normalised and no setting says more.
pub const BATCH_NORM_EPS: f32 = 1e-4;

/// More levels than any autoencoder has.
const MOST_LEVELS: usize = 8;

/// Scale and shift as published with 16 channels: taken for latents of 16 channels that come without settings.
const SIXTEEN_CHANNELS: (f32, f32) = (0.3611, 0.1159);

/// Mean and variance of patches of latents, by channel.
pub(super) const STATISTICS: [&str; 2] = ["bn.running_mean", "bn.running_var"];

const DOWN_BLOCK: &str = "DownEncoderBlock2D";
const UP_BLOCK: &str = "UpDecoderBlock2D";

impl Default for Config {
    fn default() -> Config {
        Config {
            in_channels: 3,
            out_channels: 3,
            block_out_channels: vec![64],
            layers_per_block: 1,
            latent_channels: 4,
            norm_num_groups: 32,
            act_fn: "silu".into(),
            scaling_factor: 0.18215,
            shift_factor: 0.0,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
            decoder_block_out_channels: None,
            batch_norm_eps: None,
            patch_size: None,
            down_block_types: vec![DOWN_BLOCK.into()],
            up_block_types: vec![UP_BLOCK.into()],
        }
    }
}

fn null_as_zero<'de, D: Deserializer<'de>>(value: D) -> Result<f32, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or(0.0))
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

    /// Reads the sizes off the weights in the file `origin`, where `shape_of` gives the shape of a canonical name. Where
    /// the file has the encoder and its latents are scaled, it is asked only for names whose aliases do not depend on the number of
    /// levels.
    ///
    /// What shapes do not tell is as published: groups, and scale and shift, by the number of latent channels.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) where a weight is missing, and those of [`validate`](Config::validate).
    pub fn from_shapes(shape_of: impl Fn(&str) -> Option<Shape>, origin: &Path) -> Result<Config> {
        let shapes = Shapes::new(&shape_of, origin);
        let [_, _, latent_channels, _] = shapes.dims("decoder.conv_in.weight")?;
        let [_, _, _, out_channels] = shapes.dims("decoder.conv_out.weight")?;
        // Some files come without the encoder; the decoder has a block more on every level.
        let encoder = shapes.has("encoder.conv_in.weight");
        let in_channels = if encoder { shapes.dims("encoder.conv_in.weight")?[2] } else { out_channels };
        let (side, more) = if encoder { ("encoder.down", 0) } else { ("decoder.up", 1) };
        let kernel = |level, block| format!("{side}.{level}.block.{block}.conv1.weight");
        // A level that one side lacks is missed later.
        let levels = shapes.count(|level| format!("decoder.up.{level}.block.0.conv1.weight"));
        let levels = levels.max(shapes.count(|level| kernel(level, 0)));
        let block_out_channels =
            (0..levels).map(|level| Ok(shapes.dims(&kernel(level, 0))?[3])).collect::<Result<Vec<usize>>>()?;
        let is_normalised = shapes.has(STATISTICS[0]);
        let mut decoder_block_out_channels = None;
        if is_normalised && encoder {
            let own = (0..levels)
                .map(|level| Ok(shapes.dims(&format!("decoder.up.{level}.block.0.conv1.weight"))?[3]))
                .collect::<Result<Vec<usize>>>()?;
            decoder_block_out_channels = (own != block_out_channels).then_some(own);
        }
        let (scaling_factor, shift_factor) = match latent_channels {
            _ if is_normalised => (1.0, 0.0),
            16 => SIXTEEN_CHANNELS,
            _ => (Config::default().scaling_factor, 0.0),
        };
        let config = Config {
            in_channels,
            out_channels,
            block_out_channels,
            decoder_block_out_channels,
            batch_norm_eps: is_normalised.then_some(BATCH_NORM_EPS),
            layers_per_block: shapes.count(|block| kernel(0, block)).saturating_sub(more),
            latent_channels,
            scaling_factor,
            shift_factor,
            use_quant_conv: shapes.has("quant_conv.weight"),
            use_post_quant_conv: shapes.has("post_quant_conv.weight"),
            mid_block_add_attention: shapes.has("decoder.mid.attn_1.q.weight"),
            down_block_types: vec![DOWN_BLOCK.into(); levels],
            up_block_types: vec![UP_BLOCK.into(); levels],
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
        limit("in_channels", self.in_channels, MOST_WIDTH)?;
        limit("out_channels", self.out_channels, MOST_WIDTH)?;
        limit("latent_channels", self.latent_channels, MOST_WIDTH)?;
        limit("layers_per_block", self.layers_per_block, MOST_LAYERS)?;
        limit("number of block_out_channels", self.levels(), MOST_LEVELS)?;
        let groups = self.norm_num_groups;
        limit("norm_num_groups", groups, MOST_WIDTH)?;
        for &channels in self.block_out_channels.iter().chain(self.decoder_channels()) {
            limit("block_out_channels", channels, MOST_WIDTH)?;
            settings::require(
                origin,
                "block_out_channels",
                channels.is_multiple_of(groups),
                || format!("multiples of norm_num_groups, {groups}"),
                channels,
            )?;
        }
        let own_levels = self.decoder_channels().len();
        settings::require(
            origin,
            "number of decoder_block_out_channels",
            own_levels == self.levels(),
            || format!("{}, as many as block_out_channels", self.levels()),
            own_levels,
        )?;
        if let Some(eps) = self.batch_norm_eps {
            let adds = eps.is_finite() && eps > 0.0;
            settings::require(origin, "batch_norm_eps", adds, || "a positive number".into(), eps)?;
        }
        if let Some(sides) = &self.patch_size {
            let known = sides[..] == [PATCH; 2];
            settings::require(origin, "patch_size", known, || "[2, 2]".into(), format!("{sides:?}"))?;
        }
        self.validate_kinds(origin, "down_block_types", &self.down_block_types, DOWN_BLOCK)?;
        self.validate_kinds(origin, "up_block_types", &self.up_block_types, UP_BLOCK)?;
        let silu = ["silu", "swish"].contains(&self.act_fn.as_str());
        settings::require(origin, "act_fn", silu, || "silu".into(), &self.act_fn)?;
        let scales = self.scaling_factor.is_normal();
        settings::require(origin, "scaling_factor", scales, || "a number other than 0".into(), self.scaling_factor)?;
        let shifts = self.shift_factor.is_finite();
        settings::require(origin, "shift_factor", shifts, || "a finite number".into(), self.shift_factor)
    }

    fn validate_kinds(&self, origin: &Path, key: &str, kinds: &[String], known: &str) -> Result<()> {
        let right = kinds.len() == self.levels() && kinds.iter().all(|kind| kind == known);
        settings::require(origin, key, right, || format!("{known} {} times", self.levels()), kinds.join(", "))
    }

    /// Channels of each level of the decoder.
    pub(super) fn decoder_channels(&self) -> &[usize] {
        self.decoder_block_out_channels.as_ref().unwrap_or(&self.block_out_channels)
    }

    /// How many levels there are.
    pub fn levels(&self) -> usize {
        self.block_out_channels.len()
    }

    /// How many pixels of the picture a pixel of the latents stands for, each way: 8 for four levels.
    pub fn factor(&self) -> usize {
        1 << self.levels().clamp(1, MOST_LEVELS).saturating_sub(1)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::*;
    use crate::models::autoencoder_kl::{Decoder, Encoder};

    /// The autoencoder of FLUX.1.
    pub(in super::super) fn flux() -> Config {
        Config {
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            latent_channels: 16,
            scaling_factor: 0.3611,
            shift_factor: 0.1159,
            use_quant_conv: false,
            use_post_quant_conv: false,
            down_block_types: vec![DOWN_BLOCK.into(); 4],
            up_block_types: vec![UP_BLOCK.into(); 4],
            ..Config::default()
        }
    }

    #[test]
    fn flux_has_its_published_size() {
        let (decoder, encoder) = (Decoder::new(&flux()).unwrap(), Encoder::new(&flux()).unwrap());
        let parameters = decoder.model.manifest().parameters() + encoder.model.manifest().parameters();
        assert_eq!(parameters, 83_819_683);
    }

    #[test]
    fn shapes_tell_the_sizes() {
        let sd = Config {
            latent_channels: 4,
            scaling_factor: 0.18215,
            shift_factor: 0.0,
            use_quant_conv: true,
            use_post_quant_conv: true,
            ..flux()
        };
        let odd = Config {
            block_out_channels: vec![32, 96],
            layers_per_block: 1,
            mid_block_add_attention: false,
            use_quant_conv: false,
            down_block_types: vec![DOWN_BLOCK.into(); 2],
            up_block_types: vec![UP_BLOCK.into(); 2],
            ..sd.clone()
        };
        for config in [flux(), sd, odd] {
            let (decoder, encoder) = (Decoder::new(&config).unwrap(), Encoder::new(&config).unwrap());
            let (decoder, encoder) = (decoder.model.manifest(), encoder.model.manifest());
            let shape_of = |name: &str| decoder.shape(name).or_else(|| encoder.shape(name));
            assert_eq!(Config::from_shapes(shape_of, Path::new("ae.safetensors")).unwrap(), config);
            let without_encoder = Config::from_shapes(
                |name| shape_of(name).filter(|_| !name.starts_with("encoder.")),
                Path::new("ae.safetensors"),
            );
            assert_eq!(without_encoder.unwrap(), config);
        }
        let error = Config::from_shapes(|_| None, Path::new("ae.safetensors")).unwrap_err();
        assert_eq!(error.to_string(), "ae.safetensors: decoder.conv_in.weight: expected a tensor, found none");
    }

    #[test]
    fn settings_are_read_with_their_defaults() {
        let read = |text: &str| Config::from_json(text, Path::new("config.json"));
        assert_eq!(read("{}").unwrap(), Config::default());
        assert_eq!(read(r#"{"shift_factor": null, "latents_mean": null}"#).unwrap().shift_factor, 0.0);
        assert_eq!(read(r#"{"shift_factor": -0.5}"#).unwrap().shift_factor, -0.5);
        assert_eq!(read(&serde_json::to_string(&flux()).unwrap()).unwrap(), flux());
        assert_eq!((flux().levels(), flux().factor(), Config::default().factor()), (4, 8, 1));
    }

    #[test]
    fn impossible_settings_are_refused() {
        let refusal = |config: Config| config.validate(Path::new("c")).unwrap_err().to_string();
        assert_eq!(
            refusal(Config { norm_num_groups: 3, ..flux() }),
            "c: block_out_channels: expected multiples of norm_num_groups, 3, found 128"
        );
        assert_eq!(
            refusal(Config { up_block_types: vec!["AttnUpDecoderBlock2D".into(); 4], ..flux() })
                .split(", found")
                .next(),
            Some("c: up_block_types: expected UpDecoderBlock2D 4 times")
        );
        assert_eq!(refusal(Config { act_fn: "relu".into(), ..flux() }), "c: act_fn: expected silu, found relu");
        assert!(refusal(Config { scaling_factor: 0.0, ..flux() }).contains("scaling_factor"));
        assert!(refusal(Config { block_out_channels: vec![], ..flux() }).contains("number of block_out_channels"));
        assert!(refusal(Config { norm_num_groups: 0, ..flux() }).contains("norm_num_groups"));
        assert!(refusal(Config { shift_factor: f32::INFINITY, ..flux() }).contains("shift_factor"));
    }
}
