//! What all interfaces do with a drawing: look at it, plan it, accept it, wait for it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::Semaphore;
use tracing::warn;
use uuid::Uuid;

use crate::catalogue::Catalogue;
use crate::drawing::{Asked, Drawing};
use crate::fault::Fault;
use crate::job::{Job, Snapshot, Status, Stop};
use crate::jobs::{End, Jobs, Order};
use crate::keys::{Caller, Keys};
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::planner::{Planned, Planner};
use crate::shelf::Shelf;
use crate::store::{Record, moment, seconds};

/// How many requests are looked at at once: pictures are decoded then.
const LOOKING: usize = 2;

/// What the pixels of given pictures are counted in.
const PIXELS: usize = 1 << 10;

/// What requests are answered with.
pub struct Server {
    /// What this server takes.
    pub limits: Limits,
    /// All jobs.
    pub jobs: Arc<Jobs>,
    /// What Prometheus is told.
    pub metrics: Arc<Metrics>,
    /// Where models are opened.
    pub shelf: Arc<Shelf>,
    /// Who may ask.
    pub keys: Keys,
    /// Names that the server is called by on a machine without keys.
    pub hosts: Vec<String>,
    planner: Planner,
    looking: Semaphore,
    /// Room for given pictures.
    pictures: Arc<Semaphore>,
    is_ready: AtomicBool,
    /// The model that requests without one mean, for those owners who chose: as many as there are keys.
    chosen: Mutex<HashMap<Arc<str>, String>>,
}

/// Somebody waits for a job: who leaves stops it.
pub struct Leash {
    jobs: Arc<Jobs>,
    job: Arc<Job>,
    holds: bool,
}

impl Drop for Leash {
    fn drop(&mut self) {
        if self.holds && !self.job.status().is_end() {
            self.jobs.stop(&self.job, Stop::Left);
        }
    }
}

impl Leash {
    /// Waits for the end of the job.
    ///
    /// # Errors
    /// Why there are no pictures.
    pub async fn wait(self) -> Result<(Arc<Job>, Snapshot), Fault> {
        let mut watch = self.job.watch();
        let ended = watch.wait_for(|snapshot| snapshot.status.is_end()).await;
        let snapshot = ended.map_err(|_| Fault::internal("the job is gone"))?.clone();
        match snapshot.status {
            Status::Done => Ok((Arc::clone(&self.job), snapshot)),
            _ => Err(snapshot.fault.unwrap_or_else(|| Fault::internal("the job ended without a word"))),
        }
    }
}

impl Server {
    /// Ready to answer once [`resume`](Server::resume) is done.
    pub fn new(
        limits: Limits,
        (jobs, metrics, shelf): (Arc<Jobs>, Arc<Metrics>, Arc<Shelf>),
        planner: Planner,
        keys: Keys,
        hosts: Vec<String>,
    ) -> Server {
        let looking = Semaphore::new(LOOKING);
        let pictures = Arc::new(Semaphore::new(limits.waiting_pixels.div_ceil(PIXELS)));
        let (is_ready, chosen) = (AtomicBool::new(false), Mutex::default());
        Server { limits, jobs, metrics, shelf, keys, hosts, planner, looking, pictures, is_ready, chosen }
    }

    /// The model that requests of `owner` mean that name none; `None` for the first.
    pub fn chosen_model(&self, owner: &str) -> Option<String> {
        self.chosen.lock().unwrap_or_else(PoisonError::into_inner).get(owner).cloned()
    }

    /// Requests of `owner` that name no model mean `name` from now on.
    ///
    /// # Errors
    /// As [`Catalogue::model`].
    pub fn choose_model(&self, owner: &Arc<str>, name: &str) -> Result<(), Fault> {
        let name = self.catalogue().model(Some(name))?.name.clone();
        self.chosen.lock().unwrap_or_else(PoisonError::into_inner).insert(Arc::clone(owner), name);
        Ok(())
    }

    /// What may be named.
    pub fn catalogue(&self) -> &Catalogue {
        &self.shelf.catalogue
    }

    /// Whether jobs are taken.
    pub fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Relaxed) && !self.jobs.is_stopping()
    }

    /// Looks at `drawing` and plans it. Nothing is accepted.
    ///
    /// # Errors
    /// What is wrong with it, or the numbers of what does not fit.
    pub async fn plan(self: &Arc<Self>, drawing: &Drawing) -> Result<(Asked, Planned), Fault> {
        let permit = self.looking.acquire().await.map_err(|_| Fault::stopping())?;
        let (server, drawing) = (Arc::clone(self), drawing.clone());
        let looked = tokio::task::spawn_blocking(move || drawing.look_at(server.catalogue(), &server.limits)).await;
        let mut asked = looked.map_err(|_| Fault::internal("the server met a bug while it looked at a request"))??;
        let units = u32::try_from(asked.pixels().div_ceil(PIXELS)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.pictures).try_acquire_many_owned(units);
        let room =
            room.map_err(|_| Fault::busy("pictures_full", "the pictures of the jobs that wait have no room for more"))?;
        asked.room = Some(Arc::new(room));
        drop(permit);
        self.planner.plan(asked).await
    }

    /// Accepts `drawing`, if it fits and there is a place for it.
    ///
    /// # Errors
    /// As [`plan`](Server::plan); that the queue is full, or the server stops.
    pub async fn accept(self: &Arc<Self>, caller: &Caller, drawing: Drawing) -> Result<Accepted, Fault> {
        let accepted = self.try_to_accept(caller, drawing).await;
        if let Err(fault) = &accepted {
            self.metrics.add_of("pinhole_jobs_refused_total", "why", &fault.kind, 1.0);
        }
        accepted
    }

    async fn try_to_accept(self: &Arc<Self>, caller: &Caller, mut drawing: Drawing) -> Result<Accepted, Fault> {
        // A caller without a place is told before any work.
        drop(self.jobs.promise(&caller.line)?);
        drawing.fix(self.catalogue())?;
        let (asked, planned) = self.plan(&drawing).await?;
        let most = self.limits.deadline;
        let time =
            drawing.deadline.and_then(|time| Duration::try_from_secs_f64(time).ok()).map_or(most, |t| t.min(most));
        let created = SystemTime::now();
        let id = Uuid::new_v4();
        let job = Arc::new(Job::new(id, Arc::clone(&caller.owner), drawing.without_pictures(), created, time));
        // If the client leaves from here on, its job ends.
        let leash = Leash { jobs: Arc::clone(&self.jobs), job: Arc::clone(&job), holds: true };
        let record = Record {
            owner: caller.owner.to_string(),
            drawing,
            created: seconds(created),
            time: time.as_secs_f64(),
            status: Status::Queued,
            ended: None,
            fault: None,
            outcome: None,
        };
        let order = Order { job, line: Arc::clone(&caller.line), asked, planned: planned.clone() };
        let (jobs, line) = (Arc::clone(&self.jobs), Arc::clone(&caller.line));
        let accept = move || jobs.accept(order, &record, jobs.promise(&line)?);
        let accepted = match self.jobs.is_stored() {
            // A write to the disk.
            true => tokio::task::spawn_blocking(accept).await.unwrap_or_else(|_| Err(Fault::internal("the store"))),
            false => accept(),
        };
        accepted.map(|()| Accepted { leash, planned })
    }

    /// Begins again what an earlier process left behind, and is ready then.
    ///
    /// # Errors
    /// What the store says.
    pub async fn resume(self: &Arc<Self>) -> Result<(), Fault> {
        for (id, record) in self.jobs.left_behind()? {
            let time = Duration::try_from_secs_f64(record.time).unwrap_or(self.limits.deadline);
            let owner: Arc<str> = record.owner.as_str().into();
            let shown = record.drawing.without_pictures();
            let job = Arc::new(Job::new(id, Arc::clone(&owner), shown, moment(record.created), time));
            match self.plan_patiently(&record.drawing).await {
                Ok((asked, planned)) => self.jobs.resume(Order { job, line: owner, asked, planned }),
                Err(fault) => {
                    warn!(job = %id, "cannot be begun again: {fault}");
                    self.jobs.know(&job);
                    self.jobs.end(&job, End::Without(Status::Failed, fault));
                }
            }
        }
        self.is_ready.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// As [`plan`](Server::plan), but waits for a place.
    ///
    /// # Errors
    /// As [`plan`](Server::plan).
    pub async fn plan_patiently(self: &Arc<Self>, drawing: &Drawing) -> Result<(Asked, Planned), Fault> {
        loop {
            match self.plan(drawing).await {
                Err(fault) if fault.status == 429 => tokio::time::sleep(Duration::from_millis(50)).await,
                planned => return planned,
            }
        }
    }
}

/// A job that was accepted.
pub struct Accepted {
    leash: Leash,
    /// Its plan.
    pub planned: Planned,
}

impl Accepted {
    /// Waits for it. Who leaves stops it.
    pub fn leash(self) -> Leash {
        self.leash
    }

    /// Lets it go: it goes on by itself.
    pub fn let_go(mut self) -> Arc<Job> {
        self.leash.holds = false;
        Arc::clone(&self.leash.job)
    }
}
