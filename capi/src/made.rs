//! What pictures say of how they were made: to other tools as text, and as the JSON that the command line writes.

use std::path::Path;
use std::sync::Arc;

use pinhole::image::{Picture, Thresholds, parameters_text};
use pinhole::pipeline::{
    AttentionMode, Generated, Opened, Origin, Pass, Preprocess, PromptSyntax, Request, Settings, TinyUse, Upscale,
    model_name, named_parts, origins, skipped_in_words,
};
use serde::Serialize;

/// The model that made a picture.
pub(crate) struct Made {
    model: String,
    /// Where its parts come from, if they come from several files.
    parts: Vec<Origin>,
    loras: Vec<Lora>,
    /// The files of the ControlNets.
    controls: Vec<String>,
    /// The file of the network that made the pictures larger.
    upscaler: Option<String>,
    /// The refiner.
    refiner: Option<String>,
}

/// The two texts that a picture carries.
#[derive(Default)]
pub(crate) struct Texts {
    /// What made it, as other tools write it.
    pub(crate) parameters: String,
    /// The same as JSON.
    pub(crate) json: String,
}

/// A LoRA's file and its strength.
#[derive(Serialize)]
struct Lora {
    path: String,
    strength: f32,
}

/// The JSON of the command line, member by member: a picture does not tell who asked for it.
#[derive(Serialize)]
struct Inside<'a> {
    version: &'static str,
    model: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    parts: &'a [Origin],
    seed: u64,
    prompt: &'a str,
    negative_prompt: Option<&'a str>,
    width: usize,
    height: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    frames: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fps: Option<f32>,
    steps: usize,
    guidance: Option<f32>,
    cfg_scale: f32,
    sampler: &'static str,
    schedule: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sigmas: Option<&'a [f32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    eta: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shift: Option<f32>,
    #[serde(skip_serializing_if = "is_zero")]
    rescale_cfg: f32,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    loras: &'a [Lora],
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    references: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    control_image: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    controls: Vec<Control>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    control_guess: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    control_preprocess: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    canny_thresholds: Option<[f32; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_cfg_scale: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mask: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    redux_images: Vec<Weighted>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ip_images: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip_scale: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    strength: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    posterior: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tiny_vae: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    clip_skip: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    zero_cond_t: Option<bool>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    taught_words: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_syntax: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    safety: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upscaler: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refiner: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refiner_start: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aesthetic_scores: Option<[f32; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upscale: Option<Larger>,
    max_sequence_length: usize,
    noise: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<StepCache>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attention: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    computed: Option<Computed<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flagged: Option<bool>,
}

/// Which evaluations were computed: one list if all passes have the same, and otherwise one for each.
#[derive(Serialize)]
#[serde(untagged)]
enum Computed<'a> {
    Alike(&'a [bool]),
    Each(&'a [Vec<bool>]),
}

impl Computed<'_> {
    /// `None` without a step cache.
    fn of(passes: &[Vec<bool>]) -> Option<Computed<'_>> {
        let (first, others) = passes.split_first()?;
        let alike = others.iter().all(|other| other == first);
        Some(if alike { Computed::Alike(first) } else { Computed::Each(passes) })
    }
}

/// One picture more that a ControlNet follows.
#[derive(Serialize)]
struct Joined {
    image: Option<String>,
    scale: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    preprocess: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    canny_thresholds: Option<[f32; 2]>,
}

/// A ControlNet, and what it follows.
#[derive(Serialize)]
struct Control {
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
    more: Vec<Joined>,
}

/// A picture with its weight.
#[derive(Serialize)]
struct Weighted {
    path: String,
    weight: f32,
}

/// A step cache.
#[derive(Serialize)]
struct StepCache {
    kind: &'static str,
    threshold: f32,
}

/// A second pass that makes the picture larger.
#[derive(Serialize)]
struct Larger {
    factor: f32,
    strength: f32,
    space: &'static str,
    steps: usize,
    width: usize,
    height: usize,
}

impl Larger {
    fn new(upscale: Upscale, second: &Settings) -> Larger {
        let (Upscale { factor, strength, space, .. }, Settings { steps, width, height, .. }) = (upscale, second);
        Larger { factor, strength, space: space.name(), steps: *steps, width: *width, height: *height }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde asks")]
fn is_zero(number: &f32) -> bool {
    *number == 0.0
}

impl Made {
    /// By `model`.
    pub(crate) fn by(model: &Opened) -> Made {
        let loras = model.loras.iter();
        let loras = loras.map(|lora| Lora { path: text(&lora.path), strength: lora.strength }).collect();
        let controls = model.rules.controls.iter().map(|control| text(&control.path)).collect();
        let upscaler = model.upscaler.as_ref().map(|upscaler| text(upscaler.path()));
        let refiner = model.refiner.as_ref().map(|refiner| text(&refiner.source.path));
        let (model, parts) = (model_name(&model.source.path), origins(&model.source));
        Made { model, parts, loras, controls, upscaler, refiner }
    }

    /// The texts of picture `index` of what `request` gave.
    pub(crate) fn texts(&self, request: &Request, index: usize, generated: &Generated) -> Texts {
        let Generated { settings, computed, verdicts, .. } = generated;
        let flagged = verdicts.get(index).map(|verdict| verdict.flagged);
        // All frames of a film have its seed.
        let seed = settings.seed.wrapping_add((index / settings.frames.max(1)) as u64);
        let noise = request.noise.as_ref().map(|_| "given");
        let mut pairs = settings.named(seed, noise);
        pairs.extend(skipped_in_words(computed).map(|numbers| ("Skipped evaluations", numbers)));
        pairs.extend(flagged.map(|flagged| ("Safety checker", settings.safety.described(flagged).to_owned())));
        let upscaler = self.upscaler.as_ref().map(|path| model_name(Path::new(path)));
        pairs.extend(upscaler.map(|name| ("Hires upscaler", name)));
        pairs.extend(named_parts(self.model.clone(), &self.parts));
        pairs.push(("Version", concat!("pinhole ", env!("CARGO_PKG_VERSION")).to_owned()));
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let name = |picture: &Arc<Picture>| text(picture.name());
        let thresholds = thresholds(settings.control_preprocess);
        let Settings { width, height, steps, guidance, cfg_scale, rescale_cfg, strength, max_sequence_length, .. } =
            *settings;
        let inside = Inside {
            version: env!("CARGO_PKG_VERSION"),
            model: &self.model,
            parts: &self.parts,
            seed,
            prompt: &request.prompt,
            negative_prompt: settings.negative_prompt.as_deref(),
            width,
            height,
            frames: settings.fps.map(|_| settings.frames),
            fps: settings.fps,
            steps,
            guidance,
            cfg_scale,
            sampler: settings.sampling.sampler.name(),
            schedule: settings.sampling.schedule.name(),
            sigmas: settings.sampling.sigmas.as_deref(),
            eta: settings.sampling.eta,
            shift: settings.sampling.shift,
            rescale_cfg,
            loras: &self.loras,
            image: request.image.as_ref().map(name),
            references: request.references.iter().map(name).collect(),
            control_image: request.control_image.as_ref().map(name),
            controls: self.controls(request, settings),
            control_guess: settings.control_guess,
            control_preprocess: thresholds.map(|_| settings.control_preprocess.name()),
            canny_thresholds: thresholds,
            image_cfg_scale: settings.image_cfg_scale,
            mask: request.mask.as_ref().map(name),
            redux_images: request.redux.iter().map(weighted).collect(),
            ip_images: request.ip_images.iter().map(name).collect(),
            ip_scale: (settings.ip_images > 0).then_some(settings.ip_scale),
            strength,
            posterior: (settings.encoded_pictures > 0 && !settings.tiny_encodes).then(|| request.posterior.name()),
            tiny_vae: settings.tiny_vae.map(TinyUse::name),
            clip_skip: settings.told.clip_skip,
            zero_cond_t: settings.told.zero_cond_t,
            taught_words: &settings.taught,
            prompt_syntax: (settings.prompt_syntax != PromptSyntax::Plain).then(|| settings.prompt_syntax.name()),
            safety: flagged.map(|_| settings.safety.name()),
            upscaler: self.upscaler.as_deref(),
            refiner: self.refiner.as_deref(),
            refiner_start: if let Pass::Begun(start) = settings.pass { Some(start) } else { None },
            aesthetic_scores: settings.last().aesthetic,
            upscale: settings.upscale.map(|upscale| Larger::new(upscale, settings.last())),
            max_sequence_length,
            noise,
            cache: settings.cache.map(|cache| StepCache { kind: cache.kind.name(), threshold: cache.threshold }),
            attention: (settings.attention != AttentionMode::default()).then(|| settings.attention.name()),
            computed: Computed::of(computed),
            flagged,
        };
        Texts {
            parameters: parameters_text(&request.prompt, settings.negative_prompt.as_deref(), &pairs),
            // Numbers and texts alone: JSON has all of them.
            json: serde_json::to_string(&inside).unwrap_or_default(),
        }
    }

    /// The ControlNets, and what each follows.
    fn controls(&self, request: &Request, settings: &Settings) -> Vec<Control> {
        let mut controls = Vec::with_capacity(self.controls.len());
        let mut pictures = request.controls.iter().map(|control| &control.image).chain(&request.control_image);
        for (path, set) in self.controls.iter().zip(&settings.controls) {
            let picture = pictures.next();
            let thresholds = thresholds(set.preprocess);
            let mut more = Vec::with_capacity(set.more.len());
            for other in &set.more {
                more.push(Joined {
                    image: pictures.next().map(|picture| text(picture.name())),
                    scale: other.scale,
                    mode: other.mode,
                    preprocess: (other.preprocess != Preprocess::None).then(|| other.preprocess.name()),
                    canny_thresholds: self::thresholds(other.preprocess),
                });
            }
            controls.push(Control {
                control: path.clone(),
                image: picture.map(|picture| text(picture.name())),
                scale: set.scale,
                start: set.start,
                end: set.end,
                mode: set.mode,
                preprocess: (set.preprocess != Preprocess::None).then(|| set.preprocess.name()),
                canny_thresholds: thresholds,
                more,
            });
        }
        controls
    }
}

/// The thresholds of edges, if these are made of a picture.
fn thresholds(preprocess: Preprocess) -> Option<[f32; 2]> {
    match preprocess {
        Preprocess::None | Preprocess::Inpaint => None,
        Preprocess::Canny(Thresholds { low, high }) => Some([low, high]),
    }
}

fn weighted((picture, weight): &(Arc<Picture>, f32)) -> Weighted {
    Weighted { path: text(picture.name()), weight: *weight }
}

/// A path in JSON, which holds text only.
fn text(path: &Path) -> String {
    path.display().to_string()
}
