//! `pinhole bench busy`: a step on processors that others use, too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use pinhole::exec::{DeviceWeights, Session};
use pinhole::ggml::{Backend, CancelFlag, Device, Ledger};
use pinhole::stage::Cadence;
use pinhole::{Error, Result};
use serde::Serialize;

use super::denoiser::{self, Denoiser, Size};
use super::matmul::report::median;
use super::subject::{Measured, SubjectArgs};
use crate::cli::failure::Failure;
use crate::cli::printer::{Printer, Talk, Unit};
use crate::cli::table::Table;
use crate::cli::{interrupt, threads};

/// Measure a denoising step while other threads compute: with one thread, and with as many as otherwise
///
/// Threads of a step wait for each other after every operation. On processors that others use, too, one that spins meanwhile
/// takes the time that the others need. Steps of both kinds are measured in turn; times are medians.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    subject: SubjectArgs,
    /// How many other threads compute all the while
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(..=256))]
    load: u16,
    /// Pixels across, a multiple of 16
    #[arg(long, value_name = "W", default_value_t = 64)]
    width: usize,
    /// Pixels down, a multiple of 16
    #[arg(long, value_name = "H", default_value_t = 64)]
    height: usize,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 77, value_parser = threads::tokens())]
    text_tokens: usize,
    /// Steps of each kind that are measured, after one that is not
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..))]
    steps: u16,
    /// Threads of the step [default: one for each core]
    #[arg(long, value_name = "N", value_parser = threads::parser())]
    threads: Option<usize>,
    #[command(flatten)]
    pub(super) talk: Talk,
}

const EXAMPLES: &str = "\
Examples:
  pinhole bench busy -m mini
  pinhole bench busy -m mini --load 16 --threads 2 --json";

#[derive(Serialize)]
struct Report {
    version: &'static str,
    model: String,
    load: u16,
    threads: usize,
    width: usize,
    height: usize,
    text_tokens: usize,
    steps: u16,
    /// Of a step with one thread.
    one_thread_seconds: f64,
    /// Of a step with all of them.
    seconds: f64,
    /// The second over the first.
    ratio: f64,
}

pub(super) fn run(args: &Args, printer: &Printer) -> Result<(), Failure> {
    let cancel = interrupt::cancel_flag(printer);
    let (threads, _inside) = threads::start(args.threads);
    denoiser::check_size(args.width, args.height)?;
    let subject = args.subject.open(Measured::Denoiser, (printer, &cancel))?;
    let size = Size { width: args.width, height: args.height, text_tokens: Some(args.text_tokens) };
    let denoiser = Denoiser::open(&subject.source, size, threads, cancel.clone())?;
    printer.begin("measure", u64::from(args.steps) + 1, Unit::Parts);
    let [one_thread_seconds, seconds] = measure(&denoiser, [1, threads], args, (printer, &cancel))?;
    printer.end("measure");
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        model: subject.name,
        load: args.load,
        threads,
        width: args.width,
        height: args.height,
        text_tokens: args.text_tokens,
        steps: args.steps,
        one_thread_seconds,
        seconds,
        ratio: seconds / one_thread_seconds,
    };
    if printer.json() {
        return printer.object(&report);
    }
    let mut table = Table::new(["threads", ">a step"]);
    for (threads, seconds) in [(1, one_thread_seconds), (threads, seconds)] {
        table.row([threads.to_string(), format!("{:.1} ms", 1e3 * seconds)]);
    }
    printer.data(&table.to_string())?;
    printer
        .note(&format!("beside {} threads that compute: {:.2} times the step of one thread", args.load, report.ratio));
    Ok(())
}

/// Seconds of a step with each number of threads, beside the load.
fn measure(
    denoiser: &Denoiser,
    threads: [usize; 2],
    args: &Args,
    (printer, cancel): (&Printer, &CancelFlag),
) -> Result<[f64; 2]> {
    let (device, ledger, model) = (Device::cpu()?, Ledger::new(), denoiser.model()?);
    let weights = DeviceWeights::load(model, denoiser.bound()?, device, &ledger)?;
    let mut ways: Vec<(Backend, Session<'_>, Vec<f64>)> = Vec::new();
    for threads in threads {
        let mut backend = Backend::new(device, threads, cancel.clone())?;
        let mut session = Session::new(model, &weights, &denoiser.dims()?, &backend, &ledger)?;
        denoiser.fill(&mut session)?;
        session.run(&mut backend, Cadence::Request, |_, _| cancel.check())?;
        ways.push((backend, session, Vec::new()));
    }
    let _others = Others::start(args.load)?;
    for counted in std::iter::once(false).chain(std::iter::repeat_n(true, args.steps.into())) {
        for (backend, session, seconds) in &mut ways {
            let start = Instant::now();
            session.run(backend, Cadence::Step, |_, _| cancel.check())?;
            if counted {
                seconds.push(start.elapsed().as_secs_f64());
            }
        }
        printer.advance();
    }
    let mut medians = ways.iter_mut().map(|(_, _, seconds)| median(seconds));
    Ok([medians.next().unwrap_or(0.0), medians.next().unwrap_or(0.0)])
}

/// Threads that compute until this is dropped.
struct Others {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Others {
    fn start(count: u16) -> Result<Others> {
        let mut others = Others { stop: Arc::default(), threads: Vec::new() };
        for _ in 0..count {
            let stop = Arc::clone(&others.stop);
            let thread = thread::Builder::new()
                .name("load".into())
                .spawn(move || {
                    let mut number = 1u64;
                    while !stop.load(Ordering::Relaxed) {
                        number = std::hint::black_box(number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
                    }
                })
                .map_err(|_| Error::no_thread())?;
            others.threads.push(thread);
        }
        Ok(others)
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It has nothing that panics.
            let _ = thread.join();
        }
    }
}
