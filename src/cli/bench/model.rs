//! `pinhole bench model`: a model of real size to measure with.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use pinhole::synthetic::{self, Architecture, Options};
use pinhole_quant::recipe::FileType;
use serde::Serialize;

use crate::cli::failure::Failure;
use crate::cli::printer::{Printer, Talk, Unit};
use crate::cli::{interrupt, model, threads, units};

/// Write a model of real size with random weights, to plan and to measure with
///
/// A complete bundle: it can be planned, inspected and drawn from, and draws noise. Weights are made directly in their type,
/// as fast as the disk takes them.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) struct Args {
    /// The bundle to write
    #[arg(short, long, value_name = "OUT.gguf")]
    output: PathBuf,
    /// Whose sizes it has
    #[arg(long, value_name = "NAME", value_parser = any_architecture(), default_value = Architecture::ALL[0].name())]
    arch: Architecture,
    /// The type of the transformer; the other components follow, as with `pinhole convert`
    #[arg(long = "type", value_name = "TYPE", default_value = "q4_k_s")]
    file_type: FileType,
    /// How many double and how many single blocks it has [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    blocks: Option<u16>,
    /// Zeros that take no room on the disk, enough to plan with
    #[arg(long)]
    hollow: bool,
    /// Threads of the CPU [default: one for each core]
    #[arg(long, value_name = "N", value_parser = threads::parser())]
    threads: Option<usize>,
    #[command(flatten)]
    pub(super) talk: Talk,
}

const EXAMPLES: &str = "\
Examples:
  pinhole bench model -o dev.gguf --type q4_k_s
  pinhole bench model -o plan.gguf --type bf16 --hollow
  pinhole plan -m plan.gguf --vram 4G --device cpu:discrete
  pinhole bench model -o union.gguf --arch flux-controlnet-union --type q8_0";

/// Takes the name of a model.
pub(in crate::cli) fn architecture_parser() -> impl TypedValueParser<Value = Architecture> {
    parser(Architecture::ALL.iter())
}

/// Takes the name of a model, or of what goes beside one.
fn any_architecture() -> impl TypedValueParser<Value = Architecture> {
    parser(Architecture::ALL.iter().chain(Architecture::BESIDE))
}

fn parser(all: impl Iterator<Item = &'static Architecture>) -> impl TypedValueParser<Value = Architecture> {
    let names = all.map(|architecture| architecture.name());
    PossibleValuesParser::new(names).try_map(|name| name.parse::<Architecture>().map_err(std::io::Error::other))
}

#[derive(Serialize)]
struct Report {
    #[serde(serialize_with = "units::path")]
    path: PathBuf,
    architecture: &'static str,
    #[serde(rename = "type")]
    file_type: String,
    bytes: u64,
}

pub(super) fn run(args: &Args, printer: &Printer) -> Result<(), Failure> {
    model::refuse_stdout("--output", Some(&args.output))?;
    let cancel = interrupt::cancel_flag(printer);
    let (_, _inside) = threads::start(args.threads);
    let options = Options {
        architecture: args.arch,
        file_type: args.file_type,
        blocks: args.blocks.map(usize::from),
        hollow: args.hollow,
        only: None,
    };
    printer.begin("write", synthetic::total_bytes(&options)?, Unit::Bytes);
    let mut done = 0;
    synthetic::write(&args.output, &options, |bytes| {
        printer.progress(done);
        done += bytes;
        cancel.check()
    })?;
    printer.end("write");
    let bytes = std::fs::metadata(&args.output).map_or(0, |metadata| metadata.len());
    if printer.json() {
        let (architecture, file_type) = (args.arch.name(), args.file_type.to_string());
        return printer.object(&Report { path: args.output.clone(), architecture, file_type, bytes });
    }
    printer.data(&format!("{}\n", args.output.display()))?;
    printer.note(&format!("{}, {}", units::bytes(bytes), args.file_type));
    Ok(())
}
