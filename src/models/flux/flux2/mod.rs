//! The FLUX.2 transformer, dev and klein (Black Forest Labs; reference: diffusers' `Flux2Transformer2DModel`, with the original files'
//! names).
//!
//! Like that of FLUX.1, with one modulation for all double blocks and one for all single blocks, gated feed-forward layers, no biases,
//! no pooled prompt, and a fourth rotary axis, along which tokens of the text stand. Modulation depends on time and guidance only: it is
//! computed for all steps before the first.
//!
//! `D` hidden, `H` heads, `d = D/H`, `M` hidden of the feed-forward, `Ti` image tokens, `Tt` text tokens, `T = Tt + Ti`,
//! `B` batch (images times guidance passes), `N` conditions (steps times guidance passes). Shapes in ggml order.
//!
//! | stage               | when    | carried in                         | carried out                        |
//! |---------------------|---------|------------------------------------|------------------------------------|
//! | `vector`            | request | `time`, `guidance` [S, N]          | `vector` [D, N]                    |
//! | `modulation.*`      | request | `vector`                           | one port for each kind, [6D, 3D or 2D, N] |
//! | `context`           | request | `text` [J, Tt, B]                  | `context` [D, Tt, B]               |
//! | `embed`             | step    | `latents` [C, Ti, B]               | `img` [D, Ti, B]                   |
//! | `double.0.*..`      | step    | `img`, `context` or `txt`, modulation | `img`, `txt` [D, Tt, B]         |
//! | `join`              | step    | `txt`, `img`                       | `joint` [D, T, B]                  |
//! | `single.0..`        | step    | `joint`, modulation                | `joint`                            |
//! | `final`             | step    | `joint`, modulation                | `velocity` [C, Ti, B]              |
//!
//! A block with two streams is three stages: attention, and the feed-forward layer of each stream (`*.attention`, `*.image`, `*.text`).

mod blocks;
mod config;
mod ends;
mod latents;
mod ports;

use std::path::Path;

use self::blocks::{FeedForward, JointAttention, SingleBlock, Stream};
use self::ends::VectorIn;
use super::Hidden;
use super::double::{IMAGE, TEXT};
use super::ends::{Embed, FinalLayer, Join};
use super::modulation::ModulationOut;
use super::ports::{carried, input};
use super::shared::{Rotary, Shared, Sizes};
use crate::models::layers::{self, Linear, rotary_tables};
use crate::models::step_cache::{Cached, DecidedBy};
use crate::stage::{Cadence, Model, Port, Symbol};
use crate::weights::Role;
use crate::{Error, Result, reserve};

pub(super) use blocks::gated;
pub use config::Config;
pub(super) use config::ratio;
pub(super) use ends::MlpEmbedder;
pub use latents::{pack_latents, unpack_latents};
pub use ports::Ports;

/// How far apart pictures stand on the first rotary axis.
const APART: usize = 10;

/// The transformer: its stages and where to put things.
pub struct Flux2 {
    /// The stages.
    pub model: Model,
    /// Where to put things.
    pub ports: Ports,
    config: Config,
    hidden: Hidden,
}

impl Flux2 {
    /// The model that `config` describes.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a configuration that makes none.
    pub fn new(config: &Config) -> Result<Flux2> {
        config.validate(Path::new("transformer"))?;
        let mut model = Model::new();
        let ports = Ports::declare(&mut model, config);
        let hidden = declare_stages(&mut model, config, &ports)?;
        Ok(Flux2 { model, ports, config: config.clone(), hidden })
    }

    /// The same with a step cache that is decided `by` that. `None` if the model has too few blocks for it.
    pub fn cached(&self, by: DecidedBy) -> Option<Cached> {
        let blocks = self.config.num_layers + self.config.num_single_layers;
        self.hidden.cached(&self.model, (self.config.hidden(), blocks), by)
    }

    /// The hyperparameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The sinusoidal embedding of `t` (already times 1000), `S` numbers, cosines first.
    pub fn sinusoid(&self, t: f32) -> Vec<f32> {
        layers::sinusoid(t, self.config.timestep_guidance_channels)
    }

    /// The rotary tables `(cos, sin)`, `[d, T]` each, of `text` tokens, where number `n` is at (0, 0, 0, n), and of pictures of
    /// `[rows, columns]` tokens: those of picture number `i` are at (10 i, row, column, 0).
    ///
    /// # Errors
    /// [`Error::Graph`] where a text or a picture has more than 2^32 tokens in a row.
    pub fn rotary(&self, text: usize, pictures: &[[usize; 2]]) -> Result<(Vec<f32>, Vec<f32>)> {
        let number = |count: usize| {
            u32::try_from(count).map_err(|_| Error::graph("rotary", format!("{count} tokens in a row are too many")))
        };
        let tokens = pictures.iter().map(|[rows, columns]| rows.saturating_mul(*columns));
        let mut positions = reserve::room("the positions", tokens.fold(text, usize::saturating_add))?;
        positions.extend((0..number(text)?).map(|n| [0, 0, 0, n]));
        for (i, &[rows, columns]) in pictures.iter().enumerate() {
            let (at, rows, columns) = (number(i * APART)?, number(rows)?, number(columns)?);
            for row in 0..rows {
                positions.extend((0..columns).map(|column| [at, row, column, 0]));
            }
        }
        rotary_tables(&self.config.axes_dims_rope, self.config.rope_theta, &positions)
    }
}

/// The ports of what modulates each kind of block, for all conditions.
struct Modulations {
    img: Port,
    txt: Port,
    single: Port,
    last: Port,
}

/// Declares what is computed of time and guidance.
fn declare_modulations(model: &mut Model, config: &Config, ports: &Ports) -> Result<Modulations> {
    let hidden = config.hidden();
    let vector = input(model, "vector", &[hidden.into(), Symbol::CONDITIONS.into()]);
    model.stage("vector", Cadence::Request, |s| VectorIn::declare(s, config, ports, vector))?;
    let mut modulation = |name: &str, path: &str, parts: usize, role| {
        let name = format!("modulation.{name}");
        let out = input(model, &name, &[(parts * hidden).into(), Symbol::CONDITIONS.into()]);
        model.stage(name, Cadence::Request, |s| {
            let linear = Linear::declare_unbiased(&mut s.sub(path), hidden, parts * hidden, role)?;
            Ok(ModulationOut { vector, projections: vec![(linear, out)] })
        })?;
        Ok::<Port, Error>(out)
    };
    Ok(Modulations {
        img: modulation("img", "double_stream_modulation_img.lin", 6, Role::MatMul)?,
        txt: modulation("txt", "double_stream_modulation_txt.lin", 6, Role::MatMul)?,
        single: modulation("single", "single_stream_modulation.lin", 3, Role::MatMul)?,
        last: modulation("final", "final_layer.adaLN_modulation.1", 2, Role::SensitiveMatMul)?,
    })
}

fn declare_stages(model: &mut Model, config: &Config, ports: &Ports) -> Result<Hidden> {
    let hidden = config.hidden();
    let rotary = Rotary { cos: ports.cos, sin: ports.sin };
    let shared = Shared { rotary, condition: ports.condition, sizes: Sizes::OWN };
    let modulations = declare_modulations(model, config, ports)?;
    let context = input(model, "context", &[hidden.into(), Symbol::TEXT_TOKENS.into(), Symbol::BATCH.into()]);
    model.stage("context", Cadence::Request, |s| {
        let inputs = config.joint_attention_dim;
        let linear = Linear::declare_unbiased(&mut s.sub("txt_in"), inputs, hidden, Role::SensitiveMatMul)?;
        Ok(Embed { linear, from: ports.text, to: context })
    })?;
    let img = carried(model, "img", hidden, Symbol::IMAGE_TOKENS, Symbol::BATCH);
    let txt = carried(model, "txt", hidden, Symbol::TEXT_TOKENS, Symbol::BATCH);
    let joint = carried(model, "joint", hidden, Symbol::JOINT_TOKENS, Symbol::BATCH);
    model.stage("embed", Cadence::Step, |s| {
        let inputs = config.in_channels;
        let linear = Linear::declare_unbiased(&mut s.sub("img_in"), inputs, hidden, Role::SensitiveMatMul)?;
        Ok(Embed { linear, from: ports.latents, to: img })
    })?;
    for i in 0..config.num_layers {
        let from = if i == 0 { context } else { txt };
        model.stage(format!("double.{i}.attention"), Cadence::Step, |s| {
            let mut s = s.sub("double_blocks");
            let mut s = s.sub(i);
            Ok(JointAttention {
                img: Stream::declare(&mut s, IMAGE, config, (img, img), modulations.img)?,
                txt: Stream::declare(&mut s, TEXT, config, (from, txt), modulations.txt)?,
                shared,
            })
        })?;
        for (names, port, modulation) in [(IMAGE, img, modulations.img), (TEXT, txt, modulations.txt)] {
            let [_, name] = names;
            model.stage(format!("double.{i}.{name}"), Cadence::Step, |s| {
                let mut s = s.sub("double_blocks");
                FeedForward::declare(&mut s.sub(i), names, config, (port, modulation, shared))
            })?;
        }
    }
    let txt = if config.num_layers == 0 { context } else { txt };
    model.stage("join", Cadence::Step, |_| Ok(Join { txt, img, joint, text: Symbol::TEXT_TOKENS }))?;
    for i in 0..config.num_single_layers {
        model.stage(format!("single.{i}"), Cadence::Step, |s| {
            let mut s = s.sub("single_blocks");
            SingleBlock::declare(&mut s.sub(i), config, joint, modulations.single, shared)
        })?;
    }
    model.stage("final", Cadence::Step, |s| {
        let mut s = s.sub("final_layer.linear");
        let linear = Linear::declare_unbiased(&mut s, hidden, config.out_channels(), Role::SensitiveMatMul)?;
        Ok(FinalLayer { linear, joint, modulation: modulations.last, shared, velocity: ports.velocity })
    })?;
    let first_modulation = (config.num_layers > 0).then_some(modulations.img);
    Ok(Hidden { img, joint, shared, first_modulation })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn published_sizes() {
        for (config, parameters) in [
            (Config::klein_4b(), 3_875_544_576),
            (Config::klein_9b(), 9_078_581_248),
            (Config::default(), 32_223_281_152),
        ] {
            assert_eq!(Flux2::new(&config).unwrap().model.manifest().parameters(), parameters);
        }
    }

    #[test]
    fn configuration_is_read_off_the_shapes() {
        let odd = Config {
            num_layers: 2,
            num_attention_heads: 3,
            attention_head_dim: 40,
            axes_dims_rope: vec![10; 4],
            mlp_ratio: ratio_of(400, 120),
            timestep_guidance_channels: 32,
            ..Config::klein_4b()
        };
        for config in [Config::klein_4b(), Config::klein_9b(), Config::default(), odd] {
            let model = Flux2::new(&config).unwrap().model;
            let found = Config::from_shapes(|name| model.manifest().shape(name), Path::new("klein.gguf"));
            assert_eq!(found.unwrap(), config);
        }
        let error = Config::from_shapes(|_| None, Path::new("klein.gguf")).unwrap_err();
        assert_eq!(error.to_string(), "klein.gguf: img_in.weight: expected a tensor, found none");
    }

    fn ratio_of(inner: usize, hidden: usize) -> f64 {
        inner as f64 / hidden as f64
    }

    #[test]
    fn impossible_configurations_are_refused() {
        let broken = [
            Config { axes_dims_rope: vec![32, 32, 64], ..Config::default() },
            Config { axes_dims_rope: vec![32, 32, 32, 31], ..Config::default() },
            Config { patch_size: 2, ..Config::default() },
            Config { in_channels: 130, ..Config::default() },
            Config { out_channels: Some(64), ..Config::default() },
            Config { mlp_ratio: f64::NAN, ..Config::default() },
            Config { mlp_ratio: 1e-9, ..Config::default() },
            Config { eps: 1e-5, ..Config::default() },
            Config { rope_theta: 0.0, ..Config::default() },
            Config { timestep_guidance_channels: 255, ..Config::default() },
            Config { num_attention_heads: usize::MAX, ..Config::default() },
        ];
        for config in broken {
            assert!(Flux2::new(&config).is_err(), "{config:?}");
        }
    }

    #[test]
    fn texts_and_pictures_stand_on_axes_of_their_own() {
        let config = Config { attention_head_dim: 8, axes_dims_rope: vec![2; 4], ..Config::default() };
        let (cos, _) = Flux2::new(&config).unwrap().rotary(3, &[[2, 3], [1, 2]]).unwrap();
        assert_eq!(cos.len(), (3 + 6 + 2) * 8);
        let at = |token: usize| [0, 2, 4, 6].map(|axis| cos[token * 8 + axis]);
        let of = |position: [f64; 4]| position.map(|x| x.cos() as f32);
        assert_eq!(at(2), of([0.0, 0.0, 0.0, 2.0]));
        assert_eq!(at(3 + 5), of([0.0, 1.0, 2.0, 0.0]));
        assert_eq!(at(3 + 6 + 1), of([10.0, 0.0, 1.0, 0.0]));
    }
}
