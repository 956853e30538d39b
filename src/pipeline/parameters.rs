//! What a picture says of how it was drawn: as JSON with a member for each part of the request, and as text for other tools.
//! Reports have the same members.

use std::path::Path;

use serde::Serialize;

use super::choices::{Posterior, Preprocess, TinyUse};
use super::origins::{Origin, named_parts};
use super::request::{ControlSettings, JoinedSettings, Settings};
use super::step_cache::{Cache, skipped_in_words};
use super::stretch::{Pass, Upscale};
use crate::ggml::AttentionMode;
use crate::image::{Thresholds, parameters_text};
use crate::source::model_name;
use crate::text::PromptSyntax;

/// A request in JSON. Files have the names by which they were given; members that do not apply are left out.
#[derive(Default, Serialize)]
pub struct Parameters<'a> {
    /// What was to be drawn.
    pub prompt: &'a str,
    /// What was not to be drawn, where that has an effect.
    pub negative_prompt: Option<&'a str>,
    /// Pixels across.
    pub width: usize,
    /// Pixels down.
    pub height: usize,
    /// Denoising steps.
    pub steps: usize,
    /// Guidance as an input.
    pub guidance: Option<f32>,
    /// Classifier-free guidance; 1 is off.
    pub cfg_scale: f32,
    /// How steps were taken.
    pub sampler: &'static str,
    /// Which levels of noise were visited.
    pub schedule: &'static str,
    /// The levels of noise themselves, if they were given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigmas: Option<&'a [f32]>,
    /// The share of fresh noise in each step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta: Option<f32>,
    /// How a flow was bent towards noise, if that was said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shift: Option<f32>,
    /// How much of the conditional prediction's spread the guided one was given back.
    #[serde(skip_serializing_if = "is_zero")]
    pub rescale_cfg: f32,
    /// LoRAs of all networks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub loras: Vec<LoraFile>,
    /// Files of taught words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub embeddings: Vec<WordFile>,
    /// A folder with such files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embeddings_folder: Option<String>,
    /// The taught words in the prompts.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub taught_words: &'a [String],
    /// How the texts of prompts were read, if not as they stand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_syntax: Option<&'static str>,
    /// The model that made the last steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refiner: Option<String>,
    /// From which part of the steps on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refiner_start: Option<f64>,
    /// What the model was told of how pleasing the picture is: with the prompt, and with the negative one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aesthetic_scores: Option<[f32; 2]>,
    /// A second pass that made the picture larger.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upscale: Option<UpscaleParameters>,
    /// How many frames a video has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frames: Option<usize>,
    /// How many of them are shown in a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fps: Option<f32>,
    /// The last frame of a video.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_image: Option<String>,
    /// The film that it began with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub video: Option<String>,
    /// Where that film was made anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub video_mask: Option<String>,
    /// How strongly it worked, if it was beside the latents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guide_scale: Option<f32>,
    /// Classifier-free guidance of the second of two experts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cfg_scale_2: Option<f32>,
    /// Below which share of all noise that one took over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boundary: Option<f32>,
    /// LoRAs of the first of two experts alone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub loras_high: Vec<LoraFile>,
    /// LoRAs of the second of two experts alone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub loras_low: Vec<LoraFile>,
    /// How many of the last layers of CLIP the prompt did not go through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_skip: Option<usize>,
    /// The picture that it began with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The pictures that the model looked at.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<String>,
    /// Whether pictures that are changed were modulated as at time 0, if that was said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zero_cond_t: Option<bool>,
    /// The picture that was followed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_image: Option<String>,
    /// The ControlNets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub controls: Vec<ControlParameters>,
    /// Whether these guessed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub control_guess: bool,
    /// The embedding of a face.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id_embedding: Option<String>,
    /// What made tokens of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id_projector: Option<String>,
    /// What was made of the picture that was followed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_preprocess: Option<&'static str>,
    /// The lower and the upper threshold of its edges.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canny_thresholds: Option<[f32; 2]>,
    /// How closely the result follows the picture that was changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_cfg_scale: Option<f32>,
    /// Which part of the picture was painted anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask: Option<String>,
    /// Redux.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redux: Option<String>,
    /// The pictures that took part in the prompt.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub redux_images: Vec<WeightedPicture>,
    /// The IP-Adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_adapter: Option<String>,
    /// The pictures that it looked at.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip_images: Vec<String>,
    /// How much these counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_scale: Option<f32>,
    /// Vision towers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub image_encoders: Vec<String>,
    /// How far from the picture the result might be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strength: Option<f32>,
    /// Which latents of its distribution the picture had.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub posterior: Option<&'static str>,
    /// What a tiny autoencoder was used for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tiny_vae: Option<&'static str>,
    /// What becomes of pictures that the safety checker flags, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub safety: Option<&'static str>,
    /// What made the picture larger that was drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upscaler: Option<String>,
    /// Tokens of the prompt that the text encoder read.
    pub max_sequence_length: usize,
    /// Where the noise is from, if it was not drawn from the seed.
    pub noise: Option<String>,
    /// How evaluations were skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheReport>,
    /// How exact attention was, if not as by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention: Option<&'static str>,
}

impl<'a> Parameters<'a> {
    /// What `settings` say, and none of the files. `has_safety` is whether a safety checker judged the pictures.
    pub fn of(settings: &'a Settings, posterior: Posterior, has_safety: bool) -> Parameters<'a> {
        let sampling = &settings.sampling;
        let thresholds = thresholds(settings.control_preprocess);
        Parameters {
            negative_prompt: settings.negative_prompt.as_deref(),
            width: settings.width,
            height: settings.height,
            steps: settings.steps,
            guidance: settings.guidance,
            cfg_scale: settings.cfg_scale,
            sampler: sampling.sampler.name(),
            schedule: sampling.schedule.name(),
            sigmas: sampling.sigmas.as_deref(),
            eta: sampling.eta,
            shift: sampling.shift,
            rescale_cfg: settings.rescale_cfg,
            taught_words: &settings.taught,
            prompt_syntax: (settings.prompt_syntax != PromptSyntax::Plain).then(|| settings.prompt_syntax.name()),
            refiner_start: if let Pass::Begun(start) = settings.pass { Some(start) } else { None },
            aesthetic_scores: settings.last().aesthetic,
            upscale: settings.upscale.zip(settings.second.as_deref()).map(UpscaleParameters::new),
            frames: settings.fps.map(|_| settings.frames),
            fps: settings.fps,
            guide_scale: settings.guide_scale,
            cfg_scale_2: settings.experts.map(|experts| experts.cfg_scale),
            boundary: settings.experts.map(|experts| experts.boundary),
            clip_skip: settings.told.clip_skip,
            zero_cond_t: settings.told.zero_cond_t,
            control_guess: settings.control_guess,
            control_preprocess: thresholds.map(|_| settings.control_preprocess.name()),
            canny_thresholds: thresholds,
            image_cfg_scale: settings.image_cfg_scale,
            ip_scale: (settings.ip_images > 0).then_some(settings.ip_scale),
            strength: settings.strength,
            posterior: (settings.encoded_pictures > 0 && !settings.tiny_encodes).then(|| posterior.name()),
            tiny_vae: settings.tiny_vae.map(TinyUse::name),
            safety: has_safety.then(|| settings.safety.name()),
            max_sequence_length: settings.max_sequence_length,
            cache: settings.cache.map(CacheReport::new),
            attention: (settings.attention != AttentionMode::default()).then(|| settings.attention.name()),
            ..Parameters::default()
        }
    }
}

/// A LoRA's file and its strength.
#[derive(Serialize)]
pub struct LoraFile {
    path: String,
    strength: f32,
}

impl LoraFile {
    /// Those of `loras`.
    pub fn all<'p>(loras: impl IntoIterator<Item = (&'p Path, f32)>) -> Vec<LoraFile> {
        loras.into_iter().map(|(path, strength)| LoraFile { path: shown(path), strength }).collect()
    }
}

/// A file of taught vectors, and the word that was given for it.
#[derive(Serialize)]
pub struct WordFile {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    word: Option<String>,
}

impl WordFile {
    /// That of `path`.
    pub fn new(path: &Path, word: Option<String>) -> WordFile {
        WordFile { path: shown(path), word }
    }
}

/// A picture with its weight.
#[derive(Serialize)]
pub struct WeightedPicture {
    path: String,
    weight: f32,
}

impl WeightedPicture {
    /// That of `path`.
    pub fn new(path: &Path, weight: f32) -> WeightedPicture {
        WeightedPicture { path: shown(path), weight }
    }
}

/// A second pass that makes the picture larger.
#[derive(Serialize)]
pub struct UpscaleParameters {
    factor: f32,
    strength: f32,
    space: &'static str,
    steps: usize,
    width: usize,
    height: usize,
}

impl UpscaleParameters {
    fn new((upscale, second): (Upscale, &Settings)) -> UpscaleParameters {
        let Upscale { factor, strength, space, .. } = upscale;
        let Settings { steps, width, height, .. } = *second;
        UpscaleParameters { factor, strength, space: space.name(), steps, width, height }
    }
}

/// A ControlNet, and what it follows.
#[derive(Serialize)]
pub struct ControlParameters {
    control: String,
    image: Option<String>,
    scale: f32,
    start: f64,
    end: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    preprocess: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    canny_thresholds: Option<[f32; 2]>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    more: Vec<JoinedParameters>,
}

impl ControlParameters {
    /// The ControlNet of the file `control`, which takes as many of `images` as `settings` say.
    pub fn new<'p>(
        settings: &ControlSettings,
        control: &Path,
        mut images: impl Iterator<Item = &'p Path>,
    ) -> ControlParameters {
        let ControlSettings { scale, start, end, mode, preprocess, .. } = *settings;
        let image = images.next().map(shown);
        let more = settings.more.iter().map(|joined| JoinedParameters::new(joined, images.next())).collect();
        ControlParameters {
            control: shown(control),
            image,
            scale,
            start,
            end,
            mode,
            preprocess: (preprocess != Preprocess::None).then(|| preprocess.name()),
            canny_thresholds: thresholds(preprocess),
            more,
        }
    }
}

/// One picture more that a ControlNet follows.
#[derive(Serialize)]
struct JoinedParameters {
    image: Option<String>,
    scale: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    preprocess: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    canny_thresholds: Option<[f32; 2]>,
}

impl JoinedParameters {
    fn new(settings: &JoinedSettings, image: Option<&Path>) -> JoinedParameters {
        let JoinedSettings { scale, mode, preprocess, .. } = *settings;
        JoinedParameters {
            image: image.map(shown),
            scale,
            mode,
            preprocess: (preprocess != Preprocess::None).then(|| preprocess.name()),
            canny_thresholds: thresholds(preprocess),
        }
    }
}

/// A step cache.
#[derive(Serialize)]
pub struct CacheReport {
    kind: &'static str,
    threshold: f32,
}

impl CacheReport {
    /// That of `cache`.
    pub fn new(cache: Cache) -> CacheReport {
        CacheReport { kind: cache.kind.name(), threshold: cache.threshold }
    }
}

/// Which evaluations were computed: one list if all passes have the same, and otherwise one for each.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Computed<'a> {
    /// That of all passes.
    Alike(&'a [bool]),
    /// Those of each pass.
    Each(&'a [Vec<bool>]),
}

impl Computed<'_> {
    /// `None` without a step cache.
    pub fn of(passes: &[Vec<bool>]) -> Option<Computed<'_>> {
        let (first, others) = passes.split_first()?;
        let alike = others.iter().all(|other| other == first);
        Some(if alike { Computed::Alike(first) } else { Computed::Each(passes) })
    }
}

/// The two texts that a picture carries.
#[derive(Default)]
pub struct PictureTexts {
    /// What made it, as other tools write it.
    pub parameters: String,
    /// The same as JSON.
    pub json: String,
}

/// What made a picture, beside its [`Parameters`].
pub struct Made<'a> {
    /// The model's name.
    pub model: &'a str,
    /// Where its parts come from, if they come from several files.
    pub parts: &'a [Origin],
    /// The request.
    pub settings: &'a Settings,
    /// For each pass, which evaluations were computed.
    pub computed: &'a [Vec<bool>],
    /// Whether the safety checker flagged the picture, if there is one.
    pub flagged: Option<bool>,
    /// Of its noise.
    pub seed: u64,
}

/// The JSON inside a picture.
#[derive(Serialize)]
struct Inside<'a> {
    version: &'static str,
    model: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    parts: &'a [Origin],
    seed: u64,
    #[serde(flatten)]
    parameters: &'a Parameters<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    computed: Option<Computed<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flagged: Option<bool>,
}

impl Made<'_> {
    /// The texts of a picture with these `parameters`.
    pub fn texts(&self, parameters: &Parameters<'_>) -> PictureTexts {
        let Made { model, parts, settings, flagged, seed, .. } = *self;
        let mut pairs = settings.named(seed, parameters.noise.as_deref());
        pairs.extend(skipped_in_words(self.computed).map(|numbers| ("Skipped evaluations", numbers)));
        pairs.extend(flagged.map(|flagged| ("Safety checker", settings.safety.described(flagged).to_owned())));
        pairs.extend(parameters.upscaler.as_ref().map(|path| ("Hires upscaler", model_name(Path::new(path)))));
        pairs.extend(named_parts(model.to_owned(), parts));
        pairs.push(("Version", concat!("pinhole ", env!("CARGO_PKG_VERSION")).to_owned()));
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let (version, computed) = (env!("CARGO_PKG_VERSION"), Computed::of(self.computed));
        let inside = Inside { version, model, parts, seed, parameters, computed, flagged };
        PictureTexts {
            parameters: parameters_text(parameters.prompt, parameters.negative_prompt, &pairs),
            // Numbers and texts alone: JSON has all of them.
            json: serde_json::to_string(&inside).unwrap_or_default(),
        }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde asks")]
fn is_zero(number: &f32) -> bool {
    *number == 0.0
}

/// The thresholds of edges, if these are made of a picture.
fn thresholds(preprocess: Preprocess) -> Option<[f32; 2]> {
    match preprocess {
        Preprocess::None | Preprocess::Inpaint => None,
        Preprocess::Canny(Thresholds { low, high }) => Some([low, high]),
    }
}

/// A path in JSON, which holds text only.
fn shown(path: &Path) -> String {
    path.display().to_string()
}
