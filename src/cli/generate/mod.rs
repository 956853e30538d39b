//! `pinhole generate`: from a prompt to pictures.

mod latents;
mod outputs;
mod report;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use pinhole::ggml::{CancelFlag, Device};
use pinhole::memory::PeakMemory;
use pinhole::pipeline::flux::FluxPipeline;
use pinhole::pipeline::{Event, Observer, Request};
use pinhole::sample::Sampler;
use pinhole::source::flux::FluxModel;
use pinhole::{Error, Result};

use super::failure::Failure;
use super::printer::{Printer, Talk, Unit};
use super::{interrupt, model, threads};
use outputs::Outputs;
use report::{Clock, Run};

/// Draw pictures of a prompt
///
/// Prints the paths of the pictures. What is not given is the model's default.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub(super) struct Args {
    /// A pinhole bundle (.gguf), a diffusers directory, a file or folder of files of other tools, or `mini`, the model that
    /// is built in; not needed where all parts are given one by one
    #[arg(short, long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// What to draw; may be empty
    #[arg(short, long, value_name = "TEXT")]
    prompt: String,
    /// The picture to write, or with --batch the pictures OUT-1.png, OUT-2.png, ...; files that exist are replaced
    /// [default: pinhole-SEED.png, or the next free name like it]
    #[arg(short, long, value_name = "OUT.png")]
    output: Option<PathBuf>,
    /// What not to draw; has an effect with a --cfg-scale above 1
    #[arg(long, value_name = "TEXT")]
    negative_prompt: Option<String>,
    /// Pixels across, a multiple of 16
    #[arg(long, value_name = "W")]
    width: Option<usize>,
    /// Pixels down, a multiple of 16
    #[arg(long, value_name = "H")]
    height: Option<usize>,
    /// Denoising steps
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Seed of the noise, the same noise as PyTorch's CPU generator; picture i of a batch uses SEED + i [default: random]
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// Guidance as an input of the model, for those that take it (FLUX.1-dev)
    #[arg(long, value_name = "G")]
    guidance: Option<f32>,
    /// Classifier-free guidance with the negative prompt: 1 is off, more takes twice the time
    #[arg(long, value_name = "C")]
    cfg_scale: Option<f32>,
    /// How steps are taken
    #[arg(long, value_name = "NAME", value_parser = sampler_parser(), default_value = Sampler::default().name())]
    sampler: Sampler,
    /// Tokens that the T5 text encoder reads
    #[arg(long, value_name = "N")]
    max_sequence_length: Option<usize>,
    /// How many pictures
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,
    /// Where to compute: auto, or a device that `pinhole devices` lists
    #[arg(long, value_name = "NAME", default_value = "auto")]
    device: String,
    /// Threads of the CPU [default: one for each core]
    #[arg(long, value_name = "N", value_parser = threads::parser())]
    threads: Option<usize>,
    /// Start from the tensor `noise` of this file, float32 [N, C, H/8, W/8], and not from the seed's
    #[arg(long, value_name = "FILE.safetensors")]
    noise: Option<PathBuf>,
    /// Write the tensor `latents` to this file: those after the last step, in the same layout
    #[arg(long, value_name = "FILE.safetensors")]
    save_latents: Option<PathBuf>,
    #[command(flatten)]
    parts: model::PartArgs,
    #[command(flatten)]
    pub(super) talk: Talk,
}

impl Args {
    /// What to call the model.
    fn model_name(&self) -> &Path {
        self.parts.name(self.model.as_deref())
    }
}

const EXAMPLES: &str = "\
Examples:
  pinhole generate -m mini -p \"a small yellow star on a blue background\" -o star.png
  pinhole generate -m schnell.gguf -p \"a lighthouse at dusk\" --width 768 --height 512 --seed 42
  pinhole generate -m mini -p \"a red heart\" --cfg-scale 3 --batch 4 -o heart.png
  pinhole generate --transformer flux1-dev-Q4_K_S.gguf --text-encoder clip_l.safetensors \\
      --text-encoder-2 t5-v1_1-xxl-encoder-Q8_0.gguf --vae ae.safetensors -p \"a lighthouse\"
  pinhole generate -m dev.gguf --transformer finetune.safetensors -p \"a lighthouse at dusk\"";

fn sampler_parser() -> impl TypedValueParser<Value = Sampler> {
    let names = Sampler::ALL.iter().map(|sampler| sampler.name());
    PossibleValuesParser::new(names).try_map(|name| name.parse::<Sampler>())
}

pub(super) fn run(args: &Args, printer: &Printer) -> Result<(), Failure> {
    let (mut clock, memory) = (Clock::start(), PeakMemory::watch());
    let cancel = interrupt::cancel_flag(printer);
    let threads = threads::start(args.threads);
    let device = device(&args.device)?;
    let source = args.parts.open(args.model.as_deref(), "--model")?;
    let mut pipeline = FluxPipeline::new(FluxModel::open(&source)?, device, threads, cancel.clone())?;

    let mut request = request(args);
    let settings = pipeline.settings(&request)?;
    if args.noise.is_some() && args.seed.is_some() {
        printer.warn("--seed has no effect with --noise");
    }
    if let Some(path) = &args.noise {
        let channels = pipeline.model().vae.latent_channels;
        request.noise = Some(latents::read_noise(path, &settings, channels)?);
    }
    // Before the work: nobody should wait for pictures that cannot be written.
    let mut outputs = Outputs::create(args.output.as_deref(), args.save_latents.as_deref(), &settings)?;
    clock.lap("open");

    let generated = pipeline.generate(&request, &mut Watch { printer, cancel: &cancel })?;
    clock.add(&generated.timings);
    clock.resume();
    let run = Run { args, source: &source, settings: &generated.settings, device, threads };
    let files = outputs.write(&generated, |seed| run.png_text(seed))?;
    clock.lap("write");
    report::print(printer, &run, &generated, &files, &clock, &memory)
}

/// The device `name`; an unknown one is a wrong option.
pub(super) fn device(name: &str) -> Result<Device> {
    Device::by_name(name).map_err(|error| match error.hint() {
        Some(known) => {
            let known = known.to_owned();
            Error::option("--device", "a device of this machine", format!("`{name}`")).with_hint(known)
        }
        None => error,
    })
}

fn request(args: &Args) -> Request {
    Request {
        prompt: args.prompt.clone(),
        negative_prompt: args.negative_prompt.clone(),
        width: args.width,
        height: args.height,
        steps: args.steps,
        seed: args.seed.unwrap_or_else(random_seed),
        guidance: args.guidance,
        cfg_scale: args.cfg_scale,
        sampler: args.sampler,
        max_sequence_length: args.max_sequence_length,
        batch: args.batch,
        noise: None,
    }
}

/// A seed of 32 bits: short enough to type again.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // The standard library seeds its hash maps from the system's random numbers.
    RandomState::new().hash_one(Instant::now()) >> 32
}

/// Shows what happens, and stops it when Ctrl-C was pressed.
struct Watch<'a> {
    printer: &'a Printer,
    cancel: &'a CancelFlag,
}

impl Observer for Watch<'_> {
    fn event(&mut self, event: Event) -> Result<()> {
        let printer = self.printer;
        match event {
            Event::Begin { phase, stages, steps } => {
                printer.begin(phase.name(), stages as u64, Unit::Parts);
                if steps > 0 {
                    printer.doing(format!("step 1/{steps},"));
                }
            }
            Event::Stage => printer.advance(),
            Event::Step { done, steps } => printer.doing(format!("step {}/{steps},", (done + 1).min(steps))),
            Event::End { phase } => printer.end(phase.name()),
            Event::Warning(text) => printer.warn(&text),
            _ => {}
        }
        self.cancel.check()
    }
}
