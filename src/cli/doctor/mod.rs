//! `pinhole doctor`: what this machine and this build can do, and what to do about what they cannot.

mod advice;
mod cards;
mod disk;
mod findings;
mod machine;
mod planned;

use std::path::PathBuf;

use pinhole::ggml::{self, build};
use pinhole::synthetic::Architecture;
use pinhole_quant::recipe::FileType;
use serde::Serialize;

use super::bench::architecture_parser;
use super::failure::Failure;
use super::printer::{Printer, Talk};
use super::table::Table;
use super::{devices, interrupt, plan, request, threads, units};
use advice::Problem;
use cards::Cards;
use disk::Disk;
use findings::{Build, Findings};
use machine::{Memory, Processor};
use planned::Planned;

/// Say what this machine and this build can do, and what to do about what they cannot
///
/// Looks at devices and drivers, what this build has, instruction sets, memory and the speed of a disk, and plans a model of
/// real size, by default FLUX.1-dev in q4_k_s, which need not be here. Changes nothing: what it writes to measure the disk is gone in the end.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Where models lie: a folder, or a model file. How fast its disk reads is measured
    #[arg(long, value_name = "PATH", default_value = ".")]
    path: PathBuf,
    /// The model that is planned
    #[arg(long, value_name = "NAME", value_parser = architecture_parser(), default_value = Architecture::ALL[0].name())]
    arch: Architecture,
    /// Its type
    #[arg(long = "type", value_name = "TYPE", default_value = "q4_k_s")]
    file_type: FileType,
    /// Where it is to compute: auto, or a device that is listed
    #[arg(long, value_name = "NAME", default_value = "auto")]
    device: String,
    #[command(flatten)]
    pub(super) talk: Talk,
}

const EXAMPLES: &str = "\
Examples:
  pinhole doctor
  pinhole doctor --path ~/models --type q8_0
  pinhole doctor --arch sdxl --device cpu --json";

/// What was found, and what is wrong with it.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    found: Findings,
    problems: Vec<Problem>,
}

pub(super) fn run(args: &Args, printer: &Printer) -> Result<(), Failure> {
    let cancel = interrupt::cancel_flag(printer);
    let (threads, _inside) = threads::start(None);
    let build = Build {
        system: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        ggml: build::version(),
        computes_on: build::backends(),
        compiled_for: build::compiled_for(),
        computes_as: build::chosen_for(),
    };
    let device = request::device(&args.device)?;
    let devices = ggml::devices()?.iter().map(devices::row).collect::<Result<_, _>>()?;
    printer.note("measuring the disk and planning, for a few seconds");
    let disk = Disk::measure(&args.path, &cancel)?;
    let found = Findings {
        version: env!("CARGO_PKG_VERSION"),
        build,
        processor: Processor::look(),
        memory: Memory::look(),
        disk,
        devices,
        absent: ggml::absences(),
        cards: Cards::look(),
        plan: Planned::new((args.arch, args.file_type), device, threads, &cancel)?,
    };
    let report = Report { problems: advice::problems(&found), found };
    if printer.json() {
        return printer.object(&report);
    }
    show(&report, printer)
}

fn show(Report { found, problems }: &Report, printer: &Printer) -> Result<(), Failure> {
    printer.data(&facts(found).to_string())?;
    printer.data(&format!("\ndevices\n{}", devices::table(&found.devices)))?;
    let remarks = devices::remarks(&found.devices);
    if !remarks.is_empty() {
        printer.data(&format!("{remarks}\n"))?;
    }
    printer.data(&format!("\n{}, {}\n", found.plan.heading(), found.plan.outcome()))?;
    if let Some(plan) = &found.plan.whole {
        printer.data(&plan::table(plan).to_string())?;
    }
    if problems.is_empty() {
        return printer.data("\nno problem was found\n");
    }
    let mut text = "\nproblems\n".to_owned();
    for Problem { found, advice } in problems {
        text += &format!("- {}\n  {}\n", units::shown(found), units::shown(advice));
    }
    printer.data(&text)
}

/// What was found, except for devices, line by line.
fn facts(found: &Findings) -> Table<2> {
    let Findings { build, processor, memory, disk, cards, .. } = found;
    let mut table = Table::new(["pinhole", found.version]);
    let mut line = |name: &str, text: String| table.row([name.to_owned(), units::shown(&text)]);
    let beside: String = build.computes_on.iter().map(|name| format!(", {name}")).collect();
    line("system", build.system.clone());
    line("computes on", format!("cpu{beside}"));
    let chosen = build.computes_as.map_or(String::new(), |chosen| format!(", here {chosen}"));
    line("ggml", format!("{}, compiled for {}{chosen}", build.ggml, build.compiled_for));
    line("processor", processor.to_string());
    line("instructions", processor.instructions.join(" "));
    line("kernels", processor.kernel.unwrap_or("ggml's alone").to_owned());
    line("memory", memory.to_string());
    line("disk", disk.to_string());
    for card in &cards.found {
        line("card", card.to_string());
    }
    for driver in &cards.drivers {
        line("driver", driver.clone());
    }
    table
}
