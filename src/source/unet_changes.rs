//! Loaders of what goes beside a UNet and has low-rank changes of its weights: control LoRAs, and IP-Adapters that read faces.

use super::networks::{self, read_off, shapes};
use super::{Component, Part, packing};
use crate::bind::Bound;
use crate::bind::alias;
use crate::bind::lora::{LowRank, Spelling};
use crate::models::unet::control::{Config as ControlConfig, ControlNet};
use crate::models::unet::{IpAdapter, Unet, ip_attentions};
use crate::{Error, Result};

/// The ControlNet that the control LoRA in `component` makes of `unet`, and its changes of that.
///
/// # Errors
/// As [`networks::unet_control`].
pub fn unet_control_lora(component: &Component, unet: &Part<Unet>) -> Result<(Part<ControlNet>, LowRank)> {
    let (kind, beside, origin) = (&alias::UNET_CONTROL, unet.net.config(), &component.origin);
    packing::refuse(component)?;
    if beside.in_channels != beside.out_channels {
        let found = format!("one that takes {} channels", beside.in_channels);
        let error = Error::mismatch(origin, "UNet", "one that takes nothing beside latents, for a control LoRA", found);
        return Err(error.with_hint("take a ControlNet that has all its weights"));
    }
    let unet_layout = alias::UnetLayout { layers: beside.layers_by_level() };
    let hints = 2 * ControlConfig::default().conditioning_embedding_out_channels.len();
    let layout = alias::UnetControlLayout { unet: unet_layout, hints };
    let aliases = move |name: &str| alias::unet_control(&layout, name);
    let config = ControlConfig::over(beside, shapes(component, &aliases), origin);
    let config = read_off(config, component, &aliases)?;
    let net = ControlNet::new(&config)?;
    let (manifest, file) = (net.model.manifest(), (&*component.index, component.prefix.as_str()));
    let names = |name: &str| {
        let all = aliases(name).into_iter().flatten();
        let stems = all.filter_map(|part| part.name.strip_suffix(".weight").map(str::to_owned));
        stems.map(|stem| Spelling::CONTROL.map(|end| format!("{stem}{end}"))).collect()
    };
    let hint = "this control LoRA was trained for another model";
    let low_rank = LowRank::find(manifest, file, &Spelling { names: &names, ends: Spelling::CONTROL, hint }, origin)?;
    let base = Some((unet.net.model.manifest(), &unet.bound));
    let bound = Bound::over(manifest, file, &aliases, origin, base)?;
    Ok((Part::bound((net, bound), component, kind, aliases, &config), low_rank))
}

/// What the IP-Adapter in `component` changes in the attentions of `unet`: one for faces does.
///
/// # Errors
/// As [`LowRank::find`].
pub fn unet_ip_changes(component: &Component, unet: &Part<Unet>) -> Result<LowRank> {
    const ENDS: [&str; 2] = ["_lora.down.weight", "_lora.up.weight"];
    let numbers = ip_attentions(unet.net.config());
    let names = |name: &str| {
        let found = alias::ip_matrix(name).and_then(|(attention, of)| Some((numbers.get(attention)?, of)));
        let stem = found.map(|(number, of)| format!("ip_adapter.{number}.to_{of}"));
        stem.into_iter().map(|stem| ENDS.map(|end| format!("{stem}{end}"))).collect()
    };
    let Component { index, prefix, origin, .. } = component;
    let spelling = Spelling { names: &names, ends: ENDS, hint: "the IP-Adapter is of another model" };
    LowRank::find(unet.net.model.manifest(), (index, prefix), &spelling, origin)
}

/// The IP-Adapter of Stable Diffusion in `component` by itself, as it is converted.
///
/// # Errors
/// As [`networks::unet_ip`]; [`Error::NotAModel`] for one that changes the UNet, which is in no file of its own.
pub fn unet_ip_alone(component: &Component) -> Result<Part<IpAdapter>> {
    let Component { index, origin, .. } = component;
    if index.names().any(|name| name.contains("_lora.down.")) {
        let found = "it holds an IP-Adapter with low-rank changes of its UNet".to_owned();
        let hint = Some("use the file as it is: give it with --ip-adapter, and a face with --id-embedding".to_owned());
        return Err(Error::NotAModel { path: origin.clone(), found, hint });
    }
    networks::unet_ip(component)
}
