//! UNets of Stable Diffusion, and what runs beside them.

use std::path::Path;

use super::super::{Component, HasModel, Part, Text, strangers};
use super::reading::{read_off, runnable, shapes};
use crate::bind::Bound;
use crate::bind::alias;
use crate::bind::lora::{CONTROL_MARK, LowRank};
use crate::models::unet::adapter::{self, T2iAdapter};
use crate::models::unet::control::{Config as UnetControlConfig, ControlNet as UnetControl};
use crate::models::unet::{
    self, IpAdapter as UnetIp, IpConfig as UnetIpConfig, Projector as UnetIpProjector, SideConfig, Unet,
};
use crate::stage::Model;
use crate::{Error, Result};

/// The UNet of `component`.
///
/// # Errors
/// As [`flux()`](super::flux()).
pub fn unet(component: &Component) -> Result<Part<Unet>> {
    runnable(component, &alias::UNET)?;
    let config = match &component.config {
        Some(Text { text, origin }) => unet::Config::from_json(text, origin)?,
        None => {
            // The original names do not depend on the layout; of diffusers', only the published one can be told.
            let layout = alias::UnetLayout { layers: vec![2; unet::MOST_LEVELS] };
            let aliases = |name: &str| alias::unet(&layout, name);
            read_off(unet::Config::from_shapes(shapes(component, &aliases), &component.origin), component, &aliases)?
        }
    };
    strangers::refuse_pictures_beside(&component.origin, config.in_channels, config.out_channels)?;
    let layout = alias::UnetLayout { layers: config.layers_by_level() };
    let part =
        Part::new(Unet::new(&config)?, component, &alias::UNET, move |name: &str| alias::unet(&layout, name), &config)?
            .without_strays(component)?;
    let derived = unet::Config::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok(part.compared(derived))
}

/// The ControlNet of Stable Diffusion in `component`. What the shapes of a file without a configuration do not tell is as the UNet `beside`
/// has it, if that has the same levels.
///
/// # Errors
/// As [`flux()`](super::flux()).
pub fn unet_control(component: &Component, beside: Option<&unet::Config>) -> Result<Part<UnetControl>> {
    let kind = &alias::UNET_CONTROL;
    runnable(component, kind)?;
    if is_control_lora(component) {
        let found = "it holds a control LoRA, which is a ControlNet only beside its UNet".to_owned();
        let hint = Some("use the file as it is: give it with --control beside Stable Diffusion XL".to_owned());
        return Err(Error::NotAModel { path: component.origin.clone(), found, hint });
    }
    // As with a UNet, of diffusers' layouts only the published one can be told.
    let unet = alias::UnetLayout { layers: vec![2; unet::MOST_LEVELS] };
    let hints = 2 * UnetControlConfig::default().conditioning_embedding_out_channels.len();
    let layout = alias::UnetControlLayout { unet, hints };
    let published = |name: &str| alias::unet_control(&layout, name);
    let config = match &component.config {
        Some(Text { text, origin }) => {
            let config = UnetControlConfig::from_json(text, origin, shapes(component, &published));
            read_off(config, component, &published)?
        }
        None => {
            let aliases = published;
            let config = UnetControlConfig::from_shapes(shapes(component, &aliases), &component.origin);
            let config = read_off(config, component, &aliases)?;
            beside.map_or(config.clone(), |beside| config.like(beside))
        }
    };
    let unet = alias::UnetLayout { layers: config.net.layers_by_level() };
    let layout = alias::UnetControlLayout { unet, hints: 2 * config.conditioning_embedding_out_channels.len() };
    let net = UnetControl::new(&config)?;
    let part = Part::new(net, component, kind, move |name: &str| alias::unet_control(&layout, name), &config)?;
    let part = part.without_strays(component)?;
    let derived = UnetControlConfig::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok(part.compared(derived))
}

/// Whether `component` is a control LoRA, which is a ControlNet beside a UNet alone.
pub fn is_control_lora(component: &Component) -> bool {
    let Component { index, prefix, .. } = component;
    [prefix.as_str(), ""].iter().any(|prefix| {
        let name = format!("{prefix}{CONTROL_MARK}");
        // The mark is a tensor without numbers in the published files.
        index.has(&name) || index.other(&name).is_some()
    })
}

/// The IP-Adapter of Stable Diffusion in `component`.
///
/// # Errors
/// As [`flux()`](super::flux()).
pub fn unet_ip(component: &Component) -> Result<Part<UnetIp>> {
    runnable(component, &alias::UNET_IP)?;
    let config = UnetIpConfig::from_shapes(shapes(component, &alias::unet_ip), &component.origin);
    let config = read_off(config, component, &alias::unet_ip)?;
    Part::new(UnetIp::new(&config)?, component, &alias::UNET_IP, alias::unet_ip, &config)
}

/// What makes tokens for `adapter`, with its weights.
///
/// # Errors
/// What declaring a network returns.
pub fn unet_ip_projector(adapter: &Part<UnetIp>) -> Result<Part<UnetIpProjector>> {
    let net = UnetIpProjector::new(adapter.net.config())?;
    let bound = Bound::joined(net.model.manifest(), &[("", adapter.net.model().manifest(), &adapter.bound)])?;
    Ok(adapter.beside(net, bound, alias::unet_ip))
}

/// The T2I-Adapter in `component`.
///
/// # Errors
/// As [`flux()`](super::flux()).
pub fn t2i_adapter(component: &Component) -> Result<Part<T2iAdapter>> {
    let kind = &alias::T2I_ADAPTER;
    runnable(component, kind)?;
    let own = component.index.names().filter_map(|name| name.strip_prefix(component.prefix.as_str()));
    let numbered = |blocks| alias::T2iNumbers::of(own.clone(), blocks);
    let config = match &component.config {
        Some(Text { text, origin }) => adapter::Config::from_json(text, origin)?,
        None => {
            // TencentARC's names depend on how many blocks there are: as published.
            let numbers = numbered(adapter::Config::default().num_res_blocks);
            let aliases = |name: &str| alias::t2i_adapter(numbers, name);
            let config = adapter::Config::from_shapes(shapes(component, &aliases), &component.origin);
            read_off(config, component, &aliases)?
        }
    };
    let numbers = numbered(config.num_res_blocks);
    let net = T2iAdapter::new(&config)?;
    let part = Part::new(net, component, kind, move |name: &str| alias::t2i_adapter(numbers, name), &config)?;
    let derived = adapter::Config::from_shapes(|name| part.shape(name), Path::new("")).ok();
    Ok(part.compared(derived))
}

/// What runs beside a UNet and follows a picture.
pub enum Side {
    /// A ControlNet.
    Net(Part<UnetControl>),
    /// One that shares weights with the UNet, and has changes of them.
    Lora(Part<UnetControl>, LowRank),
    /// A T2I-Adapter.
    Adapter(Part<T2iAdapter>),
}

impl Side {
    /// What it is.
    pub fn config(&self) -> SideConfig {
        match self {
            Side::Net(net) | Side::Lora(net, _) => SideConfig::Net(Box::new(net.net.config().clone())),
            Side::Adapter(adapter) => SideConfig::Adapter(adapter.net.config().clone()),
        }
    }

    /// Where its weights are.
    pub fn bound(&self) -> &Bound {
        match self {
            Side::Net(net) | Side::Lora(net, _) => &net.bound,
            Side::Adapter(adapter) => &adapter.bound,
        }
    }

    fn model(&self) -> &Model {
        match self {
            Side::Net(net) | Side::Lora(net, _) => net.net.model(),
            Side::Adapter(adapter) => adapter.net.model(),
        }
    }
}

/// `unet` with `sides` beside it, and with the IP-Adapter `ip`, in one model.
///
/// # Errors
/// [`Error::Mismatch`] for one that does not fit the UNet.
pub fn unet_with(unet: Part<Unet>, sides: &[Side], ip: Option<&Part<UnetIp>>) -> Result<Part<Unet>> {
    if sides.is_empty() && ip.is_none() {
        return Ok(unet);
    }
    if let Some(ip) = ip {
        ip.net.config().fit(ip.bound.origin(), unet.net.config())?;
    }
    let mut configs = Vec::with_capacity(sides.len());
    for side in sides {
        let config = side.config();
        match &config {
            SideConfig::Net(config) => unet::fit_control(unet.net.config(), config, side.bound().origin())?,
            SideConfig::Adapter(config) => unet::fit_adapter(unet.net.config(), config, side.bound().origin())?,
        }
        configs.push(config);
    }
    let net = Unet::with(unet.net.config(), &configs, ip.map(|ip| ip.net.config()))?;
    let prefixes: Vec<String> = (0..sides.len()).map(UnetControl::prefix).collect();
    let mut parts = vec![("", unet.net.model().manifest(), &unet.bound)];
    for (prefix, side) in prefixes.iter().zip(sides) {
        parts.push((prefix, side.model().manifest(), side.bound()));
    }
    if let Some(ip) = ip {
        parts.push(("", ip.net.model().manifest(), &ip.bound));
    }
    let bound = Bound::joined(net.model.manifest(), &parts)?;
    let mut unet = unet.with_network(net, bound);
    for (prefix, side) in prefixes.iter().zip(sides) {
        if let Side::Lora(_, changes) = side {
            changes.attach(prefix, &mut unet.target())?;
        }
    }
    Ok(unet)
}
