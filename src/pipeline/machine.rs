//! The devices that compute requests, each with the account of its memory and the weights that stay there.

use std::sync::Arc;

use pinhole_quant::workers::Workers;

use super::generated::{DeviceMemory, PhaseMemory};
use super::measured::Measurements;
use super::request::MemoryOptions;
use crate::exec::DeviceWeights;
use crate::ggml::log::{self, Level};
use crate::ggml::{AttentionMode, Backend, CancelFlag, Device, Ledger, Usage, restart_device_peak};
use crate::plan::devices::Among;
use crate::plan::measure::Subject;
use crate::plan::{Component, ComponentPlan, Plan, Speed, TokenShare, Turn, Work};
use crate::{Error, Result};

/// What computes a request.
pub(super) struct Machine {
    /// One for each device, in the order in which they were named; at least one.
    pub(super) units: Vec<Unit>,
    /// What else computes on the CPU. Of both, only one works at a time.
    pub(super) workers: Workers,
    pub(super) options: MemoryOptions,
    /// How exact the denoisers' attention is.
    pub(super) attention: AttentionMode,
    /// What devices may have among them of what denoises.
    pub(super) among: Among,
}

/// A device, the account of its memory, and the weights that stay there.
pub(super) struct Unit {
    pub(super) backend: Backend,
    /// What else computes on the CPU while the device is one of several that compute at the same time.
    pub(super) workers: Workers,
    pub(super) ledger: Ledger,
    /// The most bytes at once, if that is another number than for other devices.
    pub(super) budget: Option<usize>,
    /// Weights that stay on the device between components and requests, by the names of their subjects.
    pub(super) kept: Vec<(&'static str, Arc<DeviceWeights>)>,
    /// What components take that were measured before.
    pub(super) measured: Measurements,
    /// Whether it failed and does not start, so that nothing is planned for it: the server of another machine is gone, say.
    pub(super) is_lost: bool,
}

impl Machine {
    /// Starts `devices`. Those that are the CPU, or played by it, share its `threads`: each has as many as the others, at least one.
    ///
    /// # Errors
    /// [`Error::Option`] for no device, or one that is named twice; what [`Backend::new`] returns.
    pub(super) fn new(devices: &[Device], threads: usize, cancel: &CancelFlag) -> Result<Machine> {
        if devices.is_empty() {
            return Err(Error::option("--device", "a device", "none"));
        }
        let on_cpu = devices.iter().filter(|device| device.is_cpu()).count();
        let mut units = Vec::with_capacity(devices.len());
        for (at, device) in devices.iter().enumerate() {
            if devices[..at].iter().any(|other| other.name() == device.name()) {
                return Err(Error::option("--device", "each device once", format!("{} twice", device.name())));
            }
            let own = if device.is_cpu() { (threads / on_cpu).max(1) } else { 1 };
            units.push(Unit {
                backend: Backend::new(*device, own, cancel.clone())?,
                workers: Workers::new(own),
                ledger: Ledger::new(),
                budget: None,
                kept: Vec::new(),
                measured: Measurements::default(),
                is_lost: false,
            });
        }
        let (options, attention) = (MemoryOptions::default(), AttentionMode::default());
        Ok(Machine { units, workers: Workers::new(threads), options, attention, among: Among::AUTO })
    }

    /// The first device that is there.
    pub(super) fn first(&self) -> &Unit {
        // `new` has made one at least, and none goes.
        self.units.iter().find(|unit| !unit.is_lost).unwrap_or(&self.units[0])
    }

    /// Its devices, in order.
    pub(super) fn devices(&self) -> impl Iterator<Item = Device> {
        self.units.iter().map(|unit| unit.backend.device())
    }

    /// The flag that stops all of them.
    pub(super) fn cancel(&self) -> &CancelFlag {
        self.first().backend.cancel()
    }

    /// Lets `cancel` stop all of them from now on.
    pub(super) fn set_cancel(&mut self, cancel: &CancelFlag) {
        self.units.iter_mut().for_each(|unit| unit.backend.set_cancel(cancel.clone()));
    }

    /// Starts those anew that failed. Those that do not start are left out, if any is left, until they do.
    pub(super) fn recover(&mut self) -> Result<()> {
        let mut errors = Vec::new();
        for unit in &mut self.units {
            if unit.backend.is_lost() {
                // It was in the memory of a server that is gone.
                unit.kept.clear();
                unit.measured = Measurements::default();
            }
            let recovered = unit.backend.recover();
            unit.is_lost = recovered.is_err();
            errors.extend(recovered.err());
        }
        if errors.len() == self.units.len() {
            return errors.pop().map_or(Ok(()), Err);
        }
        for error in errors {
            log::say(Level::Warning, &format!("{error}: the request goes on without it"));
        }
        Ok(())
    }

    /// Lets go of all weights that stay.
    pub(super) fn forget(&mut self) {
        self.units.iter_mut().for_each(|unit| unit.kept.clear());
    }

    /// Holds each device to the limit of its part of `plan`.
    ///
    /// # Errors
    /// [`Error::Graph`] for a plan of another number of devices.
    pub(super) fn set_limits(&self, plan: &Plan) -> Result<()> {
        let planned = plan.devices().count();
        if planned > self.units.len() {
            return Err(Error::graph("plan", format!("{planned} devices, and there are {}", self.units.len())));
        }
        for (unit, plan) in self.units.iter().zip(plan.devices()) {
            unit.ledger.set_limit(plan.limit);
        }
        Ok(())
    }

    /// Keeps the weights of all `subjects` on the devices for which the plan says so, and none of an earlier plan on others.
    pub(super) fn keep(&mut self, plan: &Plan, subjects: &[Subject<'_>]) -> Result<()> {
        let nothing = Plan::default();
        for (device, unit) in self.units.iter_mut().enumerate() {
            unit.keep(plan.devices().nth(device).unwrap_or(&nothing), subjects)?;
        }
        Ok(())
    }

    /// What the devices held in a request that followed `plan` and had these `phases`.
    pub(super) fn held(&self, plan: &Plan, phases: &[PhaseMemory]) -> Vec<DeviceMemory> {
        let mut all = Vec::with_capacity(self.units.len());
        for (device, (unit, own)) in self.units.iter().zip(plan.devices()).enumerate() {
            let of_device = phases.iter().filter(|phase| phase.device == device).map(|phase| &phase.measured);
            all.push(DeviceMemory {
                device: unit.backend.device().name(),
                limit: own.limit,
                planned: plan.peak_on(device),
                measured: unit.left_after(of_device.max_by_key(|usage| usage.peak)),
            });
        }
        all
    }

    /// A phase begins.
    pub(super) fn restart_peak(&self) {
        for unit in &self.units {
            unit.ledger.restart_peak();
        }
        restart_device_peak();
    }
}

impl Unit {
    /// What `subject` takes, which computes its passes in its `turn` and is of a model that the machine's owner keeps.
    pub(super) fn measure(&self, subject: &Subject<'_>, turn: Turn) -> Result<Component> {
        self.measure_share(subject, turn, TokenShare::ALL)
    }

    /// The same of its `share` of the tokens.
    pub(super) fn measure_share(&self, subject: &Subject<'_>, turn: Turn, share: TokenShare) -> Result<Component> {
        self.measured.measure(subject, (turn, share), &self.backend)
    }

    /// The weights of `subject` on the device: those that are there already, or new ones. `plan` is that of the device, and
    /// `component` is the subject's part of it.
    pub(super) fn weights(
        &self,
        (plan, component): (&Plan, &ComponentPlan),
        subject: &Subject<'_>,
    ) -> Result<Arc<DeviceWeights>> {
        if let Some((_, kept)) = self.kept.iter().find(|(name, _)| *name == subject.name) {
            return Ok(Arc::clone(kept));
        }
        let ComponentPlan { placement, batch, way, .. } = component;
        let &Subject { model, bound, ref dims, runs, .. } = subject;
        let runs = way.runs(runs);
        let (device, ledger) = (self.backend.device(), &self.ledger);
        if plan.all_resident {
            // Requests to come may run what this one does not.
            return DeviceWeights::place(model, bound, device, ledger, placement, batch.runs(runs)).map(Arc::new);
        }
        let order = batch.order(model, dims, runs);
        DeviceWeights::place_in_order(model, bound, device, ledger, placement, order).map(Arc::new)
    }

    /// Keeps the weights of those of `subjects` that the plan of the device has, if it says so, and none of an earlier plan otherwise.
    fn keep(&mut self, plan: &Plan, subjects: &[Subject<'_>]) -> Result<()> {
        if !plan.all_resident {
            self.kept.clear();
            return Ok(());
        }
        // What an earlier plan had room for, and this one does not count; or what was placed for other stages.
        self.kept.retain(|(name, weights)| {
            let subject = subjects.iter().find(|subject| subject.name == *name);
            let component = plan.here(name).filter(|component| component.placement.own == weights.own());
            component.is_some() && subject.is_none_or(|subject| weights.are_of(subject.model))
        });
        for subject in subjects {
            let Some(component) = plan.here(subject.name) else { continue };
            if !self.kept.iter().any(|(name, _)| *name == subject.name) {
                let weights = self.weights((plan, component), subject)?;
                self.kept.push((subject.name, weights));
            }
        }
        // An earlier plan may have left pages that this one has no room for.
        if plan.components.iter().any(|component| !component.placement.dropped.is_empty()) {
            self.kept.iter().for_each(|(_, weights)| weights.give_back_pages());
        }
        Ok(())
    }

    /// What is held after a request, with the peak of its `highest` phase.
    pub(super) fn left_after(&self, highest: Option<&Usage>) -> Usage {
        let Usage { peak, at_peak, .. } = highest.cloned().unwrap_or_default();
        Usage { peak, at_peak, ..self.ledger.usage() }
    }

    /// What each of so many `devices` like it has to do in a step of `subject`: see [`Subject::works`].
    pub(super) fn works(&self, subject: &Subject<'_>, turn: Turn, devices: usize) -> Result<Vec<Work>> {
        self.measured.works(subject, (turn, devices), &self.backend)
    }

    /// About how fast it is. Of cards nothing is measured: what is assumed is so much that their tokens are divided only where an exchange
    /// is little beside the arithmetic.
    pub(super) fn speed(&self) -> Speed {
        /// Multiplications and additions a second: of a thread, and of a card.
        const OF_A_THREAD: f64 = 6e10;
        const OF_A_CARD: f64 = 1e14;
        /// Bytes a second: that one thread copies, and that PCIe 3.0 x16 gives.
        const COPIED: f64 = 5e9;
        const BROUGHT: f64 = 12e9;
        let device = self.backend.device();
        let (arithmetic, link) = match device.is_cpu() {
            true => (OF_A_THREAD * self.workers.threads() as f64, COPIED),
            false => (OF_A_CARD, BROUGHT),
        };
        let link = device.link().map_or(link, |given| link.min(given.get() as f64));
        Speed { arithmetic, link }
    }

    /// Whether components are known to take the same on it as on `other`. Cards of one kind may be of different make.
    pub(super) fn measures_as(&self, other: &Unit) -> bool {
        let (own, others) = (self.backend.device(), other.backend.device());
        let on_cpu = own.is_cpu() && others.is_cpu() && own.kind() == others.kind();
        on_cpu && self.workers.threads() == other.workers.threads()
    }
}
