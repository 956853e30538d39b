//! FLUX.3's sizes.

use std::path::Path;

use pinhole_quant::DType;
use serde_json::json;

use super::{Architecture, Blueprint, Options, Planned, Published, flux2};
use crate::Result;
use crate::bind::alias;
use crate::models::autoencoder_kl::{self, Decoder, Encoder};
use crate::models::flux::flux3::{self, Flux3};
use crate::models::language_model::{self, LanguageModel, QWEN3_VL, Taps};
use crate::source::HasModel;
use crate::source::slot::{TEXT_ENCODER, TRANSFORMER, VAE};

static KLEIN: Published = Published {
    name: "flux3-klein",
    denoiser: &TRANSFORMER,
    source: DType::BF16,
    blueprint: |options| {
        blueprint(options, flux3::Config::klein(), json!({ "num_inference_steps": 16, "guidance_scale": 1.0 }))
    },
};
static KLEIN_BASE: Published = Published {
    name: "flux3-klein-base",
    denoiser: &TRANSFORMER,
    source: DType::BF16,
    blueprint: |options| {
        blueprint(options, flux3::Config::default(), json!({ "num_inference_steps": 50, "guidance_scale": 4.0 }))
    },
};

impl Architecture {
    /// FLUX.3 Image klein.
    pub const FLUX3_KLEIN: Architecture = Architecture(&KLEIN);
    /// FLUX.3 Image klein base.
    pub const FLUX3_KLEIN_BASE: Architecture = Architecture(&KLEIN_BASE);
}

fn blueprint(options: &Options, published: flux3::Config, defaults: serde_json::Value) -> Result<Blueprint> {
    let config = match options.blocks {
        Some(blocks) => flux3::Config { num_layers: blocks, num_single_layers: blocks, ..published },
        None => published,
    };
    let reader = language_model::Config::qwen3_4b().of_family(QWEN3_VL);
    let taps = Taps { after: (1..=8).map(|i| 4 * i).collect(), normalised: false };
    let vae = flux2::vae();
    let vae_config = autoencoder_kl::Config::from_json(&vae.to_string(), Path::new(VAE.name))?;
    let settings = serde_json::to_value(&config).unwrap_or_default();
    let reader_settings = serde_json::to_value(&reader).unwrap_or_default();
    let language_model: Vec<Box<dyn HasModel>> = vec![Box::new(LanguageModel::new(&reader, &taps)?)];
    Ok(Blueprint {
        family: "flux3",
        parts: vec![
            Planned::new(&TRANSFORMER, &alias::FLUX3, settings, vec![Box::new(Flux3::new(&config)?)]),
            Planned::new(&TEXT_ENCODER, &alias::LANGUAGE_MODEL, reader_settings, language_model),
            Planned::new(
                &VAE,
                &alias::AUTOENCODER_KL,
                vae,
                vec![Box::new(Decoder::new(&vae_config)?), Box::new(Encoder::new(&vae_config)?)],
            ),
        ],
        scheduler: None,
        defaults,
        alone: false,
    })
}
