//! `pinhole bench decode`: latents to a picture.

use pinhole::Error;
use pinhole::ggml::{CancelFlag, Device};
use pinhole::plan::Phase;
use pinhole::sample::randn;
use pinhole::source::Component;
use pinhole::source::networks::{AutoencoderKl, autoencoder_causal_of_films, autoencoder_kl};
use pinhole::source::slot::VAE;
use pinhole::stage::{Cadence, Dims, Symbol};

use super::{Computed, Report, Row, WayArgs};
use crate::cli::bench::subject::{Measured, SubjectArgs};
use crate::cli::failure::Failure;
use crate::cli::printer::{Printer, Talk};
use crate::cli::{interrupt, threads};

/// Measure decoding a picture or a film, whole and in strips: time, and peak memory on the device
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
    /// Decode a film of so many frames, one more than a multiple of 4
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    frames: Option<u16>,
    #[command(flatten)]
    ways: WayArgs,
    #[command(flatten)]
    pub(in crate::cli::bench) talk: Talk,
}

const EXAMPLES: &str = "\
Examples:
  pinhole bench decode --arch flux-dev --device cpu:discrete
  pinhole bench decode -m dev.gguf --width 1024 --height 1024 --device cpu:discrete --vram 1G
  pinhole bench decode --arch wan-1.3b --frames 17 --width 832 --height 480 --device cpu:discrete --vram 512M --host-memory 2G";

pub(in crate::cli::bench) fn run(args: &Args, printer: &Printer) -> Result<(), Failure> {
    let cancel = interrupt::cancel_flag(printer);
    let (threads, _inside) = threads::start(args.ways.threads);
    crate::cli::bench::denoiser::check_size(args.width, args.height)?;
    let subject = args.subject.open(Measured::Part(&VAE), (printer, &cancel))?;
    let component = subject.source.component(&VAE)?;
    let (device, ways) = match args.frames {
        None => picture(args, component, threads, (printer, &cancel))?,
        Some(frames) => film(args, frames.into(), component, threads, (printer, &cancel))?,
    };
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        model: subject.name,
        component: NAME,
        device: device.name(),
        threads,
        size: [args.width, args.height].into_iter().chain(args.frames.map(usize::from)).collect(),
        runs: args.ways.runs,
        ways,
    };
    report.print(printer)
}

/// How reports call it.
const NAME: &str = "decoder";

fn picture(
    args: &Args,
    component: &Component,
    threads: usize,
    (printer, cancel): (&Printer, &CancelFlag),
) -> Result<(Device, Vec<Row>), Failure> {
    let AutoencoderKl { decoder, config, .. } = autoencoder_kl(component)?;
    let (w, h) = (args.width / 8, args.height / 8);
    let computed = Computed {
        name: NAME,
        phase: Phase::Decode,
        model: &decoder.net.model,
        bound: &decoder.bound,
        dims: Dims::new().with(Symbol::BATCH, 1).with(Symbol::LATENT_WIDTH, w).with(Symbol::LATENT_HEIGHT, h),
        steps: 0,
    };
    let latents = randn(5, w * h * config.latent_channels)?;
    computed.measure(&args.ways, threads, (printer, cancel), |session, backend| {
        session.set(decoder.net.latents, &latents)?;
        session.run(backend, Cadence::Request, |_, _| cancel.check())
    })
}

/// One latent frame after the other. The first stands for one frame, and each other one for four.
fn film(
    args: &Args,
    frames: usize,
    component: &Component,
    threads: usize,
    (printer, cancel): (&Printer, &CancelFlag),
) -> Result<(Device, Vec<Row>), Failure> {
    if frames % 4 != 1 {
        return Err(Error::option("--frames", "one more than a multiple of 4", frames.to_string()).into());
    }
    let vae = autoencoder_causal_of_films(component)?;
    let Some(film) = &vae.film else {
        return Err(Error::option("--frames", "an autoencoder of films", "one of pictures").into());
    };
    let (net, following) = (&film.decoder.net, frames / 4);
    let (w, h) = (args.width / vae.config.factor(), args.height / vae.config.factor());
    let computed = Computed {
        name: NAME,
        phase: Phase::Decode,
        model: &net.model,
        bound: &film.decoder.bound,
        dims: Dims::new().with(Symbol::LATENT_WIDTH, w).with(Symbol::LATENT_HEIGHT, h),
        steps: following,
    };
    let latents = randn(5, w * h * vae.config.z_dim)?;
    computed.measure(&args.ways, threads, (printer, cancel), |session, backend| {
        for band in 0..session.bands() {
            session.choose_band(band)?;
            for &port in &net.cleared {
                session.clear(port)?;
            }
            session.set(net.first_latents, &latents)?;
            session.run(backend, Cadence::Request, |_, _| cancel.check())?;
            session.get(net.first_picture)?;
            for _ in 0..following {
                session.set(net.latents, &latents)?;
                session.run(backend, Cadence::Step, |_, _| cancel.check())?;
                session.get(net.pictures)?;
            }
        }
        Ok(())
    })
}
