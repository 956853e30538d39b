//! What computes a request: a device with the weights that are there, the plan that is followed, and who listens.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pinhole_quant::workers::Workers;

use super::generated::{PhaseMemory, Timings};
use super::measured::Measured;
use super::progress::{Event, Observer};
use super::request::MemoryOptions;
use crate::exec::{DeviceWeights, Session};
use crate::ggml::{AttentionMode, Backend, Ledger, Usage, device_peak, restart_device_peak};
use crate::plan::measure::Subject;
use crate::plan::{Batch, ComponentPlan, Phase, Plan};
use crate::stage::{Cadence, Dims, Part, Port, Symbol};
use crate::text::Encoded;
use crate::trace::{About, Kind, Trace};
use crate::{Error, Result};

/// A device, the account of its memory, and the weights that stay there.
pub(super) struct Machine {
    pub(super) backend: Backend,
    /// What else computes on the CPU. Of both, only one works at a time.
    pub(super) workers: Workers,
    pub(super) ledger: Ledger,
    pub(super) options: MemoryOptions,
    /// How exact the denoisers' attention is.
    pub(super) attention: AttentionMode,
    /// Weights that stay on the device between components and requests, by the names of their subjects.
    pub(super) kept: Vec<(&'static str, Arc<DeviceWeights>)>,
    /// What components take that were measured before.
    pub(super) measured: Measured,
}

impl Machine {
    /// The weights of `subject` on the device: those that are there already, or new ones.
    fn weights(&self, plan: &Plan, subject: &Subject<'_>) -> Result<Arc<DeviceWeights>> {
        if let Some((_, kept)) = self.kept.iter().find(|(name, _)| *name == subject.name) {
            return Ok(Arc::clone(kept));
        }
        let ComponentPlan { placement, batch, .. } = planned(plan, subject.name)?;
        let &Subject { model, bound, ref dims, runs, .. } = subject;
        let (device, ledger) = (self.backend.device(), &self.ledger);
        if plan.all_resident {
            // Requests to come may run what this one does not.
            return DeviceWeights::place(model, bound, device, ledger, placement, batch.runs(runs)).map(Arc::new);
        }
        let order = batch.order(model, dims, runs);
        DeviceWeights::place_in_order(model, bound, device, ledger, placement, order).map(Arc::new)
    }

    /// Keeps the weights of all `subjects` on the device if the plan says so, and none of an earlier plan otherwise.
    pub(super) fn keep(&mut self, plan: &Plan, subjects: &[Subject<'_>]) -> Result<()> {
        if !plan.all_resident {
            self.kept.clear();
            return Ok(());
        }
        // What an earlier plan had room for, and this one does not count; or what was placed for other stages.
        self.kept.retain(|(name, weights)| {
            let subject = subjects.iter().find(|subject| subject.name == *name);
            plan.component(name).is_some() && subject.is_none_or(|subject| weights.are_of(subject.model))
        });
        for subject in subjects {
            if !self.kept.iter().any(|(name, _)| *name == subject.name) {
                let weights = self.weights(plan, subject)?;
                self.kept.push((subject.name, weights));
            }
        }
        // An earlier plan may have left pages that this one has no room for.
        if plan.components.iter().any(|component| !component.placement.dropped.is_empty()) {
            self.kept.iter().for_each(|(_, weights)| weights.give_back_pages());
        }
        Ok(())
    }

    /// A phase begins.
    fn restart_peak(&self) {
        self.ledger.restart_peak();
        restart_device_peak();
    }

    /// What is held after a request, with the peak of its `highest` phase.
    pub(super) fn left_after(&self, highest: Option<&Usage>) -> Usage {
        let Usage { peak, at_peak, .. } = highest.cloned().unwrap_or_default();
        Usage { peak, at_peak, ..self.ledger.usage() }
    }
}

/// The plan of the component `name`.
fn planned<'a>(plan: &'a Plan, name: &str) -> Result<&'a ComponentPlan> {
    plan.component(name).ok_or_else(|| Error::graph("plan", format!("has no {name}")))
}

/// A request that is being computed. What runs is a [`Subject`] that the plan has measured, and nothing else.
pub struct Run<'a> {
    pub(super) machine: &'a mut Machine,
    observer: &'a mut dyn Observer,
    pub(super) plan: &'a Plan,
    pub(super) timings: Timings,
    pub(super) mapped: usize,
    pub(super) phases: Vec<PhaseMemory>,
    /// Bytes that were brought in this phase.
    moved: u64,
    /// What was said so far.
    pub(super) warnings: Vec<String>,
}

/// A subject with its weights on the device and a session of the request's size.
pub struct Running<'m> {
    session: Session<'m>,
    weights: Arc<DeviceWeights>,
    batch: Batch,
    /// The sizes of the request.
    dims: Dims,
    phase: Phase,
    /// Whether the listener hears of its stages.
    heard: bool,
}

impl<'m> Running<'m> {
    /// Its ports.
    pub fn session(&mut self) -> &mut Session<'m> {
        &mut self.session
    }

    /// How much of the batch its session computes at once.
    pub fn batch(&self) -> Batch {
        self.batch
    }

    /// What `symbol` is in the size that is computed at once.
    ///
    /// # Errors
    /// [`Error::Graph`](crate::Error::Graph) if its subject has no such symbol.
    pub fn dim(&self, symbol: Symbol) -> Result<usize> {
        self.dims.get(symbol)
    }

    /// What is computed from now on is of guidance pass `pass`, if passes are computed one after the other, in step number `step` of
    /// the subject.
    ///
    /// # Errors
    /// As [`Session::choose`].
    pub(super) fn choose(&mut self, pass: usize, step: usize) -> Result<()> {
        self.session.choose(self.batch.form(&self.dims, pass, step))
    }

    /// Fills an F32 port.
    ///
    /// # Errors
    /// As [`Session::set`].
    pub fn set(&mut self, port: Port, values: &[f32]) -> Result<()> {
        self.session.set(port, values)
    }

    /// What an F32 port holds.
    ///
    /// # Errors
    /// As [`Session::get`].
    pub fn get(&self, port: Port) -> Result<Vec<f32>> {
        self.session.get(port)
    }
}

impl<'a> Run<'a> {
    pub(super) fn new(machine: &'a mut Machine, observer: &'a mut dyn Observer, plan: &'a Plan) -> Run<'a> {
        let (timings, phases, warnings) = (Timings::new(), Vec::new(), Vec::new());
        Run { machine, observer, plan, timings, mapped: 0, phases, moved: 0, warnings }
    }

    pub(super) fn event(&mut self, event: Event) -> Result<()> {
        self.observer.event(event)
    }

    /// Says something that the user should know, and that stops nothing.
    ///
    /// # Errors
    /// The listener's.
    pub fn warn(&mut self, text: String) -> Result<()> {
        self.warnings.push(text.clone());
        self.event(Event::Warning(text))
    }

    /// Says what `reader`, which reads `tokens` tokens, does not see of a text.
    pub(super) fn warn_of_cut(&mut self, reader: &str, tokens: usize, encoded: &Encoded) -> Result<()> {
        match &encoded.cut {
            Some(cut) => self.warn(format!("{reader} reads {tokens} tokens; it does not see \"{}\"", shorten(cut))),
            None => Ok(()),
        }
    }

    /// `phase` begins, with `stages` stages in all that make up `steps` steps.
    pub(super) fn begin(&mut self, phase: Phase, stages: usize, steps: usize) -> Result<Instant> {
        let start = Instant::now();
        self.event(Event::Begin { phase, stages, steps })?;
        self.machine.restart_peak();
        Ok(start)
    }

    /// Brings the weights of `subject`, and makes a session of it.
    ///
    /// # Errors
    /// [`Error::Graph`] if the plan has no such component; what the device returns.
    pub fn start<'m>(&self, subject: &Subject<'m>) -> Result<Running<'m>> {
        let weights = self.machine.weights(self.plan, subject)?;
        let &ComponentPlan { way, batch, .. } = planned(self.plan, subject.name)?;
        let Machine { backend, ledger, .. } = &*self.machine;
        let forms = batch.forms(&subject.dims);
        // Text encoders and autoencoders take little time, and what encoders made is remembered.
        let denoises = subject.phase == Phase::Denoise;
        backend.set_attention(if denoises { self.machine.attention } else { AttentionMode::Exact });
        let session = Session::in_forms(way, subject.model, &weights, &forms, backend, ledger)?;
        Ok(Running { session, weights, batch, dims: subject.dims.clone(), phase: subject.phase, heard: true })
    }

    /// As [`start`](Run::start), of work that is in no phase and that no one hears of.
    pub(super) fn start_unheard<'m>(&self, subject: &Subject<'m>) -> Result<Running<'m>> {
        Ok(Running { heard: false, ..self.start(subject)? })
    }

    /// Computes the stages of a request, or those of a step that skips nothing.
    ///
    /// # Errors
    /// [`Error::Cancelled`], or what the device says.
    pub fn compute(&mut self, running: &mut Running<'_>, cadence: Cadence) -> Result<()> {
        self.compute_stages(running, Stages::Of(cadence))
    }

    /// Computes `part` of a step. Stages that are skipped count as done.
    ///
    /// # Errors
    /// As [`compute`](Run::compute).
    pub(super) fn compute_part(&mut self, running: &mut Running<'_>, part: Part) -> Result<()> {
        self.compute_stages(running, Stages::In(part))?;
        if part != Part::Shortcut {
            return Ok(());
        }
        let [rest, shortcut] = [Part::Rest, part].map(|part| running.session.stages_of(part).len());
        self.pass_over(running, rest.saturating_sub(shortcut))
    }

    /// Computes the lead of a step before its turn: no one hears of that.
    ///
    /// # Errors
    /// As [`compute`](Run::compute).
    pub(super) fn look_ahead(&mut self, running: &mut Running<'_>) -> Result<()> {
        let heard = std::mem::replace(&mut running.heard, false);
        let looked = self.compute_stages(running, Stages::In(Part::Lead));
        running.heard = heard;
        looked
    }

    /// Skips a whole step, in all its parts.
    pub(super) fn skip(&mut self, running: &mut Running<'_>) -> Result<()> {
        let stages = running.session.stages_of(Part::Lead).len();
        for _ in 0..running.batch.parts_each_step() {
            running.session.skip_step();
            self.pass_over(running, stages)?;
        }
        Ok(())
    }

    /// So many stages are done that were not computed.
    fn pass_over(&mut self, running: &Running<'_>, stages: usize) -> Result<()> {
        for _ in 0..if running.heard { stages } else { 0 } {
            self.event(Event::Stage)?;
        }
        Ok(())
    }

    fn compute_stages(&mut self, running: &mut Running<'_>, stages: Stages) -> Result<()> {
        let before = if running.heard { self.phase(running.phase).moved } else { 0 };
        let Run { machine, observer, moved, .. } = self;
        let Running { session, weights, heard, .. } = running;
        let after = |_: usize, _: usize| {
            if !*heard {
                return Ok(());
            }
            let bytes = before + weights.moved_bytes();
            if bytes > *moved {
                observer.event(Event::Moved { bytes })?;
            }
            *moved = bytes;
            observer.event(Event::Stage)
        };
        match stages {
            Stages::Of(cadence) => session.run(&mut machine.backend, cadence, after),
            Stages::In(part) => session.run_part(&mut machine.backend, part, after),
        }
    }

    /// Lets go of what was computed with.
    pub fn finish(&mut self, running: Running<'_>) {
        let Running { weights, phase, .. } = running;
        if phase == Phase::Encode {
            // A prompt is read once, and what follows needs the room.
            weights.let_go_of_pages();
        }
        self.mapped += weights.mapped_bytes();
        let (moved, waited): (u64, Duration) = (weights.moved_bytes(), weights.waited());
        let phase = self.phase(phase);
        phase.moved += moved;
        phase.waited += waited;
    }

    /// `phase`, which began at `start`, is over.
    pub(super) fn end(&mut self, phase: Phase, start: Instant) -> Result<()> {
        let measured = self.machine.ledger.usage();
        let on_gpu = !self.machine.backend.device().is_cpu();
        let entry = self.phase(phase);
        // Prompts and pictures are encoded one after the other, in one phase.
        if measured.peak >= entry.measured.peak {
            entry.measured = measured;
        }
        let allocated = entry.allocated.unwrap_or(0).max(device_peak());
        entry.allocated = on_gpu.then_some(allocated);
        *self.timings.entry(phase.name()).or_default() += start.elapsed();
        if let Some(trace) = Trace::current() {
            trace.record(Kind::Phase, phase.name(), start, About::default());
        }
        self.event(Event::End { phase })
    }

    fn phase(&mut self, phase: Phase) -> &mut PhaseMemory {
        let known = self.phases.iter().position(|other| other.phase == phase);
        let position = known.unwrap_or_else(|| {
            let planned = self.plan.phase_peak(phase);
            self.phases.push(PhaseMemory { phase, planned, ..PhaseMemory::default() });
            self.phases.len() - 1
        });
        &mut self.phases[position]
    }
}

/// What is computed at once.
enum Stages {
    /// Those of a request, or those of a step that skips nothing.
    Of(Cadence),
    /// Those in a part of a step.
    In(Part),
}

/// How many stages run for `subject` in one request that follows `plan`.
pub(super) fn stage_runs(plan: &Plan, subject: &Subject<'_>) -> usize {
    let batch = plan.component(subject.name).map_or(Batch::default(), |component| component.batch);
    let stages = subject.model.stages();
    let mut runs = 0;
    for (list, times) in batch.order(subject.model, &subject.dims, subject.runs) {
        runs += list.iter().filter(|&&stage| stages[stage].cadence != Cadence::Instead).count() * times;
    }
    runs
}

/// The beginning of a long text.
fn shorten(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// `values`, or an error naming `what` if one is not finite: broken weights show here, not as a black picture.
///
/// # Errors
/// [`Error::NotFinite`].
pub(super) fn finite(values: Vec<f32>, what: &str) -> Result<Vec<f32>> {
    if values.iter().all(|value| value.is_finite()) {
        return Ok(values);
    }
    let hint = "the weights may be damaged: `pinhole inspect --check` looks at every number of a model".into();
    Err(Error::NotFinite { at: what.to_owned(), hint: Some(hint) })
}
