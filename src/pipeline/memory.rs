//! What a request takes on the device, and what to do where that is too much.

use super::generate::Pipeline;
use super::opened::{Direction, Opened};
use super::request::{MemoryOptions, Request, Settings};
use super::settings::levels;
use crate::ggml::{Device, DeviceKind};
use crate::plan::host::{self, HostLimits, HostRefusal};
use crate::plan::measure::Subject;
use crate::plan::{Component, Limits, Phase, Plan, Refusal, budget};
use crate::size::Size;
use crate::{Error, Result, memory};

/// Longer sides that people use, to find one that fits.
const SIDES: [usize; 14] = [4096, 3072, 2048, 1536, 1280, 1024, 896, 768, 640, 512, 384, 256, 128, 64];

/// Without a budget we leave one part of so many of the free memory, and at least so many bytes, to other programs.
const MARGIN_PART: usize = 32;
const LEAST_MARGIN: usize = 128 << 20;

/// What the host needs beside what the process holds and what a plan counts: the program's own pages, graphs, tokens, latents,
/// pictures on their way to a file.
const HOST_RESERVE: usize = 128 << 20;

impl Pipeline {
    /// Sets how much memory requests may take from now on.
    pub fn set_memory(&mut self, options: MemoryOptions) {
        self.machine.options = options;
    }

    /// What `request` will have on the device, and when. Computes nothing, and reads no weight.
    ///
    /// # Errors
    /// [`Error::Option`] for a value that cannot work; [`Error::OverBudget`] where nothing fits, with what would.
    pub fn plan(&self, request: &Request) -> Result<Plan> {
        self.plan_settings(&self.settings(request)?)
    }

    /// The least budget, in bytes, that `request` can do with under the current offload mode.
    ///
    /// # Errors
    /// As [`plan`](Pipeline::plan), except that no budget is too small.
    pub fn least_budget(&self, request: &Request) -> Result<usize> {
        let limits = limits(self.machine.backend.device(), &self.machine.options)?;
        Ok(budget::least(&self.measure(&self.settings(request)?)?, self.machine.options.offload, &limits))
    }

    /// What there is to say of the budget: that it is more than the device has.
    ///
    /// # Errors
    /// A device that does not say how much it has.
    pub fn budget_note(&self) -> Result<Option<String>> {
        let device = self.machine.backend.device();
        let (_, total) = device.memory()?;
        let above = self.machine.options.vram.filter(|&bytes| total > 0 && bytes > total);
        let text = |bytes| {
            let [bytes, total] = [bytes, total].map(|bytes| Size(bytes as u64));
            format!("a budget of {bytes} is more than {} has: {total} count", device.name())
        };
        Ok(above.map(text))
    }

    pub(super) fn plan_settings(&self, settings: &Settings) -> Result<Plan> {
        let limits = limits(self.machine.backend.device(), &self.machine.options)?;
        let components = self.measure(settings)?;
        let mut plan = match budget::plan(&components, self.machine.options.offload, &limits) {
            Ok(plan) => plan,
            Err(refusal) => return Err(self.refusal(&refusal, settings, &limits)?),
        };
        if let Some(limits) = self.host_limits() {
            let refused = |refusal: HostRefusal| Error::OverBudget {
                what: format!("the {} at {}x{} in host memory", refusal.component, settings.width, settings.height),
                needed: refusal.least,
                given: limits.bytes,
                hint: Some(format!("try --host-memory {}", Size(refusal.least as u64).rounded_up())),
            };
            host::bound(&mut plan, &components, &limits).map_err(refused)?;
        }
        Ok(plan)
    }

    /// What the text encoders alone will have on the device.
    pub(super) fn plan_encoders(&self, settings: &Settings) -> Result<Plan> {
        let limits = limits(self.machine.backend.device(), &self.machine.options)?;
        let mut components = self.measure(settings)?;
        components.retain(|component| component.phase == Phase::Encode);
        budget::plan(&components, self.machine.options.offload, &limits).map_err(|refusal| {
            let budget = Size(refusal.least as u64).rounded_up();
            let hint = Some(format!("try --vram {budget}, or a shorter --max-sequence-length"));
            let what = format!("the {}", refusal.component);
            Error::OverBudget { what, needed: refusal.least, given: refusal.given, hint }
        })
    }

    /// What every component takes at the request's size. Computes nothing, and reads no weight.
    ///
    /// # Errors
    /// [`Error::Graph`] if a stage cannot be built at this size.
    pub fn measure(&self, settings: &Settings) -> Result<Vec<Component>> {
        let subjects = self.subjects(&self.model, settings)?;
        subjects.iter().map(|subject| subject.measure(&self.machine.backend)).collect()
    }

    /// What runs in a request, in order.
    pub(super) fn subjects<'m>(&self, model: &'m Opened, settings: &Settings) -> Result<Vec<Subject<'m>>> {
        let mut subjects = Vec::new();
        if !settings.embedded {
            subjects.extend(model.encoders.subjects(settings));
        }
        if settings.strength.is_some() {
            subjects.extend(model.autoencoder.subjects(settings, Direction::Encode, 1));
        }
        let evaluations = levels(model, settings)?.len();
        subjects.extend(model.denoiser.subjects(settings, model.autoencoder.latents(settings), evaluations));
        subjects.extend(model.autoencoder.subjects(settings, Direction::Decode, settings.batch));
        Ok(subjects)
    }

    /// What the host allows; `None` where nobody asked and the system does not say what it has.
    fn host_limits(&self) -> Option<HostLimits> {
        let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let shared = self.machine.backend.device().is_cpu();
        let held = memory::resident().map_or(0, |resident| bytes(resident.anonymous));
        let limit =
            self.machine.options.host.or_else(|| memory::available().map(|left| bytes(left).saturating_add(held)))?;
        // What a plan counts is not counted twice.
        let planned = if shared { self.machine.ledger.usage().total } else { 0 };
        let process = held.saturating_sub(planned).saturating_add(HOST_RESERVE);
        Some(HostLimits { bytes: limit, process, shared, strict: self.machine.options.host.is_some() })
    }

    /// The refusal as an error, with a picture that would fit and a budget that would do.
    fn refusal(&self, refusal: &Refusal, settings: &Settings, limits: &Limits) -> Result<Error> {
        let smaller = self.largest_that_fits(settings, limits)?;
        let smaller = smaller.map_or(String::new(), |(width, height)| format!("{width}x{height}, or "));
        let budget = Size(refusal.least as u64).rounded_up();
        let hint = match self.machine.options.vram {
            None => format!("try {smaller}a device with at least {budget} free"),
            Some(_) => format!("try {smaller}--vram {budget}"),
        };
        let what = format!("the {} at {}x{}", refusal.component, settings.width, settings.height);
        Ok(Error::OverBudget { what, needed: refusal.least, given: refusal.given, hint: Some(hint) })
    }

    /// The largest usual size of the picture's shape for which there is a plan.
    fn largest_that_fits(&self, settings: &Settings, limits: &Limits) -> Result<Option<(usize, usize)>> {
        let longer = settings.width.max(settings.height);
        let multiple = self.model.rules.multiple;
        for side in SIDES.into_iter().filter(|&side| side < longer) {
            let scaled = |extent: usize| ((extent * side / longer) / multiple * multiple).max(multiple);
            let smaller =
                Settings { width: scaled(settings.width), height: scaled(settings.height), ..settings.clone() };
            if budget::plan(&self.measure(&smaller)?, self.machine.options.offload, limits).is_ok() {
                return Ok(Some((smaller.width, smaller.height)));
            }
        }
        Ok(None)
    }
}

/// What `options` allow on `device`: no more than it has, and without a budget what is free less a margin. In host memory
/// without a budget there is no limit: the system decides.
pub(super) fn limits(device: Device, options: &MemoryOptions) -> Result<Limits> {
    let host = device.kind() == DeviceKind::Cpu;
    let (free, total) = device.memory()?;
    let bytes = match options.vram {
        Some(bytes) if total > 0 => Some(bytes.min(total)),
        Some(bytes) => Some(bytes),
        None if host => None,
        None => Some(free.saturating_sub((free / MARGIN_PART).max(LEAST_MARGIN))),
    };
    Ok(Limits { bytes, host, overhead: device.overhead()? })
}
