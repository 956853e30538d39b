//! `pinhole bench`: measurements that anyone can repeat, each a subcommand that prints a table or, with `--json`, one object.

mod attention;
mod busy;
mod card;
mod denoiser;
mod devices;
mod load;
mod matmul;
mod model;
mod offload;
mod quality;
mod steady;
mod step;
mod subject;
mod ways;

use clap::Subcommand;

pub(super) use model::architecture_parser;

use super::failure::Failure;
use super::printer::{Printer, Talk};

#[derive(Subcommand)]
pub(super) enum Bench {
    Attention(attention::Args),
    Busy(busy::Args),
    Card(card::Args),
    Decode(ways::decode::Args),
    Devices(devices::Args),
    Encode(ways::encode::Args),
    Load(load::Args),
    Matmul(matmul::Args),
    Model(model::Args),
    Offload(offload::Args),
    Quality(quality::Args),
    Steady(steady::Args),
    Step(step::Args),
}

impl Bench {
    pub(super) fn talk(&self) -> &Talk {
        match self {
            Bench::Attention(args) => &args.talk,
            Bench::Busy(args) => &args.talk,
            Bench::Card(args) => &args.talk,
            Bench::Decode(args) => &args.talk,
            Bench::Devices(args) => &args.talk,
            Bench::Encode(args) => &args.talk,
            Bench::Load(args) => &args.talk,
            Bench::Matmul(args) => &args.talk,
            Bench::Model(args) => &args.talk,
            Bench::Offload(args) => &args.talk,
            Bench::Quality(args) => &args.talk,
            Bench::Steady(args) => &args.talk,
            Bench::Step(args) => &args.talk,
        }
    }

    pub(super) fn run(&self, printer: &Printer) -> Result<(), Failure> {
        match self {
            Bench::Attention(args) => attention::run(args, printer),
            Bench::Busy(args) => busy::run(args, printer),
            Bench::Card(args) => card::run(args, printer),
            Bench::Decode(args) => ways::decode::run(args, printer),
            Bench::Devices(args) => devices::run(args, printer),
            Bench::Encode(args) => ways::encode::run(args, printer),
            Bench::Load(args) => load::run(args, printer),
            Bench::Matmul(args) => matmul::run(args, printer),
            Bench::Model(args) => model::run(args, printer),
            Bench::Offload(args) => offload::run(args, printer),
            Bench::Quality(args) => quality::run(args, printer),
            Bench::Steady(args) => steady::run(args, printer),
            Bench::Step(args) => step::run(args, printer),
        }
    }
}
