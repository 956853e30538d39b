//! Hyperparameters.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::models::config::{self, Shapes};
use crate::tensor::Shape;

/// Hyperparameters, named as in diffusers' `config.json`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Config {
    /// The side of a patch of latents: 2.
    pub patch_size: usize,
    /// `C`: numbers of a token of the picture.
    pub in_channels: usize,
    /// Latent channels; a quarter of `C`.
    pub out_channels: Option<usize>,
    /// Blocks.
    pub num_layers: usize,
    /// `d`
    pub attention_head_dim: usize,
    /// `H`
    pub num_attention_heads: usize,
    /// `J`: the width of the prompt's hidden states.
    pub joint_attention_dim: usize,
    /// Whether guidance is an input: it is not.
    pub guidance_embeds: bool,
    /// How `d` is shared out among the rotary axes: frame, row, column.
    pub axes_dims_rope: Vec<usize>,
    /// Whether what stands behind the picture is modulated as at time 0: in the edit model of November 2025.
    #[serde(skip_serializing_if = "is_false")]
    pub zero_cond_t: bool,
    /// Whether time comes with a second condition, in the Layered model, which is not run.
    #[serde(skip_serializing_if = "is_false")]
    pub use_additional_t_cond: bool,
    /// Whether pictures are layers of one, in the same model.
    #[serde(skip_serializing_if = "is_false")]
    pub use_layer3d_rope: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Default for Config {
    /// That of Qwen-Image.
    fn default() -> Config {
        Config {
            patch_size: PATCH,
            in_channels: 64,
            out_channels: Some(16),
            num_layers: 60,
            attention_head_dim: 128,
            num_attention_heads: 24,
            joint_attention_dim: 3584,
            guidance_embeds: false,
            axes_dims_rope: vec![16, 56, 56],
            zero_cond_t: false,
            use_additional_t_cond: false,
            use_layer3d_rope: false,
        }
    }
}

/// The side of a patch.
pub(super) const PATCH: usize = 2;

impl Config {
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
        let shapes = Shapes::new(&shape_of, origin);
        let [in_channels, hidden, ..] = shapes.dims("img_in.weight")?;
        let [head, ..] = shapes.dims("transformer_blocks.0.attn.norm_q.weight")?;
        let [joint_attention_dim, ..] = shapes.dims("txt_in.weight")?;
        let [_, outputs, ..] = shapes.dims("proj_out.weight")?;
        let config = Config {
            in_channels,
            out_channels: Some(outputs / (PATCH * PATCH)),
            num_layers: shapes.count(|i| format!("transformer_blocks.{i}.attn.norm_q.weight")),
            attention_head_dim: head,
            num_attention_heads: hidden / head, // extents are never 0
            joint_attention_dim,
            axes_dims_rope: axes(head),
            use_additional_t_cond: shapes.has("time_text_embed.addition_t_embedding.weight"),
            ..Config::default()
        };
        config.validate(origin)?;
        Ok(config)
    }

    /// `D`
    pub fn hidden(&self) -> usize {
        self.num_attention_heads.saturating_mul(self.attention_head_dim)
    }

    /// Latent channels.
    pub fn latent_channels(&self) -> usize {
        self.out_channels.unwrap_or(self.in_channels / (PATCH * PATCH))
    }

    /// `F`: the inner width of the feed-forward layers.
    pub(super) fn feed_forward(&self) -> usize {
        4 * self.hidden()
    }

    /// Checks that the settings, which `origin` holds, make a model.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for the first that does not.
    pub fn validate(&self, origin: &Path) -> Result<()> {
        let limit = |key, value, most| config::limit(origin, key, value, 1..=most);
        config::limit(origin, "patch_size", self.patch_size, PATCH..=PATCH)?;
        limit("in_channels", self.in_channels, 1 << 14)?;
        limit("num_layers", self.num_layers, config::MOST_LAYERS)?;
        limit("attention_head_dim", self.attention_head_dim, 1 << 12)?;
        limit("num_attention_heads", self.num_attention_heads, 1 << 12)?;
        limit("joint_attention_dim", self.joint_attention_dim, config::MOST_WIDTH)?;
        limit("width, attention_head_dim times num_attention_heads", self.hidden(), config::MOST_WIDTH)?;
        let same = self.latent_channels().checked_mul(PATCH * PATCH) == Some(self.in_channels);
        config::require(
            origin,
            "out_channels",
            same,
            || format!("{}, a quarter of in_channels", self.in_channels / (PATCH * PATCH)),
            self.latent_channels(),
        )?;
        let none = |key: &str, value: bool, what: &str| {
            config::require(origin, key, !value, || format!("false: {what}"), value)
        };
        none("guidance_embeds", self.guidance_embeds, "no model with guidance as an input is published")?;
        none("use_additional_t_cond", self.use_additional_t_cond, "the Layered model is not supported")?;
        none("use_layer3d_rope", self.use_layer3d_rope, "the Layered model is not supported")?;
        require_axes(origin, &self.axes_dims_rope, self.attention_head_dim)
    }
}

/// Refuses `axes_dims_rope` that do not share out a head of width `head`.
pub(super) fn require_axes(origin: &Path, axes: &[usize], head: usize) -> Result<()> {
    let sum = axes.iter().try_fold(0usize, |sum, &axis| sum.checked_add(axis));
    let even = axes.iter().all(|axis| axis.is_multiple_of(2));
    config::require(
        origin,
        "axes_dims_rope",
        axes.len() == 3 && sum == Some(head) && even,
        || format!("three even numbers with the sum attention_head_dim, {head}"),
        format!("{axes:?}"),
    )
}

/// How published models share out a head of width `head`: an eighth for frames, and the rest in halves.
pub(super) fn axes(head: usize) -> Vec<usize> {
    let frames = head / 8;
    vec![frames, (head - frames) / 2, (head - frames) / 2]
}
