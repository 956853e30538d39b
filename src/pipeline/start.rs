//! What denoising begins with: noise, or a picture under noise.

mod inputs;

pub(super) use self::inputs::{Inputs, MOST_REFERENCES, encoders};
use self::inputs::{followed, mask_of};
use super::choices::Posterior;
use super::controls;
use super::followed::given_frames;
use super::generated::published_extents;
use super::opened::Opened;
use super::request::{Request, Settings};
use super::rules::{Beside, Starts, Takes};
use super::run::Run;
use super::stretch::{Pass, UpscaleSpace, stretched};
use crate::image::Image;
use crate::sample::{Levels, Noise};
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
    /// What each ControlNet is given of its picture, or a denoiser that follows a film of the picture that it refers to.
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
        let mut referred = None;
        let beside = match beside {
            None if model.rules.guide => {
                let guide = encoded.guide.take().ok_or_else(|| Error::graph("encode", "no film beside the latents"))?;
                drawing.guided(&guide.planes(model, request, settings)?)?
            }
            None if model.rules.followed.is_some() => {
                let film = encoded.film.take().ok_or_else(|| Error::graph("encode", "no film to follow"))?;
                if model.rules.followed.is_some_and(|followed| followed.refers) {
                    referred = Some(film.reference(model, settings)?);
                }
                vec![film.beside(model, settings, frames.as_deref())?; settings.batch]
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
        let followed = followed.into_iter().chain(referred).collect();
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
