//! What `convert` says: of the tensors before they are written, and of the file after.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use pinhole::convert::{Plan, PlannedTensor, Requantized};
use serde::Serialize;

use super::{Args, Lora, lora};
use crate::cli::failure::Failure;
use crate::cli::printer::Printer;
use crate::cli::table::Table;
use crate::cli::units;

#[derive(Serialize)]
struct Report<'a> {
    version: &'static str,
    #[serde(serialize_with = "units::path")]
    source: &'a Path,
    #[serde(serialize_with = "units::path")]
    output: &'a Path,
    /// The type of every component.
    requested: String,
    /// LoRAs that become part of the weights.
    #[serde(serialize_with = "lora::serialize")]
    merged: &'a [Lora],
    /// How many tensors they change.
    merged_tensors: usize,
    /// Whether the file was written.
    written: bool,
    tensors: usize,
    parameters: u64,
    bytes: u64,
    types: Vec<TypeRow>,
    /// Every tensor, where nothing was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    tensor_list: Option<Vec<TensorRow<'a>>>,
    /// Tensors that are not of the type that their place asks for.
    fallbacks: Vec<FallbackRow<'a>>,
    /// Tensors of the source that no such model has.
    left_out: &'a [&'a str],
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
struct TensorRow<'a> {
    name: &'a str,
    /// In ggml order: fastest first.
    shape: &'a [usize],
    from: &'a str,
    to: &'static str,
    /// Whether LoRAs change it.
    merged: bool,
    bytes: u64,
}

#[derive(Serialize)]
struct FallbackRow<'a> {
    tensor: &'a str,
    #[serde(rename = "type")]
    dtype: &'static str,
    reason: String,
}

/// What the user should know before a plan is carried out.
pub(super) fn warnings(plan: &Plan<'_>) -> Vec<String> {
    let mut warnings: Vec<String> = plan.loras.iter().filter_map(pinhole::bind::lora::Report::warning).collect();
    for Requantized { from, to, tensors } in &plan.requantized {
        let (before, after) = (from.bits_per_weight(), to.bits_per_weight());
        let tensors = units::counted(*tensors, "tensor");
        warnings.push(format!(
            "{tensors} in {from} ({before:.2} bits a weight) quantized again, to {to} ({after:.2}): its error comes on top \
             of that of {from}, which stays"
        ));
    }
    warnings
}

/// Says what was written, or would be.
pub(super) fn print(args: &Args, plan: &Plan<'_>, time: Duration, printer: &Printer) -> Result<(), Failure> {
    let dims: Vec<[usize; 4]> = plan.tensors.iter().map(|tensor| tensor.shape.dims()).collect();
    let rows = type_rows(plan);
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        source: args.parts.name(args.source.as_deref()),
        output: &args.output,
        requested: plan.requested(),
        merged: &args.merge,
        merged_tensors: plan.tensors.iter().filter(|tensor| tensor.merged).count(),
        written: !args.dry_run,
        tensors: plan.tensors.len(),
        parameters: rows.iter().map(|row| row.parameters).sum(),
        bytes: plan.total_bytes,
        types: rows,
        tensor_list: args.dry_run.then(|| plan.tensors.iter().zip(&dims).map(tensor_row).collect()),
        fallbacks: fallbacks(plan),
        left_out: &plan.left_out,
        seconds: time.as_secs_f64(),
        warnings: printer.warnings(),
    };
    if printer.json() { printer.object(&report) } else { text(&report, printer) }
}

fn tensor_row<'a>((tensor, dims): (&'a PlannedTensor, &'a [usize; 4])) -> TensorRow<'a> {
    let PlannedTensor { name, shape, from, merged, to, bytes, .. } = tensor;
    TensorRow { name, shape: &dims[..shape.rank()], from, to: to.name(), merged: *merged, bytes: *bytes }
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
    plan.tensors
        .iter()
        .filter_map(|tensor| {
            let reason = tensor.fallback.as_ref()?.to_string();
            Some(FallbackRow { tensor: &tensor.name, dtype: tensor.to.name(), reason })
        })
        .collect()
}

/// What to say of LoRAs.
fn merged_note(report: &Report<'_>) -> Option<String> {
    let loras = report.merged.iter().map(Lora::to_string).collect::<Vec<_>>().join(", ");
    let count = format!("{} of {}", report.merged_tensors, units::counted(report.tensors, "tensor"));
    (!report.merged.is_empty()).then(|| format!("{count} changed by {}", units::shown(&loras)))
}

/// What to say of tensors that are not of the type that was asked for.
fn fallback_note(fallbacks: &[FallbackRow<'_>]) -> Option<String> {
    let FallbackRow { tensor, dtype, reason } = fallbacks.first()?;
    Some(format!("{tensor} is {dtype}: {reason}{}", and_more(fallbacks.len() - 1)))
}

/// What to say of tensors that no such model has.
fn left_out_note(left_out: &[&str]) -> Option<String> {
    const NAMED: usize = 3;
    let named = left_out.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    let more = and_more(left_out.len().saturating_sub(NAMED));
    (!left_out.is_empty()).then(|| format!("left out, since no such model has them: {}{more}", units::shown(&named)))
}

fn and_more(count: usize) -> String {
    if count == 0 { String::new() } else { format!(" (and {count} more; --json lists them)") }
}

fn text(report: &Report<'_>, printer: &Printer) -> Result<(), Failure> {
    let types = type_table(report);
    let notes = [merged_note(report), fallback_note(&report.fallbacks), left_out_note(report.left_out)];
    for text in notes.into_iter().flatten() {
        printer.note(&text);
    }
    match &report.tensor_list {
        Some(tensors) => {
            let total = format!("{} bytes in all", report.bytes);
            printer.data(&format!("{}\n{types}\n  {total}\n", tensor_table(tensors)))
        }
        None => {
            printer.note(types.to_string().trim_end());
            printer.data(&format!("{}\n", report.output.display()))
        }
    }
}

fn tensor_table(tensors: &[TensorRow<'_>]) -> Table<5> {
    let mut table = Table::new(["tensor", "shape", "from", "to", ">bytes"]);
    for TensorRow { name, shape, from, to, merged, bytes } in tensors {
        let from = if *merged { format!("{from} + LoRA") } else { (*from).to_owned() };
        table.row([(*name).to_owned(), format!("{shape:?}"), from, (*to).to_owned(), bytes.to_string()]);
    }
    table
}

fn type_table(report: &Report<'_>) -> Table<4> {
    let mut table = Table::new(["type", ">tensors", ">parameters", ">size"]);
    for row in &report.types {
        let (parameters, size) = (units::count(row.parameters), units::bytes(row.bytes));
        table.row([row.dtype.to_owned(), row.tensors.to_string(), parameters, size]);
    }
    let (tensors, parameters) = (report.tensors.to_string(), units::count(report.parameters));
    table.row(["all".into(), tensors, parameters, units::bytes(report.bytes)]);
    table
}
