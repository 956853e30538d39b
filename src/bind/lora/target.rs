//! What LoRAs change.

use crate::bind::Bound;
use crate::bind::alias::Alternative;
use crate::stage::Model;
use crate::weights::Manifest;

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

impl Target<'_> {
    /// The model as it is.
    pub fn base(&self) -> Base<'_> {
        let Target { slot, model, bound, aliases } = self;
        Base { slot, manifest: model.manifest(), bound, aliases }
    }
}

/// A model as a LoRA finds it.
#[derive(Clone, Copy)]
pub struct Base<'a> {
    /// As in [`Target`].
    pub slot: &'static str,
    /// What weights it has.
    pub manifest: &'a Manifest,
    /// Where they come from.
    pub bound: &'a Bound,
    /// What files call them.
    pub aliases: &'a dyn Fn(&str) -> Vec<Alternative>,
}
