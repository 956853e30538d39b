//! Z-Image and its ControlNets.

use std::path::Path;

use super::super::{Component, HasModel, Part, Text};
use super::reading::{read_off, runnable, shapes};
use crate::Result;
use crate::bind::Bound;
use crate::bind::alias;
use crate::models::z_image::{self, ControlConfig as ZImageControlConfig, ControlNet as ZImageControl, ZImage};

/// The Z-Image transformer of `component`.
///
/// # Errors
/// As [`flux()`](super::flux()).
pub fn z_image(component: &Component) -> Result<Part<ZImage>> {
    runnable(component, &alias::Z_IMAGE)?;
    let config = match &component.config {
        Some(Text { text, origin }) => z_image::Config::from_json(text, origin)?,
        None => {
            let config = z_image::Config::from_shapes(shapes(component, &alias::z_image), &component.origin);
            read_off(config, component, &alias::z_image)?
        }
    };
    let part = Part::new(ZImage::new(&config)?, component, &alias::Z_IMAGE, alias::z_image, &config)?;
    let part = part.without_strays(component)?;
    let derived = z_image::Config::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok(part.compared(derived))
}

/// Whether the refiners of the ControlNet of Z-Image in `component` were never trained, so that its other layers refine: in files of 2.0.
fn refines_with_layers(component: &Component) -> bool {
    let first = component.index.get(&format!("{}{}", component.prefix, z_image::REFINERS_FIRST));
    first.is_some_and(|first| first.bytes().iter().all(|&byte| byte == 0))
}

/// The ControlNet of Z-Image in `component`. What the shapes of a file without a configuration do not tell is as published, beside a model
/// like `beside`.
///
/// # Errors
/// As [`flux()`](super::flux()).
pub fn z_image_control(component: &Component, beside: Option<&z_image::Config>) -> Result<Part<ZImageControl>> {
    let (kind, aliases) = (&alias::Z_IMAGE_CONTROL, alias::z_image_control);
    runnable(component, kind)?;
    let published = z_image::Config::default();
    let config = match &component.config {
        Some(Text { text, origin }) => ZImageControlConfig::from_json(text, origin)?,
        None => {
            let (reuses, beside) = (refines_with_layers(component), beside.unwrap_or(&published));
            let shapes = shapes(component, &aliases);
            let config = ZImageControlConfig::from_shapes(shapes, reuses, beside, &component.origin);
            read_off(config, component, &aliases)?
        }
    };
    let part = Part::new(ZImageControl::new(&config)?, component, kind, aliases, &config)?;
    let derived = ZImageControlConfig::from_shapes(|name| part.shape(name), false, &published, Path::new("")).ok();
    // A file of 2.0 rightly has refiners that are not read.
    let part = match config.add_control_noise_refiner {
        Some(z_image::Refines::ControlLayers) => part,
        _ => part.without_strays(component)?,
    };
    Ok(part.compared(derived))
}

/// `transformer` with the ControlNet `control` beside it, in one model.
///
/// # Errors
/// [`Error::Mismatch`](crate::Error::Mismatch) if it does not fit the transformer.
pub fn z_image_with(transformer: Part<ZImage>, control: Option<&Part<ZImageControl>>) -> Result<Part<ZImage>> {
    let Some(control) = control else { return Ok(transformer) };
    let (config, own) = (transformer.net.config(), control.net.config());
    own.fit(config, control.bound.origin())?;
    let net = ZImage::with(config, Some(own))?;
    let manifest = control.net.model().manifest();
    let bound = Bound::joined(
        net.model.manifest(),
        &[
            ("", transformer.net.model().manifest(), &transformer.bound),
            (ZImageControl::PREFIX, manifest, &control.bound),
            (ZImageControl::REFINING, manifest, &control.bound),
        ],
    )?;
    Ok(transformer.with_network(net, bound))
}
