//! `pinhole bench steady`: whether picture after picture in one process takes the same time and memory.

use std::path::PathBuf;
use std::time::Instant;

use pinhole::memory;
use pinhole::pipeline::{Event, Request};
use serde::Serialize;

use crate::cli::failure::Failure;
use crate::cli::printer::{Printer, Talk, Unit};
use crate::cli::request::{self, RequestArgs};
use crate::cli::table::Table;
use crate::cli::{interrupt, model, threads, units};

/// Measure whether picture after picture in one process takes the same time and memory
///
/// Draws the same request again and again, and compares the first with the last: the medians of their times, and of the memory
/// that the process held after each.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub(in crate::cli) struct Args {
    /// A model, as `pinhole generate` takes it
    #[arg(short, long, value_name = "MODEL")]
    model: PathBuf,
    /// What to draw
    #[arg(short, long, value_name = "TEXT", default_value = "a small yellow star on a blue background")]
    prompt: String,
    /// How many times
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u16).range(2..))]
    runs: u16,
    /// How many of the first and of the last are compared
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    ends: u16,
    #[command(flatten)]
    request: RequestArgs,
    #[command(flatten)]
    parts: model::PartArgs,
    #[command(flatten)]
    pub(super) talk: Talk,
}

const EXAMPLES: &str = "\
Examples:
  pinhole bench steady -m mini
  pinhole bench steady -m mini --device cpu:discrete --offload sequential --runs 20 --json";

#[derive(Serialize)]
struct Report {
    version: &'static str,
    device: String,
    threads: usize,
    runs: usize,
    ends: usize,
    first: End,
    last: End,
    /// Last over first.
    time_ratio: f64,
    /// `None` where the system does not say what the process holds.
    memory_ratio: Option<f64>,
    seconds: Vec<f64>,
}

/// Medians over some pictures.
#[derive(Clone, Copy, Serialize)]
struct End {
    seconds: f64,
    resident_bytes: Option<u64>,
}

pub(super) fn run(args: &Args, printer: &Printer) -> Result<(), Failure> {
    let cancel = interrupt::cancel_flag(printer);
    let (threads, _inside) = threads::start(args.request.threads);
    let device = request::device(&args.request.device)?;
    let source = args.parts.open(Some(&args.model), "--model")?;
    let mut pipeline = args.request.pipeline(&source, &[device], threads, cancel.clone())?;
    // Every picture does all the work.
    pipeline.set_remembered_bytes(0);
    let request =
        Request { seed: args.request.given_seed().unwrap_or(0), ..args.request.request(Some(&args.prompt), printer)? };

    let runs = usize::from(args.runs);
    let (mut seconds, mut resident) = (Vec::with_capacity(runs), Vec::with_capacity(runs));
    printer.begin("draw", runs as u64, Unit::Parts);
    for _ in 0..runs {
        let start = Instant::now();
        pipeline.generate_watched(&request, &mut |_: Event| cancel.check())?;
        seconds.push(start.elapsed().as_secs_f64());
        resident.extend(memory::resident().map(|resident| resident.total));
        printer.advance();
    }
    printer.end("draw");
    let ends = usize::from(args.ends).min(runs);
    let end = |from: usize| End {
        seconds: median(&seconds[from..from + ends]).unwrap_or_default(),
        resident_bytes: resident.get(from..from + ends).and_then(median),
    };
    let (first, last) = (end(0), end(runs - ends));
    let memory_ratio = last.resident_bytes.zip(first.resident_bytes).map(|(last, first)| last as f64 / first as f64);
    let time_ratio = last.seconds / first.seconds;
    if printer.json() {
        let (version, device) = (env!("CARGO_PKG_VERSION"), device.name());
        let report = Report { version, device, threads, runs, ends, first, last, time_ratio, memory_ratio, seconds };
        return printer.object(&report);
    }
    let mut table = Table::new(["pictures", ">time", ">resident"]);
    for (name, end) in [(format!("1 to {ends}"), first), (format!("{} to {runs}", runs - ends + 1), last)] {
        table.row([name, format!("{:.3} s", end.seconds), end.resident_bytes.map_or("-".into(), units::bytes)]);
    }
    table.row([
        "last / first".into(),
        format!("{time_ratio:.3}"),
        memory_ratio.map_or("-".into(), |r| format!("{r:.3}")),
    ]);
    printer.data(&table.to_string())
}

fn median<T: PartialOrd + Copy>(values: &[T]) -> Option<T> {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    sorted.get(sorted.len() / 2).copied()
}
