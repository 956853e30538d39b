//! ControlNets of Stable Diffusion, which run beside the UNet: lllyasviel's (Zhang et al., arXiv:2302.05543; the original names of
//! `cldm/cldm.py`) and diffusers' (`ControlNetModel`).
//!
//! A ControlNet is the UNet's way down and middle once more. It sees a picture beside the latents, and each of its maps that the UNet's
//! way up would be joined to becomes a **residual**: a convolution of one pixel, added to the map that the UNet has kept there, in its
//! place. So it runs between the UNet's middle and its way up, no residual waits for its turn, and a step that it has no part in leaves
//! all of it out.
//!
//! One that tells kinds of pictures apart (diffusers' `ControlNetUnionModel`) adds to the hint, at every pixel, what it makes of the hint's
//! mean and of the kind, and to the time the kind. It may follow several pictures at once: their hints are added up.
//!
//! `P` pictures, 1 except for such a one. `N` items of the batch, the first ones, otherwise as for the UNet. `R` residuals: those of the
//! way down, and that of the middle.
//!
//! | stage                         | when    | carried in                              | carried out                    |
//! |-------------------------------|---------|-----------------------------------------|--------------------------------|
//! | `hint.0..`                    | request | `picture [W, H, 3, P]`                  | `hint.*`, in the end [w, h, C, P] |
//! | `union`                       | request | the last `hint`, `kind [C, P]`, `shares [P]` | a hint [w, h, C, 1]       |
//! | `embedding`, `NAME.embedding` | request | as the UNet's                           |                                |
//! | `embed`                       | step    | `latents [w, h, c, B]`, the hint        | a map [w, h, C, N]             |
//! | `input_blocks.*`, `middle_block.*` | step | as the UNet's                         | maps                           |
//! | `residual.0..`                | step    | a map, `scale [R]`, one of the UNet     | that of the UNet               |

mod config;
mod stages;
mod union;

use pinhole_quant::DType;

use self::stages::{Embed, Hint, Residual};
use self::union::{Seen, declare_kinds};
use super::layout::{Layer, layers};
use super::maps::map_of;
use super::path::{Path, declare_embeddings};
use super::ports::Ports as UnetPorts;
use crate::models::layers::Conv2d;
use crate::stage::{Cadence, Extent, Lifetime, Model, Port, Symbol};
use crate::{Error, Result};

pub use config::{Colours, Config, Union};
pub use union::Kinds;

/// Where a request is put for a ControlNet.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// `[W, H, 3, P]`: the pictures' pixels, from 0 to 1.
    pub picture: Port,
    /// `[R]`: what its residuals are multiplied with.
    pub scale: Port,
    /// `R`.
    pub residuals: usize,
    /// Where it is told the kinds of its pictures, if it tells kinds apart.
    pub kinds: Option<Kinds>,
}

/// A ControlNet by itself: its weights, as its file has them.
pub struct ControlNet {
    /// The stages.
    pub model: Model,
    config: Config,
}

impl ControlNet {
    /// The network that `config` describes.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a configuration that makes none.
    pub fn new(config: &Config) -> Result<ControlNet> {
        config.validate("controlnet".as_ref())?;
        let mut model = Model::new();
        let ports = UnetPorts::declare(&mut model, &config.net)?;
        let declared = Declared::declare(&mut model, (String::new(), None), (config, 1.into()), &ports)?;
        let mut maps = Vec::new();
        for (level, channels) in declared.residuals() {
            maps.push(map_of(&mut model, "map", (level, channels), Symbol::BATCH)?);
        }
        declared.run(&mut model, &ports, &maps)?;
        Ok(ControlNet { model, config: config.clone() })
    }

    /// The hyperparameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What stands before the names of ControlNet number `i` of a model.
    pub fn prefix(i: usize) -> String {
        format!("control.{i}.")
    }
}

/// A ControlNet in a model that has declared what it computes once a request, and not yet what it computes in a step.
pub(super) struct Declared {
    /// What stands before its names, and in which steps it runs.
    name: (String, Option<Symbol>),
    config: Config,
    layers: Vec<Layer>,
    pub(super) ports: Ports,
    /// `[w, h, C, 1]`
    hint: Port,
    /// What residual blocks add.
    added: Vec<Port>,
}

impl Declared {
    /// Declares what the network `name` computes once a request. It follows so many `pictures`: more than one only if it tells kinds of
    /// pictures apart.
    pub(super) fn declare(
        model: &mut Model,
        name: (String, Option<Symbol>),
        (config, pictures): (&Config, Extent),
        of_unet: &UnetPorts,
    ) -> Result<Declared> {
        let mut layers = layers(&config.net);
        layers.retain(|layer| !layer.is_up());
        let (ports, hint, added) = model.within_passes((&name.0, name.1), |model| {
            let residuals = 2 + layers.iter().filter(|layer| layer.kept).count();
            let sides = [Symbol::LATENT_WIDTH, Symbol::LATENT_HEIGHT].map(|side| side * config.pixels());
            let pictures = if config.union.is_some() { pictures } else { 1.into() };
            let picture = [sides[0], sides[1], config.conditioning_channels.into(), pictures];
            let ports = Ports {
                picture: model.port("picture", &picture, DType::F32, Lifetime::Pass),
                scale: model.port("scale", &[residuals.into()], DType::F32, Lifetime::Request),
                residuals,
                kinds: config.union.map(|union| declare_kinds(model, config, union, pictures)).transpose()?,
            };
            let mut hint = declare_hint(model, config, (ports.picture, pictures))?;
            if let (Some(union), Some(kinds)) = (config.union, ports.kinds) {
                let from = hint;
                let seen = [Symbol::LATENT_WIDTH.into(), Symbol::LATENT_HEIGHT.into(), kinds.channels.into(), 1.into()];
                hint = model.port("seen", &seen, DType::F32, Lifetime::Request);
                model.stage("union", Cadence::Request, |s| Seen::declare(s, union, &kinds, (from, hint)))?;
            }
            let told = ports.kinds.map(|kinds| (kinds.width, kinds.told));
            Ok((ports, hint, declare_embeddings(model, &config.net, of_unet, (&layers, told))?))
        })?;
        Ok(Declared { name, config: config.clone(), layers, ports, hint, added })
    }

    /// The level and the channels of each map that a residual is added to.
    pub(super) fn residuals(&self) -> Vec<(usize, usize)> {
        let net = &self.config.net;
        let mut all = vec![(0, net.time_width())];
        for layer in self.layers.iter().filter(|layer| layer.kept) {
            all.push((layer.level, layer.channels()));
        }
        let last = net.levels() - 1;
        all.push((last, net.block_out_channels.get(last).copied().unwrap_or(0)));
        all
    }

    /// Declares what is computed in a step. Its residuals are added to `maps`.
    pub(super) fn run(self, model: &mut Model, of_unet: &UnetPorts, maps: &[Port]) -> Result<()> {
        let Declared { name: (prefix, runs_if), config, layers, ports, hint, added } = self;
        let items = Symbol::CONTROLLED;
        model.within_passes((&prefix, runs_if), |model| {
            let channels = config.net.time_width();
            let from = map_of(model, "embed", (0, channels), items)?;
            model.stage("embed", Cadence::Step, |s| {
                let taken = config.net.in_channels;
                let conv = Conv2d::declare(&mut s.sub("input_blocks.0.0"), taken, channels, 3)?;
                Ok(Embed { conv, channels: taken, latents: of_unet.latents, hint, to: from })
            })?;
            let mut path = Path {
                config: &config.net,
                ports: of_unet,
                items,
                from,
                kept: Vec::new(),
                added: added.into_iter(),
                ip: None,
            };
            let mut residuals = Residuals { config: &config, scale: ports.scale, maps, done: 0 };
            residuals.add(model, from, channels)?;
            for layer in &layers {
                path.layer(model, layer)?;
                if layer.kept {
                    residuals.add(model, path.from, layer.channels())?;
                }
            }
            let last = config.net.block_out_channels.last().copied().unwrap_or(0);
            residuals.add(model, path.from, last)
        })
    }
}

/// Residuals as they are declared, one after the other.
struct Residuals<'a> {
    config: &'a Config,
    scale: Port,
    /// Of the UNet.
    maps: &'a [Port],
    done: usize,
}

impl Residuals<'_> {
    /// Declares the next, which is made of `from`.
    fn add(&mut self, model: &mut Model, from: Port, channels: usize) -> Result<()> {
        let at = self.done;
        self.done += 1;
        let to = self.maps.get(at).copied().ok_or_else(|| Error::graph("declare", "a residual for no map"))?;
        let name =
            if self.done == self.maps.len() { "middle_block_out.0".into() } else { format!("zero_convs.{at}.0") };
        model.stage(format!("residual.{at}"), Cadence::Step, |s| {
            let conv = Conv2d::declare(&mut s.sub(&name), channels, channels, 1)?;
            Ok(Residual { conv, from, to, scale: (self.scale, at), pooled: self.config.global_pool_conditions })
        })
    }
}

/// Declares what becomes of the pixels of so many pictures, and gives its port.
fn declare_hint(model: &mut Model, config: &Config, (picture, pictures): (Port, Extent)) -> Result<Port> {
    let widths = &config.conditioning_embedding_out_channels;
    // Each width is there twice, and the second of them halves the picture.
    let mut steps = vec![(config.conditioning_channels, widths[0], 1)];
    for pair in widths.windows(2) {
        steps.extend([(pair[0], pair[0], 1), (pair[0], pair[1], 2)]);
    }
    steps.push((widths[widths.len() - 1], config.net.time_width(), 1));
    let (mut from, mut pixels) = (picture, config.pixels());
    for (i, (inputs, outputs, stride)) in steps.into_iter().enumerate() {
        pixels /= stride;
        let sides = [Symbol::LATENT_WIDTH, Symbol::LATENT_HEIGHT].map(|side| side * pixels);
        // What is seen in the end stays for all steps, unless something else is made of it.
        let is_last = i + 1 == 2 * widths.len() && config.union.is_none();
        let lifetime = if is_last { Lifetime::Request } else { Lifetime::Pass };
        let to = model.port(format!("hint.{i}"), &[sides[0], sides[1], outputs.into(), pictures], DType::F32, lifetime);
        model.stage(format!("hint.{i}"), Cadence::Request, |s| {
            let conv = Conv2d::declare(&mut s.sub("input_hint_block").sub(2 * i), inputs, outputs, 3)?.with(stride, 1);
            Ok(Hint { conv, activated: i > 0, from, to })
        })?;
        from = to;
    }
    Ok(from)
}
