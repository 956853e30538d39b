//! The options of films.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pinhole::Result;
use pinhole::pipeline::{Additions, Parameters, Request};
use pinhole::video::{Clip, MAX_FRAMES, Rate};

use super::lora::{self, Lora};
use super::pictures::picture;
use super::printer::Printer;
use super::units::path_text;

/// What `generate` and `plan` take for models of films.
#[derive(clap::Args)]
pub(super) struct VideoArgs {
    /// How many frames a film has, one more than a multiple of 4; 1 is a picture [default: the model's]
    #[arg(long, value_name = "N")]
    frames: Option<usize>,
    /// How many frames of it are shown in a second: 16, 23.976, 24000/1001, ... [default: the model's]
    #[arg(long, value_name = "R", value_parser = |text: &str| text.parse::<Rate>())]
    fps: Option<Rate>,
    /// The last frame of a film, for models that are given it; the first is --image
    #[arg(long, value_name = "FILE")]
    last_image: Option<PathBuf>,
    /// A film to begin with, for models that are given none of its frames: a folder of pictures, Y4M, or an animation in GIF, WebP or PNG.
    /// How far from it the result may be is --strength; without --frames, it has as many. For VACE, the film that says what is drawn; for
    /// Fun Control, the one that is followed
    #[arg(long, value_name = "FILE|DIR")]
    video: Option<PathBuf>,
    /// Where the film of --video is made anew by VACE: white, and black where it is kept; a mask for each frame, or one for all. Without,
    /// everything is
    #[arg(long, value_name = "FILE|DIR")]
    video_mask: Option<PathBuf>,
    /// How strongly VACE is told by films and pictures [default: 1]
    #[arg(long, value_name = "S")]
    guide_scale: Option<f32>,
    /// For models of two experts: the guidance of the second, which makes the last steps [default: the model's, or --cfg-scale]
    #[arg(long, value_name = "C")]
    cfg_scale_2: Option<f32>,
    /// For models of two experts: below which share of all noise the second one takes over [default: the model's]
    #[arg(long, value_name = "B")]
    boundary: Option<f32>,
    /// As --lora, for the first of two experts alone, the one of high noise
    #[arg(long = "lora-high", value_name = "FILE[:STRENGTH]", value_parser = lora::parse)]
    loras_high: Vec<Lora>,
    /// As --lora, for the second of two experts alone, the one of low noise
    #[arg(long = "lora-low", value_name = "FILE[:STRENGTH]", value_parser = lora::parse)]
    loras_low: Vec<Lora>,
}

impl VideoArgs {
    /// `additions` with what these options add to a model.
    pub(super) fn add_to(&self, additions: Additions) -> Additions {
        let (loras_high, loras_low) = (lora::pairs(&self.loras_high), lora::pairs(&self.loras_low));
        Additions { loras_high, loras_low, ..additions }
    }

    /// `request` with what these options say of it.
    ///
    /// # Errors
    /// Those of [`Picture::open`](pinhole::image::Picture::open).
    pub(super) fn told(&self, request: Request, printer: &Printer) -> Result<Request> {
        Ok(Request {
            frames: self.frames,
            fps: self.fps.map(|rate| rate.fps() as f32),
            last_image: picture(&self.last_image, printer)?,
            video: self.video.as_deref().map(|path| self.clip(path, printer)).transpose()?,
            video_mask: self.video_mask.as_deref().map(|path| self.clip(path, printer)).transpose()?,
            guide_scale: self.guide_scale,
            cfg_scale_2: self.cfg_scale_2,
            boundary: self.boundary,
            ..request
        })
    }

    /// The film at `path`, as far as it is needed.
    fn clip(&self, path: &Path, printer: &Printer) -> Result<Arc<Clip>> {
        let clip = Clip::open(path, self.frames.unwrap_or(MAX_FRAMES).max(1))?;
        for note in clip.notes() {
            printer.warn(note);
        }
        Ok(Arc::new(clip))
    }

    /// The files that they name, each with its option.
    pub(super) fn files(&self) -> Vec<(&'static str, PathBuf)> {
        let mut files = Vec::new();
        files.extend(self.last_image.iter().map(|path| ("--last-image", path.clone())));
        files.extend(self.video.iter().map(|path| ("--video", path.clone())));
        files.extend(self.video_mask.iter().map(|path| ("--video-mask", path.clone())));
        for (option, loras) in [("--lora-high", &self.loras_high), ("--lora-low", &self.loras_low)] {
            files.extend(lora::pairs(loras).into_iter().map(|(path, _)| (option, path)));
        }
        files
    }

    /// `parameters` with the files that they name.
    pub(super) fn tell<'a>(&self, parameters: Parameters<'a>) -> Parameters<'a> {
        Parameters {
            last_image: path_text(self.last_image.as_ref()),
            video: path_text(self.video.as_ref()),
            video_mask: path_text(self.video_mask.as_ref()),
            loras_high: lora::in_json(&self.loras_high),
            loras_low: lora::in_json(&self.loras_low),
            ..parameters
        }
    }
}
