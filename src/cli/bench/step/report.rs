//! What was measured, as tables and as JSON.

use serde::Serialize;

use super::measure::{Measured, StageTimes, Work};
use crate::cli::bench::matmul::{Multiplier, report::median};
use crate::cli::failure::Failure;
use crate::cli::printer::Printer;
use crate::cli::table::Table;

/// The JSON of a run.
#[derive(Serialize)]
pub(super) struct Report {
    pub(super) version: &'static str,
    pub(super) model: String,
    /// pinhole's kernel for this processor, or `none`.
    pub(super) kernel: &'static str,
    pub(super) threads: usize,
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) text_tokens: usize,
    pub(super) steps: u16,
    pub(super) attention: &'static str,
    pub(super) ways: Vec<Way>,
    /// How many times longer a step of the second way takes, median over rounds.
    pub(super) against_over_by: Option<f64>,
}

/// Steps with one's products.
#[derive(Serialize)]
pub(super) struct Way {
    by: Multiplier,
    /// All of it.
    step: Row,
    /// The lowest and the highest ratio of a round.
    over_alone_spread: [f64; 2],
    /// Stages that are alike together.
    kinds: Vec<Row>,
    stages: Vec<Row>,
    operations: Vec<Operation>,
}

/// One stage, or several.
#[derive(Serialize)]
struct Row {
    name: String,
    stages: usize,
    seconds: f64,
    products_seconds: f64,
    attentions_seconds: f64,
    /// Of the products alone.
    products_gflops: Option<f64>,
    attentions_gflops: Option<f64>,
    /// GB of weights a second, while products are computed alone.
    weights_gb_per_second: Option<f64>,
    /// The share of the time beyond products and attentions alone.
    outside: f64,
    /// The time over that of products and attentions alone.
    over_alone: Option<f64>,
}

/// All operations of one kind in a step, timed in one more.
#[derive(Serialize)]
struct Operation {
    name: String,
    count: usize,
    seconds: f64,
    share: f64,
}

impl Way {
    pub(super) fn of(measured: &Measured) -> Way {
        let all: Vec<&StageTimes> = measured.stages.iter().collect();
        let mut kinds: Vec<(&str, Vec<&StageTimes>)> = Vec::new();
        for stage in &measured.stages {
            let kind = stage.name.split('.').next().unwrap_or(&stage.name);
            match kinds.last_mut() {
                Some((last, stages)) if *last == kind => stages.push(stage),
                _ => kinds.push((kind, vec![stage])),
            }
        }
        let mut ratios: Vec<f64> =
            rounds(&all).zip(alone(&all)).map(|(seconds, alone)| seconds / alone).filter(|r| r.is_finite()).collect();
        ratios.sort_by(f64::total_cmp);
        let end = |ratio: Option<&f64>| ratio.copied().unwrap_or_default();
        Way {
            by: measured.by,
            step: Row::of("step", &all),
            over_alone_spread: [end(ratios.first()), end(ratios.last())],
            kinds: kinds.iter().map(|(name, stages)| Row::of(name, stages)).collect(),
            stages: all.iter().map(|stage| Row::of(&stage.name, &[stage])).collect(),
            operations: operations(measured),
        }
    }
}

fn operations(measured: &Measured) -> Vec<Operation> {
    let total: f64 = measured.operations.values().map(|times| times.time.as_secs_f64()).sum();
    let mut all: Vec<Operation> = measured
        .operations
        .iter()
        .map(|(name, times)| {
            let seconds = times.time.as_secs_f64();
            Operation { name: name.clone(), count: times.count, seconds, share: seconds / total }
        })
        .collect();
    all.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    all
}

/// What `stages` took together, round by round.
fn rounds<'a>(stages: &'a [&'a StageTimes]) -> impl Iterator<Item = f64> + 'a {
    let count = stages.first().map_or(0, |stage| stage.seconds.len());
    (0..count).map(|round| stages.iter().map(|stage| stage.seconds[round]).sum())
}

fn works<'a>(stages: &'a [&'a StageTimes], of: fn(&StageTimes) -> &Work) -> impl Iterator<Item = f64> + 'a {
    let count = stages.first().map_or(0, |stage| stage.seconds.len());
    (0..count).map(move |round| {
        stages.iter().filter_map(|stage| of(stage).seconds.get(round)).fold(0.0, |sum, seconds| sum + seconds)
    })
}

/// What products and attentions of `stages` took alone, round by round.
fn alone<'a>(stages: &'a [&'a StageTimes]) -> impl Iterator<Item = f64> + 'a {
    works(stages, |stage| &stage.products).zip(works(stages, |stage| &stage.attentions)).map(|(a, b)| a + b)
}

impl Row {
    fn of(name: &str, stages: &[&StageTimes]) -> Row {
        let median = |seconds: &mut dyn Iterator<Item = f64>| median(&mut seconds.collect::<Vec<_>>());
        let seconds = median(&mut rounds(stages));
        let products_seconds = median(&mut works(stages, |stage| &stage.products));
        let attentions_seconds = median(&mut works(stages, |stage| &stage.attentions));
        let alone = median(&mut alone(stages));
        let sum = |of: fn(&StageTimes) -> u64| stages.iter().map(|stage| of(stage)).sum::<u64>() as f64;
        let billions = |count: f64, seconds: f64| (seconds > 0.0).then(|| count / seconds / 1e9);
        Row {
            name: name.to_owned(),
            stages: stages.len(),
            seconds,
            products_seconds,
            attentions_seconds,
            products_gflops: billions(sum(|stage| stage.products.operations), products_seconds),
            attentions_gflops: billions(sum(|stage| stage.attentions.operations), attentions_seconds),
            weights_gb_per_second: billions(sum(|stage| stage.products.weight_bytes), products_seconds),
            outside: 1.0 - alone / seconds,
            over_alone: (alone > 0.0).then(|| seconds / alone),
        }
    }

    fn cells(&self) -> [String; 10] {
        let number = |number: Option<f64>, digits: usize| number.map_or("-".into(), |n| format!("{n:.digits$}"));
        [
            self.name.clone(),
            self.stages.to_string(),
            format!("{:.4}", self.seconds),
            number((self.products_seconds > 0.0).then_some(self.products_seconds), 4),
            number((self.attentions_seconds > 0.0).then_some(self.attentions_seconds), 4),
            number(self.products_gflops, 1),
            number(self.attentions_gflops, 1),
            number(self.weights_gb_per_second, 2),
            format!("{:.1} %", 100.0 * self.outside),
            number(self.over_alone, 3),
        ]
    }
}

/// How many times longer a step of the second of two ways takes, median over rounds.
pub(super) fn against_over_by(measured: &[Measured]) -> Option<f64> {
    let [by, against] = measured else { return None };
    let steps = |measured: &Measured| rounds(&measured.stages.iter().collect::<Vec<_>>()).collect::<Vec<_>>();
    Some(median(&mut steps(against).iter().zip(steps(by)).map(|(against, by)| against / by).collect::<Vec<_>>()))
}

/// Prints the tables, or with `--json` everything.
pub(super) fn print(report: &Report, printer: &Printer) -> Result<(), Failure> {
    if printer.json() {
        return printer.object(report);
    }
    for (i, way) in report.ways.iter().enumerate() {
        if i > 0 {
            printer.data("\n")?;
        }
        let first = format!("by {}", way.by.name());
        let mut table = Table::new([
            &first,
            ">stages",
            ">seconds",
            ">products",
            ">attention",
            ">GFLOP/s",
            ">attention's",
            ">weights GB/s",
            ">outside",
            ">/ alone",
        ]);
        way.kinds.iter().chain([&way.step]).for_each(|row| table.row(row.cells()));
        printer.data(&table.to_string())?;
        if !way.operations.is_empty() {
            let mut table = Table::new(["operation", ">count", ">time", ">share"]);
            for Operation { name, count, seconds, share } in &way.operations {
                let cells =
                    [name.clone(), count.to_string(), format!("{seconds:.4} s"), format!("{:.1} %", 100.0 * share)];
                table.row(cells);
            }
            printer.data(&format!("\n{table}"))?;
        }
        let [low, high] = way.over_alone_spread;
        let name = way.by.name();
        printer.note(&format!("by {name}: rounds are {low:.3} to {high:.3} times their products and attentions alone"));
    }
    if let (Some(ratio), [by, against]) = (report.against_over_by, report.ways.as_slice()) {
        printer.note(&format!("a step by {} takes {ratio:.2} times one by {}", against.by.name(), by.by.name()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_outside_is_what_is_left() {
        let stage = |name: &str, seconds: &[f64]| StageTimes {
            name: name.into(),
            seconds: seconds.to_vec(),
            products: Work { seconds: vec![1.0, 3.0, 2.0], operations: 4_000_000_000, weight_bytes: 2 },
            attentions: Work::default(),
        };
        let stages = [stage("double.0", &[2.0, 4.0, 3.0]), stage("double.1", &[3.0, 5.0, 2.0])];
        let measured = Measured { by: Multiplier::Ggml, stages: stages.into(), operations: Default::default() };
        let way = Way::of(&measured);
        let [double] = way.kinds.as_slice() else { panic!("one kind") };
        assert_eq!((double.name.as_str(), double.stages), ("double", 2));
        // Rounds take 5, 9 and 5 seconds; alone 2, 6 and 4.
        assert_eq!((double.seconds, double.products_seconds, double.over_alone), (5.0, 4.0, Some(1.25)));
        assert_eq!((double.products_gflops, double.attentions_gflops), (Some(2.0), None));
        assert_eq!(way.over_alone_spread, [1.25, 2.5]);
        assert_eq!(way.stages.len(), 2);
    }
}
