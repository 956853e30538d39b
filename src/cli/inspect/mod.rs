//! `pinhole inspect`: what a file or directory is, and what is wrong with it.

mod text;

use std::path::PathBuf;

use pinhole::inspect::{self, CheckReport, Report, Subject};

use super::failure::Failure;
use super::printer::{Printer, Talk, Unit};
use super::{interrupt, model, pulled, threads, units};

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
    /// Read every number, and report those that are not finite; read headers of GGUF files a second time, with another reader
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
    let subject = match model::is_built_in(&args.path) || pulled::is_one(&args.path) {
        true => Subject::model(model::open(&args.path)?),
        false => Subject::open(&args.path)?,
    };
    let mut report = Report::of(&args.path, &subject);
    if args.tensors {
        report.list_tensors(&subject);
    }
    if args.check {
        let (_, _inside) = threads::start(args.threads);
        report.check = Some(check(&subject, printer)?);
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

fn check(subject: &Subject, printer: &Printer) -> Result<CheckReport, Failure> {
    let cancel = interrupt::cancel_flag(printer);
    let report = inspect::check(subject, &mut |done, total| {
        match done {
            0 => printer.begin("check", total, Unit::Bytes),
            _ => printer.progress(done),
        }
        cancel.check()
    })?;
    printer.end("check");
    Ok(report)
}
