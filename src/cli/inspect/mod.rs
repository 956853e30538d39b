//! `pinhole inspect`: what a file or directory is, and what is wrong with it.

mod check;
mod report;
mod subject;
mod text;

use std::path::PathBuf;

use super::failure::Failure;
use super::printer::{Printer, Talk};
use super::{interrupt, threads, units};
use report::Report;
use subject::Subject;

/// Say what a model or weight file is: components, types, sizes, what is missing or wrong
///
/// Reads bundles, diffusers directories, and any GGUF or safetensors file, those that this version cannot run included.
/// Weights are not read, unless --check asks for it. The exit code is 1 where a model has problems.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// A bundle, a diffusers directory, a GGUF or safetensors file, or `mini`, the model that is built in
    #[arg(value_name = "FILE|DIR")]
    path: PathBuf,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// Read every number, and report those that are not finite
    #[arg(long)]
    check: bool,
    /// Threads of --check [default: one for each core]
    #[arg(long, value_name = "N", value_parser = threads::parser())]
    threads: Option<usize>,
    #[command(flatten)]
    pub(super) talk: Talk,
}

const EXAMPLES: &str = "\
Examples:
  pinhole inspect schnell.gguf
  pinhole inspect FLUX.1-dev --check
  pinhole inspect ae.safetensors --tensors";

pub(super) fn run(args: &Args, printer: &Printer) -> Result<(), Failure> {
    let subject = Subject::open(&args.path)?;
    let mut report = Report::of(&args.path, &subject);
    if args.tensors {
        report.list_tensors(&subject);
    }
    if args.check {
        threads::start(args.threads);
        report.check = Some(check::run(&subject, printer, &interrupt::cancel_flag(printer))?);
    }
    if printer.json() {
        printer.object(&report)?;
    } else {
        printer.data(&text::render(&report))?;
    }
    match report.faults() {
        0 => Ok(()),
        n => Err(Failure::Check(format!("{}: {}", args.path.display(), units::counted(n, "problem")))),
    }
}
