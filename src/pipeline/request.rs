//! What is asked for.

mod settings;

pub(super) use settings::CONTROL_NETS;
pub use settings::{ControlSettings, Experts, JoinedSettings, OpenedWith, Settings};

use std::sync::Arc;

use super::choices::{Posterior, Preprocess, ReferenceResize, SafetyMode, TinyUse};
use super::prompts::Embeddings;
use super::step_cache::CacheRequest;
use super::stretch::Upscale;
use crate::ggml::AttentionMode;
use crate::image::Picture;
use crate::plan::Offload;
use crate::sample::{Sampler, Sampling, Schedule};
use crate::text::PromptSyntax;
use crate::video::Clip;

/// What to draw. Everything except the prompt may be left to the model's defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// What to draw. May be empty.
    pub prompt: String,
    /// What not to draw; has an effect with a `cfg_scale` above 1.
    pub negative_prompt: Option<String>,
    /// Pixels across, a multiple of what the model's [`Rules`](super::Rules) say.
    pub width: Option<usize>,
    /// Pixels down, a multiple of what the model's [`Rules`](super::Rules) say.
    pub height: Option<usize>,
    /// Denoising steps.
    pub steps: Option<usize>,
    /// Of the noise; picture `i` of a batch uses `seed + i`.
    pub seed: u64,
    /// Guidance as an input, for models that take it.
    pub guidance: Option<f32>,
    /// Classifier-free guidance: 1 is off, and half the time.
    pub cfg_scale: Option<f32>,
    /// How steps are taken; `None` is as the model was published.
    pub sampler: Option<Sampler>,
    /// Which levels of noise are visited; `None` is as the model was published.
    pub schedule: Option<Schedule>,
    /// The levels of noise themselves, one for each step, the largest first. A last one of 0 may be left out.
    pub sigmas: Option<Vec<f32>>,
    /// The share of fresh noise in each step, for DDIM and TCD: 0 to 1.
    pub eta: Option<f32>,
    /// How a flow is bent towards noise, whatever the size of the picture; `None` is as the model was published. LoRAs for few steps
    /// name one.
    pub shift: Option<f32>,
    /// How much of the conditional prediction's spread the guided one is given back, 0 to 1, with a `cfg_scale` above 1.
    pub rescale_cfg: Option<f32>,
    /// A picture to begin with, or to be changed by a model that was trained for that.
    pub image: Option<Arc<Picture>>,
    /// Which part of the picture is painted anew: white.
    pub mask: Option<Arc<Picture>>,
    /// How far from the picture the result may be, in 0..=1: the share of the steps that are taken.
    pub strength: Option<f32>,
    /// Which latents of its distribution the picture has.
    pub posterior: Posterior,
    /// A picture to be followed, for models that take one: edges, a map of depth.
    pub control_image: Option<Arc<Picture>>,
    /// What is made of that picture first.
    pub control_preprocess: Preprocess,
    /// How closely the result follows the picture that is changed, for models that were trained for that: 1 is off.
    pub image_cfg_scale: Option<f32>,
    /// Pictures that the model looks at, as it does at the prompt: one that it changes, or takes something from.
    pub references: Vec<Arc<Picture>>,
    /// What size these have.
    pub reference_resize: ReferenceResize,
    /// For models that are told: pixels across and down of the picture that this one is like a resized copy of. As many as are drawn by
    /// default.
    pub original_size: Option<[usize; 2]>,
    /// For models that are told: how many pixels that copy was cut off on the left and at the top.
    pub crop: Option<[usize; 2]>,
    /// Tokens of the prompt that the text encoder reads.
    pub max_sequence_length: Option<usize>,
    /// How many pictures; 1 by default.
    pub batch: usize,
    /// Instead of noise drawn from the seed: `[w/8, h/8, F, C, batch]`.
    pub noise: Option<Vec<f32>>,
    /// Instead of encoding the prompts.
    pub embeddings: Option<Arc<Embeddings>>,
    /// [`Event::Preview`](super::Event::Preview) after every so many steps.
    pub preview: Option<usize>,
    /// Stop at the latents of the last step: nothing is decoded, and no decoder is planned. Not beside a second pass.
    pub latents_only: bool,
    /// Pictures that take part in the prompt, for a model that was opened with Redux, each with its weight.
    pub redux: Vec<(Arc<Picture>, f32)>,
    /// With such pictures: whether zeros stand for the prompt, which is not read, as in diffusers without text encoders.
    pub without_prompt: bool,
    /// Pictures that the model looks at in its blocks, if it was opened with an IP-Adapter.
    pub ip_images: Vec<Arc<Picture>>,
    /// How much they count; 1 by default.
    pub ip_scale: Option<f32>,
    /// What each ControlNet of the model follows. Of a model with one alone, `control_image` may stand for it.
    pub controls: Vec<Control>,
    /// How evaluations are skipped that would change little; `None` computes all.
    pub cache: Option<CacheRequest>,
    /// How exact attention is on the CPU.
    pub attention: AttentionMode,
    /// A face, for a model that was opened for one: the embedding that its projector takes, or tokens, one behind the other.
    pub id_embedding: Option<Vec<f32>>,
    /// What the model's tiny autoencoder is used for, if it has one; `None` is for all.
    pub tiny_vae: Option<TinyUse>,
    /// How the texts of prompts are read.
    pub prompt_syntax: PromptSyntax,
    /// What becomes of pictures that the model's safety checker flags; `None` is black, if there is one.
    pub safety: Option<SafetyMode>,
    /// From which part of the steps on the refiner goes on that the model was opened with, between 0 and 1; 0.8 by default.
    pub refiner_start: Option<f32>,
    /// For models that are told how pleasing a picture is: 6 by default.
    pub aesthetic_score: Option<f32>,
    /// The same of the pass with the negative prompt: 2.5 by default.
    pub negative_aesthetic_score: Option<f32>,
    /// How a second pass makes the picture larger; `None` is without one.
    pub upscale: Option<Upscale>,
    /// Whether ControlNets guess: only the prompt's pass follows them, and the finest of what they say counts least.
    pub control_guess: bool,
    /// How many frames a video has, one more than a multiple of what the model's [`Rules`](super::Rules) say; `None` is as the model has
    /// it.
    pub frames: Option<usize>,
    /// How many frames of it are shown in a second.
    pub fps: Option<f32>,
    /// The last frame of a video, for models that are given one. The first is `image`.
    pub last_image: Option<Arc<Picture>>,
    /// A film to begin with, for models that are given one: its first frames, as many as are drawn, resized to the size that is drawn. How
    /// far the result may be from it is `strength`.
    pub video: Option<Arc<Clip>>,
    /// Where each frame of `video` is made anew: white, and black where it is kept; one for each of its frames, or one for all. For models
    /// that a film beside the latents says what to draw.
    pub video_mask: Option<Arc<Clip>>,
    /// How strongly that film works; `None` is 1.
    pub guide_scale: Option<f32>,
    /// Classifier-free guidance of the second expert, which makes the last steps, for models with two; `None` is as the model has it, or
    /// else as the first.
    pub cfg_scale_2: Option<f32>,
    /// Below which share of all noise the second expert takes over, between 0 and 1; `None` is as the model has it.
    pub boundary: Option<f32>,
}

/// What a ControlNet follows, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Control {
    /// The picture: edges, a map of depth, a picture to be completed.
    pub image: Arc<Picture>,
    /// What the ControlNet's share is multiplied with.
    pub scale: f32,
    /// From which part of the steps on it is followed, 0 to 1.
    pub start: f64,
    /// Up to which part of the steps it is followed, 0 to 1.
    pub end: f64,
    /// What kind of picture it is, for a ControlNet that is told: a name or a number.
    pub mode: Option<String>,
    /// What is made of the picture first.
    pub preprocess: Preprocess,
    /// Whether the ControlNet of the picture before follows this one, too. It has to tell kinds of pictures apart. The scale is then that
    /// of this picture; start and end are those of the first.
    pub joins: bool,
}

impl Control {
    /// `image`, followed in all steps.
    pub fn new(image: Arc<Picture>) -> Control {
        Control { image, scale: 1.0, start: 0.0, end: 1.0, mode: None, preprocess: Preprocess::None, joins: false }
    }
}

impl Default for Request {
    fn default() -> Request {
        Request {
            prompt: String::new(),
            negative_prompt: None,
            width: None,
            height: None,
            steps: None,
            seed: 0,
            guidance: None,
            cfg_scale: None,
            sampler: None,
            schedule: None,
            sigmas: None,
            eta: None,
            shift: None,
            rescale_cfg: None,
            image: None,
            mask: None,
            strength: None,
            posterior: Posterior::default(),
            control_image: None,
            control_preprocess: Preprocess::default(),
            image_cfg_scale: None,
            references: Vec::new(),
            reference_resize: ReferenceResize::default(),
            original_size: None,
            crop: None,
            max_sequence_length: None,
            batch: 1,
            noise: None,
            embeddings: None,
            preview: None,
            latents_only: false,
            redux: Vec::new(),
            without_prompt: false,
            ip_images: Vec::new(),
            ip_scale: None,
            controls: Vec::new(),
            cache: None,
            attention: AttentionMode::default(),
            id_embedding: None,
            tiny_vae: None,
            prompt_syntax: PromptSyntax::default(),
            safety: None,
            refiner_start: None,
            aesthetic_score: None,
            negative_aesthetic_score: None,
            upscale: None,
            control_guess: false,
            frames: None,
            fps: None,
            last_image: None,
            video: None,
            video_mask: None,
            guide_scale: None,
            cfg_scale_2: None,
            boundary: None,
        }
    }
}

impl Request {
    /// One picture of `prompt`, with the model's defaults.
    pub fn new(prompt: impl Into<String>) -> Request {
        Request { prompt: prompt.into(), ..Request::default() }
    }

    /// What it says of sampling.
    pub fn sampling(&self) -> Sampling {
        Sampling {
            sampler: self.sampler,
            schedule: self.schedule,
            sigmas: self.sigmas.clone(),
            eta: self.eta,
            shift: self.shift,
        }
    }
}

/// How much of the device requests may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryOptions {
    /// The most bytes at once. Without: what the device has free, less a margin; on a device that computes in host memory, as much
    /// as `host` allows.
    pub vram: Option<usize>,
    /// How the device is shared.
    pub offload: Offload,
    /// The most bytes of host memory at once: the process's own and resident pages of files together. Without: what is
    /// free, within the limits of the process and of its control groups.
    pub host: Option<usize>,
}
