//! The thread that brings weights ahead of the computation.
//!
//! It follows the order in which stages will run: a stage that stays is brought when its turn comes first, a streamed one
//! in every pass, into its slot as soon as the stage before it there has been computed. So the last slots of a step take the
//! first stages of the next, and the first stage of all may run while the second is on its way. If a step skips the stages that
//! stream, they wait in their slots for the step after it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pinhole_quant::workers::Workers;

use super::feed::{Conversion, Feed};
use super::link::Link;
use super::pages::Pages;
use crate::ggml::{Backend, Buffer, CancelFlag, SlotEvent, SlotEvents};
use crate::trace::{About, Kind, Trace};
use crate::{Error, Result};

/// How often a waiting computation looks whether it was cancelled.
const PATIENCE: Duration = Duration::from_millis(20);

/// One stage that is brought.
pub(crate) struct Upload {
    /// The name of the stage.
    pub(crate) name: String,
    /// What to bring.
    pub(crate) feed: Feed,
    /// The slot; `None` for a stage that stays.
    pub(crate) slot: Option<usize>,
    /// Where it comes from.
    pub(crate) pages: Pages,
    /// Whether the host gives them back afterwards.
    pub(crate) drop_pages: bool,
}

/// The ring of slots: one buffer.
#[derive(Clone)]
pub(crate) struct Ring {
    pub(crate) buffer: Arc<Buffer>,
    pub(crate) slot_bytes: usize,
    /// What orders copies and computations, where a device does that by itself.
    pub(crate) events: Option<SlotEvents>,
}

/// Weights on their way, seen from the computation.
pub(crate) struct Uploads {
    shared: Arc<Shared>,
    ring: Option<Ring>,
    /// By stage.
    slots: Vec<Option<usize>>,
    /// By stage; empty if no trace is recorded.
    names: Vec<String>,
    trace: Option<Trace>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stop: Arc<AtomicBool>,
    /// How many runs of the last pass will not come.
    skipped: AtomicUsize,
    moved: AtomicU64,
    waited: AtomicU64,
}

#[derive(Default)]
struct State {
    /// By stage: whether it is there. Stages without an upload are.
    loaded: Vec<bool>,
    /// Streamed stages that are in their slots and have not been computed, first come first.
    filled: VecDeque<usize>,
    /// By slot: whether it is being filled, waits or is computed with.
    busy: Vec<bool>,
    ended: bool,
    failure: Option<Error>,
}

impl Uploads {
    /// Begins to bring `uploads` (by stage; `None` where there is nothing to bring), in the order of `passes`, each a list of
    /// stages and how often it runs at most.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where there is no thread to be had; what `link` says.
    pub(crate) fn start(
        uploads: Vec<Option<Upload>>,
        passes: Vec<(Vec<usize>, usize)>,
        ring: Option<Ring>,
        link: impl FnOnce(Arc<AtomicBool>) -> Result<Box<dyn Link>>,
    ) -> Result<Uploads> {
        let slots: Vec<Option<usize>> = uploads.iter().map(|upload| upload.as_ref().and_then(|u| u.slot)).collect();
        let count = slots.iter().flatten().max().map_or(0, |slot| slot + 1);
        let state = State {
            loaded: uploads.iter().map(Option::is_none).collect(),
            busy: vec![false; count],
            filled: VecDeque::with_capacity(count),
            ..State::default()
        };
        let stop = Arc::new(AtomicBool::new(false));
        let link = link(Arc::clone(&stop))?;
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            stop,
            skipped: AtomicUsize::new(0),
            moved: AtomicU64::new(0),
            waited: AtomicU64::new(0),
        });
        let trace = Trace::current();
        let names = if trace.is_some() {
            uploads.iter().map(|upload| upload.as_ref().map_or(String::new(), |upload| upload.name.clone())).collect()
        } else {
            Vec::new()
        };
        let worker = Worker { shared: Arc::clone(&shared), uploads, passes, link, trace: trace.clone() };
        let workers = Workers::current();
        let thread = thread::Builder::new()
            .name("uploads".into())
            .spawn(move || {
                let _inside = workers.enter();
                worker.run();
            })
            .map_err(|_| Error::no_thread())?;
        Ok(Uploads { shared, ring, slots, names, trace, thread: Some(thread) })
    }

    /// Waits until the weights of `stage` are there, or are on their way and `backend` knows what to wait for.
    ///
    /// # Errors
    /// [`Error::Cancelled`]; why they cannot be brought; [`Error::Graph`] for a stage out of order.
    pub(crate) fn acquire(&self, stage: usize, backend: &Backend) -> Result<()> {
        self.await_stage(stage, backend.cancel())?;
        match self.events_of(stage) {
            Some(events) => backend.wait(&events.filled),
            None => Ok(()),
        }
    }

    fn events_of(&self, stage: usize) -> Option<&SlotEvent> {
        let slot = self.slots.get(stage).copied().flatten()?;
        self.ring.as_ref()?.events.as_ref()?.0.get(slot)
    }

    fn await_stage(&self, stage: usize, cancel: &CancelFlag) -> Result<()> {
        let (begun, mut waits) = (Instant::now(), false);
        let mut state = self.shared.lock();
        loop {
            match self.slots.get(stage) {
                Some(None) if state.loaded[stage] => break,
                Some(Some(_)) if state.filled.front() == Some(&stage) => {
                    state.filled.pop_front();
                    break;
                }
                Some(_) => {}
                None => return Err(Error::graph("stream", format!("there is no stage {stage}"))),
            }
            if let Some(other) = state.filled.front().filter(|_| self.slots[stage].is_some()) {
                return Err(Error::graph("stream", format!("stage {stage} runs where {other} was planned")));
            }
            if let Some(failure) = state.failure.take() {
                return Err(failure);
            }
            if state.ended {
                return Err(Error::graph("stream", "more runs than were planned, or the uploads failed before"));
            }
            cancel.check()?;
            waits = true;
            state = self.shared.wait(state);
        }
        if let (true, Some(trace), Some(name)) = (waits, &self.trace, self.names.get(stage)) {
            trace.record(Kind::WaitForWeights, name, begun, About::default());
        }
        let waited = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.shared.waited.fetch_add(waited, Ordering::Relaxed);
        Ok(())
    }

    /// `backend` has computed with the weights of `stage`, or will, before an event that it records: its slot is free.
    ///
    /// # Errors
    /// A failing device.
    pub(crate) fn release(&self, stage: usize, backend: &Backend) -> Result<()> {
        if let Some(events) = self.events_of(stage) {
            backend.record(&events.used)?;
        }
        let Some((slot, ring)) = self.slots.get(stage).copied().flatten().zip(self.ring.as_ref()) else {
            return Ok(());
        };
        ring.buffer.poison(slot * ring.slot_bytes, ring.slot_bytes)?;
        self.shared.lock().busy[slot] = false;
        self.shared.changed.notify_all();
        Ok(())
    }

    /// One of the planned runs of the last pass will not come.
    pub(crate) fn skip_pass(&self) {
        self.shared.skipped.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes that were brought so far.
    pub(crate) fn moved(&self) -> u64 {
        self.shared.moved.load(Ordering::Relaxed)
    }

    /// How long computations have waited for weights.
    pub(crate) fn waited(&self) -> Duration {
        Duration::from_nanos(self.shared.waited.load(Ordering::Relaxed))
    }
}

impl Drop for Uploads {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Taken and let go, so that a worker between its look at `stop` and its wait is not missed.
        drop(self.shared.lock());
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic in it has been seen as `ended`.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is one assignment: a panic leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner).0
    }
}

/// The thread's side.
struct Worker {
    shared: Arc<Shared>,
    uploads: Vec<Option<Upload>>,
    passes: Vec<(Vec<usize>, usize)>,
    link: Box<dyn Link>,
    trace: Option<Trace>,
}

/// Tells the computation that nothing more will come, however the thread ends.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_all();
    }
}

impl Worker {
    fn run(mut self) {
        let end = End(Arc::clone(&self.shared));
        if let Err(error) = self.bring_all() {
            end.0.lock().failure = Some(error);
        }
    }

    fn bring_all(&mut self) -> Result<()> {
        let Worker { shared, uploads, passes, link, trace } = self;
        let (mut conversion, mut recorder) = (Conversion::default(), Recorder { trace: trace.as_ref(), step: None });
        let (last, mut steps) = (passes.len().saturating_sub(1), 0);
        for (at, (stages, most)) in passes.iter().enumerate() {
            // The first list is that of a request, and may come again.
            let is_of_step = *stages != passes[0].0;
            let mut runs = 0;
            loop {
                let skipped = if at == last { shared.skipped.load(Ordering::Relaxed) } else { 0 };
                if runs + skipped >= *most {
                    break;
                }
                recorder.step = is_of_step.then_some(steps);
                for &stage in stages {
                    bring(shared, (stage, &uploads[stage]), link.as_mut(), &mut conversion, recorder)?;
                }
                runs += 1;
                steps += usize::from(is_of_step);
            }
        }
        Ok(())
    }
}

/// What records a thread's work, if somebody does.
#[derive(Clone, Copy)]
struct Recorder<'a> {
    trace: Option<&'a Trace>,
    /// The step that is brought for.
    step: Option<usize>,
}

impl Recorder<'_> {
    /// What began at `start` is over.
    fn record(self, kind: Kind, name: &str, start: Instant, bytes: Option<usize>) {
        if let Some(trace) = self.trace {
            trace.record(kind, name, start, About { bytes, step: self.step });
        }
    }
}

/// Brings what `upload` says for `stage`, if there is anything to bring.
fn bring(
    shared: &Shared,
    (stage, upload): (usize, &Option<Upload>),
    link: &mut dyn Link,
    conversion: &mut Conversion,
    recorder: Recorder<'_>,
) -> Result<()> {
    let Some(Upload { name, feed, slot, pages, drop_pages }) = upload else { return Ok(()) };
    // What stays comes once, whichever step is the first to need it.
    let recorder = Recorder { step: recorder.step.filter(|_| slot.is_some()), ..recorder };
    // The disk reads while there is no slot yet.
    pages.will_read();
    let wait = Instant::now();
    if !begin(shared, stage, *slot)? {
        return Ok(());
    }
    if slot.is_some() {
        recorder.record(Kind::WaitForSlot, name, wait, None);
    }
    let read = Instant::now();
    pages.populate()?;
    recorder.record(Kind::Read, name, read, None);
    let upload = Instant::now();
    link.begin(*slot)?;
    feed.bring(link, conversion)?;
    link.finish(*slot)?;
    recorder.record(Kind::Upload, name, upload, Some(feed.bytes));
    if *drop_pages {
        pages.give_back();
    }
    shared.moved.fetch_add(feed.bytes as u64, Ordering::Relaxed);
    let mut state = shared.lock();
    match slot {
        Some(_) => state.filled.push_back(stage),
        None => state.loaded[stage] = true,
    }
    drop(state);
    shared.changed.notify_all();
    Ok(())
}

/// Waits until `stage` may be brought, and takes its slot; `false` where it is there already.
fn begin(shared: &Shared, stage: usize, slot: Option<usize>) -> Result<bool> {
    let mut state = shared.lock();
    loop {
        if shared.stop.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        match slot {
            None => return Ok(!state.loaded[stage]),
            Some(slot) if !state.busy[slot] => {
                state.busy[slot] = true;
                return Ok(true);
            }
            Some(_) => state = shared.wait(state),
        }
    }
}
