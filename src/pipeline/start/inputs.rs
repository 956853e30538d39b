//! The pictures of a request that go through the autoencoder before the first step.

use std::sync::Arc;

use crate::image::{CHANNELS, Filter, Image, Mask, Picture};
use crate::pipeline::choices::{Preprocess, ReferenceResize};
use crate::pipeline::controls;
use crate::pipeline::followed::{self as follow, Film};
use crate::pipeline::guide::{self, Guide};
use crate::pipeline::opened::{Direction, Opened};
use crate::pipeline::padded::padded;
use crate::pipeline::request::{Control, Request, Settings};
use crate::pipeline::rules::{Beside, Rules, Takes};
use crate::pipeline::run::{Run, Running, stage_runs};
use crate::pipeline::stretch::{Pass, UpscaleSpace};
use crate::plan::Phase;
use crate::plan::measure::Subject;
use crate::video::Clip;
use crate::{Error, Result, reserve};

/// Which pictures of a request go through the autoencoder.
pub(in crate::pipeline) struct Inputs {
    control: bool,
    picture: bool,
    edited: bool,
    masked: bool,
    /// How many ControlNets follow the latents of a picture.
    followed: usize,
    /// How many pictures of a first pass there are.
    again: usize,
    /// Whether frames of a video are given.
    frames: bool,
    /// Whether a film to begin with is.
    film: bool,
    /// How many films and pictures there are of a film beside the latents.
    guide: usize,
    /// How many films are followed.
    follows: usize,
    /// How many pictures beside that one are encoded by themselves, and not as frames of a video.
    alone: usize,
}

impl Inputs {
    /// For a model with these `rules`.
    pub(in crate::pipeline) fn of(rules: &Rules, request: &Request, settings: &Settings) -> Inputs {
        let beside = rules.beside;
        let followed = rules.controls.iter().filter(|control| control.takes.latents()).count();
        let masked = matches!(beside, Some(Beside::Masked { .. })) || controls::paints(rules, request);
        let edited = beside == Some(Beside::Edited);
        // Nothing of it is left where the mask's model begins with noise alone.
        let is_gone = masked && settings.strength == Some(1.0);
        let is_given = settings.given_frames[0];
        let frames = is_given && rules.followed.is_none_or(|followed| followed.told_given);
        let is_start = request.image.is_some() && !rules.guide;
        let picture = is_start && !is_given && !edited && !is_gone && !settings.pass.is_second();
        let again = if settings.pass == Pass::Redrawn(UpscaleSpace::Pixel) { settings.batch } else { 0 };
        let film = request.video.is_some() && !rules.guide && rules.followed.is_none();
        let (follows, alone) = (follow::films(rules), follow::alone(rules, request));
        let (control, guide) = (beside == Some(Beside::Control), guide::count(rules, request));
        Inputs { control, picture, edited, masked, followed, again, frames, film, guide, follows, alone }
    }

    /// How many they are.
    pub(in crate::pipeline) fn count(&self) -> usize {
        let others = [self.control, self.picture, self.edited, self.masked, self.frames, self.film];
        let films = self.guide + self.follows + self.alone;
        others.into_iter().map(usize::from).sum::<usize>() + self.followed + self.again + films
    }

    /// What the autoencoder makes of them, of the pictures of a first pass, and of those that the model looks at.
    pub(super) fn encode(
        &self,
        model: &Opened,
        request: &Request,
        (settings, again): (&Settings, &[Image]),
        run: &mut Run<'_>,
    ) -> Result<Encoded> {
        let subjects = encoders(model, settings);
        let mut encoded = Encoded::default();
        if subjects.is_empty() {
            return Ok(encoded);
        }
        let start =
            run.begin(Phase::Condition, subjects.iter().map(|subject| stage_runs(run.plan, subject)).sum(), 0)?;
        let (own, looked_at) = subjects.split_at(usize::from(self.count() > 0));
        if let [subject] = own {
            let mut running = run.start(subject)?;
            for (rules, controls) in
                model.rules.controls.iter().zip(controls::nets(&controls::of(&model.rules, request)?))
            {
                if rules.takes.latents() {
                    let samples = followed(rules.takes, &controls[0], request, settings)?;
                    encoded.followed.push(model.encoder(settings).encode(run, &mut running, &samples)?);
                }
            }
            let mut encode = |wanted: bool, picture: &Option<Arc<Picture>>, mask: Option<&Mask>| {
                if !wanted {
                    return Ok(None);
                }
                let picture = picture.as_ref().ok_or_else(|| Error::graph("encode", "no picture"))?;
                let mut samples = picture.samples(settings.width, settings.height)?;
                if let Some(mask) = mask {
                    mask.hide(&mut samples)?;
                }
                model.encoder(settings).encode(run, &mut running, &samples).map(Some)
            };
            let mask = if self.masked { Some(mask_of(request, settings)?) } else { None };
            let control = request.control_image.as_ref();
            let made = settings.control_preprocess;
            let control = control.map(|picture| preprocessed(picture, made, settings)).transpose()?;
            encoded.control = encode(self.control, &control, None)?;
            encoded.picture = encode(self.picture, &request.image, None)?;
            encoded.edited = encode(self.edited, &request.image, None)?;
            encoded.masked = encode(self.masked, &request.image, mask.as_ref())?;
            if self.frames {
                encoded.frames = Some(frames(model, request, settings, (run, &mut running))?);
            }
            if self.guide > 0 {
                encoded.guide = Some(Guide::encode(model, request, settings, (run, &mut running))?);
            }
            if self.follows > 0 {
                encoded.film = Some(Film::encode(model, request, settings, (run, &mut running))?);
            }
            if let Some(video) = request.video.as_ref().filter(|_| self.film) {
                encoded.picture = Some(film(model, video, settings, (run, &mut running))?);
            }
            for image in again {
                let picture = Picture::from_rgb8(image.width(), image.height(), image.rgb())?;
                let samples = picture.samples(settings.width, settings.height)?;
                encoded.again.push(model.encoder(settings).encode(run, &mut running, &samples)?);
            }
            run.finish(running);
        }
        for ((subject, picture), [width, height]) in looked_at.iter().zip(&request.references).zip(&settings.references)
        {
            let mut running = run.start(subject)?;
            let samples = reference(model, request, picture, [*width, *height])?;
            encoded.references.push(model.encoder(settings).encode(run, &mut running, &samples)?);
            run.finish(running);
        }
        run.end(Phase::Condition, start)?;
        Ok(encoded)
    }
}

/// The moments of the pictures of a request, `[w, h, 2 C]` each.
#[derive(Default)]
pub(super) struct Encoded {
    pub(super) control: Option<Vec<f32>>,
    pub(super) picture: Option<Vec<f32>>,
    pub(super) edited: Option<Vec<f32>>,
    pub(super) masked: Option<Vec<f32>>,
    pub(super) followed: Vec<Vec<f32>>,
    pub(super) references: Vec<Vec<f32>>,
    pub(super) again: Vec<Vec<f32>>,
    /// Those of a video, `[w, h, F, 2 C]`.
    pub(super) frames: Option<Vec<f32>>,
    /// Those of a film beside the latents.
    pub(super) guide: Option<Guide>,
    /// Those of a film that is followed.
    pub(super) film: Option<Film>,
}

/// The picture that is followed, once it shows what is to be followed.
fn preprocessed(picture: &Arc<Picture>, preprocess: Preprocess, settings: &Settings) -> Result<Arc<Picture>> {
    match preprocess {
        Preprocess::None | Preprocess::Inpaint => Ok(Arc::clone(picture)),
        Preprocess::Canny(thresholds) => {
            let Settings { width, height, .. } = *settings;
            let edges = picture.image().resized(width, height, Filter::Lanczos)?.canny(thresholds)?;
            Picture::from_rgb8(width, height, edges.rgb()).map(Arc::new)
        }
    }
}

/// The samples of a picture that the model looks at in the size `sides`.
fn reference(model: &Opened, request: &Request, picture: &Picture, sides: [usize; 2]) -> Result<Vec<f32>> {
    let [width, height] = sides;
    let Some(rules) = model.rules.references else { return picture.samples(width, height) };
    let Some(cropped) = rules.cropped else { return picture.samples(width, height) };
    let image = picture.image();
    let own = [image.width(), image.height()];
    if let Some(padded) = padded(&rules, request) {
        return padded.samples(image, sides, (model.rules.multiple, request));
    }
    let [whole_width, whole_height] = match request.reference_resize {
        ReferenceResize::Auto => cropped.whole(own),
        ReferenceResize::None => own,
    };
    image.resized(whole_width, whole_height, Filter::Lanczos)?.center(width, height)?.to_samples()
}

/// What the encoder is called in a plan for each picture that a model looks at. Sizes differ.
const REFERENCES: [&str; MOST_REFERENCES] = [
    "reference",
    "reference 2",
    "reference 3",
    "reference 4",
    "reference 5",
    "reference 6",
    "reference 7",
    "reference 8",
    "reference 9",
    "reference 10",
];

/// How many pictures any model looks at, at most.
pub(in crate::pipeline) const MOST_REFERENCES: usize = 10;

/// What runs before the first step to encode the pictures of a request: first for those of the size that is drawn, if there are any.
pub(in crate::pipeline) fn encoders<'m>(model: &'m Opened, settings: &Settings) -> Vec<Subject<'m>> {
    let mut subjects = Vec::new();
    if settings.encoded_pictures > 0 {
        let sized = Settings { frames: encoded_frames(model, settings), ..settings.clone() };
        // What a video refers to is encoded picture by picture, behind all that is as long as the video.
        let alone = settings.encoded_alone;
        let own = model.encoder(settings).subjects(
            &sized,
            Direction::Encode,
            settings.encoded_pictures.saturating_sub(alone),
        );
        subjects.extend(own.into_iter().map(|subject| Subject { runs: subject.runs.and_request(alone), ..subject }));
    }
    for (&[width, height], name) in settings.references.iter().zip(REFERENCES) {
        let sized = Settings { width, height, ..settings.clone() };
        let own = model.encoder(settings).subjects(&sized, Direction::Encode, 1);
        subjects.extend(own.into_iter().map(|subject| Subject { name, ..subject }));
    }
    subjects
}

/// How many frames the video has that is encoded: the first alone, if nothing stands beside the latents.
fn encoded_frames(model: &Opened, settings: &Settings) -> usize {
    match model.rules.first {
        Some(first) if !first.beside => 1,
        _ => settings.frames,
    }
}

/// What the autoencoder makes of a video of the frames that are given, and of zeros where none is.
fn frames(
    model: &Opened,
    request: &Request,
    settings: &Settings,
    (run, running): (&mut Run<'_>, &mut Running<'_>),
) -> Result<Vec<f32>> {
    let Settings { width, height, .. } = *settings;
    let count = encoded_frames(model, settings);
    model.encoder(settings).encode_video(run, running, count, &mut |at| {
        let last = request.last_image.as_ref().filter(|_| at + 1 == count);
        match last.or(request.image.as_ref().filter(|_| at == 0)) {
            Some(picture) => picture.samples(width, height),
            None => reserve::zeros("a frame", CHANNELS * width * height),
        }
    })
}

/// What the autoencoder makes of a film to begin with.
fn film(
    model: &Opened,
    video: &Clip,
    settings: &Settings,
    (run, running): (&mut Run<'_>, &mut Running<'_>),
) -> Result<Vec<f32>> {
    let Settings { width, height, frames, .. } = *settings;
    model.encoder(settings).encode_video(run, running, frames, &mut |at| {
        let frame = video.frames().get(at).ok_or_else(|| Error::graph("encode", format!("no frame {at} of a film")))?;
        frame.resized(width, height, Filter::Lanczos)?.to_samples()
    })
}

/// The samples of the picture that a ControlNet follows, as the autoencoder or the ControlNet itself takes it: black where a mask
/// hides it.
pub(super) fn followed(takes: Takes, control: &Control, request: &Request, settings: &Settings) -> Result<Vec<f32>> {
    let sides = [settings.width, settings.height];
    let mut samples = preprocessed(&control.image, control.preprocess, settings)?.samples(sides[0], sides[1])?;
    if takes == Takes::Masked {
        controls::mask(request, control, sides)?.blacken(&mut samples)?;
    }
    if matches!(takes, Takes::Levels | Takes::Features) {
        samples.iter_mut().for_each(|sample| *sample = 0.5 * *sample + 0.5);
        if control.preprocess == Preprocess::Inpaint {
            let mask = controls::mask(request, control, sides)?;
            mask.blacken(&mut samples)?;
        }
    }
    Ok(samples)
}

/// The mask of a request, at the size that is drawn.
pub(super) fn mask_of(request: &Request, settings: &Settings) -> Result<Mask> {
    let missing = || Error::graph("mask", "a mask without its picture");
    let (mask, image) = (request.mask.as_ref().ok_or_else(missing)?, request.image.as_ref().ok_or_else(missing)?);
    mask.mask_for(image, settings.width, settings.height)
}
