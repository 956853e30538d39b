//! Text encoders.

use std::path::Path;

use super::super::{Component, Part, Text, strangers};
use super::reading::{read_off, runnable, shapes};
use crate::bind::alias::{self, Kind};
use crate::models::clip::{self, Clip, Output};
use crate::models::language_model::{self, LanguageModel, QWEN3_VL, Taps};
use crate::models::layers::Activation;
use crate::models::t5::{self, T5};
use crate::{Error, Result};

/// CLIP's text encoder, as it gives its last hidden states, and its configuration.
///
/// # Errors
/// As [`flux()`](super::flux()).
pub fn clip(component: &Component) -> Result<(Part<Clip>, clip::Config)> {
    clip_with(component, Output::LAST)
}

/// CLIP's text encoder, as it gives `output`, and its configuration.
///
/// # Errors
/// As [`flux()`](super::flux()); [`Error::Option`] if more layers are skipped than there are.
pub fn clip_with(component: &Component, output: Output) -> Result<(Part<Clip>, clip::Config)> {
    runnable(component, &alias::CLIP)?;
    let config = match &component.config {
        Some(Text { text, origin }) => clip::Config::from_json(text, origin)?,
        None => {
            let config = clip::Config::from_shapes(shapes(component, &alias::clip), &component.origin);
            let config = read_off(config, component, &alias::clip)?;
            match alias::is_open_clip(&component.index, &component.prefix) {
                true => clip::Config { hidden_act: Activation::Gelu, ..config },
                false => config,
            }
        }
    };
    let published = config.clone();
    let config = match output.shortened && component.config.is_none() && is_whole_open_clip(component, &config) {
        true => clip::Config { num_hidden_layers: config.num_hidden_layers - 1, ..config },
        false => config,
    };
    if output.skipped >= config.num_hidden_layers {
        let expected = format!("less than the {} layers of CLIP", config.num_hidden_layers);
        return Err(Error::option("--clip-skip", expected, output.skipped.to_string()));
    }
    // A network that projects nothing has no such width.
    let config = if output.projected { config } else { clip::Config { projection_dim: None, ..config } };
    let part = Part::new(Clip::with(&config, output)?, component, &alias::CLIP, alias::clip, &config)?;
    // Layers that are skipped are no strays.
    let whole = Clip::with(&published, Output { skipped: 0, projected: false, ..output })?;
    let part = part.without_strays_of(whole.model.manifest(), component)?;
    let derived = clip::Config::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok((part.compared(derived), config))
}

/// Layers and width of OpenCLIP's ViT-H, as trained.
const VIT_H: [usize; 2] = [24, 1024];

/// Whether `component` is a text encoder of OpenCLIP with all its layers, by its names or, under those of transformers, by its
/// sizes.
fn is_whole_open_clip(component: &Component, config: &clip::Config) -> bool {
    let named = alias::is_open_clip(&component.index, &component.prefix) && config.num_hidden_layers > 1;
    named || [config.num_hidden_layers, config.hidden_size] == VIT_H
}

/// The encoder of T5 in `component`, and its configuration.
///
/// # Errors
/// As [`flux()`](super::flux()); umt5 is another.
pub fn t5(component: &Component) -> Result<(Part<T5>, t5::Config)> {
    let (part, config) = t5_of(component, &alias::T5)?;
    match config.is_umt5() {
        true => {
            Err(strangers::refusal(&component.origin, alias::UMT5.what, "take T5 v1.1 XXL: t5xxl_fp16.safetensors"))
        }
        false => Ok((part, config)),
    }
}

/// The encoder of umt5 in `component`, and its configuration.
///
/// # Errors
/// As [`flux()`](super::flux()); T5 is another.
pub fn umt5(component: &Component) -> Result<(Part<T5>, t5::Config)> {
    let (part, config) = t5_of(component, &alias::UMT5)?;
    if config.is_umt5() {
        return Ok((part, config));
    }
    let error = Error::mismatch(&component.origin, "model_type", "umt5", config.model_type);
    Err(error.with_hint("take umt5-xxl: umt5_xxl_fp16.safetensors"))
}

fn t5_of(component: &Component, kind: &'static Kind) -> Result<(Part<T5>, t5::Config)> {
    runnable(component, kind)?;
    let config = match &component.config {
        Some(Text { text, origin }) => t5::Config::from_json(text, origin)?,
        None => {
            let config = t5::Config::from_shapes(shapes(component, &alias::t5), &component.origin);
            read_off(config, component, &alias::t5)?
        }
    };
    let part = Part::new(T5::new(&config)?, component, kind, alias::t5, &config)?.without_strays(component)?;
    let derived = t5::Config::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok((part.compared(derived), config))
}

/// What a language model is called whose shapes are those of Qwen3.
const QWEN3: &str = "qwen3";

/// Whether the vision tower of Qwen3-VL lies beside the language model of `component`.
fn sees_as_qwen3_vl(component: &Component) -> bool {
    component.index.names().any(|name| name.contains("visual.deepstack_merger_list."))
}

/// The language model of `component`, as it gives `taps` of its layers, and its configuration.
///
/// # Errors
/// As [`flux()`](super::flux()); [`Error::Mismatch`] if it has fewer layers than are tapped.
pub fn language_model(
    component: &Component,
    taps: fn(usize) -> Taps,
) -> Result<(Part<LanguageModel>, language_model::Config)> {
    language_model_beside(component, taps, None)
}

/// The same beside a model that reads with one of `family`: where neither a configuration nor the vision tower in the file says whether a
/// model with Qwen3's shapes is of Qwen3 or of Qwen3-VL, it is of that.
///
/// # Errors
/// As [`language_model()`].
pub fn language_model_beside(
    component: &Component,
    taps: fn(usize) -> Taps,
    family: Option<&str>,
) -> Result<(Part<LanguageModel>, language_model::Config)> {
    runnable(component, &alias::LANGUAGE_MODEL)?;
    let aliases = alias::language_model;
    let config = match &component.config {
        Some(Text { text, origin }) => language_model::Config::from_json(text, origin)?,
        None => {
            let config = language_model::Config::from_shapes(shapes(component, &aliases), &component.origin);
            let config = read_off(config, component, &aliases)?;
            let family = if sees_as_qwen3_vl(component) { Some(QWEN3_VL) } else { family };
            match family.filter(|_| config.is_like(QWEN3)) {
                Some(family) => config.of_family(family),
                None => config,
            }
        }
    };
    let (layers, origin) = (config.num_hidden_layers, &component.origin);
    let taps = taps(layers);
    let last = taps.after.last().copied().unwrap_or(0);
    if !(1..=layers).contains(&last) {
        let expected = format!("at least {} layers, since a later one is read", last.max(2));
        return Err(Error::mismatch(origin, "num_hidden_layers", expected, layers.to_string()));
    }
    let part = Part::new(LanguageModel::new(&config, &taps)?, component, &alias::LANGUAGE_MODEL, aliases, &config)?;
    // Layers that are not read are no strays.
    let whole = LanguageModel::new(&config, &Taps { after: vec![layers], normalised: true })?;
    let part = part.without_strays_of(whole.model.manifest(), component)?;
    let derived = language_model::Config::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok((part.compared(derived), config))
}
