//! One job: what its owner may see of it, and what stops it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant, SystemTime};

use axum::body::Bytes;
use pinhole::ggml::CancelFlag;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::drawing::Drawing;
use crate::fault::Fault;
use crate::spool::Span;

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It waits.
    Queued,
    /// It is drawn.
    Running,
    /// There are pictures.
    Done,
    /// There are none, and it says why.
    Failed,
    /// Its owner stopped it, or left.
    Cancelled,
}

impl Status {
    /// Whether it has ended.
    pub fn is_end(self) -> bool {
        matches!(self, Status::Done | Status::Failed | Status::Cancelled)
    }

    /// Its name in JSON and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Status::Queued => "queued",
            Status::Running => "running",
            Status::Done => "done",
            Status::Failed => "failed",
            Status::Cancelled => "cancelled",
        }
    }
}

/// What came of a job, beside its pictures.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Outcome {
    /// The seed of each picture.
    pub seeds: Vec<u64>,
    /// How each was made, as the web UI writes it.
    pub parameters: Vec<String>,
    /// Pixels across and down.
    pub size: [usize; 2],
    /// The steps that were taken.
    pub steps: usize,
    /// Seconds of each phase.
    pub seconds: BTreeMap<String, f64>,
    /// The peak on the device that was planned; of several, on the first.
    pub planned_bytes: u64,
    /// The peak that there was.
    pub measured_bytes: u64,
    /// The same of each device, and what came and went.
    pub devices: Vec<DeviceOutcome>,
    /// How many jobs were drawn at once.
    pub drawn_together: usize,
    /// What there was to say.
    pub warnings: Vec<String>,
}

/// What one of the devices held for a job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct DeviceOutcome {
    /// Its name.
    pub device: String,
    /// Its ceiling, if it has one.
    pub limit_bytes: Option<u64>,
    /// The peak that was planned.
    pub planned_bytes: u64,
    /// The peak that there was.
    pub measured_bytes: u64,
    /// Weights that were brought to it.
    pub moved_bytes: u64,
    /// Other numbers that it was given and that were taken from it; what one device gives another among them.
    pub exchanged_bytes: u64,
}

/// Where pictures are: PNGs.
#[derive(Debug, Default)]
pub enum Pictures {
    /// In the store, if there are any.
    #[default]
    Stored,
    /// In the spool.
    Spooled(Vec<Span>),
    /// Here: the disk did not take them.
    Here(Vec<Bytes>),
}

/// A job as it is at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Where it is.
    pub status: Status,
    /// The phase that runs.
    pub phase: Option<&'static str>,
    /// Steps that are done.
    pub step: usize,
    /// Of how many.
    pub steps: usize,
    /// How many previews there were, and the last one: a PNG.
    pub preview: Option<(u64, Bytes)>,
    /// Why there are no pictures.
    pub fault: Option<Fault>,
    /// What came of it.
    pub outcome: Option<Arc<Outcome>>,
    /// Where its pictures are, once it is done.
    pub pictures: Arc<Pictures>,
    /// When it began.
    pub began: Option<SystemTime>,
    /// When it ended.
    pub ended: Option<SystemTime>,
}

/// Why a job is stopped. The first reason stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stop {
    /// No one stops it.
    None = 0,
    /// Its owner asked for it.
    Asked = 1,
    /// Its owner waited for it, and left.
    Left = 2,
    /// Its time is over.
    Late = 3,
    /// The server stops.
    Server = 4,
}

/// A job. Those who wait for it share it with the one who draws it.
#[derive(Debug)]
pub struct Job {
    /// Its name. No one can guess it.
    pub id: Uuid,
    /// The name of the key that it was sent with; empty on a server without keys.
    pub owner: Arc<str>,
    /// What to draw, without the pictures that were given.
    pub drawing: Drawing,
    /// When it was accepted.
    pub created: SystemTime,
    /// When it is given up.
    pub deadline: Instant,
    /// Raised to stop it.
    pub cancel: CancelFlag,
    stop: AtomicU8,
    state: watch::Sender<Snapshot>,
}

impl Job {
    /// A job that waits.
    pub fn new(id: Uuid, owner: Arc<str>, drawing: Drawing, created: SystemTime, time: Duration) -> Job {
        let snapshot = Snapshot {
            status: Status::Queued,
            phase: None,
            step: 0,
            steps: 0,
            preview: None,
            fault: None,
            outcome: None,
            pictures: Arc::default(),
            began: None,
            ended: None,
        };
        Job {
            id,
            owner,
            drawing,
            created,
            deadline: Instant::now() + time,
            cancel: CancelFlag::new(),
            stop: AtomicU8::new(Stop::None as u8),
            state: watch::Sender::new(snapshot),
        }
    }

    /// As it is now.
    pub fn now(&self) -> Snapshot {
        self.state.borrow().clone()
    }

    /// Where it is now.
    pub fn status(&self) -> Status {
        self.state.borrow().status
    }

    /// Tells of changes. A slow reader sees the last one alone, so that nothing piles up.
    pub fn watch(&self) -> watch::Receiver<Snapshot> {
        self.state.subscribe()
    }

    /// Changes it, and tells those who watch.
    pub fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        self.state.send_modify(change);
    }

    /// Asks it to stop.
    pub fn stop(&self, reason: Stop) {
        let (none, this) = (Stop::None as u8, reason as u8);
        // Only the first reason counts.
        let _ = self.stop.compare_exchange(none, this, Ordering::SeqCst, Ordering::SeqCst);
        self.cancel.raise();
    }

    /// Why it is to stop.
    pub fn why(&self) -> Stop {
        match self.stop.load(Ordering::SeqCst) {
            1 => Stop::Asked,
            2 => Stop::Left,
            3 => Stop::Late,
            4 => Stop::Server,
            _ => Stop::None,
        }
    }

    /// What its owner is told of the stop.
    pub fn stopped(&self) -> Fault {
        match self.why() {
            Stop::Late => Fault::late(),
            Stop::Server => Fault::stopping(),
            Stop::Left => Fault::cancelled("the client left"),
            Stop::None | Stop::Asked => Fault::cancelled("the job was cancelled"),
        }
    }
}
