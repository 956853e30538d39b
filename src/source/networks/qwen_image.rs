//! Qwen-Image, its ControlNets, and the vision towers of its language models.

use std::path::Path;

use super::super::{Component, HasModel, Part, Text, model_name};
use super::reading::{read_off, runnable, shapes};
use crate::Result;
use crate::bind::Bound;
use crate::bind::alias;
use crate::models::qwen_image::single::{self, SingleStream};
use crate::models::qwen_image::{self, ControlConfig as QwenControlConfig, ControlNet as QwenControl, QwenImage};
use crate::models::qwen_vl::{self, VisionTower, qwen3};

/// Whether the Qwen-Image transformer of `component`, which brings no configuration, modulates references as at time 0: a mark in the
/// file says so, or its name.
fn is_of_zero(component: &Component) -> bool {
    let is_marked = component.index.has(&format!("{}__index_timestep_zero__", component.prefix));
    is_marked || model_name(&component.origin).contains("2511")
}

/// The Qwen-Image transformer of `component`.
///
/// # Errors
/// As [`flux()`](super::flux()).
pub fn qwen_image(component: &Component) -> Result<Part<QwenImage>> {
    runnable(component, &alias::QWEN_IMAGE)?;
    let config = match &component.config {
        Some(Text { text, origin }) => qwen_image::Config::from_json(text, origin)?,
        None => {
            let config = qwen_image::Config::from_shapes(shapes(component, &alias::qwen_image), &component.origin);
            let config = read_off(config, component, &alias::qwen_image)?;
            qwen_image::Config { zero_cond_t: is_of_zero(component), ..config }
        }
    };
    let part = Part::new(QwenImage::new(&config)?, component, &alias::QWEN_IMAGE, alias::qwen_image, &config)?;
    let part = part.without_strays(component)?;
    let derived = qwen_image::Config::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok(part.compared(derived))
}

/// The same transformer, which modulates references as at time 0, or does not.
///
/// # Errors
/// What declaring a network returns.
pub fn qwen_image_of_zero(part: Part<QwenImage>, zero_cond_t: bool) -> Result<Part<QwenImage>> {
    let config = qwen_image::Config { zero_cond_t, ..part.net.config().clone() };
    Ok(part.with_settings(QwenImage::new(&config)?, &config))
}

/// The Qwen-Image 2.1 transformer of `component`.
///
/// # Errors
/// As [`flux()`](super::flux()).
pub fn qwen_image_21(component: &Component) -> Result<Part<SingleStream>> {
    let (kind, aliases) = (&alias::QWEN_IMAGE_21, alias::qwen_image_21);
    runnable(component, kind)?;
    let config = match &component.config {
        Some(Text { text, origin }) => single::Config::from_json(text, origin)?,
        None => {
            let config = single::Config::from_shapes(shapes(component, &aliases), &component.origin);
            read_off(config, component, &aliases)?
        }
    };
    let part = Part::new(SingleStream::new(&config)?, component, kind, aliases, &config)?.without_strays(component)?;
    let derived = single::Config::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok(part.compared(derived))
}

/// The ControlNet of Qwen-Image in `component`.
///
/// # Errors
/// As [`flux()`](super::flux()).
pub fn qwen_control(component: &Component) -> Result<Part<QwenControl>> {
    let (kind, aliases) = (&alias::QWEN_CONTROL, alias::qwen_control);
    runnable(component, kind)?;
    let config = match &component.config {
        Some(Text { text, origin }) => QwenControlConfig::from_json(text, origin, shapes(component, &aliases))?,
        None => {
            let config = QwenControlConfig::from_shapes(shapes(component, &aliases), &component.origin);
            read_off(config, component, &aliases)?
        }
    };
    let part = Part::new(QwenControl::new(&config)?, component, kind, aliases, &config)?.without_strays(component)?;
    let derived = QwenControlConfig::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok(part.compared(derived))
}

/// `transformer` with `controls` beside it, in one model.
///
/// # Errors
/// [`Error::Mismatch`](crate::Error::Mismatch) for one that does not fit the transformer.
pub fn qwen_image_with(transformer: Part<QwenImage>, controls: &[Part<QwenControl>]) -> Result<Part<QwenImage>> {
    if controls.is_empty() {
        return Ok(transformer);
    }
    let (config, mut configs) = (transformer.net.config(), Vec::with_capacity(controls.len()));
    for control in controls {
        control.net.config().fit(config, control.bound.origin())?;
        configs.push(control.net.config().clone());
    }
    let net = QwenImage::with(config, &configs)?;
    let prefixes: Vec<String> = (0..controls.len()).map(QwenControl::prefix).collect();
    let mut parts = vec![("", transformer.net.model().manifest(), &transformer.bound)];
    for (prefix, control) in prefixes.iter().zip(controls) {
        parts.push((prefix, control.net.model().manifest(), &control.bound));
    }
    let bound = Bound::joined(net.model.manifest(), &parts)?;
    Ok(transformer.with_network(net, bound))
}

/// The vision tower of Qwen2.5-VL in `component`.
///
/// # Errors
/// As [`flux()`](super::flux()).
pub fn qwen_vl(component: &Component) -> Result<Part<VisionTower>> {
    runnable(component, &alias::QWEN_VL_VISION)?;
    let config = match &component.config {
        Some(Text { text, origin }) => qwen_vl::Config::from_json(text, origin)?,
        None => {
            let config = qwen_vl::Config::from_shapes(shapes(component, &alias::qwen_vl), &component.origin);
            read_off(config, component, &alias::qwen_vl)?
        }
    };
    let part = Part::new(VisionTower::new(&config)?, component, &alias::QWEN_VL_VISION, alias::qwen_vl, &config)?;
    let derived = qwen_vl::Config::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok(part.compared(derived))
}

/// The vision tower of Qwen3-VL in `component`.
///
/// # Errors
/// As [`flux()`](super::flux()).
pub fn qwen3_vl(component: &Component) -> Result<Part<qwen3::VisionTower>> {
    let kind = &alias::QWEN3_VL_VISION;
    runnable(component, kind)?;
    let named = alias::qwen3_vl_deepstack(|name| component.index.has(&format!("{}{name}", component.prefix)));
    let config = match &component.config {
        Some(Text { text, origin }) => qwen3::Config::from_json(text, origin)?,
        None => {
            let aliases = alias::qwen3_vl(named.clone().unwrap_or_default());
            let config = qwen3::Config::from_shapes(shapes(component, &aliases), named.clone(), &component.origin);
            read_off(config, component, &aliases)?
        }
    };
    let aliases = alias::qwen3_vl(named.unwrap_or_default());
    let part = Part::new(qwen3::VisionTower::new(&config)?, component, kind, aliases, &config)?;
    let blocks = Some(config.deepstack_visual_indexes);
    let derived = qwen3::Config::from_shapes(|name| part.shape(name), blocks, Path::new("")).ok();
    Ok(part.compared(derived))
}
