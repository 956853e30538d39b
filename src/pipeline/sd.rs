//! Stable Diffusion 1 and 2: diffusers' `StableDiffusionPipeline`. Version 2 has another text encoder, OpenCLIP's, and some of its
//! models predict velocities.

use std::path::Path;

use super::controls;
use super::encoders::{self, CLIP_NAME, ClipEncoder};
use super::fit::{self, Side};
use super::opened::{Additions, Denoiser, Encoders, Family, Given, ImagePrompts, Opened, Reader, StepPorts, subject};
use super::prompts::{ArraySpec, Prompt};
use super::request::Settings;
use super::rules::{Beside, ControlRules, Defaults, GuidanceScale, Rules, Starts, Takes, Use};
use super::run::Run;
use super::safety;
use super::sd_image_prompts::SdImagePrompts;
use super::step_cache::Caches;
use super::textual_inversion::Words;
use super::vae::Vae;
use crate::bind::alias;
use crate::exec::Session;
use crate::image::{CHANNELS, luma};
use crate::models::clip::Output;
use crate::models::control_runs::runs_of;
use crate::models::layers::sinusoid;
use crate::models::unet::adapter;
use crate::models::unet::control::Colours;
use crate::models::unet::{IP_PICTURES, SideConfig, Size, Unet};
use crate::plan::measure::Subject;
use crate::plan::{Phase, Runs};
use crate::sample::{AYS, DiscreteConfig, Prediction, Scheduler};
use crate::source::networks::{self, Side as Follower};
use crate::source::slot::{CONTROLNET, TEXT_ENCODER, TINY_VAE, UNET, VAE};
use crate::source::{Component, Network, Networks, Part, Place, Source, Text};
use crate::stage::{Dims, Symbol};
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
    additions.refuse_face()?;
    additions.refuse_refiner()?;
    for component in source.components() {
        component.require_configuration()?;
    }
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
    let (image_prompts, ip) = SdImagePrompts::open(additions)?.unzip();
    let mut unet = networks::unet_with(unet, &controls, ip.as_ref())?;
    let loras = additions.apply(&mut [unet.target(), clip.part.target()])?;
    let predicts_v = matches!(&scheduler, Scheduler::Discrete(config) if config.prediction_type == Prediction::V);
    let trained_on = if predicts_v { LARGER_SAMPLE_SIZE } else { SAMPLE_SIZE };
    let side = sample_size(source.component(&UNET)?, trained_on) * vae.factor();
    let rules = rules(side, vae.factor(), clip.reader(CLIP_NAME).length).with(beside(&unet, &vae));
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

/// The ControlNets and T2I-Adapters of `additions`, beside a model with so many pixels to a latent.
pub(super) fn open_controls(additions: &Additions, unet: &Part<Unet>, factor: usize) -> Result<Vec<Follower>> {
    controls::check_count(additions.controls.len())?;
    let mut controls = Vec::with_capacity(additions.controls.len());
    for path in &additions.controls {
        if let Ok(component) = Source::lone(path, &ADAPTER) {
            controls.push(Follower::Adapter(networks::t2i_adapter(&component)?));
            continue;
        }
        let control = networks::unet_control(&Source::lone(path, &CONTROL)?, Some(unet.net.config()))?;
        let (expected, found) = (factor, control.net.config().pixels());
        if expected != found {
            let at = "pixels to one of what the picture becomes";
            return Err(Error::mismatch(control.bound.origin(), at, expected.to_string(), found.to_string()));
        }
        controls.push(Follower::Net(control));
    }
    Ok(controls)
}

/// With what `controls` follow.
pub(super) fn with_controls(mut rules: Rules, controls: &[Follower]) -> Rules {
    for control in controls {
        let (takes, pooled) = match control.config() {
            SideConfig::Net(config) => (Takes::Levels, config.global_pool_conditions),
            SideConfig::Adapter(config) => {
                // The picture is cut into whole squares of so many pixels.
                rules.multiple = rules.multiple.max(config.downscale_factor);
                (Takes::Features, false)
            }
        };
        let path = control.bound().origin().to_owned();
        rules.controls.push(ControlRules { path, takes, modes: 0, mode_names: &[], pooled });
    }
    rules
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

/// The UNet, with the ControlNets that run beside it.
pub(super) struct UnetDenoiser {
    part: Part<Unet>,
    controls: Vec<SideConfig>,
}

impl Networks for UnetDenoiser {
    fn networks(&self) -> Vec<Network<'_>> {
        self.part.networks()
    }
}

/// The colours of `picture [W, H, 3]` in the other order.
fn turned(picture: &[f32]) -> Result<Vec<f32>> {
    let mut turned = reserve::room("a picture", picture.len())?;
    let planes = picture.chunks_exact((picture.len() / CHANNELS).max(1));
    planes.rev().for_each(|plane| turned.extend_from_slice(plane));
    Ok(turned)
}

/// `picture [W, H, 3]` as an adapter takes it: the pixels of a square as channels, those of one colour row by row, then those of the next.
/// PyTorch's `pixel_unshuffle`.
fn unshuffled(picture: &[f32], width: usize, config: &adapter::Config) -> Result<Vec<f32>> {
    let adapter::Config { downscale_factor: side, in_channels, .. } = *config;
    let pixels = picture.len() / CHANNELS;
    let mut gray = Vec::new();
    let planes = match in_channels {
        1 => {
            // Of bytes, as Pillow makes it.
            let byte = |i: usize, c: usize| (255.0 * picture[c * pixels + i]).round() as u8;
            let value = |i: usize| f32::from(luma(&[byte(i, 0), byte(i, 1), byte(i, 2)])) / 255.0;
            gray.extend(reserve::collect("a picture", pixels, (0..pixels).map(value))?);
            &gray[..]
        }
        _ => picture,
    };
    let mut all = reserve::room("a picture", planes.len())?;
    for plane in planes.chunks_exact(pixels.max(1)) {
        for (y, x) in (0..side).flat_map(|y| (0..side).map(move |x| (y, x))) {
            for row in plane.chunks_exact(width).skip(y).step_by(side) {
                all.extend(row.iter().skip(x).step_by(side));
            }
        }
    }
    Ok(all)
}

/// What the residuals of a ControlNet are multiplied with, `count` of them: as diffusers, a guess begins with a tenth for the finest.
fn residual_scales(count: usize, scale: f32, guesses: bool) -> Vec<f32> {
    let last = count.saturating_sub(1).max(1) as f64;
    let factor = |i: usize| if guesses { 10f64.powf(i as f64 / last - 1.0) as f32 } else { 1.0 };
    (0..count).map(|i| factor(i) * scale).collect()
}

impl UnetDenoiser {
    pub(super) fn new(part: Part<Unet>, controls: &[Follower]) -> UnetDenoiser {
        UnetDenoiser { part, controls: controls.iter().map(Follower::config).collect() }
    }

    /// `dims` with what ControlNets run in: those steps that each has a part in, and, if they guess, the prompt's pass alone.
    fn with_runs(&self, mut dims: Dims, settings: &Settings, evaluations: usize) -> Dims {
        for pass in 1..if settings.control_guess { settings.passes() } else { 0 } {
            for (i, config) in self.controls.iter().enumerate() {
                if let (SideConfig::Net(_), Some(runs)) = (config, runs_of(i)) {
                    dims = dims.with_in_pass(pass, runs, 0);
                }
            }
        }
        dims.with_spans(controls::spans(settings, evaluations))
    }

    /// Fills the ports of the ControlNets.
    fn fill_controls(&self, session: &mut Session<'_>, given: &Given<'_>) -> Result<()> {
        let (net, settings) = (&self.part.net, given.settings);
        for (i, (ports, config)) in net.controls.iter().zip(&self.controls).enumerate() {
            let (Some(picture), Some(control)) = (given.controls.get(i), settings.controls.get(i)) else {
                return Err(Error::graph("fill", "a ControlNet without its picture"));
            };
            let mut guesses = false;
            match config {
                SideConfig::Net(config) => {
                    guesses = settings.control_guess && !config.global_pool_conditions;
                    match config.controlnet_conditioning_channel_order {
                        Colours::Rgb => session.set(ports.picture, picture)?,
                        Colours::Bgr => session.set(ports.picture, &turned(picture)?)?,
                    }
                }
                SideConfig::Adapter(config) => {
                    session.set(ports.picture, &unshuffled(picture, settings.width, config)?)?;
                }
            }
            session.set(ports.scale, &residual_scales(ports.residuals, control.scale, guesses))?;
        }
        Ok(())
    }

    /// For every condition, the pooled prompt and behind it the embedded sizes: of the original, where it was cut off, and of the
    /// picture, down before across. A refiner is told how pleasing the picture is in the place of its size. As `_get_add_time_ids` of
    /// diffusers' `StableDiffusionXLPipeline` and `StableDiffusionXLImg2ImgPipeline`.
    fn added(&self, given: &Given<'_>) -> Result<Vec<f32>> {
        let Settings { width, height, original_size, crop, aesthetic, .. } = *given.settings;
        let [original_width, original_height] = original_size;
        let [left, top] = crop;
        let size_width = self.part.net.config().addition_time_embed_dim.unwrap_or(0);
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
    fn subjects(&self, settings: &Settings, latents: [usize; 5], evaluations: usize) -> Vec<Subject<'_>> {
        let ([width, height, ..], passes) = (latents, settings.passes());
        let dims = self.part.net.dims(Size {
            width,
            height,
            batch: settings.batch * passes,
            text_tokens: settings.most_text_tokens(),
            conditions: evaluations * passes,
            controlled: settings.batch * if settings.control_guess { 1 } else { passes },
        });
        let mut dims = dims.with(Symbol::PASSES, passes).with(IP_PICTURES, settings.ip_images.max(1));
        if !self.controls.is_empty() {
            dims = self.with_runs(dims, settings, evaluations);
        }
        vec![subject(&self.part, UNET.name, Phase::Denoise, dims, Runs { request: 1, steps: evaluations })]
    }

    fn ports(&self, _: usize) -> StepPorts {
        let ports = &self.part.net.ports;
        StepPorts { latents: ports.latents, prediction: ports.prediction, condition: ports.condition }
    }

    fn fill(&self, _: usize, session: &mut Session<'_>, given: &Given<'_>) -> Result<()> {
        let (ports, width) = (&self.part.net.ports, self.part.net.config().time_width());
        self.fill_controls(session, given)?;
        if let Some(ip) = &ports.ip {
            session.set(ip.tokens, &given.ip()?)?;
            session.set(ip.scale, &[given.settings.ip_scale])?;
        }
        session.set(ports.time, &given.times(|time| sinusoid(time, width))?)?;
        if let Some(added) = ports.added {
            session.set(added, &self.added(given)?)?;
        }
        session.set(ports.context, &given.prompt(0)?)
    }

    fn filled_bytes(&self, settings: &Settings) -> usize {
        // A picture in another order on its way to a ControlNet.
        let pixels = if self.controls.is_empty() { 0 } else { settings.width.saturating_mul(settings.height) };
        pixels.saturating_mul((CHANNELS + 1) * size_of::<f32>())
    }

    fn beside(&self, [w, h, ..]: [usize; 5]) -> usize {
        let config = self.part.net.config();
        config.in_channels.saturating_sub(config.out_channels) * w * h
    }

    fn pack_beside(&self, latents: &[f32], mask: Option<&[f32]>, [w, h, ..]: [usize; 5]) -> Result<Vec<f32>> {
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

    fn pack(&self, latents: &[f32], _: [usize; 5]) -> Result<Vec<f32>> {
        reserve::repeat("the latents", latents, 1)
    }

    fn unpack(&self, packed: &[f32], _: [usize; 5]) -> Result<Vec<f32>> {
        reserve::repeat("the latents", packed, 1)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn squares_become_channels() {
        let config = adapter::Config { downscale_factor: 2, ..adapter::Config::default() };
        let picture: Vec<f32> = (0..4 * 2 * 3).map(|i| i as f32).collect();
        let found = unshuffled(&picture, 4, &config).unwrap();
        assert_eq!(found[..8], [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        let gray = adapter::Config { in_channels: 1, ..config };
        let found = unshuffled(&[0.2; 4 * 2 * 3], 4, &gray).unwrap();
        assert!(found.len() == 8 && found.iter().all(|value| (value - 0.2).abs() < 1e-6));
    }

    #[test]
    fn guesses_begin_with_a_tenth() {
        assert_eq!(residual_scales(3, 2.0, false), [2.0; 3]);
        let expected = [0.2, 2.0 * 0.1f32.sqrt(), 2.0];
        assert!(
            residual_scales(3, 2.0, true).iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-6)
        );
    }

    #[test]
    fn the_spread_is_the_standard_deviation() {
        assert_eq!(spread(&[1.0, 3.0, 1.0, 3.0]), 1.0);
        assert_eq!((spread(&[0.5; 320]), spread(&[])), (0.0, 0.0));
    }
}
