//! Models that pinhole does not run: how files show that they are of one, and what to take instead.

use std::path::Path;

use super::Component;
use crate::bind::alias::{
    AUTOENCODER_KL, AUTOENCODER_TINY, CLIP, FLUX, FLUX_CONTROL, Kind, QWEN_IMAGE, UNET, UNET_IP, WAN, Z_IMAGE,
};
use crate::index::Index;
use crate::{Error, Result};

/// A network that pinhole does not run.
pub(super) struct Stranger {
    /// The kind of network whose signs it has as well.
    like: Option<&'static Kind>,
    /// Whether its own signs say what it is without those of that kind.
    pub(super) alone: bool,
    /// How names of its tensors go on behind a prefix, one for each naming.
    pub(super) signs: &'static [&'static str],
    /// What it is.
    pub(super) what: &'static str,
    /// What to take instead; `None` for one that is not mistaken for a model.
    pub(super) instead: Option<&'static str>,
}

const fn like(
    kind: &'static Kind,
    signs: &'static [&'static str],
    what: &'static str,
    instead: &'static str,
) -> Stranger {
    Stranger { like: Some(kind), alone: false, signs, what, instead: Some(instead) }
}

const fn relative(
    kind: &'static Kind,
    signs: &'static [&'static str],
    what: &'static str,
    instead: &'static str,
) -> Stranger {
    Stranger { alone: true, ..like(kind, signs, what, instead) }
}

const fn other(signs: &'static [&'static str], what: &'static str, instead: &'static str) -> Stranger {
    Stranger { like: None, alone: true, signs, what, instead: Some(instead) }
}

const fn beside(signs: &'static [&'static str], what: &'static str) -> Stranger {
    Stranger { like: None, alone: true, signs, what, instead: None }
}

const FLUX_1: &str = "take FLUX.1-dev or FLUX.1-schnell";
const SD_1: &str = "take Stable Diffusion 1 or XL";
const RUNS: &str = "this version runs FLUX.1-dev, FLUX.1-schnell, FLUX.2, FLUX.3, Stable Diffusion 1, 2 and XL, Z-Image, Qwen-Image, and Wan";
const WAN_RUNS: &str = "take Wan 2.1 or 2.2: T2V, I2V, FLF2V, TI2V, VACE or Fun Control";
const ALONE: &str = "it goes beside a model, and this version runs none: take the model alone";

/// From the files that people exchange. Of each network the first sign that is found decides; those that have signs of others come
/// before them.
pub(super) static STRANGERS: &[Stranger] = &[
    relative(&FLUX, &["double_stream_modulation_img."], "FLUX.2 transformer", "it goes with FLUX.2's other files"),
    relative(
        &FLUX,
        &["double_blocks.0.img_mlp.gate_proj.", "context_embedder_norm."],
        "Ovis-Image transformer",
        FLUX_1,
    ),
    relative(&FLUX, &["nerf_image_embedder."], "Chroma Radiance transformer", FLUX_1),
    relative(&FLUX, &["distilled_guidance_layer."], "Chroma transformer", FLUX_1),
    relative(
        &FLUX,
        &["double_blocks.0.img_attn_q", "context_embedder.token_refiner."],
        "HunyuanVideo transformer",
        RUNS,
    ),
    relative(
        &FLUX_CONTROL,
        &["input_cond_block."],
        "MistoLine's ControlNet of FLUX.1",
        "take one of InstantX, Shakker, alimama or XLabs",
    ),
    relative(
        &FLUX,
        &["controlnet_x_embedder.", "controlnet_blocks.0.", "pos_embed_input."],
        "ControlNet of FLUX.1",
        "it goes beside FLUX.1: give it with --control",
    ),
    like(
        &QWEN_IMAGE,
        &["controlnet_x_embedder.", "controlnet_blocks.0."],
        "ControlNet of Qwen-Image",
        "it goes beside Qwen-Image: give it with --control",
    ),
    like(
        &UNET,
        &["input_hint_block.0.", "zero_convs.0.", "controlnet_cond_embedding.", "controlnet_down_blocks.0."],
        "ControlNet of Stable Diffusion",
        "it goes beside Stable Diffusion: give it with --control",
    ),
    other(&["lllite_unet_input_blocks_"], "ControlNet-LLLite of Stable Diffusion XL", "take a ControlNet"),
    like(
        &UNET,
        &["input_blocks.1.0.time_stack.", "down_blocks.0.resnets.0.temporal_res_block."],
        "Stable Video Diffusion UNet",
        SD_1,
    ),
    like(&UNET, &["down_blocks.0.motion_modules.0."], "AnimateDiff UNet", SD_1),
    like(
        &AUTOENCODER_KL,
        &["decoder.time_conv_out.", "decoder.up.0.block.0.time_stack."],
        "video autoencoder",
        "take one of pictures",
    ),
    like(&AUTOENCODER_KL, &["quantize.embedding."], "vector-quantized autoencoder", "take a KL autoencoder"),
    like(&CLIP, &["text_model.head."], "SigLIP text encoder", "take CLIP-L: clip_l.safetensors"),
    like(&QWEN_IMAGE, &["time_text_embed.addition_t_embedding."], "Qwen-Image-Layered transformer", "take Qwen-Image"),
    like(
        &Z_IMAGE,
        &["control_all_x_embedder.", "control_layers.0.", "control_noise_refiner.0."],
        "ControlNet of Z-Image",
        "it goes beside Z-Image: give it with --control",
    ),
    relative(&Z_IMAGE, &["siglip_embedder."], "Z-Image Omni transformer", "take Z-Image or Z-Image-Turbo"),
    other(&["cap_embedder.0."], "Lumina transformer", RUNS),
    other(&["joint_blocks.0."], "Stable Diffusion 3 transformer", RUNS),
    other(&["transformer_blocks.0.ff_context."], "MMDiT transformer, diffusers names", RUNS),
    like(&WAN, &["casual_audio_encoder.", "audio_proj."], "Wan transformer that follows sound", WAN_RUNS),
    like(&WAN, &["face_adapter.", "motion_encoder.", "pose_patch_embedding."], "Wan Animate transformer", WAN_RUNS),
    like(&WAN, &["control_adapter."], "Wan Fun Camera Control transformer", WAN_RUNS),
    other(&["blocks.0.cross_attn.k.weight"], "Wan transformer", RUNS),
    other(&["llm_adapter.blocks.0."], "Anima transformer", RUNS),
    other(&["txtfusion.projector."], "Krea 2 transformer", RUNS),
    other(&["adaln_single.emb.timestep_embedder."], "PixArt or LTX transformer", RUNS),
    other(&["double_stream_blocks.0."], "HiDream transformer", RUNS),
    other(&["double_layers.0."], "AuraFlow transformer", RUNS),
    other(
        &["transformer.resblocks.0.attn.in_proj_weight"],
        "CLIP text encoder, OpenCLIP names",
        "take it with the names of transformers",
    ),
    like(
        &AUTOENCODER_TINY,
        &[
            "decoder.layers.2.pool.",
            "decoder.layers.3.pool.",
            "decoder.layers.4.pool.",
            "3.pool.",
            "4.pool.",
            "5.pool.",
        ],
        "tiny autoencoder of FLUX.2",
        "take FLUX.1's: taef1_decoder.safetensors",
    ),
    other(
        &["11.conv.0."],
        "the encoder of a tiny autoencoder alone",
        "give its decoder: of taesd_decoder.safetensors, taesd_encoder.safetensors beside it is taken, too",
    ),
    like(
        &UNET_IP,
        &["image_proj.perceiver_resampler."],
        "IP-Adapter of Stable Diffusion for faces that reads pictures of them, too (FaceID Plus)",
        "take ip-adapter-faceid without plus",
    ),
    like(
        &UNET_IP,
        &["image_proj.proj.3."],
        "IP-Adapter of Stable Diffusion for whole faces (full face)",
        "take ip-adapter-plus-face",
    ),
    other(&["pulid_ca.0.", "id_adapter_attn_layers.0."], "PuLID adapter", ALONE),
    beside(&["token_embd.weight"], "language model, llama.cpp names"),
    beside(&["lora_A.", "lora_down."], "LoRA"),
];

impl Stranger {
    /// Whether a tensor `name` is its sign, whatever stands before.
    pub(super) fn is_shown_by(&self, name: &str) -> bool {
        self.signs.iter().any(|sign| name.match_indices(sign).any(|(at, _)| at == 0 || name[..at].ends_with('.')))
    }

    /// Whether a tensor `name` is its sign behind `prefix`.
    fn is_behind(&self, prefix: &str, name: &str) -> bool {
        name.strip_prefix(prefix).is_some_and(|own| self.signs.iter().any(|sign| own.starts_with(sign)))
    }

    /// Whether it is in the place of a network of `kind`, whose signs it has.
    pub(super) fn passes_for(&self, kind: &Kind) -> bool {
        self.like.is_some_and(|like| like == kind)
    }
}

/// What to do with the networks in `index`, by the first sign of a stranger.
pub(super) fn instead(index: &Index) -> Option<&'static str> {
    let shown = STRANGERS.iter().filter(|stranger| index.names().any(|name| stranger.is_shown_by(name)));
    shown.into_iter().find_map(|stranger| stranger.instead)
}

/// Refuses a `component` that has the signs of `kind` and is something else.
///
/// # Errors
/// [`Error::NotAModel`] saying what it is.
pub(super) fn refuse(component: &Component, kind: &Kind) -> Result<()> {
    let Component { index, prefix, origin, .. } = component;
    for stranger in STRANGERS.iter().filter(|stranger| stranger.passes_for(kind)) {
        if index.names().any(|name| stranger.is_behind(prefix, name)) {
            return Err(refusal(origin, stranger.what, stranger.instead.unwrap_or(RUNS)));
        }
    }
    Ok(())
}

/// Refuses the denoiser at `origin` if it takes more channels than it gives: pictures beside the latents.
///
/// # Errors
/// [`Error::NotAModel`] saying what it is.
pub(super) fn refuse_pictures_beside(origin: &Path, taken: usize, given: usize) -> Result<()> {
    let (what, instead) = match (taken, given) {
        (196, 64) => ("Flex.2 transformer, which takes a control picture and a mask beside the latents", FLUX_1),
        (5, 4) => ("UNet that takes a map of depth beside the latents", "take a model of 4 channels"),
        _ => return Ok(()),
    };
    Err(refusal(origin, what, instead))
}

pub(super) fn refusal(path: &Path, what: &str, instead: &str) -> Error {
    let found = format!("it holds {what}, which this version does not run");
    Error::NotAModel { path: path.to_owned(), found, hint: Some(instead.to_owned()) }
}

/// The class of a pipeline that pinhole does not run, what it is, and what to take instead.
type Pipeline = (&'static str, &'static str, &'static str);

const PIPELINES: &[Pipeline] = &[
    (
        "FluxControlNetPipeline",
        "FLUX.1 with a ControlNet",
        "take the model alone, and its controlnet folder with --control",
    ),
    ("FluxPriorReduxPipeline", "FLUX.1 Redux", "give it with --redux, beside FLUX.1-dev"),
    ("ChromaPipeline", "Chroma", FLUX_1),
    (
        "Flux2KleinKVPipeline",
        "FLUX.2 klein KV, which remembers its references",
        "take FLUX.2 klein 4B or 9B without KV in its name",
    ),
    ("OvisImagePipeline", "Ovis-Image", FLUX_1),
    (
        "ZImageControlNetPipeline",
        "Z-Image with a ControlNet",
        "take the model alone, and its controlnet folder with --control",
    ),
    (
        "ZImageControlNetInpaintPipeline",
        "Z-Image with a ControlNet",
        "take the model alone, and its controlnet folder with --control",
    ),
    ("ZImageOmniPipeline", "Z-Image Omni", "take Z-Image or Z-Image-Turbo"),
    (
        "QwenImageControlNetPipeline",
        "Qwen-Image with a ControlNet",
        "take the model alone, and its controlnet folder with --control",
    ),
    (
        "QwenImageControlNetInpaintPipeline",
        "Qwen-Image with a ControlNet",
        "take the model alone, and its controlnet folder with --control",
    ),
    ("QwenImageLayeredPipeline", "Qwen-Image-Layered", "take Qwen-Image"),
    (
        "StableDiffusionControlNetPipeline",
        "Stable Diffusion with a ControlNet",
        "take the model alone, and its controlnet folder with --control",
    ),
    (
        "StableDiffusionXLControlNetPipeline",
        "Stable Diffusion XL with a ControlNet",
        "take the model alone, and its controlnet folder with --control",
    ),
];

/// What the pipeline `class` of diffusers is, and what to take instead.
pub fn pipeline(class: &str) -> Option<(&'static str, &'static str)> {
    PIPELINES.iter().find(|(name, ..)| *name == class).map(|(_, what, instead)| (*what, *instead))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn signs_stand_behind_a_prefix() {
        let shown = |name: &str| {
            let found = STRANGERS.iter().filter(|stranger| stranger.is_shown_by(name));
            found.map(|stranger| stranger.what).collect::<Vec<_>>()
        };
        assert_eq!(shown("model.diffusion_model.distilled_guidance_layer.in_proj.weight"), ["Chroma transformer"]);
        assert_eq!(shown("undistilled_guidance_layer.in_proj.weight"), [""; 0]);
        assert_eq!(shown("double_blocks.0.img_attn.qkv.weight"), [""; 0]);
    }

    #[test]
    fn transformers_that_take_pictures_are_named() {
        let error = refuse_pictures_beside(Path::new("f"), 5, 4).unwrap_err();
        assert!(error.to_string().contains("a map of depth") && error.hint().unwrap().contains("4 channels"));
        assert!(refuse_pictures_beside(Path::new("f"), 64, 64).is_ok());
    }
}
