//! The Z-Image transformer, Turbo and Base (Tongyi-MAI; reference: diffusers' `ZImageTransformer2DModel`, with the original files'
//! names).
//!
//! Predicts the negated velocity of a rectified flow from noised latents, a prompt and a time. Two refiners bring picture and prompt
//! into one space, each by itself; then both are one sequence, the picture first. Both are filled up to a multiple of [`MULTIPLE`]
//! tokens with learned ones. What happens to the prompt before it meets the picture does not depend on time: it is computed once a
//! request.
//!
//! `D` hidden, `H` heads, `d = D/H`, `F` inner width of the feed-forward, `A` width of the time, `Ti` image tokens, `Tt` text tokens,
//! both filled up, `T = Ti + Tt`, `B` batch (images times guidance passes), `N` conditions (steps times guidance passes). Shapes in
//! ggml order.
//!
//! | stage                 | when    | carried in                                          | carried out                       |
//! |-----------------------|---------|-----------------------------------------------------|-----------------------------------|
//! | `time`                | request | `time` [256, N]                                     | `vector` [A, N]                   |
//! | `context`             | request | `text` [J, Tt, B], `text_kept` [1, Tt, B]           | `context` [D, Tt, B]              |
//! | `context_refiner.0..` | request | `context`                                           | `context`                         |
//! | `embed`               | step    | `latents` [C, Ti, B], `image_kept` [1, Ti]          | `img` [D, Ti, B]                  |
//! | `noise_refiner.0..`   | step    | `img`, `vector`                                     | `img`                             |
//! | `join`                | step    | `img`, `context`                                    | `joint` [D, T, B]                 |
//! | `layers.0..`          | step    | `joint`, `vector`                                   | `joint`                           |
//! | `final`               | step    | `joint`, `vector`                                   | `prediction` [C, Ti, B]           |
//!
//! Prompts of two passes may have different lengths. Then the text of one pass ends before `Tt`, and what stands behind it is not
//! looked at: see [`TEXT_OF_PASSES`].

mod block;
mod config;
mod control;
mod declare;
mod ends;
mod latents;
mod ports;

use self::block::{Block, Stream};
use self::control::Running;
use self::declare::{Carried, declare_ports};
use self::ends::{Context, Embed, FinalLayer, Join, TimeIn};
use crate::models::layers;
use crate::stage::{Cadence, Model};
use crate::{Result, reserve};

pub use config::Config;
pub use control::{Config as ControlConfig, ControlNet, Ports as ControlPorts, REFINERS_FIRST, Refines};
pub use latents::{pack_latents, unpack_latents};
pub use ports::{MULTIPLE, Ports, Sizes, TEXT_OF_PASSES, TIME_WIDTH, filled_up};

/// The sinusoidal embedding of `t` (already times 1000), [`TIME_WIDTH`] numbers, cosines first.
pub fn sinusoid(t: f32) -> Vec<f32> {
    layers::sinusoid(t, TIME_WIDTH)
}

/// The transformer: its stages and where to put things.
pub struct ZImage {
    /// The stages.
    pub model: Model,
    /// Where to put things.
    pub ports: Ports,
    /// The same for the ControlNet, if there is one.
    pub control: Option<ControlPorts>,
    config: Config,
}

impl ZImage {
    /// The model that `config` describes.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for a configuration that makes none.
    pub fn new(config: &Config) -> Result<ZImage> {
        ZImage::with(config, None)
    }

    /// The same with a ControlNet beside it, which fits.
    ///
    /// # Errors
    /// As [`new`](ZImage::new).
    pub fn with(config: &Config, control: Option<&ControlConfig>) -> Result<ZImage> {
        config.validate(std::path::Path::new("transformer"))?;
        let mut model = Model::new();
        let ports = declare_ports(&mut model, config);
        let control = declare_stages(&mut model, config, &ports, control)?;
        Ok(ZImage { model, ports, control, config: config.clone() })
    }

    /// The hyperparameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The rotary tables `(cos, sin)`, `[d, T, tables]` each, with room for a text of `text` tokens, filled up. Token `n` of a text, and of what fills it up, is at (1 + n, 0, 0); a
    /// picture's tokens are at (1 + text, row, column), and what fills it up is at (0, 0, 0).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn rotary(&self, sizes: &Sizes, text: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        let image = sizes.image_tokens();
        let numbers = sizes.tables().saturating_mul(image + text).saturating_mul(self.config.head_width());
        let mut cos = reserve::room("the rotary tables", numbers)?;
        let mut sin = reserve::room("the rotary tables", numbers)?;
        let repeated = if sizes.tables() == 1 { 1 } else { sizes.batch };
        let texts = if sizes.tables() == 1 { &sizes.texts[..1] } else { &sizes.texts };
        for &tokens in texts {
            let start = cos.len();
            let [rows, columns] = sizes.image;
            for token in 0..image {
                let at = match token < rows * columns {
                    true => [filled_up(tokens) + 1, token / columns, token % columns],
                    false => [0; 3],
                };
                self.turn(at, &mut cos, &mut sin);
            }
            (0..text).for_each(|token| self.turn([1 + token, 0, 0], &mut cos, &mut sin));
            for _ in 1..repeated {
                let length = (image + text) * self.config.head_width();
                cos.extend_from_within(start..start + length);
                sin.extend_from_within(start..start + length);
            }
        }
        Ok((cos, sin))
    }

    /// Adds the rows of the tables for a position. Angles are rounded to single precision, as in the reference.
    fn turn(&self, at: [usize; 3], cos: &mut Vec<f32>, sin: &mut Vec<f32>) {
        for (&width, coordinate) in self.config.axes_dims.iter().zip(at) {
            for pair in 0..width / 2 {
                let frequency = 1.0 / self.config.rope_theta.powf(2.0 * pair as f64 / width as f64);
                let angle = (coordinate as f64 * frequency) as f32;
                cos.extend([angle.cos(); 2]);
                sin.extend([-angle.sin(), angle.sin()]);
            }
        }
    }
}

/// Declares all stages, and those of the ControlNet `control`. Gives where a request is put for that.
fn declare_stages(
    model: &mut Model,
    config: &Config,
    ports: &Ports,
    control: Option<&ControlConfig>,
) -> Result<Option<ControlPorts>> {
    let all = Carried::declare(model, config);
    let Carried { vector, context, img, joint } = all;
    model.stage("time", Cadence::Request, |s| TimeIn::declare(s, config, ports.time, vector))?;
    model.stage("context", Cadence::Request, |s| Context::declare(s, config, ports, context))?;
    for i in 0..config.n_refiner_layers {
        model.stage(format!("context_refiner.{i}"), Cadence::Request, |s| {
            let mut s = s.sub("context_refiner");
            Block::declare(&mut s.sub(i), config, Stream::text(context), ports, None)
        })?;
    }
    let mut control = control.map(|control| Running::declare(model, control, (*ports, all))).transpose()?;
    model.stage("embed", Cadence::Step, |s| Embed::declare(s, config, ports, img))?;
    if let Some(control) = &control {
        control.embed(model)?;
    }
    for i in 0..config.n_refiner_layers {
        if let Some(control) = &mut control {
            control.before_refiner(model, i)?;
        }
        let copied = control.as_ref().and_then(Running::copied);
        model.stage(format!("noise_refiner.{i}"), Cadence::Step, |s| {
            let mut s = s.sub("noise_refiner");
            Ok(Block::declare(&mut s.sub(i), config, Stream::image(img), ports, Some(vector))?.with(copied))
        })?;
        if let Some(control) = &mut control {
            control.behind_refiner(model, i)?;
        }
    }
    model.stage("join", Cadence::Step, |_| Ok(Join { img, context, joint }))?;
    if let Some(control) = &mut control {
        control.join(model)?;
    }
    for i in 0..config.n_layers {
        model.stage(format!("layers.{i}"), Cadence::Step, |s| {
            let mut s = s.sub("layers");
            Block::declare(&mut s.sub(i), config, Stream::joint(joint), ports, Some(vector))
        })?;
        if let Some(control) = &mut control {
            control.behind_layer(model, i)?;
        }
    }
    model.stage("final", Cadence::Step, |s| FinalLayer::declare(s, config, ports, (joint, vector)))?;
    Ok(control.map(|control| control.ports()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn published_size() {
        assert_eq!(ZImage::new(&Config::default()).unwrap().model.manifest().parameters(), 6_154_908_736);
    }

    #[test]
    fn configuration_is_read_off_the_shapes() {
        for config in [
            Config::default(),
            Config { n_layers: 2, n_refiner_layers: 1, dim: 1536, n_heads: 12, n_kv_heads: 12, ..Config::default() },
        ] {
            let model = ZImage::new(&config).unwrap().model;
            let found = Config::from_shapes(|name| model.manifest().shape(name), Path::new("z.gguf"));
            assert_eq!(found.unwrap(), config);
        }
        let error = Config::from_shapes(|_| None, Path::new("z.gguf")).unwrap_err();
        assert_eq!(error.to_string(), "z.gguf: x_embedder.weight: expected a tensor, found none");
    }

    #[test]
    fn impossible_configurations_are_refused() {
        let broken = [
            Config { axes_dims: vec![32, 48, 49], ..Config::default() },
            Config { axes_dims: vec![128], ..Config::default() },
            Config { n_kv_heads: 8, ..Config::default() },
            Config { n_heads: 0, ..Config::default() },
            Config { all_patch_size: vec![4], ..Config::default() },
            Config { qk_norm: false, ..Config::default() },
            Config { siglip_feat_dim: Some(1152), ..Config::default() },
            Config { axes_lens: vec![64], ..Config::default() },
            Config { dim: usize::MAX, ..Config::default() },
        ];
        for config in broken {
            assert!(ZImage::new(&config).is_err(), "{config:?}");
        }
    }

    #[test]
    fn the_picture_stands_behind_its_own_text() {
        let config = Config { n_layers: 1, n_refiner_layers: 1, ..Config::default() };
        let net = ZImage::new(&config).unwrap();
        let sizes = |texts: &[usize]| Sizes { batch: 2, image: [3, 5], texts: texts.to_vec() };
        let one = sizes(&[33, 40]);
        assert_eq!((one.image_tokens(), one.text_tokens(), one.tables()), (32, 64, 1));
        let two = sizes(&[33, 32]);
        assert_eq!((two.text_tokens(), two.tables()), (64, 4));
        let (cos, _) = net.rotary(&two, two.text_tokens()).unwrap();
        assert_eq!(cos.len(), 4 * 96 * 128);
        // The first pair of the first axis turns by the position itself.
        let first = |table: usize, token: usize| cos[(table * 96 + token) * 128];
        assert_eq!(
            [first(0, 0), first(1, 14), first(2, 0), first(3, 15)],
            [65f32.cos(), 65f32.cos(), 33f32.cos(), 1.0]
        );
        assert_eq!([first(0, 32), first(3, 95)], [1f32.cos(), 64f32.cos()]);
    }
}
