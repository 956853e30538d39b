//! The FLUX.1 transformer, dev and schnell (Black Forest Labs; reference: diffusers' `FluxTransformer2DModel`, with
//! the original files' names).
//!
//! Predicts the velocity of a rectified flow from noised latents, a prompt and a time. Modulation (a scale, a shift and
//! a gate for every block) depends only on time, guidance and the pooled prompt, not on the picture: it is computed
//! for all steps before the first, so that a quarter of the weights is touched once a request.
//!
//! `D` hidden, `H` heads, `d = D/H`, `M` hidden of the feed-forward, `Ti` image tokens, `Tt` text tokens, `T = Tt + Ti`,
//! `B` batch (images times guidance passes), `N` conditions (steps times guidance passes). Shapes in ggml order.
//!
//! | stage               | when    | carried in                                  | carried out                        |
//! |---------------------|---------|---------------------------------------------|------------------------------------|
//! | `vector`            | request | `time`, `guidance` [256, N], `pooled` [P, N] | `vector` [D, N]                    |
//! | `modulation.*`      | request | `vector`                                    | one port per block, [6D or 3D, N]  |
//! | `context`           | request | `text` [J, Tt, B]                           | `context` [D, Tt, B]               |
//! | `ip.*`              | request | see `ip.rs`, of a model with an IP-Adapter  |                                    |
//! | `embed`             | step    | `latents` [C, Ti, B]                        | `img` [D, Ti, B]                   |
//! | `double.0..`        | step    | `img`, `context` or `txt`, modulation       | `img`, `txt` [D, Tt, B]            |
//! | `join`              | step    | `txt`, `img`                                | `joint` [D, T, B]                  |
//! | `single.0..`        | step    | `joint`, modulation                         | `joint`                            |
//! | `final`             | step    | `joint`, modulation                         | `velocity` [C', Ti, B]             |

mod attention;
mod config;
mod double;
mod ends;
mod ip;
mod latents;
mod modulation;
pub mod redux;
mod single;

use std::path::Path;

use pinhole_quant::DType;

use self::attention::Rotary;
use self::double::{DoubleBlock, Stream};
use self::ends::{Embed, FinalLayer, Join};
use self::ip::Declared;
use self::modulation::{ModulationOut, VectorIn};
use self::single::SingleBlock;
use super::layers::{Linear, rotary_tables};
use crate::stage::{Cadence, Extent, Lifetime, Model, Port, Symbol};
use crate::weights::Role;
use crate::{Error, Result, reserve};

pub use config::Config;
pub use ip::{IP_PICTURES, IpAdapter, IpConfig, IpForm, IpPorts};
pub use latents::{pack_latents, pack_mask, unpack_latents};
pub use modulation::sinusoid;

/// Width of the sinusoidal embedding of time and guidance.
pub const TIME_WIDTH: usize = 256;

/// The epsilon of every normalisation.
const EPS: f32 = 1e-6;

/// Base of the rotary frequencies.
const THETA: f64 = 10000.0;

/// How many items of the batch see all tokens, if some do not: those of the prompt that begin with tokens of pictures.
pub const SEEN_BY: Symbol = Symbol::new("items that see all tokens");

/// How many of the first tokens the other items do not see.
pub const UNSEEN: Symbol = Symbol::new("tokens that some items do not see");

/// The ports that carry the request into the model, and the velocity out.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// `[256, N]`: [`sinusoid`] of each condition's time.
    pub time: Port,
    /// `[256, N]`: [`sinusoid`] of the guidance; absent in schnell.
    pub guidance: Option<Port>,
    /// `[P, N]`: the pooled prompt of each condition.
    pub pooled: Port,
    /// `[J, Tt, B]`: the prompt's hidden states.
    pub text: Port,
    /// `[d, 1, T]`: see [`Flux::rotary`].
    pub cos: Port,
    /// `[d, 1, T]`: see [`Flux::rotary`].
    pub sin: Port,
    /// `[B]`, I32: which condition each item of the batch is computed under in this step.
    pub condition: Port,
    /// `[C, Ti, B]`: packed latents.
    pub latents: Port,
    /// `[C', Ti, B]`: the prediction.
    pub velocity: Port,
    /// Those of an IP-Adapter, if the model is made with one.
    pub ip: Option<IpPorts>,
}

/// The transformer: its stages and where to put things.
pub struct Flux {
    /// The stages.
    pub model: Model,
    /// Where to put things.
    pub ports: Ports,
    config: Config,
}

impl Flux {
    /// The model that `config` describes.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a configuration that makes none.
    pub fn new(config: &Config) -> Result<Flux> {
        Flux::with_ip(config, None)
    }

    /// The same, with an IP-Adapter if `ip` describes one.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a configuration that makes none.
    pub fn with_ip(config: &Config, ip: Option<&IpConfig>) -> Result<Flux> {
        config.validate(Path::new("transformer"))?;
        let mut model = Model::new();
        let mut ports = Ports {
            ip: None,
            time: input(&mut model, "time", &[TIME_WIDTH.into(), Symbol::CONDITIONS.into()]),
            guidance: config
                .guidance_embeds
                .then(|| input(&mut model, "guidance", &[TIME_WIDTH.into(), Symbol::CONDITIONS.into()])),
            pooled: input(&mut model, "pooled", &[config.pooled_projection_dim.into(), Symbol::CONDITIONS.into()]),
            text: input(
                &mut model,
                "text",
                &[config.joint_attention_dim.into(), Symbol::TEXT_TOKENS.into(), Symbol::BATCH.into()],
            ),
            cos: input(&mut model, "cos", &[config.attention_head_dim.into(), 1.into(), Symbol::JOINT_TOKENS.into()]),
            sin: input(&mut model, "sin", &[config.attention_head_dim.into(), 1.into(), Symbol::JOINT_TOKENS.into()]),
            condition: model.port("condition", &[Symbol::BATCH.into()], DType::I32, Lifetime::Pass),
            latents: carried(&mut model, "latents", config.in_channels, Symbol::IMAGE_TOKENS),
            velocity: carried(&mut model, "velocity", config.out_channels(), Symbol::IMAGE_TOKENS),
        };
        ports.ip = declare_stages(&mut model, config, &ports, ip)?;
        Ok(Flux { model, ports, config: config.clone() })
    }

    /// The hyperparameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The rotary tables `(cos, sin)`, `[d, T]` each, of `text` tokens at position (0, 0, 0) and of pictures of `[rows, columns]`
    /// tokens: those of picture number `i` are at (i, row, column).
    ///
    /// # Errors
    /// [`Error::Graph`] where a picture has more than 2^32 rows or columns.
    pub fn rotary(&self, text: usize, pictures: &[[usize; 2]]) -> Result<(Vec<f32>, Vec<f32>)> {
        let tokens = pictures.iter().map(|[rows, columns]| rows.saturating_mul(*columns));
        let mut positions = reserve::room("the positions", tokens.fold(text, usize::saturating_add))?;
        positions.extend(std::iter::repeat_n([0; 3], text));
        for (i, &[rows, columns]) in (0..).zip(pictures) {
            let too_large = || Error::graph("rotary", format!("{rows} x {columns} tokens are too many"));
            let (rows, columns) =
                (u32::try_from(rows).map_err(|_| too_large())?, u32::try_from(columns).map_err(|_| too_large())?);
            positions.extend((0..rows).flat_map(|row| (0..columns).map(move |column| [i, row, column])));
        }
        rotary_tables(&self.config.axes_dims_rope, THETA, &positions)
    }
}

fn input(model: &mut Model, name: &str, extents: &[Extent]) -> Port {
    model.port(name, extents, DType::F32, Lifetime::Request)
}

/// A port of `[width, tokens, B]` that is carried through a step.
fn carried(model: &mut Model, name: &str, width: usize, tokens: Symbol) -> Port {
    model.port(name, &[width.into(), tokens.into(), Symbol::BATCH.into()], DType::F32, Lifetime::Pass)
}

/// Declares the stages, and gives the ports of the IP-Adapter if `ip` describes one.
fn declare_stages(model: &mut Model, config: &Config, ports: &Ports, ip: Option<&IpConfig>) -> Result<Option<IpPorts>> {
    let hidden = config.hidden();
    let conditions = |width: usize| [Extent::from(width), Symbol::CONDITIONS.into()];
    let vector = input(model, "vector", &conditions(hidden));
    let context = model.port(
        "context",
        &[hidden.into(), Symbol::TEXT_TOKENS.into(), Symbol::BATCH.into()],
        DType::F32,
        Lifetime::Request,
    );
    model.stage("vector", Cadence::Request, |s| VectorIn::declare(s, config, ports, vector))?;

    let mut double = Vec::new();
    for i in 0..config.num_layers {
        let img = input(model, &format!("modulation.double.{i}.img"), &conditions(6 * hidden));
        let txt = input(model, &format!("modulation.double.{i}.txt"), &conditions(6 * hidden));
        model.stage(format!("modulation.double.{i}"), Cadence::Request, |s| {
            let mut s = s.sub("double_blocks");
            let mut s = s.sub(i);
            let projections = vec![
                (Linear::declare(&mut s.sub("img_mod.lin"), hidden, 6 * hidden, Role::MatMul)?, img),
                (Linear::declare(&mut s.sub("txt_mod.lin"), hidden, 6 * hidden, Role::MatMul)?, txt),
            ];
            Ok(ModulationOut { vector, projections })
        })?;
        double.push((img, txt));
    }
    let mut single = Vec::new();
    for i in 0..config.num_single_layers {
        let out = input(model, &format!("modulation.single.{i}"), &conditions(3 * hidden));
        model.stage(format!("modulation.single.{i}"), Cadence::Request, |s| {
            let mut s = s.sub("single_blocks");
            let lin = Linear::declare(&mut s.sub(i).sub("modulation.lin"), hidden, 3 * hidden, Role::MatMul)?;
            Ok(ModulationOut { vector, projections: vec![(lin, out)] })
        })?;
        single.push(out);
    }
    let last = input(model, "modulation.final", &conditions(2 * hidden));
    model.stage("modulation.final", Cadence::Request, |s| {
        let mut s = s.sub("final_layer.adaLN_modulation.1");
        let lin = Linear::declare(&mut s, hidden, 2 * hidden, Role::SensitiveMatMul)?;
        Ok(ModulationOut { vector, projections: vec![(lin, last)] })
    })?;
    model.stage("context", Cadence::Request, |s| {
        let linear = Linear::declare(&mut s.sub("txt_in"), config.joint_attention_dim, hidden, Role::SensitiveMatMul)?;
        Ok(Embed { linear, from: ports.text, to: context })
    })?;
    let ip = ip.map(|ip| Declared::declare(model, ip)).transpose()?;

    let img = carried(model, "img", hidden, Symbol::IMAGE_TOKENS);
    let txt = carried(model, "txt", hidden, Symbol::TEXT_TOKENS);
    let joint = carried(model, "joint", hidden, Symbol::JOINT_TOKENS);
    model.stage("embed", Cadence::Step, |s| {
        let linear = Linear::declare(&mut s.sub("img_in"), config.in_channels, hidden, Role::SensitiveMatMul)?;
        Ok(Embed { linear, from: ports.latents, to: img })
    })?;
    for (i, &(img_modulation, txt_modulation)) in double.iter().enumerate() {
        let txt_from = if i == 0 { context } else { txt };
        model.stage(format!("double.{i}"), Cadence::Step, |s| {
            let mut s = s.sub("double_blocks");
            let mut s = s.sub(i);
            Ok(DoubleBlock {
                img: Stream::declare(&mut s, "img", config, (img, img), img_modulation)?,
                txt: Stream::declare(&mut s, "txt", config, (txt_from, txt), txt_modulation)?,
                rotary: Rotary::of(ports),
                condition: ports.condition,
                ip: ip.as_ref().and_then(|ip| ip.double(i)),
            })
        })?;
    }
    let txt = if double.is_empty() { context } else { txt };
    model.stage("join", Cadence::Step, |_| Ok(Join { txt, img, joint }))?;
    for (i, &modulation) in single.iter().enumerate() {
        model.stage(format!("single.{i}"), Cadence::Step, |s| {
            let mut s = s.sub("single_blocks");
            let block = SingleBlock::declare(&mut s.sub(i), config, joint, modulation, ports)?;
            Ok(block.beside(ip.as_ref().and_then(|ip| ip.single(i))))
        })?;
    }
    model.stage("final", Cadence::Step, |s| {
        let mut s = s.sub("final_layer.linear");
        let linear = Linear::declare(&mut s, hidden, config.out_channels(), Role::SensitiveMatMul)?;
        Ok(FinalLayer { linear, joint, modulation: last, condition: ports.condition, velocity: ports.velocity })
    })?;
    Ok(ip.map(|ip| ip.ports))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tensor::Shape;

    #[test]
    fn published_sizes() {
        assert_eq!(Flux::new(&Config::dev()).unwrap().model.manifest().parameters(), 11_901_408_320);
        assert_eq!(Flux::new(&Config::schnell()).unwrap().model.manifest().parameters(), 11_891_178_560);
    }

    #[test]
    fn configuration_is_read_off_the_shapes() {
        for config in
            [Config::dev(), Config::schnell(), Config { num_layers: 2, num_attention_heads: 3, ..Config::dev() }]
        {
            let model = Flux::new(&config).unwrap().model;
            let shapes: std::collections::HashMap<String, Shape> =
                model.manifest().iter().map(|(_, weight)| (weight.name.clone(), weight.shape)).collect();
            let found = Config::from_shapes(|name| shapes.get(name).copied(), Path::new("flux.gguf"));
            assert_eq!(found.unwrap(), config);
            // A block that is missing is counted, and missed where weights are bound.
            let gap = |name: &str| shapes.get(name).copied().filter(|_| !name.starts_with("single_blocks.3."));
            assert_eq!(Config::from_shapes(gap, Path::new("flux.gguf")).unwrap(), config);
            let single = |name: &str| shapes.get(name).copied().filter(|_| !name.starts_with("double_blocks."));
            let error = Config::from_shapes(single, Path::new("flux.gguf")).unwrap_err().to_string();
            assert!(error.starts_with("flux.gguf: double_blocks.0.img_attn.norm.query_norm.scale"), "{error}");
        }
        let error = Config::from_shapes(|_| None, Path::new("flux.gguf")).unwrap_err();
        assert_eq!(error.to_string(), "flux.gguf: img_in.weight: expected a tensor, found none");
    }

    #[test]
    fn impossible_configurations_are_refused() {
        let broken = [
            Config { axes_dims_rope: vec![16, 56, 57], ..Config::dev() },
            Config { axes_dims_rope: vec![128], ..Config::dev() },
            Config { patch_size: 2, ..Config::dev() },
            Config { in_channels: 0, ..Config::dev() },
            Config { num_attention_heads: usize::MAX, ..Config::dev() },
        ];
        for config in broken {
            assert!(Flux::new(&config).is_err(), "{config:?}");
        }
    }
}
