//! `pinhole bench quality`: what each type costs in quality.
//!
//! The same prompts with the same seeds, drawn from a bundle of each type and from one in f32, which is the reference.

mod pictures;
mod place;
mod prompts;
mod report;
mod weights;

use std::path::PathBuf;
use std::time::Instant;

use pinhole::convert::Types;
use pinhole::pipeline::{self, Opened, Pipeline, Request};
use pinhole::{Error, Result};
use pinhole_quant::recipe::FileType;

use crate::cli::failure::Failure;
use crate::cli::printer::{Printer, Talk};
use crate::cli::request;
use crate::cli::{interrupt, model, threads};
use pictures::{Picture, Studio};
use place::Place;
use report::{Measured, Report, Row};

/// Measure what each type costs in quality: size, error of the weights, pictures against f32
///
/// Converts the model to f32 and to every type, draws the same prompts with the same seeds from each, and compares with
/// f32. The transformer and both text encoders are of the named type; the autoencoder is what convert makes it.
///
/// Columns: the bundle's size, the transformer's, and of the matrices of transformer and text encoders (embedding tables
/// among them): bits per weight as stored; the share of their numbers that is really in the type's format; their error,
/// which is the mean over matrices, weighted by their numbers, of the sum of squared differences from the source over the
/// source's sum of squares. PSNR in dB over all channels and SSIM over luma: mean over pictures, and the worst. Pictures
/// that are identical have no PSNR, and are left out of its mean. The time is the median of a picture, from prompt to
/// pixels.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub(in crate::cli) struct Args {
    /// A pinhole bundle (.gguf), a diffusers directory, or `mini`, the model that is built in. One that is not quantized:
    /// what is lost already does not show
    #[arg(short, long, value_name = "MODEL")]
    model: PathBuf,
    /// The types to measure [default: all]
    #[arg(long, value_name = "TYPE,...")]
    types: Option<String>,
    /// Text encoders as `convert --type` makes them beside a transformer of the type
    #[arg(long)]
    recipe: bool,
    /// A text file with a prompt on each line [default: 16 in the words of the built-in model]
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Seed of the first prompt; prompt i has SEED + i
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Pixels across, a multiple of 16
    #[arg(long, value_name = "W")]
    width: Option<usize>,
    /// Pixels down, a multiple of 16
    #[arg(long, value_name = "H")]
    height: Option<usize>,
    /// Denoising steps
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Guidance as an input of the model, for those that take it (FLUX.1-dev)
    #[arg(long, value_name = "G")]
    guidance: Option<f32>,
    /// Classifier-free guidance: 1 is off, more takes twice the time
    #[arg(long, value_name = "C")]
    cfg_scale: Option<f32>,
    /// Keep bundles and pictures in this directory, and use those that an earlier run with the same model and version kept
    /// there
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Where to compute: auto, or a device that `pinhole devices` lists
    #[arg(long, value_name = "NAME", default_value = "auto")]
    device: String,
    /// Threads of the CPU [default: one for each core]
    #[arg(long, value_name = "N", value_parser = threads::parser())]
    threads: Option<usize>,
    #[command(flatten)]
    pub(super) talk: Talk,
}

const EXAMPLES: &str = "\
Examples:
  pinhole bench quality -m FLUX.1-schnell --types q8_0,q4_k_s --prompts prompts.txt --keep measured
  pinhole bench quality -m mini --json";

pub(super) fn run(args: &Args, printer: &Printer) -> Result<(), Failure> {
    let started = Instant::now();
    let cancel = interrupt::cancel_flag(printer);
    let (threads, _inside) = threads::start(args.threads);
    let device = request::device(&args.device)?;
    let types = types(args.types.as_deref())?;
    let prompts = prompts::read(args.prompts.as_deref())?;
    let requests = requests(args, &prompts);
    let source = model::open(&args.model)?;
    let model = pipeline::open(&source)?;
    // Before the work, as whatever else can be wrong. A list of prompts has one at least.
    let settings =
        Pipeline::with_threads(pipeline::open(&source)?, device, threads, cancel.clone())?.settings(&requests[0])?;
    let place = Place::open(args.keep.as_deref(), &source)?;
    warn_of_quantized(args, &model, printer);

    let studio = Studio { printer, cancel: &cancel, device, threads, place: &place };
    let bench = Bench { args, model, requests, studio };
    let seeds: Vec<(&str, u64)> =
        bench.requests.iter().map(|request| (request.prompt.as_str(), request.seed)).collect();
    let (measured, reference) = bench.measure(FileType::F32)?;
    let mut rows = vec![Row::new(measured, &seeds, &reference, None)?];
    for file_type in types {
        let (measured, pictures) = bench.measure(file_type)?;
        rows.push(Row::new(measured, &seeds, &pictures, Some(&reference))?);
    }
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        model: &args.model,
        device: device.name(),
        threads,
        recipe: args.recipe,
        settings: settings.into(),
        prompts: &prompts,
        types: rows,
        seconds: started.elapsed().as_secs_f64(),
        warnings: printer.warnings(),
    };
    report::print(&report, printer)
}

/// The types of `list`, each once, or all; without f32, which is measured in any case.
fn types(list: Option<&str>) -> Result<Vec<FileType>> {
    let mut types = Vec::new();
    match list {
        None => types.extend(FileType::all()),
        Some(list) => {
            for name in list.split(',').map(str::trim) {
                let file_type = name.parse().map_err(|_| {
                    let names: Vec<&str> = FileType::all().map(FileType::name).collect();
                    Error::option("--types", format!("some of {}", names.join(", ")), format!("`{name}`"))
                })?;
                if !types.contains(&file_type) {
                    types.push(file_type);
                }
            }
        }
    }
    types.retain(|file_type| *file_type != FileType::F32);
    Ok(types)
}

fn requests(args: &Args, prompts: &[String]) -> Vec<Request> {
    prompts
        .iter()
        .enumerate()
        .map(|(i, prompt)| Request {
            prompt: prompt.clone(),
            width: args.width,
            height: args.height,
            steps: args.steps,
            seed: args.seed.wrapping_add(i as u64),
            guidance: args.guidance,
            cfg_scale: args.cfg_scale,
            batch: 1,
            ..Request::default()
        })
        .collect()
}

fn warn_of_quantized(args: &Args, model: &Opened, printer: &Printer) {
    let formats = weights::quantized(model);
    if !formats.is_empty() {
        let (name, formats) = (args.model.display(), formats.join(", "));
        printer.warn(&format!(
            "{name} is quantized already ({formats}): errors are against its own numbers, not against those it was made of"
        ));
    }
}

/// A model, and what is drawn of it.
struct Bench<'a> {
    args: &'a Args,
    model: Opened,
    requests: Vec<Request>,
    studio: Studio<'a>,
}

impl Bench<'_> {
    /// Converts to `file_type`, looks at the weights, and draws.
    fn measure(&self, file_type: FileType) -> Result<(Measured, Vec<Picture>), Failure> {
        let Studio { printer, cancel, device, threads, place } = self.studio;
        let types = self.types(file_type)?;
        let name = self.name(file_type);
        let bundle = place.bundle(&name, &self.model, types, (printer, cancel))?;
        let model = pipeline::open(&bundle.source)?;
        let weights = weights::compare(&self.model, &model, file_type.dtype(), cancel)?;
        let mut pipeline = Pipeline::with_threads(model, device, threads, cancel.clone())?;
        let components = bundle.types.clone();
        let pictures = self.studio.draw((&name, &components), &mut pipeline, &self.requests)?;
        let (bytes, bundle) = (bundle.bytes, bundle.kept);
        Ok((Measured { name: file_type.name(), components, bytes, bundle, weights }, pictures))
    }

    /// The types of all components for `file_type`.
    fn types(&self, file_type: FileType) -> Result<Types> {
        if self.args.recipe {
            return Ok(file_type.into());
        }
        format!("{file_type},text_encoder={file_type},text_encoder_2={file_type}").parse()
    }

    /// What files of `file_type` are called: apart for the two ways to choose the types of text encoders.
    fn name(&self, file_type: FileType) -> String {
        let recipe = self.args.recipe && file_type.dtype().is_quantized();
        if recipe { format!("{file_type}-recipe") } else { file_type.to_string() }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn types_are_measured_once_each_and_f32_in_any_case() {
        assert_eq!(types(Some("q6_k, Q8_0,f32,q6_k")).unwrap(), [FileType::Q6_K, FileType::Q8_0]);
        assert_eq!(types(Some("f32")).unwrap(), []);
        assert_eq!(types(None).unwrap().len(), FileType::all().count() - 1);
        for list in ["", "q8_0,", "q9"] {
            assert!(matches!(types(Some(list)), Err(Error::Option { option: "--types", .. })), "{list}");
        }
    }
}
