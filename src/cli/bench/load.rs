//! `pinhole bench load`: from nothing to the first step.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pinhole::Error;
use pinhole::pipeline::Pipeline;
use pinhole::pipeline::{Event, Phase, Request};
use pinhole::stage::Cadence;
use serde::Serialize;

use super::matmul::report::median;
use super::subject::{Measured, SubjectArgs};
use crate::cli::failure::Failure;
use crate::cli::printer::{Printer, Talk, Unit};
use crate::cli::request::{self, RequestArgs};
use crate::cli::table::Table;
use crate::cli::{interrupt, threads};

/// Measure what passes before the first step: files, plan, text encoders, weights and graphs
///
/// The model is opened anew in every run, and the request stopped when its first step begins. The first run, which is not
/// counted, leaves the file in the system's cache.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    subject: SubjectArgs,
    /// Runs that are measured, after one that is not
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    #[command(flatten)]
    request: RequestArgs,
    #[command(flatten)]
    pub(super) talk: Talk,
}

const EXAMPLES: &str = "\
Examples:
  pinhole bench load --arch flux-dev --type q4_k_s --cache models
  pinhole bench load -m dev.gguf --device cpu:discrete --vram 4G --json";

/// What passes, in order.
const PARTS: [&str; 6] = ["open", "models", "plan", "encode", "prepare", "modulation"];

#[derive(Serialize)]
struct Report {
    version: &'static str,
    model: String,
    device: String,
    threads: usize,
    runs: u16,
    /// Medians, in the order in which they pass.
    parts: Vec<Part>,
    /// All of it.
    total_seconds: f64,
    /// All of it but the text encoders.
    total_without_encoders_seconds: f64,
}

#[derive(Serialize)]
struct Part {
    name: &'static str,
    seconds: f64,
}

pub(super) fn run(args: &Args, printer: &Printer) -> Result<(), Failure> {
    let cancel = interrupt::cancel_flag(printer);
    let (threads, _inside) = threads::start(args.request.threads);
    let device = request::device(&args.request.device)?;
    let subject = args.subject.open(Measured::All, (printer, &cancel))?;
    let request = args.request.request(Some("a small yellow star on a blue background"), printer)?;

    printer.begin("load", u64::from(args.runs) + 1, Unit::Parts);
    let mut all: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for counted in std::iter::once(false).chain(std::iter::repeat_n(true, args.runs.into())) {
        let mut clock = Clock { last: Instant::now(), parts: BTreeMap::new() };
        let source = subject.reopen()?;
        clock.passed("open");
        let mut pipeline = args.request.pipeline(&source, &[device], threads, cancel.clone())?;
        clock.passed("models");
        first_step(&mut pipeline, &request, &mut clock)?;
        cancel.check()?;
        for (name, time) in clock.parts.iter().filter(|_| counted) {
            all.entry(name).or_default().push(time.as_secs_f64());
        }
        printer.advance();
    }
    printer.end("load");
    let totals = |but: &str| -> f64 {
        let mut totals = vec![0.0; usize::from(args.runs)];
        for (_, times) in all.iter().filter(|(name, _)| **name != but) {
            for (total, time) in totals.iter_mut().zip(times) {
                *total += time;
            }
        }
        median(&mut totals)
    };
    let part = |name| Part { name, seconds: median(&mut all.get(name).cloned().unwrap_or_default()) };
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        model: subject.name,
        device: device.name(),
        threads,
        runs: args.runs,
        parts: PARTS.map(part).into(),
        total_seconds: totals(""),
        total_without_encoders_seconds: totals("encode"),
    };
    if printer.json() {
        return printer.object(&report);
    }
    let mut table = Table::new(["part", ">time"]);
    let totals = [("total", report.total_seconds), ("total without encode", report.total_without_encoders_seconds)];
    for (name, seconds) in report.parts.iter().map(|part| (part.name, part.seconds)).chain(totals) {
        table.row([name.to_owned(), format!("{seconds:.3} s")]);
    }
    printer.data(&table.to_string())
}

/// What has passed since the part before.
struct Clock {
    last: Instant,
    parts: BTreeMap<&'static str, Duration>,
}

impl Clock {
    fn passed(&mut self, part: &'static str) {
        let now = Instant::now();
        self.parts.insert(part, now - self.last);
        self.last = now;
    }
}

/// Runs `request` up to its first step.
fn first_step(pipeline: &mut Pipeline, request: &Request, clock: &mut Clock) -> Result<(), Error> {
    let denoisers = pipeline.model().denoiser.networks();
    let once = denoisers.first().map_or(0, |network| network.model.at(Cadence::Request).len());
    // Stages of the denoiser that are done; `None` before it begins.
    let mut stages = None;
    let generated = pipeline.generate_watched(request, &mut |event: Event| {
        match event {
            Event::Begin { phase: Phase::Encode, .. } => clock.passed("plan"),
            Event::Begin { phase: Phase::Denoise, .. } => {
                clock.passed("encode");
                stages = Some(0);
            }
            Event::Stage => {
                let Some(done) = &mut stages else { return Ok(()) };
                *done += 1;
                // The first of them has waited for weights and graphs.
                if *done == 1 {
                    clock.passed("prepare");
                }
                if *done == once {
                    clock.passed("modulation");
                    return Err(Error::Cancelled);
                }
            }
            _ => {}
        }
        Ok(())
    });
    match generated {
        Err(Error::Cancelled) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(Error::graph("load", "the denoiser has no stages that run once")),
    }
}
