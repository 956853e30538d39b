//! `pinhole generate`: from a prompt to pictures.

mod destinations;
mod films;
mod latents;
mod names;
mod outputs;
mod report;

use std::path::{Path, PathBuf};

use pinhole::Result;
use pinhole::ggml::CancelFlag;
use pinhole::memory::PeakMemory;
use pinhole::pipeline::{self, Event, Observer, Opened};
use pinhole::trace::Trace;

use super::failure::Failure;
use super::printer::{Printer, Talk, Unit};
use super::request::{self, RequestArgs};
use super::{interrupt, model, threads};
pub(super) use destinations::{Kind, Named, check as check_outputs};
use films::Films;
use outputs::{Beside, Outputs};
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
    /// What to draw; may be empty, and with --redux-image it may be left out: zeros stand for it then
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, required_unless_present = "redux_images")]
    prompt: Option<String>,
    /// The picture to write, or with --batch the pictures OUT-1.png, OUT-2.png, ...; files that exist are replaced
    /// [default: pinhole-SEED.png, or the next free name like it]. The name of a film ends in .mp4, .webp, .gif, .apng, .png or .y4m; a
    /// folder (OUT/), or a name like OUT-%04d.png, has a picture for each frame; - is Y4M on stdout [default: pinhole-SEED.mp4]
    #[arg(short, long, value_name = "OUT.png|jpg|webp|mp4|..")]
    output: Option<PathBuf>,
    #[command(flatten)]
    request: RequestArgs,
    /// Start from the tensor `noise` of this file, float32 [N, C, H/8, W/8], and not from the seed's
    #[arg(long, value_name = "FILE.safetensors")]
    noise: Option<PathBuf>,
    /// Write the tensor `latents` to this file: those after the last step, in the same layout
    #[arg(long, value_name = "FILE.safetensors")]
    save_latents: Option<PathBuf>,
    /// Keep what the text encoders make of prompts in this folder, at most 1 GiB of it, and take it from there when a prompt
    /// comes again: the encoders then need not be loaded. Only you may be able to write to the folder
    #[arg(long, value_name = "DIR")]
    prompt_cache: Option<PathBuf>,
    /// Write what happened when, on which thread (phases, stages, uploads, waits), to this file, in Chrome's trace format:
    /// chrome://tracing and ui.perfetto.dev draw it
    #[arg(long, value_name = "FILE.json")]
    trace: Option<PathBuf>,
    #[command(flatten)]
    parts: model::PartArgs,
    #[command(flatten)]
    pub(super) talk: Talk,
}

impl Args {
    /// The files that the command reads: those of the model, and those that options name.
    fn inputs(&self, model: &Opened) -> Vec<Named> {
        let mut inputs = Vec::new();
        for map in model.source.indexes().into_iter().flat_map(|index| index.maps()) {
            inputs.push(Named { option: "--model", path: map.path().to_owned() });
        }
        for lora in &model.loras {
            inputs.push(Named { option: "--lora", path: lora.path.clone() });
        }
        let Args { request, noise, .. } = self;
        for (option, path) in [
            ("--image", &request.image),
            ("--mask", &request.mask),
            ("--id-embedding", &request.id_embedding),
            ("--id-projector", &request.id_projector),
            ("--upscaler", &request.upscaler),
            ("--noise", noise),
        ] {
            inputs.extend(path.iter().map(|path| Named { option, path: path.clone() }));
        }
        for (option, paths) in [
            ("--redux", request.redux.as_slice()),
            ("--ip-adapter", request.ip_adapter.as_slice()),
            ("--ip-image", request.ip_images.as_slice()),
            ("--image-encoder", request.image_encoders.as_slice()),
        ] {
            inputs.extend(paths.iter().map(|path| Named { option, path: path.clone() }));
        }
        for (option, path) in [request.stable_diffusion.files(), request.video.files()].concat() {
            inputs.push(Named { option, path });
        }
        for picture in &request.redux_images {
            inputs.push(Named { option: "--redux-image", path: picture.path.clone() });
        }
        for path in request.control.paths() {
            inputs.push(Named { option: "--control", path });
        }
        for path in request.control.images() {
            inputs.push(Named { option: "--control-image", path: path.clone() });
        }
        for path in &request.references {
            inputs.push(Named { option: "--reference", path: path.clone() });
        }
        inputs
    }

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
  pinhole generate -m dev.gguf --transformer finetune.safetensors -p \"a lighthouse at dusk\"
  pinhole generate -m dev.gguf -p \"a lighthouse\" --vram 4G
  pinhole generate -m mini -p \"a blue heart\" --image heart.png --strength 0.7 -o blue.png
  pinhole generate -m dev.gguf -p \"a lighthouse\" --lora style.safetensors:0.8
  pinhole generate -m dev.gguf -p \"a lighthouse\" --control union.gguf --control-image edges.png --control-mode canny
  pinhole generate -m dev.gguf -p \"a lighthouse\" --cache teacache:0.4
  pinhole generate -m dev.gguf -p \"a lighthouse\" --preview now.png --tiny-vae taef1
  pinhole generate -m dev.gguf -p \"a lighthouse\" --prompt-cache ~/.cache/pinhole --seed 2
  pinhole generate -m dev.gguf -p \"a lighthouse\" --vram 4G --trace trace.json
  pinhole generate -m wan.gguf -p \"waves on a beach\" --frames 49 --vram 4G -o waves.mp4
  pinhole generate -m wan.gguf -p \"waves on a beach\" -o - | ffmpeg -i - -crf 16 waves.mkv";

pub(super) fn run(args: &Args, printer: &Printer) -> Result<(), Failure> {
    let (mut clock, memory) = (Clock::start(), PeakMemory::watch());
    model::refuse_stdout("--save-latents", args.save_latents.as_deref())?;
    let preview = args.request.preview.as_ref().map(|preview| preview.path.as_path());
    model::refuse_stdout("--preview", preview)?;
    model::refuse_stdout("--trace", args.trace.as_deref())?;
    let cancel = interrupt::cancel_flag(printer);
    let (threads, _inside) = threads::start(args.request.threads);
    let devices = request::devices(&args.request.device)?;
    let source = args.parts.open(args.model.as_deref(), "--model")?;
    let mut pipeline = args.request.pipeline(&source, &devices, threads, cancel.clone())?;
    pipeline.set_prompt_cache(args.prompt_cache.as_deref())?;

    let mut request = args.request.request(args.prompt.as_deref(), printer)?;
    let settings = pipeline.settings(&request)?;
    if printer.json() || !Films::are_made(&settings, args.output.as_deref()) {
        model::refuse_stdout("--output", args.output.as_deref())?;
    }
    // Before anything is loaded or written: what does not fit is refused here.
    pipeline.plan(&request)?;
    if args.noise.is_some() && args.request.given_seed().is_some() {
        printer.warn("--seed has no effect with --noise");
    }
    if let Some(path) = &args.noise {
        let dims = pipeline.model().autoencoder.latents(&settings);
        request.noise = Some(latents::read_noise(path, dims)?);
    }
    // Before the work: no one should wait for pictures that cannot be written.
    let inputs = args.inputs(pipeline.model());
    let beside = Beside { latents: args.save_latents.as_deref(), preview, trace: args.trace.as_deref() };
    let mut outputs = Outputs::create(args.output.as_deref(), beside, &inputs, (pipeline.model(), &settings))?;
    let (family, origins) = (pipeline.model().family.name, pipeline::origins(&pipeline.model().source));
    let run =
        Run { args, family, origins, settings: &settings, computed: &[], flagged: &[], devices: &devices, threads };
    // What films say of themselves comes before their first frame.
    outputs.describe(|index, seed| run.texts(index, seed));
    clock.lap("open");

    let trace = args.trace.is_some().then(Trace::new);
    let recorded = trace.as_ref().map(Trace::enter);
    let generated =
        pipeline.generate_watched(&request, &mut Watch { printer, cancel: &cancel, outputs: &mut outputs })?;
    drop(recorded);
    clock.add(&generated.timings);
    clock.resume();
    let flagged = generated.flagged();
    let run = Run { settings: &generated.settings, computed: &generated.computed, flagged: &flagged, ..run };
    let files = outputs.write(&generated, trace.as_ref(), |index, seed| run.texts(index, seed))?;
    clock.lap("write");
    report::print(printer, &run, &generated, &files, &clock, &memory)
}

/// Shows what happens, and stops it when Ctrl-C was pressed.
struct Watch<'a> {
    printer: &'a Printer,
    cancel: &'a CancelFlag,
    outputs: &'a mut Outputs,
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
            Event::Preview { image, index, .. } => self.outputs.show(index, &image)?,
            Event::Frame { image, index, frame, frames } => {
                printer.doing(format!("frame {}/{frames},", frame + 1));
                self.outputs.grow(index, &image)?;
            }
            _ => {}
        }
        self.cancel.check()
    }
}
