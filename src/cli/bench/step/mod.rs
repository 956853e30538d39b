//! `pinhole bench step`: what a denoising step takes, stage by stage, and how much of it is not arithmetic that must be.

mod measure;
mod report;

use super::denoiser::{self, Denoiser, Size};
use super::matmul::Multiplier;
use super::subject::{Measured, SubjectArgs};
use crate::cli::failure::Failure;
use crate::cli::printer::{Printer, Talk, Unit};
use crate::cli::request::attention_parser;
use crate::cli::{interrupt, threads};
use pinhole::pipeline::AttentionMode;
use report::Report;

/// Measure a denoising step on the CPU, stage by stage, beside its matrix products and attentions alone
///
/// Every round computes each stage and then, in graphs of their own, the same matrix products with the same weights and the
/// same attentions. What a stage takes beyond these is spent on everything else: norms, modulation, rotary positions,
/// copies. Times are medians over the rounds; the ratio of a step to its products and attentions is that of medians, with the
/// lowest and the highest of a round.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    subject: SubjectArgs,
    /// Pixels across, a multiple of 16
    #[arg(long, value_name = "W", default_value_t = 512)]
    width: usize,
    /// Pixels down, a multiple of 16
    #[arg(long, value_name = "H", default_value_t = 512)]
    height: usize,
    /// Tokens of the prompt [default: as many as models of this family take: 512 for FLUX.1, 77 for Stable Diffusion]
    #[arg(long, value_name = "N", value_parser = threads::tokens())]
    text_tokens: Option<usize>,
    /// Steps that are measured, after one that is not
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    steps: u16,
    /// Who multiplies
    #[arg(long, value_name = "WHO", default_value = "pinhole")]
    by: Multiplier,
    /// Measure steps with these products too, in the same rounds, and compare
    #[arg(long, value_name = "WHO")]
    against: Option<Multiplier>,
    /// How exact attention is, as in `generate`
    #[arg(long, value_name = "MODE", value_parser = attention_parser(), default_value = AttentionMode::default().name())]
    attention: AttentionMode,
    /// Say what each kind of operation takes, too
    #[arg(long)]
    operations: bool,
    /// Threads [default: one for each core]
    #[arg(long, value_name = "N", value_parser = threads::parser())]
    threads: Option<usize>,
    #[command(flatten)]
    pub(super) talk: Talk,
}

const EXAMPLES: &str = "\
Examples:
  pinhole bench step --arch flux-dev --type q4_1 --blocks 2 --against ggml
  pinhole bench step --arch sd1.5 --type q8_0 --operations
  pinhole bench step -m dev.gguf --width 1024 --height 1024 --steps 3 --operations --json";

pub(super) fn run(args: &Args, printer: &Printer) -> Result<(), Failure> {
    let cancel = interrupt::cancel_flag(printer);
    let (threads, _inside) = threads::start(args.threads);
    denoiser::check_size(args.width, args.height)?;
    let subject = args.subject.open(Measured::Denoiser, (printer, &cancel))?;
    let size = Size { width: args.width, height: args.height, text_tokens: args.text_tokens };
    let mut denoiser = Denoiser::open(&subject.source, size, threads, cancel)?;
    denoiser.set_attention(args.attention);
    printer.begin("measure", u64::from(args.steps) + 1, Unit::Parts);
    let ways: Vec<Multiplier> = std::iter::once(args.by).chain(args.against).collect();
    let measured = measure::measure(&denoiser, &ways, args.steps.into(), args.operations, || printer.advance())?;
    printer.end("measure");
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        model: subject.name,
        kernel: pinhole::kernels::Kernel::best().map_or("none", pinhole::kernels::Kernel::name),
        threads,
        width: args.width,
        height: args.height,
        text_tokens: denoiser.text_tokens(),
        steps: args.steps,
        attention: args.attention.name(),
        ways: measured.iter().map(report::Way::of).collect(),
        against_over_by: report::against_over_by(&measured),
    };
    report::print(&report, printer)
}
