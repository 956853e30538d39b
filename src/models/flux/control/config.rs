//! Hyperparameters.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::super::config::Config as Network;
use super::super::shared::Sizes;
use crate::Result;
use crate::models::config::{self, Shapes};
use crate::stage::Symbol;
use crate::tensor::Shape;

/// Pixels of a latent patch that is a token: two by two latents.
const PATCH: usize = 4;

/// Tokens of a text with one for a mode.
const TEXT_WITH_MODE: Symbol = Symbol::new("text tokens with a mode");
/// Tokens of such a text and the picture together.
const JOINT_WITH_MODE: Symbol = Symbol::new("joint tokens with a mode");

/// Tokens of a face.
pub(super) const FACE_TOKENS: Symbol = Symbol::new("tokens of a face");
/// Such tokens and the picture's together.
const JOINT_WITH_FACE: Symbol = Symbol::new("joint tokens with a face");

/// Hyperparameters, named as in diffusers' `config.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Config {
    /// What it has as a FLUX transformer has it.
    #[serde(flatten)]
    pub net: Network,
    /// How many kinds of pictures it tells apart, if it is told.
    pub num_mode: Option<usize>,
    /// Channels that a picture's pixels become, if it takes pixels; otherwise it takes latents.
    pub conditioning_embedding_channels: Option<usize>,
    /// Channels of a mask beside the latents of a picture: those of a patch.
    pub extra_condition_channels: usize,
    /// Whether it reads tokens of a face in the prompt's place. No file says so.
    #[serde(skip)]
    pub reads_face: bool,
}

impl Config {
    /// Reads the text of a `config.json`, which `origin` holds, and validates it. What it does not say of the mask, `shape_of` tells
    /// by the weights.
    ///
    /// # Errors
    /// [`Error::Malformed`](crate::Error::Malformed) where it is no such configuration; [`Error::Mismatch`](crate::Error::Mismatch)
    /// where it makes no network.
    pub fn from_json(text: &str, origin: &Path, shape_of: impl Fn(&str) -> Option<Shape>) -> Result<Config> {
        let mut config: Config = config::from_json(text, origin)?;
        let columns = shape_of("controlnet_x_embedder.weight").map(|shape| shape.row());
        let more = columns.and_then(|columns| columns.checked_sub(config.net.in_channels));
        if config.extra_condition_channels == 0 && more == Some(PATCH) {
            config.extra_condition_channels = PATCH;
        }
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
        let [columns, ..] = shapes.dims("controlnet_x_embedder.weight")?;
        let only_single = !shapes.has(DOUBLE) && shapes.has(SINGLE);
        let [head, ..] = shapes.dims(if only_single { SINGLE } else { DOUBLE })?;
        let has_hint = shapes.has("input_hint_block.0.weight");
        let channels = if has_hint { Some(shapes.dims("input_hint_block.14.bias")?[0]) } else { None };
        let modes = "controlnet_mode_embedder.weight";
        let net = Network {
            in_channels,
            out_channels: None,
            num_layers: shapes.count(|i| format!("double_blocks.{i}.img_attn.qkv.weight")),
            num_single_layers: shapes.count(|i| format!("single_blocks.{i}.linear1.weight")),
            attention_head_dim: head,
            num_attention_heads: hidden / head, // extents are never 0
            joint_attention_dim: shapes.dims("txt_in.weight")?[0],
            pooled_projection_dim: shapes.dims("vector_in.in_layer.weight")?[0],
            guidance_embeds: shapes.has("guidance_in.in_layer.weight"),
            axes_dims_rope: vec![head / 8, head * 7 / 16, head * 7 / 16],
            patch_size: if has_hint { 2 } else { 1 },
        };
        let config = Config {
            net,
            num_mode: if shapes.has(modes) { Some(shapes.dims(modes)?[1]) } else { None },
            conditioning_embedding_channels: channels,
            extra_condition_channels: columns.saturating_sub(in_channels),
            reads_face: false,
        };
        config.validate(origin)?;
        Ok(config)
    }

    /// The sizes of a request with so many tokens of a `face` and `image` that a ControlNet needs which reads a face.
    pub fn face_sizes(face: usize, image: usize) -> [(Symbol, usize); 2] {
        [(FACE_TOKENS, face), (JOINT_WITH_FACE, face + image)]
    }

    /// The sizes of a request of `pictures` pictures with so many tokens of `text` and `image` that ControlNets need beside the
    /// model's. Latents are `[width, height]`.
    pub fn sizes(pictures: usize, text: usize, image: usize, [width, height]: [usize; 2]) -> [(Symbol, usize); 5] {
        [
            (Symbol::PICTURES, pictures),
            (TEXT_WITH_MODE, text + 1),
            (JOINT_WITH_MODE, text + 1 + image),
            (Symbol::LATENT_WIDTH, width),
            (Symbol::LATENT_HEIGHT, height),
        ]
    }

    pub(super) fn own_sizes(&self) -> Sizes {
        match self.num_mode {
            None if self.reads_face => Sizes { batch: Symbol::PICTURES, text: FACE_TOKENS, joint: JOINT_WITH_FACE },
            Some(_) => Sizes { batch: Symbol::PICTURES, text: TEXT_WITH_MODE, joint: JOINT_WITH_MODE },
            None => Sizes { batch: Symbol::PICTURES, ..Sizes::OWN },
        }
    }

    /// Whether it takes the pixels of a picture, and not its latents.
    pub fn takes_pixels(&self) -> bool {
        self.conditioning_embedding_channels.is_some()
    }

    /// Whether it takes a mask beside the picture.
    pub fn takes_mask(&self) -> bool {
        self.extra_condition_channels > 0
    }

    /// Channels of a picture's token, with those of its mask.
    pub fn picture_channels(&self) -> usize {
        self.net.in_channels + self.extra_condition_channels
    }

    /// Which of its residuals is added behind double block `i` of `blocks`; `None` if it has none.
    pub(super) fn double_residual(&self, i: usize, blocks: usize) -> Option<usize> {
        let count = self.net.num_layers;
        if self.takes_pixels() { i.checked_rem(count) } else { spread(i, blocks, count) }
    }

    /// Which of its residuals is added behind single block `i` of `blocks`; `None` if it has none.
    pub(super) fn single_residual(&self, i: usize, blocks: usize) -> Option<usize> {
        spread(i, blocks, self.net.num_single_layers)
    }

    /// Checks that the settings, which `origin` holds, make a network.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for the first that does not.
    pub fn validate(&self, origin: &Path) -> Result<()> {
        Network { patch_size: 1, ..self.net.clone() }.validate(origin)?;
        let patch = self.net.patch_size;
        let most = if self.takes_pixels() { 2 } else { 1 };
        config::limit(origin, "patch_size", patch, 1..=most)?;
        let blocks = self.net.num_layers + self.net.num_single_layers;
        config::limit(origin, "num_layers and num_single_layers", blocks, 1..=2 * config::MOST_LAYERS)?;
        if let Some(modes) = self.num_mode {
            config::limit(origin, "num_mode", modes, 1..=config::MOST_LAYERS)?;
        }
        if let Some(channels) = self.conditioning_embedding_channels {
            config::limit(origin, "conditioning_embedding_channels", channels, 1..=config::MOST_WIDTH)?;
            let (tokens, expected) = (channels * patch * patch, || format!("in_channels, {}", self.net.in_channels));
            let at = "conditioning_embedding_channels times the patch";
            config::require(origin, at, tokens == self.net.in_channels, expected, tokens)?;
        }
        let extra = self.extra_condition_channels;
        let fits = extra == 0 || (extra == PATCH && !self.takes_pixels());
        config::require(
            origin,
            "extra_condition_channels",
            fits,
            || format!("none, or the {PATCH} of a mask beside latents"),
            extra,
        )
    }
}

/// Which of `count` belongs to block `i` of `blocks`: as many blocks, rounded up, have one after the other.
fn spread(i: usize, blocks: usize, count: usize) -> Option<usize> {
    if count == 0 { None } else { i.checked_div(blocks.div_ceil(count)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn residuals_are_spread_over_the_blocks() {
        let net = |num_layers| Network { num_layers, num_single_layers: 0, ..Network::dev() };
        let of = |config: &Config| (0..19).map(|i| config.double_residual(i, 19)).collect::<Option<Vec<_>>>();
        let union = Config { net: net(5), ..Config::default() };
        assert_eq!(of(&union), Some([vec![0; 4], vec![1; 4], vec![2; 4], vec![3; 4], vec![4; 3]].concat()));
        assert_eq!(union.single_residual(0, 38), None);
        let pixels = Config { net: net(2), conditioning_embedding_channels: Some(16), ..Config::default() };
        assert_eq!(of(&pixels), Some((0..19).map(|i| i % 2).collect()));
    }
}
