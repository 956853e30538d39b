//! The sizes of Stable Diffusion 1.5 and XL.

use std::path::Path;

use pinhole_quant::DType;
use serde_json::{Value, json};

use super::{Architecture, Blueprint, Options, Planned, Published, clip};
use crate::bind::alias;
use crate::models::autoencoder_kl::{self, Decoder, Encoder};
use crate::models::clip::{self, Clip, Output};
use crate::models::unet::control::{self, ControlNet};
use crate::models::unet::{self, Unet};
use crate::source::slot::{CONTROLNET, TEXT_ENCODER, TEXT_ENCODER_2, UNET, VAE};
use crate::{Error, Result};

static SD15: Published = Published { name: "sd1.5", denoiser: &UNET, source: DType::F16, blueprint };

static SDXL: Published = Published { name: "sdxl", denoiser: &UNET, source: DType::F16, blueprint: xl };

static SD15_CONTROL: Published = Published {
    name: "sd1.5-controlnet",
    denoiser: &CONTROLNET,
    source: DType::F16,
    blueprint: |options| control(options, &SD15_CONTROL, "sd1", unet::Config::sd1()),
};

static SDXL_CONTROL: Published = Published {
    name: "sdxl-controlnet",
    denoiser: &CONTROLNET,
    source: DType::F16,
    blueprint: |options| control(options, &SDXL_CONTROL, "sdxl", unet::Config::sdxl()),
};

impl Architecture {
    /// A ControlNet of Stable Diffusion 1.5, a file of its own.
    pub const SD15_CONTROL: Architecture = Architecture(&SD15_CONTROL);
    /// A ControlNet of Stable Diffusion XL, a file of its own.
    pub const SDXL_CONTROL: Architecture = Architecture(&SDXL_CONTROL);
    /// Stable Diffusion 1.5.
    pub const SD15: Architecture = Architecture(&SD15);
    /// Stable Diffusion XL.
    pub const SDXL: Architecture = Architecture(&SDXL);
}

fn xl(options: &Options) -> Result<Blueprint> {
    whole(options, &SDXL)?;
    let config = unet::Config::sdxl();
    let (clip, clip_2, vae) = (clip(), open_clip(), vae(0.13025));
    let clip_config = clip::Config::from_json(&clip.to_string(), Path::new(TEXT_ENCODER.name))?;
    let clip_2_config = clip::Config::from_json(&clip_2.to_string(), Path::new(TEXT_ENCODER_2.name))?;
    let vae_config = autoencoder_kl::Config::from_json(&vae.to_string(), Path::new(VAE.name))?;
    let settings = serde_json::to_value(&config).unwrap_or_default();
    let clip_2_net = Clip::with(&clip_2_config, Output::SECOND_LAST_PROJECTED)?;
    Ok(Blueprint {
        family: "sdxl",
        parts: vec![
            Planned::new(&UNET, &alias::UNET, settings, vec![Box::new(Unet::new(&config)?)]),
            Planned::new(&TEXT_ENCODER, &alias::CLIP, clip, vec![Box::new(Clip::new(&clip_config)?)]),
            Planned::new(&TEXT_ENCODER_2, &alias::CLIP, clip_2, vec![Box::new(clip_2_net)]),
            Planned::new(
                &VAE,
                &alias::AUTOENCODER_KL,
                vae,
                vec![Box::new(Decoder::new(&vae_config)?), Box::new(Encoder::new(&vae_config)?)],
            ),
        ],
        scheduler: None,
        defaults: json!({ "num_inference_steps": 50, "guidance_scale": 5.0, "width": 1024, "height": 1024 }),
        alone: false,
    })
}

/// A ControlNet beside a UNet that `net` describes.
fn control(options: &Options, published: &Published, family: &'static str, net: unet::Config) -> Result<Blueprint> {
    whole(options, published)?;
    let config = control::Config::of(net);
    let settings = serde_json::to_value(&config).unwrap_or_default();
    let network = ControlNet::new(&config)?;
    let part = Planned::new(&CONTROLNET, &alias::UNET_CONTROL, settings, vec![Box::new(network)]);
    Ok(Blueprint { family, parts: vec![part], scheduler: None, defaults: Value::Null, alone: true })
}

/// OpenCLIP ViT-bigG's text encoder.
fn open_clip() -> Value {
    json!({
        "vocab_size": 49408, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
        "num_attention_heads": 20, "max_position_embeddings": 77, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
        "eos_token_id": 2, "projection_dim": 1280,
    })
}

/// Refuses a number of blocks.
fn whole(options: &Options, published: &Published) -> Result<()> {
    if options.blocks.is_none() {
        return Ok(());
    }
    let error = Error::option("--blocks", "a model that is a row of equal blocks", published.name);
    Err(error.with_hint("a UNet has levels, and no number of blocks"))
}

fn blueprint(options: &Options) -> Result<Blueprint> {
    whole(options, &SD15)?;
    let config = unet::Config::sd1();
    let (clip, vae) = (clip(), vae(0.18215));
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
        alone: false,
    })
}

/// The autoencoder of both, whose latents are multiplied by `scale`.
fn vae(scale: f64) -> Value {
    json!({
        "in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2, "norm_num_groups": 32, "scaling_factor": scale,
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
    })
}
