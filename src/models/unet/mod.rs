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
//! | `embedding`                       | request | `time` [t, N], `added` [A, N]          | `embedding` [E, N]                 |
//! | `NAME.embedding`, of each resnet  | request | `embedding`                            | the same name, [C', N]             |
//! | `input_blocks.0.0`                | step    | `latents` [w, h, c, B]                 | a map [w, h, C, B], kept           |
//! | `input_blocks.N.0` (resnet)       | step    | the last map, its embedding            | a map of the level                 |
//! | `input_blocks.N.1.in`             | step    | the last map                           | `NAME.tokens` [C, T, B]            |
//! | `input_blocks.N.1.0..`            | step    | the tokens, `context` [J, Tt, B]       | the tokens                         |
//! | `input_blocks.N.1.out`            | step    | the tokens, the map                    | a map, kept                        |
//! | `input_blocks.N.0` (downsampling) | step    | the last map                           | a map of the next level, kept      |
//! | `middle_block.0..2`               | step    | as above                               | a map of the last level            |
//! | `output_blocks.N.0`               | step    | the last map, one that was kept        | a map of the level                 |
//! | `output_blocks.N.1..2`            | step    | as above; upsampling at the end        | a map, in the end twice as large   |
//! | `out`                             | step    | the last map                           | `prediction` [w, h, c', B]         |
//!
//! Maps and tokens that one stage writes are ports with its name. In ggml order, as all shapes here.

mod config;
mod embedding;
mod layout;
mod ports;
mod resnet;
mod transformer;

use std::path::Path;

use pinhole_quant::DType;

use self::embedding::{Embedding, Projection, embedding_width};
use self::layout::{Kind, Layer, layers};
use self::resnet::{Convolve, Out, Resnet, ResnetPlaces, Upsample};
use self::transformer::{ProjIn, ProjOut, TransformerBlock};
use super::layers::{Conv2d, Linear};
use crate::stage::{Cadence, Dims, Extent, Lifetime, Model, Port, Symbol};
use crate::weights::Role;
use crate::{Error, Result};

pub use config::{Config, Depths, MOST_LEVELS, PerLevel, SIZES, SIZES_OF_REFINER};
pub use ports::Ports;

/// How many tokens the map of each level is.
const TOKENS: [Symbol; MOST_LEVELS] = [
    Symbol::new("tokens of level 0"),
    Symbol::new("tokens of level 1"),
    Symbol::new("tokens of level 2"),
    Symbol::new("tokens of level 3"),
    Symbol::new("tokens of level 4"),
    Symbol::new("tokens of level 5"),
    Symbol::new("tokens of level 6"),
    Symbol::new("tokens of level 7"),
];

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
}

/// The UNet: its stages and where to put things.
pub struct Unet {
    /// The stages.
    pub model: Model,
    /// Where to put things.
    pub ports: Ports,
    config: Config,
}

impl Unet {
    /// The model that `config` describes.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a configuration that makes none.
    pub fn new(config: &Config) -> Result<Unet> {
        config.validate(Path::new("unet"))?;
        let mut model = Model::new();
        let conditions = |width: usize| [width.into(), Symbol::CONDITIONS.into()];
        let context = [config.cross_attention_dim.into(), Symbol::TEXT_TOKENS.into(), Symbol::BATCH.into()];
        let ports = Ports {
            time: input(&mut model, "time", &conditions(config.time_width())),
            added: config.added_width().map(|width| input(&mut model, "added", &conditions(width))),
            context: input(&mut model, "context", &context),
            condition: model.port("condition", &[Symbol::BATCH.into()], DType::I32, Lifetime::Pass),
            latents: map(&mut model, "latents", 0, config.in_channels)?,
            prediction: map(&mut model, "prediction", 0, config.out_channels)?,
        };
        let layers = layers(config);
        let added = declare_embeddings(&mut model, config, &ports, &layers)?;
        declare_layers(&mut model, config, &ports, &layers, added)?;
        Ok(Unet { model, ports, config: config.clone() })
    }

    /// The hyperparameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The values of all symbols of the model in a request of this size.
    pub fn dims(&self, size: Size) -> Dims {
        let Size { width, height, batch, text_tokens, conditions } = size;
        let dims = Dims::new()
            .with(Symbol::LATENT_WIDTH, width)
            .with(Symbol::LATENT_HEIGHT, height)
            .with(Symbol::BATCH, batch)
            .with(Symbol::TEXT_TOKENS, text_tokens)
            .with(Symbol::CONDITIONS, conditions);
        TOKENS.iter().take(self.config.levels()).enumerate().fold(dims, |dims, (level, &symbol)| {
            let [columns, rows] = [width, height].map(|side| side.div_ceil(1 << level));
            dims.with(symbol, columns.saturating_mul(rows))
        })
    }
}

fn input(model: &mut Model, name: &str, extents: &[Extent]) -> Port {
    model.port(name, extents, DType::F32, Lifetime::Request)
}

/// The number of a level, as extents count halvings.
fn halvings(level: usize) -> Result<u8> {
    u8::try_from(level).map_err(|_| Error::graph("declare", format!("{level} levels")))
}

/// A map of `channels` channels at `level`.
fn map(model: &mut Model, name: &str, level: usize, channels: usize) -> Result<Port> {
    let times = halvings(level)?;
    let (width, height) = (Symbol::LATENT_WIDTH.halved(times), Symbol::LATENT_HEIGHT.halved(times));
    Ok(model.port(name, &[width, height, channels.into(), Symbol::BATCH.into()], DType::F32, Lifetime::Pass))
}

/// The stages of a request. Gives the port of what each residual block adds, in the order of `layers`.
fn declare_embeddings(model: &mut Model, config: &Config, ports: &Ports, layers: &[Layer]) -> Result<Vec<Port>> {
    let width = embedding_width(config);
    let conditions = |width: usize| [width.into(), Symbol::CONDITIONS.into()];
    let embedding = input(model, "embedding", &conditions(width));
    model.stage("embedding", Cadence::Request, |s| Embedding::declare(s, config, ports, embedding))?;
    let mut added = Vec::new();
    for layer in layers {
        let Kind::Resnet { outputs, .. } = layer.kind else { continue };
        let name = format!("{}.embedding", layer.name);
        let to = input(model, &name, &conditions(outputs));
        model.stage(name, Cadence::Request, |s| {
            Projection::declare(&mut s.sub(&layer.name), (width, outputs), (embedding, to))
        })?;
        added.push(to);
    }
    Ok(added)
}

/// The stages of a step. `added` are the ports of what residual blocks add.
fn declare_layers(model: &mut Model, config: &Config, ports: &Ports, layers: &[Layer], added: Vec<Port>) -> Result<()> {
    let channels = config.time_width();
    let mut from = map(model, "input_blocks.0.0", 0, channels)?;
    model.stage("input_blocks.0.0", Cadence::Step, |s| {
        let conv = Conv2d::declare(&mut s.sub("input_blocks.0.0"), config.in_channels, channels, 3)?;
        Ok(Convolve { conv, from: ports.latents, to: from })
    })?;
    let (mut kept, mut added) = (vec![from], added.into_iter());
    for Layer { name, level, kind, kept: keep } in layers {
        from = match *kind {
            Kind::Resnet { inputs, outputs, joins } => {
                let to = map(model, name, *level, outputs)?;
                let joined = if joins { kept.pop() } else { None };
                let added = added.next().ok_or_else(|| Error::graph("declare", format!("{name} has no embedding")))?;
                let places = ResnetPlaces { from, joined, added, condition: ports.condition, to };
                model.stage(name, Cadence::Step, |s| {
                    Resnet::declare(&mut s.sub(name), config, (inputs, outputs), places)
                })?;
                to
            }
            Kind::Transformer { .. } => transformer(model, config, ports.context, (name, *level, *kind), from)?,
            Kind::Downsample { channels } => {
                let to = map(model, name, *level, channels)?;
                model.stage(name, Cadence::Step, |s| {
                    let conv = Conv2d::declare(&mut s.sub(name).sub("op"), channels, channels, 3)?.with(2, 1);
                    Ok(Convolve { conv, from, to })
                })?;
                to
            }
            Kind::Upsample { channels } => {
                let to = map(model, name, *level, channels)?;
                model.stage(name, Cadence::Step, |s| Upsample::declare(&mut s.sub(name), channels, (from, to)))?;
                to
            }
        };
        if *keep {
            kept.push(from);
        }
    }
    model.stage("out", Cadence::Step, |s| Out::declare(s, config, (from, ports.prediction)))
}

/// The stages of one transformer, over the map `from`. Gives the map that it leaves.
fn transformer(
    model: &mut Model,
    config: &Config,
    context: Port,
    (name, level, kind): (&str, usize, Kind),
    from: Port,
) -> Result<Port> {
    let Kind::Transformer { channels, heads, depth } = kind else { return Ok(from) };
    let to = map(model, name, level, channels)?;
    let count = TOKENS.get(level).ok_or_else(|| Error::graph("declare", format!("{level} levels")))?;
    let extents = [channels.into(), (*count).into(), Symbol::BATCH.into()];
    let tokens = model.port(format!("{name}.tokens"), &extents, DType::F32, Lifetime::Pass);
    model.stage(format!("{name}.in"), Cadence::Step, |s| {
        ProjIn::declare(&mut s.sub(name), config, channels, (from, tokens))
    })?;
    for block in 0..depth {
        model.stage(format!("{name}.{block}"), Cadence::Step, |s| {
            let mut s = s.sub(name);
            let mut s = s.sub("transformer_blocks");
            TransformerBlock::declare(&mut s.sub(block), config, (channels, heads), (tokens, context))
        })?;
    }
    model.stage(format!("{name}.out"), Cadence::Step, |s| {
        let proj_out = Linear::declare(&mut s.sub(name).sub("proj_out"), channels, channels, Role::MatMul)?;
        Ok(ProjOut { proj_out, tokens, from, to })
    })?;
    Ok(to)
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
        let size = Size { width: 13, height: 10, batch: 2, text_tokens: 77, conditions: 40 };
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
