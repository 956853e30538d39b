//! Qwen-Image's sizes, and those of 2.1.

use pinhole_quant::DType;
use serde_json::{Value, json};

use super::{Architecture, Blueprint, Options, Planned, Published};
use crate::Result;
use crate::bind::alias;
use crate::models::autoencoder_wan::{self, Decoder, Encoder};
use crate::models::language_model::{self, LanguageModel, Taps};
use crate::models::qwen_image::single::{self, SingleStream};
use crate::models::qwen_image::{self, ControlConfig, ControlNet, QwenImage};
use crate::source::slot::{CONTROLNET, TEXT_ENCODER, TRANSFORMER, VAE};

static QWEN_IMAGE: Published = Published { name: "qwen-image", denoiser: &TRANSFORMER, source: DType::BF16, blueprint };

static QWEN_IMAGE_21: Published =
    Published { name: "qwen-image-2.1", denoiser: &TRANSFORMER, source: DType::BF16, blueprint: single_stream };

static CONTROL: Published =
    Published { name: "qwen-image-controlnet", denoiser: &CONTROLNET, source: DType::BF16, blueprint: control };

impl Architecture {
    /// InstantX's union ControlNet of Qwen-Image, a file of its own.
    pub const QWEN_IMAGE_CONTROL: Architecture = Architecture(&CONTROL);
    /// Qwen-Image.
    pub const QWEN_IMAGE: Architecture = Architecture(&QWEN_IMAGE);
    /// Qwen-Image 2.1.
    pub const QWEN_IMAGE_21: Architecture = Architecture(&QWEN_IMAGE_21);
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

fn single_stream(options: &Options) -> Result<Blueprint> {
    let published = single::Config::default();
    let config = match options.blocks {
        Some(blocks) => single::Config { num_layers: blocks, ..published },
        None => published,
    };
    let reader = language_model::Config::qwen3_vl_8b();
    let taps = Taps::after(reader.num_hidden_layers);
    let vae = autoencoder_wan::Config::of_qwen_image_21();
    let settings = serde_json::to_value(&config).unwrap_or_default();
    let reader_settings = serde_json::to_value(&reader).unwrap_or_default();
    let vae_settings = serde_json::to_value(&vae).unwrap_or_default();
    let language_model: Vec<Box<dyn crate::source::HasModel>> = vec![Box::new(LanguageModel::new(&reader, &taps)?)];
    let vae: Vec<Box<dyn crate::source::HasModel>> = vec![Box::new(Decoder::new(&vae)?), Box::new(Encoder::new(&vae)?)];
    Ok(Blueprint {
        family: "qwen_image_21",
        parts: vec![
            Planned::new(&TRANSFORMER, &alias::QWEN_IMAGE_21, settings, vec![Box::new(SingleStream::new(&config)?)]),
            Planned::new(&TEXT_ENCODER, &alias::LANGUAGE_MODEL, reader_settings, language_model),
            Planned::new(&VAE, &alias::AUTOENCODER_WAN, vae_settings, vae),
        ],
        scheduler: None,
        defaults: json!({ "num_inference_steps": 40, "true_cfg_scale": 1.0 }),
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
