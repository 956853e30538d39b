//! ControlNets of Z-Image, which run beside the model: the Fun Union ControlNets (alibaba-pai; reference: diffusers'
//! `ZImageControlNetModel`).
//!
//! A ControlNet sees a picture as latents, and lends the model's tokens of the latents and of the prompt. What its layers make of them is
//! added behind some of the model's layers, right there. It runs in every guidance pass.
//!
//! Before the prompt comes in, the picture is refined, in one of three ways ([`Refines`]). Layers that refine add something to a copy of
//! what the model's refiners make, which only the ControlNet goes on with: the model's own tokens stay as they are, as the reference has
//! it. A refiner whose input differs between the two therefore runs for both.
//!
//! `C'` numbers of a token of what is seen; otherwise as for the model.
//!
//! | stage                  | when | carried in                                          | carried out             |
//! |------------------------|------|-----------------------------------------------------|-------------------------|
//! | `embed`                | step | `picture` [C', Ti, 1], the model's `img`            | `seen` [D, Ti, B]       |
//! | `refiner.0..`          | step | `seen`, `vector`                                    | `seen`                  |
//! | `refiner.residual.0..` | step | `seen`, `scale` [1, N], the model's `img` or `copy` | `copy` [D, Ti, B]       |
//! | `join`                 | step | `seen`, `context`, `copy`                           | `joint` [D, T, B]       |
//! | `layers.0..`           | step | `joint`, `vector`                                   | `joint`                 |
//! | `residual.0..`         | step | `joint`, `scale`                                    | the model's `joint`     |

mod config;
mod stages;

use self::stages::{Embed, Join, Residual};
use super::block::{Block, Stream};
use super::config::Config as Network;
use super::declare::{Carried, carried, declare_ports, input};
use super::ports::Ports as ModelPorts;
use crate::Result;
use crate::models::control_runs::runs_of;
use crate::models::layers::Linear;
use crate::stage::{Cadence, Model, Port, Symbol};
use crate::weights::Role;

pub use config::{Config, REFINERS_FIRST, Refines};

/// Where a request is put for a ControlNet.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// `[C', Ti, 1]`: the packed latents of the picture, of a mask, and of what that leaves.
    pub picture: Port,
    /// `[1, conditions]`: what is added is multiplied with it.
    pub scale: Port,
}

/// A ControlNet by itself: its weights, as its file has them.
pub struct ControlNet {
    /// The stages.
    pub model: Model,
    config: Config,
}

impl ControlNet {
    /// What stands before its names within a model.
    pub const PREFIX: &str = "control.0.";

    /// The same of its layers where they refine: they are there twice.
    pub const REFINING: &str = "control.0.refining.";

    /// The network that `config` describes.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for a configuration that makes none.
    pub fn new(config: &Config) -> Result<ControlNet> {
        config.validate("controlnet".as_ref())?;
        let (mut model, net) = (Model::new(), config.blocks());
        let ports = declare_ports(&mut model, &net);
        let of_model = (ports, Carried::declare(&mut model, &net));
        let mut running = Running { is_alone: true, ..Running::declare(&mut model, config, of_model)? };
        running.embed(&mut model)?;
        for place in 0..=config.refined().last().copied().unwrap_or(0) {
            running.before_refiner(&mut model, place)?;
            running.behind_refiner(&mut model, place)?;
        }
        running.join(&mut model)?;
        for place in &config.control_layers_places {
            running.behind_layer(&mut model, *place)?;
        }
        Ok(ControlNet { model, config: config.clone() })
    }

    /// The hyperparameters.
    pub fn config(&self) -> &Config {
        &self.config
    }
}

/// A ControlNet whose stages are being declared within a model, each before what needs it.
pub(super) struct Running<'c> {
    config: &'c Config,
    net: Network,
    /// Whether it is declared by itself.
    is_alone: bool,
    ports: Ports,
    of_model: ModelPorts,
    carried: Carried,
    /// `[D, Ti, B]`
    seen: Port,
    copy: Port,
    /// `[D, T, B]`
    joint: Port,
    /// How many layers have refined what is seen, and how many of them have added something.
    refined: usize,
    added: usize,
    /// How many layers have added something to the model's.
    done: usize,
}

impl<'c> Running<'c> {
    /// Declares what a request is put in, beside a model with these ports.
    pub(super) fn declare(
        model: &mut Model,
        config: &'c Config,
        (of_model, carried_on): (ModelPorts, Carried),
    ) -> Result<Running<'c>> {
        let net = config.blocks();
        let (width, hidden) = (config.token_width(), net.dim);
        model.within_passes((ControlNet::PREFIX, None), |model| {
            let ports = Ports {
                picture: input(model, "picture", &[width.into(), Symbol::IMAGE_TOKENS.into(), 1.into()]),
                scale: input(model, "scale", &[1.into(), Symbol::CONDITIONS.into()]),
            };
            let [seen, copy] = ["seen", "copy"].map(|name| carried(model, name, hidden, Symbol::IMAGE_TOKENS));
            let joint = carried(model, "joint", hidden, Symbol::JOINT_TOKENS);
            Ok(Running {
                config,
                net,
                is_alone: false,
                ports,
                of_model,
                carried: carried_on,
                seen,
                copy,
                joint,
                refined: 0,
                added: 0,
                done: 0,
            })
        })
    }

    pub(super) fn ports(&self) -> Ports {
        self.ports
    }

    /// Whether the layers that follow the prompt refine as well.
    fn reuses(&self) -> bool {
        self.config.add_control_noise_refiner == Some(Refines::ControlLayers)
    }

    /// Declares what `declare` does within it. What is `refining` may be there twice.
    fn within<R>(&self, model: &mut Model, refining: bool, declare: impl FnOnce(&mut Model) -> Result<R>) -> Result<R> {
        let prefix = match (self.is_alone, refining && self.reuses()) {
            (true, _) => "",
            (false, true) => ControlNet::REFINING,
            (false, false) => ControlNet::PREFIX,
        };
        model.within_passes((prefix, runs_of(0)), declare)
    }

    /// Declares what comes before the model's refiner at `place`.
    pub(super) fn before_refiner(&mut self, model: &mut Model, place: usize) -> Result<()> {
        match self.config.refined().get(self.added) == Some(&place) {
            true => self.refine(model),
            false => Ok(()),
        }
    }

    /// The stream of tokens that the model's next refiner runs for as well, and the steps in which it does.
    pub(super) fn copied(&self) -> Option<(Stream, Symbol)> {
        Some((Stream::image(self.copy), runs_of(0)?)).filter(|_| self.added > 0)
    }

    /// Declares what is added behind the model's refiner at `place`.
    pub(super) fn behind_refiner(&mut self, model: &mut Model, place: usize) -> Result<()> {
        if self.config.refined().get(self.added) != Some(&place) {
            return Ok(());
        }
        let (number, name) = (self.added, format!("refiner.residual.{}", self.added));
        let onto = if number == 0 { self.carried.img } else { self.copy };
        self.added += 1;
        if self.is_alone && self.reuses() {
            return Ok(());
        }
        let layer = self.refiner(number);
        self.within(model, true, |model| self.residual(model, (&name, &layer), (self.seen, (onto, self.copy))))
    }

    /// Declares what begins the sequence of what is seen and the prompt.
    pub(super) fn join(&mut self, model: &mut Model) -> Result<()> {
        while self.refined < self.config.refiners() {
            self.refine(model)?;
        }
        let img = if self.added > 0 { self.copy } else { self.carried.img };
        let (hidden, seen, context, to) = (self.net.dim, self.seen, self.carried.context, self.joint);
        self.within(model, false, |model| {
            model.stage("join", Cadence::Step, |s| {
                let mut s = s.sub("control_layers.0.before_proj");
                let before = Linear::declare(&mut s, hidden, hidden, Role::SensitiveMatMul)?;
                Ok(Join { before, seen, img, context, to })
            })
        })
    }

    /// Declares what is added behind the model's layer at `place`.
    pub(super) fn behind_layer(&mut self, model: &mut Model, place: usize) -> Result<()> {
        let number = self.done;
        if self.config.control_layers_places.get(number) != Some(&place) {
            return Ok(());
        }
        self.done += 1;
        let (name, layer) = (format!("layers.{number}"), format!("control_layers.{number}"));
        self.within(model, false, |model| {
            model.stage(name, Cadence::Step, |s| self.block(s, &layer, Stream::joint(self.joint)))?;
            let (name, onto) = (format!("residual.{number}"), self.carried.joint);
            self.residual(model, (&name, &layer), (self.joint, (onto, onto)))
        })
    }

    /// What the weights of refining layer `number` are called.
    fn refiner(&self, number: usize) -> String {
        let list = if self.reuses() { "control_layers" } else { "control_noise_refiner" };
        format!("{list}.{number}")
    }

    /// Declares the next layer that refines.
    fn refine(&mut self, model: &mut Model) -> Result<()> {
        let number = self.refined;
        self.refined += 1;
        if self.is_alone && self.reuses() {
            return Ok(());
        }
        let (name, layer) = (format!("refiner.{number}"), self.refiner(number));
        self.within(model, true, |model| {
            model.stage(name, Cadence::Step, |s| self.block(s, &layer, Stream::image(self.seen)))
        })
    }

    fn block(&self, s: &mut crate::weights::Scope<'_>, layer: &str, stream: Stream) -> Result<Block> {
        Block::declare(&mut s.sub(layer), &self.net, stream, &self.of_model, Some(self.carried.vector))
    }

    /// Declares the first stage of a step.
    pub(super) fn embed(&self, model: &mut Model) -> Result<()> {
        let (hidden, width) = (self.net.dim, self.config.token_width());
        let meets = self.config.add_control_noise_refiner.is_some() && !(self.is_alone && self.reuses());
        let layer = self.refiner(0);
        self.within(model, true, |model| {
            model.stage("embed", Cadence::Step, |s| {
                let linear =
                    Linear::declare(&mut s.sub("control_all_x_embedder.2-1"), width, hidden, Role::SensitiveMatMul)?;
                let mut s = s.sub(layer);
                let mut s = s.sub("before_proj");
                let before = meets.then(|| Linear::declare(&mut s, hidden, hidden, Role::SensitiveMatMul));
                Ok(Embed {
                    linear,
                    before: before.transpose()?,
                    picture: self.ports.picture,
                    of_model: self.of_model,
                    img: self.carried.img,
                    to: self.seen,
                })
            })
        })
    }

    /// Declares the stage `name`, which adds what the layer `layer` made.
    fn residual(
        &self,
        model: &mut Model,
        (name, layer): (&str, &str),
        (from, onto): (Port, (Port, Port)),
    ) -> Result<()> {
        let hidden = self.net.dim;
        let (scale, condition) = (self.ports.scale, self.of_model.condition);
        model.stage(name, Cadence::Step, |s| {
            let mut s = s.sub(layer);
            let linear = Linear::declare(&mut s.sub("after_proj"), hidden, hidden, Role::SensitiveMatMul)?;
            Ok(Residual { linear, from, onto, scale, condition })
        })
    }
}
