//! `pinhole bench matmul`: how fast matrix products are, by type and number of tokens.

mod measure;
pub(super) mod report;

use std::str::FromStr;

use clap::ValueEnum;
use pinhole::Error;
use pinhole::kernels::Kernel;
use pinhole_quant::DType;
use serde::Serialize;

use crate::cli::failure::Failure;
use crate::cli::printer::{Printer, Talk};
use crate::cli::{interrupt, threads};
use measure::Bench;
use report::Report;

/// Measure how fast the CPU multiplies matrices: types of weights by numbers of tokens, in GFLOP/s
///
/// A product of weights and activations is computed as a model's graph would. Every round computes every product once, one
/// after another, so that a machine that slows down slows all of them; columns are medians over the rounds with the
/// slowest and the fastest. Weights come from memory, as a model's do: before each product, caches are filled with something
/// else. With --against each product is computed in two ways, side by side, and the last column is the
/// median of their ratios.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) struct Args {
    /// Types of the weights
    #[arg(
        long,
        value_name = "TYPE,...",
        value_delimiter = ',',
        default_value = "q8_0,q5_1,q5_0,q4_1,q4_0,q6_k,q5_k,q4_k,bf16,f16,f32"
    )]
    types: Vec<String>,
    /// Tokens that are multiplied at once
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,32,256,768", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    tokens: Vec<u32>,
    /// Inputs and outputs of the weights
    #[arg(long, value_name = "KxM", default_value = "3072x12288")]
    size: Size,
    /// Rounds that are measured, after one that is not
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Who multiplies
    #[arg(long, value_name = "WHO", default_value = "pinhole")]
    by: Multiplier,
    /// Measure these too, in the same rounds, and compare
    #[arg(long, value_name = "WHO")]
    against: Option<Multiplier>,
    /// Threads [default: one for each core]
    #[arg(long, value_name = "N", value_parser = threads::parser())]
    threads: Option<usize>,
    #[command(flatten)]
    pub(super) talk: Talk,
}

const EXAMPLES: &str = "\
Examples:
  pinhole bench matmul --types q8_0,q4_1,q4_k --tokens 768 --against ggml
  pinhole bench matmul --size 4096x16384 --threads 1 --json";

/// Whose kernels multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum Multiplier {
    /// ggml's, for all types
    Ggml,
    /// pinhole's where there are some for the type and the processor, else ggml's: what models use
    Pinhole,
}

impl Multiplier {
    pub(super) fn kernel(self) -> Option<Kernel> {
        match self {
            Multiplier::Ggml => None,
            Multiplier::Pinhole => Kernel::best(),
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Multiplier::Ggml => "ggml",
            Multiplier::Pinhole => "pinhole",
        }
    }
}

/// Extents of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Size {
    inputs: usize,
    outputs: usize,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        // Large enough for any model, and small enough that no product of extents overflows.
        let extent = |text: &str| text.parse().ok().filter(|extent| (1..=1 << 20).contains(extent));
        let parts = text.split_once('x').and_then(|(inputs, outputs)| Some((extent(inputs)?, extent(outputs)?)));
        let (inputs, outputs) = parts.ok_or("two numbers from 1 to 1048576, as in 3072x12288")?;
        Ok(Size { inputs, outputs })
    }
}

pub(super) fn run(args: &Args, printer: &Printer) -> Result<(), Failure> {
    let cancel = interrupt::cancel_flag(printer);
    let (threads, _inside) = threads::start(args.threads);
    let types = types(&args.types, args.size)?;
    let tokens: Vec<usize> = args.tokens.iter().map(|&tokens| tokens as usize).collect();
    let multipliers = [Some(args.by), args.against];
    let mut bench = Bench::new(args.size, threads, cancel)?;
    printer.begin("measure", u64::from(args.rounds) + 1, crate::cli::printer::Unit::Parts);
    let rows = bench.measure(&types, &tokens, &multipliers, args.rounds as usize, || printer.advance())?;
    printer.end("measure");
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        kernel: Kernel::best().map_or("none", Kernel::name),
        threads,
        size: args.size,
        rounds: args.rounds as usize,
        by: args.by,
        against: args.against,
        products: rows,
    };
    report::print(&report, printer)
}

/// The types that are named. Each must be one of a matrix and divide its rows.
fn types(names: &[String], size: Size) -> Result<Vec<DType>, Error> {
    let known = || DType::all().filter(|&dtype| pinhole::ggml::support::matrix(dtype));
    names
        .iter()
        .map(|name| {
            let dtype = known().find(|dtype| dtype.name() == name.trim());
            let dtype = dtype.ok_or_else(|| {
                let names: Vec<&str> = known().map(DType::name).collect();
                Error::option("--types", format!("some of {}", names.join(", ")), format!("`{name}`"))
            })?;
            if !pinhole_quant::rows::can_quantize(dtype) {
                return Err(Error::option("--types", "types that rows are quantized to", format!("`{name}`")));
            }
            if dtype.row_bytes(size.inputs).is_none() {
                let expected = format!("a multiple of {} inputs for {dtype}", dtype.block_size());
                return Err(Error::option("--size", expected, size.inputs.to_string()));
            }
            Ok(dtype)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_two_numbers() {
        assert_eq!("3072x12288".parse(), Ok(Size { inputs: 3072, outputs: 12288 }));
        for text in ["", "3072", "x", "0x1", "1x-1", "1x1048577", "1x2x3"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
