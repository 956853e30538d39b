//! Z-Image's sizes.

use std::path::Path;

use pinhole_quant::DType;
use serde_json::{Value, json};

use super::flux::vae;
use super::{Architecture, Blueprint, Options, Planned, Published};
use crate::Result;
use crate::bind::alias;
use crate::models::autoencoder_kl::{self, Decoder, Encoder};
use crate::models::language_model::{self, LanguageModel, Taps};
use crate::models::z_image::{self, ControlConfig, ControlNet, ZImage};
use crate::source::slot::{CONTROLNET, TEXT_ENCODER, TRANSFORMER, VAE};

static Z_IMAGE: Published = Published { name: "z-image", denoiser: &TRANSFORMER, source: DType::BF16, blueprint };

static CONTROL: Published =
    Published { name: "z-image-controlnet", denoiser: &CONTROLNET, source: DType::BF16, blueprint: control };

impl Architecture {
    /// The union ControlNet of Z-Image-Turbo, 2.1, a file of its own.
    pub const Z_IMAGE_CONTROL: Architecture = Architecture(&CONTROL);
    /// Z-Image-Turbo.
    pub const Z_IMAGE: Architecture = Architecture(&Z_IMAGE);
}

fn blueprint(options: &Options) -> Result<Blueprint> {
    let published = z_image::Config::default();
    let config = match options.blocks {
        Some(blocks) => z_image::Config { n_layers: blocks, ..published },
        None => published,
    };
    let reader = language_model::Config::qwen3_4b();
    let taps = Taps::after(reader.num_hidden_layers - 1);
    let vae = vae();
    let vae_config = autoencoder_kl::Config::from_json(&vae.to_string(), Path::new(VAE.name))?;
    let settings = serde_json::to_value(&config).unwrap_or_default();
    let reader_settings = serde_json::to_value(&reader).unwrap_or_default();
    let language_model: Vec<Box<dyn crate::source::HasModel>> = vec![Box::new(LanguageModel::new(&reader, &taps)?)];
    Ok(Blueprint {
        family: "z_image",
        parts: vec![
            Planned::new(&TRANSFORMER, &alias::Z_IMAGE, settings, vec![Box::new(ZImage::new(&config)?)]),
            Planned::new(&TEXT_ENCODER, &alias::LANGUAGE_MODEL, reader_settings, language_model),
            Planned::new(
                &VAE,
                &alias::AUTOENCODER_KL,
                vae,
                vec![Box::new(Decoder::new(&vae_config)?), Box::new(Encoder::new(&vae_config)?)],
            ),
        ],
        scheduler: None,
        defaults: json!({ "num_inference_steps": 8, "guidance_scale": 0.0 }),
        alone: false,
    })
}

/// Fifteen layers, or as many as asked for, behind every second of the model's, and two refiners.
fn control(options: &Options) -> Result<Blueprint> {
    let mut config = ControlConfig::default();
    config.control_layers_places.truncate(options.blocks.unwrap_or(usize::MAX));
    let settings = serde_json::to_value(&config).unwrap_or_default();
    let network = ControlNet::new(&config)?;
    let part = Planned::new(&CONTROLNET, &alias::Z_IMAGE_CONTROL, settings, vec![Box::new(network)]);
    Ok(Blueprint { family: "z_image", parts: vec![part], scheduler: None, defaults: Value::Null, alone: true })
}
