//! The settings of the vision tower.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::models::config::{self, MOST_LAYERS, MOST_WIDTH, Shapes};
use crate::tensor::Shape;
use crate::{Error, Result, json};

/// The settings of the vision tower, by their names in transformers' `config.json`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Config {
    /// How many blocks there are.
    pub depth: usize,
    /// `D`
    pub hidden_size: usize,
    /// `F`: the inner width of the feed-forward layers.
    pub intermediate_size: usize,
    /// `H`
    pub num_heads: usize,
    /// The colours of a pixel: 3.
    #[serde(alias = "in_chans")]
    pub in_channels: usize,
    /// The side of a patch, in pixels.
    #[serde(alias = "spatial_patch_size")]
    pub patch_size: usize,
    /// How many frames a patch has: 2, which in a picture are the same.
    pub temporal_patch_size: usize,
    /// How many patches become one token, each way: 2.
    pub spatial_merge_size: usize,
    /// The side of a window, in pixels.
    pub window_size: usize,
    /// The blocks in which every patch looks at all, and not at those of its window.
    pub fullatt_block_indexes: Vec<usize>,
    /// `J`: the width of the language model.
    pub out_hidden_size: usize,
    /// The function of the gate: `silu`.
    pub hidden_act: String,
}

impl Default for Config {
    /// That of Qwen2.5-VL-7B.
    fn default() -> Config {
        Config {
            depth: 32,
            hidden_size: 1280,
            intermediate_size: 3420,
            num_heads: 16,
            in_channels: 3,
            patch_size: 14,
            temporal_patch_size: FRAMES,
            spatial_merge_size: MERGED,
            window_size: 112,
            fullatt_block_indexes: vec![7, 15, 23, 31],
            out_hidden_size: 3584,
            hidden_act: "silu".into(),
        }
    }
}

/// Frames of a patch, and patches of a token each way.
pub(super) const FRAMES: usize = 2;
pub(super) const MERGED: usize = 2;

/// Refuses `heads` that do not share out a patch's vector of `hidden` numbers.
pub(super) fn require_heads(origin: &Path, hidden: usize, heads: usize) -> Result<()> {
    let divides = heads > 0 && hidden.is_multiple_of(heads) && (hidden / heads).is_multiple_of(4);
    config::require(
        origin,
        "num_heads",
        divides,
        || format!("a divisor of {hidden} that leaves a multiple of 4"),
        heads,
    )
}

/// The settings of the tower in the text of a `config.json`, which `origin` holds: its own, or those of the model that it is part of.
pub(super) fn part_that_sees(text: &str, origin: &Path) -> Result<String> {
    let malformed = |error: serde_json::Error| {
        Error::malformed(origin, "configuration", "a JSON object of settings", error.to_string())
    };
    let mut settings: Map<String, Value> = json::read(text).map_err(malformed)?;
    if let Some(Value::Object(inner)) = settings.remove("vision_config") {
        settings = inner;
    }
    Ok(Value::Object(settings).to_string())
}

impl Config {
    /// Reads the text of a `config.json`, which `origin` holds, and validates it: of the tower, or of the model that it is part of.
    ///
    /// # Errors
    /// [`Error::Malformed`] where it is not such a configuration, and those of [`validate`](Config::validate).
    pub fn from_json(text: &str, origin: &Path) -> Result<Config> {
        let config: Config = config::from_json(&part_that_sees(text, origin)?, origin)?;
        config.validate(origin)?;
        Ok(config)
    }

    /// Reads the sizes off the weights in the file `origin`, where `shape_of` gives the shape of a canonical name. What shapes do not
    /// tell is as published.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where a weight is missing, and those of [`validate`](Config::validate).
    pub fn from_shapes(shape_of: impl Fn(&str) -> Option<Shape>, origin: &Path) -> Result<Config> {
        let shapes = Shapes::new(&shape_of, origin);
        let [hidden_size, ..] = shapes.dims("visual.blocks.0.norm1.weight")?;
        let [_, intermediate_size, ..] = shapes.dims("visual.blocks.0.mlp.gate_proj.weight")?;
        let [out_hidden_size, ..] = shapes.dims("visual.merger.mlp.2.bias")?;
        let config = Config {
            depth: shapes.count(|i| format!("visual.blocks.{i}.norm1.weight")),
            hidden_size,
            intermediate_size,
            out_hidden_size,
            ..Config::default()
        };
        config.validate(origin)?;
        Ok(config)
    }

    /// Checks that the settings, which `origin` holds, make a tower that pinhole computes.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for the first that does not.
    pub fn validate(&self, origin: &Path) -> Result<()> {
        let limit = |key, value, most| config::limit(origin, key, value, 1..=most);
        limit("depth", self.depth, MOST_LAYERS)?;
        limit("hidden_size", self.hidden_size, MOST_WIDTH / 4)?;
        limit("intermediate_size", self.intermediate_size, MOST_WIDTH)?;
        limit("out_hidden_size", self.out_hidden_size, MOST_WIDTH)?;
        limit("patch_size", self.patch_size, 1 << 8)?;
        limit("window_size", self.window_size, 1 << 12)?;
        config::limit(origin, "in_channels", self.in_channels, 3..=3)?;
        config::limit(origin, "temporal_patch_size", self.temporal_patch_size, FRAMES..=FRAMES)?;
        config::limit(origin, "spatial_merge_size", self.spatial_merge_size, MERGED..=MERGED)?;
        require_heads(origin, self.hidden_size, self.num_heads)?;
        let side = self.patch_size * MERGED;
        let whole = self.window_size.is_multiple_of(side);
        config::require(origin, "window_size", whole, || format!("a multiple of {side}"), self.window_size)?;
        config::require(origin, "hidden_act", self.hidden_act == "silu", || "silu".into(), &self.hidden_act)
    }

    /// `d`
    pub fn head_width(&self) -> usize {
        self.hidden_size / self.num_heads.max(1)
    }

    /// Pixels of a token, each way.
    pub fn token_side(&self) -> usize {
        self.patch_size * MERGED
    }

    /// Tokens of a window, each way.
    pub(super) fn window_tokens(&self) -> usize {
        (self.window_size / self.token_side()).max(1)
    }

    /// Numbers of a patch of one frame.
    pub(super) fn patch_numbers(&self) -> usize {
        self.patch_size * self.patch_size * self.in_channels
    }
}
