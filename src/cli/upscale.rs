//! `pinhole upscale`: a picture, larger.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use pinhole::ggml::{CancelFlag, Device};
use pinhole::image::{Format, PINHOLE, Picture};
use pinhole::models::upscaler::Config;
use pinhole::pipeline::{Event, MemoryOptions, Observer, UpscaleModel, Upscaled, Upscaler};
use pinhole::plan::{Offload, Phase, Plan};
use pinhole::size::Size;
use pinhole::{Error, Result};
use pinhole_quant::output::AtomicFile;
use serde::Serialize;

use super::failure::Failure;
use super::generate::{Kind, Named, check_outputs};
use super::plan::{PlanReport, table};
use super::printer::{Printer, Talk, Unit};
use super::request::{self, Budget, budget, offload_parser};
use super::{interrupt, model, pictures, threads, units};

/// Make a picture larger, by a network that was trained for that
///
/// Prints the path of the larger picture. What does not fit is computed in strips, which give the same picture.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub(super) struct Args {
    /// The picture: PNG, JPEG or WebP
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The picture to write; a picture that exists is replaced
    #[arg(value_name = "OUT.png|jpg|webp")]
    output: PathBuf,
    /// Real-ESRGAN's or ESRGAN's network: safetensors, PyTorch's own file, or GGUF
    #[arg(short, long, value_name = "FILE")]
    model: PathBuf,
    /// Resize the result to so many times the picture's size [default: what the network gives]
    #[arg(long, value_name = "S")]
    outscale: Option<f64>,
    /// Where to compute: auto, or a device that `pinhole devices` lists
    #[arg(long, value_name = "NAME", default_value = "auto")]
    device: String,
    /// The most memory to take on the device, never exceeded: 4G, 3500M, 1.5G, ... in units of 1024; auto is what is free,
    /// less a margin, and on the CPU what --host-memory allows
    #[arg(long, value_name = "SIZE", default_value = "auto", value_parser = budget)]
    vram: Budget,
    /// How to share the device: none (all weights stay there), model, sequential (streamed layer by layer), or auto, the fastest
    /// that fits
    #[arg(long, value_name = "MODE", value_parser = offload_parser(), default_value = Offload::default().name())]
    offload: Offload,
    /// The most memory to take on the host, everything counted
    #[arg(long, value_name = "SIZE", default_value = "auto", value_parser = budget)]
    host_memory: Budget,
    /// Threads of the CPU [default: one for each core]
    #[arg(long, value_name = "N", value_parser = threads::parser())]
    threads: Option<usize>,
    /// Say what it would take, and compute and write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pub(super) talk: Talk,
}

const EXAMPLES: &str = "\
Examples:
  pinhole upscale heart.png larger.png -m RealESRGAN_x4plus.pth
  pinhole upscale photo.jpg photo-2x.jpg -m x4plus.gguf --outscale 2 --vram 1G
  pinhole upscale photo.jpg larger.png -m RealESRGAN_x4plus.pth --dry-run";

/// What the larger picture says of how it was made, and reports as well.
#[derive(Serialize)]
struct Made<'a> {
    upscaler: &'a str,
    #[serde(flatten)]
    network: &'a Config,
    /// By how much it makes a picture larger.
    scale: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    outscale: Option<f64>,
    from: [usize; 2],
    size: [usize; 2],
}

#[derive(Serialize)]
struct Report<'a> {
    version: &'static str,
    #[serde(serialize_with = "units::path")]
    input: &'a Path,
    /// Nothing of it is written in a dry run.
    #[serde(serialize_with = "units::path")]
    output: &'a Path,
    #[serde(serialize_with = "units::path")]
    model: &'a Path,
    #[serde(flatten)]
    made: Made<'a>,
    device: String,
    threads: usize,
    plan: PlanReport,
    /// The least that --vram works with, in this offload mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    least_budget_bytes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<Memory<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct Memory<'a> {
    planned_peak_bytes: usize,
    device_peak_bytes: usize,
    device_bytes: &'a BTreeMap<&'static str, usize>,
    mapped_bytes: usize,
    moved_bytes: u64,
}

impl<'a> Memory<'a> {
    fn new(upscaled: &'a Upscaled) -> Memory<'a> {
        Memory {
            planned_peak_bytes: upscaled.plan.phase_peak(Phase::Upscale),
            device_peak_bytes: upscaled.memory.peak,
            device_bytes: &upscaled.memory.at_peak,
            mapped_bytes: upscaled.mapped_bytes,
            moved_bytes: upscaled.phases.iter().map(|phase| phase.moved).sum(),
        }
    }
}

/// What was asked for, opened.
struct Work<'a> {
    args: &'a Args,
    upscaler: Upscaler,
    picture: &'a Picture,
    device: Device,
    threads: usize,
}

impl Work<'_> {
    fn from(&self) -> [usize; 2] {
        [self.picture.image().width(), self.picture.image().height()]
    }

    fn made<'a>(&'a self, name: &'a str) -> Result<Made<'a>> {
        let (model, outscale, from) = (self.upscaler.model(), self.args.outscale, self.from());
        let (network, scale) = (model.config(), model.factor());
        Ok(Made { upscaler: name, network, scale, outscale, from, size: model.size(from, outscale)? })
    }

    fn report<'a>(&'a self, name: &'a str, plan: &Plan, printer: &Printer) -> Result<Report<'a>> {
        let Args { input, output, model, .. } = self.args;
        Ok(Report {
            version: env!("CARGO_PKG_VERSION"),
            input,
            output,
            model,
            made: self.made(name)?,
            device: self.device.name(),
            threads: self.threads,
            plan: PlanReport::new(plan, &[]),
            least_budget_bytes: None,
            memory: None,
            seconds: None,
            warnings: printer.warnings(),
        })
    }
}

pub(super) fn run(args: &Args, printer: &Printer) -> Result<(), Failure> {
    let started = Instant::now();
    model::refuse_stdout("OUT", Some(&args.output))?;
    let format = Format::of(&args.output)?;
    let cancel = interrupt::cancel_flag(printer);
    let (threads, _inside) = threads::start(args.threads);
    let device = request::device(&args.device)?;
    let model = UpscaleModel::open(&args.model)?;
    let inputs = inputs(args, &model);
    let picture = pictures::open_picture(&args.input, printer)?;
    let mut upscaler = Upscaler::with_threads(model, device, threads, cancel.clone())?;
    upscaler.set_memory(MemoryOptions {
        vram: args.vram.bytes(),
        offload: args.offload,
        host: args.host_memory.bytes(),
    });
    if let Some(note) = upscaler.budget_note()? {
        printer.warn(&note);
    }
    let mut work = Work { args, upscaler, picture: &picture, device, threads };
    let plan = work.upscaler.plan(work.from(), args.outscale)?;
    let name = pinhole::source::model_name(&args.model);
    if args.dry_run {
        return dry_run(&work, &name, &plan, printer);
    }
    // Before the work, which is in vain if the picture cannot be written.
    check_outputs(&[(Named { option: "OUT", path: args.output.clone() }, Kind::Picture)], &inputs)?;
    let mut file = AtomicFile::create(&args.output, true)?;
    let mut watch = Watch { printer, cancel: &cancel };
    let upscaled = work.upscaler.upscale_watched(picture.image(), args.outscale, &mut watch)?;
    // Numbers and texts alone: JSON has all of them.
    let text = serde_json::to_string(&work.made(&name)?).unwrap_or_default();
    let written = upscaled.image.write(format, &mut file, &[(PINHOLE, &text)]);
    written.map_err(|error| Error::io("write", &args.output, error))?;
    file.commit()?;
    let (memory, seconds) = (Memory::new(&upscaled), started.elapsed());
    let [width, height] = [upscaled.image.width(), upscaled.image.height()];
    let [w, h] = work.from();
    printer.note(&format!("{w}x{h} became {width}x{height}, {} in all", units::time(seconds)));
    let [held, mapped] = [memory.device_peak_bytes, memory.mapped_bytes].map(|bytes| units::bytes(bytes as u64));
    printer.note(&format!("{} held {held} at most; {mapped} of weights stayed in the file", device.name()));
    if !printer.json() {
        return printer.data(&format!("{}\n", args.output.display()));
    }
    let report = work.report(&name, &upscaled.plan, printer)?;
    printer.object(&Report { memory: Some(memory), seconds: Some(seconds.as_secs_f64()), ..report })
}

/// Says what it would take.
fn dry_run(work: &Work<'_>, name: &str, plan: &Plan, printer: &Printer) -> Result<(), Failure> {
    let (from, outscale) = (work.from(), work.args.outscale);
    let least = work.upscaler.least_budget(from, outscale)?;
    if printer.json() {
        return printer.object(&Report { least_budget_bytes: Some(least), ..work.report(name, plan, printer)? });
    }
    printer.data(&table(plan).to_string())?;
    let [width, height] = work.upscaler.model().size(from, outscale)?;
    let peak = units::bytes(plan.peak() as u64);
    let limit = plan.limit.map_or(String::new(), |limit| format!(", of {}", units::bytes(limit as u64)));
    let [w, h] = from;
    printer.note(&format!("\n{w}x{h} becomes {width}x{height} on {}: {peak} at most{limit}", work.device.name()));
    printer.note(&format!("the least that works is --vram {}", Size(least as u64).rounded_up()));
    Ok(())
}

/// The files that the command reads.
fn inputs(args: &Args, model: &UpscaleModel) -> Vec<Named> {
    let mut inputs = vec![Named { option: "IN", path: args.input.clone() }];
    inputs.extend(model.files().into_iter().map(|path| Named { option: "--model", path }));
    inputs
}

/// Shows what happens, and stops it when Ctrl-C was pressed.
struct Watch<'a> {
    printer: &'a Printer,
    cancel: &'a CancelFlag,
}

impl Observer for Watch<'_> {
    fn event(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Begin { phase, stages, .. } => self.printer.begin(phase.name(), stages as u64, Unit::Parts),
            Event::Stage => self.printer.advance(),
            Event::End { phase } => self.printer.end(phase.name()),
            Event::Warning(text) => self.printer.warn(&text),
            _ => {}
        }
        self.cancel.check()
    }
}
