//! ControlNets of Qwen-Image, which run beside the model: InstantX's (reference: diffusers' `QwenImageControlNetModel`, whose names all
//! files have).
//!
//! A ControlNet is a short Qwen-Image transformer that sees a picture beside the latents. What its blocks make of the image's tokens is
//! added, as **residuals**, behind the model's own: residual `i / ceil(n / k)` of `k` behind block `i` of `n`. A residual is made right
//! before the first block that needs it. It runs for the prompt alone, and its residuals count in the pass of the negative prompt, too.
//!
//! `N` pictures, `Tp` tokens of the prompt, `C'` numbers of a token of what is seen, with those of a mask; otherwise as for the model.
//!
//! | stage                  | when    | carried in                             | carried out                        |
//! |------------------------|---------|----------------------------------------|------------------------------------|
//! | `time`, `modulation.*` | request | as the model's                         |                                    |
//! | `context`              | request | `text` [J, Tt, B]                      | `context` [D, Tp, N]               |
//! | `embed`                | step    | `latents`, `picture` [C', Ti, N]       | `img` [D, Ti, N], `txt` [D, Tp, N] |
//! | `block.*`              | step    | as the model's                         |                                    |
//! | `residual.*`           | step    | `img`, `scale` [1, times]              | `residual.*` [D, Ti, N]            |

mod config;
mod stages;

use self::stages::{Context, Embed, ResidualOut};
use super::block::Residual;
use super::declare::{carried_for, declare_block, declare_modulation, declare_ports, input};
use super::ports::{Extents, Ports as ModelPorts, TIMES};
use crate::Result;
use crate::models::control_runs::runs_of;
use crate::models::layers::{Linear, RmsNorm};
use crate::stage::{Cadence, Model, Port, Symbol};
use crate::weights::Role;

pub use config::Config;

/// Where a request is put for a ControlNet.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// `[C', Ti, N]`: packed latents of the picture and, behind them, the mask.
    pub picture: Port,
    /// `[1, times]`: what its residuals are multiplied with.
    pub scale: Port,
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
    /// [`Error::Mismatch`](crate::Error::Mismatch) for a configuration that makes none.
    pub fn new(config: &Config) -> Result<ControlNet> {
        config.validate("controlnet".as_ref())?;
        let mut model = Model::new();
        let ports = declare_ports(&mut model, &config.net);
        Running::declare(&mut model, None, config, &ports)?.finish(&mut model)?;
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

/// A ControlNet whose stages are being declared within a model, each before what needs it.
pub(super) struct Running {
    prefix: String,
    /// Where it does not run, this is 0.
    runs_if: Option<Symbol>,
    config: Config,
    ports: Ports,
    of_model: ModelPorts,
    modulations: Vec<[Port; 2]>,
    context: Port,
    img: Port,
    txt: Port,
    /// The residuals that are declared.
    residuals: Vec<Port>,
}

impl Running {
    /// Declares what is computed once a request, of ControlNet number `number` of a model, or of one by itself.
    pub(super) fn declare(
        model: &mut Model,
        number: Option<usize>,
        config: &Config,
        of_model: &ModelPorts,
    ) -> Result<Running> {
        let (prefix, runs_if) = (number.map_or(String::new(), ControlNet::prefix), number.and_then(runs_of));
        let (net, Extents { items, text, .. }) = (&config.net, Extents::PROMPT);
        let hidden = net.hidden();
        model.within((&prefix.clone(), runs_if), |model| {
            let channels = config.picture_channels();
            let ports = Ports {
                picture: input(model, "picture", &[channels.into(), Symbol::IMAGE_TOKENS.into(), items.into()]),
                scale: input(model, "scale", &[1.into(), TIMES.into()]),
            };
            let (_, modulations) = declare_modulation(model, net, of_model.time)?;
            let context = input(model, "context", &[hidden.into(), text.into(), items.into()]);
            model.stage("context", Cadence::Request, |s| {
                let width = net.joint_attention_dim;
                let norm = RmsNorm::declare(&mut s.sub("txt_norm"), "weight", width, Context::EPS)?;
                let linear = Linear::declare(&mut s.sub("txt_in"), width, hidden, Role::SensitiveMatMul)?;
                Ok(Context { norm, linear, text: of_model.text, to: context })
            })?;
            let img = carried_for(model, "img", hidden, (Symbol::IMAGE_TOKENS, items));
            let txt = carried_for(model, "txt", hidden, (text, items));
            let residuals = Vec::new();
            let (config, of_model) = (config.clone(), *of_model);
            Ok(Running { prefix, runs_if, config, ports, of_model, modulations, context, img, txt, residuals })
        })
    }

    /// The residual behind block `i` of the `blocks` of a model.
    pub(super) fn for_block(&mut self, model: &mut Model, i: usize, blocks: usize) -> Result<Residual> {
        let which = self.config.residual(i, blocks);
        self.until(model, which + 1)?;
        Ok(Residual { port: self.residuals[which], runs_if: self.runs_if })
    }

    /// Declares the stages that are left, whose residuals no block of the model takes.
    pub(super) fn finish(mut self, model: &mut Model) -> Result<Ports> {
        self.until(model, self.config.net.num_layers)?;
        Ok(self.ports)
    }

    /// Declares its blocks up to number `end`.
    fn until(&mut self, model: &mut Model, end: usize) -> Result<()> {
        let hidden = self.config.net.hidden();
        for i in self.residuals.len()..end {
            let Running { config, ports, of_model, modulations, img, txt, .. } = &*self;
            let (scale, condition, from) = (ports.scale, of_model.condition, *img);
            let residual = model.within((&self.prefix, self.runs_if), |model| {
                if i == 0 {
                    self.embed(model)?;
                }
                let carried = ([*img, *txt], modulations[i]);
                declare_block(model, &config.net, (i, Extents::PROMPT), of_model, carried, Vec::new())?;
                let name = format!("residual.{i}");
                let to = carried_for(model, &name, hidden, (Symbol::IMAGE_TOKENS, Extents::PROMPT.items));
                model.stage(name, Cadence::Step, |s| {
                    let mut s = s.sub("controlnet_blocks");
                    let linear = Linear::declare(&mut s.sub(i), hidden, hidden, Role::MatMul)?;
                    Ok(ResidualOut { linear, from, to, scale, condition })
                })?;
                Ok(to)
            })?;
            self.residuals.push(residual);
        }
        Ok(())
    }

    /// Declares the first stage of a step.
    fn embed(&self, model: &mut Model) -> Result<()> {
        let Running { config, ports, of_model, context, img, txt, .. } = self;
        let hidden = config.net.hidden();
        model.stage("embed", Cadence::Step, |s| {
            let mut linear = |name, inputs| Linear::declare(&mut s.sub(name), inputs, hidden, Role::SensitiveMatMul);
            let latents = (linear("img_in", config.net.in_channels)?, of_model.latents);
            let picture = (linear("controlnet_x_embedder", config.picture_channels())?, ports.picture);
            Ok(Embed { latents, picture, img: *img, context: *context, txt: *txt })
        })
    }
}
