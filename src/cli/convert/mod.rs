//! `pinhole convert`: from what people have to GGUF.

mod report;

use std::path::PathBuf;
use std::time::Instant;

use pinhole::convert::{self, NonFinite, Options, Plan, Progress, Target, WriteOptions};
use pinhole::error::shortened;
use pinhole::pipeline;
use pinhole::source::Slot;
use pinhole::source::slot::{self, SLOTS};
use pinhole::{Error, Result};
use pinhole_quant::pattern::TensorPattern;

use super::failure::Failure;
use super::lora::{self, Lora};
use super::printer::{Printer, Talk, Unit};
use super::{interrupt, model, threads, units};

/// Make a GGUF file of a model: a bundle with everything inside, or one component
///
/// Prints the path of the file. Under a quantized type, matrices are quantized; vectors, convolutions and the layers where
/// FLUX's inputs come in and its result goes out are not. The text encoders and the autoencoder follow the transformer's
/// type: T5 is q8_0 beside q8_0, q6_k and q5, and q4_k_s beside smaller types; CLIP and the autoencoder are f16.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// A diffusers directory, a bundle, a GGUF or safetensors file of another tool, or a folder with such files; not needed
    /// where all parts are given one by one. A ControlNet becomes a file of its own
    #[arg(value_name = "SRC")]
    source: Option<PathBuf>,
    /// The file to write
    #[arg(short, long, value_name = "OUT.gguf")]
    output: PathBuf,
    /// What most matrices are stored as: f32, f16, bf16, q8_0, q6_k, q5_k_m, q5_k_s, q5_1, q5_0, q4_k_m, q4_k_s, q4_1, q4_0,
    /// iq4_nl, iq4_xs, q3_k_m, q3_k_s or q2_k; COMPONENT=TYPE sets the type of one (transformer, text_encoder,
    /// text_encoder_2, vae)
    #[arg(long = "type", value_name = "TYPE[,COMPONENT=TYPE]...")]
    types: String,
    /// The format of the matrices whose names match: `single_blocks.*.linear1=q5_k`; may be given several times, and the last
    /// that matches decides
    #[arg(long = "tensor", value_name = "NAME=FORMAT", value_parser = pattern)]
    patterns: Vec<TensorPattern>,
    /// Write only this component, transformer or text_encoder_2, under the names that ComfyUI-GGUF and stable-diffusion.cpp
    /// read; the source needs no other then. image_encoder and image_embedder (of FLUX.1 Redux) are written alone, too
    #[arg(long, value_name = "COMPONENT", value_parser = component)]
    component: Option<&'static Slot>,
    /// A LoRA that becomes part of the weights, and how strongly it works [default: 1]; several are added up
    #[arg(long = "merge", value_name = "FILE[:STRENGTH]", value_parser = lora::parse)]
    merge: Vec<Lora>,
    /// Quantize again what the source has quantized to less than 8 bits, though it loses more each time
    #[arg(long)]
    allow_requantize: bool,
    /// Convert weights that are NaN, infinite, or too large for f16 all the same
    #[arg(long)]
    allow_nonfinite: bool,
    /// Replace OUT.gguf where it exists
    #[arg(long)]
    overwrite: bool,
    /// List what would be written, tensor by tensor, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Threads that convert [default: one for each core]
    #[arg(long, value_name = "N", value_parser = threads::parser())]
    threads: Option<usize>,
    #[command(flatten)]
    parts: model::PartArgs,
    #[command(flatten)]
    pub(super) talk: Talk,
}

const EXAMPLES: &str = "\
Examples:
  pinhole convert FLUX.1-schnell -o schnell.gguf --type q8_0
  pinhole convert FLUX.1-dev -o dev.gguf --type q4_k_s,text_encoder_2=q8_0 --dry-run
  pinhole convert FLUX.1-dev -o dev.gguf --type q4_k_s --tensor 'single_blocks.*.linear1=q5_k'
  pinhole convert --transformer flux1-dev.safetensors --text-encoder clip_l.safetensors \\
      --text-encoder-2 t5xxl_fp16.safetensors --tokenizer-2 tokenizer_2 --vae ae.safetensors \\
      -o dev.gguf --type q6_k
  pinhole convert flux1-dev.safetensors --component transformer -o dev-Q4_K_S.gguf --type q4_k_s
  pinhole convert FLUX.1-dev-ControlNet-Union-Pro -o union.gguf --type q8_0
  pinhole convert FLUX.1-dev --merge style.safetensors:0.8 -o styled.gguf --type q8_0";

/// The component of that name.
fn component(name: &str) -> Result<&'static Slot, String> {
    slot::slot(name).ok_or_else(|| format!("expected one of {}", SLOTS.map(|slot| slot.name).join(", ")))
}

pub(super) fn run(args: &Args, printer: &Printer) -> Result<(), Failure> {
    let started = Instant::now();
    model::refuse_stdout("--output", Some(&args.output))?;
    let (_, _inside) = threads::start(args.threads);
    let mut options = args.options()?;
    let source = args.parts.open(args.source.as_deref(), "SRC")?;
    // Which of the two is there decides what lives long enough.
    let (whole, alone, lone);
    let (source, networks) = match args.component {
        None => {
            alone = pipeline::alone(&source)?;
            if let Some(alone) = &alone {
                options.target = Target::Component(alone.slot);
                (&alone.source, alone.networks.networks())
            } else {
                whole = pipeline::open(&source)?;
                (&whole.source, whole.networks())
            }
        }
        Some(slot) => {
            lone = pipeline::component(&source, slot)?;
            (&lone.0, lone.1.networks())
        }
    };
    let plan = convert::plan(source, &networks, options)?;
    for warning in source.passed_over() {
        printer.warn(warning);
    }
    for warning in report::warnings(&plan) {
        printer.warn(&warning);
    }
    if !args.dry_run {
        write(args, &plan, printer)?;
    }
    report::print(args, &plan, started.elapsed(), printer)
}

/// What `--tensor` gives.
fn pattern(text: &str) -> Result<TensorPattern, String> {
    text.parse::<TensorPattern>().map_err(|error| shortened(error.to_string()))
}

impl Args {
    fn options(&self) -> Result<Options> {
        Ok(Options {
            types: self.types.parse()?,
            patterns: self.patterns.clone(),
            target: self.component.map_or(Target::Bundle, Target::Component),
            allow_requantize: self.allow_requantize,
            merge: lora::pairs(&self.merge),
        })
    }
}

fn write(args: &Args, plan: &Plan<'_>, printer: &Printer) -> Result<(), Error> {
    let cancel = interrupt::cancel_flag(printer);
    // The header comes with the first tensor.
    printer.begin("convert", plan.tensors.iter().map(|tensor| tensor.bytes).sum(), Unit::Bytes);
    let options = WriteOptions { overwrite: args.overwrite, allow_nonfinite: args.allow_nonfinite };
    let found = plan.write(&args.output, options, &mut |Progress { tensor, done, .. }| {
        printer.progress(done);
        printer.doing(tensor.to_owned());
        cancel.check()
    })?;
    printer.end("convert");
    for NonFinite { tensor, count } in &found {
        printer.warn(&format!("{tensor} has {} that are not finite", units::counted(*count as usize, "number")));
    }
    Ok(())
}
