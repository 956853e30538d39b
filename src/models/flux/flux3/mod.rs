//! The transformer of FLUX.3 Image klein, distilled and base (Black Forest Labs; reference: diffusers' `Flux3Transformer2DModel`, with the
//! original files' names).
//!
//! Tokens are of three modes: the picture that is drawn, pictures that are looked at, and text. Each goes through blocks of its own, in
//! which it sees itself alone; then all are one sequence. There is one kind of block, with attention and feed-forward side by side. One
//! modulation for each mode counts for all of its own blocks and one for all that follow. Text and pictures that are looked at are at time
//! 0. A model of few steps is told the time that a step leads to besides, in every mode; one that is not has its text's own blocks behind
//! it before the first step.
//!
//! `D` hidden, `H` heads, `d = D/H`, `M` hidden of the feed-forward, `Ti` tokens of all pictures, `Tt` text tokens, `T = Ti + Tt`,
//! `B` batch (images times guidance passes), `N` times (evaluations). Shapes in ggml order.
//!
//! | stage               | when            | carried in                           | carried out                         |
//! |---------------------|-----------------|--------------------------------------|-------------------------------------|
//! | `vector`            | request         | `time`, `target` [S, N], `zero` [S, 1] | `vector` [D, N], `still` [D, N or 1] |
//! | `modulation.*`      | request         | `vector` or `still`                  | one port for each kind and mode, [3D or 2D, N or 1] |
//! | `context`           | request         | `text` [J, Tt, B]                    | `context` [D, Tt, B]                |
//! | `text.0..`          | request or step | `context` or `joint`, modulation     | `context` or `joint`                |
//! | `embed`             | step            | `latents` [C, Ti, B], `context`      | `joint` [D, T, B]                   |
//! | `image.0..`         | step            | `joint`, modulation                  | `joint`                             |
//! | `reference.0..`     | step            | `joint`, modulation                  | `joint`                             |
//! | `single.0..`        | step            | `joint`, modulation                  | `joint`                             |
//! | `final`             | step            | `joint`, modulation                  | `velocity` [C, Ti, B]               |
//!
//! Prompts of two passes may have different lengths. Then the text of one pass ends before `Tt`, and what stands behind it is not
//! looked at: see [`TEXT_OF_PASSES`].

mod block;
mod config;
mod ends;
mod ports;

use std::path::Path;

use self::block::{Mode, Modulated, ParallelBlock, Stream};
use self::ends::{Embed, FinalLayer, VectorIn};
use super::ends::Embed as Project;
use super::modulation::ModulationOut;
use super::ports::{carried, input};
use super::shared::{Rotary, Shared, Sizes as Extents};
use crate::models::layers::{self, Linear, rotary_tables};
use crate::stage::{Cadence, Extent, Model, Port, Symbol};
use crate::weights::Role;
use crate::{Error, Result, reserve};

pub use super::flux2::{pack_latents, unpack_latents};
pub use config::Config;
pub use ports::{DRAWN_TOKENS, Ports, REFERENCE_TOKENS, Sizes, TEXT_OF_PASSES, TIMES};

/// How far apart neighbouring tokens of a picture stand.
const APART: f64 = 0.5;

/// The transformer: its stages and where to put things.
pub struct Flux3 {
    /// The stages.
    pub model: Model,
    /// Where to put things.
    pub ports: Ports,
    config: Config,
}

impl Flux3 {
    /// The model that `config` describes.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a configuration that makes none.
    pub fn new(config: &Config) -> Result<Flux3> {
        config.validate(Path::new("transformer"))?;
        let mut model = Model::new();
        let ports = Ports::declare(&mut model, config);
        declare_stages(&mut model, config, &ports)?;
        Ok(Flux3 { model, ports, config: config.clone() })
    }

    /// The hyperparameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The sinusoidal embedding of `t` (already times 1000), `S` numbers, cosines first.
    pub fn sinusoid(&self, t: f32) -> Vec<f32> {
        layers::sinusoid(t, self.config.timestep_channels)
    }

    /// The rotary tables `(cos, sin)`, `[d, T]` each: tokens of the picture that is drawn are at (0, row / 2, column / 2, 0), those of
    /// the `i`-th that is looked at, counted from 1, at (0, row / 2, column / 2, -i), and token `n` of the text is at (0, 0, 0, n).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn rotary(&self, sizes: &Sizes) -> Result<(Vec<f32>, Vec<f32>)> {
        let tokens = sizes.image_tokens().saturating_add(sizes.text_tokens());
        let mut positions = reserve::room("the positions", tokens)?;
        for (i, &[rows, columns]) in sizes.pictures.iter().enumerate() {
            for row in 0..rows {
                positions
                    .extend((0..columns).map(|column| [0.0, row as f64 * APART, column as f64 * APART, -(i as f64)]));
            }
        }
        positions.extend((0..sizes.text_tokens()).map(|n| [0.0, 0.0, 0.0, n as f64]));
        rotary_tables(&self.config.axes_dims_rope, self.config.rope_theta, &positions)
    }
}

/// What modulates each mode, in its own blocks and in those of all.
struct Modulations {
    early: Vec<Modulated>,
    single: Vec<Modulated>,
    last: Port,
}

/// Declares what is computed of times.
fn declare_modulations(model: &mut Model, config: &Config, ports: &Ports) -> Result<Modulations> {
    let hidden = config.hidden();
    let times = Extent::from(TIMES);
    let vector = input(model, "vector", &[hidden.into(), times]);
    let stills = if config.flow_map { times } else { 1.into() };
    let still = input(model, "still", &[hidden.into(), stills]);
    model.stage("vector", Cadence::Request, |s| VectorIn::declare(s, config, ports, [vector, still]))?;
    let mut modulation = |name: String, path: &str, parts: usize, (vector, extent): (Port, Extent), role| {
        let out = input(model, &name, &[(parts * hidden).into(), extent]);
        model.stage(name, Cadence::Request, |s| {
            let linear = Linear::declare_unbiased(&mut s.sub(path), hidden, parts * hidden, role)?;
            Ok(ModulationOut { vector, projections: vec![(linear, out)] })
        })?;
        Ok::<Port, Error>(out)
    };
    let (mut early, mut single) = (Vec::new(), Vec::new());
    for (kind, all) in [("early", &mut early), ("single", &mut single)] {
        for mode in Mode::ALL {
            let of = if mode == Mode::Image { (vector, times) } else { (still, stills) };
            let path = format!("{kind}_stream_modulations.{}.lin", mode.name());
            let port = modulation(format!("modulation.{kind}.{}", mode.name()), &path, 3, of, Role::MatMul)?;
            let in_all_steps = mode != Mode::Image && !config.flow_map;
            all.push(Modulated { mode, port, in_all_steps });
        }
    }
    let (path, of) = ("final_layer.image.adaLN_modulation.1", (vector, times));
    let last = modulation("modulation.final".into(), path, 2, of, Role::SensitiveMatMul)?;
    Ok(Modulations { early, single, last })
}

/// Declares the blocks that a mode has for itself, which are called `stage`.
fn declare_own(
    model: &mut Model,
    config: &Config,
    (stage, cadence, port): (&str, Cadence, Port),
    modulated: Modulated,
    shared: Shared,
) -> Result<()> {
    let path = match modulated.mode {
        Mode::Text => "txt_mode_blocks".to_owned(),
        mode => format!("content_mode_blocks.{}", mode.name()),
    };
    for i in 0..config.num_layers {
        model.stage(format!("{stage}.{i}"), cadence, |s| {
            let is_alone = cadence == Cadence::Request;
            let stream = Stream { port, is_alone, modes: vec![modulated] };
            ParallelBlock::declare(&mut s.sub(&path).sub(i), config, stream, shared)
        })?;
        if modulated.mode == Mode::Reference {
            model.last_runs_if(REFERENCE_TOKENS);
        }
    }
    Ok(())
}

fn declare_stages(model: &mut Model, config: &Config, ports: &Ports) -> Result<()> {
    let hidden = config.hidden();
    let rotary = Rotary { cos: ports.cos, sin: ports.sin };
    let shared = Shared { rotary, condition: ports.condition, sizes: Extents::OWN };
    let Modulations { early, single, last } = declare_modulations(model, config, ports)?;
    let [image, reference, text] = early[..] else { return Err(Error::graph("declare", "three modes")) };
    let context = input(model, "context", &[hidden.into(), Symbol::TEXT_TOKENS.into(), Symbol::BATCH.into()]);
    model.stage("context", Cadence::Request, |s| {
        let inputs = config.joint_attention_dim;
        let linear = Linear::declare_unbiased(&mut s.sub("txt_in"), inputs, hidden, Role::SensitiveMatMul)?;
        Ok(Project { linear, from: ports.text, to: context })
    })?;
    let joint = carried(model, "joint", hidden, Symbol::JOINT_TOKENS, Symbol::BATCH);
    if !config.flow_map {
        declare_own(model, config, ("text", Cadence::Request, context), text, shared)?;
    }
    model.stage("embed", Cadence::Step, |s| Embed::declare(s, config, ports.latents, (context, joint)))?;
    if config.flow_map {
        declare_own(model, config, ("text", Cadence::Step, joint), text, shared)?;
    }
    declare_own(model, config, ("image", Cadence::Step, joint), image, shared)?;
    declare_own(model, config, ("reference", Cadence::Step, joint), reference, shared)?;
    for i in 0..config.num_single_layers {
        model.stage(format!("single.{i}"), Cadence::Step, |s| {
            let stream = Stream { port: joint, is_alone: false, modes: single.clone() };
            ParallelBlock::declare(&mut s.sub("single_blocks").sub(i), config, stream, shared)
        })?;
    }
    model.stage("final", Cadence::Step, |s| {
        let mut s = s.sub("final_layer.image.linear");
        let linear = Linear::declare_unbiased(&mut s, hidden, config.in_channels, Role::SensitiveMatMul)?;
        Ok(FinalLayer { linear, joint, modulation: last, shared, velocity: ports.velocity })
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn published_sizes() {
        for (config, parameters) in [(Config::klein(), 5_548_681_984), (Config::default(), 5_538_458_368)] {
            assert_eq!(Flux3::new(&config).unwrap().model.manifest().parameters(), parameters);
        }
    }

    #[test]
    fn configuration_is_read_off_the_shapes() {
        let odd = Config {
            num_layers: 2,
            num_single_layers: 3,
            num_attention_heads: 3,
            attention_head_dim: 40,
            axes_dims_rope: vec![10; 4],
            mlp_ratio: 400.0 / 120.0,
            timestep_channels: 32,
            ..Config::klein()
        };
        for config in [Config::klein(), Config::default(), odd] {
            let model = Flux3::new(&config).unwrap().model;
            let found = Config::from_shapes(|name| model.manifest().shape(name), Path::new("klein.gguf"));
            assert_eq!(found.unwrap(), config);
        }
        let error = Config::from_shapes(|_| None, Path::new("klein.gguf")).unwrap_err();
        assert_eq!(error.to_string(), "klein.gguf: emb_in.image.weight: expected a tensor, found none");
    }

    #[test]
    fn impossible_configurations_are_refused() {
        let broken = [
            Config { axes_dims_rope: vec![32, 32, 64], ..Config::default() },
            Config { axes_dims_rope: vec![32, 32, 32, 31], ..Config::default() },
            Config { in_channels: 130, cond_in_channels: 130, ..Config::default() },
            Config { cond_in_channels: 64, ..Config::default() },
            Config { mlp_ratio: f64::NAN, ..Config::default() },
            Config { mlp_ratio: 1e-9, ..Config::default() },
            Config { eps: 1e-5, ..Config::default() },
            Config { rope_theta: 0.0, ..Config::default() },
            Config { timestep_channels: 255, ..Config::default() },
            Config { num_attention_heads: usize::MAX, ..Config::default() },
        ];
        for config in broken {
            assert!(Flux3::new(&config).is_err(), "{config:?}");
        }
    }

    #[test]
    fn texts_and_pictures_stand_on_axes_of_their_own() {
        let config = Config { attention_head_dim: 8, axes_dims_rope: vec![2; 4], ..Config::default() };
        let sizes = Sizes { batch: 1, pictures: vec![[2, 3], [1, 2]], texts: vec![3, 2] };
        let (cos, sin) = Flux3::new(&config).unwrap().rotary(&sizes).unwrap();
        assert_eq!(cos.len(), (6 + 2 + 3) * 8);
        let at = |token: usize| [0, 2, 4, 6].map(|axis| cos[token * 8 + axis]);
        let of = |position: [f64; 4]| position.map(|x| x.cos() as f32);
        assert_eq!(at(5), of([0.0, 0.5, 1.0, 0.0]));
        assert_eq!(at(7), of([0.0, 0.0, 0.5, -1.0]));
        // Behind what is drawn, and not before it.
        assert_eq!(sin[7 * 8 + 7], (-1f64).sin() as f32);
        assert_eq!(at(10), of([0.0, 0.0, 0.0, 2.0]));
    }
}
