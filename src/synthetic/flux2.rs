//! FLUX.2's sizes.

use std::path::Path;

use pinhole_quant::DType;
use serde_json::{Value, json};

use super::{Architecture, Blueprint, Options, Planned, Published};
use crate::Result;
use crate::bind::alias;
use crate::models::autoencoder_kl::{self, Decoder, Encoder};
use crate::models::flux::flux2::{self, Flux2};
use crate::models::language_model::{self, LanguageModel, Taps};
use crate::source::HasModel;
use crate::source::slot::{TEXT_ENCODER, TRANSFORMER, VAE};

static KLEIN_4B: Published = Published {
    name: "flux2-klein-4b",
    denoiser: &TRANSFORMER,
    source: DType::BF16,
    blueprint: |options| blueprint(options, flux2::Config::klein_4b(), &language_model::Config::qwen3_4b()),
};
static KLEIN_9B: Published = Published {
    name: "flux2-klein-9b",
    denoiser: &TRANSFORMER,
    source: DType::BF16,
    blueprint: |options| blueprint(options, flux2::Config::klein_9b(), &language_model::Config::qwen3_8b()),
};

impl Architecture {
    /// FLUX.2 klein 4B.
    pub const FLUX2_KLEIN_4B: Architecture = Architecture(&KLEIN_4B);
    /// FLUX.2 klein 9B.
    pub const FLUX2_KLEIN_9B: Architecture = Architecture(&KLEIN_9B);
}

fn blueprint(options: &Options, published: flux2::Config, reader: &language_model::Config) -> Result<Blueprint> {
    let config = match options.blocks {
        Some(blocks) => flux2::Config { num_layers: blocks, num_single_layers: blocks, ..published },
        None => published,
    };
    let taps = Taps { after: vec![9, 18, 27], normalised: false };
    let vae = vae();
    let vae_config = autoencoder_kl::Config::from_json(&vae.to_string(), Path::new(VAE.name))?;
    let settings = serde_json::to_value(&config).unwrap_or_default();
    let reader_settings = serde_json::to_value(reader).unwrap_or_default();
    let language_model: Vec<Box<dyn HasModel>> = vec![Box::new(LanguageModel::new(reader, &taps)?)];
    Ok(Blueprint {
        family: "flux2",
        parts: vec![
            Planned::new(&TRANSFORMER, &alias::FLUX2, settings, vec![Box::new(Flux2::new(&config)?)]),
            Planned::new(&TEXT_ENCODER, &alias::LANGUAGE_MODEL, reader_settings, language_model),
            Planned::new(
                &VAE,
                &alias::AUTOENCODER_KL,
                vae,
                vec![Box::new(Decoder::new(&vae_config)?), Box::new(Encoder::new(&vae_config)?)],
            ),
        ],
        scheduler: None,
        defaults: json!({ "num_inference_steps": 4, "guidance_scale": 1.0 }),
        alone: false,
    })
}

/// The autoencoder of FLUX.2, and of FLUX.3.
pub(super) fn vae() -> Value {
    json!({
        "in_channels": 3, "out_channels": 3, "latent_channels": 32, "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2, "norm_num_groups": 32, "mid_block_add_attention": true, "use_quant_conv": true,
        "use_post_quant_conv": true, "batch_norm_eps": 1e-4, "patch_size": [2, 2],
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
    })
}
