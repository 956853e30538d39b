//! Stable Diffusion XL and its refiner: diffusers' `StableDiffusionXLPipeline` and `StableDiffusionXLImg2ImgPipeline`. Two CLIPs, whose last but one layers the UNet reads side by side; the
//! second one's pooled vector and six sizes are added to the time.

use std::path::Path;

use super::encoders::{self, ClipEncoder};
use super::fit::{self, Side};
use super::opened::{Additions, Encoders, Family, ImagePrompts, Opened, Reader};
use super::prompts::{ArraySpec, Prompt};
use super::request::Settings;
use super::rules::{Defaults, GuidanceScale, Rules};
use super::run::Run;
use super::safety;
use super::sd;
use super::sd_image_prompts::SdImagePrompts;
use super::textual_inversion::{BY_ENCODER, Words};
use super::unet_denoiser::UnetDenoiser;
use super::vae::Vae;
use crate::bind::alias;
use crate::models::clip::Output;
use crate::models::unet::{SIZES, SIZES_OF_REFINER, Unet};
use crate::plan::measure::Subject;
use crate::sample::{AYS_XL, DiscreteConfig, Prediction, Scheduler};
use crate::source::networks;
use crate::source::slot::{TEXT_ENCODER, TEXT_ENCODER_2, TINY_VAE, UNET, VAE};
use crate::source::{Component, Network, Networks, Part, Place, Source, Text};
use crate::text::{Encoded, PromptSyntax};
use crate::{Error, Result};

/// Stable Diffusion XL.
pub(super) static SDXL: Family = Family {
    name: "sdxl",
    classes: &[
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
        "StableDiffusionXLInstructPix2PixPipeline",
    ],
    places: &[
        Place::needed(&UNET, &alias::UNET, |component| Ok(Box::new(networks::unet(component)?))),
        Place::needed(&TEXT_ENCODER, &alias::CLIP, |component| Ok(Box::new(networks::clip(component)?.0))),
        Place::needed(&TEXT_ENCODER_2, &alias::CLIP, |component| {
            Ok(Box::new(networks::clip_with(component, Output::SECOND_LAST_PROJECTED)?.0))
        }),
        Place::needed(&VAE, &alias::AUTOENCODER_KL, |component| {
            Ok(Box::new(networks::autoencoder_kl_of(component, Some(SCALE))?))
        })
        .unless(&TINY_VAE),
        Place::given(&TINY_VAE, &alias::AUTOENCODER_TINY, |component| {
            Ok(Box::new(networks::autoencoder_tiny(component)?))
        }),
        safety::PLACE,
    ],
    // The pooled prompt and the sizes, by the original's name and by diffusers'.
    beside: &[sd::CONTROL, sd::ADAPTER],
    marks: &["label_emb.0.0.weight", "add_embedding.linear_1.weight"],
    tokens: 77,
    denoiser: |source| Ok(Box::new(UnetDenoiser::new(networks::unet(source.component(&UNET)?)?, &[]))),
    open,
};

/// Latents on a side of the picture that a model was trained on, if its files do not say.
const SAMPLE_SIZE: usize = 128;

/// What latents are multiplied by, if the autoencoder's file does not say.
const SCALE: f32 = 0.13025;

/// The setting of the pipeline that says whether zeros stand for a negative prompt that was not given. They do in the base model,
/// and in files that do not say.
const FORCE_ZEROS: &str = "force_zeros_for_empty_prompt";

/// The names of the text encoders' subjects.
const CLIPS: [&str; 2] = ["clip", "clip_2"];

/// What the text encoders are called in messages.
const NAMES: [&str; 2] = ["CLIP", "the second CLIP"];

/// Those of the family's first version, except what was published otherwise.
fn rules(side: usize, factor: usize, tokens: usize) -> Rules {
    let first = sd::rules(side, factor, tokens);
    let defaults = Defaults { cfg_scale: 5.0, strength: 0.3, strength_with_mask: 0.9999, ..first.defaults };
    Rules { is_told_sizes: true, ays: AYS_XL, zeros_without_negative: true, defaults, ..first }
}

/// The refiner, which makes the last steps: its UNet reads the second CLIP alone, and is told how pleasing the picture is.
pub(super) static REFINER: Family = Family {
    name: "sdxl-refiner",
    // Those of the other: see `is_refiner`.
    classes: &[],
    places: &[
        Place::needed(&UNET, &alias::UNET, |component| Ok(Box::new(networks::unet(component)?))),
        Place::needed(&TEXT_ENCODER_2, &alias::CLIP, |component| {
            Ok(Box::new(networks::clip_with(component, Output::SECOND_LAST_PROJECTED)?.0))
        }),
        Place::needed(&VAE, &alias::AUTOENCODER_KL, |component| {
            Ok(Box::new(networks::autoencoder_kl_of(component, Some(SCALE))?))
        })
        .unless(&TINY_VAE),
        Place::given(&TINY_VAE, &alias::AUTOENCODER_TINY, |component| {
            Ok(Box::new(networks::autoencoder_tiny(component)?))
        }),
        safety::PLACE,
    ],
    open: open_refiner,
    ..SDXL
};

/// The setting of the pipeline that says that a model is told scores.
const SCORES: &str = "requires_aesthetics_score";

/// How the names of two tensors of the UNet end: what the sizes become, by the original's name and by diffusers', and what
/// attention makes of the prompt.
const ADDED: [&str; 2] = ["label_emb.0.0.weight", "add_embedding.linear_1.weight"];
const CONTEXT: &str = "attn2.to_k.weight";

/// The width of the embedding of a size in the published models.
const SIZE_WIDTH: usize = 256;

/// Whether `source` is a refiner. A directory says so; in a file, the UNet's prompt is as wide as the pooled one.
pub(super) fn is_refiner(source: &Source) -> bool {
    if let Some(says) = source.pipeline_setting(SCORES).and_then(|setting| setting.as_bool()) {
        return says;
    }
    let row = |ends: &[&str]| {
        let tensors = source.indexes().into_iter().flat_map(|index| index.iter());
        let mut rows = tensors.filter(|(name, _)| ends.iter().any(|end| name.ends_with(end)));
        rows.next().map(|(_, tensor)| tensor.shape.row())
    };
    row(&ADDED).zip(row(&[CONTEXT])).is_some_and(|(added, context)| added == context + SIZES_OF_REFINER * SIZE_WIDTH)
}

/// The refiner at `path`, to go on where the model stops whose latents have so many channels.
fn refiner(path: &Path, channels: usize, additions: &Additions) -> Result<Opened> {
    let source = Source::open(path)?;
    if !is_refiner(&source) {
        let expected = "the refiner of Stable Diffusion XL, with one text encoder";
        let error = Error::mismatch(path, "refiner", expected, "another model");
        return Err(
            error.with_hint("models of one text encoder and five sizes are refiners: sd_xl_refiner_1.0.safetensors")
        );
    }
    let source = source.arranged(REFINER.name, REFINER.places)?;
    source.require(REFINER.places)?;
    let Additions { embeddings, embeddings_folder, .. } = additions.clone();
    let refiner = open_refiner(source, &Additions { embeddings, embeddings_folder, ..Additions::default() })?;
    let found = refiner.autoencoder.channels();
    match found == channels {
        true => Ok(refiner),
        false => Err(Error::mismatch(path, "latent channels", channels.to_string(), found.to_string())),
    }
}

fn open_refiner(source: Source, additions: &Additions) -> Result<Opened> {
    additions.refuse_image_prompts()?;
    additions.refuse_controls()?;
    additions.refuse_refiner()?;
    source.require_configurations()?;
    let mut unet = networks::unet(source.component(&UNET)?)?;
    let skipped = additions.clip_skip.unwrap_or(0).saturating_add(1);
    let output = Output { skipped, ..Output::SECOND_LAST_PROJECTED };
    let mut clip = ClipEncoder::open_with(&source, &TEXT_ENCODER_2, output)?;
    let vae = Vae::open(&source, Some(SCALE))?;
    let scheduler = match &source.scheduler {
        Some(Text { text, origin }) => sd::of_noise(Scheduler::from_json(text, origin)?, origin)?,
        None => Scheduler::Discrete(schedule(source.component(&UNET)?)),
    };
    sd::check_channels(&source, &unet, &vae)?;
    let hidden = Side::of(&clip.part, "the width of the second CLIP", clip.config.hidden_size);
    let context = unet.net.config().cross_attention_dim;
    fit::equal(&source, Side::of(&unet, "cross_attention_dim of the UNet", context), hidden)?;
    check_added(&source, &unet, &clip, SIZES_OF_REFINER)?;
    clip.check(&source)?;
    encoders::teach(&mut [(&mut clip, Some(BY_ENCODER[1]))], additions)?;
    let loras = additions.apply(&mut [unet.target(), clip.part.target()])?;
    let side = sd::sample_size(source.component(&UNET)?, SAMPLE_SIZE) * vae.factor();
    let rules = rules(side, vae.factor(), clip.reader(NAMES[1]).length).with(sd::beside(&unet, &vae));
    let zeros = source.pipeline_setting(FORCE_ZEROS).and_then(|setting| setting.as_bool());
    let rules = Rules { zeros_without_negative: zeros.unwrap_or(false), is_told_scores: true, ..rules };
    let rules = rules.read(&source, GuidanceScale::Free)?;
    Ok(Opened {
        family: &REFINER,
        encoders: Box::new(SdxlEncoders { first: None, second: clip }),
        denoiser: Box::new(UnetDenoiser::new(unet, &[])),
        tiny: vae.tiny(&source)?,
        autoencoder: vae.boxed(),
        scheduler,
        rules,
        loras,
        image_prompts: None,
        face: None,
        safety: None,
        upscaler: None,
        refiner: None,
        source,
    })
}

fn open(source: Source, additions: &Additions) -> Result<Opened> {
    additions.refuse_face_alone()?;
    source.require_configurations()?;
    let unet = networks::unet(source.component(&UNET)?)?;
    // Layers are counted from the last but one, as in diffusers.
    let skipped = additions.clip_skip.unwrap_or(0).saturating_add(1);
    let mut clips = [
        ClipEncoder::open_with(&source, &TEXT_ENCODER, Output { skipped, ..Output::SECOND_LAST })?,
        ClipEncoder::open_with(&source, &TEXT_ENCODER_2, Output { skipped, ..Output::SECOND_LAST_PROJECTED })?,
    ];
    let vae = Vae::open(&source, Some(SCALE))?;
    let scheduler = match &source.scheduler {
        Some(Text { text, origin }) => sd::of_noise(Scheduler::from_json(text, origin)?, origin)?,
        None => match sd::schedule_of_lcm(&unet) {
            Some(of_lcm) => Scheduler::Discrete(of_lcm),
            None => Scheduler::Discrete(schedule(source.component(&UNET)?)),
        },
    };
    check(&source, &unet, &clips, &vae)?;
    let refiner = additions.refiner.as_deref().map(|path| refiner(path, vae.channels(), additions)).transpose()?;
    let controls = sd::open_controls(additions, &unet, vae.factor())?;
    let (image_prompts, ip) = SdImagePrompts::open(additions, &unet)?.unzip();
    let mut unet = networks::unet_with(unet, &controls, ip.as_ref().map(|ip| &ip.adapter))?;
    ip.iter().try_for_each(|ip| ip.attach(&mut unet))?;
    let [clip, clip_2] = &mut clips;
    encoders::teach(&mut [(clip, Some(BY_ENCODER[0])), (clip_2, Some(BY_ENCODER[1]))], additions)?;
    let loras = additions.apply(&mut [unet.target(), clip.part.target(), clip_2.part.target()])?;
    let side = sd::sample_size(source.component(&UNET)?, SAMPLE_SIZE) * vae.factor();
    let rules = rules(side, vae.factor(), clips[0].reader(NAMES[0]).length).with(sd::beside(&unet, &vae));
    let rules = rules.with_guidance(&unet);
    let zeros = source.pipeline_setting(FORCE_ZEROS).and_then(|setting| setting.as_bool());
    let rules = Rules { zeros_without_negative: zeros.unwrap_or(rules.zeros_without_negative), ..rules };
    let rules = sd::with_controls(rules.read(&source, GuidanceScale::Free)?, &controls);
    let [first, second] = clips;
    Ok(Opened {
        family: &SDXL,
        encoders: Box::new(SdxlEncoders { first: Some(first), second }),
        denoiser: Box::new(UnetDenoiser::new(unet, &controls)),
        tiny: vae.tiny(&source)?,
        autoencoder: vae.boxed(),
        scheduler,
        rules,
        loras,
        image_prompts: image_prompts.map(|pictures| Box::new(pictures) as Box<dyn ImagePrompts>),
        face: None,
        safety: None,
        upscaler: None,
        refiner: refiner.map(Box::new),
        source,
    })
}

/// The base model's, as published. Files of models that predict velocities, or were trained down to noise alone, say so by an
/// empty tensor.
fn schedule(unet: &Component) -> DiscreteConfig {
    let published =
        DiscreteConfig { class_name: "EulerDiscreteScheduler".into(), ..DiscreteConfig::stable_diffusion() };
    let has = |name: &str| ["", unet.prefix.as_str()].iter().any(|prefix| unet.index.has(&format!("{prefix}{name}")));
    DiscreteConfig {
        prediction_type: if has("v_pred") { Prediction::V } else { Prediction::Epsilon },
        rescale_betas_zero_snr: has("ztsnr"),
        ..published
    }
}

/// Whether the parts fit together.
fn check(source: &Source, unet: &Part<Unet>, clips: &[ClipEncoder; 2], vae: &Vae) -> Result<()> {
    let (config, [clip, clip_2]) = (unet.net.config(), clips);
    sd::check_channels(source, unet, vae)?;
    let hidden = clip.config.hidden_size + clip_2.config.hidden_size;
    let context = Side::of(unet, "cross_attention_dim of the UNet", config.cross_attention_dim);
    fit::equal(source, context, Side::of(&clip_2.part, "the widths of both CLIPs", hidden))?;
    check_added(source, unet, clip_2, SIZES)?;
    let tokens = Side::of(&clip.part, "the tokens of CLIP", clip.reader(NAMES[0]).length);
    let tokens_2 = Side::of(&clip_2.part, "the tokens of the second CLIP", clip_2.reader(NAMES[1]).length);
    fit::equal(source, tokens, tokens_2)?;
    clip.check(source)?;
    clip_2.check(source)
}

/// Whether what is added to the time of `unet` is the pooled prompt of `clip`, and so many sizes.
fn check_added(source: &Source, unet: &Part<Unet>, clip: &ClipEncoder, sizes: usize) -> Result<()> {
    let config = unet.net.config();
    let Some(added) = config.added_width() else {
        let found = "a UNet that takes neither a pooled prompt nor sizes, as that of Stable Diffusion 1";
        return Err(Error::mismatch(unet.bound.origin(), "UNet", "one of Stable Diffusion XL", found));
    };
    let Some(pooled) = clip.config.projection_dim else {
        let found = "one without text_projection";
        return Err(Error::mismatch(clip.part.bound.origin(), "text_encoder_2", "CLIP with its projection", found));
    };
    let what = if sizes == SIZES { "the pooled prompt with six sizes" } else { "the pooled prompt with five sizes" };
    let sizes = sizes * config.addition_time_embed_dim.unwrap_or(0);
    let added = Side::of(unet, "projection_class_embeddings_input_dim of the UNet", added);
    fit::equal(source, added, Side::of(&clip.part, what, pooled + sizes))
}

/// Both CLIPs, for the tokens of the prompt; the second for the pooled prompt. A refiner has the second alone.
struct SdxlEncoders {
    first: Option<ClipEncoder>,
    second: ClipEncoder,
}

impl SdxlEncoders {
    /// Those that are there, in order, with the names of their subjects and what they are called in messages.
    fn named(&self) -> Vec<(&ClipEncoder, &'static str, &'static str)> {
        let first = self.first.iter().map(|clip| (clip, CLIPS[0], NAMES[0]));
        first.chain([(&self.second, CLIPS[1], NAMES[1])]).collect()
    }

    fn clips(&self) -> Vec<&ClipEncoder> {
        self.first.iter().chain([&self.second]).collect()
    }
}

impl Networks for SdxlEncoders {
    fn networks(&self) -> Vec<Network<'_>> {
        self.clips().into_iter().flat_map(|clip| clip.part.networks()).collect()
    }
}

impl Encoders for SdxlEncoders {
    fn readers(&self) -> Vec<Reader> {
        self.named().into_iter().map(|(clip, _, name)| clip.reader(name)).collect()
    }

    fn tokenize(&self, text: &str, settings: &Settings) -> Result<Vec<Encoded>> {
        self.clips().into_iter().map(|clip| clip.read(encoders::PROMPTS[0], text, settings)).collect()
    }

    fn tokens(&self, texts: &[&str], settings: &Settings) -> Result<Vec<usize>> {
        encoders::tokens(&self.clips(), texts, settings)
    }

    fn reads(&self, _: PromptSyntax) -> bool {
        true
    }

    fn words(&self) -> Option<&Words> {
        self.second.words()
    }

    fn taught(&self, tokens: &[Encoded]) -> Result<Vec<f32>> {
        encoders::taught(&self.clips(), tokens)
    }

    fn subjects(&self, settings: &Settings) -> Vec<Subject<'_>> {
        self.named().into_iter().map(|(clip, name, _)| clip.subject(name, clip.runs(settings))).collect()
    }

    fn arrays(&self, tokens: usize) -> Vec<ArraySpec> {
        let width = self.clips().iter().map(|clip| clip.config.hidden_size).sum();
        let pooled = self.second.config.projection_dim.unwrap_or(0);
        vec![ArraySpec { name: "hidden", dims: vec![width, tokens] }, ArraySpec { name: "pooled", dims: vec![pooled] }]
    }

    fn encode(&self, run: &mut Run<'_>, settings: &Settings, texts: &[Vec<Encoded>]) -> Result<Vec<Prompt>> {
        let SdxlEncoders { first, second } = self;
        let hidden = match first {
            Some(clip) => {
                let subject = clip.subject(CLIPS[0], clip.runs(settings));
                Some((clip.hidden(run, &subject, texts.iter().map(|tokens| &tokens[0]))?, clip.config.hidden_size))
            }
            None => None,
        };
        let (last, subject) = (usize::from(first.is_some()), second.subject(CLIPS[1], second.runs(settings)));
        let both = second.hidden_and_pooled(run, &subject, texts.iter().map(|tokens| &tokens[last]))?;
        let mut prompts = Vec::with_capacity(texts.len());
        for (at, (own, pooled)) in both.into_iter().enumerate() {
            let joined = match &hidden {
                Some((first, width)) => side_by_side(&first[at], &own, [*width, second.config.hidden_size])?,
                None => own,
            };
            prompts.push(Prompt(vec![joined, pooled]));
        }
        Ok(prompts)
    }
}

/// The hidden states of each token in `first`, `[widths[0], tokens]`, and behind them those in `second`, `[widths[1], tokens]`.
fn side_by_side(first: &[f32], second: &[f32], widths: [usize; 2]) -> Result<Vec<f32>> {
    let mut all = crate::reserve::room("the prompt", first.len() + second.len())?;
    for (first, second) in first.chunks(widths[0]).zip(second.chunks(widths[1])) {
        all.extend_from_slice(first);
        all.extend_from_slice(second);
    }
    Ok(all)
}
