//! FLUX.1: prompt to hidden states, noise to latents, latents to pictures.
//!
//! Follows diffusers' `FluxPipeline`. Text encoders, denoiser and autoencoder take their turns on the device; each
//! phase's memory is given back before the next begins.

mod embeddings;
mod encode;
mod planning;
mod preview;
mod prompt_cache;

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Event, Generated, MemoryOptions, Observer, Phase, PhaseMemory, Request, Settings, Timings};
use crate::exec::{DeviceWeights, Session};
use crate::ggml::{Backend, CancelFlag, Device, Ledger, Usage, device_peak, restart_device_peak};
use crate::image::Image;
use crate::models::flux::{TIME_WIDTH, pack_latents, sinusoid, unpack_latents};
use crate::plan::Plan;
use crate::sample::{classifier_free_guidance, randn};
use crate::source::ComponentKind;
use crate::source::flux::FluxModel;
use crate::stage::{Cadence, Dims, Model, Symbol};
use crate::text::MAX_SEQUENCE_LENGTH;
use crate::{Error, Result, reserve};

pub use embeddings::Embeddings;

/// Sides of a picture are multiples of this: 8 pixels a latent, 2 latents a token.
const SIDE: usize = 16;

/// The longest side: beyond it the rotary positions leave all that was ever trained.
const MOST_PIXELS: usize = 16384;

/// How many pictures one request may make.
const MOST_BATCH: usize = 64;

/// What FLUX's time and guidance are multiplied by before they are embedded.
const TIME_SCALE: f32 = 1000.0;

/// What a model was published with, where a file brings no defaults: the model cards of FLUX.1-dev and -schnell.
struct Published {
    side: usize,
    steps: usize,
    guidance: f32,
}

const DEV: Published = Published { side: 1024, steps: 50, guidance: 3.5 };
const SCHNELL: Published = Published { side: 1024, steps: 4, guidance: 0.0 };

/// A prompt as the denoiser takes it.
#[derive(Clone, Debug, PartialEq)]
struct Prompt {
    /// `[J, Tt]`
    hidden: Vec<f32>,
    /// `[P]`
    pooled: Vec<f32>,
}

/// FLUX on a device, ready for requests.
pub struct FluxPipeline {
    model: Arc<FluxModel>,
    backend: Backend,
    ledger: Ledger,
    options: MemoryOptions,
    /// Weights that stay on the device between components and requests.
    kept: Vec<(&'static str, Arc<DeviceWeights>)>,
    /// From latents to colours, once somebody has asked for previews.
    preview: Option<preview::Fit>,
    /// The last prompts, as the text encoders left them.
    remembered: embeddings::Remembered,
    /// Where prompts are kept for other processes.
    prompt_cache: Option<Arc<prompt_cache::PromptCache>>,
}

impl FluxPipeline {
    /// A pipeline that computes on `device`, on the CPU with `threads` threads. `cancel` stops it between operations. Pipelines
    /// may share a model.
    ///
    /// # Errors
    /// [`Error::Device`] where the device does not start.
    pub fn new(
        model: impl Into<Arc<FluxModel>>,
        device: Device,
        threads: usize,
        cancel: CancelFlag,
    ) -> Result<FluxPipeline> {
        let (backend, ledger, options) =
            (Backend::new(device, threads, cancel)?, Ledger::new(), MemoryOptions::default());
        Ok(FluxPipeline {
            model: model.into(),
            backend,
            ledger,
            options,
            kept: Vec::new(),
            preview: None,
            remembered: embeddings::Remembered::default(),
            prompt_cache: None,
        })
    }

    /// From now on `cancel` stops it, and the flag before does not.
    pub fn set_cancel(&mut self, cancel: CancelFlag) {
        self.backend.set_cancel(cancel);
    }

    /// The model.
    pub fn model(&self) -> &FluxModel {
        &self.model
    }

    /// `request` with every default filled in.
    ///
    /// # Errors
    /// [`Error::Option`] for the first value that cannot work.
    pub fn settings(&self, request: &Request) -> Result<Settings> {
        settings(&self.model, request)
    }

    /// Makes the pictures of `request`.
    ///
    /// # Errors
    /// [`Error::Option`] for a value that cannot work, [`Error::OverBudget`], [`Error::Cancelled`],
    /// [`Error::OutOfMemory`], [`Error::NotFinite`] where the model's numbers overflow.
    pub fn generate(&mut self, request: &Request, observer: &mut dyn Observer) -> Result<Generated> {
        let settings = self.settings(request)?;
        let plan = self.plan_settings(&settings)?;
        self.follow(plan, request, settings, observer)
    }

    /// Makes the pictures of `request` with the placements of `plan`, which may be any of this size.
    ///
    /// # Errors
    /// As [`generate`](FluxPipeline::generate); [`Error::Graph`] for a plan of another model or size.
    pub fn generate_as(&mut self, plan: Plan, request: &Request, observer: &mut dyn Observer) -> Result<Generated> {
        let settings = self.settings(request)?;
        self.follow(plan, request, settings, observer)
    }

    fn follow(
        &mut self,
        plan: Plan,
        request: &Request,
        settings: Settings,
        observer: &mut dyn Observer,
    ) -> Result<Generated> {
        self.backend.recover()?;
        let generated = self.run(plan, request, settings, observer);
        if generated.is_err() {
            // They may be half there.
            self.kept.clear();
        }
        generated
    }

    fn run(
        &mut self,
        plan: Plan,
        request: &Request,
        settings: Settings,
        observer: &mut dyn Observer,
    ) -> Result<Generated> {
        let mut run = Run::new(observer, &plan, self.backend.device());
        run.observer.event(Event::Planned(plan.clone()))?;
        warn_of_no_effect(request, &settings, &mut run)?;
        warn_of_unused_blocks(&self.model, &mut run)?;
        if let Some(text) = self.budget_note()? {
            run.warn(text)?;
        }
        let noise = self.noise(request, &settings)?;

        self.ledger.set_limit(plan.limit);
        self.keep(&plan)?;
        let preview = self.preview(request, &settings, &plan)?;
        let encoded = match &request.embeddings {
            Some(embeddings) => Arc::clone(embeddings),
            None => self.embedded(request, &settings, &mut run)?,
        };
        let latents = self.denoise(&settings, encoded.for_passes(&settings), noise, preview, &mut run)?;
        let images = self.decode(&settings, &latents, &mut run)?;
        let Run { timings, mapped, phases, .. } = run;
        let highest = phases.iter().map(|phase| &phase.measured).max_by_key(|usage| usage.peak);
        Ok(Generated {
            images,
            latent_dims: self.latent_dims(&settings),
            latents,
            settings,
            timings,
            memory: self.left_after(highest),
            phases,
            mapped_bytes: mapped,
            plan,
        })
    }

    /// What is held after a request, with the peak of its `highest` phase.
    fn left_after(&self, highest: Option<&Usage>) -> Usage {
        let Usage { peak, at_peak, .. } = highest.cloned().unwrap_or_default();
        Usage { peak, at_peak, ..self.ledger.usage() }
    }

    /// A phase begins.
    fn restart_peak(&self) {
        self.ledger.restart_peak();
        restart_device_peak();
    }

    /// `[w/8, h/8, C, N]`
    fn latent_dims(&self, settings: &Settings) -> [usize; 4] {
        [settings.width / 8, settings.height / 8, self.model.vae.latent_channels, settings.batch]
    }

    /// The noise of every picture: given, or drawn.
    fn noise(&self, request: &Request, settings: &Settings) -> Result<Vec<f32>> {
        let dims @ [w, h, channels, batch] = self.latent_dims(settings);
        let each = w * h * channels;
        let Some(noise) = &request.noise else {
            let mut all = reserve::room("the noise", each.saturating_mul(batch))?;
            for i in 0..batch {
                all.extend(randn(settings.seed.wrapping_add(i as u64), each)?);
            }
            return Ok(all);
        };
        if noise.len() != each * batch {
            let expected = format!("{} numbers ({dims:?}, fastest first)", each * batch);
            return Err(Error::option("--noise", expected, format!("{} numbers", noise.len())));
        }
        if let Some(value) = noise.iter().find(|value| !value.is_finite()) {
            return Err(Error::option("--noise", "finite numbers", value.to_string()));
        }
        reserve::repeat("the noise", noise, 1)
    }

    /// Latents after the last step, `[w/8, h/8, C, N]`.
    fn denoise(
        &mut self,
        settings: &Settings,
        prompts: &[Prompt],
        noise: Vec<f32>,
        preview: Option<preview::Painter>,
        run: &mut Run<'_>,
    ) -> Result<Vec<f32>> {
        let start = Instant::now();
        let flux = &self.model.transformer;
        let passes = prompts.len();
        let model = &flux.net.model;
        let stages = stage_runs(model, settings.steps);
        run.observer.event(Event::Begin { phase: Phase::Denoise, stages, steps: settings.steps })?;

        let (rows, columns) = (settings.height / SIDE, settings.width / SIDE);
        let sigmas = self.model.scheduler.sigmas(settings.steps, rows * columns)?;
        self.restart_peak();
        let weights = self.weights(run.plan, planning::TRANSFORMER)?;
        let dims = denoise_dims(settings, passes);
        let way = planning::component(run.plan, planning::TRANSFORMER)?.way;
        let mut session = Session::in_way(way, model, &weights, &dims, &self.backend, &self.ledger)?;
        let times: Vec<f32> = sigmas[..settings.steps].iter().map(|&s| self.model.scheduler.timestep(s)).collect();
        set_conditions(&mut session, &self.model, settings, prompts, &times)?;
        let (cos, sin) = flux.net.rotary(settings.max_sequence_length, rows, columns)?;
        session.set(flux.net.ports.cos, &cos)?;
        session.set(flux.net.ports.sin, &sin)?;
        session.run(&mut self.backend, Cadence::Request, |_, _| run.stage(Phase::Denoise, &weights))?;

        let [w, h, channels, _] = self.latent_dims(settings);
        let each = w * h * channels;
        let mut tokens: Vec<f32> = reserve::room("the latents", noise.len())?;
        for latents in noise.chunks_exact(each) {
            tokens.extend(pack_latents(latents, w, h, channels)?);
        }
        drop(noise);
        let mut solver = settings.sampler.solver();
        for step in 0..settings.steps {
            let conditions = (0..passes).flat_map(|pass| vec![(step * passes + pass) as i32; settings.batch]);
            session.set_indices(flux.net.ports.condition, &conditions.collect::<Vec<_>>())?;
            session.set(flux.net.ports.latents, &reserve::repeat("the latents", &tokens, passes)?)?;
            session.run(&mut self.backend, Cadence::Step, |_, _| run.stage(Phase::Denoise, &weights))?;
            let mut velocity = session.get(flux.net.ports.velocity)?;
            let (velocity, unconditional) = velocity.split_at_mut(tokens.len());
            if passes == 2 {
                classifier_free_guidance(velocity, unconditional, settings.cfg_scale)?;
            }
            solver.step(step, &sigmas, velocity, &mut tokens)?;
            tokens = finite(tokens, &format!("latents after step {}", step + 1))?;
            run.observer.event(Event::Step { done: step + 1, steps: settings.steps })?;
            if let Some(painter) = preview.as_ref().filter(|painter| painter.is_due(step + 1)) {
                // What is left of the noise, by the model's own word.
                let clean = tokens.iter().zip(&*velocity).map(|(x, v)| x - sigmas[step + 1] * v);
                let clean = reserve::collect("a preview", tokens.len(), clean)?;
                for (index, tokens) in clean.chunks_exact(each).enumerate() {
                    let image = painter.paint(w, h, &unpack_latents(tokens, w, h, channels)?)?;
                    run.observer.event(Event::Preview { image, index, done: step + 1, steps: settings.steps })?;
                }
            }
        }
        run.used(Phase::Denoise, &weights);
        run.end(Phase::Denoise, start, &self.ledger)?;
        let mut latents = reserve::room("the latents", tokens.len())?;
        for tokens in tokens.chunks_exact(each) {
            latents.extend(unpack_latents(tokens, w, h, channels)?);
        }
        Ok(latents)
    }

    fn decode(&mut self, settings: &Settings, latents: &[f32], run: &mut Run<'_>) -> Result<Vec<Image>> {
        let start = Instant::now();
        let (decoder, vae) = (&self.model.decoder, &self.model.vae);
        let stages = decoder.net.model.stages().len() * settings.batch;
        run.observer.event(Event::Begin { phase: Phase::Decode, stages, steps: 0 })?;
        self.restart_peak();
        let weights = self.weights(run.plan, planning::DECODER)?;
        let [w, h, channels, _] = self.latent_dims(settings);
        let dims = planning::decoder_dims(settings);
        let way = planning::component(run.plan, planning::DECODER)?.way;
        let mut session = Session::in_way(way, &decoder.net.model, &weights, &dims, &self.backend, &self.ledger)?;
        let mut images = Vec::with_capacity(settings.batch);
        for latents in latents.chunks_exact(w * h * channels) {
            let scaled = latents.iter().map(|x| x / vae.scaling_factor + vae.shift_factor);
            let scaled = reserve::collect("the latents", latents.len(), scaled)?;
            session.set(decoder.net.latents, &scaled)?;
            session.run(&mut self.backend, Cadence::Request, |_, _| run.stage(Phase::Decode, &weights))?;
            images.push(Image::from_samples(settings.width, settings.height, &session.get(decoder.net.picture)?)?);
        }
        run.used(Phase::Decode, &weights);
        run.end(Phase::Decode, start, &self.ledger)?;
        Ok(images)
    }
}

/// Who listens to a request, and what is counted on the way.
struct Run<'a> {
    observer: &'a mut dyn Observer,
    plan: &'a Plan,
    timings: Timings,
    mapped: usize,
    phases: Vec<PhaseMemory>,
    /// Bytes that were brought in this phase.
    moved: u64,
    on_gpu: bool,
    /// What was said so far.
    warnings: Vec<String>,
}

impl<'a> Run<'a> {
    fn new(observer: &'a mut dyn Observer, plan: &'a Plan, device: Device) -> Run<'a> {
        let on_gpu = !device.is_cpu();
        let (timings, phases, warnings) = (Timings::new(), Vec::new(), Vec::new());
        Run { observer, plan, timings, mapped: 0, phases, moved: 0, on_gpu, warnings }
    }

    fn warn(&mut self, text: String) -> Result<()> {
        self.warnings.push(text.clone());
        self.observer.event(Event::Warning(text))
    }

    /// A stage of `phase` has been computed with `weights`.
    fn stage(&mut self, phase: Phase, weights: &DeviceWeights) -> Result<()> {
        let bytes = self.phase(phase).moved + weights.moved_bytes();
        if bytes > self.moved {
            self.observer.event(Event::Moved { bytes })?;
        }
        self.moved = bytes;
        self.observer.event(Event::Stage)
    }

    fn phase(&mut self, phase: Phase) -> &mut PhaseMemory {
        let known = self.phases.iter().position(|other| other.phase == phase);
        let position = known.unwrap_or_else(|| {
            let planned = self.plan.phase_peak(phase.name());
            self.phases.push(PhaseMemory { phase, planned, ..PhaseMemory::default() });
            self.phases.len() - 1
        });
        &mut self.phases[position]
    }

    /// A component has been computed with `weights`.
    fn used(&mut self, phase: Phase, weights: &DeviceWeights) {
        self.mapped += weights.mapped_bytes();
        let (moved, waited): (u64, Duration) = (weights.moved_bytes(), weights.waited());
        let phase = self.phase(phase);
        phase.moved += moved;
        phase.waited += waited;
    }

    fn end(&mut self, phase: Phase, start: Instant, ledger: &Ledger) -> Result<()> {
        let on_gpu = self.on_gpu;
        let entry = self.phase(phase);
        entry.measured = ledger.usage();
        entry.allocated = on_gpu.then(device_peak);
        self.timings.insert(phase.name(), start.elapsed());
        self.observer.event(Event::End { phase })
    }
}

/// Options that were given and change nothing.
fn warn_of_no_effect(request: &Request, settings: &Settings, run: &mut Run<'_>) -> Result<()> {
    if request.negative_prompt.as_ref().is_some_and(|text| !text.is_empty()) && settings.negative_prompt.is_none() {
        run.warn("the negative prompt has no effect without a --cfg-scale above 1".into())?;
    }
    if request.guidance.is_some() && settings.guidance.is_none() {
        run.warn("this model takes no guidance: --guidance has no effect".into())?;
    }
    Ok(())
}

/// Blocks in the file that the configuration does not know of. Other tensors that nothing uses are common: a projection
/// of CLIP's, a table of positions.
fn warn_of_unused_blocks(model: &FluxModel, run: &mut Run<'_>) -> Result<()> {
    for kind in ComponentKind::ALL {
        let numbered = |name: &str| name.split('.').any(|part| part.parse::<usize>().is_ok());
        let blocks: Vec<&str> = model.unused(kind).into_iter().filter(|name| numbered(name)).collect();
        if let Some(first) = blocks.first() {
            let (count, kind) = (blocks.len(), kind.name());
            run.warn(format!("{kind}: its configuration leaves {count} tensors of blocks unused, {first} for one"))?;
        }
    }
    Ok(())
}

/// How many stages run in a request of `steps` steps.
fn stage_runs(model: &Model, steps: usize) -> usize {
    model.at(Cadence::Request).len() + model.at(Cadence::Step).len() * steps
}

fn denoise_dims(settings: &Settings, passes: usize) -> Dims {
    let image = settings.width / SIDE * (settings.height / SIDE);
    let text = settings.max_sequence_length;
    Dims::new()
        .with(Symbol::Batch, settings.batch * passes)
        .with(Symbol::ImageTokens, image)
        .with(Symbol::TextTokens, text)
        .with(Symbol::JointTokens, text + image)
        .with(Symbol::Conditions, settings.steps * passes)
}

/// Fills the ports that hold for the whole request: times, guidance and prompts. Condition `step * passes + pass`
/// belongs to that pass of that step; item `pass * batch + i` of the batch to that pass of picture `i`.
fn set_conditions(
    session: &mut Session<'_>,
    model: &FluxModel,
    settings: &Settings,
    prompts: &[Prompt],
    times: &[f32],
) -> Result<()> {
    let ports = &model.transformer.net.ports;
    let passes = prompts.len();
    let time = times.iter().flat_map(|&time| sinusoid(time * TIME_SCALE).repeat(passes));
    let time: Vec<f32> = reserve::collect("the times", TIME_WIDTH * times.len() * passes, time)?;
    debug_assert_eq!(time.len(), TIME_WIDTH * times.len() * passes);
    session.set(ports.time, &time)?;
    if let (Some(port), Some(guidance)) = (ports.guidance, settings.guidance) {
        let guidance = reserve::repeat("the guidance", &sinusoid(guidance * TIME_SCALE), times.len() * passes)?;
        session.set(port, &guidance)?;
    }
    let pooled: Vec<f32> = prompts.iter().flat_map(|prompt| prompt.pooled.iter().copied()).collect();
    session.set(ports.pooled, &reserve::repeat("the prompts", &pooled, times.len())?)?;
    let each = prompts.first().map_or(0, |prompt| prompt.hidden.len());
    let mut text: Vec<f32> = reserve::room("the prompts", each * passes * settings.batch)?;
    for prompt in prompts {
        (0..settings.batch).for_each(|_| text.extend_from_slice(&prompt.hidden));
    }
    session.set(ports.text, &text)
}

/// `request` with every default of `model` filled in.
///
/// # Errors
/// [`Error::Option`] for the first value that cannot work.
pub fn settings(model: &FluxModel, request: &Request) -> Result<Settings> {
    let takes_guidance = model.transformer.net.config().guidance_embeds;
    let published = if takes_guidance { DEV } else { SCHNELL };
    let defaults = &model.defaults;
    let side = |option, given: Option<usize>, default: Option<usize>| {
        check_side(option, given.or(default).unwrap_or(published.side))
    };
    let cfg_scale = number("--cfg-scale", request.cfg_scale.or(defaults.true_cfg_scale).unwrap_or(1.0), 0.0, 100.0)?;
    let guidance = request.guidance.or(defaults.guidance_scale).unwrap_or(published.guidance);
    let guidance = number("--guidance", guidance, 0.0, 1000.0)?;
    let negative = request.negative_prompt.clone().or_else(|| defaults.negative_prompt.clone()).unwrap_or_default();
    let negative = (cfg_scale > 1.0).then_some(negative);
    // One step more or less is the schedule's business; it knows its limits.
    let steps = request.steps.or(defaults.num_inference_steps).unwrap_or(published.steps);
    model.scheduler.sigmas(steps, 1)?;
    if !(1..=MOST_BATCH).contains(&request.batch) {
        return Err(Error::option("--batch", format!("1 to {MOST_BATCH}"), request.batch.to_string()));
    }
    let tokenizer_length = model.t5_tokenizer.default_length();
    let length = request.max_sequence_length.or(defaults.max_sequence_length).unwrap_or(tokenizer_length);
    if !(1..=MAX_SEQUENCE_LENGTH).contains(&length) {
        let expected = format!("1 to {MAX_SEQUENCE_LENGTH}");
        return Err(Error::option("--max-sequence-length", expected, length.to_string()));
    }
    let settings = Settings {
        width: side("--width", request.width, defaults.width)?,
        height: side("--height", request.height, defaults.height)?,
        steps,
        seed: request.seed,
        guidance: takes_guidance.then_some(guidance),
        cfg_scale,
        negative_prompt: negative,
        sampler: request.sampler,
        max_sequence_length: length,
        batch: request.batch,
        embedded: false,
    };
    match &request.embeddings {
        Some(embeddings) => embeddings.fill_in(settings, request, model),
        None => Ok(settings),
    }
}

fn check_side(option: &'static str, side: usize) -> Result<usize> {
    if side.is_multiple_of(SIDE) && (SIDE..=MOST_PIXELS).contains(&side) {
        return Ok(side);
    }
    let nearest = ((side.saturating_add(SIDE / 2)) / SIDE * SIDE).clamp(SIDE, MOST_PIXELS);
    let expected = format!("a multiple of {SIDE} from {SIDE} to {MOST_PIXELS}");
    Err(Error::option(option, expected, side.to_string()).with_hint(format!("the nearest is {nearest}")))
}

fn number(option: &'static str, value: f32, least: f32, most: f32) -> Result<f32> {
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    Err(Error::option(option, format!("a number from {least} to {most}"), value.to_string()))
}

/// `values`, or an error naming `what` where one is not finite: broken weights show here, not as a black picture.
fn finite(values: Vec<f32>, what: &str) -> Result<Vec<f32>> {
    if values.iter().all(|value| value.is_finite()) {
        return Ok(values);
    }
    let hint = "the weights may be damaged: `pinhole inspect --check` looks at every number of a model".into();
    Err(Error::NotFinite { at: what.to_owned(), hint: Some(hint) })
}
