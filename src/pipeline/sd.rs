//! Stable Diffusion 1 and 2: diffusers' `StableDiffusionPipeline`. Version 2 has another text encoder, OpenCLIP's, and some of its
//! models predict velocities.

use std::path::Path;

use super::encoders::{self, CLIP_NAME, ClipEncoder};
use super::fit::{self, Side};
use super::opened::{Additions, Denoiser, Encoders, Family, Given, Opened, Reader, StepPorts, subject};
use super::prompts::{ArraySpec, Prompt};
use super::request::Settings;
use super::rules::{Beside, Defaults, GuidanceScale, Rules, Starts, Use};
use super::run::Run;
use super::safety;
use super::step_cache::Caches;
use super::textual_inversion::Words;
use super::vae::Vae;
use crate::bind::alias;
use crate::exec::Session;
use crate::models::clip::Output;
use crate::models::layers::sinusoid;
use crate::models::unet::{Size, Unet};
use crate::plan::measure::Subject;
use crate::plan::{Phase, Runs};
use crate::sample::{AYS, DiscreteConfig, Prediction, Scheduler};
use crate::source::networks;
use crate::source::slot::{TEXT_ENCODER, TINY_VAE, UNET, VAE};
use crate::source::{Component, Network, Networks, Part, Place, Source, Text};
use crate::stage::Symbol;
use crate::text::{Encoded, PromptSyntax};
use crate::{Error, Result, json, reserve};

/// Stable Diffusion 1.
pub(super) static SD1: Family = Family {
    name: "sd1",
    classes: &[
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionInstructPix2PixPipeline",
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
    beside: &[],
    marks: &[],
    tokens: 77,
    denoiser: |source| Ok(Box::new(UnetDenoiser(networks::unet(source.component(&UNET)?)?))),
    open,
};

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
    additions.refuse_image_prompts()?;
    additions.refuse_controls()?;
    additions.refuse_refiner()?;
    for component in source.components() {
        component.require_configuration()?;
    }
    let mut unet = networks::unet(source.component(&UNET)?)?;
    let output = Output { skipped: additions.clip_skip.unwrap_or(0), ..OUTPUT };
    let mut clip = ClipEncoder::open_with(&source, &TEXT_ENCODER, output)?;
    let vae = Vae::open(&source, None)?;
    let scheduler = match &source.scheduler {
        Some(Text { text, origin }) => of_noise(Scheduler::from_json(text, origin)?, origin)?,
        None => Scheduler::Discrete(schedule(&unet)?),
    };
    check(&source, &unet, &clip, &vae)?;
    encoders::teach(&mut [(&mut clip, None)], additions)?;
    let loras = additions.apply(&mut [unet.target(), clip.part.target()])?;
    let predicts_v = matches!(&scheduler, Scheduler::Discrete(config) if config.prediction_type == Prediction::V);
    let trained_on = if predicts_v { LARGER_SAMPLE_SIZE } else { SAMPLE_SIZE };
    let side = sample_size(source.component(&UNET)?, trained_on) * vae.factor();
    let rules = rules(side, vae.factor(), clip.reader(CLIP_NAME).length).with(beside(&unet, &vae));
    let rules = rules.read(&source, GuidanceScale::Free)?;
    Ok(Opened {
        family: &SD1,
        encoders: Box::new(SdEncoders(clip)),
        denoiser: Box::new(UnetDenoiser(unet)),
        tiny: vae.tiny(&source)?,
        autoencoder: vae.boxed(),
        scheduler: as_published(scheduler),
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

/// The width of version 2's prompts.
const WIDTH_OF_2: usize = 1024;

/// Of the versions 2, those that predict velocities have a wider spread than this in the bias of the UNet's last norm before a
/// self-attention. No file says what its model predicts; ComfyUI tells them apart so.
const SPREAD_OF_V: f32 = 0.09;

/// The published schedule of a model whose files have none.
fn schedule(unet: &Part<Unet>) -> Result<DiscreteConfig> {
    let first = DiscreteConfig::stable_diffusion();
    let manifest = unet.net.model.manifest();
    let is_last_norm =
        |name: &str| name.ends_with(".transformer_blocks.0.norm1.bias") && name.starts_with("up_blocks.");
    let norm = manifest.iter().filter(|(_, weight)| is_last_norm(&weight.name)).last();
    let (WIDTH_OF_2, Some((norm, _))) = (unet.net.config().cross_attention_dim, norm) else { return Ok(first) };
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

/// The UNet.
pub(super) struct UnetDenoiser(pub(super) Part<Unet>);

impl Networks for UnetDenoiser {
    fn networks(&self) -> Vec<Network<'_>> {
        self.0.networks()
    }
}

impl UnetDenoiser {
    /// For every condition, the pooled prompt and behind it the embedded sizes: of the original, where it was cut off, and of the
    /// picture, down before across. A refiner is told how pleasing the picture is in the place of its size. As `_get_add_time_ids` of
    /// diffusers' `StableDiffusionXLPipeline` and `StableDiffusionXLImg2ImgPipeline`.
    fn added(&self, given: &Given<'_>) -> Result<Vec<f32>> {
        let Settings { width, height, original_size, crop, aesthetic, .. } = *given.settings;
        let [original_width, original_height] = original_size;
        let [left, top] = crop;
        let size_width = self.0.net.config().addition_time_embed_dim.unwrap_or(0);
        let mut one = Vec::new();
        for (i, Prompt(arrays)) in given.prompts.iter().enumerate() {
            one.extend_from_slice(&arrays[1]);
            let is_first = given.pass + i == 0;
            // diffusers tells a refiner of no crop with the negative prompt.
            let [top, left] = if aesthetic.is_some() && !is_first { [0, 0] } else { [top, left] };
            let mut told = [original_height, original_width, top, left].map(|size| size as f32).to_vec();
            match aesthetic {
                Some([with, without]) => told.push(if is_first { with } else { without }),
                None => told.extend([height, width].map(|size| size as f32)),
            }
            for size in told {
                one.extend(sinusoid(size, size_width));
            }
        }
        reserve::repeat("the sizes", &one, given.evaluations.len())
    }
}

impl Denoiser for UnetDenoiser {
    fn subjects(&self, settings: &Settings, latents: [usize; 4], evaluations: usize) -> Vec<Subject<'_>> {
        let ([width, height, ..], passes) = (latents, settings.passes());
        let dims = self.0.net.dims(Size {
            width,
            height,
            batch: settings.batch * passes,
            text_tokens: settings.most_text_tokens(),
            conditions: evaluations * passes,
        });
        let dims = dims.with(Symbol::PASSES, passes);
        vec![subject(&self.0, UNET.name, Phase::Denoise, dims, Runs { request: 1, steps: evaluations })]
    }

    fn ports(&self, _: usize) -> StepPorts {
        let ports = &self.0.net.ports;
        StepPorts { latents: ports.latents, prediction: ports.prediction, condition: ports.condition }
    }

    fn fill(&self, _: usize, session: &mut Session<'_>, given: &Given<'_>) -> Result<()> {
        let (ports, width) = (&self.0.net.ports, self.0.net.config().time_width());
        session.set(ports.time, &given.times(|time| sinusoid(time, width))?)?;
        if let Some(added) = ports.added {
            session.set(added, &self.added(given)?)?;
        }
        session.set(ports.context, &given.prompt(0)?)
    }

    fn beside(&self, [w, h, ..]: [usize; 4]) -> usize {
        let config = self.0.net.config();
        config.in_channels.saturating_sub(config.out_channels) * w * h
    }

    fn pack_beside(&self, latents: &[f32], mask: Option<&[f32]>, [w, h, ..]: [usize; 4]) -> Result<Vec<f32>> {
        let mut beside = reserve::room("the latents", latents.len() + w * h)?;
        if let Some(mask) = mask {
            // One of the pixels of each latent, as `torch.nn.functional.interpolate` takes it (`mode="nearest"`).
            let factor = (mask.len() / (w * h)).isqrt();
            for row in mask.chunks_exact(w * factor).step_by(factor) {
                beside.extend(row.iter().step_by(factor));
            }
        }
        beside.extend_from_slice(latents);
        Ok(beside)
    }

    fn pack(&self, latents: &[f32], _: [usize; 4]) -> Result<Vec<f32>> {
        reserve::repeat("the latents", latents, 1)
    }

    fn unpack(&self, packed: &[f32], _: [usize; 4]) -> Result<Vec<f32>> {
        reserve::repeat("the latents", packed, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spread_is_the_standard_deviation() {
        assert_eq!(spread(&[1.0, 3.0, 1.0, 3.0]), 1.0);
        assert_eq!((spread(&[0.5; 320]), spread(&[])), (0.0, 0.0));
    }
}
