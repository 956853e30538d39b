//! `pinhole bench devices`: the time of a picture on one device and on several, in one run.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use pinhole::ggml::Device;
use pinhole::pipeline::{Event, Generated, Phase, Request};
use pinhole::plan::{Plan, Speed};
use pinhole::size::Size;
use serde::Serialize;

use crate::cli::failure::Failure;
use crate::cli::printer::{Printer, Talk, Unit};
use crate::cli::request::{self, RequestArgs};
use crate::cli::table::Table;
use crate::cli::{interrupt, model, units};

/// Measure how much faster several devices draw a picture than the first of them
///
/// Draws the same picture on the first device of --device and on all of them, in turn, and compares the medians of the times in which
/// the denoiser runs. On the CPU, or a card that it plays, each device has as many threads as --threads says, one by default. Says
/// whether the pictures are the same, and what passed between host and devices.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub(in crate::cli) struct Args {
    /// A model, as `pinhole generate` takes it
    #[arg(short, long, value_name = "MODEL")]
    model: PathBuf,
    /// What to draw
    #[arg(short, long, value_name = "TEXT", default_value = "a small yellow star on a blue background")]
    prompt: String,
    /// Bytes a second between the host and each of several `cpu:discrete`, of what they exchange and of weights [default: no limit]
    #[arg(long, value_name = "SPEED")]
    link: Option<Size>,
    /// How many times on each, after one that does not count
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Do not decode: compare latents alone, which is quicker for films and large pictures
    #[arg(long)]
    latents_only: bool,
    #[command(flatten)]
    request: RequestArgs,
    #[command(flatten)]
    parts: model::PartArgs,
    #[command(flatten)]
    pub(super) talk: Talk,
}

const EXAMPLES: &str = "\
Examples:
  pinhole bench devices -m mini --cfg-scale 3 --negative-prompt blue --device cpu:discrete,cpu:discrete1
  pinhole bench devices -m wan.gguf --frames 17 --latents-only --devices-by tokens --device cpu:discrete,cpu:discrete1 --link 4G
  pinhole bench devices -m sdxl.gguf --device cuda0,cuda1 --vram 4G --runs 5 --json";

#[derive(Serialize)]
struct Report {
    version: &'static str,
    threads_each: usize,
    runs: u16,
    /// On the first device, and on all.
    ways: Vec<Way>,
    /// How many times as fast the denoiser is on all of them.
    speedup: f64,
    /// The same as the plan forecasts it, if the first device alone were as fast as it was.
    forecast_speedup: f64,
    /// Whether all pictures and latents are equal to the bit.
    same: bool,
}

/// One way to draw, by medians.
#[derive(Serialize)]
struct Way {
    device: String,
    /// What the devices have among them.
    among: &'static str,
    denoise_seconds: f64,
    total_seconds: f64,
    /// What each device was planned to hold and held.
    planned_peak_bytes: Vec<usize>,
    measured_peak_bytes: Vec<usize>,
    /// Weights that came to the devices while the denoiser ran, and other numbers that went there and back.
    moved_bytes: u64,
    exchanged_bytes: u64,
    /// What the denoiser was forecast to take, at the speed that the first device alone was found to have.
    forecast_seconds: f64,
}

/// The times of one way, and what it made last.
struct Drawn {
    denoise: Vec<Duration>,
    total: Vec<Duration>,
    last: Generated,
}

pub(super) fn run(args: &Args, printer: &Printer) -> Result<(), Failure> {
    let cancel = interrupt::cancel_flag(printer);
    let devices = devices(args)?;
    let threads = args.request.threads.unwrap_or(1);
    let source = args.parts.open(Some(&args.model), "--model")?;
    let request = Request {
        seed: args.request.given_seed().unwrap_or(0),
        latents_only: args.latents_only,
        ..args.request.request(Some(&args.prompt), printer)?
    };
    let ways: [&[Device]; 2] = [&devices[..1], &devices];
    let mut pipelines = Vec::new();
    for devices in ways {
        let of_all = threads * devices.iter().filter(|device| device.is_cpu()).count().max(1);
        pipelines.push(args.request.pipeline(&source, devices, of_all, cancel.clone())?);
    }
    printer.begin("draw", 2 * (u64::from(args.runs) + 1), Unit::Parts);
    let mut drawn: [Option<Drawn>; 2] = [None, None];
    for is_counted in std::iter::once(false).chain(std::iter::repeat_n(true, args.runs.into())) {
        // In turn, so that what else the machine does falls on both.
        for (pipeline, drawn) in pipelines.iter_mut().zip(&mut drawn) {
            let start = Instant::now();
            let last = pipeline.generate_watched(&request, &mut |_: Event| cancel.check())?;
            let (denoise, total) = (last.time(Phase::Denoise), start.elapsed());
            let so_far = drawn.take().map_or((Vec::new(), Vec::new()), |drawn| (drawn.denoise, drawn.total));
            let (mut of_denoiser, mut totals) = so_far;
            if is_counted {
                of_denoiser.push(denoise);
                totals.push(total);
            }
            *drawn = Some(Drawn { denoise: of_denoiser, total: totals, last });
            printer.advance();
        }
    }
    printer.end("draw");
    let [Some(one), Some(all)] = &drawn else { return Ok(()) };
    let speeds = speeds(one, &devices);
    let [forecast_one, forecast_all] = [one, all].map(|drawn| drawn.last.plan.seconds(&speeds));
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        threads_each: threads,
        runs: args.runs,
        ways: ways.iter().zip([one, all]).map(|(devices, drawn)| way(devices, drawn, &speeds)).collect(),
        speedup: median(&one.denoise) / median(&all.denoise),
        forecast_speedup: forecast_one / forecast_all,
        same: one.last.latents.iter().map(|x| x.to_bits()).eq(all.last.latents.iter().map(|x| x.to_bits()))
            && one.last.images == all.last.images,
    };
    print(&report, printer)
}

/// The devices, with the links that they play.
fn devices(args: &Args) -> pinhole::Result<Vec<Device>> {
    let Some(Size(link)) = args.link else { return request::devices(&args.request.device) };
    let linked = args.request.device.split(',').map(|name| format!("{name}@{link}"));
    request::devices(&linked.collect::<Vec<_>>().join(","))
}

/// How fast each of `devices` is, if all are as fast as the first was found to be for the arithmetic of what it drew.
fn speeds(one: &Drawn, devices: &[Device]) -> Vec<Speed> {
    let denoisers = one.last.plan.components.iter().filter(|own| own.phase == Phase::Denoise);
    let arithmetic: f64 = denoisers.map(|own| own.work.arithmetic as f64 * own.runs.steps as f64).sum();
    let arithmetic = arithmetic / median(&one.denoise);
    let mut speeds = Vec::with_capacity(devices.len());
    for device in devices {
        // What is copied within the host's memory takes its time, too.
        let link = device.link().map_or(COPIED, |link| 1.0 / (1.0 / link.get() as f64 + 1.0 / COPIED));
        speeds.push(Speed { arithmetic, link });
    }
    speeds
}

/// Bytes a second that one thread copies within the host's memory.
const COPIED: f64 = 5e9;

/// What several devices have among them of the denoiser in `plan`.
fn among(plan: &Plan) -> &'static str {
    let denoisers = || plan.devices().flat_map(|plan| &plan.components).filter(|own| own.phase == Phase::Denoise);
    let by_passes = denoisers().any(|own| own.batch.turn.of > 1);
    match denoisers().any(|own| own.placement.share.of > 1) {
        true if by_passes => "passes, tokens",
        true => "tokens",
        false if by_passes => "passes",
        false if denoisers().any(|own| !own.placement.own.is_empty()) => "stages",
        false => "-",
    }
}

fn way(devices: &[Device], drawn: &Drawn, speeds: &[Speed]) -> Way {
    let Drawn { denoise, total, last } = drawn;
    let of_denoiser = || last.phases.iter().filter(|phase| phase.phase == Phase::Denoise);
    Way {
        device: request::device_names(devices),
        among: among(&last.plan),
        forecast_seconds: last.plan.seconds(speeds),
        denoise_seconds: median(denoise),
        total_seconds: median(total),
        planned_peak_bytes: last.devices.iter().map(|device| device.planned).collect(),
        measured_peak_bytes: last.devices.iter().map(|device| device.measured.peak).collect(),
        moved_bytes: of_denoiser().map(|phase| phase.moved).sum(),
        exchanged_bytes: of_denoiser().map(|phase| phase.exchanged).sum(),
    }
}

fn print(report: &Report, printer: &Printer) -> Result<(), Failure> {
    if printer.json() {
        return printer.object(report);
    }
    let headings =
        ["devices", "among them", ">denoise", ">forecast", ">in all", ">held", ">weights moved", ">other numbers"];
    let mut table = Table::new(headings);
    for way in &report.ways {
        let held: Vec<String> = way.measured_peak_bytes.iter().map(|&bytes| units::bytes(bytes as u64)).collect();
        table.row([
            way.device.clone(),
            way.among.to_owned(),
            format!("{:.2} s", way.denoise_seconds),
            format!("{:.2} s", way.forecast_seconds),
            format!("{:.2} s", way.total_seconds),
            held.join(", "),
            units::bytes(way.moved_bytes),
            units::bytes(way.exchanged_bytes),
        ]);
    }
    printer.data(&table.to_string())?;
    let same = if report.same { "the same" } else { "other" };
    let Report { speedup, forecast_speedup, .. } = report;
    printer.note(&format!("\n{speedup:.2} times as fast, with {same} bits; forecast: {forecast_speedup:.2} times"));
    Ok(())
}

/// In seconds.
fn median(times: &[Duration]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).map_or(0.0, Duration::as_secs_f64)
}
