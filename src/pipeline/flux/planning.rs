//! What a request takes on the device, and what to do where that is too much.

use std::sync::Arc;

use super::{FluxPipeline, SIDE, denoise_dims};
use crate::bind::Bound;
use crate::exec::DeviceWeights;
use crate::ggml::{Device, DeviceKind};
use crate::pipeline::{MemoryOptions, Phase, Request, Settings};
use crate::plan::host::{self, HostLimits, HostRefusal};
use crate::plan::measure::Subject;
use crate::plan::{Component, ComponentPlan, Limits, Plan, Refusal, Runs, budget};
use crate::size::Size;
use crate::stage::{Dims, Model, Symbol};
use crate::{Error, Result, memory};

/// The components by the names that plans give them.
pub(super) const CLIP: &str = "clip";
pub(super) const T5: &str = "t5";
pub(super) const TRANSFORMER: &str = "transformer";
pub(super) const DECODER: &str = "decoder";

/// Longer sides that people use, to find one that fits.
const SIDES: [usize; 14] = [4096, 3072, 2048, 1536, 1280, 1024, 896, 768, 640, 512, 384, 256, 128, 64];

/// What is left to others of a device's free memory where nobody set a budget: one part of so many, and this at least.
const MARGIN_PART: usize = 32;
const LEAST_MARGIN: usize = 128 << 20;

/// What the host needs beside what the process holds and what a plan counts: the program's own pages, graphs, tokens, latents,
/// pictures on their way to a file.
const HOST_RESERVE: usize = 128 << 20;

/// The size of a request's tensors.
pub(super) fn clip_dims(tokens: usize) -> Dims {
    Dims::new().with(Symbol::TextTokens, tokens)
}

pub(super) fn t5_dims(tokens: usize) -> Dims {
    Dims::new().with(Symbol::TextTokens, tokens).with(Symbol::TextPairs, tokens * tokens)
}

pub(super) fn decoder_dims(settings: &Settings) -> Dims {
    Dims::new().with(Symbol::LatentWidth, settings.width / 8).with(Symbol::LatentHeight, settings.height / 8)
}

/// How many prompts go through the text encoders, and passes through the denoiser.
fn passes(settings: &Settings) -> usize {
    1 + usize::from(settings.negative_prompt.is_some())
}

impl FluxPipeline {
    /// From now on, requests keep to `options`.
    pub fn set_memory(&mut self, options: MemoryOptions) {
        self.options = options;
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
    /// As [`plan`](FluxPipeline::plan), but for budgets.
    pub fn least_budget(&self, request: &Request) -> Result<usize> {
        let limits = limits(self.backend.device(), &self.options)?;
        Ok(budget::least(&self.measure(&self.settings(request)?)?, self.options.offload, &limits))
    }

    /// What there is to say of the budget: that it is more than the device has.
    ///
    /// # Errors
    /// A device that does not say how much it has.
    pub fn budget_note(&self) -> Result<Option<String>> {
        let device = self.backend.device();
        let (_, total) = device.memory()?;
        let above = self.options.vram.filter(|&bytes| total > 0 && bytes > total);
        let text = |bytes| {
            let [bytes, total] = [bytes, total].map(|bytes| Size(bytes as u64));
            format!("a budget of {bytes} is more than {} has: {total} count", device.name())
        };
        Ok(above.map(text))
    }

    pub(super) fn plan_settings(&self, settings: &Settings) -> Result<Plan> {
        let limits = limits(self.backend.device(), &self.options)?;
        let components = self.measure(settings)?;
        let mut plan = match budget::plan(&components, self.options.offload, &limits) {
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
        let limits = limits(self.backend.device(), &self.options)?;
        let mut components = self.measure(settings)?;
        components.retain(|component| [CLIP, T5].contains(&component.name));
        budget::plan(&components, self.options.offload, &limits).map_err(|refusal| {
            let budget = Size(refusal.least as u64).rounded_up();
            let hint = Some(format!("try --vram {budget}, or a shorter --max-sequence-length"));
            let what = format!("the {}", refusal.component);
            Error::OverBudget { what, needed: refusal.least, given: refusal.given, hint }
        })
    }

    /// What every component takes at the request's size. Computes nothing, and reads no weight.
    ///
    /// # Errors
    /// [`Error::Graph`] where a stage cannot be built at this size.
    pub fn measure(&self, settings: &Settings) -> Result<Vec<Component>> {
        let model = &self.model;
        let (clip, t5) = (&model.clip, &model.t5);
        let (transformer, decoder) = (&model.transformer, &model.decoder);
        let once = |request| Runs { request, steps: 0 };
        let subject = |name, phase: Phase, model, bound, dims, runs| Subject {
            name,
            phase: phase.name(),
            model,
            bound,
            dims,
            runs,
        };
        let passes = passes(settings);
        let clip_dims = clip_dims(model.clip_tokenizer.length());
        let t5_dims = t5_dims(settings.max_sequence_length);
        let steps = Runs { request: 1, steps: settings.steps };
        let subjects = [
            subject(CLIP, Phase::Encode, &clip.net.model, &clip.bound, clip_dims, once(passes)),
            subject(T5, Phase::Encode, &t5.net.model, &t5.bound, t5_dims, once(passes)),
            subject(
                TRANSFORMER,
                Phase::Denoise,
                &transformer.net.model,
                &transformer.bound,
                denoise_dims(settings, passes),
                steps,
            ),
            subject(
                DECODER,
                Phase::Decode,
                &decoder.net.model,
                &decoder.bound,
                decoder_dims(settings),
                once(settings.batch),
            ),
        ];
        let encoder = |subject: &&Subject<'_>| [CLIP, T5].contains(&subject.name);
        let wanted = subjects.iter().filter(|subject| !(settings.embedded && encoder(subject)));
        wanted.map(|subject| subject.measure(&self.backend)).collect()
    }

    /// What the host allows; `None` where nobody asked and the system does not say what it has.
    fn host_limits(&self) -> Option<HostLimits> {
        let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let shared = self.backend.device().is_cpu();
        let held = memory::resident().map_or(0, |resident| bytes(resident.anonymous));
        let limit = self.options.host.or_else(|| memory::available().map(|left| bytes(left).saturating_add(held)))?;
        // What a plan counts is not counted twice.
        let planned = if shared { self.ledger.usage().total } else { 0 };
        let process = held.saturating_sub(planned).saturating_add(HOST_RESERVE);
        Some(HostLimits { bytes: limit, process, shared, strict: self.options.host.is_some() })
    }

    /// The refusal as an error, with a picture that would fit and a budget that would do.
    fn refusal(&self, refusal: &Refusal, settings: &Settings, limits: &Limits) -> Result<Error> {
        let smaller = self.largest_that_fits(settings, limits)?;
        let smaller = smaller.map_or(String::new(), |(width, height)| format!("{width}x{height}, or "));
        let budget = Size(refusal.least as u64).rounded_up();
        let hint = match self.options.vram {
            None => format!("try {smaller}a device with at least {budget} free"),
            Some(_) => format!("try {smaller}--vram {budget}"),
        };
        let what = format!("the {} at {}x{}", refusal.component, settings.width, settings.height);
        Ok(Error::OverBudget { what, needed: refusal.least, given: refusal.given, hint: Some(hint) })
    }

    /// The largest usual size of the picture's shape for which there is a plan.
    fn largest_that_fits(&self, settings: &Settings, limits: &Limits) -> Result<Option<(usize, usize)>> {
        let longer = settings.width.max(settings.height);
        for side in SIDES.into_iter().filter(|&side| side < longer) {
            let scaled = |extent: usize| ((extent * side / longer) / SIDE * SIDE).max(SIDE);
            let smaller =
                Settings { width: scaled(settings.width), height: scaled(settings.height), ..settings.clone() };
            if budget::plan(&self.measure(&smaller)?, self.options.offload, limits).is_ok() {
                return Ok(Some((smaller.width, smaller.height)));
            }
        }
        Ok(None)
    }

    /// The weights of the component `name` on the device: those that are there already, or new ones.
    pub(super) fn weights(&self, plan: &Plan, name: &'static str) -> Result<Arc<DeviceWeights>> {
        if let Some((_, kept)) = self.kept.iter().find(|(other, _)| *other == name) {
            return Ok(Arc::clone(kept));
        }
        let (model, bound) = self.part(name);
        let ComponentPlan { placement, runs, .. } = component(plan, name)?;
        let device = self.backend.device();
        DeviceWeights::place(model, bound, device, &self.ledger, placement, *runs).map(Arc::new)
    }

    /// Keeps all components' weights on the device where the plan says so, and none of an earlier plan otherwise.
    pub(super) fn keep(&mut self, plan: &Plan) -> Result<()> {
        if !plan.all_resident {
            self.kept.clear();
            return Ok(());
        }
        // What an earlier plan had room for, and this one does not count.
        self.kept.retain(|(name, _)| plan.component(name).is_some());
        for name in plan.components.iter().map(|component| component.name) {
            if !self.kept.iter().any(|(other, _)| *other == name) {
                let weights = self.weights(plan, name)?;
                self.kept.push((name, weights));
            }
        }
        // An earlier plan may have left pages that this one has no room for.
        if plan.components.iter().any(|component| !component.placement.dropped.is_empty()) {
            self.kept.iter().for_each(|(_, weights)| weights.give_back_pages());
        }
        Ok(())
    }

    fn part(&self, name: &str) -> (&Model, &Bound) {
        let FluxPipeline { model, .. } = self;
        match name {
            CLIP => (&model.clip.net.model, &model.clip.bound),
            T5 => (&model.t5.net.model, &model.t5.bound),
            DECODER => (&model.decoder.net.model, &model.decoder.bound),
            _ => (&model.transformer.net.model, &model.transformer.bound),
        }
    }
}

/// The plan of the component `name`.
pub(super) fn component<'a>(plan: &'a Plan, name: &str) -> Result<&'a ComponentPlan> {
    plan.component(name).ok_or_else(|| Error::graph("plan", format!("has no {name}")))
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
