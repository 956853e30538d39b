//! From a request to pictures: one pipeline for all families.
//!
//! A [`Family`] says what its models are on disk and opens them: [`Opened`] has the three parts that differ between families
//! ([`Encoders`], [`Denoiser`], [`Autoencoder`]), a schedule, and [`Rules`] for requests. Everything else is here, once: defaults
//! and checks, the plan, remembered prompts, the denoising loop, previews. Encoders, denoiser and autoencoder take their turns
//! on the device; the memory of a phase is given back before the next begins.

mod causal;
mod choices;
mod controls;
mod denoise;
mod digest;
mod embed;
mod embeddings;
mod encoders;

mod face;
mod fit;
mod flux;
mod flux2;
mod flux3;
mod flux_controls;
mod flux_image_prompts;
mod followed;
mod generate;
mod generated;
mod guide;
mod kl;
mod language_model;
mod machine;
mod measured;
mod memory;
mod opened;
mod origins;
mod padded;
mod parameters;
mod preview;
mod private_folder;
mod progress;
mod prompt_cache;
mod prompts;
mod qwen_image;
mod qwen_image_21;
mod qwen_image_21_pictures;
mod qwen_image_edit;
mod qwen_image_eyes;
mod registry;
mod request;
mod rules;
mod run;
mod safety;
mod sd;
mod sd_image_prompts;
mod sdxl;
mod second_pass;
mod seen;
mod settings;
mod skipping;
mod spread;
mod start;

mod step_cache;
mod stretch;
mod textual_inversion;
mod towers;
mod unet_denoiser;
mod upscale;
mod vae;
mod values;
mod wan;
mod wan_caches;
mod wan_pictures;
mod z_image;
mod z_image_control;

pub use crate::ggml::AttentionMode;
pub use crate::plan::Phase;
pub use crate::source::model_name;
pub use crate::text::PromptSyntax;
pub use choices::{Posterior, Preprocess, ReferenceResize, SafetyMode, TinyUse};
pub use face::{Face, read_id_embedding};
pub use flux_image_prompts::{BESIDE, PRIOR};
pub use generate::Pipeline;
pub use generated::{DeviceMemory, Generated, PhaseMemory, Timings, published_extents};
pub use opened::{
    Additions, Autoencoder, Denoiser, Direction, Encoders, Family, FrameSink, Given, ImagePrompts, Opened, Reader,
    StepPorts, once,
};
pub use origins::{Origin, named_parts, origins};
pub use parameters::{
    CacheReport, Computed, ControlParameters, LoraFile, Made, Parameters, PictureTexts, UpscaleParameters,
    WeightedPicture, WordFile,
};
pub use progress::{Event, Observer};
pub use prompts::{ArraySpec, Embeddings, Prompt};
pub use registry::{Alone, FAMILIES, alone, component, denoiser, family_of, open, open_with};
pub use request::{Control, ControlSettings, Experts, JoinedSettings, MemoryOptions, OpenedWith, Request, Settings};
pub use rules::{ControlRules, Cropped, Defaults, FirstFrame, Frames, References, Rules, Starts, Takes, Use};
pub use run::{Run, Running};
pub use safety::Safety;
pub use seen::Seen;
pub use settings::settings;
pub use step_cache::{Cache, CacheKind, CacheRequest, Caches, Rescaling, skipped, skipped_in_words};
pub use stretch::{Pass, Upscale, UpscaleSpace};
pub use textual_inversion::{Words, is_textual_inversion, own_word};
pub use upscale::{UpscaleModel, Upscaled, Upscaler};
