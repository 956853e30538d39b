//! `pinhole bench`: measurements that anyone can repeat, each a subcommand that prints a table or, with `--json`, one object.

mod model;
mod quality;

use clap::Subcommand;

use super::failure::Failure;
use super::printer::{Printer, Talk};

#[derive(Subcommand)]
pub(super) enum Bench {
    Model(model::Args),
    Quality(quality::Args),
}

impl Bench {
    pub(super) fn talk(&self) -> &Talk {
        match self {
            Bench::Model(args) => &args.talk,
            Bench::Quality(args) => &args.talk,
        }
    }

    pub(super) fn run(&self, printer: &Printer) -> Result<(), Failure> {
        match self {
            Bench::Model(args) => model::run(args, printer),
            Bench::Quality(args) => quality::run(args, printer),
        }
    }
}
