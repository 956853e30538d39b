//! From the start to the stop of a server.

use std::fs;
use std::io::{self, Write};
use std::process::{self, ExitCode};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pinhole::ggml::Device;
use pinhole::pipeline::MemoryOptions;
use pinhole::processors;
use tokio::net::TcpListener;
use tokio::runtime;
use tokio::sync::watch;
use tokio::time;
use tracing::{Level, error, info, warn};

use crate::catalogue::Catalogue;
use crate::http;
use crate::jobs::Jobs;
use crate::keys::Keys;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::options::Options;
use crate::planner::Planner;
use crate::server::Server;
use crate::shelf::Shelf;
use crate::store::Store;
use crate::worker;

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(250);

/// Threads that answer. The device has others.
const ANSWERING: usize = 2;

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
            // Whoever closed stderr does not want to hear it.
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
    let limits = options.limits();
    let catalogue = Catalogue { models: options.models.clone(), loras: options.loras.clone() };
    catalogue.check()?;
    let keys = keys(&options)?;
    let device = Device::by_name(&options.device).map_err(|error| Failure::of(&error))?;
    let threads = options.threads.map_or_else(processors::cores, |threads| threads as usize);
    let memory = memory(&options);
    let shelf = Arc::new(Shelf::new(catalogue, device, threads, memory));
    check_models(&shelf)?;
    // Before the address is taken: two servers of one state would be told so.
    let store = options.state.as_deref().map(Store::open).transpose()?;
    let listener = TcpListener::bind(options.listen).await.map_err(|error| {
        let hint = "--listen takes another address, or stop the server that has this one";
        Failure::new(format!("cannot listen on {}: {error}", options.listen), hint)
    })?;
    let address = listener.local_addr()?;

    let metrics = Arc::new(Metrics::default());
    let jobs = Arc::new(Jobs::new(limits.clone(), Arc::clone(&metrics), store));
    let idle = options.idle.map(Duration::from_secs);
    let planner = Planner::start(Arc::clone(&shelf), limits.planning, limits.pixels, idle)?;
    let worker = worker::start(Arc::clone(&jobs), Arc::clone(&metrics), Arc::clone(&shelf), idle)?;
    let parts = (Arc::clone(&jobs), Arc::clone(&metrics), shelf);
    let server = Arc::new(Server::new(limits.clone(), parts, planner, keys, options.hosts.clone()));

    let (stop, stopping) = watch::channel(false);
    let router = http::router(Arc::clone(&server), &options.origins);
    let serving = {
        let (limits, metrics) = (limits.clone(), Arc::clone(&metrics));
        tokio::spawn(async move { http::serve(listener, router, &limits, metrics, stopping).await })
    };
    info!(%address, device = server.shelf.device.name(), "listening on http://{address}");
    let resuming = Arc::clone(&server);
    tokio::spawn(async move {
        if let Err(fault) = resuming.resume().await {
            error!("{fault}");
        }
    });
    watch_signals_and_clock(&jobs).await?;
    finish(&jobs, worker, &limits).await;
    let _ = stop.send(true);
    let _ = serving.await;
    info!("stopped");
    Ok(())
}

fn memory(options: &Options) -> MemoryOptions {
    MemoryOptions { vram: options.vram.0, offload: options.offload, host: options.host_memory.0 }
}

fn keys(options: &Options) -> Result<Keys, Failure> {
    if let Some(path) = &options.api_keys {
        let named = |error: &dyn std::fmt::Display| format!("--api-keys {}: {error}", path.display());
        let text = fs::read_to_string(path).map_err(|error| named(&error))?;
        return Keys::read(&text).map_err(|error| named(&error).into());
    }
    if !options.listen.ip().is_loopback() && !options.without_keys {
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
            return Err(Failure { message: format!("--model {}: {fault}", entry.name), hint: fault.hint });
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
