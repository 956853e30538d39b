//! The UNet of Stable Diffusion 1 and 2 and Stable Diffusion XL.
//!
//! Predicts the noise in latents (or their velocity: the scheduler knows which) from noised latents, a prompt and a time.
//! Follows `UNet2DConditionModel` of diffusers (`models/unets/unet_2d_condition.py`); the weights have the original names of
//! *High-Resolution Image Synthesis with Latent Diffusion Models* (Rombach et al., arXiv:2112.10752;
//! `ldm/modules/diffusionmodules/openaimodel.py`). Levels count from the latents' own size: the maps of level `l` are
//! `ceil(w / 2^l)` by `ceil(h / 2^l)`. What the layers give on the way down is kept and joined to the layers on the way up, last
//! kept, first used.
//!
//! What depends on the time (and, in XL, on the pooled prompt and the sizes) is the same for all pixels. It is computed for all
//! evaluations before the first.
//!
//! Legend: `w`, `h` extents of the latents, `C` channels of a level, `T` pixels of its map as tokens, `H` heads, `d = C/H`, `J`
//! width of the prompt's hidden states, `Tt` text tokens, `B` batch (images times guidance passes), `N` conditions (evaluations
//! times guidance passes), `E` width of the embedded time.
//!
//! | stage                             | when    | carried in                             | carried out                        |
//! |-----------------------------------|---------|----------------------------------------|------------------------------------|
//! | `embedding`                       | request | `time [t, N]`, `added [A, N]`, `guidance [G]` | `embedding [E, N]`          |
//! | `NAME.embedding`, of each resnet  | request | `embedding`                            | the same name, [C', N]             |
//! | `input_blocks.0.0`                | step    | `latents [w, h, c, B]`                 | a map [w, h, C, B], kept           |
//! | `input_blocks.N.0` (resnet)       | step    | the last map, its embedding            | a map of the level                 |
//! | `input_blocks.N.1.in`             | step    | the last map                           | `NAME.tokens` [C, T, B]            |
//! | `input_blocks.N.1.0..`            | step    | the tokens, `context [J, Tt, B]`       | the tokens                         |
//! | `input_blocks.N.1.out`            | step    | the tokens, the map                    | a map, kept                        |
//! | `input_blocks.N.0` (downsampling) | step    | the last map                           | a map of the next level, kept      |
//! | `middle_block.0..2`               | step    | as above                               | a map of the last level            |
//! | `output_blocks.N.0`               | step    | the last map, one that was kept        | a map of the level                 |
//! | `output_blocks.N.1..2`            | step    | as above; upsampling at the end        | a map, in the end twice as large   |
//! | `out`                             | step    | the last map                           | `prediction [w, h, c', B]`         |
//!
//! Maps and tokens that one stage writes are ports with its name. In ggml order, as all shapes here.

pub mod adapter;
mod config;
pub mod control;
mod embedding;
mod fit;
mod ip;
mod layout;
mod maps;
mod path;
mod ports;
mod resnet;
mod transformer;

use std::path::Path as FilePath;

use self::adapter::{Config as AdapterConfig, Declared as DeclaredAdapter, Feature};
use self::control::{Config as ControlConfig, ControlNet, Declared as DeclaredControl, Ports as ControlPorts};
use self::fit::adapted;
use self::ip::Declared as DeclaredIp;
use self::layout::{Layer, layers};
use self::maps::{TOKENS, map_of};
use self::path::{Path, declare_embeddings};
use self::resnet::{Convolve, Out};
use super::control_runs::{pictures_of, runs_of};
use super::layers::Conv2d;
use crate::Result;
use crate::stage::{Cadence, Dims, Extent, Model, Port, Symbol};

pub use config::{Config, Depths, MOST_LEVELS, PerLevel, SIZES, SIZES_OF_REFINER};
pub use fit::{fit_adapter, fit_control};
pub use ip::{IP_PICTURES, IpAdapter, IpConfig, IpForm, IpPorts, Projector, ip_attentions};
pub use ports::Ports;

/// The sizes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Columns of the latents.
    pub width: usize,
    /// Rows of the latents.
    pub height: usize,
    /// Images times guidance passes.
    pub batch: usize,
    /// Tokens of the prompt.
    pub text_tokens: usize,
    /// Evaluations times guidance passes.
    pub conditions: usize,
    /// How many items of the batch ControlNets see.
    pub controlled: usize,
}

/// What runs beside a UNet and follows a picture.
#[derive(Clone, Debug, PartialEq)]
pub enum SideConfig {
    /// A ControlNet.
    Net(Box<ControlConfig>),
    /// A T2I-Adapter.
    Adapter(AdapterConfig),
}

/// The same in a model that has declared what it computes once a request, and not yet what it computes in a step.
enum DeclaredSide {
    Net(Box<DeclaredControl>),
    Adapter(DeclaredAdapter),
}

impl DeclaredSide {
    fn declare(model: &mut Model, i: usize, config: &SideConfig, ports: &Ports) -> Result<DeclaredSide> {
        let name = (ControlNet::prefix(i), runs_of(i));
        Ok(match config {
            SideConfig::Net(config) => {
                let pictures = pictures_of(i).map_or(1.into(), Extent::from);
                DeclaredSide::Net(Box::new(DeclaredControl::declare(model, name, (config, pictures), ports)?))
            }
            SideConfig::Adapter(config) => DeclaredSide::Adapter(DeclaredAdapter::declare(model, name, config)?),
        })
    }

    fn ports(&self) -> ControlPorts {
        match self {
            DeclaredSide::Net(net) => net.ports,
            DeclaredSide::Adapter(DeclaredAdapter { picture, scale, .. }) => {
                ControlPorts { picture: *picture, scale: *scale, residuals: 1, kinds: None }
            }
        }
    }
}

/// The UNet: its stages and where to put things.
pub struct Unet {
    /// The stages.
    pub model: Model,
    /// Where to put things.
    pub ports: Ports,
    /// The same for each ControlNet.
    pub controls: Vec<ControlPorts>,
    config: Config,
}

impl Unet {
    /// The model that `config` describes.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for a configuration that makes none.
    pub fn new(config: &Config) -> Result<Unet> {
        Unet::with(config, &[], None)
    }

    /// The same with ControlNets and T2I-Adapters, `sides`, beside it, and an IP-Adapter if `ip` describes one. The names of number `i` of
    /// the former begin with [`ControlNet::prefix`], and its stages of steps run if [`runs_of`] it is not 0.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for a configuration that makes no network.
    pub fn with(config: &Config, sides: &[SideConfig], ip: Option<&IpConfig>) -> Result<Unet> {
        config.validate(FilePath::new("unet"))?;
        let mut model = Model::new();
        let mut ports = Ports::declare(&mut model, config)?;
        let layers = layers(config);
        let added = declare_embeddings(&mut model, config, &ports, (&layers, None))?;
        let ip = ip.map(|ip| DeclaredIp::within(&mut model, ip, config)).transpose()?;
        ports.ip = ip.as_ref().map(|ip| ip.ports);
        let mut beside = Vec::with_capacity(sides.len());
        for (i, side) in sides.iter().enumerate() {
            beside.push(DeclaredSide::declare(&mut model, i, side, &ports)?);
        }
        let controls = beside.iter().map(DeclaredSide::ports).collect();
        declare_layers(&mut model, config, &ports, (&layers, added), (beside, ip.as_ref()))?;
        Ok(Unet { model, ports, controls, config: config.clone() })
    }

    /// The hyperparameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The values of all symbols of the model in a request of this size.
    pub fn dims(&self, size: Size) -> Dims {
        let Size { width, height, batch, text_tokens, conditions, controlled } = size;
        let dims = Dims::new()
            .with(Symbol::LATENT_WIDTH, width)
            .with(Symbol::LATENT_HEIGHT, height)
            .with(Symbol::BATCH, batch)
            .with(Symbol::TEXT_TOKENS, text_tokens)
            .with(Symbol::CONDITIONS, conditions)
            .with(Symbol::CONTROLLED, controlled);
        TOKENS.iter().take(self.config.levels()).enumerate().fold(dims, |dims, (level, &symbol)| {
            let [columns, rows] = [width, height].map(|side| side.div_ceil(1 << level));
            dims.with(symbol, columns.saturating_mul(rows))
        })
    }
}

/// The stages of a step. `added` are the ports of what residual blocks add; `controls` add to what the way up is joined to.
fn declare_layers(
    model: &mut Model,
    config: &Config,
    ports: &Ports,
    (layers, added): (&[Layer], Vec<Port>),
    (mut sides, ip): (Vec<DeclaredSide>, Option<&DeclaredIp>),
) -> Result<()> {
    let (channels, items) = (config.time_width(), Symbol::BATCH);
    let from = map_of(model, "input_blocks.0.0", (0, channels), items)?;
    model.stage("input_blocks.0.0", Cadence::Step, |s| {
        let conv = Conv2d::declare(&mut s.sub("input_blocks.0.0"), config.in_channels, channels, 3)?;
        Ok(Convolve { conv, from: ports.latents, to: from })
    })?;
    let mut path = Path { config, ports, items, from, kept: vec![from], added: added.into_iter(), ip };
    let up = layers.iter().position(Layer::is_up).unwrap_or(layers.len());
    let targets = adapted(config, &layers[..up]);
    for (i, layer) in layers[..up].iter().enumerate() {
        path.layer(model, layer)?;
        if targets.contains(&i) {
            add_features(model, &mut sides, layer, path.from)?;
        }
    }
    if let Some(middle) = layers[..up].last().filter(|_| config.mid_block_type.is_some()) {
        add_features(model, &mut sides, middle, path.from)?;
    }
    let maps: Vec<Port> = path.kept.iter().copied().chain([path.from]).collect();
    for side in sides {
        if let DeclaredSide::Net(control) = side {
            control.run(model, ports, &maps)?;
        }
    }
    for layer in &layers[up..] {
        path.layer(model, layer)?;
    }
    model.stage("out", Cadence::Step, |s| Out::declare(s, config, (path.from, ports.prediction)))
}

/// Declares the stages that add the next feature of each T2I-Adapter to `to`, the map that `layer` gave.
fn add_features(model: &mut Model, sides: &mut [DeclaredSide], layer: &Layer, to: Port) -> Result<()> {
    for side in sides {
        if let DeclaredSide::Adapter(adapter) = side {
            adapter.add(model, Feature { level: layer.level, channels: layer.channels() }, to)?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn published_sizes() {
        let parameters = |config: Config| Unet::new(&config).unwrap().model.manifest().parameters();
        assert_eq!(parameters(Config::sd1()), 859_520_964);
        assert_eq!(parameters(Config::sd2()), 865_910_724);
        assert_eq!(parameters(Config::sdxl()), 2_567_463_684);
    }

    #[test]
    fn levels_are_halved_and_rounded_up() {
        let net = Unet::new(&Config::sd1()).unwrap();
        let size = Size { width: 13, height: 10, batch: 2, text_tokens: 77, conditions: 40, controlled: 2 };
        let dims = net.dims(size);
        let shape = |name: &str| {
            let spec = net.model.ports().iter().find(|spec| spec.name == name).unwrap();
            spec.shape(&dims).unwrap()
        };
        assert_eq!(shape("latents"), [13, 10, 4, 2]);
        assert_eq!(shape("input_blocks.3.0"), [7, 5, 320, 2]);
        assert_eq!(shape("input_blocks.8.1"), [4, 3, 1280, 2]);
        assert_eq!(shape("input_blocks.8.1.tokens"), [1280, 12, 2]);
        assert_eq!(shape("middle_block.2"), [2, 2, 1280, 2]);
        assert_eq!(shape("output_blocks.8.2"), [13, 10, 640, 2]);
        assert_eq!(shape("output_blocks.0.0.embedding"), [1280, 40]);
    }

    #[test]
    fn stages_of_a_request_come_first() {
        let model = Unet::new(&Config::sdxl()).unwrap().model;
        let (request, step) = (model.at(Cadence::Request), model.at(Cadence::Step));
        assert_eq!((request.start, request.end, step.end), (0, step.start, model.stages().len()));
    }
}
