//! FLUX.1, FLUX.2, FLUX.3, and what goes beside them.

use std::path::Path;

use super::super::{Component, HasModel, Part, Text, strangers};
use super::reading::{read_off, runnable, shapes};
use crate::bind::Bound;
use crate::bind::alias;
use crate::models::flux::flux2::{self, Flux2};
use crate::models::flux::flux3::{self, Flux3};
use crate::models::flux::redux::{self, Redux};
use crate::models::flux::{self, ControlNet, Flux, IpAdapter};
use crate::models::resampler::{self, Resampler};
use crate::{Error, Result};

/// The FLUX transformer of `component`.
///
/// # Errors
/// [`Error::Mismatch`] if weights are missing or of another shape, [`Error::NotAModel`] for a network that is like it and not run
/// and for weights that are packed in a way that is not read, and what reading a configuration returns.
pub fn flux(component: &Component) -> Result<Part<Flux>> {
    runnable(component, &alias::FLUX)?;
    let config = match &component.config {
        Some(Text { text, origin }) => flux::Config::from_json(text, origin)?,
        None => {
            let config = flux::Config::from_shapes(shapes(component, &alias::flux), &component.origin);
            read_off(config, component, &alias::flux)?
        }
    };
    strangers::refuse_pictures_beside(&component.origin, config.in_channels, config.out_channels())?;
    let part = Part::new(Flux::new(&config)?, component, &alias::FLUX, alias::flux, &config)?;
    let part = part.without_strays(component)?;
    let derived = flux::Config::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok(part.compared(derived))
}

/// The FLUX.2 transformer of `component`.
///
/// # Errors
/// As [`flux()`].
pub fn flux2(component: &Component) -> Result<Part<Flux2>> {
    runnable(component, &alias::FLUX2)?;
    let config = match &component.config {
        Some(Text { text, origin }) => flux2::Config::from_json(text, origin)?,
        None => {
            let config = flux2::Config::from_shapes(shapes(component, &alias::flux2), &component.origin);
            read_off(config, component, &alias::flux2)?
        }
    };
    let part = Part::new(Flux2::new(&config)?, component, &alias::FLUX2, alias::flux2, &config)?;
    let part = part.without_strays(component)?;
    let derived = flux2::Config::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok(part.compared(derived))
}

/// The FLUX.3 transformer of `component`.
///
/// # Errors
/// As [`flux()`].
pub fn flux3(component: &Component) -> Result<Part<Flux3>> {
    runnable(component, &alias::FLUX3)?;
    let config = match &component.config {
        Some(Text { text, origin }) => flux3::Config::from_json(text, origin)?,
        None => {
            let config = flux3::Config::from_shapes(shapes(component, &alias::flux3), &component.origin);
            read_off(config, component, &alias::flux3)?
        }
    };
    let part = Part::new(Flux3::new(&config)?, component, &alias::FLUX3, alias::flux3, &config)?;
    let part = part.without_strays(component)?;
    let derived = flux3::Config::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok(part.compared(derived))
}

/// The ControlNet of FLUX.1 in `component`.
///
/// # Errors
/// As [`flux()`].
pub fn flux_control(component: &Component) -> Result<Part<ControlNet>> {
    let (kind, aliases) = (&alias::FLUX_CONTROL, alias::flux_control);
    runnable(component, kind)?;
    let config = match &component.config {
        Some(Text { text, origin }) => flux::ControlConfig::from_json(text, origin, shapes(component, &aliases))?,
        None => {
            let config = flux::ControlConfig::from_shapes(shapes(component, &aliases), &component.origin);
            read_off(config, component, &aliases)?
        }
    };
    let part = Part::new(ControlNet::new(&config)?, component, kind, aliases, &config)?.without_strays(component)?;
    let derived = flux::ControlConfig::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok(part.compared(derived))
}

/// `transformer` with `controls` beside it, and with the IP-Adapter `ip`, in one model.
///
/// # Errors
/// [`Error::Mismatch`] for one that does not fit the transformer.
pub fn flux_with(
    transformer: Part<Flux>,
    controls: &[Part<ControlNet>],
    ip: Option<&Part<IpAdapter>>,
) -> Result<Part<Flux>> {
    if controls.is_empty() && ip.is_none() {
        return Ok(transformer);
    }
    let config = transformer.net.config();
    for control in controls {
        let (own, origin) = (&control.net.config().net, control.bound.origin());
        for (key, found, expected) in [
            ("in_channels", own.in_channels, config.in_channels),
            ("num_attention_heads", own.num_attention_heads, config.num_attention_heads),
            ("attention_head_dim", own.attention_head_dim, config.attention_head_dim),
            ("joint_attention_dim", own.joint_attention_dim, config.joint_attention_dim),
            ("pooled_projection_dim", own.pooled_projection_dim, config.pooled_projection_dim),
        ] {
            if found != expected {
                let expected = format!("{expected}, as the transformer has");
                let error = Error::mismatch(origin, key, expected, found.to_string());
                return Err(error.with_hint("this ControlNet was trained for another model"));
            }
        }
        if own.axes_dims_rope != config.axes_dims_rope {
            let (expected, found) = (format!("{:?}", config.axes_dims_rope), format!("{:?}", own.axes_dims_rope));
            return Err(Error::mismatch(
                origin,
                "axes_dims_rope",
                format!("{expected}, as the transformer has"),
                found,
            ));
        }
    }
    let configs: Vec<flux::ControlConfig> = controls.iter().map(|control| control.net.config().clone()).collect();
    let net = Flux::with(config, &configs, ip.map(|ip| ip.net.config()))?;
    let prefixes: Vec<String> = (0..controls.len()).map(ControlNet::prefix).collect();
    let mut parts = vec![("", transformer.net.model().manifest(), &transformer.bound)];
    for (prefix, control) in prefixes.iter().zip(controls) {
        parts.push((prefix, control.net.model().manifest(), &control.bound));
    }
    if let Some(ip) = ip {
        parts.push(("", ip.net.model().manifest(), &ip.bound));
    }
    let bound = Bound::joined(net.model.manifest(), &parts)?;
    Ok(transformer.with_network(net, bound))
}

/// The same transformer with a first layer that reads `channels` numbers of each token: of those that are more, it makes nothing yet.
///
/// # Errors
/// [`Error::OutOfMemory`], and what declaring a network returns.
pub fn flux_reading(part: Part<Flux>, channels: usize) -> Result<Part<Flux>> {
    let config = part.net.config();
    let out_channels = Some(config.out_channels());
    let config = flux::Config { in_channels: channels, out_channels, ..config.clone() };
    part.widened(Flux::new(&config)?, "img_in.weight", &config)
}

/// The resampler of `component`, and its configuration.
///
/// # Errors
/// As [`flux()`].
pub fn resampler(component: &Component) -> Result<(Part<Resampler>, resampler::Config)> {
    runnable(component, &alias::RESAMPLER)?;
    let config = resampler::Config::from_shapes(shapes(component, &alias::resampler), &component.origin);
    let config = read_off(config, component, &alias::resampler)?;
    let net = Resampler::new(&config)?;
    let part = Part::new(net, component, &alias::RESAMPLER, alias::resampler, &config)?.without_strays(component)?;
    Ok((part.compared(Some(&config)), config))
}

/// The embedder of FLUX.1 Redux in `component`.
///
/// # Errors
/// As [`flux()`].
pub fn redux(component: &Component) -> Result<Part<Redux>> {
    runnable(component, &alias::REDUX)?;
    let config = match &component.config {
        Some(Text { text, origin }) => redux::Config::from_json(text, origin)?,
        None => {
            let config = redux::Config::from_shapes(shapes(component, &alias::redux), &component.origin);
            read_off(config, component, &alias::redux)?
        }
    };
    let part = Part::new(Redux::new(&config)?, component, &alias::REDUX, alias::redux, &config)?;
    let derived = redux::Config::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok(part.compared(derived))
}

/// The IP-Adapter of FLUX.1 in `component`, for a transformer that `beside` describes.
///
/// # Errors
/// As [`flux()`]; [`Error::Mismatch`] for an adapter of another transformer.
pub fn flux_ip(component: &Component, beside: &flux::Config) -> Result<Part<IpAdapter>> {
    runnable(component, &alias::FLUX_IP)?;
    let double = beside.num_layers;
    let whole = move |name: &str| alias::flux_ip(double, 0, name);
    let config = flux::IpConfig::from_shapes(shapes(component, &whole), &component.origin, beside);
    let config = read_off(config, component, &whole)?;
    let parts = config.parts();
    Part::new(
        IpAdapter::new(&config)?,
        component,
        &alias::FLUX_IP,
        move |name: &str| alias::flux_ip(double, parts, name),
        &config,
    )
}
