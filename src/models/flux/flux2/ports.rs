//! Where a request is put.

use pinhole_quant::DType;

use super::config::Config;
use crate::models::flux::ports::{carried, input};
use crate::stage::{Lifetime, Model, Port, Symbol};

/// The ports that carry the request into the model, and the velocity out.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// `[S, N]`: [`Flux2::sinusoid`](super::Flux2::sinusoid) of each condition's time.
    pub time: Port,
    /// `[S, N]`: [`Flux2::sinusoid`](super::Flux2::sinusoid) of the guidance; absent in klein.
    pub guidance: Option<Port>,
    /// `[J, Tt, B]`: the prompt's hidden states.
    pub text: Port,
    /// `[d, 1, T]`: see [`Flux2::rotary`](super::Flux2::rotary).
    pub cos: Port,
    /// `[d, 1, T]`: see [`Flux2::rotary`](super::Flux2::rotary).
    pub sin: Port,
    /// `[B]`, I32: which condition each item of the batch is computed under in this step.
    pub condition: Port,
    /// `[C, Ti, B]`: packed latents.
    pub latents: Port,
    /// `[C, Ti, B]`: the prediction.
    pub velocity: Port,
}

impl Ports {
    pub(super) fn declare(model: &mut Model, config: &Config) -> Ports {
        let embedded = [config.timestep_guidance_channels.into(), Symbol::CONDITIONS.into()];
        let text = [config.joint_attention_dim.into(), Symbol::TEXT_TOKENS.into(), Symbol::BATCH.into()];
        let rotary = [config.attention_head_dim.into(), 1.into(), Symbol::JOINT_TOKENS.into()];
        Ports {
            time: input(model, "time", &embedded),
            guidance: config.guidance_embeds.then(|| input(model, "guidance", &embedded)),
            text: input(model, "text", &text),
            cos: input(model, "cos", &rotary),
            sin: input(model, "sin", &rotary),
            condition: model.port("condition", &[Symbol::BATCH.into()], DType::I32, Lifetime::Pass),
            latents: carried(model, "latents", config.in_channels, Symbol::IMAGE_TOKENS, Symbol::BATCH),
            velocity: carried(model, "velocity", config.in_channels, Symbol::IMAGE_TOKENS, Symbol::BATCH),
        }
    }
}
