//! From the start to the stop of a server.

use std::fs;
use std::io::{self, Write};
use std::process::{self, ExitCode};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::Router;
use pinhole::ggml::Device;
use pinhole::pipeline::MemoryOptions;
use pinhole::processors;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::runtime;
use tokio::sync::watch;
use tokio::time;
use tracing::{Level, error, info, warn};

use crate::catalogue::Catalogue;
#[cfg(feature = "cluster")]
use crate::fetched;
#[cfg(feature = "cluster")]
use crate::fleet::Fleet;
use crate::http;
use crate::jobs::Jobs;
use crate::keys::Keys;
use crate::limits::Limits;
use crate::metrics::Metrics;
#[cfg(feature = "cluster")]
use crate::options::Cluster;
use crate::options::{Budgets, Options};
use crate::planner::Planner;
#[cfg(feature = "cluster")]
use crate::results::Results;
use crate::server::Server;
use crate::shelf::{Devices, Shelf};
use crate::spool::Spool;
use crate::store::Store;
use crate::worker;

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(250);

/// Threads that answer. The device has others.
const ANSWERING: usize = 2;

/// Room for pictures that are not kept, and that somebody is still about to be given.
const HANDED_OUT: usize = 64 << 20;

/// Files that are no connections: models, the database, the log, connections that are turned away.
const OTHER_FILES: u64 = 256;

/// A text and what to do about it.
struct Failure {
    message: String,
    hint: Option<String>,
}

impl<E: std::fmt::Display> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure { message: error.to_string(), hint: None }
    }
}

impl Failure {
    fn new(message: impl Into<String>, hint: impl Into<String>) -> Failure {
        Failure { message: message.into(), hint: Some(hint.into()) }
    }

    fn of(error: &pinhole::Error) -> Failure {
        Failure { message: error.to_string(), hint: error.hint().map(str::to_owned) }
    }
}

/// Runs a server until it is told to stop.
pub fn main(options: Options) -> ExitCode {
    // Before there are threads.
    pinhole::ggml::share_heap();
    start_log(&options);
    let runtime = runtime::Builder::new_multi_thread().worker_threads(ANSWERING).enable_all().build();
    let run = match runtime {
        Ok(runtime) => runtime.block_on(run(options)),
        Err(error) => Err(error.into()),
    };
    match run {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { message, hint }) => {
            let hint = hint.map(|hint| format!("hint: {hint}\n")).unwrap_or_default();
            // If stderr is closed, no one wants to hear it.
            let _ = write!(io::stderr(), "error: {message}\n{hint}");
            ExitCode::FAILURE
        }
    }
}

fn start_log(options: &Options) {
    let level = options.log_level.parse().unwrap_or(Level::INFO);
    let log = tracing_subscriber::fmt().with_writer(io::stderr).with_max_level(level).with_target(false);
    // A second log in one process is one too many, and the first goes on.
    let _ = match options.log.as_str() {
        "json" => tracing::subscriber::set_global_default(log.json().flatten_event(true).finish()),
        _ => tracing::subscriber::set_global_default(log.with_ansi(false).finish()),
    };
}

async fn run(options: Options) -> Result<(), Failure> {
    #[cfg(feature = "cluster")]
    let options = fetch(options).await?;
    let mut limits = options.limits();
    limits.connections = connections(limits.connections);
    let catalogue = Catalogue { models: options.models.clone(), loras: options.loras.clone() };
    catalogue.check()?;
    let keys = keys(&options)?;
    let devices = devices(&options.device).map_err(|error| Failure::of(&error))?;
    let threads = options.threads.map_or_else(processors::cores, |threads| threads as usize);
    let memory = memory(&options);
    let devices = Devices { all: devices, budgets: budgets(&options.vram), among: options.devices_by };
    let shelf = Arc::new(Shelf::new(catalogue, devices, threads, memory));
    shelf.check_devices().map_err(|error| Failure::of(&error))?;
    check_models(&shelf)?;
    // Before the address is taken: two servers of one state would be told so.
    let store = options.state.as_deref().map(Store::open).transpose()?;
    let listener = TcpListener::bind(options.listen).await.map_err(|error| {
        let hint = "--listen takes another address, or stop the server that has this one";
        Failure::new(format!("cannot listen on {}: {error}", options.listen), hint)
    })?;
    let address = listener.local_addr()?;

    let metrics = Arc::new(Metrics::default());
    let spool = if store.is_none() { spool(limits.kept_bytes) } else { None };
    let jobs = Arc::new(Jobs::new(limits.clone(), Arc::clone(&metrics), store, spool));
    let idle = options.idle.map(Duration::from_secs);
    let planner = Planner::start(Arc::clone(&shelf), limits.planning, limits.pixels, idle)?;
    let worker = worker::start(Arc::clone(&jobs), Arc::clone(&metrics), Arc::clone(&shelf), idle)?;
    let parts = (Arc::clone(&jobs), Arc::clone(&metrics), shelf);
    let server = Arc::new(Server::new(limits.clone(), parts, planner, keys, options.hosts.clone()));

    let (stop, stopping) = watch::channel(false);
    let router = router(&options, &server);
    #[cfg(feature = "cluster")]
    let fleet = fleet(&options, &server).await?;
    let serving = {
        let (limits, metrics) = (limits.clone(), Arc::clone(&metrics));
        tokio::spawn(async move { http::serve(listener, router, &limits, metrics, stopping).await })
    };
    info!(%address, device = server.shelf.device_names(), "listening on http://{address}");
    let resuming = Arc::clone(&server);
    tokio::spawn(async move {
        if let Err(fault) = resuming.resume().await {
            error!("{fault}");
        }
    });
    watch_signals_and_clock(&jobs).await?;
    #[cfg(feature = "cluster")]
    fleet.iter().for_each(Fleet::stop);
    finish(&jobs, worker, &limits).await;
    #[cfg(feature = "cluster")]
    if let Some(fleet) = fleet {
        fleet.finish().await;
    }
    let _ = stop.send(true);
    let _ = serving.await;
    info!("stopped");
    Ok(())
}

/// Where pictures lie that are kept.
fn spool(kept_bytes: usize) -> Option<Spool> {
    let made = Spool::new(kept_bytes.saturating_add(HANDED_OUT));
    made.inspect_err(|error| warn!("pictures stay in memory: no temporary file: {error}")).ok()
}

/// As many of the connections that are `wanted` as this process may have open beside other files. Its limit is raised as far as it may be.
fn connections(wanted: usize) -> usize {
    let files = (wanted as u64).saturating_add(OTHER_FILES);
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some_and(|current| current < files) {
        let current = Some(maximum.map_or(files, |most| files.min(most)));
        // What is not granted is looked at below.
        let _ = setrlimit(Resource::Nofile, Rlimit { current, maximum });
    }
    let Some(granted) = getrlimit(Resource::Nofile).current.filter(|granted| *granted < files) else { return wanted };
    let room = usize::try_from(granted.saturating_sub(OTHER_FILES).max(1)).unwrap_or(wanted);
    warn!("--max-connections is {room} instead of {wanted}: this process may have {granted} files open (`ulimit -n`)");
    room
}

/// Models and LoRAs of S3 are fetched before anything else is begun. The options name their files then.
#[cfg(feature = "cluster")]
async fn fetch(mut options: Options) -> Result<Options, Failure> {
    let cache = options.cluster.cache.clone().unwrap_or_else(fetched::folder);
    fetched::bring(&mut options.models, &cache).await.map_err(|error| format!("--model {error}"))?;
    fetched::bring(&mut options.loras, &cache).await.map_err(|error| format!("--lora {error}"))?;
    Ok(options)
}

/// Takes jobs from the queue that `options` name, if they do.
#[cfg(feature = "cluster")]
async fn fleet(options: &Options, server: &Arc<Server>) -> Result<Option<Fleet>, Failure> {
    let Cluster { queue, queue_credentials, queue_ahead, results, .. } = &options.cluster;
    let (Some(queue), Some(results)) = (queue, results) else { return Ok(None) };
    let results = Results::open(results).await.map_err(|error| format!("--results {error}"))?;
    let server = Arc::clone(server);
    Ok(Some(Fleet::start(queue, queue_credentials.as_deref(), results, *queue_ahead, server).await?))
}

fn router(options: &Options, server: &Arc<Server>) -> Router {
    #[cfg(feature = "cluster")]
    if options.is_worker() {
        return http::router_of_worker(Arc::clone(server));
    }
    http::router(Arc::clone(server), &options.origins)
}

fn memory(options: &Options) -> MemoryOptions {
    let vram = match &options.vram.0[..] {
        [one] => one.0,
        _ => None,
    };
    MemoryOptions { vram, offload: options.offload, host: options.host_memory.0 }
}

/// The budget of each device, if each was given its own.
fn budgets(vram: &Budgets) -> Vec<Option<usize>> {
    let each = vram.0.iter().filter(|_| vram.0.len() > 1);
    each.map(|budget| budget.0).collect()
}

/// The devices of these `names`, with commas between them.
fn devices(names: &str) -> pinhole::Result<Vec<Device>> {
    names.split(',').map(|name| Device::by_name(name.trim())).collect()
}

fn keys(options: &Options) -> Result<Keys, Failure> {
    if let Some(path) = &options.api_keys {
        let named = |error: &dyn std::fmt::Display| format!("--api-keys {}: {error}", path.display());
        let text = fs::read_to_string(path).map_err(|error| named(&error))?;
        return Keys::read(&text).map_err(|error| named(&error).into());
    }
    // A worker takes no jobs there.
    if !options.listen.ip().is_loopback() && !options.without_keys && !options.is_worker() {
        let message = format!("{} can be reached by others, and there are no API keys", options.listen);
        return Err(Failure::new(message, "give --api-keys FILE, or --without-keys if everybody may draw"));
    }
    Ok(Keys::default())
}

/// What cannot be opened now is said now. Nothing stays open.
fn check_models(shelf: &Shelf) -> Result<(), Failure> {
    for entry in &shelf.catalogue.models {
        let key = crate::catalogue::ModelKey { model: entry.name.clone(), loras: Vec::new() };
        if let Err(fault) = shelf.open(&key) {
            return Err(Failure { message: format!("--model {}: {fault}", entry.name), hint: fault.hint.clone() });
        }
    }
    for entry in &shelf.catalogue.loras {
        if let Err(error) = pinhole::bind::lora::Lora::open(&entry.path) {
            return Err(Failure::of(&error));
        }
    }
    Ok(())
}

/// What asks the process to stop: the system or a supervisor, and a user.
#[cfg(unix)]
fn stops() -> io::Result<(tokio::signal::unix::Signal, tokio::signal::unix::Signal)> {
    use tokio::signal::unix::{SignalKind, signal};
    Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
}

/// What asks the process to stop: Ctrl-Break, which a program may send to another alone, and Ctrl-C.
#[cfg(windows)]
fn stops() -> io::Result<(tokio::signal::windows::CtrlBreak, tokio::signal::windows::CtrlC)> {
    Ok((tokio::signal::windows::ctrl_break()?, tokio::signal::windows::ctrl_c()?))
}

/// Looks at deadlines until a signal says to stop.
async fn watch_signals_and_clock(jobs: &Arc<Jobs>) -> Result<(), Failure> {
    let (mut term, mut int) = stops()?;
    let mut tick = time::interval(TICK);
    tick.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {
                let jobs = Arc::clone(jobs);
                // The store may write.
                let _ = tokio::task::spawn_blocking(move || jobs.look_at_the_clock()).await;
            }
            _ = term.recv() => break,
            _ = int.recv() => break,
        }
    }
    // A second signal ends the process at once. What is in the store is safe.
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        process::exit(130);
    });
    Ok(())
}

/// What is drawn goes on for a while, and is stopped then. What waits is handed back at once.
async fn finish(jobs: &Arc<Jobs>, worker: JoinHandle<()>, limits: &Limits) {
    info!("stopping");
    let handing = Arc::clone(jobs);
    let _ = tokio::task::spawn_blocking(move || handing.begin_to_stop()).await;
    let begun = Instant::now();
    while !worker.is_finished() && begun.elapsed() < limits.grace {
        time::sleep(Duration::from_millis(20)).await;
    }
    if !worker.is_finished() {
        warn!("what is drawn takes longer than --grace: it is stopped");
        jobs.stop_running();
    }
    if tokio::task::spawn_blocking(move || worker.join()).await.is_err() {
        error!("the device's thread ended badly");
    }
}
