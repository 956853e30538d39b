//! Where data goes into the UNet and comes out of it.

use crate::stage::Port;

/// The ports that carry the request into the model, and the prediction out.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// `[t, N]`: the [`sinusoid`](crate::models::layers::sinusoid) of each condition's time, from 0 to 1000, as wide as
    /// [`Config::time_width`](super::Config::time_width).
    pub time: Port,
    /// `[A, N]`, in a model of kind `text_time`: the pooled prompt of each condition, and behind it the
    /// [`sinusoid`](crate::models::layers::sinusoid) of each of the [`SIZES`](super::SIZES), as wide as [`Config::addition_time_embed_dim`](super::Config::addition_time_embed_dim).
    pub added: Option<Port>,
    /// `[J, Tt, B]`: the prompt's hidden states.
    pub context: Port,
    /// `[B]`, I32: which condition each item of the batch is computed under in this evaluation.
    pub condition: Port,
    /// `[w, h, c, B]`: noised latents, scaled as the scheduler says.
    pub latents: Port,
    /// `[w, h, c', B]`: the prediction.
    pub prediction: Port,
}
