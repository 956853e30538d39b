//! Stable Diffusion 1.5's sizes.

use std::path::Path;

use pinhole_quant::DType;
use serde_json::{Value, json};

use super::{Architecture, Blueprint, Options, Planned, Published, clip};
use crate::bind::alias;
use crate::models::autoencoder_kl::{self, Decoder, Encoder};
use crate::models::clip::{self, Clip};
use crate::models::unet::{self, Unet};
use crate::source::slot::{TEXT_ENCODER, UNET, VAE};
use crate::{Error, Result};

static SD15: Published = Published { name: "sd1.5", denoiser: &UNET, source: DType::F16, blueprint };

impl Architecture {
    /// Stable Diffusion 1.5.
    pub const SD15: Architecture = Architecture(&SD15);
}

fn blueprint(options: &Options) -> Result<Blueprint> {
    if options.blocks.is_some() {
        let error = Error::option("--blocks", "a model that is a row of equal blocks", SD15.name);
        return Err(error.with_hint("a UNet has levels, and no number of blocks"));
    }
    let config = unet::Config::sd1();
    let (clip, vae) = (clip(), vae());
    let clip_config = clip::Config::from_json(&clip.to_string(), Path::new(TEXT_ENCODER.name))?;
    let vae_config = autoencoder_kl::Config::from_json(&vae.to_string(), Path::new(VAE.name))?;
    let settings = serde_json::to_value(&config).unwrap_or_default();
    Ok(Blueprint {
        family: "sd1",
        parts: vec![
            Planned::new(&UNET, &alias::UNET, settings, vec![Box::new(Unet::new(&config)?)]),
            Planned::new(&TEXT_ENCODER, &alias::CLIP, clip, vec![Box::new(Clip::new(&clip_config)?)]),
            Planned::new(
                &VAE,
                &alias::AUTOENCODER_KL,
                vae,
                vec![Box::new(Decoder::new(&vae_config)?), Box::new(Encoder::new(&vae_config)?)],
            ),
        ],
        scheduler: None,
        defaults: json!({ "num_inference_steps": 50, "guidance_scale": 7.5 }),
    })
}

/// Stable Diffusion 1's autoencoder.
fn vae() -> Value {
    json!({
        "in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2, "norm_num_groups": 32, "scaling_factor": 0.18215,
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
    })
}
