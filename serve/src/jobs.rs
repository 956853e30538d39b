//! All jobs: those that wait, the ones that are drawn, and those that have ended and are still known. Every job that is accepted ends
//! once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::body::Bytes;
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::drawing::Asked;
use crate::fault::Fault;
use crate::job::{Job, Outcome, Pictures, Snapshot, Status, Stop};
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::planner::Planned;
use crate::queue::Queue;
use crate::spool::Spool;
use crate::store::{Record, Store, moment};

/// A job that waits to be drawn.
pub struct Order {
    /// The job.
    pub job: Arc<Job>,
    /// Whose line it stands in.
    pub line: Arc<str>,
    /// What the pipeline is asked.
    pub asked: Asked,
    /// The plan that it was accepted with.
    pub planned: Planned,
}

/// What the one who draws does next.
pub enum Next {
    /// Draws these together.
    Draw(Vec<Order>),
    /// No one came for a while.
    Idle,
    /// Ends.
    Stop,
}

/// How a job ended.
pub enum End {
    /// With pictures.
    Done(Outcome, Vec<Bytes>),
    /// Without.
    Without(Status, Fault),
}

/// All jobs.
pub struct Jobs {
    limits: Limits,
    metrics: Arc<Metrics>,
    store: Option<Store>,
    spool: Option<Spool>,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    queue: Queue<Order>,
    /// Places in the queue that are promised, by line.
    promised: HashMap<Arc<str>, usize>,
    known: HashMap<Uuid, Arc<Job>>,
    running: Vec<Arc<Job>>,
    ended: VecDeque<Ended>,
    stopping: bool,
}

impl State {
    fn push(&mut self, order: Order) {
        let line = Arc::clone(&order.line);
        self.known.insert(order.job.id, Arc::clone(&order.job));
        self.queue.push(&line, order);
    }
}

struct Ended {
    id: Uuid,
    at: SystemTime,
    bytes: usize,
}

/// A place in the queue that is promised to a job. Given back if the job does not come.
pub struct Place<'a> {
    jobs: &'a Jobs,
    line: Arc<str>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.jobs.state();
        if let Some(promised) = state.promised.get_mut(&self.line) {
            *promised -= 1;
            if *promised == 0 {
                state.promised.remove(&self.line);
            }
        }
    }
}

impl Jobs {
    /// None yet. Pictures go to `store`, or else to `spool`, or else they stay in memory.
    pub fn new(limits: Limits, metrics: Arc<Metrics>, store: Option<Store>, spool: Option<Spool>) -> Jobs {
        Jobs { limits, metrics, store, spool, state: Mutex::default(), wake: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Promises a place in the queue.
    ///
    /// # Errors
    /// That the queue is full, or the share of `line`, or that the server stops.
    pub fn promise(&self, line: &Arc<str>) -> Result<Place<'_>, Fault> {
        let mut state = self.state();
        if state.stopping {
            return Err(Fault::stopping());
        }
        let promised: usize = state.promised.values().sum();
        let own = state.promised.get(line).copied().unwrap_or_default() + state.queue.len_of(line);
        let Limits { queue, queue_per_key, .. } = self.limits;
        if state.queue.len() + promised >= queue {
            return Err(Fault::busy("queue_full", format!("the queue is full: {queue} jobs wait")));
        }
        if own >= queue_per_key {
            return Err(Fault::busy("queue_share_full", format!("{queue_per_key} of your jobs wait already")));
        }
        *state.promised.entry(Arc::clone(line)).or_default() += 1;
        drop(state);
        Ok(Place { jobs: self, line: Arc::clone(line) })
    }

    /// Accepts a job that has a place: it is written to the store first. `record` has it as it was asked for.
    ///
    /// # Errors
    /// What the store says; that the server stops.
    pub fn accept(&self, order: Order, record: &Record, place: Place<'_>) -> Result<(), Fault> {
        if let Some(store) = &self.store {
            store.accept(order.job.id, record)?;
        }
        let job = Arc::clone(&order.job);
        let refused = {
            let mut state = self.state();
            state.known.insert(job.id, Arc::clone(&job));
            match state.stopping {
                true => Some(order),
                false => {
                    let line = Arc::clone(&order.line);
                    state.queue.push(&line, order);
                    None
                }
            }
        };
        drop(place);
        self.metrics.add("pinhole_jobs_accepted_total", 1.0);
        info!(job = %job.id, owner = &*job.owner, model = job.drawing.model, "accepted");
        if let Some(order) = refused {
            self.hand_back(&order.job);
        }
        self.show_length();
        self.wake.notify_all();
        Ok(())
    }

    /// Puts a job back into the queue that an earlier process left behind. There is room for all of them.
    pub fn resume(&self, order: Order) {
        self.metrics.add("pinhole_jobs_resumed_total", 1.0);
        self.state().push(order);
        self.show_length();
        self.wake.notify_all();
    }

    /// Accepts a job of a queue that many machines share. The machine that takes it there sees to it that there is room.
    ///
    /// # Errors
    /// That the server stops.
    pub fn take(&self, order: Order) -> Result<(), Fault> {
        {
            let mut state = self.state();
            if state.stopping {
                return Err(Fault::stopping());
            }
            state.push(order);
        }
        self.metrics.add("pinhole_jobs_accepted_total", 1.0);
        self.show_length();
        self.wake.notify_all();
        Ok(())
    }

    /// What an earlier process left behind without an end. Those that have ended are known from now on.
    ///
    /// # Errors
    /// What the store says.
    pub fn left_behind(&self) -> Result<Vec<(Uuid, Record)>, Fault> {
        let Some(store) = &self.store else { return Ok(Vec::new()) };
        let (ended, open): (Vec<_>, Vec<_>) = store.all()?.into_iter().partition(|(_, it)| it.status.is_end());
        let mut state = self.state();
        for (id, record) in ended {
            let created = moment(record.created);
            let job = Job::new(id, record.owner.into(), record.drawing, created, Duration::ZERO);
            let at = record.ended.map_or(created, moment);
            job.change(|snapshot| {
                snapshot.status = record.status;
                snapshot.fault = record.fault;
                snapshot.outcome = record.outcome.map(Arc::new);
                snapshot.ended = Some(at);
            });
            state.known.insert(id, Arc::new(job));
            state.ended.push_back(Ended { id, at, bytes: 0 });
        }
        Ok(open)
    }

    /// A job of the store that cannot be begun again is known, so that it can end.
    pub fn know(&self, job: &Arc<Job>) {
        self.state().known.insert(job.id, Arc::clone(job));
    }

    /// Waits for work, at most as long as `idle` says.
    pub fn next(&self, idle: Option<Duration>) -> Next {
        let since = Instant::now();
        loop {
            let mut state = self.state();
            while state.queue.is_empty() {
                if state.stopping {
                    return Next::Stop;
                }
                let left = idle.map(|idle| idle.saturating_sub(since.elapsed()));
                state = match left {
                    Some(Duration::ZERO) => return Next::Idle,
                    Some(left) => self.wake.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
                    None => self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
                };
            }
            let Some(first) = state.queue.pop() else { continue };
            if first.job.cancel.is_raised() {
                drop(state);
                self.end_stopped(&first.job);
                continue;
            }
            let mut orders = vec![first];
            if let Some(together) = self.limits.coalesce.checked_sub(1) {
                let mut more = state.queue.take(together, |other| orders[0].goes_with(other));
                orders.append(&mut more);
            }
            state.running = orders.iter().map(|order| Arc::clone(&order.job)).collect();
            drop(state);
            self.show_length();
            return Next::Draw(orders);
        }
    }

    /// Ends a job. Only the first end counts; returns whether this was it.
    pub fn end(&self, job: &Arc<Job>, end: End) -> bool {
        let (status, fault, outcome, pictures) = match end {
            End::Done(outcome, pictures) => (Status::Done, None, Some(outcome), pictures),
            End::Without(status, fault) => (status, Some(fault), None, Vec::new()),
        };
        if !self.leave(job) {
            return false;
        }
        let bytes = pictures.iter().map(Bytes::len).sum();
        let pictures = self.put_down(job, status, (fault.as_ref(), outcome.as_ref()), pictures);
        let why = fault.as_ref().map(|fault| fault.message.clone());
        let at = SystemTime::now();
        self.state().ended.push_back(Ended { id: job.id, at, bytes });
        self.metrics.add_of("pinhole_jobs_ended_total", "outcome", status.name(), 1.0);
        let took = at.duration_since(job.created).unwrap_or_default().as_secs_f64();
        info!(job = %job.id, outcome = status.name(), seconds = took, why, "ended");
        self.show_length();
        self.forget_old();
        // Clients that wait for it hear of it when all of this holds.
        job.change(|snapshot| {
            let Snapshot { status: was, fault: because, outcome: what, pictures: made, ended, preview, .. } = snapshot;
            (*was, *because, *what, *ended, *preview) = (status, fault, outcome.map(Arc::new), Some(at), None);
            *made = Arc::new(pictures);
        });
        true
    }

    /// Writes the end of a job and its pictures to the disk. Where that fails they stay in memory: its client gets them all the same, and
    /// the store's next server draws it again.
    fn put_down(
        &self,
        job: &Job,
        status: Status,
        (fault, outcome): (Option<&Fault>, Option<&Outcome>),
        pictures: Vec<Bytes>,
    ) -> Pictures {
        match (&self.store, &self.spool) {
            (Some(store), _) => match store.end(job.id, status, (fault, outcome), &pictures) {
                Ok(_) => return Pictures::Stored,
                Err(fault) => error!(job = %job.id, "{fault}"),
            },
            (None, Some(spool)) if !pictures.is_empty() => match spool.write(&pictures) {
                Ok(spans) => return Pictures::Spooled(spans),
                Err(error) => warn!(job = %job.id, "its pictures stay in memory: {error}"),
            },
            _ => {}
        }
        Pictures::Here(pictures)
    }

    /// Takes a job from those that are drawn. Returns whether it has not ended before.
    fn leave(&self, job: &Arc<Job>) -> bool {
        let mut state = self.state();
        let is_open = state.known.contains_key(&job.id) && !state.ended.iter().any(|ended| ended.id == job.id);
        state.running.retain(|running| running.id != job.id);
        is_open && !job.status().is_end()
    }

    /// Ends a job that was stopped, as the one who stopped it says.
    pub fn end_stopped(&self, job: &Arc<Job>) {
        if job.why() == Stop::Server {
            return self.hand_back(job);
        }
        let status = if job.why() == Stop::Late { Status::Failed } else { Status::Cancelled };
        self.end(job, End::Without(status, job.stopped()));
    }

    /// The server stops before a job is done: the store keeps it for the next server; without a store this is its end.
    fn hand_back(&self, job: &Arc<Job>) {
        if self.store.is_none() {
            self.end(job, End::Without(Status::Cancelled, Fault::stopping()));
            return;
        }
        if self.leave(job) {
            let hint = "the job is kept and goes on when the server is back: ask for it by its id";
            let fault = Fault::stopping().with_hint(hint);
            job.change(|snapshot| (snapshot.status, snapshot.fault) = (Status::Failed, Some(fault)));
            info!(job = %job.id, "kept for the next start");
        }
    }

    /// Stops a job, whether it waits or is drawn.
    pub fn stop(&self, job: &Arc<Job>, reason: Stop) {
        job.stop(reason);
        let taken = self.state().queue.take(1, |order| order.job.id == job.id);
        if !taken.is_empty() {
            self.show_length();
            self.end_stopped(job);
        }
    }

    /// The job `id`, if it is of `owner`.
    pub fn find(&self, id: Uuid, owner: &str) -> Option<Arc<Job>> {
        self.state().known.get(&id).filter(|job| &*job.owner == owner).map(Arc::clone)
    }

    /// The job `id`, of any key.
    pub fn find_any(&self, id: Uuid) -> Option<Arc<Job>> {
        self.state().known.get(&id).map(Arc::clone)
    }

    /// The jobs of `owner`, the latest first.
    pub fn all_of(&self, owner: &str) -> Vec<Arc<Job>> {
        let state = self.state();
        let mut all: Vec<_> = state.known.values().filter(|job| &*job.owner == owner).map(Arc::clone).collect();
        all.sort_by_key(|job| std::cmp::Reverse(job.created));
        all
    }

    /// The jobs of `owner` that are drawn.
    pub fn running_of(&self, owner: &str) -> Vec<Arc<Job>> {
        self.state().running.iter().filter(|job| &*job.owner == owner).map(Arc::clone).collect()
    }

    /// How many wait, and how many are taken before `id`.
    pub fn waiting(&self, id: Option<Uuid>) -> (usize, Option<usize>) {
        let state = self.state();
        let ahead = id.and_then(|id| state.queue.ahead_of(|order| order.job.id == id));
        (state.queue.len(), ahead)
    }

    /// Picture number `at` of `job`.
    ///
    /// # Errors
    /// What the store says.
    pub fn picture(&self, job: &Job, at: usize) -> Result<Option<Bytes>, Fault> {
        match (&*job.now().pictures, &self.store, &self.spool) {
            (Pictures::Here(pictures), ..) => Ok(pictures.get(at).cloned()),
            (Pictures::Spooled(spans), _, Some(spool)) => {
                let Some(span) = spans.get(at) else { return Ok(None) };
                spool.read(span).map_err(|error| Fault::internal(format!("cannot read a picture: {error}")))
            }
            (Pictures::Stored, Some(store), _) => match u32::try_from(at) {
                Ok(at) => store.picture(job.id, at),
                Err(_) => Ok(None),
            },
            _ => Ok(None),
        }
    }

    /// All pictures of a job that is done.
    ///
    /// # Errors
    /// What the store says; that a picture is gone.
    pub async fn pictures(self: &Arc<Self>, job: &Arc<Job>, snapshot: &Snapshot) -> Result<Vec<Bytes>, Fault> {
        let count = snapshot.outcome.as_ref().map_or(0, |outcome| outcome.seeds.len());
        let (jobs, job) = (Arc::clone(self), Arc::clone(job));
        let read = tokio::task::spawn_blocking(move || {
            let mut pictures = Vec::with_capacity(count);
            for at in 0..count {
                let picture = jobs.picture(&job, at)?;
                pictures.push(picture.ok_or_else(|| Fault::internal("a picture of the job is gone"))?);
            }
            Ok(pictures)
        });
        read.await.unwrap_or_else(|_| Err(Fault::internal("the store")))
    }

    /// Whether the server stops.
    pub fn is_stopping(&self) -> bool {
        self.state().stopping
    }

    /// From now on nothing is accepted. What waits is handed back; what is drawn goes on.
    pub fn begin_to_stop(&self) {
        let waiting = {
            let mut state = self.state();
            state.stopping = true;
            state.queue.take(usize::MAX, |_| true)
        };
        for order in waiting {
            order.job.stop(Stop::Server);
            self.hand_back(&order.job);
        }
        self.show_length();
        self.wake.notify_all();
    }

    /// Stops what is drawn.
    pub fn stop_running(&self) {
        let running = self.state().running.clone();
        running.iter().for_each(|job| job.stop(Stop::Server));
    }

    /// Stops those whose time is over, and forgets what is old.
    pub fn look_at_the_clock(&self) {
        let now = Instant::now();
        let late = |job: &Arc<Job>| job.deadline <= now;
        let (waiting, running) = {
            let mut state = self.state();
            let waiting = state.queue.take(usize::MAX, |order| late(&order.job));
            let running: Vec<_> = state.running.iter().filter(|job| late(job)).map(Arc::clone).collect();
            (waiting, running)
        };
        running.iter().for_each(|job| job.stop(Stop::Late));
        for order in waiting {
            order.job.stop(Stop::Late);
            self.end_stopped(&order.job);
        }
        self.forget_old();
        self.show_length();
    }

    /// Forgets those that ended long ago, and those that are too many.
    fn forget_old(&self) {
        let Limits { kept_jobs, kept_bytes, kept_for, .. } = self.limits;
        let mut forgotten = Vec::new();
        {
            let mut state = self.state();
            let mut bytes: usize = state.ended.iter().map(|ended| ended.bytes).sum();
            while let Some(first) = state.ended.front() {
                let is_old = first.at.elapsed().is_ok_and(|since| since > kept_for);
                if !is_old && state.ended.len() <= kept_jobs && bytes <= kept_bytes {
                    break;
                }
                bytes -= first.bytes;
                let id = first.id;
                state.ended.pop_front();
                state.known.remove(&id);
                forgotten.push(id);
            }
        }
        if let Some(store) = self.store.as_ref().filter(|_| !forgotten.is_empty())
            && let Err(fault) = store.forget(&forgotten)
        {
            error!("{fault}");
        }
    }

    fn show_length(&self) {
        let (waiting, running) = {
            let state = self.state();
            (state.queue.len(), state.running.len())
        };
        self.metrics.set("pinhole_queue_length", waiting as f64);
        self.metrics.set("pinhole_jobs_running", running as f64);
    }

    /// Whether pictures are kept in the store.
    pub fn is_stored(&self) -> bool {
        self.store.is_some()
    }
}

impl Order {
    /// Whether `other` may be drawn in one batch with this: everything except the seed is equal, and nothing but the first noise is
    /// drawn from that.
    fn goes_with(&self, other: &Order) -> bool {
        let settings = &self.planned.settings;
        let is_plain = |order: &Order| {
            let request = &order.asked.request;
            request.image.is_none() && request.references.is_empty() && !order.job.cancel.is_raised()
        };
        let alike = |order: &Order| {
            let request = order.asked.request.clone();
            pinhole::pipeline::Request { seed: 0, ..request }
        };
        !settings.sampling.sampler.draws()
            && settings.second.is_none()
            && settings.fps.is_none()
            && self.asked.key == other.asked.key
            && is_plain(self)
            && is_plain(other)
            && Arc::ptr_eq(&self.planned.model, &other.planned.model)
            && self.asked.request.prompt == other.asked.request.prompt
            && alike(self) == alike(other)
    }
}
