//! Converting the transformer of FLUX.1-dev at its real size: how much longer it takes than quantizing the same rows alone,
//! and how much memory.
//!
//! ```text
//! cargo bench --bench convert -- --cache DIR [--type q4_k_s] [--blocks N] [--threads N] [--json]
//! ```
//!
//! The source is a synthetic diffusers directory in bf16, sharded as the published one is. It is written to DIR once (23.8
//! GB; `--blocks 2` leaves all but two blocks of each kind out) and kept there. Rows alone are quantized twice, before and
//! after the conversion, since machines drift; no file is read or written then.

// A bench's table is its output.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod source;

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use pinhole::convert::{self, Options, Plan, Target, WriteOptions};
use pinhole::memory::PeakMemory;
use pinhole::models::flux::Config;
use pinhole::pipeline;
use pinhole::source::slot::TRANSFORMER;
use pinhole::source::{Files, Source};
use pinhole_quant::recipe::FileType;
use pinhole_quant::rows;
use pinhole_quant::workers::Workers;
use serde_json::json;

#[derive(Parser)]
#[command(about = "Time the conversion of a FLUX.1 transformer of real size")]
struct Arguments {
    /// Where the synthetic source is kept, and the result while it is written.
    #[arg(long)]
    cache: PathBuf,
    /// What it is converted to.
    #[arg(long = "type", default_value = "q4_k_s")]
    file_type: String,
    /// Double and single blocks, at most.
    #[arg(long)]
    blocks: Option<usize>,
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

/// How many numbers are quantized at once, as a conversion does.
const CHUNK: usize = 4 << 20;

/// How many numbers there are to quantize, over and over: more than caches hold.
const POOL: usize = 64 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let threads = arguments.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let _inside = Workers::new(threads).enter();
    let file_type: FileType = arguments.file_type.parse()?;

    let dev = Config::dev();
    let most = arguments.blocks.unwrap_or(usize::MAX);
    let (num_layers, num_single_layers) = (dev.num_layers.min(most), dev.num_single_layers.min(most));
    let folder = source::make(&arguments.cache, &Config { num_layers, num_single_layers, ..dev })?;
    let mut files = Files::default();
    files.add(TRANSFORMER.name, folder);
    let source = Source::assemble(None, &files)?;
    let (source, transformer) = pipeline::component(&source, &TRANSFORMER)?;
    let target = Target::Component(&TRANSFORMER);
    let plan = convert::plan(&source, &transformer.networks(), Options { target, ..file_type.into() })?;

    let before = quantize_alone(&plan)?;
    let memory = PeakMemory::watch();
    let (converted, finishing) = convert_to_file(&plan, &arguments.cache.join("convert-bench.gguf"))?;
    let anonymous = memory.peaks().map(|peaks| peaks.anonymous);
    drop(memory);
    let after = quantize_alone(&plan)?;
    let alone = (before + after) / 2.0;

    if arguments.json {
        let report = json!({
            "type": file_type.name(), "threads": threads, "source_bytes": source.bytes(), "bytes": plan.total_bytes,
            "seconds": { "alone_before": before, "alone_after": after, "convert": converted, "of_that_after_the_last_row": finishing },
            "ratio": converted / alone, "peak_anonymous_bytes": anonymous,
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    let gigabytes = |bytes: u64| bytes as f64 / 1e9;
    println!("transformer, {} from bf16, {threads} threads", file_type.name());
    println!("  source                        {:>8.2} GB", gigabytes(source.bytes() as u64));
    println!("  result                        {:>8.2} GB", gigabytes(plan.total_bytes));
    println!("  rows alone, before and after  {before:>8.1} s {after:>8.1} s");
    println!("  conversion                    {converted:>8.1} s  ({finishing:.1} s of it after the last row)");
    println!("  conversion / rows alone       {:>8.3}", converted / alone);
    if let Some(bytes) = anonymous {
        println!("  peak anonymous memory         {:>8.0} MiB", bytes as f64 / f64::from(1 << 20));
    }
    Ok(())
}

/// Seconds that it takes to quantize as many rows of the same lengths in the same formats, from memory to memory.
fn quantize_alone(plan: &Plan<'_>) -> Result<f64, Box<dyn Error>> {
    let pool = source::random(POOL, 0.02, 1);
    let mut out = Vec::new();
    let (mut seconds, mut at) = (0.0, 0);
    for tensor in plan.tensors.iter().filter(|tensor| tensor.to.is_quantized()) {
        let row = tensor.shape.row();
        let row_bytes = tensor.to.row_bytes(row).ok_or("a row that blocks do not divide")?;
        let mut left = tensor.shape.elements();
        while left > 0 {
            let count = left.min((CHUNK / row).max(1) * row);
            at = if at + count > pool.len() { 0 } else { at };
            out.resize(count / row * row_bytes, 0);
            let start = Instant::now();
            rows::quantize_parallel(tensor.to, &pool[at..at + count], row, &mut out)?;
            seconds += start.elapsed().as_secs_f64();
            (at, left) = (at + count, left - count);
        }
    }
    Ok(seconds)
}

/// Seconds of the whole conversion, and how many of them pass after the last row was converted: what is still to be
/// written then, and flushed to the disk.
fn convert_to_file(plan: &Plan<'_>, path: &std::path::Path) -> Result<(f64, f64), Box<dyn Error>> {
    let start = Instant::now();
    let mut last = start.elapsed();
    plan.write(path, WriteOptions { overwrite: true, ..WriteOptions::default() }, &mut |_| {
        last = start.elapsed();
        Ok(())
    })?;
    let whole = start.elapsed();
    std::fs::remove_file(path)?;
    Ok((whole.as_secs_f64(), (whole - last).as_secs_f64()))
}
