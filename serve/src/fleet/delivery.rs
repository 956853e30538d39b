//! One delivery of a job: read, planned, drawn, stored, told.

use std::collections::hash_map::Entry;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_nats::jetstream::{AckKind, Message};
use axum::body::Bytes;
use axum::http::StatusCode;
use tokio::time;
use tracing::{error, info, warn};
use uuid::Uuid;

use super::cancels::{Held, id_of};
use super::{ACK_WAIT, PAUSE, Worker};
use crate::drawing::Drawing;
use crate::fault::Fault;
use crate::job::{Job, Status, Stop};
use crate::jobs::Order;
use crate::results::Ending;
use crate::store::seconds;

/// A job that was delivered so often, and whose workers all died of it or failed, is given up.
const MOST_DELIVERIES: u64 = 5;

/// A worker says so often within the queue's patience that a job goes on.
const SIGNS: u32 = 3;

/// A job as it was delivered.
pub(super) struct Delivery {
    pub(super) id: Uuid,
    /// When it was put into the queue.
    pub(super) created: SystemTime,
    /// How often it was delivered, this one counted.
    pub(super) count: u64,
}

/// How a job ended here.
enum End {
    /// As it is stored, with its pictures.
    Ended(Box<Ending>, Vec<Bytes>),
    /// The job did not end: it is delivered again after this time.
    Again(Duration),
}

impl Worker {
    /// Sees to it that the job of `message` ends once, and tells the queue.
    pub(super) async fn handle(&self, message: &Message) {
        let Some(delivery) = delivery(message) else {
            error!(subject = %message.subject, "no job: expected a subject that ends in a UUID");
            return self.settle(message, "failed", AckKind::Term).await;
        };
        let id = delivery.id;
        match self.held().entry(id) {
            // The queue lost patience while this worker was cut off. What is said of the first delivery holds for this one.
            Entry::Occupied(_) => return warn!(job = %id, "is here already"),
            Entry::Vacant(place) => place.insert(Held::default()),
        };
        let verdict = tokio::select! {
            verdict = self.verdict(&delivery, &message.payload) => verdict,
            never = self.say_that_it_goes_on(message) => match never {},
        };
        match verdict {
            Ok(Status::Done) => self.settle(message, "done", AckKind::Ack).await,
            Ok(status) => self.settle(message, status.name(), AckKind::Term).await,
            Err(pause) => {
                let pause = Some(pause).filter(|pause| !pause.is_zero());
                self.settle(message, "again", AckKind::Nak(pause)).await;
            }
        }
        self.held().remove(&id);
    }

    /// Tells the queue what to do with a message, and waits until it knows. If that is lost, the job is delivered again, and its end is there.
    async fn settle(&self, message: &Message, outcome: &'static str, kind: AckKind) {
        self.server.metrics.add_of("pinhole_deliveries_total", "outcome", outcome, 1.0);
        if let Err(error) = message.double_ack_with(kind).await {
            warn!("the queue was not told that a job is {outcome}: {error}");
        }
    }

    /// Before the queue loses its patience, again and again.
    async fn say_that_it_goes_on(&self, message: &Message) -> Infallible {
        let patience = self.consumer.cached_info().config.ack_wait;
        let patience = if patience.is_zero() { ACK_WAIT } else { patience };
        loop {
            time::sleep(patience / SIGNS).await;
            if let Err(error) = message.ack_with(AckKind::Progress).await {
                warn!("the queue was not told that a job goes on: {error}");
            }
        }
    }

    /// How the job ended, once that is stored; after which time it is to be delivered again, if it is not.
    async fn verdict(&self, delivery: &Delivery, body: &[u8]) -> Result<Status, Duration> {
        match self.results.find(delivery.id).await {
            Ok(None) => {}
            Ok(Some(ending)) => {
                info!(job = %delivery.id, "has ended before");
                self.tell(&ending).await;
                return Ok(ending.status);
            }
            Err(why) => {
                error!(job = %delivery.id, "{why}");
                return Err(PAUSE);
            }
        }
        match self.draw(delivery, body).await {
            End::Ended(ending, pictures) => {
                let ending = self.store(*ending, &pictures).await?;
                self.tell(&ending).await;
                Ok(ending.status)
            }
            End::Again(pause) => Err(pause),
        }
    }

    async fn draw(&self, delivery: &Delivery, body: &[u8]) -> End {
        let mut drawing = match self.read(delivery, body) {
            Ok(drawing) => drawing,
            Err(fault) => return self.failed(delivery, None, &fault),
        };
        let job = match self.begin(delivery, &mut drawing).await {
            Ok(job) => job,
            Err(fault) => return self.failed(delivery, Some(drawing.without_pictures()), &fault),
        };
        let mut watch = job.watch();
        let ended = watch.wait_for(|snapshot| snapshot.status.is_end()).await;
        let Ok(snapshot) = ended.map(|snapshot| snapshot.clone()) else { return End::Again(PAUSE) };
        let drawing = Some(job.drawing.clone());
        match (snapshot.status, &snapshot.fault) {
            (Status::Done, _) => {
                let pictures = match self.server.jobs.pictures(&job, &snapshot).await {
                    Ok(pictures) => pictures,
                    Err(fault) => return self.failed(delivery, drawing, &fault),
                };
                let images = self.results.addresses(delivery.id, pictures.len());
                let outcome = snapshot.outcome.as_deref().cloned();
                let ending = Ending { outcome, images, ..delivery.ending(Status::Done, drawing) };
                End::Ended(Box::new(ending), pictures)
            }
            // Others have it at once.
            _ if job.why() == Stop::Server => End::Again(Duration::ZERO),
            (Status::Cancelled, Some(fault)) => {
                let ending = Ending { error: Some(fault.clone()), ..delivery.ending(Status::Cancelled, drawing) };
                End::Ended(Box::new(ending), Vec::new())
            }
            (_, Some(fault)) => self.failed(delivery, drawing, fault),
            (_, None) => self.failed(delivery, drawing, &Fault::internal("the job ended without a word")),
        }
    }

    /// The job's body, with the seed that every delivery has.
    fn read(&self, delivery: &Delivery, body: &[u8]) -> Result<Drawing, Fault> {
        if delivery.count > MOST_DELIVERIES {
            let message = format!("the job was begun {MOST_DELIVERIES} times, and no worker ended it");
            return Err(Fault::new(StatusCode::UNPROCESSABLE_ENTITY, "given_up", message));
        }
        let most = self.server.limits.body;
        if body.len() > most {
            let message = format!("expected at most {most} bytes, found {}", body.len());
            return Err(Fault::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message));
        }
        let read: Result<Drawing, _> = serde_json::from_slice(body);
        let mut drawing =
            read.map_err(|error| Fault::invalid("body", format!("the job is no JSON of one: {error}")))?;
        drawing.seed.get_or_insert(delivery.id.as_u64_pair().0 >> 32);
        Ok(drawing)
    }

    /// Plans the job and puts it before the device, as if it had come over HTTP.
    async fn begin(&self, delivery: &Delivery, drawing: &mut Drawing) -> Result<Arc<Job>, Fault> {
        drawing.fix(self.server.catalogue())?;
        let time = self.time_left(delivery, drawing)?;
        let (asked, planned) = self.server.plan_patiently(drawing).await?;
        let shown = drawing.without_pictures();
        let job = Arc::new(Job::new(delivery.id, Arc::default(), shown, delivery.created, time));
        self.server.jobs.take(Order { job: Arc::clone(&job), line: Arc::default(), asked, planned })?;
        self.hold(&job);
        Ok(job)
    }

    /// How long it may take. Its own deadline runs since it was put into the queue; that of the server since now: a long queue is no fault of
    /// the job's.
    fn time_left(&self, delivery: &Delivery, drawing: &Drawing) -> Result<Duration, Fault> {
        let most = self.server.limits.deadline;
        let Some(own) = drawing.deadline.and_then(|own| Duration::try_from_secs_f64(own).ok()) else { return Ok(most) };
        let left = own.saturating_sub(delivery.created.elapsed().unwrap_or_default());
        if left.is_zero() { Err(Fault::late()) } else { Ok(left.min(most)) }
    }

    /// A job that fails wherever it is drawn ends with the reason. One that this worker failed, or has no time for, is for others.
    fn failed(&self, delivery: &Delivery, drawing: Option<Drawing>, fault: &Fault) -> End {
        let is_late = fault.status == StatusCode::GATEWAY_TIMEOUT.as_u16();
        if fault.status >= 500 && !is_late && delivery.count < MOST_DELIVERIES {
            warn!(job = %delivery.id, "is left to others: {fault}");
            return End::Again(PAUSE);
        }
        warn!(job = %delivery.id, "has failed: {fault}");
        let ending = Ending { error: Some(fault.clone()), ..delivery.ending(Status::Failed, drawing) };
        End::Ended(Box::new(ending), Vec::new())
    }

    /// Stores an end, however long the bucket takes for it, and returns the one that is there. Only a worker that stops leaves that to others.
    async fn store(&self, ending: Ending, pictures: &[Bytes]) -> Result<Ending, Duration> {
        loop {
            match self.put(&ending, pictures).await {
                Ok(stored) => return Ok(stored),
                Err(why) => error!(job = %ending.id, "cannot be stored: {why}"),
            }
            self.server.metrics.add("pinhole_results_refused_total", 1.0);
            if *self.stopping.borrow() {
                return Err(Duration::ZERO);
            }
            time::sleep(PAUSE).await;
        }
    }

    async fn put(&self, ending: &Ending, pictures: &[Bytes]) -> Result<Ending, String> {
        if self.results.put(ending, pictures).await? {
            return Ok(ending.clone());
        }
        // Another delivery came first, or a cancel: that end stays.
        let stored = self.results.find(ending.id).await?;
        stored.ok_or_else(|| "its end is there, and is not found".to_owned())
    }

    /// Tells clients that listen how the job ended. Others find it in the bucket.
    pub(super) async fn tell(&self, ending: &Ending) {
        let subject = format!("{}.results.{}", self.name, ending.id);
        let Ok(json) = serde_json::to_vec(ending) else { return };
        if let Err(error) = self.client.publish(subject, json.into()).await {
            warn!(job = %ending.id, "its end was not told: {error}");
        }
    }
}

/// The job of `message`, if its subject names one.
fn delivery(message: &Message) -> Option<Delivery> {
    let (_, id) = id_of(&message.subject)?;
    let info = message.info().ok()?;
    Some(Delivery { id, created: info.published.into(), count: u64::try_from(info.delivered).unwrap_or(1) })
}

impl Delivery {
    /// An end of it, now.
    pub(super) fn ending(&self, status: Status, drawing: Option<Drawing>) -> Ending {
        Ending {
            id: self.id,
            status,
            created: seconds(self.created),
            ended: seconds(SystemTime::now()),
            deliveries: self.count,
            drawing,
            error: None,
            outcome: None,
            images: Vec::new(),
        }
    }
}
