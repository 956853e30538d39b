//! Hyperparameters.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::models::config::{self, Shapes};
use crate::models::flux::ports::EPS;
use crate::tensor::Shape;

/// Hyperparameters, named as in diffusers' `config.json`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Config {
    /// `C`: channels of an image token: latent channels times the patch's 4 pixels.
    pub in_channels: usize,
    /// Channels that come out; those that went in if absent.
    pub out_channels: Option<usize>,
    /// Double blocks, with separate weights for text and image.
    pub num_layers: usize,
    /// Single blocks, with one set of weights for both.
    pub num_single_layers: usize,
    /// `d`
    pub attention_head_dim: usize,
    /// `H`
    pub num_attention_heads: usize,
    /// `J`: the width of the prompt's hidden states.
    pub joint_attention_dim: usize,
    /// `S`: the width of the sinusoidal embedding of time and guidance.
    pub timestep_guidance_channels: usize,
    /// `M / D`: how much wider the feed-forward layers are inside.
    pub mlp_ratio: f64,
    /// Whether guidance is an input (dev) or not (klein).
    pub guidance_embeds: bool,
    /// How `d` is shared out among the rotary axes: picture, row, column, place in the text.
    pub axes_dims_rope: Vec<usize>,
    /// The base of the rotary frequencies.
    pub rope_theta: f64,
    /// What is added to variances in norms.
    pub eps: f32,
    /// The side of a patch in the transformer itself: latents are packed beforehand, so 1.
    pub patch_size: usize,
}

impl Default for Config {
    /// That of dev.
    fn default() -> Config {
        Config {
            in_channels: 128,
            out_channels: None,
            num_layers: 8,
            num_single_layers: 48,
            attention_head_dim: 128,
            num_attention_heads: 48,
            joint_attention_dim: 15360,
            timestep_guidance_channels: 256,
            mlp_ratio: 3.0,
            guidance_embeds: true,
            axes_dims_rope: vec![32; 4],
            rope_theta: 2000.0,
            eps: EPS,
            patch_size: 1,
        }
    }
}

impl Config {
    /// FLUX.2 klein 4B's.
    pub fn klein_4b() -> Config {
        Config {
            num_layers: 5,
            num_single_layers: 20,
            num_attention_heads: 24,
            joint_attention_dim: 7680,
            guidance_embeds: false,
            ..Config::default()
        }
    }

    /// FLUX.2 klein 9B's.
    pub fn klein_9b() -> Config {
        Config {
            num_single_layers: 24,
            num_attention_heads: 32,
            joint_attention_dim: 12288,
            guidance_embeds: false,
            ..Config::default()
        }
    }

    /// Reads the text of a `config.json`, which `origin` holds, and validates it.
    ///
    /// # Errors
    /// [`Error::Malformed`](crate::Error::Malformed) where it is no such configuration; [`Error::Mismatch`](crate::Error::Mismatch) where it makes no model.
    pub fn from_json(text: &str, origin: &Path) -> Result<Config> {
        let config: Config = config::from_json(text, origin)?;
        config.validate(origin)?;
        Ok(config)
    }

    /// Reads the sizes off the weights in the file `origin`, where `shape_of` gives the shape of a canonical name. What shapes do not
    /// tell is as in the published models.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) where a weight is missing, and those of [`validate`](Config::validate).
    pub fn from_shapes(shape_of: impl Fn(&str) -> Option<Shape>, origin: &Path) -> Result<Config> {
        const DOUBLE: &str = "double_blocks.0.img_attn.norm.query_norm.scale";
        const SINGLE: &str = "single_blocks.0.norm.query_norm.scale";
        let shapes = Shapes::new(&shape_of, origin);
        let [in_channels, hidden, ..] = shapes.dims("img_in.weight")?;
        let [_, out_channels, ..] = shapes.dims("final_layer.linear.weight")?;
        // Files without blocks of one kind have lost them.
        let ([head, ..], _) = (shapes.dims(DOUBLE)?, shapes.dims(SINGLE)?);
        let [inner, ..] = shapes.dims("double_blocks.0.img_mlp.2.weight")?;
        let config = Config {
            in_channels,
            out_channels: (out_channels != in_channels).then_some(out_channels),
            num_layers: shapes.count(|i| format!("double_blocks.{i}.img_attn.qkv.weight")),
            num_single_layers: shapes.count(|i| format!("single_blocks.{i}.linear1.weight")),
            attention_head_dim: head,
            num_attention_heads: hidden / head, // extents are never 0
            joint_attention_dim: shapes.dims("txt_in.weight")?[0],
            timestep_guidance_channels: shapes.dims("time_in.in_layer.weight")?[0],
            mlp_ratio: ratio(inner, hidden),
            guidance_embeds: shapes.has("guidance_in.in_layer.weight"),
            axes_dims_rope: vec![head / 4; 4],
            ..Config::default()
        };
        config.validate(origin)?;
        Ok(config)
    }

    /// `D`
    pub fn hidden(&self) -> usize {
        self.attention_head_dim * self.num_attention_heads
    }

    /// Channels that come out.
    pub fn out_channels(&self) -> usize {
        self.out_channels.unwrap_or(self.in_channels)
    }

    /// `M`: diffusers rounds it down.
    pub(super) fn feed_forward(&self) -> usize {
        (self.hidden() as f64 * self.mlp_ratio) as usize
    }

    /// Checks that the settings, which `origin` holds, make a model.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for the first that does not.
    pub fn validate(&self, origin: &Path) -> Result<()> {
        let limit = |key, value, most| config::limit(origin, key, value, 1..=most);
        limit("in_channels", self.in_channels, config::MOST_WIDTH)?;
        limit("attention_head_dim", self.attention_head_dim, 1 << 12)?;
        limit("num_attention_heads", self.num_attention_heads, 1 << 12)?;
        limit("joint_attention_dim", self.joint_attention_dim, config::MOST_WIDTH)?;
        limit("timestep_guidance_channels", self.timestep_guidance_channels, config::MOST_WIDTH)?;
        limit("patch_size", self.patch_size, 1)?;
        config::limit(origin, "num_layers", self.num_layers, 0..=config::MOST_LAYERS)?;
        config::limit(origin, "num_single_layers", self.num_single_layers, 0..=config::MOST_LAYERS)?;
        let whole_patches = self.in_channels.is_multiple_of(4);
        config::require(origin, "in_channels", whole_patches, || "a multiple of 4".into(), self.in_channels)?;
        // Pictures that it looks at stand behind its latents, and not beside them.
        let out_channels = self.out_channels();
        config::require(
            origin,
            "out_channels",
            out_channels == self.in_channels,
            || self.in_channels.to_string(),
            out_channels,
        )?;
        let halves = self.timestep_guidance_channels;
        let key = "timestep_guidance_channels";
        config::require(origin, key, halves.is_multiple_of(2), || "an even number".into(), halves)?;
        let widens = self.mlp_ratio > 0.0 && self.mlp_ratio <= 64.0 && self.feed_forward() > 0;
        config::require(origin, "mlp_ratio", widens, || "a number above 0, at most 64".into(), self.mlp_ratio)?;
        config::require(origin, "eps", self.eps == EPS, || EPS.to_string(), self.eps)?;
        let turns = self.rope_theta.is_finite() && self.rope_theta >= 1.0;
        config::require(origin, "rope_theta", turns, || "a number from 1 on".into(), self.rope_theta)?;
        let head = self.attention_head_dim;
        let axes = self.axes_dims_rope.iter().try_fold(0usize, |sum, &axis| sum.checked_add(axis));
        let shared_out = self.axes_dims_rope.len() == 4
            && axes == Some(head)
            && self.axes_dims_rope.iter().all(|axis| axis.is_multiple_of(2));
        config::require(
            origin,
            "axes_dims_rope",
            shared_out,
            || format!("four even numbers with the sum attention_head_dim, {head}"),
            format!("{:?}", self.axes_dims_rope),
        )
    }
}

/// The number that gives `inner` if `hidden` is multiplied by it and the rest is cut off.
pub(in crate::models::flux) fn ratio(inner: usize, hidden: usize) -> f64 {
    let ratio = inner as f64 / hidden as f64;
    if (hidden as f64 * ratio) as usize == inner { ratio } else { ratio.next_up() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_gives_the_width_that_it_was_made_of() {
        for hidden in 1..200 {
            for inner in 1..600 {
                assert_eq!((hidden as f64 * ratio(inner, hidden)) as usize, inner, "{inner} of {hidden}");
            }
        }
        assert_eq!(ratio(9216, 3072), 3.0);
    }
}
