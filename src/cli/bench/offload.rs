//! `pinhole bench offload`: what streaming costs over having everything on the device, for links of several speeds.

use std::path::PathBuf;
use std::time::Duration;

use pinhole::Error;
use pinhole::ggml::Device;
use pinhole::plan::{Component, Limits, Offload, Plan, budget};
use pinhole::size::Size as Bytes;
use pinhole::source::Source;
use pinhole::stage::Cadence;
use serde::Serialize;

use super::denoiser::{self, Denoiser, Size, Steps};
use crate::cli::failure::Failure;
use crate::cli::printer::{Printer, Talk, Unit};
use crate::cli::table::Table;
use crate::cli::{interrupt, threads, units};

/// How long copying takes for one of computing, where no one names speeds.
const RATIOS: [f64; 5] = [0.25, 0.5, 1.0, 2.0, 4.0];

/// Measure what streaming costs, for links of several speeds
///
/// Steps of the denoiser on `cpu:discrete`, resident and streamed in turn. All but small stages stream, through two slots. The
/// ideal is that the faster of computing and copying hides behind the slower: max(compute, copy), and one layer for the first
/// that nothing hides. Copy is what the link takes for a step's bytes. Weights are copied by a thread of their own, which
/// needs a core: so one core fewer computes, unless --threads says otherwise. Exposed are uploads that the computation waited
/// for while they were under way: the first ones of steps, and others; `generate --trace` shows them one by one.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) struct Args {
    /// A pinhole bundle (.gguf), or a diffusers directory
    #[arg(short, long, value_name = "MODEL")]
    model: PathBuf,
    /// Speeds of the link in bytes a second [default: such that copying takes 1/4, 1/2, 1, 2 and 4 times as long as
    /// computing]
    #[arg(long, value_name = "SPEED,...", value_delimiter = ',')]
    link: Vec<Bytes>,
    /// Pixels across, a multiple of 16
    #[arg(long, value_name = "W", default_value_t = 256)]
    width: usize,
    /// Pixels down, a multiple of 16
    #[arg(long, value_name = "H", default_value_t = 256)]
    height: usize,
    /// Tokens of the prompt [default: as many as models of this family take: 512 for FLUX.1, 77 for Stable Diffusion]
    #[arg(long, value_name = "N", value_parser = threads::tokens())]
    text_tokens: Option<usize>,
    /// Steps that are measured of each setting, after one that is not
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    steps: u16,
    /// Threads of the CPU that compute [default: one for each core but one]
    #[arg(long, value_name = "N", value_parser = threads::parser())]
    threads: Option<usize>,
    #[command(flatten)]
    pub(super) talk: Talk,
}

const EXAMPLES: &str = "\
Examples:
  pinhole bench model -o dev-2.gguf --type q4_k_s --blocks 2
  pinhole bench offload -m dev-2.gguf
  pinhole bench offload -m dev-2.gguf --link 1G,4G,16G --json";

#[derive(Serialize)]
struct Report {
    version: &'static str,
    threads: usize,
    width: usize,
    height: usize,
    text_tokens: usize,
    steps: u16,
    streamed_stages: usize,
    moved_each_step_bytes: usize,
    resident_peak_bytes: usize,
    streamed_peak_bytes: usize,
    links: Vec<Row>,
}

/// One link.
#[derive(Serialize)]
struct Row {
    link_bytes_per_second: u64,
    /// A step with everything on the device.
    compute_seconds: f64,
    /// A step's bytes over the link.
    copy_seconds: f64,
    /// The longest layer, computed or copied.
    layer_seconds: f64,
    streamed_seconds: f64,
    /// How much of all steps, the first among them, was spent waiting for weights.
    waited_seconds: f64,
    /// Stages that were brought in all steps.
    uploads: usize,
    /// Those that were waited for while they were on their way: the first of a step, and others.
    exposed_first_uploads: usize,
    exposed_other_uploads: usize,
    /// Streamed over max(compute, copy).
    over_slower: f64,
    /// Streamed over that and a layer.
    over_ideal: f64,
}

pub(super) fn run(args: &Args, printer: &Printer) -> Result<(), Failure> {
    let cancel = interrupt::cancel_flag(printer);
    let (cores, _inside) = threads::start(None);
    let threads = args.threads.unwrap_or(cores.saturating_sub(1).max(1));
    denoiser::check_size(args.width, args.height)?;
    let source = Source::open(&args.model)?;
    let size = Size { width: args.width, height: args.height, text_tokens: args.text_tokens };
    let denoiser = Denoiser::open(&source, size, threads, cancel)?;
    let device = Device::by_name("cpu:discrete")?;
    let steps = usize::from(args.steps);
    let component = denoiser.component(device, steps + 1)?;
    let plan = |offload| placed(&component, offload);
    let (resident, streamed) = (plan(Offload::Model)?, plan(Offload::Sequential)?);
    let [resident, streamed] = [&resident, &streamed].map(|plan| &plan.components[0]);

    printer.begin("measure", 1 + 2 * args.link.len().max(RATIOS.len()) as u64, Unit::Parts);
    let first = denoiser.run(device, &resident.placement, steps)?;
    printer.advance();
    let speeds = match args.link.as_slice() {
        [] => speeds(streamed.moved_each_step, first.median()),
        given => given.to_vec(),
    };
    let (mut rows, mut peaks) = (Vec::new(), (first.peak, 0));
    for link in speeds {
        // Side by side: machines drift.
        let compute = denoiser.run(device, &resident.placement, steps)?;
        printer.advance();
        let card = Device::by_name(&format!("cpu:discrete@{}", link.0))?;
        let steps = denoiser.run(card, &streamed.placement, steps)?;
        printer.advance();
        peaks = (peaks.0.max(compute.peak), peaks.1.max(steps.peak));
        rows.push(row(&component, streamed.moved_each_step, link, compute.median(), &steps));
    }
    printer.end("measure");
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        threads,
        width: args.width,
        height: args.height,
        text_tokens: denoiser.text_tokens(),
        steps: args.steps,
        streamed_stages: streamed.streamed(),
        moved_each_step_bytes: streamed.moved_each_step,
        resident_peak_bytes: peaks.0,
        streamed_peak_bytes: peaks.1,
        links: rows,
    };
    if printer.json() {
        return printer.object(&report);
    }
    printer.data(&table(&report.links).to_string())?;
    let bytes = |bytes: usize| units::bytes(bytes as u64);
    printer.note(&format!(
        "\n{}x{}, {} text tokens; {} of {} stages stream, {} in each step; device memory {} resident, {} streamed",
        report.width,
        report.height,
        report.text_tokens,
        report.streamed_stages,
        component.stages.len(),
        bytes(report.moved_each_step_bytes),
        bytes(report.resident_peak_bytes),
        bytes(report.streamed_peak_bytes),
    ));
    Ok(())
}

/// The plan of `component` alone, without a limit.
fn placed(component: &Component, offload: Offload) -> Result<Plan, Failure> {
    let plan = budget::plan(std::slice::from_ref(component), offload, &Limits::default());
    plan.map_err(|refusal| Error::graph("plan", format!("nothing fits: {refusal:?}")).into())
}

/// Links that take [`RATIOS`] times `compute` for `bytes`.
fn speeds(bytes: usize, compute: Duration) -> Vec<Bytes> {
    RATIOS.map(|ratio: f64| Bytes((bytes as f64 / (ratio * compute.as_secs_f64())).max(1.0) as u64)).to_vec()
}

fn row(component: &Component, bytes: usize, link: Bytes, compute: Duration, steps: &Steps) -> Row {
    let over_link = |bytes: usize| bytes as f64 / link.0 as f64;
    let each_step = component.stages.iter().filter(|stage| stage.cadence == Cadence::Step);
    let (largest, count) = each_step.fold((0, 0), |(largest, count), stage| (stage.weights.max(largest), count + 1));
    let (compute, copy, streamed) = (compute.as_secs_f64(), over_link(bytes), steps.median().as_secs_f64());
    let (waited_seconds, exposure) = (steps.waited.as_secs_f64(), &steps.exposure);
    let others = exposure.avoidable().count();
    let layer = over_link(largest).max(compute / f64::from(count.max(1)));
    Row {
        link_bytes_per_second: link.0,
        compute_seconds: compute,
        copy_seconds: copy,
        layer_seconds: layer,
        streamed_seconds: streamed,
        waited_seconds,
        uploads: exposure.uploads,
        exposed_first_uploads: exposure.exposed.len() - others,
        exposed_other_uploads: others,
        over_slower: streamed / compute.max(copy),
        over_ideal: streamed / (compute.max(copy) + layer),
    }
}

fn table(rows: &[Row]) -> Table<8> {
    let headings = [">link", ">compute", ">copy", ">layer", ">streamed", ">/ slower", ">/ ideal", ">exposed"];
    let mut table = Table::new(headings);
    for row in rows {
        let seconds = |seconds: f64| format!("{seconds:.3} s");
        table.row([
            format!("{}/s", units::bytes(row.link_bytes_per_second)),
            seconds(row.compute_seconds),
            seconds(row.copy_seconds),
            seconds(row.layer_seconds),
            seconds(row.streamed_seconds),
            format!("{:.3}", row.over_slower),
            format!("{:.3}", row.over_ideal),
            format!("{}+{} of {}", row.exposed_first_uploads, row.exposed_other_uploads, row.uploads),
        ]);
    }
    table
}
