//! FLUX.1's sizes.

use std::path::Path;

use pinhole_quant::DType;
use serde_json::{Value, json};

use super::{Architecture, Blueprint, Options, Planned, Published, clip};
use crate::Result;
use crate::bind::alias;
use crate::models::autoencoder_kl::{self, Decoder, Encoder};
use crate::models::clip::{self, Clip};
use crate::models::flux::{self, ControlNet, Flux};
use crate::models::t5::{self, T5};
use crate::source::slot::{CONTROLNET, TEXT_ENCODER, TEXT_ENCODER_2, TRANSFORMER, VAE};

static DEV: Published = Published {
    name: "flux-dev",
    denoiser: &TRANSFORMER,
    source: DType::BF16,
    blueprint: |options| blueprint(options, flux::Config::dev(), 512),
};
/// FLUX.1-dev's transformer, with the latents of what a mask leaves, and the mask, beside its own.
static FILL: Published = Published {
    name: "flux-fill",
    denoiser: &TRANSFORMER,
    source: DType::BF16,
    blueprint: |options| blueprint(options, wider(384), 512),
};
/// FLUX.1-dev's transformer, with the latents of a picture that is followed beside its own: Canny and Depth.
static CANNY: Published = Published {
    name: "flux-canny",
    denoiser: &TRANSFORMER,
    source: DType::BF16,
    blueprint: |options| blueprint(options, wider(128), 512),
};
static SCHNELL: Published = Published {
    name: "flux-schnell",
    denoiser: &TRANSFORMER,
    source: DType::BF16,
    blueprint: |options| blueprint(options, flux::Config::schnell(), 256),
};

static UNION: Published =
    Published { name: "flux-controlnet-union", denoiser: &CONTROLNET, source: DType::BF16, blueprint: union };

impl Architecture {
    /// Shakker's and InstantX's union ControlNet of FLUX.1-dev, a file of its own.
    pub const FLUX_CONTROLNET_UNION: Architecture = Architecture(&UNION);
    /// FLUX.1-dev.
    pub const FLUX_DEV: Architecture = Architecture(&DEV);
    /// FLUX.1 Fill.
    pub const FLUX_FILL: Architecture = Architecture(&FILL);
    /// FLUX.1 Canny, and FLUX.1 Depth.
    pub const FLUX_CANNY: Architecture = Architecture(&CANNY);
    /// FLUX.1-schnell.
    pub const FLUX_SCHNELL: Architecture = Architecture(&SCHNELL);
}

/// FLUX.1-dev's, with `in_channels` in place of 64.
fn wider(in_channels: usize) -> flux::Config {
    let dev = flux::Config::dev();
    flux::Config { in_channels, out_channels: Some(dev.in_channels), ..dev }
}

fn blueprint(options: &Options, published: flux::Config, tokens: usize) -> Result<Blueprint> {
    let config = match options.blocks {
        Some(blocks) => flux::Config { num_layers: blocks, num_single_layers: blocks, ..published },
        None => published,
    };
    let defaults = match config.guidance_embeds {
        true => json!({ "num_inference_steps": 50, "guidance_scale": 3.5, "max_sequence_length": tokens }),
        false => json!({ "num_inference_steps": 4, "max_sequence_length": tokens }),
    };
    let (clip, t5, vae) = (clip(), t5(), vae());
    let clip_config = clip::Config::from_json(&clip.to_string(), Path::new(TEXT_ENCODER.name))?;
    let t5_config = t5::Config::from_json(&t5.to_string(), Path::new(TEXT_ENCODER_2.name))?;
    let vae_config = autoencoder_kl::Config::from_json(&vae.to_string(), Path::new(VAE.name))?;
    let settings = serde_json::to_value(&config).unwrap_or_default();
    Ok(Blueprint {
        family: "flux",
        parts: vec![
            Planned::new(&TRANSFORMER, &alias::FLUX, settings, vec![Box::new(Flux::new(&config)?)]),
            Planned::new(&TEXT_ENCODER, &alias::CLIP, clip, vec![Box::new(Clip::new(&clip_config)?)]),
            Planned::new(&TEXT_ENCODER_2, &alias::T5, t5, vec![Box::new(T5::new(&t5_config)?)]),
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

/// Five double and ten single blocks, or as many of each as asked for, and ten kinds of pictures.
fn union(options: &Options) -> Result<Blueprint> {
    let [num_layers, num_single_layers] = options.blocks.map_or([5, 10], |blocks| [blocks; 2]);
    let net = flux::Config { num_layers, num_single_layers, ..flux::Config::dev() };
    let config = flux::ControlConfig { net, num_mode: Some(10), ..flux::ControlConfig::default() };
    let settings = serde_json::to_value(&config).unwrap_or_default();
    let network = ControlNet::new(&config)?;
    let part = Planned::new(&CONTROLNET, &alias::FLUX_CONTROL, settings, vec![Box::new(network)]);
    Ok(Blueprint { family: "flux", parts: vec![part], scheduler: None, defaults: Value::Null, alone: true })
}

/// T5 v1.1 XXL's encoder.
fn t5() -> Value {
    json!({
        "model_type": "t5", "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24,
        "num_heads": 64, "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6, "feed_forward_proj": "gated-gelu",
    })
}

/// FLUX.1's autoencoder.
pub(super) fn vae() -> Value {
    json!({
        "in_channels": 3, "out_channels": 3, "latent_channels": 16, "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2, "norm_num_groups": 32, "mid_block_add_attention": true, "use_quant_conv": false,
        "use_post_quant_conv": false, "scaling_factor": 0.3611, "shift_factor": 0.1159,
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
    })
}
