//! Hyperparameters.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::super::config::{Config as Network, PATCH, axes};
use crate::models::config::{self, Shapes};
use crate::tensor::Shape;
use crate::{Error, Result};

/// Hyperparameters, named as in diffusers' `config.json`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Config {
    /// What it has as a transformer has it.
    #[serde(flatten)]
    pub net: Network,
    /// Channels of a mask beside the latents of a picture: those of a patch.
    pub extra_condition_channels: usize,
}

/// Channels of a mask in a token.
const MASK: usize = PATCH * PATCH;

impl Config {
    /// Reads the text of a `config.json`, which `origin` holds, and validates it. What it does not say of the mask, `shape_of` tells
    /// by the weights.
    ///
    /// # Errors
    /// [`Error::Malformed`] where it is no such configuration; [`Error::Mismatch`] where it makes no network.
    pub fn from_json(text: &str, origin: &Path, shape_of: impl Fn(&str) -> Option<Shape>) -> Result<Config> {
        let mut config: Config = config::from_json(text, origin)?;
        let columns = shape_of("controlnet_x_embedder.weight").map(|shape| shape.row());
        let more = columns.and_then(|columns| columns.checked_sub(config.net.in_channels));
        if config.extra_condition_channels == 0 && more == Some(MASK) {
            config.extra_condition_channels = MASK;
        }
        config.validate(origin)?;
        Ok(config)
    }

    /// Reads the sizes off the weights in the file `origin`, where `shape_of` gives the shape of a canonical name.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where a weight is missing, and those of [`validate`](Config::validate).
    pub fn from_shapes(shape_of: impl Fn(&str) -> Option<Shape>, origin: &Path) -> Result<Config> {
        let shapes = Shapes::new(&shape_of, origin);
        let [in_channels, hidden, ..] = shapes.dims("img_in.weight")?;
        let [columns, ..] = shapes.dims("controlnet_x_embedder.weight")?;
        let [head, ..] = shapes.dims("transformer_blocks.0.attn.norm_q.weight")?;
        let [joint_attention_dim, ..] = shapes.dims("txt_in.weight")?;
        let net = Network {
            in_channels,
            out_channels: Some(in_channels / MASK),
            num_layers: shapes.count(|i| format!("transformer_blocks.{i}.attn.norm_q.weight")),
            attention_head_dim: head,
            num_attention_heads: hidden / head, // extents are never 0
            joint_attention_dim,
            axes_dims_rope: axes(head),
            ..Network::default()
        };
        let config = Config { net, extra_condition_channels: columns.saturating_sub(in_channels) };
        config.validate(origin)?;
        Ok(config)
    }

    /// Whether it takes a mask beside the picture.
    pub fn takes_mask(&self) -> bool {
        self.extra_condition_channels > 0
    }

    /// `C'`: numbers of a token of the picture, with those of its mask.
    pub(super) fn picture_channels(&self) -> usize {
        self.net.in_channels + self.extra_condition_channels
    }

    /// Which of its residuals is added behind block `i` of `blocks`: as many blocks, rounded up, have one after the other.
    pub(super) fn residual(&self, i: usize, blocks: usize) -> usize {
        i / blocks.div_ceil(self.net.num_layers.max(1)).max(1)
    }

    /// Checks that it goes beside the model `net`; `origin` holds it.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for the first setting that does not fit.
    pub fn fit(&self, net: &Network, origin: &Path) -> Result<()> {
        let own = &self.net;
        let numbers =
            |net: &Network| [net.in_channels, net.num_attention_heads, net.attention_head_dim, net.joint_attention_dim];
        let keys = ["in_channels", "num_attention_heads", "attention_head_dim", "joint_attention_dim"];
        for ((key, found), expected) in keys.into_iter().zip(numbers(own)).zip(numbers(net)) {
            if found != expected {
                let expected = format!("{expected}, as the transformer has");
                let error = Error::mismatch(origin, key, expected, found.to_string());
                return Err(error.with_hint("this ControlNet was trained for another model"));
            }
        }
        let same = own.axes_dims_rope == net.axes_dims_rope;
        config::require(
            origin,
            "axes_dims_rope",
            same,
            || format!("{:?}, as the transformer has", net.axes_dims_rope),
            format!("{:?}", own.axes_dims_rope),
        )
    }

    /// Checks that the settings, which `origin` holds, make a network.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for the first that does not.
    pub fn validate(&self, origin: &Path) -> Result<()> {
        self.net.validate(origin)?;
        config::require(origin, "zero_cond_t", !self.net.zero_cond_t, || "false".into(), self.net.zero_cond_t)?;
        let extra = self.extra_condition_channels;
        config::require(
            origin,
            "extra_condition_channels",
            extra == 0 || extra == MASK,
            || format!("none, or the {MASK} of a mask"),
            extra,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn residuals_are_spread_over_the_blocks() {
        let of = |num_layers, blocks| {
            let config = Config { net: Network { num_layers, ..Network::default() }, ..Config::default() };
            (0..blocks).map(|i| config.residual(i, blocks)).collect::<Vec<_>>()
        };
        assert_eq!(of(3, 4), [0, 0, 1, 1]);
        assert_eq!(of(5, 60)[11..13], [0, 1]);
        assert_eq!(of(6, 2), [0, 1]);
    }
}
