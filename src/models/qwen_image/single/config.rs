//! Hyperparameters.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::models::config::{self, Shapes};
use crate::models::qwen_image::config::{axes, require_axes};
use crate::tensor::Shape;

/// Hyperparameters, named as in diffusers' `config.json`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Config {
    /// The side of a patch of latents: 1.
    pub patch_size: usize,
    /// `C`: latent channels, numbers of a token of the picture.
    pub in_channels: usize,
    /// The same of what comes out.
    pub out_channels: Option<usize>,
    /// Blocks.
    pub num_layers: usize,
    /// `d`
    pub attention_head_dim: usize,
    /// `H`
    pub num_attention_heads: usize,
    /// `J`: the width of the prompt's hidden states.
    pub context_in_dim: usize,
    /// `F / D`
    pub mlp_ratio: usize,
    /// How `d` is shared out among the rotary axes: the place in the text, row, column.
    pub axes_dims_rope: Vec<usize>,
    /// The epsilon of every norm.
    pub eps: f32,
    /// Whether the prompt is modulated as at time 0: it is.
    pub causal_condition: bool,
}

impl Default for Config {
    /// That of Qwen-Image 2.1.
    fn default() -> Config {
        Config {
            patch_size: 1,
            in_channels: 64,
            out_channels: Some(64),
            num_layers: 32,
            attention_head_dim: 128,
            num_attention_heads: 32,
            context_in_dim: 4096,
            mlp_ratio: 3,
            axes_dims_rope: vec![16, 56, 56],
            eps: 1e-6,
            causal_condition: true,
        }
    }
}

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
        let [context_in_dim, ..] = shapes.dims("txt_in.in_layer.weight")?;
        let [inner, ..] = shapes.dims("transformer_blocks.0.img_mlp.out.weight")?;
        let [_, outputs, ..] = shapes.dims("proj_out.weight")?;
        let config = Config {
            in_channels,
            out_channels: Some(outputs),
            num_layers: shapes.count(|i| format!("transformer_blocks.{i}.attn.norm_q.weight")),
            attention_head_dim: head,
            num_attention_heads: hidden / head, // extents are never 0
            context_in_dim,
            mlp_ratio: inner / hidden,
            axes_dims_rope: axes(head),
            ..Config::default()
        };
        config.validate(origin)?;
        Ok(config)
    }

    /// `D`
    pub fn hidden(&self) -> usize {
        self.num_attention_heads.saturating_mul(self.attention_head_dim)
    }

    /// `F`: the inner width of the feed-forward layers.
    pub(super) fn feed_forward(&self) -> usize {
        self.mlp_ratio.saturating_mul(self.hidden())
    }

    /// Checks that the settings, which `origin` holds, make a model.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for the first that does not.
    pub fn validate(&self, origin: &Path) -> Result<()> {
        let limit = |key, value, most| config::limit(origin, key, value, 1..=most);
        limit("patch_size", self.patch_size, 1)?;
        limit("in_channels", self.in_channels, 1 << 14)?;
        limit("num_layers", self.num_layers, config::MOST_LAYERS)?;
        limit("attention_head_dim", self.attention_head_dim, 1 << 12)?;
        limit("num_attention_heads", self.num_attention_heads, 1 << 12)?;
        limit("context_in_dim", self.context_in_dim, config::MOST_WIDTH)?;
        limit("width, attention_head_dim times num_attention_heads", self.hidden(), config::MOST_WIDTH)?;
        limit("mlp_ratio", self.mlp_ratio, 64)?;
        limit("width of the feed-forward, mlp_ratio times the width", self.feed_forward(), config::MOST_WIDTH)?;
        let outputs = self.out_channels.unwrap_or(self.in_channels);
        let expected = || format!("{}, as many as in_channels", self.in_channels);
        config::require(origin, "out_channels", outputs == self.in_channels, expected, outputs)?;
        let positive = self.eps.is_finite() && self.eps > 0.0;
        config::require(origin, "eps", positive, || "a positive number".into(), self.eps)?;
        let expected = "true: in no published model does the prompt depend on time";
        config::require(origin, "causal_condition", self.causal_condition, || expected.into(), self.causal_condition)?;
        require_axes(origin, &self.axes_dims_rope, self.attention_head_dim)
    }
}
