//! Vision towers, the safety checker, and what makes pictures larger.

use std::path::Path;

use super::super::{Component, Part, Text};
use super::reading::{read_off, runnable, shapes};
use crate::bind;
use crate::bind::alias;
use crate::index::tensor_at;
use crate::models::safety_checker::{self, SafetyChecker};
use crate::models::upscaler::{self, Upscaler};
use crate::models::vision::{self, Vision};
use crate::{Error, Result};

/// The vision tower of `component`, which is one of `family`, as it gives `output`.
///
/// # Errors
/// As [`flux()`](super::flux()).
pub fn vision(component: &Component, family: vision::Family, output: vision::Output) -> Result<Part<Vision>> {
    let kind = match family {
        vision::Family::Clip => &alias::CLIP_VISION,
        vision::Family::Siglip => &alias::SIGLIP_VISION,
    };
    runnable(component, kind)?;
    let config = match &component.config {
        Some(Text { text, origin }) => vision::Config::from_json(text, origin, family)?,
        None => {
            let config = vision::Config::from_shapes(shapes(component, &alias::vision), &component.origin, family);
            read_off(config, component, &alias::vision)?
        }
    };
    if output == (vision::Output::Pooled { projected: true }) && config.projection_dim.is_none() {
        let name = "visual_projection.weight";
        return Err(bind::missing(&component.index, &component.prefix, &alias::vision, name, &component.origin));
    }
    let part = Part::new(Vision::new(&config, output)?, component, kind, alias::vision, &config)?;
    // Layers that are skipped are no strays.
    let whole = Vision::new(&config, vision::Output::LAST)?;
    let part = part.without_strays_of(whole.model.manifest(), component)?;
    let derived = vision::Config::from_shapes(|name| part.shape(name), Path::new(""), family).ok();
    Ok(part.compared(derived))
}

/// The vision tower of `component` with all that its file has.
///
/// # Errors
/// As [`flux()`](super::flux()).
pub fn whole_vision(component: &Component, family: vision::Family) -> Result<Part<Vision>> {
    let has = |name| shapes(component, &alias::vision)(name).is_some();
    let output = match family {
        vision::Family::Clip => vision::Output::Pooled { projected: has("visual_projection.weight") },
        vision::Family::Siglip if has("vision_model.head.probe") => vision::Output::Pooled { projected: false },
        vision::Family::Siglip => vision::Output::LAST,
    };
    vision(component, family, output)
}

/// The safety checker of `component`.
///
/// # Errors
/// As [`flux()`](super::flux()).
pub fn safety_checker(component: &Component) -> Result<Part<SafetyChecker>> {
    let (kind, aliases) = (&alias::SAFETY_CHECKER, &alias::safety_checker);
    runnable(component, kind)?;
    let config = match &component.config {
        Some(Text { text, origin }) => safety_checker::Config::from_json(text, origin, shapes(component, aliases)),
        None => safety_checker::Config::from_shapes(shapes(component, aliases), &component.origin),
    };
    let config = read_off(config, component, aliases)?;
    if config.vision.projection_dim.is_none() {
        let name = "visual_projection.weight";
        return Err(bind::missing(&component.index, &component.prefix, aliases, name, &component.origin));
    }
    let net = SafetyChecker::new(&config)?;
    let part = Part::new(net, component, kind, alias::safety_checker, &config)?.without_strays(component)?;
    let derived = safety_checker::Config::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok(part.compared(derived))
}

/// The network of `component` that makes pictures larger.
///
/// # Errors
/// As [`flux()`](super::flux()).
pub fn upscaler(component: &Component) -> Result<Part<Upscaler>> {
    runnable(component, &alias::UPSCALER)?;
    let layout = alias::UpscalerLayout::of(&component.index, &component.prefix);
    let aliases = alias::upscaler(layout);
    let config = upscaler::Config::from_shapes(shapes(component, &aliases), &component.origin);
    let config = read_off(config, component, &aliases)?;
    let part = Part::new(Upscaler::new(&config)?, component, &alias::UPSCALER, aliases, &config)?;
    let part = part.without_strays(component)?;
    // Others are built upon these networks, and have a few layers more.
    if let Some(more) = part.bound.unused().iter().find(|name| name.ends_with(".weight")) {
        let expected = "no weight beside those of ESRGAN or of Real-ESRGAN's compact network";
        return Err(Error::mismatch(&component.origin, tensor_at(more), expected, "one"));
    }
    let derived = upscaler::Config::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok(part.compared(derived))
}
