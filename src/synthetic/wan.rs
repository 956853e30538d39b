//! Wan's sizes.

use pinhole_quant::DType;
use serde_json::json;

use super::{Architecture, Blueprint, Options, Planned, Published};
use crate::Result;
use crate::bind::alias;
use crate::models::autoencoder_wan::{self, Whole};
use crate::models::t5::{self, T5};
use crate::models::wan::{self, Wan};
use crate::source::HasModel;
use crate::source::slot::{TEXT_ENCODER, TRANSFORMER, TRANSFORMER_2, VAE};

/// As published.
const SOURCE: DType = DType::BF16;

static OF_1_3B: Published = Published {
    name: "wan-1.3b",
    denoiser: &TRANSFORMER,
    source: SOURCE,
    blueprint: |options| blueprint(options, wan::Config::of_1_3b(), false),
};
static OF_14B: Published = Published {
    name: "wan-14b",
    denoiser: &TRANSFORMER,
    source: SOURCE,
    blueprint: |options| blueprint(options, wan::Config::default(), false),
};
static OF_A14B: Published = Published {
    name: "wan-a14b",
    denoiser: &TRANSFORMER,
    source: SOURCE,
    blueprint: |options| blueprint(options, wan::Config::default(), true),
};
static OF_TI2V_5B: Published = Published {
    name: "wan-ti2v-5b",
    denoiser: &TRANSFORMER,
    source: SOURCE,
    blueprint: |options| blueprint(options, wan::Config::of_ti2v_5b(), false),
};

static OF_FUN_A14B: Published = Published {
    name: "wan-fun-a14b-control",
    denoiser: &TRANSFORMER,
    source: SOURCE,
    blueprint: |options| {
        let config = wan::Config { in_channels: 52, add_ref_conv: true, ..wan::Config::default() };
        blueprint(options, config, true)
    },
};

impl Architecture {
    /// Wan 2.2 Fun A14B Control: both experts.
    pub const WAN_FUN_A14B_CONTROL: Architecture = Architecture(&OF_FUN_A14B);
    /// Wan 2.1 T2V 1.3B.
    pub const WAN_1_3B: Architecture = Architecture(&OF_1_3B);
    /// Wan 2.1 T2V 14B.
    pub const WAN_14B: Architecture = Architecture(&OF_14B);
    /// Wan 2.2 T2V A14B: both experts.
    pub const WAN_A14B: Architecture = Architecture(&OF_A14B);
    /// Wan 2.2 TI2V 5B.
    pub const WAN_TI2V_5B: Architecture = Architecture(&OF_TI2V_5B);
}

/// umt5-xxl.
fn reader() -> t5::Config {
    t5::Config {
        model_type: "umt5".into(),
        vocab_size: 256_384,
        d_model: 4096,
        d_ff: 10240,
        num_layers: 24,
        num_heads: 64,
        feed_forward_proj: t5::FeedForwardProj::GatedGelu,
        ..t5::Config::default()
    }
}

fn blueprint(options: &Options, published: wan::Config, is_pair: bool) -> Result<Blueprint> {
    let config = match options.blocks {
        Some(blocks) => wan::Config { num_layers: blocks, ..published },
        None => published,
    };
    let (reader, published) = (reader(), autoencoder_wan::Config::default());
    let vae = match config.latent_channels() == published.z_dim {
        true => published,
        false => autoencoder_wan::Config::of_ti2v_5b(),
    };
    let settings = serde_json::to_value(&config).unwrap_or_default();
    let reader_settings = serde_json::to_value(&reader).unwrap_or_default();
    let vae_settings = serde_json::to_value(&vae).unwrap_or_default();
    let mut parts = Vec::new();
    for slot in [&TRANSFORMER, &TRANSFORMER_2].into_iter().take(1 + usize::from(is_pair)) {
        let part = Planned::new(slot, &alias::WAN, settings.clone(), vec![Box::new(Wan::new(&config)?)]);
        parts.push(Planned { aliases: alias::wan, ..part });
    }
    let text_encoder: Vec<Box<dyn HasModel>> = vec![Box::new(T5::new(&reader)?)];
    parts.push(Planned::new(&TEXT_ENCODER, &alias::UMT5, reader_settings, text_encoder));
    let autoencoder: Vec<Box<dyn HasModel>> = vec![Box::new(Whole::decoder(&vae)?), Box::new(Whole::encoder(&vae)?)];
    parts.push(Planned::new(&VAE, &alias::AUTOENCODER_WAN, vae_settings, autoencoder));
    Ok(Blueprint { family: "wan", parts, scheduler: None, defaults: json!({}), alone: false })
}
