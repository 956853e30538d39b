//! Loaders of what goes beside a UNet and has low-rank changes of its weights: control LoRAs.

use super::networks::{read_off, shapes};
use super::{Component, Part, packing};
use crate::bind::Bound;
use crate::bind::alias;
use crate::bind::lora::{LowRank, Spelling};
use crate::models::unet::control::{Config as ControlConfig, ControlNet};
use crate::models::unet::Unet;
use crate::{Error, Result};

/// The ControlNet that the control LoRA in `component` makes of `unet`, and its changes of that.
///
/// # Errors
/// As [`unet_control`](super::networks::unet_control).
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
