//! ControlNets of FLUX.1, which run beside the model: InstantX's, Shakker's and alimama's (reference: diffusers'
//! `FluxControlNetModel`, with the original files' names for what the model has as well), and XLabs'.
//!
//! A ControlNet is a short FLUX transformer that sees a picture beside the latents. What its blocks make of the image's tokens is
//! added, as **residuals**, behind the model's own: residual `i / ceil(n / k)` of `k` behind block `i` of `n`, or `i mod k` of XLabs'. A
//! residual is made right before the first block that needs it, so that few are there at a time. It runs for the prompt alone, and
//! its residuals count in the pass of the negative prompt, too.
//!
//! `N` pictures, otherwise as for the model. Its tokens of text are the prompt's, and before them one for the mode if it has modes; or
//! those of a face instead (InfiniteYou's InfuseNet).
//!
//! | stage                   | when    | carried in                             | carried out                 |
//! |-------------------------|---------|----------------------------------------|-----------------------------|
//! | `vector`, `modulation.*` | request | as the model's                        |                             |
//! | `context`               | request | `text`, `mode` [D, 1, N]               | `context` [D, Tt, N]        |
//! | `hint` (XLabs)          | request | `picture` [W, H, 3, 1]                 | `hint` [C, Ti, 1]           |
//! | `embed`                 | step    | `latents`, `picture` [C', Ti, N] or `hint` | `img` [D, Ti, N]        |
//! | `double.*`, `single.*`  | step    | as the model's                         |                             |
//! | `residual.*`            | step    | `img` or `joint`, `scale` [1, conditions] | `residual.*` [D, Ti, N]  |

mod config;
mod ends;
mod hint;

use self::config::FACE_TOKENS;
use self::ends::{Context, Embed, ResidualOut};
use self::hint::Hint;
use super::ports::{self, Ports as ModelPorts, input, rotary_extents};
use super::shared::{Residual, Rotary, Shared};
use super::stack::{Added, Carried, Stack};
use crate::Result;
use crate::models::control_runs::runs_of;
use crate::models::layers::Linear;
use crate::stage::{Cadence, Model, Port, Symbol};
use crate::weights::{Role, WeightId};

pub use config::Config;

/// Where a request is put for a ControlNet.
#[derive(Clone, Debug)]
pub struct Ports {
    /// The picture: `[C', Ti, N]`, packed latents and, behind them, the mask; or, for XLabs', `[W, H, 3, 1]`, its pixels from -1 to 1.
    pub picture: Port,
    /// `[1, conditions]`: what its residuals are multiplied with.
    pub scale: Port,
    /// The table of modes `[D, modes]`, which stays on the host, and `[D, 1, N]`: the row of the mode that the picture is of.
    pub mode: Option<(WeightId, Port)>,
    /// `[d, 1, T]` each: the rotary tables, if its text is not as long as the model's.
    pub rotary: Option<[Port; 2]>,
    /// `[J, n, N]`: the tokens of a face, if it reads one in the prompt's place.
    pub face: Option<Port>,
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
        let mut model = Model::new();
        let ports = ModelPorts::declare(&mut model, &config.net, config.net.guidance_embeds);
        let running = Running::declare(&mut model, None, config, &ports)?;
        running.finish(&mut model)?;
        Ok(ControlNet { model, config: config.clone() })
    }

    /// The hyperparameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Has it read the tokens of a face in the prompt's place from now on.
    pub fn read_face(&mut self) {
        self.config.reads_face = true;
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
    stack: Stack,
    carried: Carried,
    ports: Ports,
    /// Those of the model.
    latents: Port,
    /// The picture as tokens: `[C', Ti, N]`, or `[C', Ti, 1]`.
    seen: Port,
    /// What is declared of a step: the first stage, the residuals behind double blocks, the sequence of text and image, the residuals
    /// behind single blocks.
    begun: bool,
    double: Vec<Port>,
    joint: Option<Port>,
    single: Vec<Port>,
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
        let (stack, ports, seen) = model.within((&prefix, runs_if), |model| declare(model, config, of_model))?;
        let carried = model.within((&prefix, runs_if), |model| Ok(stack.carried(model)))?;
        let (config, latents) = (config.clone(), of_model.latents);
        let (double, single) = (Vec::new(), Vec::new());
        Ok(Running {
            prefix,
            runs_if,
            config,
            stack,
            carried,
            ports,
            latents,
            seen,
            begun: false,
            double,
            joint: None,
            single,
        })
    }

    /// `port`, in the steps in which it runs.
    fn added(&self, port: Port) -> Residual {
        Residual { port, runs_if: self.runs_if }
    }

    /// The residual behind double block `i` of the `blocks` of a model.
    pub(super) fn for_double(&mut self, model: &mut Model, i: usize, blocks: usize) -> Result<Option<Residual>> {
        let Some(which) = self.config.double_residual(i, blocks) else { return Ok(None) };
        self.double_until(model, which + 1)?;
        Ok(Some(self.added(self.double[which])))
    }

    /// The residual behind single block `i` of the `blocks` of a model.
    pub(super) fn for_single(&mut self, model: &mut Model, i: usize, blocks: usize) -> Result<Option<Residual>> {
        let Some(which) = self.config.single_residual(i, blocks) else { return Ok(None) };
        self.single_until(model, which + 1)?;
        Ok(Some(self.added(self.single[which])))
    }

    /// Declares the stages that are left, whose residuals no block of the model takes.
    pub(super) fn finish(mut self, model: &mut Model) -> Result<Ports> {
        self.double_until(model, self.config.net.num_layers)?;
        self.single_until(model, self.config.net.num_single_layers)?;
        Ok(self.ports)
    }

    /// Declares its double blocks up to number `end`.
    fn double_until(&mut self, model: &mut Model, end: usize) -> Result<()> {
        self.begin(model)?;
        for i in self.double.len()..end {
            let (stack, carried) = (&self.stack, self.carried);
            model.within((&self.prefix, self.runs_if), |model| stack.double(model, i, carried, Added::default()))?;
            let name = format!("double.{i}");
            self.double.push(self.residual(model, &name, &format!("controlnet_blocks.{i}"), (carried.img, false))?);
        }
        Ok(())
    }

    /// Declares its single blocks up to number `end`, and what comes before them.
    fn single_until(&mut self, model: &mut Model, end: usize) -> Result<()> {
        if end == 0 {
            return Ok(());
        }
        self.double_until(model, self.config.net.num_layers)?;
        let (stack, carried) = (&self.stack, self.carried);
        let joint = match self.joint {
            Some(joint) => joint,
            None => model.within((&self.prefix, self.runs_if), |model| stack.join(model, carried))?,
        };
        self.joint = Some(joint);
        for i in self.single.len()..end {
            let stack = &self.stack;
            model.within((&self.prefix, self.runs_if), |model| stack.single(model, i, joint, Added::default()))?;
            let name = format!("single.{i}");
            self.single.push(self.residual(model, &name, &format!("controlnet_single_blocks.{i}"), (joint, true))?);
        }
        Ok(())
    }

    /// Declares the first stage of a step, once.
    fn begin(&mut self, model: &mut Model) -> Result<()> {
        let Running { stack, carried, config, latents, seen, begun, .. } = &*self;
        let hidden = config.net.hidden();
        if !begun {
            model.within((&self.prefix, self.runs_if), |model| {
                model.stage("embed", Cadence::Step, |s| {
                    let inputs = config.net.in_channels;
                    let (own, beside) = (inputs, config.picture_channels());
                    let mut linear =
                        |name, inputs| Linear::declare(&mut s.sub(name), inputs, hidden, Role::SensitiveMatMul);
                    let latents = (linear("img_in", own)?, *latents);
                    let picture = (linear("controlnet_x_embedder", beside)?, *seen);
                    Ok(Embed { latents, picture, to: carried.img, sizes: stack.shared.sizes })
                })
            })?;
        }
        self.begun = true;
        Ok(())
    }

    /// Declares the stage of a residual, which comes of `from`, the image alone or behind the text, and gives its port.
    fn residual(&self, model: &mut Model, name: &str, weights: &str, (from, is_joint): (Port, bool)) -> Result<Port> {
        let hidden = self.config.net.hidden();
        let (scale, shared) = (self.ports.scale, self.stack.shared);
        let name = format!("residual.{name}");
        model.within((&self.prefix, self.runs_if), |model| {
            let to = ports::carried(model, &name, hidden, Symbol::IMAGE_TOKENS, Symbol::PICTURES);
            model.stage(&name, Cadence::Step, |s| {
                let linear = Linear::declare(&mut s.sub(weights), hidden, hidden, Role::MatMul)?;
                Ok(ResidualOut { linear, from, is_joint, to, scale, shared })
            })?;
            Ok(to)
        })
    }
}

/// Declares what a ControlNet that `config` describes computes once a request. Gives its ports, and that of the picture as tokens.
fn declare(model: &mut Model, config: &Config, of_model: &ModelPorts) -> Result<(Stack, Ports, Port)> {
    let (net, sizes) = (&config.net, config.own_sizes());
    let hidden = net.hidden();
    let has_own_text = config.num_mode.is_some() || config.reads_face;
    let own_rotary = has_own_text.then(|| {
        let extents = rotary_extents(net, sizes.joint);
        ["cos", "sin"].map(|name| input(model, name, &extents))
    });
    let face_extents = [net.joint_attention_dim.into(), FACE_TOKENS.into(), Symbol::PICTURES.into()];
    let face = config.reads_face.then(|| input(model, "face", &face_extents));
    let [cos, sin] = own_rotary.unwrap_or([of_model.cos, of_model.sin]);
    let shared = Shared { rotary: Rotary { cos, sin }, condition: of_model.condition, sizes };
    let scale = input(model, "scale", &[1.into(), Symbol::CONDITIONS.into()]);
    let mode = match config.num_mode {
        Some(modes) => {
            let table = model
                .on_host(|s| s.sub("controlnet_mode_embedder").weight("weight", &[hidden, modes], Role::Embedding))?;
            Some((table, input(model, "mode", &[hidden.into(), 1.into(), Symbol::PICTURES.into()])))
        }
        None => None,
    };
    let stack = Stack::declare(model, net, &of_model.inputs(net), shared)?;
    model.stage("context", Cadence::Request, |s| {
        let linear = Linear::declare(&mut s.sub("txt_in"), net.joint_attention_dim, hidden, Role::SensitiveMatMul)?;
        let from = face.unwrap_or(of_model.text);
        Ok(Context { linear, from, mode: mode.map(|(_, port)| port), to: stack.context })
    })?;
    let (picture, seen) = match config.conditioning_embedding_channels {
        None => {
            let channels = config.picture_channels();
            let picture =
                input(model, "picture", &[channels.into(), Symbol::IMAGE_TOKENS.into(), Symbol::PICTURES.into()]);
            (picture, picture)
        }
        Some(channels) => hint(model, config, channels)?,
    };
    Ok((stack, Ports { picture, scale, mode, rotary: own_rotary, face }, seen))
}

/// Declares what becomes of a picture's pixels: their port, and that of tokens.
fn hint(model: &mut Model, config: &Config, channels: usize) -> Result<(Port, Port)> {
    const RGB: usize = 3;
    let sides = [Symbol::LATENT_WIDTH, Symbol::LATENT_HEIGHT].map(|side| side * Hint::FACTOR);
    let picture = input(model, "picture", &[sides[0], sides[1], RGB.into(), 1.into()]);
    let seen = input(model, "hint", &[config.net.in_channels.into(), Symbol::IMAGE_TOKENS.into(), 1.into()]);
    model.stage("hint", Cadence::Request, |s| {
        Hint::declare(&mut s.sub("input_hint_block"), (RGB, channels), config.net.patch_size, (picture, seen))
    })?;
    Ok((picture, seen))
}
