//! Qwen-Image's sizes.

use pinhole_quant::DType;
use serde_json::json;

use super::{Architecture, Blueprint, Options, Planned, Published};
use crate::Result;
use crate::bind::alias;
use crate::models::autoencoder_wan::{self, Decoder, Encoder};
use crate::models::language_model::{self, LanguageModel, Taps};
use crate::models::qwen_image::{self, QwenImage};
use crate::source::slot::{TEXT_ENCODER, TRANSFORMER, VAE};

static QWEN_IMAGE: Published = Published { name: "qwen-image", denoiser: &TRANSFORMER, source: DType::BF16, blueprint };

impl Architecture {
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
