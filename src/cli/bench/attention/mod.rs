//! `pinhole bench attention`: how fast and how exact attention is, by width of heads and number of tokens.

mod measure;
mod report;
mod shape;

use super::matmul::Multiplier;
use crate::cli::failure::Failure;
use crate::cli::printer::{Printer, Talk, Unit};
use crate::cli::{interrupt, threads};
use measure::Bench;
use pinhole::kernels::Kernel;
use report::Report;
use shape::{By, Shape};

/// Measure how fast and how exact attention is on the CPU, by width of heads and number of tokens
///
/// Queries, keys and values are random and lie as a transformer has them. Every round computes every attention once, one after
/// another, so that a machine that slows down slows all of them; columns are GFLOP/s, medians over the rounds with the slowest and
/// the fastest, and the largest error of some queries, in double precision, relative to the largest value. With --against each
/// attention is computed in two ways, side by side, and the last column is the median of their ratios.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) struct Args {
    /// Width of a head, queries and keys of a head, and how many heads
    #[arg(
        long,
        value_name = "DxNxMxH,...",
        value_delimiter = ',',
        default_value = "40x4096x4096x8,40x4096x77x8,64x4096x4096x10,64x4096x77x10,128x4608x4608x4,160x256x256x8,512x4096x4096x1"
    )]
    shapes: Vec<Shape>,
    /// Rounds that are measured, after one that is not
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Who computes
    #[arg(long, value_name = "WHO", default_value = "pinhole")]
    by: Multiplier,
    /// What pinhole computes with
    #[arg(long, value_name = "HOW", default_value = "exact")]
    precision: By,
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
  pinhole bench attention --against ggml
  pinhole bench attention --precision codes
  pinhole bench attention --shapes 128x4608x4608x24 --threads 1 --json";

pub(super) fn run(args: &Args, printer: &Printer) -> Result<(), Failure> {
    let cancel = interrupt::cancel_flag(printer);
    let (threads, _inside) = threads::start(args.threads);
    let mut bench = Bench::new(threads, cancel)?;
    printer.begin("measure", u64::from(args.rounds) + 1, Unit::Parts);
    let ways = [Some(args.by), args.against];
    let precision = args.precision.precision();
    let attentions = bench.measure(&args.shapes, (ways, precision), args.rounds as usize, || printer.advance())?;
    printer.end("measure");
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        kernel: Kernel::best().map_or("none", Kernel::name),
        threads,
        rounds: args.rounds as usize,
        by: args.by,
        precision: args.precision,
        against: args.against,
        attentions,
    };
    report::print(&report, printer)
}
