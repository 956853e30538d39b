//! A model on a device, ready for requests.

use std::sync::Arc;

use pinhole_quant::workers::Workers;

use super::denoise::Loop;
use super::embeddings::Remembered;
use super::opened::{Direction, Opened};
use super::preview::Fit;
use super::progress::{Event, Observer};
use super::prompt_cache::PromptCache;
use super::request::{Generated, MemoryOptions, Request, Settings};
use super::run::{Machine, Run, stage_runs};
use super::seen::Seen;
use super::settings::{levels, settings, without_effect};
use super::start::Start;
use crate::ggml::{Backend, CancelFlag, Device, Ledger};
use crate::image::Image;
use crate::plan::{Phase, Plan};
use crate::{Result, processors};

/// A model on a device, ready for requests.
///
/// ```no_run
/// use pinhole::ggml::Device;
/// use pinhole::pipeline::{Pipeline, Request};
///
/// let model = pinhole::open("mini")?;
/// let mut pipeline = Pipeline::new(model, Device::best()?)?;
/// let generated = pipeline.generate(&Request::new("a red heart"))?;
/// # Ok::<(), pinhole::Error>(())
/// ```
pub struct Pipeline {
    pub(super) model: Arc<Opened>,
    pub(super) machine: Machine,
    /// From latents to colours, once previews were asked for.
    pub(super) preview: Option<Fit>,
    /// The last prompts, as the text encoders left them.
    pub(super) remembered: Remembered,
    /// Where prompts are kept for other processes.
    pub(super) prompt_cache: Option<Arc<PromptCache>>,
}

impl Pipeline {
    /// A pipeline that computes on `device`, on the CPU with one thread for each core. Pipelines may share a model.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if the device does not start.
    pub fn new(model: impl Into<Arc<Opened>>, device: Device) -> Result<Pipeline> {
        Pipeline::with_threads(model, device, processors::cores(), CancelFlag::new())
    }

    /// As [`new`](Pipeline::new), on the CPU with `threads` threads, the caller's among them. `cancel` stops it between
    /// operations.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if the device does not start, [`Error::OutOfMemory`](crate::Error::OutOfMemory)
    /// if its threads do not.
    pub fn with_threads(
        model: impl Into<Arc<Opened>>,
        device: Device,
        threads: usize,
        cancel: CancelFlag,
    ) -> Result<Pipeline> {
        let (backend, ledger) = (Backend::new(device, threads, cancel)?, Ledger::new());
        let workers = Workers::new(threads);
        let machine = Machine { backend, workers, ledger, options: MemoryOptions::default(), kept: Vec::new() };
        let remembered = Remembered::default();
        Ok(Pipeline { model: model.into(), machine, preview: None, remembered, prompt_cache: None })
    }

    /// Lets `cancel` stop it from now on, and the flag before no longer.
    pub fn set_cancel(&mut self, cancel: CancelFlag) {
        self.machine.backend.set_cancel(cancel);
    }

    /// The model.
    pub fn model(&self) -> &Opened {
        &self.model
    }

    /// `request` with every default filled in.
    ///
    /// # Errors
    /// [`Error::Option`](crate::Error::Option) for the first value that cannot work.
    pub fn settings(&self, request: &Request) -> Result<Settings> {
        settings(&self.model, request)
    }

    /// What there is to say of the threads: that they are more than the cores.
    fn threads_note(&self) -> Option<String> {
        let Machine { backend, workers, .. } = &self.machine;
        let (threads, cores) = (workers.threads(), processors::cores());
        let text = || format!("{threads} threads compute on {cores} cores: more than one on a core take longer");
        (backend.device().is_cpu() && threads > cores).then(text)
    }

    /// Makes the pictures of `request`.
    ///
    /// # Errors
    /// [`Error::Option`](crate::Error::Option) for a value that cannot work, [`Error::OverBudget`](crate::Error::OverBudget), [`Error::Cancelled`](crate::Error::Cancelled),
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory), [`Error::NotFinite`](crate::Error::NotFinite) if the model's numbers overflow.
    pub fn generate(&mut self, request: &Request) -> Result<Generated> {
        self.generate_watched(request, &mut |_: Event| Ok(()))
    }

    /// As [`generate`](Pipeline::generate). `observer` hears what happens, and can end the request.
    ///
    /// # Errors
    /// As [`generate`](Pipeline::generate), and the observer's.
    pub fn generate_watched(&mut self, request: &Request, observer: &mut dyn Observer) -> Result<Generated> {
        let settings = self.settings(request)?;
        let plan = self.plan_settings(&settings)?;
        self.follow(plan, request, settings, observer)
    }

    /// Makes the pictures of `request` with the placements of `plan`, which may be any of this size.
    ///
    /// # Errors
    /// As [`generate`](Pipeline::generate); [`Error::Graph`](crate::Error::Graph) for a plan of another model or size.
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
        let _inside = self.machine.workers.enter();
        self.machine.backend.recover()?;
        let generated = self.run(plan, request, settings, observer);
        if generated.is_err() {
            // They may be half there.
            self.machine.kept.clear();
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
        let model = Arc::clone(&self.model);
        let notes = [self.budget_note()?, self.threads_note()];
        let subjects = self.subjects(&model, &settings)?;
        let Pipeline { machine, preview, remembered, prompt_cache, .. } = self;
        let mut run = Run::new(machine, observer, &plan);
        run.event(Event::Planned(plan.clone()))?;
        for text in without_effect(&model, request, &settings) {
            run.warn(text)?;
        }
        for text in model.source.passed_over() {
            run.warn(text.clone())?;
        }
        warn_of_unused_blocks(&model, &mut run)?;
        for text in model.loras.iter().filter_map(|lora| lora.warning()) {
            run.warn(text)?;
        }
        for text in notes.into_iter().flatten() {
            run.warn(text)?;
        }

        run.machine.ledger.set_limit(plan.limit);
        run.machine.keep(&plan, &subjects)?;
        let painter = super::preview::painter(preview, &model, request, &settings, &mut run)?;
        let encoded = match &request.embeddings {
            Some(embeddings) => Arc::clone(embeddings),
            None => {
                let cache = prompt_cache.as_deref();
                super::embeddings::embedded(&model, remembered, cache, (request, &settings), &mut run)?
            }
        };
        let seen = match &model.image_prompts {
            Some(pictures) => pictures.look(request, &settings, &mut run)?,
            None => Seen::default(),
        };
        let levels = levels(&model, &settings)?;
        let face = model.face.as_ref().map(|face| face.look(request, &settings, &mut run)).transpose()?;
        let mut start = Start::new(&model, request, &settings, &levels, &mut run)?;
        start.company.face = face.unwrap_or_default();
        let joined;
        let prompts = match encoded.for_passes(&settings) {
            plain if settings.redux_tokens == 0 => plain,
            plain => {
                joined = seen.joined(&plain, &settings)?;
                joined.iter().collect()
            }
        };
        let denoising = Loop {
            model: &model,
            settings: &settings,
            levels: &levels,
            prompts: &prompts,
            preview: painter,
            ip: &seen.ip,
        };
        let (latents, computed) = denoising.run(start, &mut run)?;
        let mut images = decode(&model, &settings, &latents, &mut run)?;
        let verdicts = match &model.safety {
            Some(safety) => safety.judge(&mut images, &settings, &mut run)?,
            None => Vec::new(),
        };
        if let Some(upscaler) = &model.upscaler {
            let size = upscaler.size([settings.width, settings.height], None)?;
            images = super::upscale::larger(upscaler, &images, size, &mut run)?;
        }
        let Run { timings, mapped, phases, .. } = run;
        let highest = phases.iter().map(|phase| &phase.measured).max_by_key(|usage| usage.peak);
        let memory = self.machine.left_after(highest);
        let latent_dims = model.autoencoder.latents(&settings);
        let mapped_bytes = mapped;
        Ok(Generated {
            images,
            latent_dims,
            latents,
            settings,
            timings,
            memory,
            phases,
            mapped_bytes,
            plan,
            computed,
            verdicts,
        })
    }
}

/// The pictures of `latents`, `[w, h, C, N]`.
fn decode(model: &Opened, settings: &Settings, latents: &[f32], run: &mut Run<'_>) -> Result<Vec<Image>> {
    let decoder = model.decoder(settings);
    let subjects = decoder.subjects(settings, Direction::Decode, settings.batch);
    let start = run.begin(Phase::Decode, subjects.iter().map(|subject| stage_runs(run.plan, subject)).sum(), 0)?;
    let [w, h, channels, _] = model.autoencoder.latents(settings);
    let mut images = Vec::with_capacity(settings.batch);
    for subject in &subjects {
        let mut running = run.start(subject)?;
        for latents in latents.chunks_exact(w * h * channels) {
            let samples = decoder.decode(run, &mut running, latents)?;
            images.push(Image::from_samples(settings.width, settings.height, &samples)?);
        }
        run.finish(running);
    }
    run.end(Phase::Decode, start)?;
    Ok(images)
}

/// Warns of blocks in the file that the configuration leaves unused. Other tensors that nothing uses are common: the vision tower
/// of a CLIP, the decoder of a T5, a table of positions.
fn warn_of_unused_blocks(model: &Opened, run: &mut Run<'_>) -> Result<()> {
    for network in model.networks() {
        if let Some(first) = network.strays.first() {
            let (count, name) = (network.strays.len(), network.slot.name);
            run.warn(format!("{name}: its configuration leaves {count} tensors of blocks unused, {first} for one"))?;
        }
    }
    Ok(())
}
