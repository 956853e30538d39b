//! The command line: one file per subcommand, and what they share.
//!
//! stdout is data, stderr is talk, and the [`Printer`](printer::Printer) owns both. Exit codes: 0 done, 1 failed, 2
//! wrong usage, 130 interrupted.

mod bench;
mod compare;
mod completions;
mod control;
mod convert;
mod devices;
mod doctor;
mod failure;
mod generate;
mod inspect;
mod interrupt;
mod lora;
mod man;
mod model;
mod models;
mod pictures;
mod plan;
mod preview;
mod printer;
mod pull;
mod pulled;
mod request;
mod rpc_server;
mod serve;
mod stable_diffusion;
mod step_cache;
mod table;
mod threads;
mod units;
mod upscale;
mod video;

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, Parser, Subcommand};
use pinhole::error::shortened;
use pinhole::reserve;

use failure::Failure;
use printer::{Printer, Talk};

/// Diffusion models through a 4 GB pinhole: FLUX.1 and Stable Diffusion on ggml, from one GGUF file or a diffusers directory.
#[derive(Parser)]
#[command(name = "pinhole", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  pinhole generate -m mini -p \"a small yellow star on a blue background\" -o star.png
  pinhole pull z-image-turbo
  pinhole convert FLUX.1-schnell -o schnell.gguf --type q8_0
  pinhole inspect schnell.gguf";

#[derive(Subcommand)]
enum Command {
    Generate(generate::Args),
    Plan(plan::Args),
    Upscale(upscale::Args),
    Convert(convert::Args),
    Inspect(inspect::Args),
    Compare(compare::Args),
    Pull(pull::Args),
    Models(models::Args),
    /// Measure, as a table or as JSON
    #[command(subcommand)]
    Bench(bench::Bench),
    Devices(devices::Args),
    Doctor(doctor::Args),
    Completions(completions::Args),
    Man(man::Args),
    Serve(serve::Args),
    RpcServer(rpc_server::Args),
}

impl Command {
    fn talk(&self) -> &Talk {
        match self {
            Command::Generate(args) => &args.talk,
            Command::Plan(args) => &args.talk,
            Command::Upscale(args) => &args.talk,
            Command::Convert(args) => &args.talk,
            Command::Inspect(args) => &args.talk,
            Command::Compare(args) => &args.talk,
            Command::Pull(args) => &args.talk,
            Command::Models(args) => args.talk(),
            Command::Bench(bench) => bench.talk(),
            Command::Devices(args) => &args.talk,
            Command::Doctor(args) => &args.talk,
            Command::Completions(args) => &args.talk,
            Command::Man(args) => &args.talk,
            Command::Serve(args) => &args.talk,
            Command::RpcServer(args) => &args.talk,
        }
    }

    fn run(&self, printer: &Printer) -> Result<(), Failure> {
        match self {
            Command::Generate(args) => generate::run(args, printer),
            Command::Plan(args) => plan::run(args, printer),
            Command::Upscale(args) => upscale::run(args, printer),
            Command::Convert(args) => convert::run(args, printer),
            Command::Inspect(args) => inspect::run(args, printer),
            Command::Compare(args) => compare::run(args, printer),
            Command::Pull(args) => pull::run(args, printer),
            Command::Models(args) => models::run(args, printer),
            Command::Bench(bench) => bench.run(printer),
            Command::Devices(args) => devices::run(args, printer),
            Command::Doctor(args) => doctor::run(args, printer),
            Command::Completions(args) => completions::run(args, Cli::command(), printer),
            Command::Man(args) => man::run(args, Cli::command(), printer),
            Command::Serve(args) => serve::run(args),
            Command::RpcServer(args) => rpc_server::run(args, printer),
        }
    }
}

/// Memory for arguments, texts and headers. A command takes it in small pieces and asks for none of them first, so it begins only if there
/// is this much.
const SMALL_PIECES: usize = 4 << 20;

/// Runs the command that the arguments name.
pub(crate) fn main() -> ExitCode {
    interrupt::block_size_limit();
    // Before there are threads.
    pinhole::ggml::share_heap();
    if let Err(error) = reserve::probe("the program itself", SMALL_PIECES) {
        let failure =
            Failure::from(error.with_hint("close other programs, or raise the limit of memory: `ulimit -v` shows it"));
        Printer::new(&Talk::default()).failure(&failure);
        return failure.exit_code();
    }
    let command = Cli::try_parse().unwrap_or_else(|error| quoting_less(error).exit()).command;
    let printer = Printer::new(command.talk());
    match command.run(&printer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            printer.failure(&failure);
            failure.exit_code()
        }
    }
}

/// The refusal of arguments, with no more of a long one than anyone reads.
fn quoting_less(mut error: clap::Error) -> clap::Error {
    for kind in [ContextKind::InvalidArg, ContextKind::InvalidValue, ContextKind::InvalidSubcommand] {
        if let Some(ContextValue::String(text)) = error.get(kind).cloned() {
            error.insert(kind, ContextValue::String(shortened(text)));
        }
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }
}
