//! Where a request is put, and the ports that stages hand on.

use pinhole_quant::DType;

use super::config::Config;
use super::ip::IpPorts;
use super::shared::Inputs;
use crate::stage::{Extent, Lifetime, Model, Port, Symbol};

/// Width of the sinusoidal embedding of time and guidance.
pub const TIME_WIDTH: usize = 256;

/// The epsilon of every normalisation.
pub(super) const EPS: f32 = 1e-6;

/// The ports that carry the request into the model, and the velocity out.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// `[256, N]`: [`sinusoid`](super::sinusoid) of each condition's time.
    pub time: Port,
    /// `[256, N]`: [`sinusoid`](super::sinusoid) of the guidance; absent in schnell, unless a ControlNet takes it.
    pub guidance: Option<Port>,
    /// `[P, N]`: the pooled prompt of each condition.
    pub pooled: Port,
    /// `[J, Tt, B]`: the prompt's hidden states.
    pub text: Port,
    /// `[d, 1, T]`: see [`Flux::rotary`](super::Flux::rotary).
    pub cos: Port,
    /// `[d, 1, T]`: see [`Flux::rotary`](super::Flux::rotary).
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

impl Ports {
    /// Those of a model that `config` describes, with guidance if `takes_guidance`.
    pub(super) fn declare(model: &mut Model, config: &Config, takes_guidance: bool) -> Ports {
        let conditions = |width: usize| [width.into(), Symbol::CONDITIONS.into()];
        let text = [config.joint_attention_dim.into(), Symbol::TEXT_TOKENS.into(), Symbol::BATCH.into()];
        let rotary = rotary_extents(config, Symbol::JOINT_TOKENS);
        let (latents, velocity) = (config.in_channels, config.out_channels());
        Ports {
            time: input(model, "time", &conditions(TIME_WIDTH)),
            guidance: takes_guidance.then(|| input(model, "guidance", &conditions(TIME_WIDTH))),
            pooled: input(model, "pooled", &conditions(config.pooled_projection_dim)),
            text: input(model, "text", &text),
            cos: input(model, "cos", &rotary),
            sin: input(model, "sin", &rotary),
            condition: model.port("condition", &[Symbol::BATCH.into()], DType::I32, Lifetime::Pass),
            latents: carried(model, "latents", latents, Symbol::IMAGE_TOKENS, Symbol::BATCH),
            velocity: carried(model, "velocity", velocity, Symbol::IMAGE_TOKENS, Symbol::BATCH),
            ip: None,
        }
    }

    /// What a network that `config` describes is modulated by.
    pub(super) fn inputs(&self, config: &Config) -> Inputs {
        let guidance = self.guidance.filter(|_| config.guidance_embeds);
        Inputs { time: self.time, guidance, pooled: self.pooled }
    }
}

/// A port of so many extents that the host fills for a request.
pub(super) fn input(model: &mut Model, name: &str, extents: &[Extent]) -> Port {
    model.port(name, extents, DType::F32, Lifetime::Request)
}

/// A port of `[width, tokens, batch]` that is carried through a step.
pub(super) fn carried(model: &mut Model, name: &str, width: usize, tokens: Symbol, batch: Symbol) -> Port {
    model.port(name, &[width.into(), tokens.into(), batch.into()], DType::F32, Lifetime::Pass)
}

/// The extents of a rotary table for so many tokens.
pub(super) fn rotary_extents(config: &Config, tokens: Symbol) -> [Extent; 3] {
    [config.attention_head_dim.into(), 1.into(), tokens.into()]
}
