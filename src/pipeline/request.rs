//! What is asked for.

use std::sync::Arc;

use super::choices::{Posterior, Preprocess, ReferenceResize, SafetyMode, TinyUse};
use super::prompts::Embeddings;
use super::step_cache::{Cache, CacheRequest};
use super::stretch::{Pass, Upscale};
use crate::ggml::AttentionMode;
use crate::image::{Picture, Thresholds};
use crate::plan::Offload;
use crate::sample::{Chosen, Sampler, Sampling, Schedule};
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

/// A request with every default filled in and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Pixels across.
    pub width: usize,
    /// Pixels down.
    pub height: usize,
    /// Denoising steps.
    pub steps: usize,
    /// Of the first picture's noise.
    pub seed: u64,
    /// Guidance as an input; `None` for models that take none.
    pub guidance: Option<f32>,
    /// Classifier-free guidance; 1 is off.
    pub cfg_scale: f32,
    /// The negative prompt, where it has an effect.
    pub negative_prompt: Option<String>,
    /// Whether zeros stand for the negative prompt, which was not given.
    pub negative_is_zero: bool,
    /// Pixels across and down of the original, for models that are told.
    pub original_size: [usize; 2],
    /// How many pixels it was cut off on the left and at the top, for models that are told.
    pub crop: [usize; 2],
    /// How steps are taken.
    pub sampling: Chosen,
    /// How much of the conditional prediction's spread the guided one is given back; 0 is nothing.
    pub rescale_cfg: f32,
    /// Tokens of the prompt that the text encoder reads.
    pub max_sequence_length: usize,
    /// How many pictures.
    pub batch: usize,
    /// How far from a given picture the result may be; `None` without one.
    pub strength: Option<f32>,
    /// Whether a part of that picture stays as it is.
    pub masked: bool,
    /// How closely the result follows the picture that is changed; `None` for models that change none.
    pub image_cfg_scale: Option<f32>,
    /// How many pictures of the size that is drawn go through the autoencoder before the first step.
    pub encoded_pictures: usize,
    /// Pixels across and down of each picture that the model looks at.
    pub references: Vec<[usize; 2]>,
    /// The same before they are resized.
    pub reference_sources: Vec<[usize; 2]>,
    /// What is made of the picture that is followed.
    pub control_preprocess: Preprocess,
    /// Whether the prompts are encoded already.
    pub embedded: bool,
    /// Tokens of each prompt as the denoiser is given it, the negative one last.
    pub text_tokens: Vec<usize>,
    /// Above which `cfg_scale` there is guidance: 1 or 0, which is off.
    pub guided_above: f32,
    /// The weights of the pictures that Redux makes tokens of.
    pub redux: Vec<f32>,
    /// How many tokens that makes; 0 without pictures.
    pub redux_tokens: usize,
    /// Whether zeros stand for the prompt.
    pub prompt_is_zero: bool,
    /// How many pictures an IP-Adapter is given.
    pub ip_images: usize,
    /// How much they count; 0 without pictures.
    pub ip_scale: f32,
    /// How each ControlNet follows its picture.
    pub controls: Vec<ControlSettings>,
    /// Whether only the prompt's pass follows them, and the finest of what they say counts least.
    pub control_guess: bool,
    /// How evaluations are skipped that would change little.
    pub cache: Option<Cache>,
    /// How exact attention is on the CPU.
    pub attention: AttentionMode,
    /// How many tokens a face becomes; 0 without one.
    pub id_tokens: usize,
    /// Whether the projector makes them.
    pub id_projected: bool,
    /// Whether previews are shown.
    pub previewed: bool,
    /// What the model's tiny autoencoder is used for; `None` if it has none.
    pub tiny_vae: Option<TinyUse>,
    /// Whether it encodes pictures, too. Nothing is drawn of a distribution then.
    pub tiny_encodes: bool,
    /// How the texts of prompts are read.
    pub prompt_syntax: PromptSyntax,
    /// The taught words in them.
    pub taught: Vec<String>,
    /// What becomes of pictures that the safety checker flags.
    pub safety: SafetyMode,
    /// What the model is told of how pleasing the picture is, and of the pass with the negative prompt; `None` if it is not told.
    pub aesthetic: Option<[f32; 2]>,
    /// Which pass this is, if there are two.
    pub pass: Pass,
    /// How the second pass makes the picture larger, if it does.
    pub upscale: Option<Upscale>,
    /// Those of the second pass, if these are the first one's.
    pub second: Option<Box<Settings>>,
    /// How many frames each picture of the batch has: 1, unless they are videos.
    pub frames: usize,
    /// How many frames of a video are shown in a second; `None` for pictures.
    pub fps: Option<f32>,
    /// How two experts share the steps; `None` for models of one.
    pub experts: Option<Experts>,
    /// Whether the first frame of a video is given, and the last one.
    pub given_frames: [bool; 2],
    /// The size of what is kept of pictures, which is in their middle, if that is not all: that of a picture that the model looks at whole.
    pub kept: Option<[usize; 2]>,
    /// Latent frames before those of the video: the pictures that it refers to, which are drawn along and not shown.
    pub front_frames: usize,
    /// How strongly a film beside the latents works; `None` for models that take none.
    pub guide_scale: Option<f32>,
    /// What the model was opened with that none of its files say.
    pub told: OpenedWith,
}

/// What a model was opened with that changes what it draws, and that none of its files say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenedWith {
    /// How many of the last layers of CLIP the prompt does not go through, as diffusers counts them.
    pub clip_skip: Option<usize>,
    /// Whether pictures that are changed are modulated as at time 0.
    pub zero_cond_t: Option<bool>,
}

/// How two experts share the steps of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Experts {
    /// Below which share of all noise the second one takes over.
    pub boundary: f32,
    /// Classifier-free guidance of the second one; 1 is off.
    pub cfg_scale: f32,
    /// How many evaluations the first one makes.
    pub evaluations: usize,
}

/// How a ControlNet follows its picture.
#[derive(Clone, Debug, PartialEq)]
pub struct ControlSettings {
    /// The ControlNet's name.
    pub name: String,
    /// What its share is multiplied with.
    pub scale: f32,
    /// From which part of the steps on it is followed.
    pub start: f64,
    /// Up to which part of the steps it is followed.
    pub end: f64,
    /// The number of the kind of its picture, if it is told.
    pub mode: Option<usize>,
    /// What that is called, if it has a name.
    pub mode_name: Option<&'static str>,
    /// What is made of its picture first.
    pub preprocess: Preprocess,
    /// The pictures that it follows besides.
    pub more: Vec<JoinedSettings>,
}

/// One picture more that a ControlNet follows.
#[derive(Clone, Debug, PartialEq)]
pub struct JoinedSettings {
    /// What its share is multiplied with.
    pub scale: f32,
    /// The number of its kind.
    pub mode: Option<usize>,
    /// What that is called, if it has a name.
    pub mode_name: Option<&'static str>,
    /// What is made of it first.
    pub preprocess: Preprocess,
}

/// What the web UI calls ControlNets in a picture's parameters. No model has more.
pub(super) const CONTROL_NETS: [&str; 8] = [
    "ControlNet 0",
    "ControlNet 1",
    "ControlNet 2",
    "ControlNet 3",
    "ControlNet 4",
    "ControlNet 5",
    "ControlNet 6",
    "ControlNet 7",
];

impl ControlSettings {
    /// What its share is multiplied with in evaluation `i` of `count`: as diffusers, nothing in an evaluation that is not wholly
    /// between start and end.
    pub fn factor(&self, i: usize, count: usize) -> f32 {
        let [begins, ends] = [i, i + 1].map(|at| at as f64 / count as f64);
        if begins < self.start || ends > self.end { 0.0 } else { self.whole_scale() }
    }

    /// What all that it says is multiplied with: nothing more than the pictures themselves, if they are several.
    pub fn whole_scale(&self) -> f32 {
        let is_heard = self.kinds_and_shares().iter().any(|(_, share)| *share != 0.0);
        match (self.more.is_empty(), is_heard) {
            (true, _) => self.scale,
            (false, true) => 1.0,
            (false, false) => 0.0,
        }
    }

    /// How many pictures it follows.
    pub fn pictures(&self) -> usize {
        1 + self.more.len()
    }

    /// The kind of each picture, and what its share is multiplied with.
    pub fn kinds_and_shares(&self) -> Vec<(Option<usize>, f32)> {
        if self.more.is_empty() {
            return vec![(self.mode, 1.0)];
        }
        let mut all = vec![(self.mode, self.scale)];
        all.extend(self.more.iter().map(|other| (other.mode, other.scale)));
        all
    }

    /// In words, as the web UI has it.
    fn described(&self) -> String {
        let ControlSettings { name, scale, start, end, mode, mode_name, preprocess, more } = self;
        let named = |(mode, name): (usize, Option<&str>)| name.map_or_else(|| mode.to_string(), str::to_owned);
        let mut modes: Vec<String> = mode.map(|mode| named((mode, *mode_name))).into_iter().collect();
        let mut scales = vec![scale.to_string()];
        for other in more {
            modes.extend(other.mode.map(|mode| named((mode, other.mode_name))));
            scales.push(other.scale.to_string());
        }
        let mode = if modes.is_empty() { String::new() } else { format!(", Mode: {}", modes.join("+")) };
        let scale = scales.join("+");
        let made = match preprocess {
            Preprocess::None => String::new(),
            Preprocess::Inpaint => "Module: inpaint, ".to_owned(),
            Preprocess::Canny(Thresholds { low, high }) => {
                format!("Module: canny, Threshold A: {low}, Threshold B: {high}, ")
            }
        };
        format!("{made}Model: {name}, Weight: {scale}, Guidance Start: {start}, Guidance End: {end}{mode}")
    }
}

impl Settings {
    /// Those of the pass that pictures come of.
    pub fn last(&self) -> &Settings {
        self.second.as_deref().unwrap_or(self)
    }

    /// Pixels across and down of a picture once what is not kept of it is cut off.
    pub fn last_size(&self) -> [usize; 2] {
        self.kept.filter(|_| self.pass == Pass::Only).unwrap_or([self.width, self.height])
    }

    /// How many passes through the denoiser there are: with the prompt, with the negative one, and, where a picture is changed,
    /// without that picture.
    pub fn passes(&self) -> usize {
        match self.negative_prompt {
            Some(_) if self.image_cfg_scale.is_some() => 3,
            Some(_) => 2,
            None => 1,
        }
    }

    /// How many tokens the denoiser is given as a prompt: those of pictures, and those of the text.
    pub fn prompt_tokens(&self) -> usize {
        self.redux_tokens + self.max_sequence_length
    }

    /// How many prompts there are.
    pub fn prompts(&self) -> usize {
        1 + usize::from(self.negative_prompt.is_some())
    }

    /// Tokens of the longest prompt.
    pub fn most_text_tokens(&self) -> usize {
        self.text_tokens.iter().copied().max().unwrap_or(self.max_sequence_length)
    }

    /// Whether there is classifier-free guidance, if there is a negative prompt.
    pub fn is_guided(&self) -> bool {
        self.cfg_scale > self.guided_above
    }

    /// How many prompts go through the text encoders.
    pub fn texts(&self) -> usize {
        self.prompts() - usize::from(self.negative_is_zero) - usize::from(self.prompt_is_zero)
    }

    /// By the names that AUTOMATIC1111's web UI gives them (and its fork Forge, if guidance is an input of the model); of the
    /// noise, the `seed` or where else it came from.
    pub fn named(&self, seed: u64, noise: Option<&str>) -> Vec<(&'static str, String)> {
        let mut pairs = vec![
            ("Steps", self.steps.to_string()),
            ("Sampler", self.sampling.sampler.label().to_owned()),
            ("CFG scale", self.cfg_scale.to_string()),
        ];
        match &self.sampling.sigmas {
            Some(sigmas) => pairs.insert(2, ("Sigmas", numbers(sigmas))),
            None => pairs.insert(2, ("Schedule type", self.sampling.schedule.label().to_owned())),
        }
        pairs.extend(self.sampling.eta.map(|eta| ("Eta", eta.to_string())));
        pairs.extend(self.sampling.shift.map(|shift| ("Shift", shift.to_string())));
        if self.rescale_cfg != 0.0 {
            pairs.push(("CFG rescale", self.rescale_cfg.to_string()));
        }
        if let Some(Experts { boundary, cfg_scale, .. }) = self.experts {
            pairs.push(("CFG scale 2", cfg_scale.to_string()));
            pairs.push(("Boundary", boundary.to_string()));
        }
        pairs.extend(self.guidance.map(|guidance| ("Distilled CFG Scale", guidance.to_string())));
        pairs.push(noise.map_or_else(|| ("Seed", seed.to_string()), |noise| ("Noise", noise.to_owned())));
        pairs.push(("Size", format!("{}x{}", self.width, self.height)));
        if let Some(fps) = self.fps {
            pairs.push(("Frames", self.frames.to_string()));
            pairs.push(("FPS", fps.to_string()));
        }
        if self.original_size != [self.width, self.height] {
            pairs.push(("Original size", format!("{}x{}", self.original_size[0], self.original_size[1])));
        }
        if self.crop != [0, 0] {
            pairs.push(("Crop", format!("{},{}", self.crop[0], self.crop[1])));
        }
        if self.upscale.is_none() {
            pairs.extend(self.strength.map(|strength| ("Denoising strength", strength.to_string())));
        }
        pairs.extend(self.image_cfg_scale.map(|scale| ("Image CFG scale", scale.to_string())));
        if !self.redux.is_empty() {
            pairs.push(("Redux weights", numbers(&self.redux)));
        }
        if self.ip_images > 0 {
            pairs.push(("IP-Adapter scale", self.ip_scale.to_string()));
        }
        pairs.extend(CONTROL_NETS.into_iter().zip(self.controls.iter().map(ControlSettings::described)));
        if self.control_guess {
            pairs.push(("ControlNet guess mode", "true".to_owned()));
        }
        pairs.extend(self.cache.map(|cache| ("Step cache", cache.to_string())));
        if self.attention != AttentionMode::default() {
            pairs.push(("Attention", self.attention.name().to_owned()));
        }
        pairs.extend(self.guide_scale.filter(|scale| *scale != 1.0).map(|scale| ("Guide scale", scale.to_string())));
        if let Preprocess::Canny(Thresholds { low, high }) = self.control_preprocess {
            pairs.push(("Control preprocess", format!("canny {low},{high}")));
        }
        if self.id_tokens > 0 {
            pairs.push(("ID tokens", self.id_tokens.to_string()));
        }
        if let Pass::Begun(start) = self.pass {
            pairs.push(("Refiner switch at", start.to_string()));
        }
        let scores = self.second.as_deref().unwrap_or(self).aesthetic;
        pairs.extend(scores.map(|[with, without]| ("Aesthetic scores", format!("{with},{without}"))));
        if let (Some(Upscale { factor, space, strength, .. }), Some(second)) = (self.upscale, &self.second) {
            pairs.push(("Denoising strength", strength.to_string()));
            pairs.push(("Hires upscale", factor.to_string()));
            pairs.push(("Hires steps", second.steps.to_string()));
            pairs.push(("Hires upscaler", space.label().to_owned()));
        }
        if self.prompt_syntax != PromptSyntax::Plain {
            pairs.push(("Prompt syntax", self.prompt_syntax.name().to_owned()));
        }
        if let Some(skipped) = self.told.clip_skip.filter(|skipped| *skipped > 0) {
            // The web UI counts from the last layer, which is 1.
            pairs.push(("Clip skip", skipped.saturating_add(1).to_string()));
        }
        pairs.extend(self.told.zero_cond_t.map(|is_zero| ("Zero cond t", is_zero.to_string())));
        if !self.taught.is_empty() {
            pairs.push(("TI", self.taught.join(", ")));
        }
        if self.tiny_vae == Some(TinyUse::All) {
            pairs.push(("VAE Decoder", "TAESD".to_owned()));
        }
        if self.tiny_encodes && (self.encoded_pictures > 0 || !self.references.is_empty()) {
            pairs.push(("VAE Encoder", "TAESD".to_owned()));
        }
        pairs
    }
}

/// `numbers` as `--sigmas` takes them.
fn numbers(numbers: &[f32]) -> String {
    let numbers: Vec<String> = numbers.iter().map(f32::to_string).collect();
    numbers.join(",")
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
