//! Loaders: from a component on disk to a network with its weights found. Reads headers and configurations, no weights.

mod autoencoders;
mod flux;
mod qwen_image;
mod reading;
mod text;
mod unet;
mod vision;
mod wan;
mod z_image;

use super::HasModel;
use crate::models::autoencoder_kl::{Decoder, Encoder};
use crate::models::autoencoder_tiny::{TinyDecoder, TinyEncoder};
use crate::models::autoencoder_wan;
use crate::models::clip::Clip;
use crate::models::flux::flux2::Flux2;
use crate::models::flux::flux3::Flux3;
use crate::models::flux::redux::Redux;
use crate::models::flux::{ControlNet, Flux, IpAdapter};
use crate::models::language_model::LanguageModel;
use crate::models::qwen_image::single::SingleStream;
use crate::models::qwen_image::{ControlNet as QwenControl, QwenImage};
use crate::models::qwen_vl::{VisionTower, qwen3};
use crate::models::resampler::Resampler;
use crate::models::safety_checker::SafetyChecker;
use crate::models::t5::T5;
use crate::models::unet::adapter::T2iAdapter;
use crate::models::unet::control::ControlNet as UnetControl;
use crate::models::unet::{IpAdapter as UnetIp, Projector as UnetIpProjector, Unet};
use crate::models::upscaler::Upscaler;
use crate::models::vision::Vision;
use crate::models::wan::Wan;
use crate::models::z_image::{ControlNet as ZImageControl, ZImage};
use crate::stage::Model;

pub(super) use reading::{read_off, shapes};

pub use autoencoders::{
    AutoencoderCausal, AutoencoderKl, AutoencoderTiny, Film, autoencoder_causal, autoencoder_causal_of_films,
    autoencoder_kl, autoencoder_kl_of, autoencoder_tiny,
};
pub use flux::{flux, flux_control, flux_ip, flux_reading, flux_with, flux2, flux3, redux, resampler};
pub use qwen_image::{qwen_control, qwen_image, qwen_image_21, qwen_image_of_zero, qwen_image_with, qwen_vl, qwen3_vl};
pub use text::{clip, clip_with, language_model, language_model_beside, t5, umt5};
pub use unet::{Side, is_control_lora, t2i_adapter, unet, unet_control, unet_ip, unet_ip_projector, unet_with};
pub use vision::{safety_checker, upscaler, vision, whole_vision};
pub use wan::wan;
pub use z_image::{z_image, z_image_control, z_image_with};

macro_rules! has_model {
    ($($net:ty),*) => {
        $(impl HasModel for $net {
            fn model(&self) -> &Model {
                &self.model
            }

            fn model_mut(&mut self) -> &mut Model {
                &mut self.model
            }
        })*
    };
}
has_model!(
    Flux,
    Flux2,
    Flux3,
    ControlNet,
    UnetControl,
    UnetIp,
    UnetIpProjector,
    T2iAdapter,
    Unet,
    ZImage,
    ZImageControl,
    QwenImage,
    SingleStream,
    Wan,
    QwenControl,
    VisionTower,
    qwen3::VisionTower,
    Clip,
    T5,
    LanguageModel,
    Decoder,
    Encoder,
    autoencoder_wan::Decoder,
    autoencoder_wan::Encoder,
    autoencoder_wan::FilmDecoder,
    autoencoder_wan::FilmEncoder,
    autoencoder_wan::Whole,
    Vision,
    Redux,
    IpAdapter,
    Resampler,
    TinyDecoder,
    TinyEncoder,
    SafetyChecker,
    Upscaler
);
