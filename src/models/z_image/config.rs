//! Hyperparameters.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::ports::{MULTIPLE, TIME_WIDTH};
use crate::Result;
use crate::models::config::{self, Shapes};
use crate::tensor::Shape;

/// Hyperparameters, named as in diffusers' `config.json`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Config {
    /// Sides of a patch of latents; only the first, 2, is run.
    pub all_patch_size: Vec<usize>,
    /// Frames of a patch; only the first, 1, is run.
    pub all_f_patch_size: Vec<usize>,
    /// Latent channels.
    pub in_channels: usize,
    /// `D`
    pub dim: usize,
    /// Blocks over picture and prompt in one sequence.
    pub n_layers: usize,
    /// Blocks over the picture alone, and over the prompt alone.
    pub n_refiner_layers: usize,
    /// `H`
    pub n_heads: usize,
    /// As many as `H`: the reference has no others.
    pub n_kv_heads: usize,
    /// What is added to the mean square in norms.
    pub norm_eps: f32,
    /// Whether queries and keys of each head are normalised: they are.
    pub qk_norm: bool,
    /// `J`: the width of the prompt's hidden states.
    pub cap_feat_dim: usize,
    /// The width of what a vision tower sees, in the Omni models, which are not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub siglip_feat_dim: Option<usize>,
    /// The base of the rotary frequencies.
    pub rope_theta: f64,
    /// What times in 0..=1 are multiplied by.
    pub t_scale: f32,
    /// How `d` is shared out among the rotary axes: text position, row, column.
    pub axes_dims: Vec<usize>,
    /// How many positions an axis has.
    pub axes_lens: Vec<usize>,
}

impl Default for Config {
    /// That of Turbo and Base.
    fn default() -> Config {
        Config {
            all_patch_size: vec![2],
            all_f_patch_size: vec![1],
            in_channels: 16,
            dim: 3840,
            n_layers: 30,
            n_refiner_layers: 2,
            n_heads: 30,
            n_kv_heads: 30,
            norm_eps: 1e-5,
            qk_norm: true,
            cap_feat_dim: 2560,
            siglip_feat_dim: None,
            rope_theta: 256.0,
            t_scale: 1000.0,
            axes_dims: vec![32, 48, 48],
            axes_lens: vec![1536, 512, 512],
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
        let [token, dim, ..] = shapes.dims("x_embedder.weight")?;
        let [head, ..] = shapes.dims("layers.0.attention.q_norm.weight")?;
        let [cap_feat_dim, ..] = shapes.dims("cap_embedder.1.weight")?;
        let heads = dim / head; // extents are never 0
        let config = Config {
            in_channels: token / (PATCH * PATCH),
            dim,
            n_layers: shapes.count(|i| format!("layers.{i}.attention.qkv.weight")),
            n_refiner_layers: shapes.count(|i| format!("noise_refiner.{i}.attention.qkv.weight")),
            n_heads: heads,
            n_kv_heads: heads,
            cap_feat_dim,
            axes_dims: vec![head / 4, head * 3 / 8, head * 3 / 8],
            ..Config::default()
        };
        config.validate(origin)?;
        Ok(config)
    }

    /// `d`
    pub fn head_width(&self) -> usize {
        self.dim / self.n_heads.max(1)
    }

    /// `C`: numbers of a token of the picture.
    pub fn token_width(&self) -> usize {
        PATCH * PATCH * self.in_channels
    }

    /// `A`
    pub(super) fn time_width(&self) -> usize {
        self.dim.min(TIME_WIDTH)
    }

    /// `F`: diffusers fixes it, and rounds down.
    pub(super) fn feed_forward(&self) -> usize {
        (self.dim as f64 / 3.0 * 8.0) as usize
    }

    /// Checks that the settings, which `origin` holds, make a model.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for the first that does not.
    pub fn validate(&self, origin: &Path) -> Result<()> {
        let limit = |key, value, most| config::limit(origin, key, value, 1..=most);
        limit("in_channels", self.in_channels, 1 << 12)?;
        limit("dim", self.dim, config::MOST_WIDTH)?;
        limit("n_heads", self.n_heads, 1 << 12)?;
        limit("cap_feat_dim", self.cap_feat_dim, config::MOST_WIDTH)?;
        config::limit(origin, "n_layers", self.n_layers, 1..=config::MOST_LAYERS)?;
        config::limit(origin, "n_refiner_layers", self.n_refiner_layers, 0..=config::MOST_LAYERS)?;
        let heads = self.n_heads;
        let divides = self.dim.is_multiple_of(heads);
        config::require(origin, "n_heads", divides, || format!("a divisor of {}", self.dim), heads)?;
        config::limit(origin, "n_kv_heads", self.n_kv_heads, heads..=heads)?;
        config::require(origin, "qk_norm", self.qk_norm, || "true".into(), self.qk_norm)?;
        let patches = self.all_patch_size.first() == Some(&PATCH) && self.all_f_patch_size.first() == Some(&1);
        let found = format!("{:?} and {:?}", self.all_patch_size, self.all_f_patch_size);
        config::require(origin, "all_patch_size, all_f_patch_size", patches, || "[2] and [1]".into(), found)?;
        let plain = self.siglip_feat_dim.is_none();
        config::require(
            origin,
            "siglip_feat_dim",
            plain,
            || "none: the Omni models are not supported".into(),
            self.siglip_feat_dim.unwrap_or(0),
        )?;
        let positive = |number: f64| number.is_finite() && number > 0.0;
        let positively = || "a positive number".into();
        config::require(origin, "norm_eps", positive(self.norm_eps.into()), positively, self.norm_eps)?;
        config::require(origin, "t_scale", positive(self.t_scale.into()), positively, self.t_scale)?;
        config::require(origin, "rope_theta", positive(self.rope_theta), positively, self.rope_theta)?;
        let head = self.head_width();
        let axes = self.axes_dims.iter().try_fold(0usize, |sum, &axis| sum.checked_add(axis));
        let shared_out =
            self.axes_dims.len() == 3 && axes == Some(head) && self.axes_dims.iter().all(|axis| axis.is_multiple_of(2));
        config::require(
            origin,
            "axes_dims",
            shared_out,
            || format!("three even numbers with the sum dim / n_heads, {head}"),
            format!("{:?}", self.axes_dims),
        )?;
        // A text of 32 tokens, and the picture behind it.
        let room = self.axes_lens.len() == 3 && self.axes_lens[0] >= MULTIPLE + 2 && !self.axes_lens.contains(&0);
        config::require(
            origin,
            "axes_lens",
            room,
            || format!("three numbers, the first at least {}", MULTIPLE + 2),
            format!("{:?}", self.axes_lens),
        )
    }
}
