//! T2I-Adapters of Stable Diffusion: a small network that a picture goes through once a request, and whose features are added to the
//! UNet's way down in every step.
//!
//! Follows *T2I-Adapter: Learning Adapters to Dig out More Controllable Ability for Text-to-Image Diffusion Models* (Mou et al.,
//! arXiv:2302.08453), by diffusers' `T2IAdapter`, whose names the weights have behind `adapter.`.
//!
//! Feature `i` is added behind level `i`: to what its last transformer gives, or, without transformers, to what the next level takes. One
//! more is added to what the middle gives, if it is as large as that; if it is not, it is left out, as in diffusers.
//!
//! `f` pixels of a side that become one, `c` channels of the picture, `C` channels of a feature.
//!
//! | stage      | when    | carried in                          | carried out           |
//! |------------|---------|-------------------------------------|-----------------------|
//! | `begin`    | request | `picture [W/f, H/f, c f f, 1]`      | a map (not in a light one) |
//! | `body.0..` | request | the last map                        | `feature.* [w, h, C, 1]` |
//! | `add.0..`  | step    | a feature, `scale [1]`, a map of the UNet | that map        |

use std::path::Path;

use pinhole_quant::DType;
use serde::{Deserialize, Serialize};

use super::maps::halvings;
use crate::Result;
use crate::ggml::Tensor;
use crate::models::config::{self as settings, MOST_LAYERS, MOST_WIDTH, Shapes};
use crate::models::layers::Conv2d;
use crate::stage::{Block, Build, Cadence, Extent, Lifetime, Model, Port, Symbol};
use crate::tensor::Shape;
use crate::weights::Scope;

/// Pixels of a latent in both directions, in every model that such adapters are for.
const LATENT: usize = 8;

/// More features than any adapter has.
const MOST_FEATURES: usize = 8;

/// What kind of adapter it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum Kind {
    /// Each level after the first halves the map.
    #[default]
    #[serde(rename = "full_adapter")]
    Full,
    /// The third level alone halves the map.
    #[serde(rename = "full_adapter_xl")]
    FullXl,
    /// As the first, with a quarter of the channels inside.
    #[serde(rename = "light_adapter")]
    Light,
}

/// Hyperparameters, named as in diffusers' `config.json` and with its defaults.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Config {
    /// What kind of adapter it is.
    pub adapter_type: Kind,
    /// Channels of the features; a light one has one more, as wide as the last.
    pub channels: Vec<usize>,
    /// How many residual blocks each level has.
    pub num_res_blocks: usize,
    /// `f`.
    pub downscale_factor: usize,
    /// `c`: 3, or 1 for a gray picture.
    pub in_channels: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            adapter_type: Kind::Full,
            channels: vec![320, 640, 1280, 1280],
            num_res_blocks: 2,
            downscale_factor: LATENT,
            in_channels: 3,
        }
    }
}

/// A map that an adapter gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// How often the latents' sides are halved.
    pub level: usize,
    /// `C`.
    pub channels: usize,
}

impl Config {
    /// Reads the text of a `config.json`, which `origin` holds, and validates it.
    ///
    /// # Errors
    /// [`Error::Malformed`](crate::Error::Malformed) where it is no such configuration; [`Error::Mismatch`](crate::Error::Mismatch) where it makes no network.
    pub fn from_json(text: &str, origin: &Path) -> Result<Config> {
        let config: Config = settings::from_json(text, origin)?;
        config.validate(origin)?;
        Ok(config)
    }

    /// Reads the sizes off the weights in the file `origin`, where `shape_of` gives the shape of a canonical name.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) where a weight is missing, and those of [`validate`](Config::validate).
    pub fn from_shapes(shape_of: impl Fn(&str) -> Option<Shape>, origin: &Path) -> Result<Config> {
        let shapes = Shapes::new(&shape_of, origin);
        let is_light = shapes.has("body.0.out_conv.weight");
        let last = if is_light { "out_conv" } else { "resnets.0.block2" };
        let key = |i: usize| format!("body.{i}.{last}.weight");
        let mut channels = Vec::new();
        for i in 0..shapes.count(key) {
            channels.push(shapes.dims(&key(i))?[3]);
        }
        if is_light {
            // The last is there once more.
            channels.pop();
        }
        let first = if is_light { "body.0.in_conv.weight" } else { "conv_in.weight" };
        let [_, _, numbers, _] = shapes.dims(first)?;
        // Of a gray picture, or of one in colours.
        let in_channels = if numbers.is_multiple_of(3) { 3 } else { 1 };
        let downscale_factor = (numbers / in_channels).isqrt();
        let adapter_type = match (is_light, downscale_factor > LATENT) {
            (true, _) => Kind::Light,
            (false, true) => Kind::FullXl,
            (false, false) => Kind::Full,
        };
        let num_res_blocks = shapes.count(|j| format!("body.0.resnets.{j}.block1.weight"));
        let config = Config { adapter_type, channels, num_res_blocks, downscale_factor, in_channels };
        config.validate(origin)?;
        Ok(config)
    }

    /// Checks that the settings, which `origin` holds, make a network.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for the first that does not.
    pub fn validate(&self, origin: &Path) -> Result<()> {
        settings::limit(origin, "number of channels", self.channels.len(), 1..=MOST_FEATURES)?;
        self.channels.iter().try_for_each(|&width| settings::limit(origin, "channels", width, 4..=MOST_WIDTH))?;
        settings::limit(origin, "num_res_blocks", self.num_res_blocks, 1..=MOST_LAYERS)?;
        let fits = |of: usize, one: usize, other: usize| of == one || of == other;
        settings::require(origin, "in_channels", fits(self.in_channels, 1, 3), || "1 or 3".into(), self.in_channels)?;
        let factor = self.downscale_factor;
        let is_known = fits(factor, LATENT, 2 * LATENT);
        settings::require(origin, "downscale_factor", is_known, || format!("{LATENT} or {}", 2 * LATENT), factor)?;
        if self.adapter_type == Kind::FullXl {
            // Those behind the third keep its width.
            let same = self.channels.iter().skip(2).all(|channels| Some(channels) == self.channels.get(2));
            settings::require(
                origin,
                "channels",
                same,
                || "one number from the third on".to_owned(),
                format!("{:?}", self.channels),
            )?;
        }
        Ok(())
    }

    /// What it gives, in order.
    pub fn features(&self) -> Vec<Feature> {
        let mut level = usize::from(self.downscale_factor > LATENT);
        let mut features = Vec::new();
        for (i, &channels) in self.channels.iter().enumerate() {
            level += usize::from(self.halves(i));
            features.push(Feature { level, channels });
        }
        if let (Kind::Light, Some(&channels)) = (self.adapter_type, self.channels.last()) {
            features.push(Feature { level: level + 1, channels });
        }
        features
    }

    /// Whether body `i` halves the map.
    fn halves(&self, i: usize) -> bool {
        match self.adapter_type {
            Kind::Full | Kind::Light => i > 0,
            Kind::FullXl => i == 2,
        }
    }
}

/// A T2I-Adapter by itself: its weights, as its file has them.
pub struct T2iAdapter {
    /// The stages.
    pub model: Model,
    config: Config,
}

impl T2iAdapter {
    /// The network that `config` describes.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for a configuration that makes none.
    pub fn new(config: &Config) -> Result<T2iAdapter> {
        config.validate("t2i_adapter".as_ref())?;
        let mut model = Model::new();
        Declared::declare(&mut model, (String::new(), None), config)?;
        Ok(T2iAdapter { model, config: config.clone() })
    }

    /// The hyperparameters.
    pub fn config(&self) -> &Config {
        &self.config
    }
}

/// An adapter in a model that has declared what it computes once a request, and not yet what it computes in a step.
pub(super) struct Declared {
    /// What stands before its names, and in which steps it runs.
    name: (String, Option<Symbol>),
    /// `[W/f, H/f, c f f, 1]`: `f` by `f` pixels of each channel, one channel after the other.
    pub(super) picture: Port,
    /// `[1]`
    pub(super) scale: Port,
    features: Vec<(Feature, Port)>,
}

impl Declared {
    /// Declares what is computed once a request, of an adapter with this `name` in steps in which it runs.
    pub(super) fn declare(model: &mut Model, name: (String, Option<Symbol>), config: &Config) -> Result<Declared> {
        let (picture, scale, features) = model.within_passes((&name.0, name.1), |model| {
            let level = usize::from(config.downscale_factor > LATENT);
            let numbers = config.in_channels * config.downscale_factor * config.downscale_factor;
            let picture = model.port("picture", &map(level, numbers)?, DType::F32, Lifetime::Pass);
            let scale = model.port("scale", &[1.into()], DType::F32, Lifetime::Request);
            let (mut from, mut inputs) = (picture, numbers);
            if config.adapter_type != Kind::Light {
                let channels = config.channels.first().copied().unwrap_or(0);
                let to = model.port("begin", &map(level, channels)?, DType::F32, Lifetime::Pass);
                model.stage("begin", Cadence::Request, |s| {
                    Ok(Begin { conv: Conv2d::declare(&mut s.sub("conv_in"), inputs, channels, 3)?, from, to })
                })?;
                (from, inputs) = (to, channels);
            }
            let mut features = Vec::new();
            for (i, feature) in config.features().into_iter().enumerate() {
                let extents = map(feature.level, feature.channels)?;
                let to = model.port(format!("feature.{i}"), &extents, DType::F32, Lifetime::Request);
                model.stage(format!("body.{i}"), Cadence::Request, |s| {
                    Body::declare(&mut s.sub("body").sub(i), config, i, (inputs, feature.channels), (from, to))
                })?;
                (from, inputs) = (to, feature.channels);
                features.push((feature, to));
            }
            Ok((picture, scale, features))
        })?;
        let mut features: Vec<(Feature, Port)> = features;
        // The first is taken first.
        features.reverse();
        Ok(Declared { name, picture, scale, features })
    }

    /// Declares the stage that adds the next feature to `to`, a map of the UNet as `of_unet` says, if it is like that.
    pub(super) fn add(&mut self, model: &mut Model, of_unet: Feature, to: Port) -> Result<()> {
        let number = self.features.len();
        let Some((_, from)) = self.features.pop_if(|(feature, _)| *feature == of_unet) else { return Ok(()) };
        let (scale, (prefix, runs_if)) = (self.scale, &self.name);
        model.within_passes((prefix, *runs_if), |model| {
            model.stage(format!("add.{number}"), Cadence::Step, |_| Ok(Add { from, to, scale }))
        })
    }
}

/// The extents of a map of one picture.
fn map(level: usize, channels: usize) -> Result<[Extent; 4]> {
    let times = halvings(level)?;
    let (width, height) = (Symbol::LATENT_WIDTH.halved(times), Symbol::LATENT_HEIGHT.halved(times));
    Ok([width, height, channels.into(), 1.into()])
}

/// The first convolution.
struct Begin {
    conv: Conv2d,
    from: Port,
    to: Port,
}

impl Block for Begin {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        b.write(self.to, self.conv.build(b, b.read(self.from)?)?)
    }
}

/// What makes one feature of the last.
struct Body {
    halves: bool,
    in_conv: Option<Conv2d>,
    blocks: Vec<[Conv2d; 2]>,
    out_conv: Option<Conv2d>,
    from: Port,
    to: Port,
}

impl Body {
    fn declare(
        s: &mut Scope<'_>,
        config: &Config,
        i: usize,
        (inputs, outputs): (usize, usize),
        (from, to): (Port, Port),
    ) -> Result<Body> {
        let is_light = config.adapter_type == Kind::Light;
        let inner = if is_light { outputs / 4 } else { outputs };
        let has_in_conv = is_light || inputs != outputs;
        let in_conv = has_in_conv.then(|| Conv2d::declare(&mut s.sub("in_conv"), inputs, inner, 1)).transpose()?;
        let mut blocks = Vec::with_capacity(config.num_res_blocks);
        for j in 0..config.num_res_blocks {
            let mut s = s.sub("resnets");
            let mut s = s.sub(j);
            let first = Conv2d::declare(&mut s.sub("block1"), inner, inner, 3)?;
            blocks.push([first, Conv2d::declare(&mut s.sub("block2"), inner, inner, if is_light { 3 } else { 1 })?]);
        }
        let out_conv = is_light.then(|| Conv2d::declare(&mut s.sub("out_conv"), inner, outputs, 1)).transpose()?;
        Ok(Body { halves: config.halves(i), in_conv, blocks, out_conv, from, to })
    }
}

impl Block for Body {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let mut x = b.read(self.from)?; // [w, h, C, 1]
        if self.halves {
            x = b.g.scale(halved(b, halved(b, x, 0)?, 1)?, 0.25)?;
        }
        if let Some(conv) = &self.in_conv {
            x = conv.build(b, x)?;
        }
        for [first, second] in &self.blocks {
            let y = second.build(b, b.g.relu(first.build(b, x)?)?)?;
            x = b.g.add(y, x)?;
        }
        if let Some(conv) = &self.out_conv {
            x = conv.build(b, x)?;
        }
        // What is written has been computed here.
        let is_new = self.halves || self.in_conv.is_some() || !self.blocks.is_empty();
        b.write(self.to, if is_new { x } else { b.g.scale(x, 1.0)? })
    }
}

/// The sums of neighbours along dimension `dim`, two by two. The last of an odd number counts twice, so that half of a sum is the mean of
/// what is there.
fn halved(b: &Build<'_>, x: Tensor, dim: usize) -> Result<Tensor> {
    let mut x = x;
    let last = b.g.shape(x)?.dims()[dim] - 1;
    if last.is_multiple_of(2) {
        x = b.g.concat(x, b.g.contiguous(b.g.slice(x, dim, last, 1)?)?, dim)?;
    }
    let [w, h, channels, _] = b.g.shape(x)?.dims();
    let (pairs, at, sides) = match dim {
        0 => ([2, w / 2, h, channels], 0, [w / 2, h, channels]),
        _ => ([w, 2, h / 2, channels], 1, [w, h / 2, channels]),
    };
    let pairs = b.g.reshape(b.g.contiguous(x)?, &pairs)?;
    let of = |i| b.g.contiguous(b.g.slice(pairs, at, i, 1)?);
    b.g.reshape(b.g.add(of(0)?, of(1)?)?, &sides)
}

/// A feature that is added to a map of the UNet, in its place.
struct Add {
    from: Port,
    to: Port,
    scale: Port,
}

impl Block for Add {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let feature = b.g.mul(b.read(self.from)?, b.read(self.scale)?)?; // [w, h, C, 1]
        b.write(self.to, b.g.add(b.read(self.to)?, feature)?)
    }
}
