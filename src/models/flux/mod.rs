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
//! | `double.0.*..`      | step    | `img`, `context` or `txt`, modulation       | `img`, `txt` [D, Tt, B]            |
//! | `join`              | step    | `txt`, `img`                                | `joint` [D, T, B]                  |
//! | `single.0..`        | step    | `joint`, modulation                         | `joint`                            |
//! | `final`             | step    | `joint`, modulation                         | `velocity` [C', Ti, B]             |
//!
//! A block with two streams is three stages: attention, and the feed-forward layer of each stream (`*.attention`, `*.image`, `*.text`).
//!
//! ControlNets run within the model, their stages between those of its blocks: see `control`.

mod attention;
mod cache;
mod config;
mod control;
mod double;
mod ends;
pub mod flux2;
pub mod flux3;
mod ip;
mod latents;
mod modulation;
mod ports;
pub mod redux;
mod shared;
mod single;
mod stack;

use std::path::Path;

use self::control::Running;
use self::ends::{Embed, FinalLayer};
use self::ip::Declared as DeclaredIp;
use self::modulation::ModulationOut;
use self::ports::input;
use self::shared::{Add, Residual, Rotary, Shared, Sizes};
use self::stack::{Added, Stack};
use super::control_runs::ANY_RUNS;
use super::layers::{Linear, rotary_tables};
use crate::stage::{Cadence, Model, Port, Symbol};
use crate::weights::Role;
use crate::{Error, Result, reserve};

pub use config::Config;
pub use control::{Config as ControlConfig, ControlNet, Ports as ControlPorts};
pub use ip::{IP_PICTURES, IpAdapter, IpConfig, IpForm, IpPorts};
pub use latents::{pack_latents, pack_mask, unpack_latents};
pub use modulation::sinusoid;
pub use ports::{Ports, TIME_WIDTH};
pub use shared::{SEEN_BY, UNSEEN};

/// Base of the rotary frequencies.
const THETA: f64 = 10000.0;

/// The transformer: its stages and where to put things.
pub struct Flux {
    /// The stages.
    pub model: Model,
    /// Where to put things.
    pub ports: Ports,
    /// The same for each ControlNet.
    pub controls: Vec<ControlPorts>,
    config: Config,
    hidden: Hidden,
}

/// The ports between stages that a [cache](Flux::cached) is put between.
#[derive(Clone, Copy)]
struct Hidden {
    /// `[D, Ti, B]`
    img: Port,
    /// `[D, T, B]`
    joint: Port,
    /// `[6D, N]`: that of the image in the first double block.
    first_modulation: Option<Port>,
    /// What blocks read.
    shared: Shared,
}

/// What was declared beside the ports of the request.
struct Declared {
    controls: Vec<ControlPorts>,
    ip: Option<IpPorts>,
    hidden: Hidden,
}

impl Flux {
    /// The model that `config` describes.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a configuration that makes none.
    pub fn new(config: &Config) -> Result<Flux> {
        Flux::with(config, &[], None)
    }

    /// The same with `controls` beside it, and an IP-Adapter if `ip` describes one. The names of number `i` of the ControlNets begin
    /// with [`ControlNet::prefix`].
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a configuration that makes no network.
    pub fn with(config: &Config, controls: &[ControlConfig], ip: Option<&IpConfig>) -> Result<Flux> {
        config.validate(Path::new("transformer"))?;
        let mut model = Model::new();
        let takes_guidance = config.guidance_embeds || controls.iter().any(|control| control.net.guidance_embeds);
        let mut ports = Ports::declare(&mut model, config, takes_guidance);
        let Declared { controls, ip, hidden } = declare_stages(&mut model, config, &ports, (controls, ip))?;
        ports.ip = ip;
        Ok(Flux { model, ports, controls, config: config.clone(), hidden })
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

fn declare_stages(
    model: &mut Model,
    config: &Config,
    ports: &Ports,
    (controls, ip): (&[ControlConfig], Option<&IpConfig>),
) -> Result<Declared> {
    let hidden = config.hidden();
    let rotary = Rotary { cos: ports.cos, sin: ports.sin };
    let shared = Shared { rotary, condition: ports.condition, sizes: Sizes::OWN };
    let stack = Stack::declare(model, config, &ports.inputs(config), shared)?;
    let last = input(model, "modulation.final", &[(2 * hidden).into(), Symbol::CONDITIONS.into()]);
    model.stage("modulation.final", Cadence::Request, |s| {
        let mut s = s.sub("final_layer.adaLN_modulation.1");
        let lin = Linear::declare(&mut s, hidden, 2 * hidden, Role::SensitiveMatMul)?;
        Ok(ModulationOut { vector: stack.vector, projections: vec![(lin, last)] })
    })?;
    model.stage("context", Cadence::Request, |s| {
        let linear = Linear::declare(&mut s.sub("txt_in"), config.joint_attention_dim, hidden, Role::SensitiveMatMul)?;
        Ok(Embed { linear, from: ports.text, to: stack.context })
    })?;
    let ip = ip.map(|ip| DeclaredIp::declare(model, ip)).transpose()?;
    let mut running = Vec::with_capacity(controls.len());
    for (i, control) in controls.iter().enumerate() {
        running.push(Running::declare(model, Some(i), control, ports)?);
    }

    let carried = stack.carried(model);
    model.stage("embed", Cadence::Step, |s| {
        let linear = Linear::declare(&mut s.sub("img_in"), config.in_channels, hidden, Role::SensitiveMatMul)?;
        Ok(Embed { linear, from: ports.latents, to: carried.img })
    })?;
    for i in 0..config.num_layers {
        let mut added = Added { ip: ip.as_ref().and_then(|ip| ip.double(i)), residuals: Vec::new() };
        if i == 0 {
            // A step cache looks at what the first block does by itself.
            stack.double(model, i, carried, std::mem::take(&mut added))?;
        }
        for control in &mut running {
            added.residuals.extend(control.for_double(model, i, config.num_layers)?);
        }
        match i {
            0 => add(model, (carried.img, None), added.residuals)?,
            _ => stack.double(model, i, carried, added)?,
        }
    }
    let joint = stack.join(model, carried)?;
    for i in 0..config.num_single_layers {
        let mut added = Added { ip: ip.as_ref().and_then(|ip| ip.single(i)), residuals: Vec::new() };
        let is_first = i == 0 && config.num_layers == 0;
        if is_first {
            stack.single(model, i, joint, std::mem::take(&mut added))?;
        }
        for control in &mut running {
            added.residuals.extend(control.for_single(model, i, config.num_single_layers)?);
        }
        match is_first {
            true => add(model, (joint, Some(Symbol::TEXT_TOKENS)), added.residuals)?,
            false => stack.single(model, i, joint, added)?,
        }
    }
    model.stage("final", Cadence::Step, |s| {
        let mut s = s.sub("final_layer.linear");
        let linear = Linear::declare(&mut s, hidden, config.out_channels(), Role::SensitiveMatMul)?;
        Ok(FinalLayer { linear, joint, modulation: last, shared, velocity: ports.velocity })
    })?;
    let controls = running.into_iter().map(|control| control.finish(model)).collect::<Result<_>>()?;
    let hidden = Hidden { img: carried.img, joint, shared, first_modulation: stack.first_modulation() };
    Ok(Declared { controls, ip: ip.map(|ip| ip.ports), hidden })
}

/// Declares that ControlNets add `residuals` to the image behind the first block, which is in a port and behind some tokens there.
fn add(model: &mut Model, (port, behind): (Port, Option<Symbol>), residuals: Vec<Residual>) -> Result<()> {
    if residuals.is_empty() {
        return Ok(());
    }
    model.stage("control.add", Cadence::Step, |_| Ok(Add { port, behind, residuals }))?;
    model.last_runs_if(ANY_RUNS);
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

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
            let found = Config::from_shapes(|name| model.manifest().shape(name), Path::new("flux.gguf"));
            assert_eq!(found.unwrap(), config);
            // A block that is missing is counted, and missed where weights are bound.
            let without = |start: &'static str| {
                Config::from_shapes(
                    |name| model.manifest().shape(name).filter(|_| !name.starts_with(start)),
                    Path::new("flux.gguf"),
                )
            };
            assert_eq!(without("single_blocks.3.").unwrap(), config);
            let error = without("double_blocks.").unwrap_err().to_string();
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
