//! What a request comes to: every value, and the words for it in a picture's parameters.

use crate::ggml::AttentionMode;
use crate::image::Thresholds;
use crate::pipeline::choices::{Preprocess, SafetyMode, TinyUse};
use crate::pipeline::step_cache::Cache;
use crate::pipeline::stretch::{Pass, Upscale};
use crate::sample::Chosen;
use crate::text::PromptSyntax;

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
    /// How many of the pictures that are encoded are so by themselves, and not as frames of a video.
    pub encoded_alone: usize,
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
pub(in crate::pipeline) const CONTROL_NETS: [&str; 8] = [
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
