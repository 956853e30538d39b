//! What computes a request: a device with the weights that are there, the plan that is followed, and who listens.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use pinhole_quant::workers::Workers;

use super::generated::{PhaseMemory, Timings};
use super::machine::{Machine, Unit};
use super::progress::{Event, Observer};
use crate::exec::{DeviceWeights, Session, Together};
use crate::ggml::{AttentionMode, Backend, device_peak};
use crate::plan::measure::Subject;
use crate::plan::{Batch, ComponentPlan, Phase, Plan, TokenShare};
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

/// What computes some or all guidance passes of a subject, at one time: a device, or several that have its stages or its tokens among
/// them.
struct Share<'m> {
    /// At least one; in the order of their stages, or of their tokens.
    pieces: Vec<Piece<'m>>,
    batch: Batch,
    /// Which tokens each has, if they have these among them.
    together: Option<Together>,
}

/// What one device has of a subject.
struct Piece<'m> {
    /// The number of the device.
    device: usize,
    session: Session<'m>,
    weights: Arc<DeviceWeights>,
}

impl<'m> Running<'m> {
    /// Its ports; on the first of its devices.
    pub fn session(&mut self) -> &mut Session<'m> {
        &mut self.shares[0].pieces[0].session
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
        self.shares[0].pieces[0].session.get(port)
    }
}

/// A share of what runs, with what computes it.
pub(super) struct Seat<'a, 'm> {
    share: &'a mut Share<'m>,
    /// That of each of its pieces.
    backends: Vec<&'a mut Backend>,
    dims: &'a Dims,
    /// Told of each stage that is done; ends the work with an error.
    done: &'a mut dyn FnMut() -> Result<()>,
}

impl<'m> Seat<'_, 'm> {
    /// Its ports, on each of its devices.
    pub(super) fn sessions(&mut self) -> impl Iterator<Item = &mut Session<'m>> {
        self.share.pieces.iter_mut().map(|piece| &mut piece.session)
    }

    /// Fills an F32 port wherever it is.
    ///
    /// # Errors
    /// As [`Session::set`].
    pub(super) fn set(&mut self, port: Port, values: &[f32]) -> Result<()> {
        self.sessions().try_for_each(|session| session.set(port, values))
    }

    /// What an F32 port holds: where it is written, if it is.
    ///
    /// # Errors
    /// As [`Session::get`].
    pub(super) fn get(&mut self, port: Port) -> Result<Vec<f32>> {
        let Share { pieces, together, .. } = &mut *self.share;
        if let Some(together) = together {
            return together.get(&mut sessions_of(pieces), port);
        }
        let written = pieces.iter().rev().find(|piece| piece.session.writes(port));
        let found = written.or(pieces.iter().find(|piece| piece.session.has(port)));
        found.unwrap_or(&pieces[0]).session.get(port)
    }

    /// What the stages of a request made ready: see [`Session::put_aside`].
    ///
    /// # Errors
    /// As there.
    pub(super) fn put_aside(&mut self) -> Result<Vec<(Port, Vec<f32>)>> {
        if let Share { pieces, together: Some(together), .. } = &mut *self.share {
            return together.put_aside(&mut sessions_of(pieces));
        }
        let mut all = Vec::new();
        for session in self.sessions() {
            all.extend(session.put_aside()?);
        }
        Ok(all)
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
        let form = self.share.batch.form(self.dims, pass, step);
        self.sessions().try_for_each(|session| session.choose(form))
    }

    /// Computes the stages of a request, or those of a step that skips nothing.
    ///
    /// # Errors
    /// [`Error::Cancelled`], or what the device says.
    pub(super) fn compute(&mut self, cadence: Cadence) -> Result<()> {
        let Seat { share, backends, done, .. } = self;
        if let Share { pieces, together: Some(together), .. } = &mut **share {
            return together.run((&mut sessions_of(pieces), backends), cadence, done);
        }
        for (at, backend) in backends.iter_mut().enumerate() {
            share.pieces[at].session.run(backend, cadence, |_, _| done())?;
            let stages = share.pieces[at].session.stages_at(cadence);
            share.hand_over(at, &stages)?;
        }
        Ok(())
    }

    /// Computes `part` of a step. Stages that are skipped count as done.
    ///
    /// # Errors
    /// As [`compute`](Seat::compute).
    pub(super) fn compute_part(&mut self, part: Part) -> Result<()> {
        self.run_part(part, true)?;
        if part == Part::Shortcut {
            let mut skipped = 0;
            for session in self.heard_of() {
                let [rest, shortcut] = [Part::Rest, part].map(|part| session.stages_of(part).len());
                skipped += rest.saturating_sub(shortcut);
            }
            for _ in 0..skipped {
                (self.done)()?;
            }
        }
        Ok(())
    }

    /// Computes the lead of a step before its turn: no one hears of that.
    ///
    /// # Errors
    /// As [`compute`](Seat::compute).
    pub(super) fn look_ahead(&mut self) -> Result<()> {
        self.run_part(Part::Lead, false)
    }

    fn run_part(&mut self, part: Part, is_heard: bool) -> Result<()> {
        let Seat { share, backends, done, .. } = self;
        if let Share { pieces, together: Some(together), .. } = &mut **share {
            return together.run_part((&mut sessions_of(pieces), backends), part, &mut || match is_heard {
                true => done(),
                false => Ok(()),
            });
        }
        for (at, backend) in backends.iter_mut().enumerate() {
            share.pieces[at].session.run_part(backend, part, |_, _| if is_heard { done() } else { Ok(()) })?;
            let stages = share.pieces[at].session.stages_of(part);
            share.hand_over(at, &stages)?;
        }
        Ok(())
    }

    /// Those of whose stages somebody hears: of several that compute the same stages, the first.
    fn heard_of(&mut self) -> impl Iterator<Item = &mut Session<'m>> {
        let count = if self.share.together.is_some() { 1 } else { self.share.pieces.len() };
        self.sessions().take(count)
    }

    /// Skips a whole step, in all its parts.
    pub(super) fn skip(&mut self) -> Result<()> {
        let stages: usize = self.heard_of().map(|session| session.stages_of(Part::Lead).len()).sum();
        for _ in 0..self.share.batch.parts_each_step() {
            self.sessions().for_each(|session| session.skip_step());
            for _ in 0..stages {
                (self.done)()?;
            }
        }
        Ok(())
    }
}

/// The sessions of `pieces`.
fn sessions_of<'p, 'm>(pieces: &'p mut [Piece<'m>]) -> Vec<&'p mut Session<'m>> {
    pieces.iter_mut().map(|piece| &mut piece.session).collect()
}

impl Share<'_> {
    /// Gives all other pieces what their stages read of what `stages` of piece number `at` have written.
    fn hand_over(&self, at: usize, stages: &[usize]) -> Result<()> {
        for (number, other) in self.pieces.iter().enumerate().filter(|(number, _)| *number != at) {
            self.pieces[at].session.hand_over(&other.session, stages, number < at)?;
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
        let mut shares: Vec<Share<'m>> = Vec::new();
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
            let ways = (way, component.placement.share);
            let session = Session::in_forms(ways, subject.model, &weights, &forms, &unit.backend, &unit.ledger)?;
            let piece = Piece { device, session, weights };
            // What has some of the stages, or of the tokens, belongs to what has the others.
            let divides = !component.placement.own.is_empty() || component.placement.share != TokenShare::ALL;
            match shares.iter_mut().find(|share| divides && share.batch.turn == batch.turn) {
                Some(share) => share.pieces.push(piece),
                None => shares.push(Share { pieces: vec![piece], batch, together: None }),
            }
        }
        for share in shares.iter_mut() {
            let divides = self.plan.devices().nth(share.pieces[0].device).and_then(|plan| plan.here(subject.name));
            if divides.is_some_and(|component| component.placement.share != TokenShare::ALL) {
                share.together = Some(Together::new(&sessions_of(&mut share.pieces)));
            }
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
        let backends = backends_of(share, &mut machine.units.iter_mut().enumerate());
        let mut done = || if heard { brought.tell(before, moved, &mut **observer) } else { Ok(()) };
        work(&mut Seat { share, backends, dims, done: &mut done })
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
            let workers: Vec<Workers> = machine.units.iter().map(|unit| unit.workers.clone()).collect();
            let (mut threads, mut units) = (Vec::new(), machine.units.iter_mut().enumerate());
            // Both are in the order of devices.
            for share in shares.iter_mut() {
                let workers = workers[share.pieces[0].device].clone();
                let backends = backends_of(share, &mut units);
                let (dims, stopped, sender) = (&*dims, &stopped, sender.clone());
                let name = format!("device {}", share.pieces[0].device);
                let apart = move || {
                    let _inside = workers.enter();
                    let mut done = || say(&sender, stopped);
                    let found = work(&mut Seat { share, backends, dims, done: &mut done });
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
        for Piece { device, weights, session } in shares.into_iter().flat_map(|share| share.pieces) {
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
            let computes = unit.backend.device();
            // What another machine's driver allocates is not known here.
            let (measured, on_gpu) = (unit.ledger.usage(), !computes.is_cpu() && !computes.is_remote());
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

/// The backends of `share`, in the order of its pieces, among those of `units` that are left. Both are in the order of devices.
fn backends_of<'u>(share: &Share<'_>, units: &mut impl Iterator<Item = (usize, &'u mut Unit)>) -> Vec<&'u mut Backend> {
    let mut backends = Vec::with_capacity(share.pieces.len());
    for piece in &share.pieces {
        let found = units.find(|(device, _)| *device == piece.device);
        backends.extend(found.map(|(_, unit)| &mut unit.backend));
    }
    backends
}

/// Weights that come while something runs, on all of its devices.
struct Brought(Vec<Arc<DeviceWeights>>);

impl Brought {
    fn of(running: &Running<'_>) -> Brought {
        let pieces = running.shares.iter().flat_map(|share| &share.pieces);
        Brought(pieces.map(|piece| Arc::clone(&piece.weights)).collect())
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
    // Of several that have the tokens of a stage among them, the first counts.
    for (_, component) in plan.shares(subject.name).iter().filter(|(_, own)| own.placement.share.number == 0) {
        let planned = component.way.runs(subject.runs);
        for (list, times) in component.batch.order(subject.model, &subject.dims, planned) {
            let own = list.iter().filter(|&&stage| component.placement.owns(stage));
            runs += own.filter(|&&stage| stages[stage].cadence != Cadence::Instead).count() * times;
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
