//! What denoising begins with: noise, or a picture under noise.

use std::sync::Arc;

use super::choices::{Posterior, Preprocess, ReferenceResize};
use super::controls;
use super::generated::published_extents;
use super::guide::{self, Guide};
use super::opened::{Direction, Opened};
use super::padded::padded;
use super::request::{Control, Request, Settings};
use super::rules::{Beside, Rules, Starts, Takes};
use super::run::{Run, Running, stage_runs};
use super::stretch::{Pass, UpscaleSpace, stretched};
use crate::image::{CHANNELS, Filter, Image, Mask, Picture};
use crate::plan::Phase;
use crate::plan::measure::Subject;
use crate::sample::{Levels, Noise};
use crate::video::Clip;
use crate::{Error, Result, reserve};

/// The logarithm of a variance is held within these bounds, as diffusers' `DiagonalGaussianDistribution` does.
const LOG_VARIANCES: [f32; 2] = [-30.0, 20.0];

/// The latents before the first evaluation, and what the loop goes on with.
pub(super) struct Start {
    /// `[w, h, F, C, N]`
    pub(super) latents: Vec<f32>,
    /// Goes on drawing, for samplers with fresh noise.
    pub(super) noise: Noise,
    /// What keeps a part of the picture as it is.
    pub(super) kept: Option<Kept>,
    /// What the denoiser takes with the latents.
    pub(super) company: Company,
}

/// What a denoiser takes with the latents.
#[derive(Default)]
pub(super) struct Company {
    /// What stands beside the latents of each picture of the batch, as the denoiser takes it; none if nothing does.
    pub(super) beside: Vec<Vec<f32>>,
    /// What stands behind the latents of every picture: those of the pictures that the model looks at, packed.
    pub(super) references: Vec<f32>,
    /// What each ControlNet is given of its picture.
    pub(super) followed: Vec<Vec<f32>>,
    /// The tokens of a face, for the ControlNet that reads it.
    pub(super) face: Vec<f32>,
}

impl Company {
    /// Whether nothing stands beside or behind the latents.
    pub(super) fn is_empty(&self) -> bool {
        self.beside.is_empty() && self.references.is_empty()
    }
}

/// The part of a picture that is not painted anew.
pub(super) struct Kept {
    /// `[w, h]`, or `[w, h, F]`: 1 where the picture is painted anew.
    mask: Vec<f32>,
    /// The picture's latents, `[w, h, F, C, N]`.
    picture: Vec<f32>,
    /// The noise that lies over them, in the same layout; none if they stay as they are.
    noise: Vec<f32>,
}

impl Kept {
    /// Puts the picture back where it is kept, under the noise of evaluation `next`: diffusers' inpainting of models without
    /// mask channels.
    pub(super) fn restore(&self, levels: &Levels, next: usize, latents: &mut [f32]) -> Result<()> {
        let mixed;
        let under_noise = if self.noise.is_empty() {
            &self.picture
        } else {
            mixed = levels.mixed(&self.picture, &self.noise, next)?;
            &mixed
        };
        for (plane, kept) in latents.chunks_exact_mut(self.mask.len()).zip(under_noise.chunks_exact(self.mask.len())) {
            for ((x, kept), mask) in plane.iter_mut().zip(kept).zip(&self.mask) {
                *x = (1.0 - mask) * kept + mask * *x;
            }
        }
        Ok(())
    }
}

/// What a first pass leaves to a second.
pub(super) struct Drawn {
    /// `[w, h, F, C, N]`
    pub(super) latents: Vec<f32>,
    /// The extents of these.
    pub(super) dims: [usize; 5],
    /// The pictures, if the second pass begins with them.
    pub(super) images: Vec<Image>,
}

impl Start {
    /// What a second pass begins with. A refiner goes on with the latents as they are; otherwise they, or the pictures, are stretched and
    /// put under noise. Noise is drawn from the seed anew.
    pub(super) fn second(
        model: &Opened,
        request: &Request,
        settings: &Settings,
        levels: &Levels,
        (drawn, run): (Drawn, &mut Run<'_>),
    ) -> Result<Start> {
        match settings.pass {
            Pass::Redrawn(UpscaleSpace::Pixel) => {
                Start::with(model, request, settings, levels, (Some(Again::Pictures(&drawn.images)), run))
            }
            Pass::Redrawn(space) => {
                let ([from_w, from_h, ..], [w, h, ..]) = (drawn.dims, model.autoencoder.latents(settings));
                let latents = stretched(space, &drawn.latents, [from_w, from_h], [w, h])?;
                Start::with(model, request, settings, levels, (Some(Again::Latents(latents)), run))
            }
            _ => {
                let noise = Noise::new(settings.seed, settings.batch);
                Ok(Start { latents: drawn.latents, noise, kept: None, company: Company::default() })
            }
        }
    }

    /// Encodes the pictures of the request, and draws what diffusers draws in its order: the latents of a picture that is followed,
    /// those of a picture to begin with, the noise, the latents of what a mask leaves.
    pub(super) fn new(
        model: &Opened,
        request: &Request,
        settings: &Settings,
        levels: &Levels,
        run: &mut Run<'_>,
    ) -> Result<Start> {
        Start::with(model, request, settings, levels, (None, run))
    }

    /// The same of what is drawn `again` in the place of a picture of the request, if it is.
    fn with(
        model: &Opened,
        request: &Request,
        settings: &Settings,
        levels: &Levels,
        (again, run): (Option<Again<'_>>, &mut Run<'_>),
    ) -> Result<Start> {
        let beside = model.rules.beside;
        let inputs = Inputs::of(&model.rules, request, settings);
        let pictures = if let Some(Again::Pictures(images)) = &again { images } else { [].as_slice() };
        let mut encoded = inputs.encode(model, request, (settings, pictures), run)?;
        let is_mean = model.rules.starts == Starts::Mean || !model.encoder(settings).draws();
        let posterior = if is_mean { Posterior::Mean } else { request.posterior };
        let drawing = Drawing { model, settings, posterior };
        let mut generator = Noise::new(settings.seed, settings.batch);
        let control = encoded.control.take().map(|moments| drawing.latents(&moments, &mut generator)).transpose()?;
        let seen = (encoded.followed, encoded.masked.as_deref().filter(|_| controls::paints(&model.rules, request)));
        let followed = drawing.followed(request, seen, &mut generator)?;
        let mut picture = match again {
            Some(Again::Latents(latents)) => Some(latents),
            Some(Again::Pictures(_)) => Some(drawing.latents_of(&encoded.again, &mut generator)?),
            None => encoded.picture.take().map(|moments| drawing.latents(&moments, &mut generator)).transpose()?,
        };
        if beside == (Some(Beside::Masked { draws_picture: true })) && picture.is_none() {
            drawing.skip(&mut generator)?;
        }
        let given = request.noise.as_deref().filter(|_| !settings.pass.is_second());
        let noise = noise(model, given, settings, &mut generator)?;
        let frames = encoded.frames.take().map(|moments| drawing.frames(&moments)).transpose()?;
        let beside = match beside {
            None if model.rules.guide => {
                let guide = encoded.guide.take().ok_or_else(|| Error::graph("encode", "no film beside the latents"))?;
                drawing.guided(&guide.planes(model, request, settings)?)?
            }
            None if model.rules.first.is_some_and(|first| first.beside) => {
                drawing.beside(frames.as_deref().unwrap_or_default(), Some(&given_frames(settings)?))?
            }
            None => Vec::new(),
            Some(Beside::Control) => drawing.beside(&control.unwrap_or_default(), None)?,
            Some(Beside::Edited) => {
                drawing.beside(&mean_of(&encoded.edited.take().unwrap_or_default(), settings)?, None)?
            }
            Some(Beside::Masked { .. }) => {
                let masked = drawing.latents(&encoded.masked.take().unwrap_or_default(), &mut generator)?;
                drawing.beside(&masked, Some(mask_of(request, settings)?.values()))?
            }
        };
        let company =
            Company { beside, references: drawing.references(&encoded.references)?, followed, face: Vec::new() };
        let Some(picture) = picture.take() else {
            let start = levels.start();
            let mut latents = if start == 1.0 { noise } else { scaled(&noise, start)? };
            let kept = frames.filter(|_| company.beside.is_empty()).map(|first| drawing.kept(&first)).transpose()?;
            if let Some(kept) = &kept {
                kept.restore(levels, 0, &mut latents)?;
            }
            return Ok(Start { latents, noise: generator, kept, company });
        };
        if request.mask.is_none() || !company.beside.is_empty() || controls::paints(&model.rules, request) {
            let latents = levels.mixed(&picture, &noise, 0)?;
            return Ok(Start { latents, noise: generator, kept: None, company });
        }
        // diffusers draws the latents of the masked picture, too, and does not use them here.
        drawing.skip(&mut generator)?;
        let whole = settings.strength == Some(1.0);
        let latents = if whole { scaled(&noise, levels.start())? } else { levels.mixed(&picture, &noise, 0)? };
        let (mask, factor) = (mask_of(request, settings)?, model.autoencoder.factor());
        let mask = match model.rules.starts {
            Starts::Drawn => mask.latents(factor)?,
            Starts::Mean => mask.between(factor)?,
        };
        Ok(Start { latents, noise: generator, kept: Some(Kept { mask, picture, noise }), company })
    }
}

/// What a second pass begins with.
enum Again<'a> {
    /// Latents, `[w, h, F, C, N]`.
    Latents(Vec<f32>),
    /// Pictures, one for each of the batch.
    Pictures(&'a [Image]),
}

/// Which pictures of a request go through the autoencoder.
pub(super) struct Inputs {
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
}

impl Inputs {
    /// For a model with these `rules`.
    pub(super) fn of(rules: &Rules, request: &Request, settings: &Settings) -> Inputs {
        let beside = rules.beside;
        let followed = rules.controls.iter().filter(|control| control.takes.latents()).count();
        let masked = matches!(beside, Some(Beside::Masked { .. })) || controls::paints(rules, request);
        let edited = beside == Some(Beside::Edited);
        // Nothing of it is left where the mask's model begins with noise alone.
        let is_gone = masked && settings.strength == Some(1.0);
        let frames = settings.given_frames[0];
        let is_start = request.image.is_some() && !rules.guide;
        let picture = is_start && !frames && !edited && !is_gone && !settings.pass.is_second();
        let again = if settings.pass == Pass::Redrawn(UpscaleSpace::Pixel) { settings.batch } else { 0 };
        let film = request.video.is_some() && !rules.guide;
        let (control, guide) = (beside == Some(Beside::Control), guide::count(rules, request));
        Inputs { control, picture, edited, masked, followed, again, frames, film, guide }
    }

    /// How many they are.
    pub(super) fn count(&self) -> usize {
        let others = [self.control, self.picture, self.edited, self.masked, self.frames, self.film];
        others.into_iter().map(usize::from).sum::<usize>() + self.followed + self.again + self.guide
    }

    /// What the autoencoder makes of them, of the pictures of a first pass, and of those that the model looks at.
    fn encode(
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
pub(super) const MOST_REFERENCES: usize = 10;

/// What runs before the first step to encode the pictures of a request: first for those of the size that is drawn, if there are any.
pub(super) fn encoders<'m>(model: &'m Opened, settings: &Settings) -> Vec<Subject<'m>> {
    let mut subjects = Vec::new();
    if settings.encoded_pictures > 0 {
        let sized = Settings { frames: encoded_frames(model, settings), ..settings.clone() };
        // What a video refers to is encoded picture by picture, behind all that is as long as the video.
        let alone = settings.front_frames;
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

/// The moments of the pictures of a request, `[w, h, 2 C]` each.
#[derive(Default)]
struct Encoded {
    control: Option<Vec<f32>>,
    picture: Option<Vec<f32>>,
    edited: Option<Vec<f32>>,
    masked: Option<Vec<f32>>,
    followed: Vec<Vec<f32>>,
    references: Vec<Vec<f32>>,
    again: Vec<Vec<f32>>,
    /// Those of a video, `[w, h, F, 2 C]`.
    frames: Option<Vec<f32>>,
    /// Those of a film beside the latents.
    guide: Option<Guide>,
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

/// For each frame, whether it is given: 1 if it is.
fn given_frames(settings: &Settings) -> Result<Vec<f32>> {
    let mut given = reserve::zeros("the given frames", settings.frames)?;
    let [first, last] = settings.given_frames.map(f32::from);
    given[0] = first;
    if let Some(at) = given.len().checked_sub(1).filter(|at| *at > 0) {
        given[at] = last;
    }
    Ok(given)
}

/// The samples of the picture that a ControlNet follows, as the autoencoder or the ControlNet itself takes it: black where a mask
/// hides it.
fn followed(takes: Takes, control: &Control, request: &Request, settings: &Settings) -> Result<Vec<f32>> {
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
fn mask_of(request: &Request, settings: &Settings) -> Result<Mask> {
    let missing = || Error::graph("mask", "a mask without its picture");
    let (mask, image) = (request.mask.as_ref().ok_or_else(missing)?, request.image.as_ref().ok_or_else(missing)?);
    mask.mask_for(image, settings.width, settings.height)
}

/// The mean of `moments`, for each picture of the batch.
fn mean_of(moments: &[f32], settings: &Settings) -> Result<Vec<f32>> {
    reserve::repeat("the latents", &moments[..moments.len() / 2], settings.batch)
}

/// How latents are drawn of a distribution.
struct Drawing<'a> {
    model: &'a Opened,
    settings: &'a Settings,
    posterior: Posterior,
}

impl Drawing<'_> {
    /// How many latents a picture has.
    fn each(&self) -> usize {
        let [w, h, frames, channels, _] = self.model.autoencoder.latents(self.settings);
        w * h * frames * channels
    }

    /// Draws what the latents of a picture would have taken.
    fn skip(&self, generator: &mut Noise) -> Result<()> {
        match self.posterior {
            Posterior::Sample => generator.draw(self.each()).map(drop),
            Posterior::Mean => Ok(()),
        }
    }

    /// Latents in the denoiser's space, `[w, h, F, C, N]`: one draw of the distribution of `moments` for each picture of the batch.
    fn latents(&self, moments: &[f32], generator: &mut Noise) -> Result<Vec<f32>> {
        self.drawn(&vec![moments; self.settings.batch], generator)
    }

    /// The same of pictures of their own.
    fn latents_of(&self, moments: &[Vec<f32>], generator: &mut Noise) -> Result<Vec<f32>> {
        self.drawn(&moments.iter().map(Vec::as_slice).collect::<Vec<_>>(), generator)
    }

    /// One draw of each distribution of `moments`.
    fn drawn(&self, moments: &[&[f32]], generator: &mut Noise) -> Result<Vec<f32>> {
        let each = self.each();
        let wrong = moments.iter().find(|moments| moments.len() != 2 * each);
        if let Some(length) = wrong.map(|moments| moments.len()).or((moments.len() != self.settings.batch).then_some(0))
        {
            return Err(Error::graph("encode", format!("{length} moments for {each} latents")));
        }
        let mut latents = reserve::room("the latents", each * self.settings.batch)?;
        let drawn = if self.posterior == Posterior::Sample { generator.draw(each)? } else { Vec::new() };
        for (at, moments) in moments.iter().enumerate() {
            let (mean, log_variance) = moments.split_at(each);
            match self.posterior {
                Posterior::Mean => latents.extend_from_slice(mean),
                Posterior::Sample => {
                    let [least, most] = LOG_VARIANCES;
                    for ((mean, log_variance), drawn) in mean.iter().zip(log_variance).zip(&drawn[at * each..]) {
                        latents.push(mean + (0.5 * log_variance.clamp(least, most)).exp() * drawn);
                    }
                }
            }
        }
        for latents in latents.chunks_exact_mut(each) {
            self.model.encoder(self.settings).normalize(latents)?;
        }
        super::run::finite(latents, "the latents of the picture")
    }

    /// The mean latents `[w, h, F, C]` of a video with these `moments`, in the denoiser's space.
    fn frames(&self, moments: &[f32]) -> Result<Vec<f32>> {
        let mut mean = reserve::repeat("the latents", &moments[..moments.len() / 2], 1)?;
        self.model.encoder(self.settings).normalize(&mut mean)?;
        super::run::finite(mean, "the latents of the given frames")
    }

    /// What keeps the first latent frame of each video as it is: `first [w, h, C]`.
    fn kept(&self, first: &[f32]) -> Result<Kept> {
        let [w, h, frames, channels, batch] = self.model.autoencoder.latents(self.settings);
        let mut mask = reserve::repeat("the mask", &[1.0], w * h * frames)?;
        mask[..w * h].fill(0.0);
        let mut picture = reserve::zeros("the latents", w * h * frames * channels * batch)?;
        for (at, channel) in picture.chunks_exact_mut(w * h * frames).enumerate() {
            let from = at % channels * w * h;
            channel[..w * h].copy_from_slice(&first[from..from + w * h]);
        }
        Ok(Kept { mask, picture, noise: Vec::new() })
    }

    /// What each ControlNet is given of its picture: `moments` are those of the pictures whose latents it takes, and `masked` those of
    /// what a mask leaves of the picture to begin with, if they take that.
    fn followed(
        &self,
        request: &Request,
        (moments, masked): (Vec<Vec<f32>>, Option<&[f32]>),
        generator: &mut Noise,
    ) -> Result<Vec<Vec<f32>>> {
        let Drawing { model, settings, .. } = *self;
        let (dims, sides) = (model.autoencoder.latents(settings), [settings.width, settings.height]);
        let (mut moments, mut all) = (moments.into_iter(), Vec::new());
        for (rules, controls) in model.rules.controls.iter().zip(controls::nets(&controls::of(&model.rules, request)?))
        {
            let mask = match rules.takes {
                Takes::Pixels | Takes::Levels | Takes::Features => {
                    let mut samples = followed(rules.takes, &controls[0], request, settings)?;
                    for other in &controls[1..] {
                        let other = followed(rules.takes, other, request, settings)?;
                        reserve::grow("the pictures that are followed", &mut samples, other.len())?;
                        samples.extend_from_slice(&other);
                    }
                    all.push(samples);
                    continue;
                }
                Takes::Mean { masked: takes } => {
                    let mut planes = self.mean(&moments.next().unwrap_or_default())?;
                    if let Some(masked) = masked.filter(|_| takes) {
                        let mask = mask_of(request, settings)?.latents(model.autoencoder.factor())?;
                        planes.extend(mask.iter().map(|masked| 1.0 - masked));
                        planes.extend(self.mean(masked)?);
                    }
                    all.push(model.denoiser.pack_followed(&planes, None, dims)?);
                    continue;
                }
                Takes::Latents => None,
                Takes::Masked => {
                    Some(controls::mask(request, &controls[0], sides)?.latents(model.autoencoder.factor())?)
                }
            };
            let latents = self.latents(&moments.next().unwrap_or_default(), generator)?;
            let mut packed = reserve::room("the latents", latents.len() + latents.len() / 4)?;
            for latents in latents.chunks_exact(self.each()) {
                packed.extend(model.denoiser.pack_followed(latents, mask.as_deref(), dims)?);
            }
            all.push(packed);
        }
        Ok(all)
    }

    /// The mean of the latents of a picture, `[w, h, C]`, in the denoiser's space.
    fn mean(&self, moments: &[f32]) -> Result<Vec<f32>> {
        let mut mean = reserve::repeat("the latents", &moments[..moments.len() / 2], 1)?;
        self.model.encoder(self.settings).normalize(&mut mean)?;
        super::run::finite(mean, "the latents of a picture")
    }

    /// The mean latents of the pictures that the model looks at, which have these `moments`, one behind the other.
    fn references(&self, moments: &[Vec<f32>]) -> Result<Vec<f32>> {
        let (autoencoder, mut all) = (self.model.encoder(self.settings), Vec::new());
        for (moments, &[width, height]) in moments.iter().zip(&self.settings.references) {
            let dims = autoencoder.latents(&Settings { width, height, ..self.settings.clone() });
            let mut mean = reserve::repeat("the latents", &moments[..moments.len() / 2], 1)?;
            autoencoder.normalize(&mut mean)?;
            all.extend(self.model.denoiser.pack(&super::run::finite(mean, "the latents of a picture")?, dims)?);
        }
        Ok(all)
    }

    /// What stands beside the latents of each video: the film `planes`, the same for all.
    fn guided(&self, planes: &[f32]) -> Result<Vec<Vec<f32>>> {
        let dims = self.model.autoencoder.latents(self.settings);
        Ok(vec![self.model.denoiser.pack_beside(planes, None, dims)?; self.settings.batch])
    }

    /// What stands beside the latents of each picture: `latents [w, h, F, C, N]`, and `mask`.
    fn beside(&self, latents: &[f32], mask: Option<&[f32]>) -> Result<Vec<Vec<f32>>> {
        let dims = self.model.autoencoder.latents(self.settings);
        if latents.len() == self.each() {
            // The same for all.
            let packed = self.model.denoiser.pack_beside(latents, mask, dims)?;
            return Ok(vec![packed; self.settings.batch]);
        }
        latents.chunks_exact(self.each()).map(|latents| self.model.denoiser.pack_beside(latents, mask, dims)).collect()
    }
}

fn scaled(noise: &[f32], factor: f32) -> Result<Vec<f32>> {
    reserve::collect("the latents", noise.len(), noise.iter().map(|x| x * factor))
}

/// The noise of every picture, `[w, h, F, C, N]`: given, or drawn.
fn noise(model: &Opened, given: Option<&[f32]>, settings: &Settings, generator: &mut Noise) -> Result<Vec<f32>> {
    let dims @ [w, h, frames, channels, batch] = model.autoencoder.latents(settings);
    let each = w * h * frames * channels;
    let Some(noise) = given else { return generator.draw(each) };
    if noise.len() != each * batch {
        let expected = format!("{} numbers ({:?}, fastest first)", each * batch, published_extents(dims));
        return Err(Error::option("--noise", expected, format!("{} numbers", noise.len())));
    }
    if let Some(value) = noise.iter().find(|value| !value.is_finite()) {
        return Err(Error::option("--noise", "finite numbers", value.to_string()));
    }
    reserve::repeat("the noise", noise, 1)
}
