//! What LoRAs change.

use crate::bind::Bound;
use crate::bind::alias::Alternative;
use crate::stage::Model;

/// A model that a LoRA may change, and where its weights come from.
pub struct Target<'a> {
    /// Its place in the whole, by diffusers' name of its folder: `transformer`, `unet`, `text_encoder_2`.
    pub slot: &'static str,
    /// The model.
    pub model: &'a mut Model,
    /// Its weights.
    pub bound: &'a mut Bound,
    /// What files call them.
    pub aliases: &'a dyn Fn(&str) -> Vec<Alternative>,
}
