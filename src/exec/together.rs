//! Devices that have the tokens of a model's stages among them: each computes every stage for its own tokens, and takes from the others what
//! it reads of theirs, in between.

use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::Session;
use super::link::Throttle;
use crate::ggml::{Backend, CancelFlag, Placed};
use crate::plan::{Held, Pull, Rows};
use crate::stage::{Cadence, Half, Part, Port};
use crate::{Error, Result, reserve};

/// How many bytes are on their way at once.
const PART: usize = 1 << 20;

/// How often one that waits for others looks whether it was cancelled.
const PATIENCE: Duration = Duration::from_millis(20);

/// Which tokens each of several devices has, of every port.
pub struct Together(Held);

/// What one device takes from another.
struct Copy {
    from: Placed,
    to: Placed,
    /// Ranges of bytes, the same in both.
    bytes: Vec<Range<usize>>,
}

/// One graph of each device, and what comes to each before it.
struct Turn {
    stage: usize,
    half: Half,
    /// By device.
    copies: Vec<Vec<Copy>>,
}

impl Together {
    /// Those of `sessions`, which are of one model.
    pub fn new(sessions: &[&mut Session<'_>]) -> Together {
        let ports = sessions.first().map_or(0, |session| session.model().ports().len());
        Together(Held::new(sessions.len(), ports))
    }

    /// Runs the stages of a request, or those of a step that skips nothing, on all devices at the same time: each on a thread of its own
    /// except for the first, whose stages `after` hears of.
    ///
    /// # Errors
    /// [`Error::Cancelled`], or what a device says; what the others do then ends before the next exchange.
    pub fn run(
        &mut self,
        (sessions, backends): (&mut [&mut Session<'_>], &mut [&mut Backend]),
        cadence: Cadence,
        after: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let order = sessions.first().map(|session| session.stages_at(cadence)).unwrap_or_default();
        let next = order.first().copied();
        self.run_in_order((sessions, backends), &order, next, after)
    }

    /// As [`run`](Together::run), of `part` of a step.
    ///
    /// # Errors
    /// As [`run`](Together::run).
    pub fn run_part(
        &mut self,
        (sessions, backends): (&mut [&mut Session<'_>], &mut [&mut Backend]),
        part: Part,
        after: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let Some(first) = sessions.first() else { return Ok(()) };
        let (order, next) = (first.stages_of(part), first.behind(part));
        self.run_in_order((&mut *sessions, backends), &order, next, after)?;
        if part == Part::Shortcut {
            sessions.iter().for_each(|session| session.skip_step());
        }
        Ok(())
    }

    fn run_in_order(
        &mut self,
        (sessions, backends): (&mut [&mut Session<'_>], &mut [&mut Backend]),
        order: &[usize],
        next: Option<usize>,
        after: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let turns = self.turns(sessions, order)?;
        let meeting = Meeting::of(sessions.len());
        let (turns, meeting) = (&turns, &meeting);
        let found: Vec<Result<()>> = thread::scope(|scope| {
            let (mut devices, mut threads) = (sessions.iter_mut().zip(backends.iter_mut()).enumerate(), Vec::new());
            let first = devices.next();
            for (device, (session, backend)) in devices {
                let started = thread::Builder::new().name(format!("tokens {device}")).spawn_scoped(scope, move || {
                    let _leaves = Leaves(meeting);
                    run_on((device, &mut **session, &mut **backend), turns, (order, next), meeting, &mut || Ok(()))
                });
                match started {
                    Ok(thread) => threads.push(thread),
                    Err(_) => {
                        meeting.end();
                        return vec![Err(Error::no_thread())];
                    }
                }
            }
            let mut found = Vec::with_capacity(threads.len() + 1);
            if let Some((device, (session, backend))) = first {
                let _leaves = Leaves(meeting);
                found.push(run_on((device, &mut **session, &mut **backend), turns, (order, next), meeting, after));
            }
            found.extend(
                threads
                    .into_iter()
                    .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))),
            );
            found
        });
        first_failure(found)
    }

    /// All graphs that run, in order, with what comes before each.
    fn turns(&mut self, sessions: &mut [&mut Session<'_>], order: &[usize]) -> Result<Vec<Turn>> {
        let Together(held) = self;
        for (device, session) in sessions.iter_mut().enumerate() {
            session.take_filled().into_iter().for_each(|port| held.fill(device, port));
        }
        let mut turns = Vec::with_capacity(2 * order.len());
        for &stage in order {
            let touched = sessions.iter().map(|session| session.touched(stage)).collect::<Result<Vec<_>>>()?;
            let mut pulls = held.before(&touched, |port| sessions[0].tokens_of(port));
            let gathered = Held::gathered(&touched);
            if !touched[0].gathered.is_empty() {
                turns.push(Turn { stage, half: Half::Gathering, copies: copies(sessions, stage, &pulls)? });
                pulls = gathered;
            }
            turns.push(Turn { stage, half: Half::Main, copies: copies(sessions, stage, &pulls)? });
            held.after(&touched);
        }
        Ok(turns)
    }

    /// What the stages of a request made ready, on all devices together: see [`Session::put_aside`].
    ///
    /// # Errors
    /// As there.
    pub fn put_aside(&mut self, sessions: &mut [&mut Session<'_>]) -> Result<Vec<(Port, Vec<f32>)>> {
        let ports = sessions.first().map(|session| session.of_a_pass().to_vec()).unwrap_or_default();
        ports.into_iter().map(|port| Ok((port, self.get(sessions, port)?))).collect()
    }

    /// What an F32 port holds, on all devices together.
    ///
    /// # Errors
    /// As [`Session::get`].
    pub fn get(&mut self, sessions: &mut [&mut Session<'_>], port: Port) -> Result<Vec<f32>> {
        let Together(held) = self;
        for (device, session) in sessions.iter_mut().enumerate() {
            session.take_filled().into_iter().for_each(|port| held.fill(device, port));
        }
        let pulls = held.all_of(0, port, sessions[0].tokens_of(port));
        for copy in copies(sessions, 0, &pulls)?.into_iter().flatten() {
            copy.carry(&mut Vec::new())?;
        }
        sessions[0].get(port)
    }
}

/// What the devices of `sessions` have to copy for `pulls` before stage number `stage`; by device. Counts it.
fn copies(sessions: &[&mut Session<'_>], stage: usize, pulls: &[Pull]) -> Result<Vec<Vec<Copy>>> {
    let mut all: Vec<Vec<Copy>> = Vec::new();
    all.resize_with(sessions.len(), Vec::new);
    for Pull { rows, from, to, tokens } in pulls {
        let [source, target] = [*from, *to].map(|device| sessions[device].rows_at(stage, *rows));
        let (source, target) = (source?, target?);
        // Tokens are the second dimension of ports, and the third of keys and values, behind heads.
        let [width, second, third, last] = source.shape().dims();
        let (row, count, items) = match rows {
            Rows::Port(_) => (width, second, third * last),
            Rows::Gathered(_) => (width * second, third, last),
        };
        let row = row * size_of::<f32>();
        let mut bytes: Vec<Range<usize>> = Vec::with_capacity(items);
        for first in (0..items).map(|item| item * count) {
            bytes.push(row * (first + tokens.start)..row * (first + tokens.end));
        }
        let moved = bytes.iter().map(Range::len).sum();
        sessions[*from].count(moved);
        sessions[*to].count(moved);
        all[*to].push(Copy { from: source, to: target, bytes });
    }
    Ok(all)
}

impl Copy {
    /// Copies the bytes through the host, by way of `part`.
    fn carry(&self, part: &mut Vec<u8>) -> Result<()> {
        if part.is_empty() {
            *part = reserve::zeros("tokens on their way", PART)?;
        }
        let mut links = [&self.from, &self.to].map(|place| Throttle::of(place.device()));
        for bytes in &self.bytes {
            for start in bytes.clone().step_by(PART) {
                let part = &mut part[..PART.min(bytes.end - start)];
                self.from.read_part(start, part)?;
                self.to.write_part(start, part)?;
                links.iter_mut().for_each(|link| link.pass(part.len()));
            }
        }
        Ok(())
    }
}

/// Computes all `turns` on one device, and copies before each what comes to it. All devices have computed until there before any of them
/// copies, and all have copied before any computes.
fn run_on(
    (device, session, backend): (usize, &mut Session<'_>, &mut Backend),
    turns: &[Turn],
    (order, next): (&[usize], Option<usize>),
    meeting: &Meeting,
    after: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    let mut flight = session.fly(backend);
    let (mut part, mut done, mut open) = (Vec::new(), 0, false);
    for turn in turns {
        if !open {
            flight.enter(turn.stage, order.get(done + 1).copied().or(next))?;
            open = true;
        }
        if turn.copies.iter().any(|copies| !copies.is_empty()) {
            flight.land()?;
            meeting.wait(flight.cancel())?;
            turn.copies[device].iter().try_for_each(|copy| copy.carry(&mut part))?;
            meeting.wait(flight.cancel())?;
        }
        flight.compute(turn.stage, turn.half)?;
        if turn.half == Half::Main {
            flight.leave(turn.stage)?;
            (done, open) = (done + 1, false);
            after()?;
        }
    }
    flight.land()
}

/// The error that ended all, if one did.
fn first_failure(found: Vec<Result<()>>) -> Result<()> {
    let mut stopped = Ok(());
    for found in found {
        match found {
            Err(Error::Cancelled) => stopped = Err(Error::Cancelled),
            other => other?,
        }
    }
    stopped
}

/// Where several threads wait for each other.
struct Meeting {
    members: usize,
    state: Mutex<Round>,
    changed: Condvar,
}

#[derive(Default)]
struct Round {
    number: usize,
    arrived: usize,
    /// Whether a member will not come any more.
    ended: bool,
}

impl Meeting {
    fn of(members: usize) -> Meeting {
        Meeting { members, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Waits until all members are here.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if one of them has left before, or `cancel` is raised.
    fn wait(&self, cancel: &CancelFlag) -> Result<()> {
        let mut state = self.lock();
        let round = state.number;
        state.arrived += 1;
        if state.arrived == self.members {
            (state.number, state.arrived) = (round + 1, 0);
            self.changed.notify_all();
            return Ok(());
        }
        while state.number == round {
            if state.ended {
                return Err(Error::Cancelled);
            }
            cancel.check()?;
            state = self.changed.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Lets all that wait go, and all that come.
    fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Round> {
        // Every change is an assignment of numbers: a panic leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A member that leaves a meeting, in whatever way it ends. One that has computed everything is waited for no longer.
struct Leaves<'a>(&'a Meeting);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}
