//! `pinhole bench card`: one picture on a device, with what it took there, as a row of a table that grows in a file.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::Scope;
use std::time::{Duration, Instant};

use pinhole::ggml::{Buffer, CopyQueue, Device, Ledger, Staging};
use pinhole::memory::{PeakMemory, Peaks};
use pinhole::pipeline::{Event, Phase, Request};
use pinhole::plan::Offload;
use pinhole::{Error, file};
use serde::{Deserialize, Serialize};

use crate::cli::failure::Failure;
use crate::cli::printer::{Printer, Talk, Unit};
use crate::cli::request::{self, RequestArgs};
use crate::cli::table::Table;
use crate::cli::{interrupt, model, threads, units};

/// How often the driver is asked what is in use.
const SAMPLING: Duration = Duration::from_millis(20);

/// How many times the staging memory is copied to measure the link.
const COPIES: u32 = 16;

/// Draw one picture on a device, and measure what it took there
///
/// Prints a table of this and all earlier runs in --rows: the peak of the device's memory as planned, by the backend's own
/// account, and as the driver reports it (of everybody on the device, the process's context included); the most memory that the
/// process held on the host, and without what files back; seconds from the request to the picture, and of denoising; bytes moved a
/// second while denoising beside what the link does alone; and how much longer denoising took than without a budget, where --rows
/// has both.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub(in crate::cli) struct Args {
    /// A model, as `pinhole generate` takes it
    #[arg(short, long, value_name = "MODEL")]
    model: PathBuf,
    /// What the model is called in the table [default: the name of its file]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Append to this file, one JSON object a line, and print a table of all of them
    #[arg(long, value_name = "ROWS.jsonl")]
    rows: Option<PathBuf>,
    /// What to draw
    #[arg(short, long, value_name = "TEXT", default_value = "a small yellow star on a blue background")]
    prompt: String,
    #[command(flatten)]
    request: RequestArgs,
    #[command(flatten)]
    parts: model::PartArgs,
    #[command(flatten)]
    pub(super) talk: Talk,
}

const EXAMPLES: &str = "\
Examples:
  pinhole bench card -m dev-q4_k_s.gguf --device cuda0 --offload model --rows rows.jsonl
  pinhole bench card -m dev-q4_k_s.gguf --device cuda0 --offload sequential --vram 4G --rows rows.jsonl";

/// One run.
#[derive(Clone, Deserialize, Serialize)]
struct Row {
    version: String,
    name: String,
    device: String,
    description: String,
    offload: String,
    width: usize,
    height: usize,
    steps: usize,
    /// The budget, where there was one.
    vram_bytes: Option<usize>,
    planned_peak_bytes: usize,
    /// By the account of the backend's own allocators, or pinhole's where there is none.
    allocated_peak_bytes: usize,
    /// What the driver reports in use, by everybody, at most.
    driver_peak_bytes: usize,
    /// The process's resident pages on the host, and those that no file backs; 0 where the system does not say.
    #[serde(default)]
    host_peak_bytes: u64,
    #[serde(default)]
    host_anonymous_peak_bytes: u64,
    total_seconds: f64,
    denoise_seconds: f64,
    denoise_moved_bytes: u64,
    denoise_waited_seconds: f64,
    link_bytes_per_second: f64,
}

impl Row {
    fn moved_per_second(&self) -> f64 {
        self.denoise_moved_bytes as f64 / self.denoise_seconds
    }

    /// Whether all that a component needs stayed on the device while it computed.
    fn is_whole(&self) -> bool {
        self.vram_bytes.is_none() && self.offload != Offload::Sequential.name()
    }

    /// Whether `other` is the same, except for how memory was shared.
    fn matches(&self, other: &Row) -> bool {
        let of = |row: &Row| (row.name.clone(), row.device.clone(), row.width, row.height, row.steps);
        of(self) == of(other)
    }
}

pub(super) fn run(args: &Args, printer: &Printer) -> Result<(), Failure> {
    let row = measure(args, printer)?;
    let mut rows = Vec::new();
    if let Some(path) = &args.rows {
        append(path, &row)?;
        rows = read(path)?;
    }
    if printer.json() {
        return printer.object(&row);
    }
    if rows.is_empty() {
        rows.push(row);
    }
    printer.data(&table(&rows).to_string())
}

fn measure(args: &Args, printer: &Printer) -> Result<Row, Failure> {
    let (cancel, host) = (interrupt::cancel_flag(printer), PeakMemory::watch());
    let (threads, _inside) = threads::start(args.request.threads);
    let device = request::device(&args.request.device)?;
    let link = link_speed(device)?;
    let source = args.parts.open(Some(&args.model), "--model")?;
    let mut pipeline = args.request.pipeline(&source, &[device], threads, cancel.clone())?;
    let memory = args.request.memory();
    let request =
        Request { seed: args.request.given_seed().unwrap_or(0), ..args.request.request(Some(&args.prompt), printer)? };
    let (used, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    printer.begin("draw", 1, Unit::Parts);
    let (generated, total) = std::thread::scope(|scope| {
        sample(scope, device, &used, &done);
        let start = Instant::now();
        let generated = pipeline.generate_watched(&request, &mut |_: Event| cancel.check());
        let total = start.elapsed();
        done.store(true, Ordering::Relaxed);
        (generated, total)
    });
    let generated = generated?;
    printer.end("draw");
    let host = host.peaks().unwrap_or(Peaks { anonymous: 0, file: 0, total: 0 });
    let denoise = generated.phases.iter().find(|phase| phase.phase == Phase::Denoise);
    let allocated = generated.phases.iter().map(|phase| phase.allocated.unwrap_or(phase.measured.peak)).max();
    let stem = args.model.file_stem().unwrap_or(args.model.as_os_str());
    Ok(Row {
        version: env!("CARGO_PKG_VERSION").into(),
        name: args.name.clone().unwrap_or_else(|| stem.to_string_lossy().into_owned()),
        device: device.name(),
        description: device.description(),
        offload: memory.offload.name().into(),
        width: generated.settings.width,
        height: generated.settings.height,
        steps: generated.settings.steps,
        vram_bytes: memory.vram,
        planned_peak_bytes: generated.plan.peak(),
        allocated_peak_bytes: allocated.unwrap_or(0),
        driver_peak_bytes: used.into_inner(),
        host_peak_bytes: host.total,
        host_anonymous_peak_bytes: host.anonymous,
        total_seconds: total.as_secs_f64(),
        denoise_seconds: generated.time(Phase::Denoise).as_secs_f64(),
        denoise_moved_bytes: denoise.map_or(0, |phase| phase.moved),
        denoise_waited_seconds: denoise.map_or(0.0, |phase| phase.waited.as_secs_f64()),
        link_bytes_per_second: link,
    })
}

/// Asks the driver now and then, until `done`, what is in use on `device`.
fn sample<'scope>(
    scope: &'scope Scope<'scope, '_>,
    device: Device,
    used: &'scope AtomicUsize,
    done: &'scope AtomicBool,
) {
    // The CPU's memory is everybody's.
    if device.is_cpu() {
        return;
    }
    scope.spawn(move || {
        while !done.load(Ordering::Relaxed) {
            if let Ok((free, total)) = device.memory() {
                used.fetch_max(total.saturating_sub(free), Ordering::Relaxed);
            }
            std::thread::sleep(SAMPLING);
        }
    });
}

/// What the link to `device` does alone, in bytes a second: from pinned memory where the driver has that.
fn link_speed(device: Device) -> Result<f64, Error> {
    let ledger = Ledger::new();
    let buffer = Buffer::allocate(device, Staging::BYTES, &ledger, "staging")?;
    let pinned = CopyQueue::new(device)?.zip(Staging::new(device, Staging::BYTES)?);
    let bytes = vec![1; if pinned.is_some() { 0 } else { Staging::BYTES }];
    let copy = |times| {
        for _ in 0..times {
            match &pinned {
                Some((queue, staging)) => queue.copy(staging, 0, Staging::BYTES, &buffer, 0)?,
                None => buffer.write_at(0, &bytes)?,
            }
        }
        pinned.as_ref().map_or(Ok(()), |(queue, _)| queue.synchronize())
    };
    // The first one touches pages.
    copy(1)?;
    let start = Instant::now();
    copy(COPIES)?;
    let seconds = start.elapsed().as_secs_f64();
    let measured = f64::from(COPIES) * Staging::BYTES as f64 / seconds;
    Ok(device.link().map_or(measured, |held| measured.min(held.get() as f64)))
}

fn append(path: &Path, row: &Row) -> Result<(), Failure> {
    if file::is_there(path) {
        file::open(path)?;
    }
    let file = |error| Error::Io { action: "write", path: path.to_owned(), source: error };
    let mut to = OpenOptions::new().create(true).append(true).open(path).map_err(file)?;
    let line = serde_json::to_string(row).map_err(|error| file(error.into()))?;
    Ok(writeln!(to, "{line}").map_err(file)?)
}

fn read(path: &Path) -> Result<Vec<Row>, Failure> {
    let text = file::text(path)?;
    let rows =
        text.lines().map(|line| serde_json::from_str(line).map_err(|error| Error::io("read", path, error.into())));
    Ok(rows.collect::<Result<_, Error>>()?)
}

fn table(rows: &[Row]) -> Table<14> {
    let mut table = Table::new([
        "model",
        "device",
        "offload",
        ">budget",
        ">planned",
        ">allocated",
        ">driver",
        ">host",
        ">anonymous",
        ">total",
        ">denoise",
        ">moved",
        ">link",
        ">ratio",
    ]);
    for row in rows {
        let whole = rows.iter().rev().find(|other| other.is_whole() && other.matches(row));
        let ratio = whole.filter(|_| !row.is_whole()).map(|whole| row.denoise_seconds / whole.denoise_seconds);
        let bytes = |bytes: usize| if bytes == 0 { "-".into() } else { units::bytes(bytes as u64) };
        let speed = |speed: f64| if speed < 1.0 { "-".into() } else { format!("{}/s", units::bytes(speed as u64)) };
        table.row([
            units::shown(&row.name),
            row.device.clone(),
            row.offload.clone(),
            bytes(row.vram_bytes.unwrap_or(0)),
            bytes(row.planned_peak_bytes),
            bytes(row.allocated_peak_bytes),
            bytes(row.driver_peak_bytes),
            bytes(row.host_peak_bytes as usize),
            bytes(row.host_anonymous_peak_bytes as usize),
            format!("{:.2} s", row.total_seconds),
            format!("{:.2} s", row.denoise_seconds),
            speed(row.moved_per_second()),
            speed(row.link_bytes_per_second),
            ratio.map_or("-".into(), |ratio| format!("{ratio:.3}")),
        ]);
    }
    table
}
