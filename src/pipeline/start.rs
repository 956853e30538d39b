//! What denoising begins with: noise, or a picture under noise.

use super::opened::{Direction, Opened};
use super::request::{Posterior, Request, Settings};
use super::run::{Run, stage_runs};
use crate::plan::Phase;
use crate::sample::{Levels, Noise};
use crate::{Error, Result, reserve};

/// The logarithm of a variance is held within these bounds, as diffusers' `DiagonalGaussianDistribution` does.
const LOG_VARIANCES: [f32; 2] = [-30.0, 20.0];

/// The latents before the first evaluation, and what the loop goes on with.
pub(super) struct Start {
    /// `[w, h, C, N]`
    pub(super) latents: Vec<f32>,
    /// Goes on drawing, for samplers with fresh noise.
    pub(super) noise: Noise,
    /// What keeps a part of the picture as it is.
    pub(super) kept: Option<Kept>,
}

/// The part of a picture that is not painted anew.
pub(super) struct Kept {
    /// `[w, h]`: 1 where the picture is painted anew.
    mask: Vec<f32>,
    /// The picture's latents, `[w, h, C, N]`.
    picture: Vec<f32>,
    /// The noise that lies over them, in the same layout.
    noise: Vec<f32>,
}

impl Kept {
    /// Puts the picture back where it is kept, under the noise of evaluation `next`: diffusers' inpainting of models without
    /// mask channels.
    pub(super) fn restore(&self, levels: &Levels, next: usize, latents: &mut [f32]) -> Result<()> {
        let under_noise = levels.mixed(&self.picture, &self.noise, next)?;
        for (plane, kept) in latents.chunks_exact_mut(self.mask.len()).zip(under_noise.chunks_exact(self.mask.len())) {
            for ((x, kept), mask) in plane.iter_mut().zip(kept).zip(&self.mask) {
                *x = (1.0 - mask) * kept + mask * *x;
            }
        }
        Ok(())
    }
}

impl Start {
    /// Draws the noise, after what the picture's latents draw, and mixes the two.
    pub(super) fn new(
        model: &Opened,
        request: &Request,
        settings: &Settings,
        levels: &Levels,
        run: &mut Run<'_>,
    ) -> Result<Start> {
        let mut generator = Noise::new(settings.seed, settings.batch);
        let picture = match &request.image {
            Some(_) => Some(picture_latents(model, request, settings, &mut generator, run)?),
            None => None,
        };
        let noise = noise(model, request, settings, &mut generator)?;
        let Some(picture) = picture else {
            let start = levels.start();
            let latents = if start == 1.0 { noise } else { scaled(&noise, start)? };
            return Ok(Start { latents, noise: generator, kept: None });
        };
        let Some(mask) = &request.mask else {
            let latents = levels.mixed(&picture, &noise, 0)?;
            return Ok(Start { latents, noise: generator, kept: None });
        };
        if request.posterior == Posterior::Sample {
            // diffusers draws the latents of the masked picture, too, and does not use them here.
            generator.draw(noise.len() / settings.batch)?;
        }
        let whole = settings.strength == Some(1.0);
        let latents = if whole { scaled(&noise, levels.start())? } else { levels.mixed(&picture, &noise, 0)? };
        let image = request.image.as_ref().ok_or_else(|| Error::graph("mask", "a mask without its picture"))?;
        let mask = mask.mask_for(image, settings.width, settings.height)?.latents(model.autoencoder.factor())?;
        Ok(Start { latents, noise: generator, kept: Some(Kept { mask, picture, noise }) })
    }
}

fn scaled(noise: &[f32], factor: f32) -> Result<Vec<f32>> {
    reserve::collect("the latents", noise.len(), noise.iter().map(|x| x * factor))
}

/// The noise of every picture, `[w, h, C, N]`: given, or drawn.
fn noise(model: &Opened, request: &Request, settings: &Settings, generator: &mut Noise) -> Result<Vec<f32>> {
    let dims @ [w, h, channels, batch] = model.autoencoder.latents(settings);
    let each = w * h * channels;
    let Some(noise) = &request.noise else { return generator.draw(each) };
    if noise.len() != each * batch {
        let expected = format!("{} numbers ({dims:?}, fastest first)", each * batch);
        return Err(Error::option("--noise", expected, format!("{} numbers", noise.len())));
    }
    if let Some(value) = noise.iter().find(|value| !value.is_finite()) {
        return Err(Error::option("--noise", "finite numbers", value.to_string()));
    }
    reserve::repeat("the noise", noise, 1)
}

/// The latents of the picture in the denoiser's space, `[w, h, C, N]`: one draw of its distribution for each picture of the
/// batch.
fn picture_latents(
    model: &Opened,
    request: &Request,
    settings: &Settings,
    generator: &mut Noise,
    run: &mut Run<'_>,
) -> Result<Vec<f32>> {
    let (autoencoder, [w, h, channels, batch]) = (&*model.autoencoder, model.autoencoder.latents(settings));
    let image = request.image.as_ref().ok_or_else(|| Error::graph("encode", "no picture"))?;
    let samples = image.samples(settings.width, settings.height)?;
    let subjects = autoencoder.subjects(settings, Direction::Encode, 1);
    let start = run.begin(Phase::Condition, subjects.iter().map(stage_runs).sum(), 0)?;
    let subject = subjects.first().ok_or_else(|| Error::graph("encode", "the autoencoder has no encoder"))?;
    let mut running = run.start(subject)?;
    let moments = autoencoder.encode(run, &mut running, &samples)?;
    run.finish(running);
    run.end(Phase::Condition, start)?;
    let each = w * h * channels;
    if moments.len() != 2 * each {
        return Err(Error::graph("encode", format!("{} moments for {each} latents", moments.len())));
    }
    let (mean, log_variance) = moments.split_at(each);
    let mut latents = reserve::room("the latents", each * batch)?;
    match request.posterior {
        Posterior::Mean => (0..batch).for_each(|_| latents.extend_from_slice(mean)),
        Posterior::Sample => {
            let [least, most] = LOG_VARIANCES;
            for drawn in generator.draw(each)?.chunks_exact(each) {
                for ((mean, log_variance), drawn) in mean.iter().zip(log_variance).zip(drawn) {
                    latents.push(mean + (0.5 * log_variance.clamp(least, most)).exp() * drawn);
                }
            }
        }
    }
    autoencoder.normalize(&mut latents);
    super::run::finite(latents, "the latents of the picture")
}
