//! `--queue`: many machines on one queue of NATS, and results in a folder or on S3.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use async_nats::Client;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::{self, Context, stream};
use futures_util::StreamExt;
use pinhole_serve::job::Status;
use pinhole_serve::results::Ending;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use uuid::Uuid;

use crate::rig::{PATIENCE, Served, command, pixels, quick, slow};
use crate::s3::S3;

/// A NATS server with its own folder and port.
struct Nats {
    child: Child,
    port: u16,
    runtime: Runtime,
    client: Option<Client>,
    folder: tempfile::TempDir,
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Nats {
    /// None where there is no `nats-server`, unless this machine is one that must have it.
    fn start() -> Option<Nats> {
        if Command::new("nats-server").arg("--version").stdout(Stdio::null()).status().is_err() {
            assert_ne!(std::env::var("PINHOLE_NATS").as_deref(), Ok("required"), "there is no nats-server");
            eprintln!("left out: there is no nats-server (Debian has it in the package of that name)");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        // A port that was free a moment ago.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = server(port, folder.path());
        let runtime = Runtime::new().unwrap();
        let mut nats = Nats { child, port, runtime, client: None, folder };
        nats.client = Some(nats.connect());
        Some(nats)
    }

    fn address(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    fn connect(&self) -> Client {
        let begun = Instant::now();
        loop {
            match self.runtime.block_on(async_nats::connect(self.address())) {
                Ok(client) => return client,
                Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn client(&self) -> &Client {
        self.client.as_ref().unwrap()
    }

    fn jetstream(&self) -> Context {
        jetstream::new(self.client().clone())
    }

    /// A queue as an operator makes it, which is patient for two seconds alone.
    fn impatient_queue(&self) {
        self.runtime.block_on(async {
            let queue = stream::Config {
                name: "pinhole".into(),
                subjects: vec!["pinhole.jobs.*".into()],
                retention: stream::RetentionPolicy::WorkQueue,
                ..stream::Config::default()
            };
            let workers = pull::Config {
                durable_name: Some("workers".into()),
                ack_policy: AckPolicy::Explicit,
                ack_wait: Duration::from_secs(2),
                ..pull::Config::default()
            };
            let stream = self.jetstream().create_stream(queue).await.unwrap();
            let _: PullConsumer = stream.create_consumer(workers).await.unwrap();
        });
    }

    /// Puts a job into the queue, and returns its id.
    fn submit(&self, body: &[u8]) -> Uuid {
        let id = Uuid::new_v4();
        self.submit_as(&id.to_string(), body);
        id
    }

    fn submit_as(&self, id: &str, body: &[u8]) {
        self.runtime.block_on(async {
            let subject = format!("pinhole.jobs.{id}");
            let sent = self.jetstream().publish(subject, body.to_vec().into()).await.unwrap();
            sent.await.unwrap();
        });
    }

    fn cancel(&self, id: Uuid) {
        self.runtime.block_on(async {
            let sent = self.jetstream().publish(format!("pinhole.cancels.{id}"), Vec::new().into()).await.unwrap();
            sent.await.unwrap();
        });
    }

    /// Jobs that the queue still has: those that wait, and those that somebody has.
    fn left(&self) -> u64 {
        self.messages("pinhole")
    }

    fn messages(&self, stream: &str) -> u64 {
        self.runtime.block_on(async { self.jetstream().get_stream(stream).await.unwrap().cached_info().state.messages })
    }

    #[track_caller]
    fn until_no_cancel_waits(&self) {
        let begun = Instant::now();
        while self.messages("pinhole-cancels") > 0 {
            assert!(begun.elapsed() < PATIENCE, "a cancel is left");
            thread::sleep(Duration::from_millis(50));
        }
    }

    #[track_caller]
    fn until_empty(&self) {
        let begun = Instant::now();
        while self.left() > 0 {
            assert!(begun.elapsed() < PATIENCE, "{} jobs are left", self.left());
            thread::sleep(Duration::from_millis(50));
        }
    }
}

fn server(port: u16, folder: &Path) -> Child {
    let mut command = Command::new("nats-server");
    command.args(["--jetstream", "--addr", "127.0.0.1", "--port", &port.to_string(), "--store_dir"]).arg(folder);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// A worker of `nats` whose results go to `results`.
fn worker(nats: &Nats, results: &str, more: &[&str]) -> Served {
    Served::start(&[&["--queue", &nats.address(), "--results", results][..], more].concat())
}

/// A folder for results, and its address.
fn folder() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let address = format!("file://{}", folder.path().display());
    (folder, address)
}

fn ending(folder: &Path, id: Uuid) -> Ending {
    let json = std::fs::read(folder.join(format!("{id}/result.json"))).unwrap();
    serde_json::from_slice(&json).unwrap()
}

fn drawn(served: &Served, outcome: &str) -> f64 {
    served.metric(&format!("pinhole_deliveries_total{{outcome=\"{outcome}\"}}"))
}

fn bytes(drawing: &Value) -> Vec<u8> {
    drawing.to_string().into_bytes()
}

#[test]
fn a_worker_that_is_killed_leaves_its_jobs_to_the_other_and_all_end_once() {
    let Some(nats) = Nats::start() else { return };
    nats.impatient_queue();
    let (folder, results) = folder();
    let mut ends = nats.runtime.block_on(nats.client().subscribe("pinhole.results.*")).unwrap();
    let [first, second] = [0, 1].map(|_| worker(&nats, &results, &["--coalesce", "1"]));
    let drawing = json!({ "prompt": "a red heart", "width": 128, "height": 128, "steps": 30 });
    let ids: Vec<Uuid> = (0..10).map(|_| nats.submit(&bytes(&drawing))).collect();
    first.until(|first| drawn(first, "done") >= 1.0 && first.metric("pinhole_jobs_running") == 1.0);
    first.signal("KILL");
    assert_eq!(first.wait(), None);
    nats.until_empty();
    let mut again = 0;
    for id in &ids {
        let ending = ending(folder.path(), *id);
        assert_eq!(ending.status, Status::Done, "{ending:?}");
        // The worker that drew it took the seed of the job.
        assert_eq!(ending.drawing.unwrap().seed, Some(id.as_u64_pair().0 >> 32));
        pixels(&std::fs::read(folder.path().join(format!("{id}/0.png"))).unwrap());
        again += u32::from(ending.deliveries > 1);
    }
    // The one that was drawn, and the one that waited behind it.
    assert!((1..=2).contains(&again), "{again} were delivered again");
    assert_eq!(drawn(&second, "failed"), 0.0);
    // Each end was told; one twice, if its worker died between that and the acknowledgement.
    let mut told = Vec::new();
    let patience = Duration::from_millis(500);
    while let Ok(Some(message)) = nats.runtime.block_on(async { tokio::time::timeout(patience, ends.next()).await }) {
        told.push(serde_json::from_slice::<Ending>(&message.payload).unwrap().id);
    }
    told.sort();
    told.dedup();
    let mut expected = ids.clone();
    expected.sort();
    assert_eq!(told, expected);
    // One that is put there again is not drawn again.
    let before = second.metric("pinhole_runs_total");
    nats.submit_as(&ids[0].to_string(), &bytes(&drawing));
    nats.until_empty();
    assert_eq!(second.metric("pinhole_runs_total"), before);
}

#[test]
fn what_fails_for_good_ends_with_the_reason_and_numbers() {
    let Some(nats) = Nats::start() else { return };
    let (folder, results) = folder();
    let worker = worker(&nats, &results, &["--device", "cpu:discrete", "--vram", "6M", "--max-body", "1K"]);
    let large = json!({ "prompt": "a star", "width": 1024, "height": 1024, "batch": 8 });
    let cases = [
        (bytes(&large), "over_budget"),
        (bytes(&json!({ "prompt": "a star", "model": "other" })), "not_found"),
        (bytes(&json!({ "prompt": "a star", "width": 65 })), "invalid_request_error"),
        (bytes(&json!({ "prompt": "a star", "unknown": 1 })), "invalid_request_error"),
        (b"{".to_vec(), "invalid_request_error"),
        (b"[".repeat(1000), "invalid_request_error"),
        (vec![b' '; 2000], "body_too_large"),
        (bytes(&json!({ "prompt": "a star", "deadline": 1e-9 })), "deadline"),
    ];
    let ids: Vec<Uuid> = cases.iter().map(|(body, _)| nats.submit(body)).collect();
    // Of this one no one could find the end.
    nats.submit_as("not-an-id", b"{}");
    nats.until_empty();
    for (id, (_, kind)) in ids.iter().zip(&cases) {
        let ending = ending(folder.path(), *id);
        let fault = ending.error.unwrap();
        assert_eq!((ending.status, fault.kind.as_str()), (Status::Failed, *kind), "{}", fault.message);
        assert!(ending.images.is_empty());
    }
    let refused = ending(folder.path(), ids[0]).error.unwrap();
    assert!(refused.given_bytes == Some(6 << 20) && refused.needed_bytes > Some(6 << 20), "{refused:?}");
    assert!(ending(folder.path(), ids[1]).error.unwrap().hint.as_deref() == Some("there are: mini"));
    assert_eq!((drawn(&worker, "failed"), drawn(&worker, "done")), (9.0, 0.0));
    // Here jobs come from the queue alone.
    assert_eq!(worker.post("/v1/jobs", &quick(1)).status, 404);
    assert_eq!(worker.get("/").status, 404);
    assert_eq!(worker.get("/health").status, 200);
}

#[test]
fn a_worker_that_stops_gives_its_jobs_back() {
    let Some(nats) = Nats::start() else { return };
    let (folder, results) = folder();
    let worker_of = |grace: &str| worker(&nats, &results, &["--grace", grace]);
    let stopped = worker_of("0");
    let (long, waiting) = (nats.submit(&bytes(&slow(1))), nats.submit(&bytes(&quick(2))));
    stopped
        .until(|served| served.metric("pinhole_jobs_running") == 1.0 && served.metric("pinhole_queue_length") == 1.0);
    assert_eq!(stopped.metric("pinhole_shared_queue_length"), 0.0);
    stopped.signal("TERM");
    let begun = Instant::now();
    assert_eq!(stopped.wait(), Some(0));
    assert_eq!(nats.left(), 2);
    // The next has them long before the queue would have lost its patience, which is 30 s.
    let next = worker_of("120");
    next.until(|served| served.metric("pinhole_jobs_running") == 1.0);
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    // And ends what it draws when it is stopped.
    next.signal("TERM");
    assert_eq!(next.wait(), Some(0));
    let last = worker_of("0");
    nats.until_empty();
    drop(last);
    for id in [long, waiting] {
        assert_eq!(ending(folder.path(), id).status, Status::Done);
    }
}

#[test]
fn a_queue_that_is_gone_for_a_while_loses_nothing() {
    let Some(mut nats) = Nats::start() else { return };
    let (folder, results) = folder();
    let worker = worker(&nats, &results, &[]);
    let first = nats.submit(&bytes(&quick(1)));
    nats.until_empty();
    let during = nats.submit(&bytes(&slow(2)));
    worker.until(|served| served.metric("pinhole_jobs_running") == 1.0);
    nats.child.kill().unwrap();
    nats.child.wait().unwrap();
    // The job goes on meanwhile.
    thread::sleep(Duration::from_millis(500));
    nats.child = server(nats.port, nats.folder.path());
    nats.client = Some(nats.connect());
    let after = nats.submit(&bytes(&quick(3)));
    nats.until_empty();
    for id in [first, during, after] {
        assert_eq!(ending(folder.path(), id).status, Status::Done);
    }
}

#[test]
fn models_come_from_s3_and_results_go_there() {
    let Some(nats) = Nats::start() else { return };
    let (s3, cache) = (S3::start(), tempfile::tempdir().unwrap());
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/mini/mini.gguf");
    let model = std::fs::read(model).unwrap();
    s3.put("files/models/small.gguf", model.clone());
    // What a killed process left of it.
    let start = || {
        let mut command = command(&["-m", "s3://files/models/small.gguf", "--cache"]);
        command.arg(cache.path()).args(["--queue", &nats.address(), "--results", "s3://files/of queue"]);
        s3.tell(&mut command);
        Served::of(&mut command)
    };
    let worker = start();
    assert_eq!(s3.count("GET files/models/small.gguf"), model.len().div_ceil(16 << 20).max(1));
    // The service is busy for a moment.
    s3.refuse(3);
    let id = nats.submit(&bytes(&quick(7)));
    nats.until_empty();
    let json: Value = serde_json::from_slice(&s3.get(&format!("files/of queue/{id}/result.json")).unwrap()).unwrap();
    assert_eq!((json["status"].as_str(), json["drawing"]["model"].as_str()), (Some("done"), Some("small")));
    let picture = s3.get(&format!("files/of queue/{id}/0.png")).unwrap();
    assert_eq!(pixels(&picture).width(), 64);
    drop(worker);
    // The next start finds the model here, and fetches it anew when it is another.
    let fetched = s3.count("GET files/models/small.gguf");
    drop(start());
    assert_eq!(s3.count("GET files/models/small.gguf"), fetched);
    s3.put("files/models/small.gguf", model);
    drop(start());
    assert!(s3.count("GET files/models/small.gguf") > fetched);
}

#[test]
fn a_folder_comes_from_s3_whole() {
    let (s3, around) = (S3::start(), tempfile::tempdir().unwrap());
    let cache = around.path().join("cache");
    std::fs::create_dir(&cache).unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/mini/mini.gguf");
    let model = std::fs::read(model).unwrap();
    let files = [("mini.gguf", model), ("README.md", b"small".to_vec()), ("notes/one/empty.txt", Vec::new())];
    for (name, content) in &files {
        s3.put(&format!("files/models/mini/{name}"), content.clone());
    }
    // Not of the model: what stands for a folder, what is hidden, and what lies beside.
    for name in ["mini/", "mini/notes/", "mini/.gitattributes", "mini-2/other.gguf"] {
        s3.put(&format!("files/models/{name}"), Vec::new());
    }
    let start = || {
        let mut command = command(&["-m", "s3://files/models/mini/", "--cache"]);
        command.arg(&cache);
        s3.tell(&mut command);
        command
    };
    let served = Served::of(&mut start());
    let id = served.submit(&quick(7));
    assert_eq!(served.end_of(&id)["drawing"]["model"], "mini");
    drop(served);
    let folders = || -> Vec<_> { std::fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path()).collect() };
    let [folder] = <[_; 1]>::try_from(folders()).unwrap();
    for (name, content) in &files {
        assert!(std::fs::read(folder.join(name)).unwrap() == *content, "{name}");
    }
    assert!(!folder.join(".gitattributes").exists());
    // Nothing is fetched again, until an object is another one.
    let fetched = || s3.count("GET files/models/mini/README.md");
    drop(Served::of(&mut start()));
    assert_eq!(fetched(), 1);
    s3.put("files/models/mini/README.md", b"another".to_vec());
    drop(Served::of(&mut start()));
    assert_eq!((fetched(), folders().len()), (2, 2));
    // A name that leaves the folder is refused, whatever the service is.
    s3.put("files/models/mini/../../x", Vec::new());
    let output = start().output().unwrap();
    assert!(!output.status.success() && !around.path().join("x").exists());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("s3://files/models/mini/"), "{stderr}");
}

#[test]
fn a_start_without_its_queue_or_bucket_says_so() {
    let s3 = S3::start();
    let (_folder, results) = folder();
    let unused = "nats://127.0.0.1:9";
    for (arguments, said) in [
        (&["-m", "mini", "--queue", unused, "--results", &results][..], "--queue nats://127.0.0.1:9"),
        (&["-m", "mini", "--queue", unused, "--results", "s3://none/such"], "--results s3://none/such"),
        (&["-m", "s3://files/none.gguf"], "s3://files/none.gguf"),
        (&["-m", "s3://files/none/"], "s3://files/none/: expected a folder of objects, found none"),
        (&["-m", "mini", "--queue", unused], "--results"),
    ] {
        let mut command = command(arguments);
        s3.tell(&mut command);
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains(said), "{arguments:?}: {stderr}");
    }
}

#[test]
fn a_job_is_cancelled_wherever_it_is() {
    let Some(nats) = Nats::start() else { return };
    let (folder, results) = folder();
    let mut ends = nats.runtime.block_on(nats.client().subscribe("pinhole.results.*")).unwrap();
    let workers = [0, 1].map(|_| worker(&nats, &results, &["--queue-ahead", "0"]));
    let are_drawing = |count: f64| workers.iter().map(|it| it.metric("pinhole_jobs_running")).sum::<f64>() == count;
    let drawn = [1, 2].map(|seed| nats.submit(&bytes(&slow(seed))));
    workers[0].until(|_| are_drawing(2.0));
    // One that waits ends at once, while the others go on.
    let waiting = nats.submit(&bytes(&quick(3)));
    nats.cancel(waiting);
    workers[0].until(|_| nats.left() == 2);
    let ended = ending(folder.path(), waiting);
    assert_eq!(
        (ended.status, ended.deliveries, ended.error.unwrap().kind.as_str()),
        (Status::Cancelled, 0, "cancelled")
    );
    assert_eq!(ended.drawing.unwrap().seed, Some(3));
    assert!(are_drawing(2.0));
    // Those that are drawn stop, each on its own machine.
    for id in drawn {
        nats.cancel(id);
    }
    let begun = Instant::now();
    nats.until_empty();
    workers[0].until(|_| are_drawing(0.0));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    for id in drawn {
        let ended = ending(folder.path(), id);
        assert!(ended.status == Status::Cancelled && ended.images.is_empty(), "{ended:?}");
    }
    // The workers go on; one that has ended stays as it is, and of one that never was there is no end.
    let done = nats.submit(&bytes(&quick(4)));
    nats.until_empty();
    let never = Uuid::new_v4();
    nats.cancel(done);
    nats.cancel(never);
    nats.until_no_cancel_waits();
    assert_eq!(ending(folder.path(), done).status, Status::Done);
    assert!(!folder.path().join(never.to_string()).exists());
    assert_eq!(workers.iter().map(|it| it.metric("pinhole_runs_total")).sum::<f64>(), 1.0);
    // All were told.
    let mut told = std::collections::HashSet::new();
    let patience = Duration::from_millis(500);
    while let Ok(Some(message)) = nats.runtime.block_on(async { tokio::time::timeout(patience, ends.next()).await }) {
        told.insert(serde_json::from_slice::<Ending>(&message.payload).unwrap().id);
    }
    assert_eq!(told, [drawn[0], drawn[1], waiting, done].into());
}

#[test]
fn a_cancel_waits_for_a_worker() {
    let Some(nats) = Nats::start() else { return };
    let (folder, results) = folder();
    // Makes the queues, and is gone.
    drop(worker(&nats, &results, &[]));
    let (cancelled, other) = (nats.submit(&bytes(&slow(1))), nats.submit(&bytes(&quick(2))));
    nats.cancel(cancelled);
    let begun = Instant::now();
    let _worker = worker(&nats, &results, &[]);
    nats.until_empty();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(ending(folder.path(), cancelled).status, Status::Cancelled);
    assert_eq!(ending(folder.path(), other).status, Status::Done);
}
