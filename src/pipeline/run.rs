//! What computes a request: a device with the weights that are there, the plan that is followed, and who listens.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use super::generated::{PhaseMemory, Timings};
use super::machine::Machine;
use super::progress::{Event, Observer};
use crate::exec::{DeviceWeights, Session};
use crate::ggml::{AttentionMode, Backend, device_peak};
use crate::plan::measure::Subject;
use crate::plan::{Batch, ComponentPlan, Phase, Plan};
use crate::stage::{Cadence, Dims, Part, Port, Symbol};
use crate::text::Encoded;
use crate::trace::{About, Kind, Trace};
use crate::{Error, Result};

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

/// A subject with its weights on the device and a session of the request's size; on each device, if several compute it together.
pub struct Running<'m> {
    /// At least one.
    shares: Vec<Share<'m>>,
    /// The sizes of the request.
    dims: Dims,
    phase: Phase,
    /// Whether the listener hears of its stages.
    heard: bool,
}

/// What one device has of a subject.
struct Share<'m> {
    /// The number of the device.
    device: usize,
    session: Session<'m>,
    weights: Arc<DeviceWeights>,
    batch: Batch,
}

impl<'m> Running<'m> {
    /// Its ports; on the first of its devices.
    pub fn session(&mut self) -> &mut Session<'m> {
        &mut self.shares[0].session
    }

    /// What `symbol` is in the size that is computed at once.
    ///
    /// # Errors
    /// [`Error::Graph`](crate::Error::Graph) if its subject has no such symbol.
    pub fn dim(&self, symbol: Symbol) -> Result<usize> {
        self.dims.get(symbol)
    }

    /// Fills an F32 port; on the first of its devices.
    ///
    /// # Errors
    /// As [`Session::set`].
    pub fn set(&mut self, port: Port, values: &[f32]) -> Result<()> {
        self.session().set(port, values)
    }

    /// What an F32 port holds; on the first of its devices.
    ///
    /// # Errors
    /// As [`Session::get`].
    pub fn get(&self, port: Port) -> Result<Vec<f32>> {
        self.shares[0].session.get(port)
    }
}

/// A device's share of what runs, with what computes it.
pub(super) struct Seat<'a, 'm> {
    share: &'a mut Share<'m>,
    backend: &'a mut Backend,
    dims: &'a Dims,
    /// Told of each stage that is done; ends the work with an error.
    done: &'a mut dyn FnMut() -> Result<()>,
}

impl<'m> Seat<'_, 'm> {
    /// Its ports.
    pub(super) fn session(&mut self) -> &mut Session<'m> {
        &mut self.share.session
    }

    /// How much of the batch its session computes at once, and which passes.
    pub(super) fn batch(&self) -> Batch {
        self.share.batch
    }

    /// What is computed from now on is of guidance pass `pass`, if passes are computed one after the other, in step number `step` of
    /// the subject.
    ///
    /// # Errors
    /// As [`Session::choose`].
    pub(super) fn choose(&mut self, pass: usize, step: usize) -> Result<()> {
        self.share.session.choose(self.share.batch.form(self.dims, pass, step))
    }

    /// Computes the stages of a request, or those of a step that skips nothing.
    ///
    /// # Errors
    /// [`Error::Cancelled`], or what the device says.
    pub(super) fn compute(&mut self, cadence: Cadence) -> Result<()> {
        let Seat { share, backend, done, .. } = self;
        share.session.run(backend, cadence, |_, _| done())
    }

    /// Computes `part` of a step. Stages that are skipped count as done.
    ///
    /// # Errors
    /// As [`compute`](Seat::compute).
    pub(super) fn compute_part(&mut self, part: Part) -> Result<()> {
        let Seat { share, backend, done, .. } = self;
        share.session.run_part(backend, part, |_, _| done())?;
        if part == Part::Shortcut {
            let [rest, shortcut] = [Part::Rest, part].map(|part| share.session.stages_of(part).len());
            for _ in shortcut..rest {
                done()?;
            }
        }
        Ok(())
    }

    /// Computes the lead of a step before its turn: no one hears of that.
    ///
    /// # Errors
    /// As [`compute`](Seat::compute).
    pub(super) fn look_ahead(&mut self) -> Result<()> {
        let Seat { share, backend, .. } = self;
        share.session.run_part(backend, Part::Lead, |_, _| Ok(()))
    }

    /// Skips a whole step, in all its parts.
    pub(super) fn skip(&mut self) -> Result<()> {
        let stages = self.share.session.stages_of(Part::Lead).len();
        for _ in 0..self.share.batch.parts_each_step() {
            self.share.session.skip_step();
            for _ in 0..stages {
                (self.done)()?;
            }
        }
        Ok(())
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

    /// Brings the weights of `subject`, and makes a session of it: on each device that the plan has it on.
    ///
    /// # Errors
    /// [`Error::Graph`] if the plan has no such component; what the device returns.
    pub fn start<'m>(&self, subject: &Subject<'m>) -> Result<Running<'m>> {
        let mut shares = Vec::new();
        for (device, plan) in self.plan.devices().enumerate() {
            let Some(component) = plan.here(subject.name) else { continue };
            let unit = self.machine.units.get(device);
            let unit = unit.ok_or_else(|| Error::graph("plan", format!("there is no device {device}")))?;
            let weights = unit.weights((plan, component), subject)?;
            let &ComponentPlan { way, batch, .. } = component;
            let forms = batch.forms(&subject.dims);
            // Text encoders and autoencoders take little time, and what encoders made is remembered.
            let denoises = subject.phase == Phase::Denoise;
            unit.backend.set_attention(if denoises { self.machine.attention } else { AttentionMode::Exact });
            let session = Session::in_forms(way, subject.model, &weights, &forms, &unit.backend, &unit.ledger)?;
            shares.push(Share { device, session, weights, batch });
        }
        if shares.is_empty() {
            return Err(Error::graph("plan", format!("has no {}", subject.name)));
        }
        Ok(Running { shares, dims: subject.dims.clone(), phase: subject.phase, heard: true })
    }

    /// As [`start`](Run::start), of work that is in no phase and that no one hears of.
    pub(super) fn start_unheard<'m>(&self, subject: &Subject<'m>) -> Result<Running<'m>> {
        Ok(Running { heard: false, ..self.start(subject)? })
    }

    /// Computes the stages of a request, or those of a step that skips nothing, on the first device that has them.
    ///
    /// # Errors
    /// [`Error::Cancelled`], or what the device says.
    pub fn compute(&mut self, running: &mut Running<'_>, cadence: Cadence) -> Result<()> {
        self.on_first(running, |seat| seat.compute(cadence))
    }

    /// Does `work` on the first device of `running`.
    fn on_first<T>(
        &mut self,
        running: &mut Running<'_>,
        work: impl FnOnce(&mut Seat<'_, '_>) -> Result<T>,
    ) -> Result<T> {
        let brought = Brought::of(running);
        let before = self.moved_in(running.phase);
        let Run { machine, observer, moved, .. } = self;
        let Running { shares, dims, heard, .. } = running;
        let (share, heard) = (&mut shares[0], *heard);
        let backend = &mut machine.units[share.device].backend;
        let mut done = || if heard { brought.tell(before, moved, &mut **observer) } else { Ok(()) };
        work(&mut Seat { share, backend, dims, done: &mut done })
    }

    /// Has each device of `running` do `work`: if there are several, all at the same time, each on a thread of its own. Returns what
    /// each found.
    ///
    /// # Errors
    /// The listener's, or the first of `work`. What the others do then ends after a stage.
    pub(super) fn side_by_side<T: Send>(
        &mut self,
        running: &mut Running<'_>,
        work: &(dyn Fn(&mut Seat<'_, '_>) -> Result<T> + Sync),
    ) -> Result<Vec<T>> {
        if running.shares.len() == 1 {
            return Ok(vec![self.on_first(running, work)?]);
        }
        let brought = Brought::of(running);
        let before = self.moved_in(running.phase);
        let Run { machine, observer, moved, .. } = self;
        let Running { shares, dims, heard, .. } = running;
        let (stopped, (sender, stages)) = (AtomicBool::new(false), mpsc::channel());
        thread::scope(|scope| {
            let (mut threads, mut units) = (Vec::new(), machine.units.iter_mut().enumerate());
            // Both are in the order of devices.
            for share in shares.iter_mut() {
                let Some((_, unit)) = units.find(|(device, _)| *device == share.device) else { continue };
                let (backend, workers) = (&mut unit.backend, unit.workers.clone());
                let (dims, stopped, sender) = (&*dims, &stopped, sender.clone());
                let name = backend.device().name();
                let apart = move || {
                    let _inside = workers.enter();
                    let mut done = || say(&sender, stopped);
                    let found = work(&mut Seat { share, backend, dims, done: &mut done });
                    stopped.fetch_or(found.is_err(), Ordering::Relaxed);
                    found
                };
                let Ok(thread) = thread::Builder::new().name(name).spawn_scoped(scope, apart) else {
                    stopped.store(true, Ordering::Relaxed);
                    return Err(Error::no_thread());
                };
                threads.push(thread);
            }
            drop(sender);
            let mut heard_out = Ok(());
            for () in stages {
                if *heard && heard_out.is_ok() {
                    heard_out = brought.tell(before, moved, &mut **observer);
                    stopped.fetch_or(heard_out.is_err(), Ordering::Relaxed);
                }
            }
            let found: Vec<Result<T>> =
                threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect();
            heard_out?;
            all_of(found)
        })
    }

    /// Lets go of what was computed with.
    pub fn finish(&mut self, running: Running<'_>) {
        let Running { shares, phase, .. } = running;
        for Share { device, weights, session, .. } in shares {
            if phase == Phase::Encode {
                // A prompt is read once, and what follows needs the room.
                weights.let_go_of_pages();
            }
            self.mapped += weights.mapped_bytes();
            let (moved, waited): (u64, Duration) = (weights.moved_bytes(), weights.waited());
            let exchanged = session.exchanged();
            let phase = self.phase_on(device, phase);
            phase.moved += moved;
            phase.waited += waited;
            phase.exchanged += exchanged;
        }
    }

    /// `phase`, which began at `start`, is over.
    pub(super) fn end(&mut self, phase: Phase, start: Instant) -> Result<()> {
        for device in 0..self.machine.units.len() {
            let is_planned = self.plan.devices().nth(device).is_some_and(|plan| plan.phase_peak(phase) > 0);
            if !is_planned && self.machine.units.len() > 1 {
                continue;
            }
            let unit = &self.machine.units[device];
            let (measured, on_gpu) = (unit.ledger.usage(), !unit.backend.device().is_cpu());
            let entry = self.phase_on(device, phase);
            // Prompts and pictures are encoded one after the other, in one phase.
            if measured.peak >= entry.measured.peak {
                entry.measured = measured;
            }
            let allocated = entry.allocated.unwrap_or(0).max(device_peak());
            entry.allocated = on_gpu.then_some(allocated);
        }
        *self.timings.entry(phase.name()).or_default() += start.elapsed();
        if let Some(trace) = Trace::current() {
            trace.record(Kind::Phase, phase.name(), start, About::default());
        }
        self.event(Event::End { phase })
    }

    /// Bytes that were brought in `phase` for what is finished.
    fn moved_in(&self, phase: Phase) -> u64 {
        self.phases.iter().filter(|entry| entry.phase == phase).map(|entry| entry.moved).sum()
    }

    fn phase_on(&mut self, device: usize, phase: Phase) -> &mut PhaseMemory {
        let known = self.phases.iter().position(|other| (other.device, other.phase) == (device, phase));
        let position = known.unwrap_or_else(|| {
            let planned = self.plan.devices().nth(device).map_or(0, |plan| plan.phase_peak(phase));
            self.phases.push(PhaseMemory { phase, device, planned, ..PhaseMemory::default() });
            self.phases.len() - 1
        });
        &mut self.phases[position]
    }
}

/// Weights that come while something runs, on all of its devices.
struct Brought(Vec<Arc<DeviceWeights>>);

impl Brought {
    fn of(running: &Running<'_>) -> Brought {
        Brought(running.shares.iter().map(|share| Arc::clone(&share.weights)).collect())
    }

    /// Tells `observer` of a stage that is done, and of what was brought since it heard of that last: `moved` bytes in this phase. The
    /// phase had `before` when this began.
    fn tell(&self, before: u64, moved: &mut u64, observer: &mut dyn Observer) -> Result<()> {
        let bytes = before + self.0.iter().map(|weights| weights.moved_bytes()).sum::<u64>();
        if bytes > *moved {
            observer.event(Event::Moved { bytes })?;
        }
        *moved = bytes;
        observer.event(Event::Stage)
    }
}

/// A stage is done on a thread of its own, which goes on unless the others have `stopped`.
fn say(sender: &Sender<()>, stopped: &AtomicBool) -> Result<()> {
    if stopped.load(Ordering::Relaxed) {
        return Err(Error::Cancelled);
    }
    // Who listens does so until all threads have ended.
    let _ = sender.send(());
    Ok(())
}

/// What all have `found`, or the error that stopped the others.
fn all_of<T>(found: Vec<Result<T>>) -> Result<Vec<T>> {
    let (mut all, mut stopped) = (Vec::with_capacity(found.len()), false);
    for found in found {
        match found {
            Ok(found) => all.push(found),
            Err(Error::Cancelled) => stopped = true,
            Err(error) => return Err(error),
        }
    }
    if stopped { Err(Error::Cancelled) } else { Ok(all) }
}

/// How many stages run for `subject` in one request that follows `plan`, on all devices.
pub(super) fn stage_runs(plan: &Plan, subject: &Subject<'_>) -> usize {
    let stages = subject.model.stages();
    let mut runs = 0;
    for (_, component) in plan.shares(subject.name) {
        let planned = component.way.runs(subject.runs);
        for (list, times) in component.batch.order(subject.model, &subject.dims, planned) {
            runs += list.iter().filter(|&&stage| stages[stage].cadence != Cadence::Instead).count() * times;
        }
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
