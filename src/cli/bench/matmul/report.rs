//! What was measured, as a table and as JSON.

use serde::Serialize;

use super::{Multiplier, Size};
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
    pub(super) size: Size,
    pub(super) rounds: usize,
    pub(super) by: Multiplier,
    pub(super) against: Option<Multiplier>,
    pub(super) products: Vec<Product>,
}

/// One type with one number of tokens.
#[derive(Serialize)]
pub(super) struct Product {
    #[serde(rename = "type")]
    pub(super) dtype: &'static str,
    pub(super) tokens: usize,
    pub(super) by: Option<Speed>,
    pub(super) against: Option<Speed>,
    /// How many times faster the first is, median over rounds.
    pub(super) ratio: Option<f64>,
}

/// GFLOP/s over all rounds.
#[derive(Clone, Copy, Serialize)]
pub(in crate::cli::bench) struct Speed {
    median: f64,
    slowest: f64,
    fastest: f64,
}

impl Speed {
    /// Of `operations` in each of `seconds`.
    pub(in crate::cli::bench) fn of(operations: f64, seconds: &[f64]) -> Speed {
        let mut speeds: Vec<f64> = seconds.iter().map(|seconds| operations / seconds / 1e9).collect();
        let median = median(&mut speeds);
        let of = |speed: Option<&f64>| speed.copied().unwrap_or(0.0);
        Speed { median, slowest: of(speeds.first()), fastest: of(speeds.last()) }
    }

    /// The median, and from the slowest to the fastest.
    pub(in crate::cli::bench) fn cells(speed: Option<Speed>) -> [String; 2] {
        match speed {
            None => Default::default(),
            Some(Speed { median, slowest, fastest }) => {
                [format!("{median:.1}"), format!("{slowest:.1} to {fastest:.1}")]
            }
        }
    }
}

/// The middle one of `values`, which are sorted by it; of an even number the lower of two; 0 of none.
pub(in crate::cli::bench) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
}

/// The median of how many times faster `by` was than `against`, round by round.
pub(in crate::cli::bench) fn ratio(by: &[f64], against: &[f64]) -> f64 {
    let mut ratios: Vec<f64> = by.iter().zip(against).map(|(by, against)| against / by).collect();
    median(&mut ratios)
}

/// Prints the table, or with `--json` everything.
pub(super) fn print(report: &Report, printer: &Printer) -> Result<(), Failure> {
    if printer.json() { printer.object(report) } else { printer.data(&table(report)) }
}

fn table(report: &Report) -> String {
    let Some(against) = report.against else {
        let mut table = Table::new(["type", ">tokens", &format!(">{}", report.by.name()), ">spread"]);
        for product in &report.products {
            let [speed, spread] = Speed::cells(product.by);
            table.row([product.dtype.to_owned(), product.tokens.to_string(), speed, spread]);
        }
        return table.to_string();
    };
    let (by, against) = (format!(">{}", report.by.name()), format!(">{}", against.name()));
    let mut table = Table::new(["type", ">tokens", &by, ">spread", &against, ">spread", ">ratio"]);
    for product in &report.products {
        let ([speed, spread], [other, other_spread]) = (Speed::cells(product.by), Speed::cells(product.against));
        let ratio = product.ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
        table.row([product.dtype.to_owned(), product.tokens.to_string(), speed, spread, other, other_spread, ratio]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_operations_over_time() {
        let speed = Speed::of(6e9, &[1.0, 3.0, 2.0]);
        assert_eq!((speed.median, speed.slowest, speed.fastest), (3.0, 2.0, 6.0));
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.0);
    }
}
