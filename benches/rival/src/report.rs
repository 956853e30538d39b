//! The table, and the JSON.

use anyhow::Result;
use serde::Serialize;

use crate::Work;
use crate::contest::{Round, Sample};

/// Of a whole run.
#[derive(Serialize)]
pub(crate) struct Report {
    work: Work,
    threads: u16,
    /// What stable-diffusion.cpp was compiled with.
    pub(crate) system: String,
    pub(crate) types: Vec<TypeReport>,
}

/// Of one type.
#[derive(Serialize)]
pub(crate) struct TypeReport {
    #[serde(rename = "type")]
    pub(crate) file_type: String,
    /// What comes of the rounds.
    measures: Vec<Measure>,
    pub(crate) rounds: Vec<Round>,
}

/// One quantity, of both.
#[derive(Serialize)]
struct Measure {
    name: &'static str,
    unit: &'static str,
    pinhole: Spread,
    rival: Spread,
    /// The median of the rounds' ratios pinhole / rival.
    ratio: Spread,
}

#[derive(Clone, Copy, Serialize)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

/// A quantity: its name, its unit, what that is of the numbers', and where it is.
type Quantity = (&'static str, &'static str, f64, fn(&Sample) -> Option<f64>);

const QUANTITIES: [Quantity; 6] = [
    ("step", "s", 1.0, |sample| Some(sample.step_seconds)),
    ("decode", "s", 1.0, |sample| sample.decode_seconds),
    ("step, processor time", "s", 1.0, |sample| Some(sample.step_processor_seconds)),
    ("decode, processor time", "s", 1.0, |sample| sample.decode_processor_seconds),
    ("peak resident", "MiB", (1 << 20) as f64, |sample| Some(sample.peak_resident_bytes)),
    ("peak anonymous", "MiB", (1 << 20) as f64, |sample| Some(sample.peak_anonymous_bytes)),
];

impl Report {
    pub(crate) fn new(work: &Work, threads: u16, types: &[String]) -> Report {
        Report {
            work: work.clone(),
            threads,
            system: String::new(),
            types: types
                .iter()
                .map(|name| TypeReport { file_type: name.clone(), measures: Vec::new(), rounds: Vec::new() })
                .collect(),
        }
    }
}

impl TypeReport {
    fn measure(&mut self) {
        let rounds = &self.rounds;
        self.measures = QUANTITIES
            .iter()
            .filter_map(|&(name, unit, one, of)| {
                let all = |side: fn(&Round) -> &Sample| -> Option<Vec<f64>> {
                    rounds.iter().map(|round| Some(of(side(round))? / one)).collect()
                };
                let pinhole: Vec<f64> = all(|round| &round.pinhole)?;
                let rival: Vec<f64> = all(|round| &round.rival)?;
                let ratio = Spread::of(pinhole.iter().zip(&rival).map(|(pinhole, rival)| pinhole / rival).collect());
                Some(Measure { name, unit, pinhole: Spread::of(pinhole), rival: Spread::of(rival), ratio })
            })
            .collect();
    }
}

impl Spread {
    fn of(mut numbers: Vec<f64>) -> Spread {
        numbers.sort_by(f64::total_cmp);
        let end = |number: Option<&f64>| number.copied().unwrap_or(f64::NAN);
        let (low, high) = (numbers.get(numbers.len().saturating_sub(1) / 2), numbers.get(numbers.len() / 2));
        Spread { median: (end(low) + end(high)) / 2.0, least: end(numbers.first()), most: end(numbers.last()) }
    }

    fn show(&self, decimals: usize) -> String {
        let Spread { median, least, most } = self;
        format!("{median:.decimals$} | {least:.decimals$} to {most:.decimals$}")
    }
}

/// Prints `report` on stdout, as Markdown or as JSON.
pub(crate) fn print(report: &mut Report, json: bool) -> Result<()> {
    report.types.iter_mut().for_each(TypeReport::measure);
    if json {
        println!("{}", serde_json::to_string_pretty(report)?);
        return Ok(());
    }
    println!("stable-diffusion.cpp: {}\n", report.system);
    println!("| type | | pinhole | spread | stable-diffusion.cpp | spread | ratio | spread |");
    println!("|---|---|---|---|---|---|---|---|");
    for TypeReport { file_type, measures, .. } in &report.types {
        for Measure { name, unit, pinhole, rival, ratio } in measures {
            let decimals = if *unit == "s" { 2 } else { 0 };
            let (pinhole, rival) = (pinhole.show(decimals), rival.show(decimals));
            println!("| {file_type} | {name}, {unit} | {pinhole} | {rival} | {} |", ratio.show(2));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_ones() {
        let spread = Spread::of(vec![4.0, 1.0, 2.0, 8.0]);
        assert_eq!((spread.median, spread.least, spread.most), (3.0, 1.0, 8.0));
        assert_eq!(Spread::of(vec![4.0, 1.0, 8.0]).median, 4.0);
    }
}
