//! `pinhole bench encode`: a prompt's tokens to hidden states.

use pinhole::plan::Phase;
use pinhole::sample::randn;
use pinhole::source::networks;
use pinhole::source::slot::TEXT_ENCODER_2;
use pinhole::stage::{Cadence, Dims, Symbol};

use super::{Computed, Report, WayArgs};
use crate::cli::bench::subject::{Measured, SubjectArgs};
use crate::cli::failure::Failure;
use crate::cli::printer::{Printer, Talk};
use crate::cli::{interrupt, threads};

/// Measure encoding a prompt with T5: time, and peak memory on the device
///
/// Embedded tokens are random. The peak counts copied weights, tensors between layers, intermediate results and work space.
/// CLIP, a fortieth of T5, is not measured.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    subject: SubjectArgs,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = threads::tokens())]
    text_tokens: usize,
    #[command(flatten)]
    ways: WayArgs,
    #[command(flatten)]
    pub(in crate::cli::bench) talk: Talk,
}

const EXAMPLES: &str = "\
Examples:
  pinhole bench encode --arch flux-dev --type q8_0
  pinhole bench encode -m dev.gguf --text-tokens 256 --device cpu:discrete --vram 1G --json";

pub(in crate::cli::bench) fn run(args: &Args, printer: &Printer) -> Result<(), Failure> {
    let cancel = interrupt::cancel_flag(printer);
    let (threads, _inside) = threads::start(args.ways.threads);
    let subject = args.subject.open(Measured::Part(&TEXT_ENCODER_2), (printer, &cancel))?;
    let (t5, config) = networks::t5(subject.source.component(&TEXT_ENCODER_2)?)?;
    let tokens = args.text_tokens;
    let computed = Computed {
        name: "t5",
        phase: Phase::Encode,
        model: &t5.net.model,
        bound: &t5.bound,
        dims: Dims::new()
            .with(Symbol::BATCH, 1)
            .with(Symbol::TEXT_TOKENS, tokens)
            .with(Symbol::TEXT_PAIRS, tokens * tokens),
        steps: 0,
    };
    let (hidden, buckets) = (randn(5, tokens * config.d_model)?, config.buckets(tokens)?);
    let (device, ways) = computed.measure(&args.ways, threads, (printer, &cancel), |session, backend| {
        session.set_indices(t5.net.buckets, &buckets)?;
        session.set(t5.net.hidden, &hidden)?;
        session.run(backend, Cadence::Request, |_, _| cancel.check())
    })?;
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        model: subject.name,
        component: computed.name,
        device: device.name(),
        threads,
        size: vec![tokens],
        runs: args.ways.runs,
        ways,
    };
    report.print(printer)
}
