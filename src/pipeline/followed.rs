//! A film that the denoiser follows, with given frames, and a picture to refer to: as Fun Control takes them.
//!
//! What its publisher's pipelines (VideoX-Fun) do holds where DiffSynth-Studio does something else: without a picture to refer to, its
//! tokens are those of latents of zeros; and a model that is not told which frames are given has zeros for the latents of those that are
//! not.

use super::opened::Opened;
use super::request::{Request, Settings};
use super::rules::Rules;
use super::run::{Run, Running, finite};
use crate::image::Filter;
use crate::{Error, Result, reserve};

/// How many films are encoded for a request.
pub(super) fn films(rules: &Rules) -> usize {
    usize::from(rules.followed.is_some())
}

/// How many pictures are encoded for a request of a followed film by themselves: its first frame, if the model is not told which are
/// given, and the picture that is referred to.
pub(super) fn alone(rules: &Rules, request: &Request) -> usize {
    let Some(followed) = rules.followed else { return 0 };
    let first = request.image.is_some() && !followed.told_given;
    usize::from(first) + request.references.len()
}

/// The moments of the film, and of the pictures that are encoded by themselves.
pub(super) struct Film {
    film: Vec<f32>,
    first: Option<Vec<f32>>,
    reference: Option<Vec<f32>>,
}

impl Film {
    /// Encodes what `request` gives.
    pub(super) fn encode(
        model: &Opened,
        request: &Request,
        settings: &Settings,
        (run, running): (&mut Run<'_>, &mut Running<'_>),
    ) -> Result<Film> {
        let Settings { width, height, frames, .. } = *settings;
        let encoder = model.encoder(settings);
        let film = encoder.encode_video(run, running, frames, &mut |at| {
            let frame = request.video.as_ref().and_then(|video| video.frames().get(at));
            let frame = frame.ok_or_else(|| Error::graph("encode", format!("no frame {at} of a film")))?;
            frame.resized(width, height, Filter::Lanczos)?.to_samples()
        })?;
        let told_given = model.rules.followed.is_some_and(|followed| followed.told_given);
        let (mut first, mut reference) = (None, None);
        if let Some(picture) = request.image.as_ref().filter(|_| !told_given) {
            first = Some(encoder.encode(run, running, &picture.samples(width, height)?)?);
        }
        if let Some(picture) = request.references.first() {
            reference = Some(encoder.encode(run, running, &picture.samples(width, height)?)?);
        }
        Ok(Film { film, first, reference })
    }

    /// What stands beside the latents, as the denoiser takes it: the film, and behind it given frames, whose latents are `given` if the
    /// model is told which they are.
    pub(super) fn beside(&self, model: &Opened, settings: &Settings, given: Option<&[f32]>) -> Result<Vec<f32>> {
        let dims @ [w, h, frames, channels, _] = model.autoencoder.latents(settings);
        let film = model.denoiser.pack(&mean(model, settings, &self.film)?, dims)?;
        let mut latents = reserve::zeros("the latents", w * h * frames * channels)?;
        if let Some(given) = given {
            latents.copy_from_slice(given);
        }
        // As the publisher has it, a single frame is not given.
        if let Some(first) = self.first.as_ref().filter(|_| frames > 1) {
            let first = mean(model, settings, first)?;
            for (own, first) in latents.chunks_exact_mut(w * h * frames).zip(first.chunks_exact(w * h)) {
                own[..w * h].copy_from_slice(first);
            }
        }
        let told_given = model.rules.followed.is_some_and(|followed| followed.told_given);
        let mask = if told_given { Some(given_frames(settings)?) } else { None };
        model.denoiser.joined(&film, &model.denoiser.pack_beside(&latents, mask.as_deref(), dims)?)
    }

    /// The latents of the picture that is referred to, as the denoiser takes them; zeros without one.
    pub(super) fn reference(&self, model: &Opened, settings: &Settings) -> Result<Vec<f32>> {
        let [w, h, _, channels, _] = model.autoencoder.latents(settings);
        let latents = match &self.reference {
            Some(moments) => mean(model, settings, moments)?,
            None => reserve::zeros("the latents", w * h * channels)?,
        };
        model.denoiser.pack(&latents, [w, h, 1, channels, 1])
    }
}

/// For each frame, whether it is given: 1 if it is.
pub(super) fn given_frames(settings: &Settings) -> Result<Vec<f32>> {
    let mut given = reserve::zeros("the given frames", settings.frames)?;
    let [first, last] = settings.given_frames.map(f32::from);
    given[0] = first;
    if let Some(at) = given.len().checked_sub(1).filter(|at| *at > 0) {
        given[at] = last;
    }
    Ok(given)
}

/// The mean of `moments` in the denoiser's space.
fn mean(model: &Opened, settings: &Settings, moments: &[f32]) -> Result<Vec<f32>> {
    let mut mean = reserve::repeat("the latents", &moments[..moments.len() / 2], 1)?;
    model.encoder(settings).normalize(&mut mean)?;
    finite(mean, "the latents of the film")
}
