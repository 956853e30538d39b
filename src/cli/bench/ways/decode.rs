//! `pinhole bench decode`: latents to a picture.

use pinhole::plan::Phase;
use pinhole::sample::randn;
use pinhole::source::networks::{AutoencoderKl, autoencoder_kl};
use pinhole::source::slot::VAE;
use pinhole::stage::{Dims, Symbol};

use super::{Computed, Report, WayArgs};
use crate::cli::bench::subject::{Measured, SubjectArgs};
use crate::cli::failure::Failure;
use crate::cli::printer::{Printer, Talk};
use crate::cli::{interrupt, threads};

/// Measure decoding a picture, whole and in strips: time, and peak memory on the device
///
/// Latents are random. The peak counts copied weights, feature maps, intermediate results and work space.
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
    #[command(flatten)]
    ways: WayArgs,
    #[command(flatten)]
    pub(in crate::cli::bench) talk: Talk,
}

const EXAMPLES: &str = "\
Examples:
  pinhole bench decode --arch flux-dev --device cpu:discrete
  pinhole bench decode -m dev.gguf --width 1024 --height 1024 --device cpu:discrete --vram 1G";

pub(in crate::cli::bench) fn run(args: &Args, printer: &Printer) -> Result<(), Failure> {
    let cancel = interrupt::cancel_flag(printer);
    let (threads, _inside) = threads::start(args.ways.threads);
    crate::cli::bench::denoiser::check_size(args.width, args.height)?;
    let subject = args.subject.open(Measured::Part(&VAE), (printer, &cancel))?;
    let AutoencoderKl { decoder, config, .. } = autoencoder_kl(subject.source.component(&VAE)?)?;
    let (w, h) = (args.width / 8, args.height / 8);
    let computed = Computed {
        name: "decoder",
        phase: Phase::Decode,
        model: &decoder.net.model,
        bound: &decoder.bound,
        dims: Dims::new().with(Symbol::BATCH, 1).with(Symbol::LATENT_WIDTH, w).with(Symbol::LATENT_HEIGHT, h),
    };
    let latents = randn(5, w * h * config.latent_channels)?;
    let (device, ways) = computed
        .measure(&args.ways, threads, (printer, &cancel), |session| session.set(decoder.net.latents, &latents))?;
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        model: subject.name,
        component: computed.name,
        device: device.name(),
        threads,
        size: vec![args.width, args.height],
        runs: args.ways.runs,
        ways,
    };
    report.print(printer)
}
