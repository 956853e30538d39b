//! Whether what goes beside a UNet is of the same model, and where it adds what it makes.

use std::path::Path;

use super::adapter::{Config as AdapterConfig, Feature};
use super::config::Config;
use super::control::Config as ControlConfig;
use super::layout::{Kind, Layer, layers};
use crate::models::config as settings;
use crate::{Error, Result};

/// The positions of the layers on the way down behind which T2I-Adapters add a feature, one for each level: the last transformer, or,
/// without transformers, what the next level takes.
pub(super) fn adapted(config: &Config, layers: &[Layer]) -> Vec<usize> {
    let mut targets = Vec::new();
    for level in 0..config.levels() {
        targets.extend(layers.iter().rposition(|layer| {
            let is_down = layer.name.starts_with("input_blocks.");
            match layer.kind {
                Kind::Transformer { .. } => is_down && layer.level == level,
                _ if config.attends_down(level) => false,
                Kind::Downsample { .. } => layer.level == level + 1,
                _ => is_down && layer.level == level,
            }
        }));
    }
    targets
}

/// The maps that T2I-Adapters add features to: of each level, and of the middle.
fn adapted_maps(config: &Config) -> Vec<Feature> {
    let mut layers = layers(config);
    layers.retain(|layer| !layer.is_up());
    let mut targets = adapted(config, &layers);
    targets.extend(layers.len().checked_sub(1).filter(|_| config.mid_block_type.is_some()));
    targets.into_iter().map(|i| Feature { level: layers[i].level, channels: layers[i].channels() }).collect()
}

/// Refuses a ControlNet of another model than `unet`, which `control` describes and `origin` holds.
///
/// # Errors
/// [`Error::Mismatch`] for the first setting that differs.
pub fn fit_control(unet: &Config, control: &ControlConfig, origin: &Path) -> Result<()> {
    let net = &control.net;
    let added = [unet, net].map(|of| of.added_width().map_or("none".to_owned(), |width| width.to_string()));
    let attends = net.depth_of_middle().is_some() || (0..net.levels()).any(|level| net.attends_down(level));
    let contexts = [unet, net].map(|of| of.cross_attention_dim.to_string());
    let compared = [
        ("block_out_channels", [unet, net].map(|of| format!("{:?}", of.block_out_channels))),
        ("layers_per_block", [unet, net].map(|of| format!("{:?}", of.layers_by_level()))),
        ("cross_attention_dim", if attends { contexts } else { Default::default() }),
        ("projection_class_embeddings_input_dim", added),
        ("addition_time_embed_dim", [unet, net].map(|of| format!("{:?}", of.addition_time_embed_dim))),
        ("in_channels", [unet.out_channels, net.in_channels].map(|channels| channels.to_string())),
    ];
    for (key, [expected, found]) in compared {
        if expected != found {
            let error = Error::mismatch(origin, key, format!("{expected}, as the UNet has"), found);
            return Err(error.with_hint("this ControlNet was trained for another model"));
        }
    }
    settings::require(
        origin,
        "mid_block_type",
        unet.mid_block_type.is_some(),
        || "none, since the UNet has no middle".into(),
        "one",
    )
}

/// Refuses a T2I-Adapter of another model than `unet`, which `adapter` describes and `origin` holds.
///
/// # Errors
/// [`Error::Mismatch`] for the first feature that fits nothing.
pub fn fit_adapter(unet: &Config, adapter: &AdapterConfig, origin: &Path) -> Result<()> {
    let said = |Feature { level, channels }| format!("{channels} channels at level {level}");
    let maps = adapted_maps(unet);
    for (i, feature) in adapter.features().into_iter().enumerate().take(unet.levels()) {
        let Some(&map) = maps.get(i).filter(|map| **map != feature) else { continue };
        let (expected, found) = (format!("{}, as the UNet has", said(map)), said(feature));
        let error = Error::mismatch(origin, format!("feature {i}"), expected, found);
        return Err(error.with_hint("this T2I-Adapter was trained for another model"));
    }
    Ok(())
}
