//! The settings of the vision tower.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::super::config::{FRAMES, MERGED, part_that_sees, require_heads};
use crate::models::config::{self, MOST_LAYERS, MOST_WIDTH, Shapes};
use crate::tensor::Shape;
use crate::{Error, Result};

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
    pub in_channels: usize,
    /// The side of a patch, in pixels.
    pub patch_size: usize,
    /// How many frames a patch has: 2. Those of a picture are the same.
    pub temporal_patch_size: usize,
    /// How many patches become one token, each way: 2.
    pub spatial_merge_size: usize,
    /// How many places the table of a square picture has.
    pub num_position_embeddings: usize,
    /// The blocks behind which something is taken for the first layers of the language model.
    pub deepstack_visual_indexes: Vec<usize>,
    /// `J`: the width of the language model.
    pub out_hidden_size: usize,
    /// The function of the feed-forward layers: `gelu_pytorch_tanh`.
    pub hidden_act: String,
}

/// Which blocks these are in the published towers of so many blocks.
const PUBLISHED: [(usize, [usize; 3]); 2] = [(27, [8, 16, 24]), (24, [5, 11, 17])];

/// The function of the feed-forward layers.
const GELU: &str = "gelu_pytorch_tanh";

impl Default for Config {
    /// That of Qwen3-VL-8B.
    fn default() -> Config {
        let (depth, blocks) = PUBLISHED[0];
        Config {
            depth,
            hidden_size: 1152,
            intermediate_size: 4304,
            num_heads: 16,
            in_channels: 3,
            patch_size: 16,
            temporal_patch_size: FRAMES,
            spatial_merge_size: MERGED,
            num_position_embeddings: 48 * 48,
            deepstack_visual_indexes: blocks.to_vec(),
            out_hidden_size: 4096,
            hidden_act: GELU.into(),
        }
    }
}

impl Config {
    /// Reads the text of a `config.json`, which `origin` holds, and validates it: of the tower, or of the model that it is part of.
    ///
    /// # Errors
    /// [`Error::Malformed`](crate::Error::Malformed) where it is not such a configuration, and those of [`validate`](Config::validate).
    pub fn from_json(text: &str, origin: &Path) -> Result<Config> {
        let config: Config = config::from_json(&part_that_sees(text, origin)?, origin)?;
        config.validate(origin)?;
        Ok(config)
    }

    /// Reads the sizes off the weights in the file `origin`, where `shape_of` gives the shape of a canonical name, and `deepstack` says
    /// behind which blocks something is taken, if the file does. What shapes do not tell is as published.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) where a weight is missing, and those of [`validate`](Config::validate).
    pub fn from_shapes(
        shape_of: impl Fn(&str) -> Option<Shape>,
        deepstack: Option<Vec<usize>>,
        origin: &Path,
    ) -> Result<Config> {
        let shapes = Shapes::new(&shape_of, origin);
        let [hidden_size, ..] = shapes.dims("visual.blocks.0.norm1.weight")?;
        let [_, intermediate_size, ..] = shapes.dims("visual.blocks.0.mlp.linear_fc1.weight")?;
        let [out_hidden_size, ..] = shapes.dims("visual.merger.linear_fc2.bias")?;
        let [_, num_position_embeddings, ..] = shapes.dims("visual.pos_embed.weight")?;
        let [patch_size, ..] = shapes.dims("visual.patch_embed.proj.0.weight")?;
        let depth = shapes.count(|i| format!("visual.blocks.{i}.norm1.weight"));
        let published = PUBLISHED.iter().find(|(of, _)| *of == depth).map(|(_, blocks)| blocks.to_vec());
        let Some(deepstack_visual_indexes) = deepstack.or(published) else {
            let expected =
                "24 or 27 blocks, as published, since nothing else says behind which of them something is taken";
            return Err(Error::mismatch(origin, "depth", expected, depth.to_string()));
        };
        let config = Config {
            depth,
            hidden_size,
            intermediate_size,
            patch_size,
            num_position_embeddings,
            deepstack_visual_indexes,
            out_hidden_size,
            ..Config::default()
        };
        config.validate(origin)?;
        Ok(config)
    }

    /// Checks that the settings, which `origin` holds, make a tower that pinhole computes.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for the first that does not.
    pub fn validate(&self, origin: &Path) -> Result<()> {
        let limit = |key, value, most| config::limit(origin, key, value, 1..=most);
        limit("depth", self.depth, MOST_LAYERS)?;
        limit("hidden_size", self.hidden_size, MOST_WIDTH / 4)?;
        limit("intermediate_size", self.intermediate_size, MOST_WIDTH)?;
        limit("out_hidden_size", self.out_hidden_size, MOST_WIDTH)?;
        limit("patch_size", self.patch_size, 1 << 8)?;
        limit("num_position_embeddings", self.num_position_embeddings, 1 << 20)?;
        config::limit(origin, "in_channels", self.in_channels, 3..=3)?;
        config::limit(origin, "temporal_patch_size", self.temporal_patch_size, FRAMES..=FRAMES)?;
        config::limit(origin, "spatial_merge_size", self.spatial_merge_size, MERGED..=MERGED)?;
        require_heads(origin, self.hidden_size, self.num_heads)?;
        let cells = self.num_position_embeddings;
        let is_square = self.table_side().pow(2) == cells;
        config::require(origin, "num_position_embeddings", is_square, || "a square number".into(), cells)?;
        let blocks = &self.deepstack_visual_indexes;
        let in_order = blocks.windows(2).all(|pair| pair[0] < pair[1]);
        let are_there = in_order && blocks.last().is_none_or(|&last| last < self.depth);
        config::require(
            origin,
            "deepstack_visual_indexes",
            are_there,
            || format!("numbers below {} in ascending order", self.depth),
            format!("{blocks:?}"),
        )?;
        config::require(origin, "hidden_act", self.hidden_act == GELU, || GELU.into(), &self.hidden_act)
    }

    /// `d`
    pub fn head_width(&self) -> usize {
        self.hidden_size / self.num_heads.max(1)
    }

    /// Pixels of a token, each way.
    pub fn token_side(&self) -> usize {
        self.patch_size * MERGED
    }

    /// `S`: the side of the square picture that the table is for, in patches.
    pub(super) fn table_side(&self) -> usize {
        self.num_position_embeddings.isqrt()
    }

    /// Numbers of a patch of one frame.
    pub(super) fn patch_numbers(&self) -> usize {
        self.patch_size * self.patch_size * self.in_channels
    }
}
