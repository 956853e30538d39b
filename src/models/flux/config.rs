//! Hyperparameters.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::models::config::{self, Shapes};
use crate::tensor::Shape;

/// Hyperparameters, named as in diffusers' `config.json`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Config {
    /// Channels of an image token: latent channels times the patch's 4 pixels.
    pub in_channels: usize,
    /// Channels that come out; those that went in where absent.
    pub out_channels: Option<usize>,
    /// Double blocks, with separate weights for text and image.
    pub num_layers: usize,
    /// Single blocks, with one set of weights for both.
    pub num_single_layers: usize,
    /// `d`.
    pub attention_head_dim: usize,
    /// `H`.
    pub num_attention_heads: usize,
    /// Width of the prompt's hidden states.
    pub joint_attention_dim: usize,
    /// Width of the pooled prompt.
    pub pooled_projection_dim: usize,
    /// Whether guidance is an input (dev) or not (schnell).
    pub guidance_embeds: bool,
    /// How `d` is shared out among the rotary axes: index, row, column.
    pub axes_dims_rope: Vec<usize>,
    /// Side of a patch in the transformer itself; FLUX packs its latents beforehand, so 1.
    pub patch_size: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            in_channels: 64,
            out_channels: None,
            num_layers: 19,
            num_single_layers: 38,
            attention_head_dim: 128,
            num_attention_heads: 24,
            joint_attention_dim: 4096,
            pooled_projection_dim: 768,
            guidance_embeds: false,
            axes_dims_rope: vec![16, 56, 56],
            patch_size: 1,
        }
    }
}

impl Config {
    /// FLUX.1-dev's.
    pub fn dev() -> Config {
        Config { guidance_embeds: true, ..Config::default() }
    }

    /// FLUX.1-schnell's.
    pub fn schnell() -> Config {
        Config::default()
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

    /// Reads the sizes off the weights in the file `origin`, where `shape_of` gives the shape of a canonical name.
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
        let config = Config {
            in_channels,
            out_channels: (out_channels != in_channels).then_some(out_channels),
            num_layers: shapes.count(|i| format!("double_blocks.{i}.img_attn.qkv.weight")),
            num_single_layers: shapes.count(|i| format!("single_blocks.{i}.linear1.weight")),
            attention_head_dim: head,
            num_attention_heads: hidden / head, // extents are never 0
            joint_attention_dim: shapes.dims("txt_in.weight")?[0],
            pooled_projection_dim: shapes.dims("vector_in.in_layer.weight")?[0],
            guidance_embeds: shapes.has("guidance_in.in_layer.weight"),
            axes_dims_rope: vec![head / 8, head * 7 / 16, head * 7 / 16],
            patch_size: 1,
        };
        config.validate(origin)?;
        Ok(config)
    }

    /// `D`.
    pub fn hidden(&self) -> usize {
        self.attention_head_dim * self.num_attention_heads
    }

    /// Channels that come out.
    pub fn out_channels(&self) -> usize {
        self.out_channels.unwrap_or(self.in_channels)
    }

    /// `M`: diffusers fixes it at four times the hidden width.
    pub(super) fn feed_forward(&self) -> usize {
        4 * self.hidden()
    }

    /// Checks that the settings, which `origin` holds, make a model.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for the first that does not.
    pub fn validate(&self, origin: &Path) -> Result<()> {
        let limit = |key, value, most| config::limit(origin, key, value, 1..=most);
        limit("in_channels", self.in_channels, config::MOST_WIDTH)?;
        limit("out_channels", self.out_channels(), config::MOST_WIDTH)?;
        limit("attention_head_dim", self.attention_head_dim, 1 << 12)?;
        limit("num_attention_heads", self.num_attention_heads, 1 << 12)?;
        limit("joint_attention_dim", self.joint_attention_dim, config::MOST_WIDTH)?;
        limit("pooled_projection_dim", self.pooled_projection_dim, config::MOST_WIDTH)?;
        limit("patch_size", self.patch_size, 1)?;
        config::limit(origin, "num_layers", self.num_layers, 0..=config::MOST_LAYERS)?;
        config::limit(origin, "num_single_layers", self.num_single_layers, 0..=config::MOST_LAYERS)?;
        let whole_patches = self.in_channels.is_multiple_of(4);
        config::require(origin, "in_channels", whole_patches, || "a multiple of 4".into(), self.in_channels)?;
        let head = self.attention_head_dim;
        let axes = self.axes_dims_rope.iter().try_fold(0usize, |sum, &axis| sum.checked_add(axis));
        let shared_out = self.axes_dims_rope.len() == 3
            && axes == Some(head)
            && self.axes_dims_rope.iter().all(|axis| axis.is_multiple_of(2));
        config::require(
            origin,
            "axes_dims_rope",
            shared_out,
            || format!("three even numbers with the sum attention_head_dim, {head}"),
            format!("{:?}", self.axes_dims_rope),
        )
    }
}
