//! Jobs that are cancelled: each by a message on `NAME.cancels.ID`, whose body does not matter.
//!
//! The worker to whom the queue of cancels gives the message stores the job's end, says so on `NAME.stops.ID`, which all workers hear, and takes the job
//! out of its queue. So one that waits ends at once, and one that is drawn stops. While no worker runs, the cancel waits in its queue.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, RetentionPolicy};
use async_nats::jetstream::{AckKind, Message, stream};
use async_nats::{Client, Subscriber};
use futures_util::StreamExt;
use tokio::time;
use tracing::{error, info, warn};
use uuid::Uuid;

use super::delivery::Delivery;
use super::{ASKING, PAUSE, Worker, for_workers};
use crate::drawing::Drawing;
use crate::fault::Fault;
use crate::job::{Job, Status, Stop};
use crate::results::Ending;

/// A job that this worker has.
#[derive(Default)]
pub(super) struct Held {
    /// Once it is planned.
    job: Option<Arc<Job>>,
    is_cancelled: bool,
}

/// Where workers say which jobs of the queue `name` are to stop.
pub(super) fn stops(name: &str) -> String {
    format!("{name}.stops.*")
}

/// The consumer of the cancels of the queue `name`, which all workers share. What is there already stays as it is.
pub(super) async fn consumer(client: &Client, name: &str) -> Result<PullConsumer, async_nats::Error> {
    let stream = stream::Config {
        name: format!("{name}-cancels"),
        subjects: vec![format!("{name}.cancels.*")],
        retention: RetentionPolicy::WorkQueue,
        // A second one says nothing new, and takes the place of the first.
        max_messages_per_subject: 1,
        ..stream::Config::default()
    };
    Ok(for_workers(client, stream).await?.1)
}

impl Worker {
    /// Jobs that this worker has.
    pub(super) fn held(&self) -> MutexGuard<'_, HashMap<Uuid, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A job that this worker has is planned. If it was cancelled meanwhile, it stops.
    pub(super) fn hold(&self, job: &Arc<Job>) {
        let mut is_cancelled = false;
        if let Some(held) = self.held().get_mut(&job.id) {
            held.job = Some(Arc::clone(job));
            is_cancelled = held.is_cancelled;
        }
        if is_cancelled {
            self.server.jobs.stop(job, Stop::Asked);
        }
    }

    /// Stops the jobs that this worker has, as it hears that they are cancelled.
    pub(super) async fn hear_stops(self: Arc<Self>, mut stops: Subscriber) {
        while let Some(message) = stops.next().await {
            let Some((_, id)) = id_of(&message.subject) else { continue };
            let mut job = None;
            if let Some(held) = self.held().get_mut(&id) {
                held.is_cancelled = true;
                job = held.job.clone();
            }
            if let Some(job) = job {
                info!(job = %id, "is cancelled");
                self.server.jobs.stop(&job, Stop::Asked);
            }
        }
    }

    /// Ends jobs that are cancelled, wherever they are, until this worker stops.
    pub(super) async fn end_cancelled(self: Arc<Self>) {
        let mut stopping = self.stopping.clone();
        loop {
            let message = tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => return,
                message = self.next_cancel() => message,
            };
            match message {
                Ok(Some(message)) => self.settle_cancel(&message).await,
                Ok(None) => {}
                Err(error) => {
                    warn!("the queue of cancels: {error}");
                    time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// The next cancel; none if there was none for a while.
    async fn next_cancel(&self) -> Result<Option<Message>, async_nats::Error> {
        let mut messages = self.cancels.batch().max_messages(1).expires(ASKING).messages().await?;
        messages.next().await.transpose()
    }

    async fn settle_cancel(&self, message: &Message) {
        let kind = match self.cancel(&message.subject).await {
            Ok(()) => AckKind::Ack,
            Err(why) => {
                error!(subject = %message.subject, "a job was not cancelled: {why}");
                AckKind::Nak(Some(PAUSE))
            }
        };
        // One that is not acknowledged is given to somebody again, who finds the job's end.
        if let Err(error) = message.double_ack_with(kind).await {
            warn!("the queue of cancels: {error}");
        }
    }

    /// Stores the end of the job that the subject of a cancel names, stops the worker that draws it, and takes it out of the queue.
    async fn cancel(&self, subject: &str) -> Result<(), String> {
        // Of another one there could be no end.
        let Some((written, id)) = id_of(subject) else { return Ok(()) };
        let found = self.jobs.get_last_raw_message_by_subject(&format!("{}.jobs.{written}", self.name)).await;
        let message = match found {
            Ok(message) => message,
            // It has ended, or was never there.
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => return Ok(()),
            Err(error) => return Err(error.to_string()),
        };
        let drawing: Option<Drawing> = serde_json::from_slice(&message.payload).ok();
        let drawing = drawing.map(|drawing| drawing.without_pictures());
        let fault = Fault::cancelled("the job was cancelled");
        let delivery = Delivery { id, created: SystemTime::from(message.time), count: 0 };
        let ending = Ending { error: Some(fault), ..delivery.ending(Status::Cancelled, drawing) };
        if self.results.put(&ending, &[]).await? {
            info!(job = %id, "was cancelled");
            self.server.metrics.add("pinhole_cancelled_total", 1.0);
            self.tell(&ending).await;
        }
        // A worker that begins to draw it from here on finds its end first.
        let told = self.client.publish(format!("{}.stops.{id}", self.name), Vec::new().into()).await;
        told.map_err(|error| error.to_string())?;
        self.jobs.delete_message(message.sequence).await.map_err(|error| error.to_string())?;
        Ok(())
    }
}

/// The job that `subject` names in the end: as it is written there, and its id.
pub(super) fn id_of(subject: &str) -> Option<(&str, Uuid)> {
    let written = subject.rsplit('.').next()?;
    Some((written, Uuid::try_parse(written).ok()?))
}
