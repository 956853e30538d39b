//! What canonical names are called in the files that people have: the only alias table.
//!
//! One file per model family; each gives, for a canonical name, the alternatives in which a file may hold that weight.

mod autoencoder_kl;
mod autoencoder_tiny;
mod autoencoder_wan;
mod clip;
mod flux;
mod flux2;
mod flux3;
mod flux_control;
mod flux_ip;
mod kind;
mod language_model;
mod names;
mod qwen_control;
mod qwen_image;
mod qwen_image_21;
mod qwen_vl;
mod redux;
mod resampler;
mod safety_checker;
mod t2i_adapter;
mod t5;
mod unet;
mod unet_control;
mod unet_ip;
mod upscaler;
mod vision;
mod wan;
mod z_image;
mod z_image_control;

pub use autoencoder_kl::{KIND as AUTOENCODER_KL, aliases as autoencoder_kl, levels as autoencoder_levels};
pub use autoencoder_tiny::{KIND as AUTOENCODER_TINY, aliases as autoencoder_tiny};
pub use autoencoder_wan::{KIND as AUTOENCODER_WAN, aliases as autoencoder_wan, blocks as autoencoder_wan_blocks};
pub use clip::{KIND as CLIP, aliases as clip, is_open_clip};
pub use flux::{KIND as FLUX, aliases as flux};
pub use flux_control::{KIND as FLUX_CONTROL, aliases as flux_control};
pub use flux_ip::{KIND as FLUX_IP, aliases as flux_ip};
pub use flux2::{KIND as FLUX2, aliases as flux2};
pub use flux3::{KIND as FLUX3, aliases as flux3};
pub use kind::{Follows, Kind, Reads, Sign};
pub use language_model::{KIND as LANGUAGE_MODEL, aliases as language_model};
pub use names::{Aliases, Alternative, Part, Rows, stacked};
pub use qwen_control::{KIND as QWEN_CONTROL, aliases as qwen_control};
pub use qwen_image::{KIND as QWEN_IMAGE, aliases as qwen_image};
pub use qwen_image_21::{KIND as QWEN_IMAGE_21, aliases as qwen_image_21};
pub use qwen_vl::{
    KIND as QWEN_VL_VISION, QWEN3 as QWEN3_VL_VISION, aliases as qwen_vl, aliases_of_qwen3 as qwen3_vl,
    deepstack as qwen3_vl_deepstack,
};
pub use redux::{KIND as REDUX, aliases as redux};
pub use resampler::{KIND as RESAMPLER, aliases as resampler};
pub use safety_checker::{KIND as SAFETY_CHECKER, TOWER as SAFETY_TOWER, aliases as safety_checker};
pub use t2i_adapter::{KIND as T2I_ADAPTER, Numbers as T2iNumbers, aliases as t2i_adapter};
pub use t5::{KIND as T5, UMT5, aliases as t5};
pub use unet::{KIND as UNET, Layout as UnetLayout, aliases as unet};
pub use unet_control::{KIND as UNET_CONTROL, Layout as UnetControlLayout, aliases as unet_control};
pub use unet_ip::{KIND as UNET_IP, aliases as unet_ip, matrix as ip_matrix};
pub use upscaler::{KIND as UPSCALER, Layout as UpscalerLayout, aliases as upscaler};
pub use vision::{CLIP as CLIP_VISION, SIGLIP as SIGLIP_VISION, aliases as vision};
pub use wan::{KIND as WAN, aliases as wan};
pub use z_image::{KIND as Z_IMAGE, aliases as z_image};
pub use z_image_control::{KIND as Z_IMAGE_CONTROL, aliases as z_image_control};

/// Every kind of network that pinhole runs.
pub static KINDS: &[&Kind] = &[
    &QWEN_CONTROL,
    &FLUX_CONTROL,
    &FLUX2,
    &FLUX3,
    &FLUX,
    &UNET_CONTROL,
    &UNET,
    &Z_IMAGE_CONTROL,
    &Z_IMAGE,
    &QWEN_IMAGE,
    &QWEN_IMAGE_21,
    &WAN,
    &CLIP,
    &UMT5,
    &T5,
    &LANGUAGE_MODEL,
    &AUTOENCODER_WAN,
    &AUTOENCODER_KL,
    &SAFETY_CHECKER,
    &CLIP_VISION,
    &SIGLIP_VISION,
    &QWEN3_VL_VISION,
    &QWEN_VL_VISION,
    &REDUX,
    &FLUX_IP,
    &UNET_IP,
    &T2I_ADAPTER,
    &RESAMPLER,
    &AUTOENCODER_TINY,
    &UPSCALER,
];

/// Kinds of networks that have the signs of another, each with that one, and with what stands before its names in the first: a file with
/// the first does not have the second.
pub static PASS_FOR: &[(&Kind, &Kind, &str)] = &[
    (&UMT5, &T5, ""),
    (&FLUX_CONTROL, &FLUX, ""),
    (&QWEN_CONTROL, &FLUX_CONTROL, ""),
    (&QWEN_CONTROL, &QWEN_IMAGE, ""),
    (&AUTOENCODER_WAN, &AUTOENCODER_KL, ""),
    (&FLUX2, &FLUX, ""),
    (&UNET_CONTROL, &UNET, ""),
    (&FLUX_IP, &UNET_IP, ""),
    (&QWEN3_VL_VISION, &QWEN_VL_VISION, ""),
    (&SAFETY_CHECKER, &CLIP_VISION, ""),
    (&SAFETY_CHECKER, &CLIP_VISION, SAFETY_TOWER),
];
