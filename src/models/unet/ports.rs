//! Where data goes into the UNet and comes out of it.

use pinhole_quant::DType;

use super::config::Config;
use super::ip::IpPorts;
use super::maps::{input, map_of};
use crate::Result;
use crate::stage::{Lifetime, Model, Port, Symbol};

/// The ports that carry the request into the model, and the prediction out.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// `[t, N]`: the [`sinusoid`](crate::models::layers::sinusoid) of each condition's time, from 0 to 1000, as wide as
    /// [`Config::time_width`](super::Config::time_width).
    pub time: Port,
    /// `[A, N]`, in a model of kind `text_time`: the pooled prompt of each condition, and behind it the
    /// [`sinusoid`](crate::models::layers::sinusoid) of each of the [`SIZES`](super::SIZES), as wide as [`Config::addition_time_embed_dim`](super::Config::addition_time_embed_dim).
    pub added: Option<Port>,
    /// `[G]`, in a UNet that is told how closely to follow the prompt: the embedded guidance, as wide as
    /// [`Config::time_cond_proj_dim`](super::Config::time_cond_proj_dim).
    pub guidance: Option<Port>,
    /// `[J, Tt, B]`: the prompt's hidden states.
    pub context: Port,
    /// `[B]`, I32: which condition each item of the batch is computed under in this evaluation.
    pub condition: Port,
    /// `[w, h, c, B]`: noised latents, scaled as the scheduler says.
    pub latents: Port,
    /// `[w, h, c', B]`: the prediction.
    pub prediction: Port,
    /// Those of an IP-Adapter, if the model is made with one.
    pub ip: Option<IpPorts>,
}

impl Ports {
    /// Those of a UNet that `config` describes.
    pub(super) fn declare(model: &mut Model, config: &Config) -> Result<Ports> {
        let (batch, conditions) = (Symbol::BATCH, |width: usize| [width.into(), Symbol::CONDITIONS.into()]);
        let context = [config.cross_attention_dim.into(), Symbol::TEXT_TOKENS.into(), batch.into()];
        Ok(Ports {
            time: input(model, "time", &conditions(config.time_width())),
            added: config.added_width().map(|width| input(model, "added", &conditions(width))),
            guidance: config.time_cond_proj_dim.map(|width| input(model, "guidance", &[width.into()])),
            context: input(model, "context", &context),
            condition: model.port("condition", &[batch.into()], DType::I32, Lifetime::Pass),
            latents: map_of(model, "latents", (0, config.in_channels), batch)?,
            prediction: map_of(model, "prediction", (0, config.out_channels), batch)?,
            ip: None,
        })
    }
}
