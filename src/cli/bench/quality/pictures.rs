//! The pictures of one bundle, and how near they are to those of another.

use std::path::PathBuf;
use std::time::Instant;

use pinhole::Result;
use pinhole::ggml::{CancelFlag, Device};
use pinhole::image::Image;
use pinhole::pipeline::Pipeline;
use pinhole::pipeline::{Event, Observer, Request, Settings};
use pinhole_quant::metrics;
use serde::Serialize;

use super::place::{self, Place};
use crate::cli::failure::Failure;
use crate::cli::printer::{Printer, Unit};
use crate::cli::units;

/// A picture of a prompt.
pub(super) struct Picture {
    pub(super) image: Image,
    /// From the prompt to the picture.
    pub(super) seconds: f64,
    /// Where it stays, if it does.
    pub(super) path: Option<PathBuf>,
}

/// How near a picture is to the reference.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Nearness {
    /// In dB; `None` where the pictures are identical and it is infinite.
    pub(super) psnr: Option<f64>,
    pub(super) ssim: f64,
}

/// What all pictures of a run have in common.
pub(super) struct Studio<'a> {
    pub(super) printer: &'a Printer,
    pub(super) cancel: &'a CancelFlag,
    pub(super) device: Device,
    pub(super) threads: usize,
    pub(super) place: &'a Place,
}

/// What a kept picture says of itself; another run uses it only where it would say the same.
#[derive(Serialize)]
struct Made<'a> {
    version: &'static str,
    types: &'a str,
    device: String,
    threads: usize,
    prompt: &'a str,
    negative_prompt: Option<&'a str>,
    seed: u64,
    width: usize,
    height: usize,
    steps: usize,
    guidance: Option<f32>,
    cfg_scale: f32,
    max_sequence_length: usize,
}

impl Studio<'_> {
    /// Draws `requests` with `pipeline`, whose bundle is called `name` and has its components in `types`.
    ///
    /// # Errors
    /// Those of the pipeline, and of writing pictures that are kept.
    pub(super) fn draw(
        &self,
        (name, types): (&str, &str),
        pipeline: &mut Pipeline,
        requests: &[Request],
    ) -> Result<Vec<Picture>, Failure> {
        let steps = requests.iter().map(|request| pipeline.settings(request).map(|settings| settings.steps as u64));
        self.printer.begin(name, steps.sum::<Result<u64>>()?, Unit::Parts);
        let mut pictures = Vec::with_capacity(requests.len());
        for (i, request) in requests.iter().enumerate() {
            self.printer.doing(format!("picture {}/{},", i + 1, requests.len()));
            pictures.push(self.picture(i, (name, types), pipeline, request)?);
        }
        self.printer.end(name);
        Ok(pictures)
    }

    /// The picture of `request`: read, where an earlier run kept the very same, or drawn.
    fn picture(
        &self,
        number: usize,
        (name, types): (&str, &str),
        pipeline: &mut Pipeline,
        request: &Request,
    ) -> Result<Picture, Failure> {
        let settings = pipeline.settings(request)?;
        let made = self.made(types, request, &settings);
        let path = self.place.picture(name, number);
        if let Some(path) = &path
            && let Some((image, seconds)) = place::read_picture(path, &made)
        {
            (0..settings.steps).for_each(|_| self.printer.advance());
            return Ok(Picture { image, seconds, path: Some(path.clone()) });
        }
        let started = Instant::now();
        let mut generated =
            pipeline.generate_watched(request, &mut Watch { printer: self.printer, cancel: self.cancel })?;
        let seconds = started.elapsed().as_secs_f64();
        // One request, one picture: `batch` is 1.
        let image = generated.images.swap_remove(0);
        if let Some(path) = &path {
            place::write_picture(path, &image, &made, seconds)?;
        }
        Ok(Picture { image, seconds, path })
    }

    fn made(&self, types: &str, request: &Request, settings: &Settings) -> String {
        let made = Made {
            version: env!("CARGO_PKG_VERSION"),
            types,
            device: self.device.name(),
            threads: self.threads,
            prompt: &request.prompt,
            negative_prompt: settings.negative_prompt.as_deref(),
            seed: settings.seed,
            width: settings.width,
            height: settings.height,
            steps: settings.steps,
            guidance: settings.guidance,
            cfg_scale: settings.cfg_scale,
            max_sequence_length: settings.max_sequence_length,
        };
        // Numbers and texts alone: JSON has all of them.
        serde_json::to_string(&made).unwrap_or_default()
    }
}

/// Counts steps, and stops where Ctrl-C was pressed. Every bundle of a model gives the same warnings: each is shown
/// once.
struct Watch<'a> {
    printer: &'a Printer,
    cancel: &'a CancelFlag,
}

impl Observer for Watch<'_> {
    fn event(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Step { .. } => self.printer.advance(),
            Event::Warning(text) if !self.printer.warnings().contains(&units::shown(&text)) => self.printer.warn(&text),
            _ => {}
        }
        self.cancel.check()
    }
}

/// How near `picture` is to `reference`. `None` where they differ in size, or a side is under 11 pixels, which the
/// pictures of one run do not.
pub(super) fn compare(reference: &Image, picture: &Image) -> Option<Nearness> {
    let psnr = metrics::psnr(reference.rgb(), picture.rgb())?;
    let ssim = metrics::ssim(reference.rgb(), picture.rgb(), reference.width(), reference.height())?;
    Some(Nearness { psnr: psnr.is_finite().then_some(psnr), ssim })
}
