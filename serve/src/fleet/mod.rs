//! Many machines on one queue: jobs come from a work queue of NATS JetStream, and results go to a bucket.
//!
//! A job is a message on `NAME.jobs.ID`: its ID is a UUID that its sender chose, its body is that of `POST /v1/jobs`. The message stays in the
//! queue until the job's end is stored. While a worker lives, it says so to the queue; a job of one that does not is delivered again, with
//! the same seed, and its end is stored once ([`crate::results`]). Ends are told on `NAME.results.ID`. A message on `NAME.cancels.ID` cancels a
//! job, whether it waits or is drawn.

mod address;
mod cancels;
mod delivery;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::{DiscardPolicy, RetentionPolicy, Stream};
use async_nats::jetstream::{self, Message, stream};
use async_nats::{Client, ConnectOptions};
use futures_util::StreamExt;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time;
use tracing::{info, warn};
use uuid::Uuid;

use self::cancels::Held;
use crate::results::Results;
use crate::server::Server;

pub use address::QueueAddress;

/// The durable consumer that all workers share.
const CONSUMER: &str = "workers";

/// A job is delivered again if no one said for so long that it goes on. An existing consumer may have another time.
const ACK_WAIT: Duration = Duration::from_secs(30);

/// How long one request for a job waits at the queue.
const ASKING: Duration = Duration::from_secs(10);

/// After something went wrong with the queue or the bucket.
const PAUSE: Duration = Duration::from_secs(2);

/// How often the queue is asked for its length.
const LOOKING: Duration = Duration::from_secs(2);

/// How long ends may take to be stored after the last job is drawn.
const STORING: Duration = Duration::from_secs(10);

/// One worker's side of the queue.
struct Worker {
    name: String,
    client: Client,
    /// The queue.
    jobs: Stream,
    consumer: PullConsumer,
    /// The queue of jobs that are cancelled.
    cancels: PullConsumer,
    results: Results,
    server: Arc<Server>,
    stopping: watch::Receiver<bool>,
    /// Jobs that this worker has.
    held: Mutex<HashMap<Uuid, Held>>,
}

/// Takes jobs until it is stopped.
pub struct Fleet {
    stop: watch::Sender<bool>,
    taking: JoinHandle<()>,
}

impl Fleet {
    /// Takes jobs from `queue`: the one that the device draws, and so many `ahead`.
    ///
    /// # Errors
    /// A text: the queue cannot be reached, or is no queue of jobs.
    pub async fn start(
        queue: &QueueAddress,
        credentials: Option<&Path>,
        results: Results,
        ahead: usize,
        server: Arc<Server>,
    ) -> Result<Fleet, String> {
        let client = connect(queue, credentials).await?;
        let name = queue.name.clone();
        let failed = |error: async_nats::Error| format!("--queue {queue}: {error}");
        let (jobs, consumer) = consumer(&client, &name).await.map_err(failed)?;
        let cancels = cancels::consumer(&client, &name).await.map_err(failed)?;
        let stops = client.subscribe(cancels::stops(&name)).await.map_err(|error| failed(error.into()))?;
        info!(queue = %queue, "takes jobs from the queue");
        let (stop, stopping) = watch::channel(false);
        let held = Mutex::default();
        let worker = Arc::new(Worker { name, client, jobs, consumer, cancels, results, server, stopping, held });
        tokio::spawn(Arc::clone(&worker).hear_stops(stops));
        tokio::spawn(Arc::clone(&worker).end_cancelled());
        let taking = tokio::spawn(take(worker, ahead.saturating_add(1)));
        Ok(Fleet { stop, taking })
    }

    /// Takes no more jobs.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Waits until the queue knows of all jobs that were taken.
    pub async fn finish(self) {
        self.stop();
        if time::timeout(STORING, self.taking).await.is_err() {
            warn!("the queue was not told of all jobs: it delivers them again");
        }
    }
}

async fn connect(queue: &QueueAddress, credentials: Option<&Path>) -> Result<Client, String> {
    let mut options = ConnectOptions::new().name("pinhole serve");
    if let Some(path) = credentials {
        let read = options.credentials_file(path).await;
        options = read.map_err(|error| format!("--queue-credentials {}: {error}", path.display()))?;
    }
    match (&queue.user, &queue.password) {
        (Some(user), Some(password)) => options = options.user_and_password(user.clone(), password.clone()),
        (Some(token), None) => options = options.token(token.clone()),
        _ => {}
    }
    options.connect(&queue.servers[..]).await.map_err(|error| format!("--queue {queue}: {error}"))
}

/// The stream of these settings and the consumer that all workers share: as they are, if they are there.
async fn for_workers(client: &Client, stream: stream::Config) -> Result<(Stream, PullConsumer), async_nats::Error> {
    let workers = pull::Config {
        durable_name: Some(CONSUMER.to_owned()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        ..pull::Config::default()
    };
    let stream = jetstream::new(client.clone()).get_or_create_stream(stream).await?;
    let consumer = stream.get_or_create_consumer(CONSUMER, workers).await?;
    Ok((stream, consumer))
}

/// The stream `name` and its consumer. What is there already stays as it is: the operator of the queue may have given it other settings.
async fn consumer(client: &Client, name: &str) -> Result<(Stream, PullConsumer), async_nats::Error> {
    let stream = stream::Config {
        name: name.to_owned(),
        subjects: vec![format!("{name}.jobs.*")],
        retention: RetentionPolicy::WorkQueue,
        // A job that waits is not put there twice.
        max_messages_per_subject: 1,
        discard: DiscardPolicy::New,
        discard_new_per_subject: true,
        ..stream::Config::default()
    };
    let (stream, consumer) = for_workers(client, stream).await?;
    match consumer.cached_info().config.ack_policy {
        AckPolicy::Explicit => Ok((stream, consumer)),
        _ => Err("its consumer `workers` has another ack policy than explicit: jobs would be lost".into()),
    }
}

/// Takes jobs, at most `places` at once, and waits for their ends when it is stopped.
async fn take(worker: Arc<Worker>, places: usize) {
    tokio::spawn(Arc::clone(&worker).show_length());
    let places = Arc::new(Semaphore::new(places));
    let mut stopping = worker.stopping.clone();
    let mut taken = JoinSet::new();
    loop {
        // A place first: what is taken without one is kept from other workers.
        let place = tokio::select! {
            _ = stopping.wait_for(|stop| *stop) => break,
            place = Arc::clone(&places).acquire_owned() => place,
        };
        let message = tokio::select! {
            _ = stopping.wait_for(|stop| *stop) => break,
            message = worker.next() => message,
        };
        match message {
            Ok(Some(message)) => {
                let worker = Arc::clone(&worker);
                taken.spawn(async move {
                    worker.handle(&message).await;
                    drop(place);
                });
            }
            Ok(None) => {}
            Err(error) => {
                warn!("the queue: {error}");
                time::sleep(PAUSE).await;
            }
        }
        while taken.try_join_next().is_some() {}
    }
    taken.join_all().await;
}

impl Worker {
    /// The next job; none if there was none for a while.
    async fn next(&self) -> Result<Option<Message>, async_nats::Error> {
        let mut messages = self.consumer.batch().max_messages(1).expires(ASKING).messages().await?;
        messages.next().await.transpose()
    }

    /// Tells Prometheus how many jobs are in the queue.
    async fn show_length(self: Arc<Self>) {
        let mut stopping = self.stopping.clone();
        while !*stopping.borrow() {
            match self.consumer.get_info().await {
                Ok(info) => {
                    self.server.metrics.set("pinhole_shared_queue_length", info.num_pending as f64);
                    self.server.metrics.set("pinhole_shared_queue_taken", info.num_ack_pending as f64);
                }
                Err(error) => warn!("the queue does not say how long it is: {error}"),
            }
            let _ = time::timeout(LOOKING, stopping.wait_for(|stop| *stop)).await;
        }
    }
}
