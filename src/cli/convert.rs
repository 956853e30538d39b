//! `pinhole convert`: from a diffusers directory to a bundle.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use pinhole::Error;
use pinhole::convert::{self, Plan, Progress, Types};
use pinhole::source::flux::FluxModel;
use serde::Serialize;

use super::failure::Failure;
use super::printer::{Printer, Talk, Unit};
use super::table::Table;
use super::{interrupt, model, threads, units};

/// Make a bundle, one GGUF file with everything inside, of a model
///
/// Prints the path of the bundle. Under q8_0, matrices are quantized; vectors, convolutions and the layers where FLUX's
/// inputs come in and its result goes out are not.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// A diffusers directory or another bundle
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// The bundle to write
    #[arg(short, long, value_name = "OUT.gguf")]
    output: PathBuf,
    /// What most matrices are stored as: f32, f16, bf16 or q8_0
    #[arg(long = "type", value_name = "TYPE")]
    types: String,
    /// Replace OUT.gguf where it exists
    #[arg(long)]
    overwrite: bool,
    /// Say what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Threads that convert [default: one for each core]
    #[arg(long, value_name = "N", value_parser = threads::parser())]
    threads: Option<usize>,
    #[command(flatten)]
    pub(super) talk: Talk,
}

const EXAMPLES: &str = "\
Examples:
  pinhole convert FLUX.1-schnell -o schnell.gguf --type q8_0
  pinhole convert FLUX.1-dev -o dev.gguf --type bf16 --dry-run";

#[derive(Serialize)]
struct Report<'a> {
    version: &'static str,
    source: &'a PathBuf,
    output: &'a PathBuf,
    /// The type of every component.
    requested: String,
    /// Whether the file was written.
    written: bool,
    tensors: usize,
    parameters: u64,
    bytes: u64,
    types: Vec<TypeRow>,
    /// Tensors that are not of the type that their place asks for.
    fallbacks: Vec<FallbackRow<'a>>,
    seconds: f64,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct TypeRow {
    #[serde(rename = "type")]
    dtype: &'static str,
    tensors: usize,
    parameters: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct FallbackRow<'a> {
    tensor: &'a str,
    #[serde(rename = "type")]
    dtype: &'static str,
    reason: String,
}

pub(super) fn run(args: &Args, printer: &Printer) -> Result<(), Failure> {
    let started = Instant::now();
    threads::start(args.threads);
    let types: Types = args.types.parse()?;
    let source = model::open(&args.source)?;
    let flux = FluxModel::open(&source)?;
    let plan = convert::plan(&source, &flux, types)?;
    if !args.dry_run {
        write(args, &plan, printer)?;
    }
    let fallbacks = fallbacks(&plan);
    let rows = type_rows(&plan);
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        source: &args.source,
        output: &args.output,
        requested: types.to_string(),
        written: !args.dry_run,
        tensors: plan.tensors.len(),
        parameters: rows.iter().map(|row| row.parameters).sum(),
        bytes: plan.total_bytes,
        types: rows,
        fallbacks,
        seconds: started.elapsed().as_secs_f64(),
        warnings: printer.warnings(),
    };
    if printer.json() { printer.object(&report) } else { print(&report, printer) }
}

fn write(args: &Args, plan: &Plan<'_>, printer: &Printer) -> Result<(), Error> {
    let cancel = interrupt::cancel_flag(printer);
    // The header comes with the first tensor.
    printer.begin("convert", plan.tensors.iter().map(|tensor| tensor.bytes).sum(), Unit::Bytes);
    plan.write(&args.output, args.overwrite, &mut |Progress { tensor, done, .. }| {
        printer.progress(done);
        printer.doing(tensor.to_owned());
        cancel.check()
    })?;
    printer.end("convert");
    Ok(())
}

/// What the plan holds by type, the most bytes first.
fn type_rows(plan: &Plan<'_>) -> Vec<TypeRow> {
    let mut by_type = BTreeMap::new();
    for tensor in &plan.tensors {
        let dtype = tensor.to.name();
        let row = by_type.entry(dtype).or_insert(TypeRow { dtype, tensors: 0, parameters: 0, bytes: 0 });
        row.tensors += 1;
        row.parameters += tensor.shape.elements() as u64;
        row.bytes += tensor.bytes;
    }
    let mut rows: Vec<TypeRow> = by_type.into_values().collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.bytes));
    rows
}

fn fallbacks<'a>(plan: &'a Plan<'_>) -> Vec<FallbackRow<'a>> {
    let row = |tensor: &'a convert::PlannedTensor| {
        let reason = tensor.fallback.as_ref()?.to_string();
        Some(FallbackRow { tensor: &tensor.name, dtype: tensor.to.name(), reason })
    };
    plan.tensors.iter().filter_map(row).collect()
}

/// What to say of tensors that are not of the type that was asked for.
fn fallback_note(fallbacks: &[FallbackRow<'_>]) -> Option<String> {
    let FallbackRow { tensor, dtype, reason } = fallbacks.first()?;
    let more = match fallbacks.len() - 1 {
        0 => String::new(),
        more => format!(" (and {more} more; --json lists them)"),
    };
    Some(format!("{tensor} is {dtype}: {reason}{more}"))
}

fn print(report: &Report<'_>, printer: &Printer) -> Result<(), Failure> {
    let mut table = Table::new(["type", ">tensors", ">parameters", ">size"]);
    for row in &report.types {
        let (parameters, size) = (units::count(row.parameters), units::bytes(row.bytes));
        table.row([row.dtype.to_owned(), row.tensors.to_string(), parameters, size]);
    }
    let (tensors, parameters) = (report.tensors.to_string(), units::count(report.parameters));
    table.row(["all".into(), tensors, parameters, units::bytes(report.bytes)]);
    if let Some(text) = fallback_note(&report.fallbacks) {
        printer.note(&text);
    }
    if !report.written {
        return printer.data(&table.to_string());
    }
    printer.note(table.to_string().trim_end());
    printer.data(&format!("{}\n", report.output.display()))
}
