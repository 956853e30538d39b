//! Hyperparameters.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::models::config::{self, Shapes};
use crate::models::flux::flux2::ratio;
use crate::models::flux::ports::EPS;
use crate::tensor::Shape;

/// Hyperparameters, named as in diffusers' `config.json`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Config {
    /// `C`: channels of an image token: latent channels times the patch's 4 pixels.
    pub in_channels: usize,
    /// The same of the pictures that it looks at.
    pub cond_in_channels: usize,
    /// Blocks of each mode, in which its tokens attend to each other alone.
    pub num_layers: usize,
    /// Blocks in which all tokens attend to each other.
    pub num_single_layers: usize,
    /// `d`
    pub attention_head_dim: usize,
    /// `H`
    pub num_attention_heads: usize,
    /// `J`: the width of the prompt's hidden states.
    pub joint_attention_dim: usize,
    /// `S`: the width of the sinusoidal embedding of times.
    pub timestep_channels: usize,
    /// `M / D`: how much wider the feed-forward layers are inside.
    pub mlp_ratio: f64,
    /// How `d` is shared out among the rotary axes: one that nothing uses, row, column, place in the text.
    pub axes_dims_rope: Vec<usize>,
    /// The base of the rotary frequencies.
    pub rope_theta: f64,
    /// What is added to variances in norms.
    pub eps: f32,
    /// Whether it is told the time that a step leads to, too: klein, which takes few steps.
    pub flow_map: bool,
}

impl Default for Config {
    /// That of klein base.
    fn default() -> Config {
        Config {
            in_channels: 128,
            cond_in_channels: 128,
            num_layers: 5,
            num_single_layers: 28,
            attention_head_dim: 128,
            num_attention_heads: 24,
            joint_attention_dim: 20480,
            timestep_channels: 256,
            mlp_ratio: 3.0,
            axes_dims_rope: vec![32; 4],
            rope_theta: 10000.0,
            eps: EPS,
            flow_map: false,
        }
    }
}

impl Config {
    /// FLUX.3 Image klein's.
    pub fn klein() -> Config {
        Config { flow_map: true, ..Config::default() }
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
        let shapes = Shapes::new(&shape_of, origin);
        let [in_channels, hidden, ..] = shapes.dims("emb_in.image.weight")?;
        // Files without blocks of one kind have lost them.
        let [head, ..] = shapes.dims("content_mode_blocks.image.0.norm.query_norm.scale")?;
        let [inner, ..] = shapes.dims("single_blocks.0.mlp_out.weight")?;
        let config = Config {
            in_channels,
            cond_in_channels: shapes.dims("emb_in.image_cond.weight")?[0],
            num_layers: shapes.count(|i| format!("content_mode_blocks.image.{i}.q_proj.weight")),
            num_single_layers: shapes.count(|i| format!("single_blocks.{i}.q_proj.weight")),
            attention_head_dim: head,
            num_attention_heads: hidden / head, // extents are never 0
            joint_attention_dim: shapes.dims("txt_in.weight")?[0],
            timestep_channels: shapes.dims("time_in.in_layer.weight")?[0],
            mlp_ratio: ratio(inner, hidden),
            axes_dims_rope: vec![head / 4; 4],
            flow_map: shapes.has("ref_time_in.in_layer.weight"),
            ..Config::default()
        };
        config.validate(origin)?;
        Ok(config)
    }

    /// `D`
    pub fn hidden(&self) -> usize {
        self.attention_head_dim * self.num_attention_heads
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
        limit("timestep_channels", self.timestep_channels, config::MOST_WIDTH)?;
        config::limit(origin, "num_layers", self.num_layers, 0..=config::MOST_LAYERS)?;
        config::limit(origin, "num_single_layers", self.num_single_layers, 0..=config::MOST_LAYERS)?;
        let whole_patches = self.in_channels.is_multiple_of(4);
        config::require(origin, "in_channels", whole_patches, || "a multiple of 4".into(), self.in_channels)?;
        // Pictures that it looks at stand behind its latents, and not beside them.
        let is_same = self.cond_in_channels == self.in_channels;
        config::require(origin, "cond_in_channels", is_same, || self.in_channels.to_string(), self.cond_in_channels)?;
        let halves = self.timestep_channels;
        config::require(origin, "timestep_channels", halves.is_multiple_of(2), || "an even number".into(), halves)?;
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
