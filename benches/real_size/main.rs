//! One forward of a FLUX.1 transformer of real size, with random weights: how long it takes to load once cached, how long
//! to compute, and how much memory that costs.
//!
//! ```text
//! cargo bench --bench real_size -- --cache DIR [--arch flux-dev|flux-schnell] [--type q8_0] [--size 256x256]
//!                                  [--text-tokens 512] [--threads N] [--json]
//! ```
//!
//! The synthetic model is written to DIR once, with text encoders and autoencoder (18 GB at q8_0, 9.9 GB at q4_k_s), and
//! kept there: what `pinhole bench model` writes.

// A bench's table is its output.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use pinhole::exec::{DeviceWeights, Session};
use pinhole::ggml::{Backend, CancelFlag, Device, Ledger};
use pinhole::memory::{PeakMemory, Peaks};
use pinhole::models::flux::{Flux, sinusoid};
use pinhole::sample::randn;
use pinhole::source::Part;
use pinhole::source::Source;
use pinhole::source::networks::flux as transformer;
use pinhole::source::slot::TRANSFORMER;
use pinhole::stage::{Cadence, Dims, Symbol};
use pinhole::synthetic::{self, Architecture};
use pinhole_quant::recipe::FileType;
use serde_json::json;

#[derive(Parser)]
#[command(about = "Time one forward of a FLUX.1 transformer of real size")]
struct Options {
    /// Where the synthetic model is kept.
    #[arg(long)]
    cache: PathBuf,
    /// flux-dev or flux-schnell.
    #[arg(long, default_value = "flux-dev")]
    arch: String,
    /// The number format of its matrices.
    #[arg(long = "type", default_value = "q8_0")]
    file_type: String,
    /// Of the picture, in pixels.
    #[arg(long, default_value = "256x256")]
    size: String,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 512)]
    text_tokens: usize,
    /// All cores by default.
    #[arg(long)]
    threads: Option<usize>,
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// What `cargo bench` passes to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What was measured.
struct Measured {
    load: Duration,
    once: Duration,
    step: Duration,
    /// `None` where the system does not say.
    peaks: Option<Peaks>,
    allocated: usize,
    mapped: usize,
    copied: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let (architecture, file_type) = (options.arch.parse::<Architecture>()?, options.file_type.parse::<FileType>()?);
    let path = options.cache.join(format!("{}-{file_type}.gguf", options.arch));
    if !path.exists() {
        eprintln!("writing {}", path.display());
        let model = synthetic::Options { architecture, file_type, blocks: None, hollow: false, only: None };
        synthetic::write(&path, &model, |_| Ok(()))?;
    }
    let threads = options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    warm(&path)?;
    let measured = measure(&path, &options, threads)?;
    report(&options, threads, &measured);
    Ok(())
}

/// Reads the file once, so that what is measured is a cached model.
fn warm(path: &std::path::Path) -> std::io::Result<()> {
    std::io::copy(&mut std::fs::File::open(path)?, &mut std::io::sink()).map(|_| ())
}

fn measure(path: &std::path::Path, options: &Options, threads: usize) -> Result<Measured, Box<dyn Error>> {
    let (width, height) = options.size.split_once('x').ok_or("--size takes WIDTHxHEIGHT")?;
    let (columns, rows) = (width.parse::<usize>()? / 16, height.parse::<usize>()? / 16);
    let watch = PeakMemory::watch();
    let start = Instant::now();
    let source = Source::open(path)?;
    let Part { net, bound, .. } = transformer(source.component(&TRANSFORMER)?)?;
    let mut backend = Backend::new(Device::cpu()?, threads, CancelFlag::new())?;
    let ledger = Ledger::new();
    let weights = DeviceWeights::load(&net.model, &bound, backend.device(), &ledger)?;
    let dims = Dims::new()
        .with(Symbol::BATCH, 1)
        .with(Symbol::CONDITIONS, 1)
        .with(Symbol::IMAGE_TOKENS, rows * columns)
        .with(Symbol::TEXT_TOKENS, options.text_tokens)
        .with(Symbol::JOINT_TOKENS, options.text_tokens + rows * columns);
    let mut session = Session::new(&net.model, &weights, &dims, &backend, &ledger)?;
    let load = start.elapsed();

    fill(&net, &mut session, rows, columns, options.text_tokens)?;
    let start = Instant::now();
    session.run(&mut backend, Cadence::Request, |_, _| Ok(()))?;
    let once = start.elapsed();
    let start = Instant::now();
    session.run(&mut backend, Cadence::Step, |_, _| Ok(()))?;
    let step = start.elapsed();
    let velocity = session.get(net.ports.velocity)?;
    if velocity.iter().any(|value| !value.is_finite()) {
        return Err("the forward gave numbers that are not finite".into());
    }
    Ok(Measured {
        load,
        once,
        step,
        peaks: watch.peaks(),
        allocated: ledger.usage().peak,
        mapped: weights.mapped_bytes(),
        copied: weights.copied_bytes(),
    })
}

/// Random inputs of a usual size.
fn fill(net: &Flux, session: &mut Session<'_>, rows: usize, columns: usize, text: usize) -> pinhole::Result<()> {
    let (config, ports) = (net.config(), &net.ports);
    session.set(ports.time, &sinusoid(700.0))?;
    if let Some(guidance) = ports.guidance {
        session.set(guidance, &sinusoid(3500.0))?;
    }
    session.set(ports.pooled, &randn(1, config.pooled_projection_dim)?)?;
    session.set(ports.text, &randn(2, config.joint_attention_dim * text)?)?;
    session.set(ports.latents, &randn(3, config.in_channels * rows * columns)?)?;
    let (cos, sin) = net.rotary(text, &[[rows, columns]])?;
    session.set(ports.cos, &cos)?;
    session.set(ports.sin, &sin)?;
    session.set_indices(ports.condition, &[0])
}

fn report(options: &Options, threads: usize, measured: &Measured) {
    let mib = |bytes: f64| bytes / (1 << 20) as f64;
    let peak = |of: fn(Peaks) -> u64| measured.peaks.map_or(f64::NAN, |peaks| mib(of(peaks) as f64));
    let rows = [
        ("load, cached (s)", measured.load.as_secs_f64()),
        ("modulation and context, once a request (s)", measured.once.as_secs_f64()),
        ("one step (s)", measured.step.as_secs_f64()),
        ("peak anonymous memory (MiB)", peak(|peaks| peaks.anonymous)),
        ("peak resident pages of files (MiB)", peak(|peaks| peaks.file)),
        ("allocated for weights, ports, activations (MiB)", mib(measured.allocated as f64)),
        ("weights used in the map (MiB)", mib(measured.mapped as f64)),
        ("weights converted (MiB)", mib(measured.copied as f64)),
    ];
    if options.json {
        let values: serde_json::Map<_, _> = rows.iter().map(|(name, value)| ((*name).into(), json!(value))).collect();
        let setup =
            json!({ "arch": options.arch, "type": options.file_type, "size": options.size, "threads": threads });
        println!("{}", json!({ "setup": setup, "measured": values }));
        return;
    }
    println!(
        "{} {} at {}, {} text tokens, {threads} threads",
        options.arch, options.file_type, options.size, options.text_tokens
    );
    for (name, value) in rows {
        println!("| {name:<48} | {value:>10.2} |");
    }
}
