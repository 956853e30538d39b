//! The Qwen-Image transformer, and those of its edit models (Qwen; reference: diffusers' `QwenImageTransformer2DModel`, whose names all
//! files have).
//!
//! Predicts the velocity of a rectified flow from noised latents, a prompt and a time. Modulation (a shift, a scale and a gate for
//! every block and both of its streams) depends on time alone: it is computed for all steps before the first, so that a third of the
//! weights is touched once a request. What leaves a block is far beyond F16's range.
//!
//! `D` hidden, `H` heads, `d = D/H`, `F` inner width of the feed-forward, `J` width of the prompt, `Ti` image tokens, `Tt` text tokens,
//! `T = Ti + Tt`, `B` batch (images times guidance passes). Shapes in ggml order.
//!
//! | stage             | when    | carried in                          | carried out                             |
//! |-------------------|---------|-------------------------------------|-----------------------------------------|
//! | `time`            | request | `time` [256, times]                 | `vector` [D, times]                     |
//! | `modulation.*`    | request | `vector`                            | two ports for each block, [6D, times]   |
//! | `context`         | request | `text` [J, Tt, B]                   | `context` [D, Tt, B]                    |
//! | `embed`           | step    | `latents` [C, Ti, B], `context`     | `img` [D, Ti, B], `txt` [D, Tt, B]      |
//! | `block.0.*..`     | step    | `img`, `txt`, modulation            | `img`, `txt`                            |
//! | `final`           | step    | `img`, modulation                   | `prediction` [C, Ti, B]                 |
//!
//! A block with two streams is three stages: attention, and the feed-forward layer of each stream (`*.attention`, `*.image`, `*.text`).
//!
//! Prompts of two passes may have different lengths. Then the text of one pass ends before `Tt`, and what stands behind it is not
//! looked at: see [`TEXT_OF_PASSES`].

mod block;
mod config;
mod control;
mod declare;
mod ends;
mod modulation;
mod ports;
mod rotary;
pub mod single;

use self::control::Running;
use self::declare::{carried, declare_block, declare_modulation, declare_ports, input};
use self::ends::{Context, Embed, FinalLayer};
use self::modulation::ModulationOut;
use self::ports::Extents;
use self::rotary::Tables;
use crate::Result;
use crate::models::layers::Linear;
use crate::stage::{Cadence, Model, Symbol};
use crate::weights::Role;

pub use config::Config;
pub use control::{Config as ControlConfig, ControlNet, Ports as ControlPorts};
pub use modulation::sinusoid;
pub use ports::{DRAWN_TOKENS, Ports, Sizes, TEXT_OF_PASSES, TIME_WIDTH, TIMES};

/// The transformer: its stages and where to put things.
pub struct QwenImage {
    /// The stages.
    pub model: Model,
    /// Where to put things.
    pub ports: Ports,
    /// The same for each ControlNet.
    pub controls: Vec<ControlPorts>,
    config: Config,
}

impl QwenImage {
    /// The model that `config` describes.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for a configuration that makes none.
    pub fn new(config: &Config) -> Result<QwenImage> {
        QwenImage::with(config, &[])
    }

    /// The same with ControlNets beside it, which fit.
    ///
    /// # Errors
    /// As [`new`](QwenImage::new).
    pub fn with(config: &Config, controls: &[ControlConfig]) -> Result<QwenImage> {
        config.validate(std::path::Path::new("transformer"))?;
        let mut model = Model::new();
        let ports = declare_ports(&mut model, config);
        let controls = declare_stages(&mut model, config, &ports, controls)?;
        Ok(QwenImage { model, ports, controls, config: config.clone() })
    }

    /// The hyperparameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The rotary tables `(cos, sin)`, `[d, T]` each. Tokens of picture number `i` are at (i, row, column), counted from its middle;
    /// those of the text stand on all axes behind half of the longest side.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn rotary(&self, sizes: &Sizes) -> Result<(Vec<f32>, Vec<f32>)> {
        let tokens = sizes.image_tokens().saturating_add(sizes.text_tokens());
        let mut tables = Tables::new(&self.config.axes_dims_rope, tokens)?;
        let mut behind = 0;
        for (i, &picture) in sizes.pictures.iter().enumerate() {
            behind = behind.max(picture[0] / 2).max(picture[1] / 2);
            tables.turn_picture(i, picture);
        }
        for token in 0..sizes.text_tokens() {
            tables.turn([(behind + token) as f32; 3]);
        }
        Ok((tables.cos, tables.sin))
    }
}

/// Declares all stages, and those of ControlNets. Gives where a request is put for these.
fn declare_stages(
    model: &mut Model,
    config: &Config,
    ports: &Ports,
    controls: &[ControlConfig],
) -> Result<Vec<ControlPorts>> {
    let hidden = config.hidden();
    let (vector, modulations) = declare_modulation(model, config, ports.time)?;
    let last = input(model, "modulation.final", &[(2 * hidden).into(), TIMES.into()]);
    model.stage("modulation.final", Cadence::Request, |s| {
        let linear = Linear::declare(&mut s.sub("norm_out.linear"), hidden, 2 * hidden, Role::SensitiveMatMul)?;
        Ok(ModulationOut { vector, projections: vec![(linear, last)] })
    })?;
    let context = input(model, "context", &[hidden.into(), Symbol::TEXT_TOKENS.into(), Symbol::BATCH.into()]);
    model.stage("context", Cadence::Request, |s| Context::declare(s, config, ports.text, context))?;
    let mut running = Vec::with_capacity(controls.len());
    for (i, control) in controls.iter().enumerate() {
        running.push(Running::declare(model, Some(i), control, ports)?);
    }
    let img = carried(model, "img", hidden, Symbol::IMAGE_TOKENS);
    let txt = carried(model, "txt", hidden, Symbol::TEXT_TOKENS);
    model.stage("embed", Cadence::Step, |s| Embed::declare(s, config, (ports.latents, img), (context, txt)))?;
    for (i, modulation) in modulations.into_iter().enumerate() {
        let mut residuals = Vec::with_capacity(running.len());
        for control in &mut running {
            residuals.push(control.for_block(model, i, config.num_layers)?);
        }
        declare_block(model, config, (i, Extents::OWN), ports, ([img, txt], modulation), residuals)?;
    }
    model.stage("final", Cadence::Step, |s| FinalLayer::declare(s, config, ports, (img, last)))?;
    running.into_iter().map(|control| control.finish(model)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn published_size() {
        assert_eq!(QwenImage::new(&Config::default()).unwrap().model.manifest().parameters(), 20_430_401_088);
    }

    #[test]
    fn configuration_is_read_off_the_shapes() {
        let other = Config {
            num_layers: 2,
            num_attention_heads: 3,
            attention_head_dim: 64,
            axes_dims_rope: vec![8, 28, 28],
            in_channels: 48,
            out_channels: Some(12),
            ..Config::default()
        };
        for config in [Config::default(), other] {
            let model = QwenImage::new(&config).unwrap().model;
            let found = Config::from_shapes(|name| model.manifest().shape(name), Path::new("qwen.gguf"));
            assert_eq!(found.unwrap(), config);
        }
        let error = Config::from_shapes(|_| None, Path::new("qwen.gguf")).unwrap_err();
        assert_eq!(error.to_string(), "qwen.gguf: img_in.weight: expected a tensor, found none");
    }

    #[test]
    fn impossible_configurations_are_refused() {
        let broken = [
            Config { axes_dims_rope: vec![16, 56, 57], ..Config::default() },
            Config { axes_dims_rope: vec![128], ..Config::default() },
            Config { num_attention_heads: 0, ..Config::default() },
            Config { num_attention_heads: usize::MAX, ..Config::default() },
            Config { patch_size: 4, ..Config::default() },
            Config { out_channels: Some(4), ..Config::default() },
            Config { guidance_embeds: true, ..Config::default() },
            Config { use_additional_t_cond: true, ..Config::default() },
            Config { use_layer3d_rope: true, ..Config::default() },
        ];
        for config in broken {
            assert!(QwenImage::new(&config).is_err(), "{config:?}");
        }
    }

    #[test]
    fn positions_are_counted_from_the_middle() {
        let net = QwenImage::new(&Config { num_layers: 1, ..Config::default() }).unwrap();
        let sizes = Sizes { batch: 1, pictures: vec![[3, 5], [2, 2]], texts: vec![4] };
        assert_eq!((sizes.image_tokens(), sizes.drawn_tokens(), sizes.text_tokens()), (19, 15, 4));
        let (cos, _) = net.rotary(&sizes).unwrap();
        // The first pair of an axis turns by the position itself.
        let at = |token: usize| [0, 16, 72].map(|axis| cos[token * 128 + axis]);
        let of = |position: [f32; 3]| position.map(f32::cos);
        assert_eq!(at(0), of([0.0, -2.0, -3.0]));
        assert_eq!(at(14), of([0.0, 0.0, 1.0]));
        assert_eq!(at(15), of([1.0, -1.0, -1.0]));
        assert_eq!([at(19), at(22)], [of([2.0; 3]), of([5.0; 3])]);
    }
}
