//! Hyperparameters.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::super::config::{Config as Network, PATCH};
use crate::models::config::{self, Shapes};
use crate::tensor::Shape;
use crate::{Error, Result};

/// Which layers refine what is seen of a picture before it meets the prompt, and add something to the model's refiners.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Refines {
    /// Those that follow the prompt, too (2.0).
    ControlLayers,
    /// Layers of their own (2.1).
    ControlNoiseRefiner,
}

/// Hyperparameters, named as in diffusers' `config.json`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Config {
    /// Behind which of the model's layers each of its layers adds something: behind the first, and ever later ones.
    pub control_layers_places: Vec<usize>,
    /// The same of the model's refiners.
    pub control_refiner_layers_places: Option<Vec<usize>>,
    /// Channels of the latents that it sees: those of a picture, and, if it paints in one, a mask and what that leaves of it.
    pub control_in_dim: usize,
    /// Which layers refine. If it does not say, blocks like the model's do, and add nothing (the first version).
    pub add_control_noise_refiner: Option<Refines>,
    /// As the model has it.
    pub all_patch_size: Vec<usize>,
    /// As the model has it.
    pub all_f_patch_size: Vec<usize>,
    /// `D`
    pub dim: usize,
    /// How many refiners of its own it has.
    pub n_refiner_layers: usize,
    /// `H`
    pub n_heads: usize,
    /// As many as `H`.
    pub n_kv_heads: usize,
    /// What is added to the mean square in norms.
    pub norm_eps: f32,
    /// Whether queries and keys of each head are normalised: they are.
    pub qk_norm: bool,
}

impl Default for Config {
    /// That of the union ControlNet 2.1.
    fn default() -> Config {
        let net = Network::default();
        Config {
            control_layers_places: spread(15, net.n_layers),
            control_refiner_layers_places: Some((0..net.n_refiner_layers).collect()),
            control_in_dim: with_mask(net.in_channels),
            add_control_noise_refiner: Some(Refines::ControlNoiseRefiner),
            all_patch_size: net.all_patch_size,
            all_f_patch_size: net.all_f_patch_size,
            dim: net.dim,
            n_refiner_layers: net.n_refiner_layers,
            n_heads: net.n_heads,
            n_kv_heads: net.n_kv_heads,
            norm_eps: net.norm_eps,
            qk_norm: net.qk_norm,
        }
    }
}

/// Channels of the latents of a picture, a mask, and the latents of what that leaves.
fn with_mask(channels: usize) -> usize {
    2 * channels + 1
}

/// The places of `count` layers that are spread evenly over `layers`, as in all published files.
fn spread(count: usize, layers: usize) -> Vec<usize> {
    (0..count).map(|i| i * (layers / count).max(1)).collect()
}

impl Config {
    /// Reads the text of a `config.json`, which `origin` holds, and validates it.
    ///
    /// # Errors
    /// [`Error::Malformed`] where it is no such configuration; [`Error::Mismatch`] where it makes no network.
    pub fn from_json(text: &str, origin: &Path) -> Result<Config> {
        let config: Config = config::from_json(text, origin)?;
        config.validate(origin)?;
        Ok(config)
    }

    /// Reads the sizes off the weights in the file `origin`, where `shape_of` gives the shape of a canonical name. What shapes do not
    /// tell is as in the published files, beside a model like `beside`. A file of 2.0 may have refiners that were never trained: then
    /// their first weight is zero, which `reuses` says.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where a weight is missing, and those of [`validate`](Config::validate).
    pub fn from_shapes(
        shape_of: impl Fn(&str) -> Option<Shape>,
        reuses: bool,
        beside: &Network,
        origin: &Path,
    ) -> Result<Config> {
        let shapes = Shapes::new(&shape_of, origin);
        let [columns, dim, ..] = shapes.dims("control_all_x_embedder.2-1.weight")?;
        let [head, ..] = shapes.dims("control_layers.0.attention.q_norm.weight")?;
        let count = shapes.count(|i| format!("control_layers.{i}.attention.qkv.weight"));
        let own = shapes.count(|i| format!("control_noise_refiner.{i}.attention.qkv.weight"));
        let control_in_dim = columns / (PATCH * PATCH);
        let refines = match shapes.has(REFINERS_FIRST) && !reuses {
            true => Some(Refines::ControlNoiseRefiner),
            false if own > 0 && control_in_dim == beside.in_channels => None,
            false => Some(Refines::ControlLayers),
        };
        let heads = dim / head; // extents are never 0
        let n_refiner_layers = if own > 0 { own } else { beside.n_refiner_layers };
        let refiners = if refines == Some(Refines::ControlLayers) { count } else { n_refiner_layers };
        let config = Config {
            control_layers_places: spread(count, beside.n_layers),
            control_refiner_layers_places: refines.map(|_| (0..beside.n_refiner_layers.min(refiners)).collect()),
            control_in_dim,
            add_control_noise_refiner: refines,
            dim,
            n_refiner_layers,
            n_heads: heads,
            n_kv_heads: heads,
            ..Config::default()
        };
        config.validate(origin)?;
        Ok(config)
    }

    /// Its blocks as those of a model.
    pub(super) fn blocks(&self) -> Network {
        let Config { dim, n_heads, n_kv_heads, norm_eps, .. } = *self;
        Network { dim, n_heads, n_kv_heads, norm_eps, ..Network::default() }
    }

    /// Behind which of the model's refiners something is added.
    pub(super) fn refined(&self) -> &[usize] {
        match (&self.control_refiner_layers_places, self.add_control_noise_refiner) {
            (Some(places), Some(_)) => places,
            _ => &[],
        }
    }

    /// How many layers refine what is seen.
    pub(super) fn refiners(&self) -> usize {
        match self.add_control_noise_refiner {
            Some(Refines::ControlLayers) => self.control_layers_places.len(),
            _ => self.n_refiner_layers,
        }
    }

    /// `C'`: numbers of a token of what it sees.
    pub(super) fn token_width(&self) -> usize {
        PATCH * PATCH * self.control_in_dim
    }

    /// Whether it sees a mask, and what that leaves of a picture, beside a model of `channels` latent channels.
    pub fn takes_mask(&self, channels: usize) -> bool {
        self.control_in_dim == with_mask(channels)
    }

    /// Checks that it goes beside the model `net`; `origin` holds it.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for the first setting that does not fit.
    pub fn fit(&self, net: &Network, origin: &Path) -> Result<()> {
        let other = |key: &str, expected: String, found: String| {
            let error = Error::mismatch(origin, key, expected, found);
            Err(error.with_hint("this ControlNet was trained for another model"))
        };
        for (key, found, expected) in [("dim", self.dim, net.dim), ("n_heads", self.n_heads, net.n_heads)] {
            if found != expected {
                return other(key, format!("{expected}, as the transformer has"), found.to_string());
            }
        }
        let channels = net.in_channels;
        if self.control_in_dim != channels && !self.takes_mask(channels) {
            let expected = format!("{channels}, or {} with a mask", with_mask(channels));
            return other("control_in_dim", expected, self.control_in_dim.to_string());
        }
        let layers = (&self.control_layers_places[..], net.n_layers);
        for (key, (places, most)) in [
            ("control_layers_places", layers),
            ("control_refiner_layers_places", (self.refined(), net.n_refiner_layers)),
        ] {
            if places.last().is_some_and(|&last| last >= most) {
                let expected = format!("places below {most}, the layers of the transformer");
                return other(key, expected, format!("{places:?}"));
            }
        }
        Ok(())
    }

    /// Checks that the settings, which `origin` holds, make a network.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for the first that does not.
    pub fn validate(&self, origin: &Path) -> Result<()> {
        let Config { all_patch_size, all_f_patch_size, qk_norm, .. } = self;
        let (all_patch_size, all_f_patch_size) = (all_patch_size.clone(), all_f_patch_size.clone());
        let head = self.dim / self.n_heads.max(1);
        // Of the rotary axes, it has the model's.
        let axes_dims = vec![head.saturating_sub(4), 2, 2];
        Network { all_patch_size, all_f_patch_size, qk_norm: *qk_norm, axes_dims, ..self.blocks() }.validate(origin)?;
        config::limit(origin, "control_in_dim", self.control_in_dim, 1..=1 << 12)?;
        let least = usize::from(self.add_control_noise_refiner == Some(Refines::ControlNoiseRefiner));
        config::limit(origin, "n_refiner_layers", self.n_refiner_layers, least..=config::MOST_LAYERS)?;
        let ascends = |places: &[usize]| places.is_sorted_by(|one, next| one < next);
        let places = &self.control_layers_places;
        let fits = places.first() == Some(&0) && ascends(places) && places.len() <= config::MOST_LAYERS;
        config::require(
            origin,
            "control_layers_places",
            fits,
            || "places that begin with 0 and ascend".into(),
            format!("{places:?}"),
        )?;
        let (refined, most) = (self.refined(), self.refiners());
        let fits = ascends(refined) && refined.len() <= most;
        config::require(
            origin,
            "control_refiner_layers_places",
            fits,
            || format!("at most {most} places that ascend"),
            format!("{refined:?}"),
        )
    }
}

/// The first weight of refiners that add something.
pub const REFINERS_FIRST: &str = "control_noise_refiner.0.before_proj.weight";
