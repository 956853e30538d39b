//! What a request takes on the device, and what to do where that is too much.

use super::generate::Pipeline;
use super::machine::{Machine, Unit};
use super::opened::{Direction, Opened};
use super::request::{MemoryOptions, Request, Settings};
use super::rules::Takes;
use super::step_cache::CacheKind;
use super::upscale::UpscaleModel;
use super::values::{levels, of_pass};
use super::{preview, start};
use crate::ggml::{Device, DeviceKind, Ledger, shares_heap};
use crate::image::CHANNELS;
use crate::plan::devices::Among;
use crate::plan::measure::Subject;
use crate::plan::{Component, HostBound, HostLimit, Limits, Phase, Plan, Refusal, Speed, Turn, budget};
use crate::size::Size;
use crate::{Error, Result, memory};

/// Longer sides that people use, to find one that fits.
const SIDES: [usize; 14] = [4096, 3072, 2048, 1536, 1280, 1024, 896, 768, 640, 512, 384, 256, 128, 64];

/// How many frames of a video the autoencoder makes at once, at most.
const FRAMES_AT_ONCE: usize = 4;

/// Without a budget we leave one part of so many of the free memory, and at least so many bytes, to other programs.
const MARGIN_PART: usize = 32;
const LEAST_MARGIN: usize = 128 << 20;

/// What the host needs beside what the process holds and what a plan counts: the program's own pages, tokens, weights on their way;
/// and what a graph takes of memory. Measured with the miniature: 15 MiB in all.
const HOST_RESERVE: usize = 24 << 20;
/// What each thread takes while it computes a convolution (`kernels/convolution`). The reserve has room for so many threads.
const CONVOLUTION: usize = 5 << 18;
const RESERVED_THREADS: usize = 8;
const GRAPH: usize = 256 << 10;

/// One part of so many of a process's memory is what the system takes to map it: 8 bytes for a page of 4 KiB, and twice that to be
/// sure.
const PAGE_TABLES: usize = 256;

/// The same of address space: a graph takes as much as the largest would, and each thread a stack and, unless they share one, a
/// heap.
const ADDRESS_RESERVE: usize = 32 << 20;
const GRAPH_ADDRESSES: usize = 4 << 20;
const STACK: usize = 3 << 20;
const HEAP: usize = 64 << 20;

/// Threads that a request starts beside those that compute: the readers of weights and of pages.
const READERS: usize = 2;

impl Pipeline {
    /// Sets how much memory requests may take from now on.
    pub fn set_memory(&mut self, options: MemoryOptions) {
        self.machine.options = options;
    }

    /// Sets the most bytes that requests may take on each device from now on, instead of one number for all; `None` is that
    /// number.
    ///
    /// # Errors
    /// [`Error::Option`] if there are more or fewer than devices.
    pub fn set_budgets(&mut self, budgets: &[Option<usize>]) -> Result<()> {
        let devices = self.machine.units.len();
        if budgets.len() != devices {
            let expected = match devices {
                1 => "one size".to_owned(),
                _ => format!("one size, or one for each of {devices} devices"),
            };
            return Err(Error::option("--vram", expected, format!("{} sizes", budgets.len())));
        }
        for (unit, budget) in self.machine.units.iter_mut().zip(budgets) {
            unit.budget = *budget;
        }
        Ok(())
    }

    /// Says what devices may have among them of what denoises, from now on.
    pub fn set_among(&mut self, among: Among) {
        self.machine.among = among;
    }

    /// About how fast each device is, as plans forecast it.
    pub fn speeds(&self) -> Vec<Speed> {
        self.machine.units.iter().map(Unit::speed).collect()
    }

    /// The devices that it computes on, in order.
    pub fn devices(&self) -> Vec<Device> {
        self.machine.devices().collect()
    }

    /// Enters what it takes on each device in one of `ledgers` from now on, in the order of devices. Pipelines that share one are held to the
    /// limit of whichever computes, all of them together. Weights that it kept are given back.
    pub fn share_ledgers(&mut self, ledgers: &[Ledger]) {
        self.machine.forget();
        for (unit, ledger) in self.machine.units.iter_mut().zip(ledgers) {
            unit.ledger = ledger.clone();
        }
    }

    /// What is held on the first device between requests, of all pipelines that share the ledger.
    pub fn held(&self) -> usize {
        self.machine.first().ledger.usage().total
    }

    /// What `request` will have on the device, and when. Computes nothing, and reads no weight.
    ///
    /// # Errors
    /// [`Error::Option`] for a value that cannot work; [`Error::OverBudget`] where nothing fits, with what would.
    pub fn plan(&self, request: &Request) -> Result<Plan> {
        self.plan_settings(&self.settings(request)?)
    }

    /// The least budget, in bytes, that `request` can do with under the current offload mode: on each device, if there are several, up to a
    /// thousandth.
    ///
    /// # Errors
    /// As [`plan`](Pipeline::plan), except that no budget is too small.
    pub fn least_budget(&self, request: &Request) -> Result<usize> {
        let settings = self.settings(request)?;
        let (offload, mut least) = (self.machine.options.offload, 0);
        for settings in [Some(&settings), settings.second.as_deref()].into_iter().flatten() {
            if let [unit] = &self.machine.units[..] {
                let limits = self.machine.limits_of(unit)?;
                least = least.max(budget::least(&self.measure(settings)?, offload, &limits));
                continue;
            }
            least = least.max(self.least_on_devices(settings)?);
        }
        Ok(least)
    }

    /// What there is to say of the budgets: that one is more than its device has.
    ///
    /// # Errors
    /// A device that does not say how much it has.
    pub fn budget_notes(&self) -> Result<Vec<String>> {
        self.machine.budget_notes()
    }

    /// As [`plan`](Pipeline::plan), for a request whose defaults are filled in.
    ///
    /// # Errors
    /// As [`plan`](Pipeline::plan).
    pub fn plan_settings(&self, settings: &Settings) -> Result<Plan> {
        let limits = self.machine.limits()?;
        let plan =
            self.planned(settings, &limits)?.or_else(|refusal| Err(self.refusal(&refusal, settings, &limits)?))?;
        let second = settings.second.as_ref().map(|settings| self.plan_settings(settings)).transpose()?;
        Ok(Plan { second: second.map(Box::new), ..plan })
    }

    /// What the text encoders alone will have on the devices.
    pub(super) fn plan_encoders(&self, settings: &Settings) -> Result<Plan> {
        let limits = self.machine.limits()?;
        let planned = match &limits[..] {
            [limits] => {
                let mut components = self.measure(settings)?;
                components.retain(|component| component.phase == Phase::Encode);
                budget::plan(&components, self.machine.options.offload, limits)
            }
            _ => self.encoders_on_devices(settings, &limits)?,
        };
        planned.map_err(|refusal| {
            let what = format!("the {}", refusal.component);
            self.machine.over_budget(&refusal, what, "a shorter --max-sequence-length, or ")
        })
    }

    /// What every component takes on the first device at the request's size, beside what makes previews at its leanest. Computes nothing, and reads no
    /// weight.
    ///
    /// # Errors
    /// [`Error::Graph`] if a stage cannot be built at this size.
    pub fn measure(&self, settings: &Settings) -> Result<Vec<Component>> {
        let components = self.measure_alone(settings)?;
        Ok(match self.measure_previews(settings)? {
            Some(previews) => budget::in_company(&components, &previews, previews.variants.len().saturating_sub(1)),
            None => components,
        })
    }

    /// The same without what makes previews.
    fn measure_alone(&self, settings: &Settings) -> Result<Vec<Component>> {
        let mut components = Vec::new();
        for subject in self.subjects(&self.model, settings)? {
            let measured = self.machine.first().measure(&subject, Turn::ALL)?;
            components.push(Component { beside: arrays(&self.model, settings, subject.phase), ..measured });
        }
        Ok(components)
    }

    /// What makes previews, if that is a network.
    fn measure_previews(&self, settings: &Settings) -> Result<Option<Component>> {
        let Some(subject) = preview::subject(&self.model, settings) else { return Ok(None) };
        let measured = self.machine.first().measure(&subject, Turn::ALL)?;
        Ok(Some(Component { beside: preview::arrays(settings), ..measured }))
    }

    /// The plan of a request, or the refusal if nothing fits.
    fn planned(&self, settings: &Settings, limits: &[Limits]) -> Result<std::result::Result<Plan, Refusal>> {
        let [limits] = limits else { return self.planned_on_devices(settings, limits) };
        let (components, previews) = (self.measure_alone(settings)?, self.measure_previews(settings)?);
        Ok(budget::plan_in_company(&components, previews.as_ref(), self.machine.options.offload, limits))
    }

    /// How often a request asks the denoiser, for each of its passes.
    ///
    /// # Errors
    /// As [`Scheduler::levels`](crate::sample::Scheduler::levels).
    pub fn evaluations(&self, settings: &Settings) -> Result<usize> {
        Ok(levels(&self.model, settings)?.taken())
    }

    /// Bytes of the denoiser's ports that are there for a step cache.
    ///
    /// # Errors
    /// As [`evaluations`](Pipeline::evaluations); [`Error::Graph`] for a picture of impossible size.
    pub fn cache_bytes(&self, settings: &Settings) -> Result<usize> {
        let denoiser = &self.model.denoiser;
        let latents = self.model.autoencoder.latents(settings);
        let mut most = 0;
        for (at, subject) in denoiser.subjects(settings, latents, self.evaluations(settings)?).iter().enumerate() {
            let Some(ports) = denoiser.cache(at, settings) else { continue };
            let mut bytes = 0usize;
            for port in
                [Some(ports.computed), Some(ports.residual), Some(ports.before), ports.probe].into_iter().flatten()
            {
                let shape =
                    subject.model.ports().get(port.index()).map(|spec| spec.shape(&subject.dims)).transpose()?;
                let numbers = shape.map_or(0, |shape| shape.elements());
                bytes = bytes.saturating_add(numbers.saturating_mul(size_of::<f32>()));
            }
            most = most.max(bytes);
        }
        Ok(most)
    }

    /// What runs in a request, in order, except for what makes previews.
    pub(super) fn subjects<'m>(&self, model: &'m Opened, settings: &Settings) -> Result<Vec<Subject<'m>>> {
        let mut subjects = Vec::new();
        let denoising = of_pass(model, settings);
        if !settings.embedded && settings.texts() > 0 && settings.pass.reads_prompts() {
            subjects.extend(denoising.encoders.subjects(settings));
        }
        if !settings.pass.is_second() {
            subjects.extend(model.image_prompts.iter().flat_map(|pictures| pictures.subjects(settings)));
            subjects.extend(model.face.as_ref().and_then(|face| face.subject(settings)));
        }
        subjects.extend(start::encoders(model, settings));
        let evaluations = levels(model, settings)?.taken();
        subjects.extend(denoising.denoiser.subjects(settings, model.autoencoder.latents(settings), evaluations));
        if settings.pass.decodes() {
            subjects.extend(model.decoder(settings).subjects(settings, Direction::Decode, settings.batch));
        }
        if settings.second.is_none() && settings.pass.decodes() {
            subjects.extend(model.safety.as_ref().and_then(|safety| safety.subject(settings)));
            let size = settings.last_size();
            subjects.extend(
                model.upscaler.as_ref().map(|upscaler| upscaler.subject(size, settings.batch * settings.frames)),
            );
        }
        Ok(subjects)
    }

    /// The refusal as an error, with a picture that would fit and a budget that would do.
    fn refusal(&self, refusal: &Refusal, settings: &Settings, limits: &[Limits]) -> Result<Error> {
        let refusal = &self.of_all_devices(refusal, settings, limits)?;
        let smaller = self.largest_that_fits(settings, limits)?;
        let smaller = smaller.map_or(String::new(), |(width, height)| format!("{width}x{height}, or "));
        let what = format!("the {} at {}x{}", refusal.component, settings.width, settings.height);
        Ok(self.machine.over_budget(refusal, what, &smaller))
    }

    /// `refusal` with what each of several devices would need: what one component needs of one of them is not what all need together.
    fn of_all_devices(&self, refusal: &Refusal, settings: &Settings, limits: &[Limits]) -> Result<Refusal> {
        let Refusal { component, bound, least, given } = *refusal;
        if bound.is_some() || self.machine.units.len() < 2 {
            return Ok(Refusal { component, bound, least, given });
        }
        let there = limits.iter().zip(&self.machine.units).filter(|(_, unit)| !unit.is_lost);
        let smallest = there.filter_map(|(limits, _)| limits.bytes).min();
        let least = self.least_on_devices(settings)?;
        Ok(Refusal { component, bound, least, given: smallest.unwrap_or(given) })
    }

    /// The largest usual size of the picture's shape for which there is a plan.
    fn largest_that_fits(&self, settings: &Settings, limits: &[Limits]) -> Result<Option<(usize, usize)>> {
        let longer = settings.width.max(settings.height);
        let multiple = self.model.rules.multiple;
        for side in SIDES.into_iter().filter(|&side| side < longer) {
            let scaled = |extent: usize| ((extent * side / longer) / multiple * multiple).max(multiple);
            let smaller =
                Settings { width: scaled(settings.width), height: scaled(settings.height), ..settings.clone() };
            if self.planned(&smaller, limits)?.is_ok() {
                return Ok(Some((smaller.width, smaller.height)));
            }
        }
        Ok(None)
    }
}

impl Machine {
    /// See [`Pipeline::budget_notes`].
    pub(super) fn budget_notes(&self) -> Result<Vec<String>> {
        let mut notes = Vec::new();
        for unit in self.units.iter().filter(|unit| !unit.is_lost) {
            let device = unit.backend.device();
            let (_, total) = device.memory()?;
            let budget = unit.budget.or(self.options.vram);
            if let Some(budget) = budget.filter(|&bytes| total > 0 && bytes > total) {
                let [bytes, total] = [budget, total].map(|bytes| Size(bytes as u64));
                notes.push(format!("a budget of {bytes} is more than {} has: {total} count", device.name()));
            }
        }
        Ok(notes)
    }

    /// What a plan has to keep to now, on each device.
    pub(super) fn limits(&self) -> Result<Vec<Limits>> {
        self.units.iter().map(|unit| self.limits_of(unit)).collect()
    }

    /// The same if each had a budget of `vram`.
    pub(super) fn limits_of_all(&self, vram: Option<usize>) -> Result<Vec<Limits>> {
        self.units.iter().map(|unit| self.limits_within(unit, vram)).collect()
    }

    /// What a plan has to keep to now on one device.
    pub(super) fn limits_of(&self, unit: &Unit) -> Result<Limits> {
        self.limits_within(unit, unit.budget.or(self.options.vram))
    }

    fn limits_within(&self, unit: &Unit, vram: Option<usize>) -> Result<Limits> {
        if unit.is_lost {
            return Ok(Limits { bytes: Some(0), ..Limits::default() });
        }
        let options = MemoryOptions { vram, ..self.options };
        Ok(Limits { of_host: self.host_limits(unit), ..limits(unit.backend.device(), &options)? })
    }

    /// What the host allows, as far as somebody asked or the system says what it has, to a device of its own.
    fn host_limits(&self, unit: &Unit) -> [Option<HostLimit>; 2] {
        let Machine { workers, options, .. } = self;
        let Unit { backend, .. } = unit;
        let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let shared = backend.device().is_cpu();
        let held = memory::resident().map_or(0, |resident| bytes(resident.anonymous));
        // What a plan counts is not counted twice.
        let on_cpu = self.units.iter().filter(|unit| unit.backend.device().is_cpu());
        let planned = on_cpu.map(|unit| unit.ledger.usage().total).fold(0, usize::saturating_add);
        let process = held.saturating_sub(planned);
        let room = memory::room();
        let [free, most, addresses] = [room.free, room.most, room.addresses].map(|left| {
            // All that there is for this process.
            left.map(|left| bytes(left).saturating_add(held))
        });
        let memory = match options.host {
            Some(given) => Some(given.min(most.unwrap_or(usize::MAX))),
            // The system's own tables of the pages count in control groups, too.
            None => free.map(|free| free - free / PAGE_TABLES),
        };
        let threads = READERS + if workers.threads() > 1 { workers.threads() } else { 0 };
        let of_a_thread = STACK + if shares_heap() { 0 } else { HEAP };
        let more_threads = if shared { workers.threads().saturating_sub(RESERVED_THREADS) } else { 0 };
        let reserve = HOST_RESERVE.saturating_add(CONVOLUTION.saturating_mul(more_threads));
        let limit = |bound, bytes, reserve: usize, graph| HostLimit {
            bound,
            bytes,
            process: process.saturating_add(reserve),
            graph,
            shared,
        };
        [
            memory.map(|bytes| limit(HostBound::Memory, bytes, reserve, GRAPH)),
            addresses.map(|bytes| {
                limit(HostBound::Addresses, bytes, ADDRESS_RESERVE + threads * of_a_thread, GRAPH_ADDRESSES)
            }),
        ]
    }

    /// The refusal of `what` as an error. `instead` is what else would help.
    pub(super) fn over_budget(&self, refusal: &Refusal, what: String, instead: &str) -> Error {
        let budget = Size(refusal.least as u64).rounded_up();
        let MemoryOptions { vram, host, .. } = self.options;
        let (place, way) = match refusal.bound {
            None if vram.is_none() => ("", format!("a device with at least {budget} free")),
            None => ("", format!("--vram {budget}")),
            Some(HostBound::Memory) if host.is_some_and(|host| host <= refusal.given) => {
                (" in host memory", format!("--host-memory {budget}"))
            }
            Some(HostBound::Memory) => {
                (" in host memory", format!("a machine or control group with at least {budget}"))
            }
            Some(HostBound::Addresses) => {
                (" in address space", "a higher limit of address space (`ulimit -v` shows it)".to_owned())
            }
        };
        let hint = Some(format!("try {instead}{way}"));
        Error::OverBudget { what: format!("{what}{place}"), needed: refusal.least, given: refusal.given, hint }
    }
}

/// Bytes of the arrays that `phase` has in host memory beside the ports of its networks, at most.
pub(super) fn arrays(model: &Opened, settings: &Settings, phase: Phase) -> usize {
    const NUMBER: usize = size_of::<f32>();
    let model = of_pass(model, settings);
    let sum = |bytes: &[usize]| bytes.iter().copied().fold(0, usize::saturating_add);
    let latents = NUMBER * model.autoencoder.latents(settings).into_iter().fold(1, usize::saturating_mul);
    let picture = CHANNELS * settings.width * settings.height;
    let samples = NUMBER * picture;
    // Tokens of pictures are as wide as those of the text.
    let seen = settings.prompt_tokens().saturating_sub(settings.max_sequence_length);
    let mut prompts = 0;
    for tokens in &settings.text_tokens {
        prompts += NUMBER * model.encoders.arrays(tokens + seen).iter().map(|array| array.elements()).sum::<usize>();
    }
    // Moments of the encoded pictures, and latents that are drawn from them.
    let encoded = settings.encoded_pictures.saturating_mul(3).saturating_mul(latents);
    let sizes = settings.references.iter().map(|[width, height]| width.saturating_mul(*height));
    // Latents of the pictures that the model looks at, and pixels of the largest of all.
    let looked_at = latents / (settings.batch * settings.width * settings.height) * sizes.clone().sum::<usize>();
    let largest = sizes.max().map_or(picture, |pixels| picture.max(CHANNELS * pixels));
    // What ControlNets are given of their pictures.
    let mut followed = 0usize;
    for (control, set) in model.rules.controls.iter().zip(&settings.controls) {
        followed = followed.saturating_add(match control.takes {
            // Latents of two pictures, a mask, and the same once more while they are packed.
            Takes::Mean { .. } => 5 * latents,
            takes if takes.latents() => latents.saturating_add(latents / 8),
            _ => samples.saturating_mul(set.pictures()),
        });
    }
    // What came of the prompts stays throughout.
    match phase {
        // The numbers of a text, and what they become.
        Phase::Encode => {
            let of_pictures = model.image_prompts.as_ref().map_or(0, |pictures| pictures.bytes(settings));
            let of_face = model.face.as_ref().map_or(0, |face| face.bytes(settings));
            sum(&[4 * prompts, of_pictures, of_face, model.encoders.seen_bytes(settings)])
        }
        // The picture resized, its samples, and the latents that it has.
        Phase::Condition => {
            // The frames of a video on their way, and as they are taken.
            let is_film = settings.guide_scale.is_some() || model.rules.followed.is_some();
            let are_frames = settings.given_frames[0] || is_film;
            let of_frames = if are_frames { 2 * FRAMES_AT_ONCE.min(settings.frames) } else { 0 };
            // A film beside the latents, and the same as it is taken.
            let guide = match is_film {
                true => NUMBER * model.denoiser.beside(model.autoencoder.latents(settings)),
                false => 0,
            };
            sum(&[
                guide.saturating_mul(1 + settings.batch),
                samples.saturating_mul(of_frames),
                prompts,
                2 * largest,
                NUMBER * largest,
                2 * latents,
                encoded,
                looked_at.saturating_mul(3),
                followed,
            ])
        }
        // The prompts of every item of the batch; what is denoised, predicted and added, and what solvers remember of it.
        Phase::Denoise => {
            let passes = settings.passes() + 1;
            let fixed = model.denoiser.filled_bytes(settings);
            // What stands beside the latents: once, and in each pass.
            let beside = NUMBER * model.denoiser.beside(model.autoencoder.latents(settings));
            let beside = settings.batch.saturating_mul(beside + looked_at).saturating_mul(1 + 3 * passes);
            let prompts = prompts.saturating_mul(1 + settings.batch * settings.passes() / settings.prompts());
            let held = 12 + 3 * passes + settings.sampling.sampler.held();
            sum(&[prompts, held * latents, beside, fixed, followed, cached(model, settings, latents)])
        }
        // The samples of a picture, and the pictures that are done.
        Phase::Decode => {
            // A frame of a video is handed on, too.
            let done = settings.batch.saturating_mul(settings.frames) + 1 + usize::from(settings.fps.is_some());
            let samples = samples.saturating_mul(FRAMES_AT_ONCE.min(settings.frames));
            sum(&[prompts, 4 * latents, samples, picture.saturating_mul(done)])
        }
        Phase::Safety => sum(&[prompts, 4 * latents, model.safety.as_ref().map_or(0, |safety| safety.bytes(settings))]),
        // Of the others, the pictures before and after.
        Phase::Upscale => {
            let size = [settings.width, settings.height];
            let larger = size.map(|side| side.saturating_mul(model.upscaler.as_ref().map_or(1, UpscaleModel::factor)));
            let of_one = model.upscaler.as_ref().map_or(0, |upscaler| upscaler.bytes(size, larger));
            let after = CHANNELS.saturating_mul(larger[0]).saturating_mul(larger[1]);
            {
                let pictures = settings.batch.saturating_mul(settings.frames);
                sum(&[prompts, 4 * latents, of_one, pictures.saturating_mul(picture.saturating_add(after))])
            }
        }
    }
}

/// Bytes that the step cache of a request has in host memory, at most, if its latents have `latents` bytes.
fn cached(model: &Opened, settings: &Settings, latents: usize) -> usize {
    let items = settings.batch.saturating_mul(settings.passes());
    match settings.cache.map(|cache| cache.kind) {
        None | Some(CacheKind::MagCache) => 0,
        // What was looked at before, and now.
        Some(CacheKind::FirstBlock | CacheKind::TeaCache) => {
            (2 * size_of::<f32>()).saturating_mul(model.denoiser.probed(settings)).saturating_mul(items)
        }
        // The last prediction of each pass, how it changed, and both again.
        Some(CacheKind::TaylorSeer) => latents.saturating_mul(4 * settings.passes()),
    }
}

/// What `options` allow on `device`: no more than it has, and without a budget what is free less a margin. On a device that
/// computes in host memory, the host's limits do.
pub(super) fn limits(device: Device, options: &MemoryOptions) -> Result<Limits> {
    let host = device.kind() == DeviceKind::Cpu;
    let (free, total) = device.memory()?;
    let bytes = match options.vram {
        Some(bytes) if total > 0 => Some(bytes.min(total)),
        Some(bytes) => Some(bytes),
        None if host => None,
        None => Some(free.saturating_sub((free / MARGIN_PART).max(LEAST_MARGIN))),
    };
    Ok(Limits { bytes, host, overhead: device.overhead()?, ..Limits::default() })
}
