//! The command `pinhole-serve`, which `pinhole serve` runs. See `pinhole serve --help`.

use std::process::ExitCode;

use clap::Parser;
use pinhole_serve::options::Options;

fn main() -> ExitCode {
    pinhole_serve::run::main(Options::parse())
}
