//! What was measured, as a table and as JSON.

use serde::Serialize;

use super::shape::{By, Shape};
use crate::cli::bench::matmul::Multiplier;
use crate::cli::bench::matmul::report::Speed;
use crate::cli::failure::Failure;
use crate::cli::printer::Printer;
use crate::cli::table::Table;

/// The JSON of a run.
#[derive(Serialize)]
pub(super) struct Report {
    pub(super) version: &'static str,
    /// pinhole's kernel for this processor, or `none`.
    pub(super) kernel: &'static str,
    pub(super) threads: usize,
    pub(super) rounds: usize,
    pub(super) by: Multiplier,
    pub(super) precision: By,
    pub(super) against: Option<Multiplier>,
    pub(super) attentions: Vec<Attention>,
}

/// One attention.
#[derive(Serialize)]
pub(super) struct Attention {
    #[serde(flatten)]
    pub(super) shape: Shape,
    pub(super) by: Option<Measured>,
    pub(super) against: Option<Measured>,
    /// How many times faster the first is, median over rounds.
    pub(super) ratio: Option<f64>,
}

/// One attention in one way.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Measured {
    #[serde(flatten)]
    pub(super) speed: Speed,
    /// The largest error, relative to the largest value.
    pub(super) error: f64,
}

/// Prints the table, or with `--json` everything.
pub(super) fn print(report: &Report, printer: &Printer) -> Result<(), Failure> {
    if printer.json() { printer.object(report) } else { printer.data(&table(report)) }
}

fn table(report: &Report) -> String {
    let Some(against) = report.against else {
        let mut table = Table::new(["shape", &format!(">{}", report.by.name()), ">spread", ">error"]);
        for attention in &report.attentions {
            let [speed, spread, error] = cells(attention.by);
            table.row([attention.shape.to_string(), speed, spread, error]);
        }
        return table.to_string();
    };
    let (by, against) = (format!(">{}", report.by.name()), format!(">{}", against.name()));
    let mut table = Table::new(["shape", &by, ">spread", ">error", &against, ">spread", ">error", ">ratio"]);
    for attention in &report.attentions {
        let ([speed, spread, error], [other, other_spread, other_error]) =
            (cells(attention.by), cells(attention.against));
        let ratio = attention.ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let shape = attention.shape.to_string();
        table.row([shape, speed, spread, error, other, other_spread, other_error, ratio]);
    }
    table.to_string()
}

fn cells(measured: Option<Measured>) -> [String; 3] {
    let [speed, spread] = Speed::cells(measured.map(|measured| measured.speed));
    [speed, spread, measured.map_or(String::new(), |measured| format!("{:.1e}", measured.error))]
}
