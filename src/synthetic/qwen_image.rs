//! Qwen-Image's sizes.

use pinhole_quant::DType;
use serde_json::{Value, json};

use super::{Architecture, Blueprint, Options, Planned, Published};
use crate::Result;
use crate::bind::alias;
use crate::models::autoencoder_wan::{self, Decoder, Encoder};
use crate::models::language_model::{self, LanguageModel, Taps};
use crate::models::qwen_image::{self, ControlConfig, ControlNet, QwenImage};
use crate::source::slot::{CONTROLNET, TEXT_ENCODER, TRANSFORMER, VAE};

static QWEN_IMAGE: Published = Published { name: "qwen-image", denoiser: &TRANSFORMER, source: DType::BF16, blueprint };

static CONTROL: Published =
    Published { name: "qwen-image-controlnet", denoiser: &CONTROLNET, source: DType::BF16, blueprint: control };

impl Architecture {
    /// InstantX's union ControlNet of Qwen-Image, a file of its own.
    pub const QWEN_IMAGE_CONTROL: Architecture = Architecture(&CONTROL);
    /// Qwen-Image.
    pub const QWEN_IMAGE: Architecture = Architecture(&QWEN_IMAGE);
}

fn blueprint(options: &Options) -> Result<Blueprint> {
    let published = qwen_image::Config::default();
    let config = match options.blocks {
        Some(blocks) => qwen_image::Config { num_layers: blocks, ..published },
        None => published,
    };
    let reader = language_model::Config::qwen2_5_vl_7b();
    let taps = Taps { after: vec![reader.num_hidden_layers], normalised: true };
    let vae = autoencoder_wan::Config::default();
    let settings = serde_json::to_value(&config).unwrap_or_default();
    let reader_settings = serde_json::to_value(&reader).unwrap_or_default();
    let vae_settings = serde_json::to_value(&vae).unwrap_or_default();
    let vae: Vec<Box<dyn crate::source::HasModel>> = vec![Box::new(Decoder::new(&vae)?), Box::new(Encoder::new(&vae)?)];
    Ok(Blueprint {
        family: "qwen_image",
        parts: vec![
            Planned::new(&TRANSFORMER, &alias::QWEN_IMAGE, settings, vec![Box::new(QwenImage::new(&config)?)]),
            Planned::new(
                &TEXT_ENCODER,
                &alias::LANGUAGE_MODEL,
                reader_settings,
                vec![Box::new(LanguageModel::new(&reader, &taps)?)],
            ),
            Planned::new(&VAE, &alias::AUTOENCODER_WAN, vae_settings, vae),
        ],
        scheduler: None,
        defaults: json!({ "num_inference_steps": 50, "true_cfg_scale": 4.0, "negative_prompt": " " }),
        alone: false,
    })
}

/// Five blocks, or as many as asked for.
fn control(options: &Options) -> Result<Blueprint> {
    let net = qwen_image::Config { num_layers: options.blocks.unwrap_or(5), ..qwen_image::Config::default() };
    let config = ControlConfig { net, ..ControlConfig::default() };
    let settings = serde_json::to_value(&config).unwrap_or_default();
    let network = ControlNet::new(&config)?;
    let part = Planned::new(&CONTROLNET, &alias::QWEN_CONTROL, settings, vec![Box::new(network)]);
    Ok(Blueprint { family: "qwen_image", parts: vec![part], scheduler: None, defaults: Value::Null, alone: true })
}
