//! Stable Diffusion 1 and 2: diffusers' `StableDiffusionPipeline`. Version 2 has another text encoder, OpenCLIP's, and some of its
//! models predict velocities.

use std::path::Path;

use super::controls;
use super::encoders::{self, CLIP_NAME, ClipEncoder};
use super::fit::{self, Side};
use super::opened::{Additions, Encoders, Family, ImagePrompts, Opened, Reader};
use super::prompts::{ArraySpec, Prompt};
use super::request::{OpenedWith, Settings};
use super::rules::{Beside, ControlRules, Defaults, GuidanceScale, Rules, Starts, Takes, Use};
use super::run::Run;
use super::safety;
use super::sd_image_prompts::SdImagePrompts;
use super::step_cache::Caches;
use super::textual_inversion::Words;
use super::unet_denoiser::UnetDenoiser;
use super::vae::Vae;
use crate::bind::alias;
use crate::models::clip::Output;
use crate::models::unet::{SideConfig, Unet};
use crate::plan::measure::Subject;
use crate::sample::{AYS, DiscreteConfig, Prediction, Scheduler};
use crate::source::networks::{self, Side as Follower};
use crate::source::slot::{CONTROLNET, TEXT_ENCODER, TINY_VAE, UNET, VAE};
use crate::source::{Component, Network, Networks, Part, Place, Source, Text, unet_changes};
use crate::text::{Encoded, PromptSyntax};
use crate::{Error, Result, json};

/// Stable Diffusion 1.
pub(super) static SD1: Family = Family {
    name: "sd1",
    classes: &[
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionInstructPix2PixPipeline",
        "LatentConsistencyModelPipeline",
        "LatentConsistencyModelImg2ImgPipeline",
    ],
    places: &[
        Place::needed(&UNET, &alias::UNET, |component| Ok(Box::new(networks::unet(component)?))),
        Place::needed(&TEXT_ENCODER, &alias::CLIP, |component| Ok(Box::new(networks::clip_with(component, OUTPUT)?.0))),
        Place::needed(&VAE, &alias::AUTOENCODER_KL, |component| Ok(Box::new(networks::autoencoder_kl(component)?)))
            .unless(&TINY_VAE),
        Place::given(&TINY_VAE, &alias::AUTOENCODER_TINY, |component| {
            Ok(Box::new(networks::autoencoder_tiny(component)?))
        }),
        safety::PLACE,
    ],
    beside: &[CONTROL, ADAPTER],
    marks: &[],
    tokens: 77,
    denoiser: |source| Ok(Box::new(UnetDenoiser::new(networks::unet(source.component(&UNET)?)?, &[]))),
    open,
};

/// ControlNets, which run beside it.
pub(super) const CONTROL: Place =
    Place::given(&CONTROLNET, &alias::UNET_CONTROL, |component| Ok(Box::new(networks::unet_control(component, None)?)));

/// T2I-Adapters, which do as well.
pub(super) const ADAPTER: Place =
    Place::given(&CONTROLNET, &alias::T2I_ADAPTER, |component| Ok(Box::new(networks::t2i_adapter(component)?)));

/// Latents on a side of the picture that a model was trained on, if its files do not say.
const SAMPLE_SIZE: usize = 64;
/// The same for models of version 2 that predict velocities.
const LARGER_SAMPLE_SIZE: usize = 96;

/// What the text encoder gives.
const OUTPUT: Output = Output { shortened: true, ..Output::LAST };

/// The name of the text encoder's subject.
const CLIP: &str = "clip";

pub(super) fn rules(side: usize, factor: usize, tokens: usize) -> Rules {
    Rules {
        multiple: factor,
        most_pixels: 16384,
        tokens: tokens..=tokens,
        guidance: None,
        guided_above: 1.0,
        is_told_sizes: false,
        is_told_scores: false,
        ays: AYS,
        zeros_without_negative: false,
        inputs: &[Use::Start, Use::Mask],
        beside: None,
        references: None,
        starts: Starts::Drawn,
        controls: Vec::new(),
        caches: Caches::NONE,
        frames: None,
        experts: None,
        first: None,
        guide: false,
        followed: None,
        told: OpenedWith::default(),
        defaults: Defaults {
            width: side,
            height: side,
            steps: 50,
            cfg_scale: 7.5,
            negative_prompt: String::new(),
            tokens,
            strength: 0.8,
            strength_with_mask: 1.0,
        },
    }
}

fn open(source: Source, additions: &Additions) -> Result<Opened> {
    additions.refuse_face_alone()?;
    additions.refuse_refiner()?;
    source.require_configurations()?;
    let unet = networks::unet(source.component(&UNET)?)?;
    let output = Output { skipped: additions.clip_skip.unwrap_or(0), ..OUTPUT };
    let mut clip = ClipEncoder::open_with(&source, &TEXT_ENCODER, output)?;
    let vae = Vae::open(&source, None)?;
    let scheduler = match &source.scheduler {
        Some(Text { text, origin }) => of_noise(Scheduler::from_json(text, origin)?, origin)?,
        None => Scheduler::Discrete(schedule(&unet)?),
    };
    check(&source, &unet, &clip, &vae)?;
    encoders::teach(&mut [(&mut clip, None)], additions)?;
    let controls = open_controls(additions, &unet, vae.factor())?;
    let (image_prompts, ip) = SdImagePrompts::open(additions, &unet)?.unzip();
    let mut unet = networks::unet_with(unet, &controls, ip.as_ref().map(|ip| &ip.adapter))?;
    ip.iter().try_for_each(|ip| ip.attach(&mut unet))?;
    let loras = additions.apply(&mut [unet.target(), clip.part.target()])?;
    let predicts_v = matches!(&scheduler, Scheduler::Discrete(config) if config.prediction_type == Prediction::V);
    let trained_on = if predicts_v { LARGER_SAMPLE_SIZE } else { SAMPLE_SIZE };
    let side = sample_size(source.component(&UNET)?, trained_on) * vae.factor();
    let rules = rules(side, vae.factor(), clip.reader(CLIP_NAME).length).with(beside(&unet, &vae));
    let rules = rules.with_guidance(&unet);
    let rules = with_controls(rules.read(&source, GuidanceScale::Free)?, &controls);
    Ok(Opened {
        family: &SD1,
        encoders: Box::new(SdEncoders(clip)),
        denoiser: Box::new(UnetDenoiser::new(unet, &controls)),
        tiny: vae.tiny(&source)?,
        autoencoder: vae.boxed(),
        scheduler: as_published(scheduler),
        rules,
        loras,
        image_prompts: image_prompts.map(|pictures| Box::new(pictures) as Box<dyn ImagePrompts>),
        face: None,
        safety: None,
        upscaler: None,
        refiner: None,
        source,
    })
}

/// What xinsir's union ControlNets call the kinds of pictures that they tell apart. The last two are ProMax's.
const MODES: &[&str] = &[
    "openpose",
    "depth",
    "scribble/hed/pidi/ted",
    "canny/lineart/anime_lineart/mlsd",
    "normal",
    "segment",
    "tile",
    "repaint/inpaint",
];

/// The ControlNets and T2I-Adapters of `additions`, beside a model with so many pixels to a latent.
pub(super) fn open_controls(additions: &Additions, unet: &Part<Unet>, factor: usize) -> Result<Vec<Follower>> {
    controls::check_count(additions.controls.len())?;
    let mut controls = Vec::with_capacity(additions.controls.len());
    for path in &additions.controls {
        if let Ok(component) = Source::lone(path, &ADAPTER) {
            controls.push(Follower::Adapter(networks::t2i_adapter(&component)?));
            continue;
        }
        let component = Source::lone(path, &CONTROL)?;
        let control = if networks::is_control_lora(&component) {
            let (control, changes) = unet_changes::unet_control_lora(&component, unet)?;
            Follower::Lora(control, changes)
        } else {
            Follower::Net(networks::unet_control(&component, Some(unet.net.config()))?)
        };
        if let SideConfig::Net(config) = control.config()
            && config.pixels() != factor
        {
            let (origin, at) = (control.bound().origin(), "pixels to one of what the picture becomes");
            return Err(Error::mismatch(origin, at, factor.to_string(), config.pixels().to_string()));
        }
        controls.push(control);
    }
    Ok(controls)
}

/// With what `controls` follow.
pub(super) fn with_controls(mut rules: Rules, controls: &[Follower]) -> Rules {
    for control in controls {
        let (takes, pooled, modes) = match control.config() {
            SideConfig::Net(config) => {
                let modes = config.union.map_or(0, |union| union.num_control_type);
                (Takes::Levels, config.global_pool_conditions, modes)
            }
            SideConfig::Adapter(config) => {
                // The picture is cut into whole squares of so many pixels.
                rules.multiple = rules.multiple.max(config.downscale_factor);
                (Takes::Features, false, 0)
            }
        };
        let path = control.bound().origin().to_owned();
        rules.controls.push(ControlRules { path, takes, modes, mode_names: MODES, pooled });
    }
    rules
}

/// The width of version 2's prompts.
const WIDTH_OF_2: usize = 1024;

/// Of the versions 2, those that predict velocities have a wider spread than this in the bias of the UNet's last norm before a
/// self-attention. No file says what its model predicts; ComfyUI tells them apart so.
const SPREAD_OF_V: f32 = 0.09;

impl Rules {
    /// What holds for a UNet that is told how closely to follow the prompt: it draws in few steps, with one pass each.
    pub(super) fn with_guidance(self, unet: &Part<Unet>) -> Rules {
        if unet.net.config().time_cond_proj_dim.is_none() {
            return self;
        }
        let defaults = Defaults { steps: LCM_STEPS, cfg_scale: 1.0, ..self.defaults };
        Rules { guidance: Some(LCM_GUIDANCE), defaults, ..self }
    }
}

/// Steps and guidance of a latent consistency model, as diffusers' pipeline has them.
const LCM_STEPS: usize = 4;
const LCM_GUIDANCE: f32 = 8.5;

/// The schedule of a latent consistency model whose files have none; `None` for other UNets.
pub(super) fn schedule_of_lcm(unet: &Part<Unet>) -> Option<DiscreteConfig> {
    let class_name = "LCMScheduler".to_owned();
    let published = DiscreteConfig { class_name, set_alpha_to_one: Some(true), ..DiscreteConfig::stable_diffusion() };
    unet.net.config().time_cond_proj_dim.map(|_| published)
}

/// The published schedule of a model whose files have none. No UNet that takes more than latents predicts velocities.
fn schedule(unet: &Part<Unet>) -> Result<DiscreteConfig> {
    if let Some(of_lcm) = schedule_of_lcm(unet) {
        return Ok(of_lcm);
    }
    let first = DiscreteConfig::stable_diffusion();
    let (config, mut last) = (unet.net.config(), None);
    for (id, weight) in unet.net.model.manifest().iter() {
        if weight.name.starts_with("output_blocks.") && weight.name.ends_with(".transformer_blocks.0.norm1.bias") {
            last = Some(id);
        }
    }
    let is_version_2 = config.cross_attention_dim == WIDTH_OF_2 && config.in_channels == config.out_channels;
    let Some(norm) = last.filter(|_| is_version_2) else { return Ok(first) };
    Ok(match spread(&unet.bound.read_f32(norm)?) > SPREAD_OF_V {
        true => DiscreteConfig { class_name: "DDIMScheduler".into(), prediction_type: Prediction::V, ..first },
        false => first,
    })
}

/// The standard deviation of `numbers`.
fn spread(numbers: &[f32]) -> f32 {
    let count = numbers.len().max(1) as f32;
    let mean = numbers.iter().sum::<f32>() / count;
    let squares: f32 = numbers.iter().map(|number| (number - mean).powi(2)).sum();
    (squares / count).sqrt()
}

/// Refuses a schedule of `origin` along flows, which no UNet was trained on.
pub(super) fn of_noise(scheduler: Scheduler, origin: &Path) -> Result<Scheduler> {
    match scheduler {
        Scheduler::Flow(_) => {
            let expected = "a schedule of noise for a UNet, as EulerDiscreteScheduler is";
            let error = Error::mismatch(origin, "_class_name", expected, "one along flows");
            Err(error.with_hint("take the scheduler_config.json of a Stable Diffusion model"))
        }
        other => Ok(other),
    }
}

/// What diffusers' pipeline makes of a schedule: files written before these settings existed hold others.
fn as_published(scheduler: Scheduler) -> Scheduler {
    match scheduler {
        Scheduler::Discrete(config) => {
            Scheduler::Discrete(DiscreteConfig { steps_offset: 1, clip_sample: Some(false), ..config })
        }
        other => other,
    }
}

/// Latents on a side of the picture that the UNet of `component` was trained on; `default` if its configuration does not say.
pub(super) fn sample_size(component: &Component, default: usize) -> usize {
    let config = component.config.as_ref().and_then(|text| json::read::<serde_json::Value>(&text.text).ok());
    let size = config.and_then(|config| config["sample_size"].as_u64()).and_then(|size| usize::try_from(size).ok());
    size.filter(|size| (8..=1024).contains(size)).unwrap_or(default)
}

/// What stands beside the latents: a mask and what it leaves of a picture, a picture to be changed, or nothing.
pub(super) fn beside(unet: &Part<Unet>, vae: &Vae) -> Option<Beside> {
    let (taken, channels) = (unet.net.config().in_channels, vae.channels());
    match taken.checked_sub(channels) {
        Some(more) if more == channels + 1 => Some(Beside::Masked { draws_picture: false }),
        Some(more) if more == channels => Some(Beside::Edited),
        _ => None,
    }
}

/// Whether the UNet and the autoencoder of a model fit together.
pub(super) fn check_channels(source: &Source, unet: &Part<Unet>, vae: &Vae) -> Result<()> {
    let config = unet.net.config();
    let more = match beside(unet, vae) {
        Some(Beside::Masked { .. }) => vae.channels() + 1,
        Some(_) => vae.channels(),
        None => 0,
    };
    let channels = Side::of(unet, "in_channels of the UNet", config.in_channels - more);
    let latents = vae.side("the latent channels of the autoencoder", vae.channels());
    fit::equal(source, channels, latents)?;
    fit::exactly(unet, "out_channels of the UNet", config.out_channels, vae.channels())
}

/// Whether the parts fit together.
fn check(source: &Source, unet: &Part<Unet>, clip: &ClipEncoder, vae: &Vae) -> Result<()> {
    let config = unet.net.config();
    if config.added_width().is_some() {
        let found = "a UNet that takes a pooled prompt and sizes, as that of Stable Diffusion XL";
        return Err(Error::mismatch(unet.bound.origin(), "UNet", "one of Stable Diffusion 1", found));
    }
    check_channels(source, unet, vae)?;
    let context = Side::of(unet, "cross_attention_dim of the UNet", config.cross_attention_dim);
    fit::equal(source, context, Side::of(&clip.part, "the width of CLIP", clip.config.hidden_size))?;
    clip.check(source)
}

/// CLIP, for the tokens of the prompt.
struct SdEncoders(ClipEncoder);

impl Networks for SdEncoders {
    fn networks(&self) -> Vec<Network<'_>> {
        self.0.part.networks()
    }
}

impl Encoders for SdEncoders {
    fn readers(&self) -> Vec<Reader> {
        vec![self.0.reader(CLIP_NAME)]
    }

    fn tokenize(&self, text: &str, settings: &Settings) -> Result<Vec<Encoded>> {
        Ok(vec![self.0.read(encoders::PROMPTS[0], text, settings)?])
    }

    fn tokens(&self, texts: &[&str], settings: &Settings) -> Result<Vec<usize>> {
        encoders::tokens(&[&self.0], texts, settings)
    }

    fn reads(&self, _: PromptSyntax) -> bool {
        true
    }

    fn words(&self) -> Option<&Words> {
        self.0.words()
    }

    fn taught(&self, tokens: &[Encoded]) -> Result<Vec<f32>> {
        encoders::taught(&[&self.0], tokens)
    }

    fn subjects(&self, settings: &Settings) -> Vec<Subject<'_>> {
        vec![self.0.subject(CLIP, self.0.runs(settings))]
    }

    fn arrays(&self, tokens: usize) -> Vec<ArraySpec> {
        vec![ArraySpec { name: "hidden", dims: vec![self.0.config.hidden_size, tokens] }]
    }

    fn encode(&self, run: &mut Run<'_>, settings: &Settings, texts: &[Vec<Encoded>]) -> Result<Vec<Prompt>> {
        let subject = self.0.subject(CLIP, self.0.runs(settings));
        let hidden = self.0.hidden(run, &subject, texts.iter().map(|tokens| &tokens[0]))?;
        Ok(hidden.into_iter().map(|hidden| Prompt(vec![hidden])).collect())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::PathBuf;

    use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

    use super::*;
    use crate::models::unet::{Config, PerLevel};

    /// A small UNet of version 2.
    fn small() -> Config {
        let [attends, plain] = ["CrossAttn", ""].map(|of| [format!("{of}DownBlock2D"), format!("{of}UpBlock2D")]);
        let ([down, up], [last, first]) = (attends, plain);
        Config {
            block_out_channels: vec![64, 128],
            down_block_types: vec![down, last],
            up_block_types: vec![first, up],
            attention_head_dim: PerLevel::Each(vec![1, 2]),
            transformer_layers_per_block: crate::models::unet::Depths::All(1),
            ..Config::sd2()
        }
    }

    /// The name that diffusers has for a weight of a UNet.
    fn in_diffusers(name: &str) -> String {
        let layout = alias::UnetLayout { layers: vec![2; 2] };
        alias::unet(&layout, name).into_iter().flatten().last().unwrap().name
    }

    /// What is told of the file of a UNet whose vectors spread as `spread` says of their canonical names.
    fn prediction(path: PathBuf, config: &Config, rename: fn(&str) -> String, spread: fn(&str) -> f32) -> Prediction {
        let net = Unet::new(config).unwrap();
        let mut stored = Vec::new();
        for (_, weight) in net.model.manifest().iter() {
            let spread = spread(&weight.name);
            let numbers = (0..weight.shape.elements()).map(|i| if i % 2 == 0 { spread } else { -spread });
            let bytes: Vec<u8> = numbers.flat_map(f32::to_le_bytes).collect();
            let extents: Vec<usize> = weight.shape.dims()[..weight.shape.rank()].iter().rev().copied().collect();
            stored.push((rename(&weight.name), extents, bytes));
        }
        let views = stored.iter().map(|(name, extents, bytes)| {
            (name.as_str(), TensorView::new(Dtype::F32, extents.clone(), bytes).unwrap())
        });
        serialize_to_file(views, None, &path).unwrap();
        let component = Source::lone(&path, &SD1.places[0]).unwrap();
        assert!(component.config.is_none());
        schedule(&networks::unet(&component).unwrap()).unwrap().prediction_type
    }

    #[test]
    fn velocities_are_told_by_the_last_norm() {
        fn is_last(name: &str) -> bool {
            name == "output_blocks.5.1.transformer_blocks.0.norm1.bias"
        }
        let dir = tempfile::tempdir().unwrap();
        let wide: fn(&str) -> f32 = |name| if is_last(name) { 0.2 } else { 0.01 };
        let narrow: fn(&str) -> f32 = |name| if is_last(name) { 0.08 } else { 0.2 };
        let masked = Config { in_channels: 9, ..small() };
        let first = Config { cross_attention_dim: 768, ..small() };
        for (i, rename) in [str::to_owned as fn(&str) -> String, in_diffusers].into_iter().enumerate() {
            let path = |of: &str| dir.path().join(format!("{of}-{i}.safetensors"));
            assert_eq!(prediction(path("wide"), &small(), rename, wide), Prediction::V);
            assert_eq!(prediction(path("narrow"), &small(), rename, narrow), Prediction::Epsilon);
            assert_eq!(prediction(path("masked"), &masked, rename, wide), Prediction::Epsilon);
            assert_eq!(prediction(path("first"), &first, rename, wide), Prediction::Epsilon);
        }
    }

    #[test]
    fn the_spread_is_the_standard_deviation() {
        assert_eq!(spread(&[1.0, 3.0, 1.0, 3.0]), 1.0);
        assert_eq!((spread(&[0.5; 320]), spread(&[])), (0.0, 0.0));
    }
}
