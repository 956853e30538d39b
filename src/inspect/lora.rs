//! What a LoRA is.

use std::path::Path;

use serde::Serialize;

use crate::Result;
use crate::bind::lora::{About, Lora, Outline};
use crate::entries::Entries;

/// What a LoRA's file holds.
#[derive(Serialize)]
pub struct LoraReport {
    /// The family of models that it seems to be for.
    pub family: Option<&'static str>,
    /// What it makes of a model, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub purpose: Vec<String>,
    /// What its metadata say of the requests that it is for.
    #[serde(skip_serializing_if = "Entries::is_empty")]
    pub settings: Entries<String>,
    /// Its title, as its metadata say.
    pub title: Option<String>,
    /// The model that it was trained on, as its metadata say.
    pub base: Option<String>,
    /// Words in a prompt that bring it out, as its metadata say.
    pub triggers: Option<String>,
    /// How many modules it changes.
    pub modules: usize,
    /// How many of them are of the denoiser and of each text encoder.
    pub parts: Entries<usize>,
    /// How many of them are written in which way.
    pub forms: Entries<usize>,
    /// The ranks of low-rank changes, from the smallest.
    pub ranks: Vec<usize>,
    /// The alphas that it gives, from the smallest; none if changes are used as they are.
    pub alphas: Vec<f32>,
}

impl LoraReport {
    /// What the safetensors file at `path` changes; `None` if it is no LoRA.
    ///
    /// # Errors
    /// Those of [`Lora::open`] and [`Lora::outline`].
    pub(super) fn of(path: &Path) -> Result<Option<LoraReport>> {
        let lora = Lora::open(path)?;
        if !lora.is_lora() {
            return Ok(None);
        }
        let Outline { family, purpose, about, modules, parts, forms, ranks, alphas } = lora.outline()?;
        let About { title, base, triggers, settings } = about;
        let settings = settings.into_iter().collect();
        let (parts, forms) = (parts.into_iter().collect(), forms.into_iter().collect());
        let report =
            LoraReport { family, purpose, settings, title, base, triggers, modules, parts, forms, ranks, alphas };
        Ok(Some(report))
    }
}
