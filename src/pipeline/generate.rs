//! A model on a device, ready for requests.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use super::denoise::Loop;
use super::embeddings::Remembered;
use super::generated::{Generated, PhaseMemory, Timings};
use super::machine::Machine;
use super::opened::{Direction, Opened};
use super::preview::Fit;
use super::progress::{Event, Observer};
use super::prompt_cache::PromptCache;
use super::prompts::Embeddings;
use super::request::{Request, Settings};
use super::run::{Run, stage_runs};
use super::seen::Seen;
use super::settings::{settings, without_effect};
use super::start::{Drawn, Start};
use super::stretch::Pass;
use super::values::{levels, of_pass};
use crate::ggml::{CancelFlag, Device};
use crate::image::{CHANNELS, Image};
use crate::models::safety_checker::Verdict;
use crate::plan::{Phase, Plan};
use crate::{Error, Result, processors, reserve};

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
        Pipeline::on_devices(model, &[device], threads, cancel)
    }

    /// As [`with_threads`](Pipeline::with_threads), on several `devices`. The first denoises; if guidance takes several passes, those
    /// that round as it does compute them side by side. Text encoders, autoencoders and a second expert are on whichever has room. The
    /// CPU and the cards that it plays share the threads.
    ///
    /// # Errors
    /// As [`with_threads`](Pipeline::with_threads); [`Error::Option`](crate::Error::Option) for no device, or one that is named twice.
    pub fn on_devices(
        model: impl Into<Arc<Opened>>,
        devices: &[Device],
        threads: usize,
        cancel: CancelFlag,
    ) -> Result<Pipeline> {
        let machine = Machine::new(devices, threads, &cancel)?;
        let remembered = Remembered::default();
        Ok(Pipeline { model: model.into(), machine, preview: None, remembered, prompt_cache: None })
    }

    /// Lets `cancel` stop it from now on, and the flag before no longer.
    pub fn set_cancel(&mut self, cancel: CancelFlag) {
        self.machine.set_cancel(&cancel);
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
        let (threads, cores) = (self.machine.workers.threads(), processors::cores());
        (self.machine.devices().any(|device| device.is_cpu()) && threads > cores)
            .then(|| format!("{threads} threads compute on {cores} cores: more than one on a core take longer"))
    }

    /// What there is to say of the devices: that they round differently.
    fn kinds_note(&self) -> Option<String> {
        let first = self.machine.first().backend.device();
        let other = self.machine.devices().find(|device| !device.rounds_as(first))?;
        let names = [first, other].map(|device| device.name());
        Some(format!(
            "{} and {} round differently: the picture is not that of either alone, to the bit",
            names[0], names[1]
        ))
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
        // What is planned for has to be there.
        self.machine.recover()?;
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
        self.machine.recover()?;
        let generated = self.run(plan, request, settings, observer);
        if generated.is_err() {
            // They may be half there.
            self.machine.forget();
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
        self.machine.attention = settings.attention;
        observer.event(Event::Planned(plan.clone()))?;
        self.say_what_is_known(request, &settings, observer)?;
        let mut made = self.pass((&plan, request, &settings), None, observer)?;
        if let (Some(plan), Some(settings)) = (&plan.second, &settings.second) {
            let refines = matches!(settings.pass, Pass::Refined(_));
            if refines {
                // Never both models at once.
                self.machine.forget();
            }
            made = self.pass((plan, request, settings), Some(made), observer)?;
            if refines {
                self.machine.forget();
            }
        }
        let Made { drawn: Drawn { latents, dims: latent_dims, images }, computed, work, verdicts, .. } = made;
        let Work { timings, mapped: mapped_bytes, phases } = work;
        let devices = self.machine.held(&plan, &phases);
        let memory = devices.first().map(|device| device.measured.clone()).unwrap_or_default();
        Ok(Generated {
            images,
            latent_dims,
            latents,
            settings,
            timings,
            memory,
            devices,
            phases,
            mapped_bytes,
            plan,
            computed,
            verdicts,
        })
    }

    /// Says what the user should know before the work.
    fn say_what_is_known(&self, request: &Request, settings: &Settings, observer: &mut dyn Observer) -> Result<()> {
        let model = &self.model;
        let mut texts = without_effect(model, request, settings);
        texts.extend(model.source.passed_over().iter().cloned());
        texts.extend(unused_blocks(model));
        texts.extend(model.loras.iter().filter_map(|lora| lora.warning()));
        texts.extend(self.budget_notes()?);
        texts.extend([self.threads_note(), self.kinds_note()].into_iter().flatten());
        for text in texts {
            observer.event(Event::Warning(text))?;
        }
        Ok(())
    }

    /// A pass of a request: the only one, the first, or the second behind what the first made.
    fn pass(
        &mut self,
        (plan, request, settings): (&Plan, &Request, &Settings),
        first: Option<Made>,
        observer: &mut dyn Observer,
    ) -> Result<Made> {
        let model = Arc::clone(&self.model);
        let denoising = of_pass(&model, settings);
        let subjects = self.subjects(&model, settings)?;
        let Pipeline { machine, preview, remembered, prompt_cache, .. } = self;
        let mut run = Run::new(machine, observer, plan);
        run.machine.set_limits(plan)?;
        run.machine.keep(plan, &subjects)?;
        // A pass without a decoder has none to fit previews to, unless an earlier one had.
        let painter = match settings.pass.decodes() || model.tiny.is_some() || preview.is_some() {
            true => super::preview::painter(preview, &model, request, settings, &mut run)?,
            false => None,
        };
        let levels = levels(&model, settings)?;
        let (told, start, work, mut computed) = match first {
            None => {
                let encoded = match &request.embeddings {
                    Some(embeddings) => Arc::clone(embeddings),
                    None => {
                        let cache = prompt_cache.as_deref();
                        super::embeddings::embedded(&model, remembered, cache, (request, settings), &mut run)?
                    }
                };
                let told = Told::by(&model, request, settings, (encoded, &mut run))?;
                (told, Start::new(&model, request, settings, &levels, &mut run)?, Work::default(), Vec::new())
            }
            Some(Made { drawn, told, work, computed, .. }) => {
                let told = match settings.pass {
                    Pass::Refined(_) => {
                        let made = super::embeddings::embeddings(denoising, None, (request, settings), &mut run)?;
                        Told { encoded: Arc::new(made), ..Told::default() }
                    }
                    _ => told,
                };
                (told, Start::second(&model, request, settings, &levels, (drawn, &mut run))?, work, computed)
            }
        };
        let mut start = start;
        start.company.face.clone_from(&told.face);
        let joined;
        let prompts = match told.encoded.for_passes(settings) {
            plain if settings.redux_tokens == 0 => plain,
            plain => {
                joined = told.seen.joined(&plain, settings)?;
                joined.iter().collect()
            }
        };
        let denoising = Loop {
            model: &model,
            denoising,
            settings,
            levels: &levels,
            prompts: &prompts,
            preview: painter,
            ip: &told.seen.ip,
        };
        let (latents, more) = denoising.run(start, &mut run)?;
        // Behind those of the first pass.
        computed.resize(computed.len().max(more.len()), Vec::new());
        computed.iter_mut().zip(more).for_each(|(all, more)| all.extend(more));
        let (mut images, mut verdicts) = (Vec::new(), Vec::new());
        if settings.pass.decodes() {
            images = decode(&model, settings, &latents, &mut run)?;
        }
        if settings.second.is_none() && settings.pass.decodes() {
            if let Some(safety) = &model.safety {
                verdicts = safety.judge(&mut images, settings, &mut run)?;
            }
            let [width, height] = settings.last_size();
            if [width, height] != [settings.width, settings.height] {
                for image in &mut images {
                    *image = image.center(width, height)?;
                }
            }
            if let Some(upscaler) = &model.upscaler {
                let size = upscaler.size([width, height], None)?;
                images = super::upscale::larger(upscaler, &images, size, &mut run)?;
            }
        }
        let dims = model.autoencoder.latents(settings);
        let work = work.and(run, settings.pass.is_second());
        Ok(Made { drawn: Drawn { latents, dims, images }, told, computed, work, verdicts })
    }
}

/// What came of a pass.
struct Made {
    drawn: Drawn,
    told: Told,
    computed: Vec<Vec<bool>>,
    work: Work,
    /// What the safety checker says of its pictures, if it is the last.
    verdicts: Vec<Verdict>,
}

/// What the denoiser is told of the prompts, and of the pictures that take part in them.
#[derive(Default)]
struct Told {
    encoded: Arc<Embeddings>,
    seen: Seen,
    face: Vec<f32>,
}

impl Told {
    /// By what looks at the pictures of `request`, beside the prompts `encoded`.
    fn by(
        model: &Opened,
        request: &Request,
        settings: &Settings,
        (encoded, run): (Arc<Embeddings>, &mut Run<'_>),
    ) -> Result<Told> {
        let seen = match &model.image_prompts {
            Some(pictures) => pictures.look(request, settings, run)?,
            None => Seen::default(),
        };
        let face = model.face.as_ref().map(|face| face.look(request, settings, run)).transpose()?;
        Ok(Told { encoded, seen, face: face.unwrap_or_default() })
    }
}

/// What passes took.
#[derive(Default)]
struct Work {
    timings: Timings,
    mapped: usize,
    phases: Vec<PhaseMemory>,
}

impl Work {
    /// The same with what `run` took.
    fn and(mut self, run: Run<'_>, second: bool) -> Work {
        let Run { timings, mapped, phases, .. } = run;
        for (phase, time) in timings {
            *self.timings.entry(phase).or_default() += time;
        }
        self.mapped += mapped;
        self.phases.extend(phases.into_iter().map(|phase| PhaseMemory { second, ..phase }));
        self
    }
}

/// The pictures of `latents`, `[w, h, F, C, N]`.
fn decode(model: &Opened, settings: &Settings, latents: &[f32], run: &mut Run<'_>) -> Result<Vec<Image>> {
    let decoder = model.decoder(settings);
    let &Settings { width, height, frames, batch, .. } = settings;
    let subjects = decoder.subjects(settings, Direction::Decode, batch);
    let stages = subjects.iter().map(|subject| stage_runs(run.plan, subject)).sum();
    let start = run.begin(Phase::Decode, stages, 0)?;
    let shown = shown(latents, model.autoencoder.latents(settings), settings.front_frames)?;
    let latents = &*shown;
    let [w, h, latent_frames, channels, _] =
        model.autoencoder.latents(&Settings { front_frames: 0, ..settings.clone() });
    let mut images = Vec::with_capacity(batch * frames);
    let each = w * h * latent_frames * channels;
    for subject in &subjects {
        let mut running = run.start(subject)?;
        for (index, latents) in latents.chunks_exact(each).enumerate() {
            if settings.fps.is_none() {
                let samples = decoder.decode(run, &mut running, latents)?;
                images.push(Image::from_samples(width, height, &samples)?);
                continue;
            }
            let mut video = Unfinished { width, height, frames: vec![Vec::new(); frames] };
            decoder.decode_video(run, &mut running, latents, &mut |run, frame, rows, samples| {
                let Some(image) = video.with_rows(frame, rows, &samples)? else { return Ok(()) };
                images.push(image.clone());
                run.event(Event::Frame { image, index, frame, frames })
            })?;
        }
        run.finish(running);
    }
    run.end(Phase::Decode, start)?;
    Ok(images)
}

/// A video that is made in bands of rows.
struct Unfinished {
    width: usize,
    height: usize,
    /// The rows of each frame that are there, from the top on.
    frames: Vec<Vec<u8>>,
}

impl Unfinished {
    /// The frame number `frame`, if it is whole with these `samples [W, rows, 3]`.
    fn with_rows(&mut self, frame: usize, rows: Range<usize>, samples: &[f32]) -> Result<Option<Image>> {
        let &mut Unfinished { width, height, ref mut frames } = self;
        let part = Image::from_samples(width, rows.len(), samples)?;
        if rows == (0..height) {
            return Ok(Some(part));
        }
        let unexpected = || Error::graph("decode", format!("rows {rows:?} of frame {frame}"));
        let above = frames.get_mut(frame).filter(|above| above.len() == CHANNELS * width * rows.start);
        let above = above.ok_or_else(unexpected)?;
        if above.is_empty() {
            *above = reserve::room("a frame", CHANNELS * width * height)?;
        }
        above.extend_from_slice(part.rgb());
        match rows.end == height {
            true => Image::new(width, height, std::mem::take(above)).map(Some).ok_or_else(unexpected),
            false => Ok(None),
        }
    }
}

/// The same without the first `front` latent frames.
fn shown(latents: &[f32], [w, h, frames, ..]: [usize; 5], front: usize) -> Result<Cow<'_, [f32]>> {
    if front == 0 {
        return Ok(Cow::Borrowed(latents));
    }
    let mut shown = reserve::room("the latents", latents.len())?;
    for channel in latents.chunks_exact(w * h * frames) {
        shown.extend_from_slice(&channel[w * h * front..]);
    }
    Ok(Cow::Owned(shown))
}

/// What there is to say of blocks in the file that the configuration leaves unused. Other tensors that nothing uses are common: the vision
/// tower of a CLIP, the decoder of a T5, a table of positions.
fn unused_blocks(model: &Opened) -> Vec<String> {
    let mut said = Vec::new();
    for network in model.networks() {
        if let Some(first) = network.strays.first() {
            let (count, name) = (network.strays.len(), network.slot.name);
            said.push(format!("{name}: its configuration leaves {count} tensors of blocks unused, {first} for one"));
        }
    }
    said
}
