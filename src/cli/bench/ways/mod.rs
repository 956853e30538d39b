//! A component computed in each of the ways that plans choose from: time and memory of `bench decode` and `bench encode`.

pub(super) mod decode;
pub(super) mod encode;

use std::time::Instant;

use pinhole::Error;
use pinhole::bind::Bound;
use pinhole::exec::{DeviceWeights, Session};
use pinhole::ggml::{Backend, CancelFlag, Device, Ledger};
use pinhole::plan::measure::Subject;
use pinhole::plan::{Component, HostBound, HostLimit, Limits, Offload, Phase, Plan, Runs, budget};
use pinhole::size::Size;
use pinhole::stage::{Dims, Model};
use serde::Serialize;

use super::matmul::report::median;
use crate::cli::failure::Failure;
use crate::cli::printer::{Printer, Unit};
use crate::cli::table::Table;
use crate::cli::{request, threads, units};

/// Options of both.
#[derive(clap::Args)]
pub(super) struct WayArgs {
    /// A device: what `pinhole devices` lists
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    device: String,
    /// Only the way that a plan takes within this much device memory [default: all ways]
    #[arg(long, value_name = "SIZE")]
    vram: Option<Size>,
    /// And within this much host memory, without what the program holds itself
    #[arg(long, value_name = "SIZE", requires = "vram")]
    host_memory: Option<Size>,
    /// Runs that are measured of each way, after one that is not
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Threads of the CPU [default: one for each core]
    #[arg(long, value_name = "N", value_parser = threads::parser())]
    threads: Option<usize>,
}

/// What is computed.
struct Computed<'a> {
    name: &'static str,
    phase: Phase,
    model: &'a Model,
    bound: &'a Bound,
    dims: Dims,
    /// How often stages of every step run in one run.
    steps: usize,
}

/// The JSON of a run.
#[derive(Serialize)]
struct Report {
    version: &'static str,
    model: String,
    component: &'static str,
    device: String,
    threads: usize,
    /// Pixels, and frames of a film; or tokens.
    size: Vec<usize>,
    runs: u16,
    ways: Vec<Row>,
}

/// One way.
#[derive(Serialize)]
struct Row {
    way: String,
    streamed_stages: usize,
    seconds: f64,
    fastest_seconds: f64,
    slowest_seconds: f64,
    planned_peak_bytes: usize,
    peak_bytes: usize,
    /// Weights that are used where they lie in the file, and are not in the peak.
    mapped_bytes: usize,
    /// Feature maps in host memory, where that is not the device's.
    host_bytes: usize,
}

impl Computed<'_> {
    /// Runs it in every way that `args` ask for. `compute` is one run: it sets inputs and computes what depends on them.
    fn measure(
        &self,
        args: &WayArgs,
        threads: usize,
        (printer, cancel): (&Printer, &CancelFlag),
        compute: impl Fn(&mut Session<'_>, &mut Backend) -> pinhole::Result<()>,
    ) -> Result<(Device, Vec<Row>), Failure> {
        let device = request::device(&args.device)?;
        let mut backend = Backend::new(device, threads, cancel.clone())?;
        let runs = usize::from(args.runs);
        let plans = self.plans(args, &backend)?;
        printer.begin("measure", (plans.len() * (runs + 1)) as u64, Unit::Parts);
        let mut rows = Vec::with_capacity(plans.len());
        for plan in plans {
            let component = &plan.components[0];
            let ledger = Ledger::new();
            ledger.set_limit(plan.limit);
            let Computed { model, bound, dims, .. } = self;
            let (placement, runs) = (&component.placement, component.runs);
            let weights = DeviceWeights::place(model, bound, device, &ledger, placement, component.way.runs(runs))?;
            let mut session = Session::in_way(component.way, model, &weights, dims, &backend, &ledger)?;
            let mut seconds = Vec::new();
            for _ in 0..runs.request {
                let start = Instant::now();
                compute(&mut session, &mut backend)?;
                seconds.push(start.elapsed().as_secs_f64());
                printer.advance();
            }
            seconds.remove(0);
            let middle = median(&mut seconds);
            let end = |seconds: Option<&f64>| seconds.copied().unwrap_or_default();
            rows.push(Row {
                way: component.way.to_string(),
                streamed_stages: component.streamed(),
                seconds: middle,
                fastest_seconds: end(seconds.first()),
                slowest_seconds: end(seconds.last()),
                planned_peak_bytes: plan.peak(),
                peak_bytes: ledger.usage().peak,
                mapped_bytes: component.mapped,
                host_bytes: component.host,
            });
        }
        printer.end("measure");
        Ok((device, rows))
    }

    /// A plan for each way, with everything resident; or the one that a budget leads to.
    fn plans(&self, args: &WayArgs, backend: &Backend) -> Result<Vec<Plan>, Failure> {
        let Computed { name, phase, model, bound, ref dims, steps } = *self;
        let request = usize::from(args.runs) + 1;
        let runs = Runs::of_films(request, steps);
        let all = Subject { name, phase, model, bound, dims: dims.clone(), runs }.measure(backend)?;
        let host = backend.device().kind() == pinhole::ggml::DeviceKind::Cpu;
        let host_limit = args.host_memory.map(|size| HostLimit {
            bound: HostBound::Memory,
            bytes: size.0 as usize,
            process: 0,
            graph: 0,
            shared: host,
        });
        let bytes = args.vram.map(|size| size.0 as usize);
        let limits = Limits { bytes, host, of_host: [host_limit, None], ..Limits::default() };
        let plan = |component: Component, offload| {
            budget::plan(&[component], offload, &limits).map_err(|refusal| {
                let option = if refusal.bound.is_some() { "--host-memory" } else { "--vram" };
                Error::OverBudget {
                    what: format!("the {}", refusal.component),
                    needed: refusal.least,
                    given: refusal.given,
                    hint: Some(format!("try {option} {}", Size(refusal.least as u64).rounded_up())),
                }
            })
        };
        if args.vram.is_some() {
            return Ok(vec![plan(all, Offload::Auto)?]);
        }
        let each = all.variants.iter().map(|variant| Component { variants: vec![variant.clone()], ..all.clone() });
        Ok(each.map(|component| plan(component, Offload::Model)).collect::<Result<_, _>>()?)
    }
}

impl Report {
    fn print(&self, printer: &Printer) -> Result<(), Failure> {
        if printer.json() {
            return printer.object(self);
        }
        let headings = ["way", ">time", ">fastest", ">slowest", ">peak", ">planned", ">mapped", ">host"];
        let mut table = Table::new(headings);
        for row in &self.ways {
            let seconds = |seconds: f64| format!("{seconds:.3} s");
            let bytes = |bytes: usize| units::bytes(bytes as u64);
            table.row([
                row.way.clone(),
                seconds(row.seconds),
                seconds(row.fastest_seconds),
                seconds(row.slowest_seconds),
                bytes(row.peak_bytes),
                bytes(row.planned_peak_bytes),
                bytes(row.mapped_bytes),
                bytes(row.host_bytes),
            ]);
        }
        printer.data(&table.to_string())
    }
}
