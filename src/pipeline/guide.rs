//! A film beside the latents that says what is drawn: what of it is kept and what is made anew, with pictures to refer to before it.
//! As diffusers' pipeline of such models does it.

use super::opened::Opened;
use super::request::{Request, Settings};
use super::rules::Rules;
use super::run::{Run, Running, finite};
use crate::image::{CHANNELS, Filter, Picture};
use crate::{Error, Result, reserve};

/// A grey that says nothing: where frames are made anew between given ones.
const GREY: f32 = 128.0;

/// Where a mask's numbers become 1.
const HALF: f32 = 0.5;

/// What is encoded of a film: what is kept of it, and what is not.
const HALVES: usize = 2;

/// How many films and pictures are encoded for a request.
pub(super) fn count(rules: &Rules, request: &Request) -> usize {
    if rules.guide { HALVES + request.references.len() } else { 0 }
}

/// How many channels stand beside `channels` latents of a cell that is `factor` pixels wide and high: both halves, and the mask of each
/// pixel.
pub(super) fn channels(channels: usize, factor: usize) -> usize {
    HALVES * channels + factor * factor
}

/// The moments of both halves of the film, and of the pictures that are referred to.
pub(super) struct Guide {
    halves: Vec<Vec<f32>>,
    references: Vec<Vec<f32>>,
}

impl Guide {
    /// Encodes what `request` gives.
    pub(super) fn encode(
        model: &Opened,
        request: &Request,
        settings: &Settings,
        (run, running): (&mut Run<'_>, &mut Running<'_>),
    ) -> Result<Guide> {
        let (encoder, mut halves, mut references) = (model.encoder(settings), Vec::new(), Vec::new());
        for is_kept in [true, false] {
            halves.push(encoder.encode_video(run, running, settings.frames, &mut |at| {
                let (mut samples, mask) = (frame(request, settings, at)?, mask(request, settings, at)?);
                for plane in samples.chunks_exact_mut(mask.len()) {
                    for (sample, mask) in plane.iter_mut().zip(&mask) {
                        *sample = if (*mask > HALF) == is_kept { 0.0 } else { *sample };
                    }
                }
                Ok(samples)
            })?);
        }
        for picture in &request.references {
            references.push(encoder.encode(run, running, &on_canvas(picture, settings)?)?);
        }
        Ok(Guide { halves, references })
    }

    /// What stands beside the latents: `[w, h, F, channels]`, with a frame for each reference before those of the film, the last one first.
    pub(super) fn planes(&self, model: &Opened, request: &Request, settings: &Settings) -> Result<Vec<f32>> {
        let [w, h, all_frames, channels, _] = model.autoencoder.latents(settings);
        let (plane, front, factor) = (w * h, settings.front_frames, model.autoencoder.factor());
        let mut planes = reserve::zeros("the film", plane * all_frames * self::channels(channels, factor))?;
        for (half, moments) in self.halves.iter().enumerate() {
            let mean = mean(model, settings, moments)?;
            let frames = all_frames - front;
            for (at, own) in mean.chunks_exact(plane * frames).enumerate() {
                let start = ((half * channels + at) * all_frames + front) * plane;
                planes[start..start + own.len()].copy_from_slice(own);
            }
        }
        for (number, moments) in self.references.iter().rev().enumerate() {
            for (at, own) in mean(model, settings, moments)?.chunks_exact(plane).enumerate() {
                let start = (at * all_frames + number) * plane;
                planes[start..start + plane].copy_from_slice(own);
            }
        }
        let masks = &mut planes[HALVES * channels * all_frames * plane..];
        for frame in 0..all_frames - front {
            let nearest = nearest(frame, [settings.frames, all_frames - front]);
            let mask = mask(request, settings, nearest)?;
            for (at, number) in mask.iter().enumerate() {
                let (x, y) = (at % settings.width, at / settings.width);
                let channel = y % factor * factor + x % factor;
                masks[((channel * all_frames + front + frame) * h + y / factor) * w + x / factor] = *number;
            }
        }
        Ok(planes)
    }
}

/// Which of so many frames is the nearest to number `at` of fewer: PyTorch's `nearest-exact`.
fn nearest(at: usize, [frames, fewer]: [usize; 2]) -> usize {
    let scale = frames as f32 / fewer as f32;
    (((at as f32 + 0.5) * scale) as usize).min(frames - 1)
}

/// The mean of `moments` in the denoiser's space.
fn mean(model: &Opened, settings: &Settings, moments: &[f32]) -> Result<Vec<f32>> {
    let mut mean = reserve::repeat("the latents", &moments[..moments.len() / 2], 1)?;
    model.encoder(settings).normalize(&mut mean)?;
    finite(mean, "the latents of the film")
}

/// Which given frame number `at` of the film is, if it is one.
fn given<'a>(request: &'a Request, settings: &Settings, at: usize) -> Option<&'a Picture> {
    let last = request.last_image.as_deref().filter(|_| at + 1 == settings.frames);
    last.or(request.image.as_deref().filter(|_| at == 0))
}

/// The samples of frame number `at`, `[W, H, 3]`: of the film; or of given frames, with grey between; or nothing.
fn frame(request: &Request, settings: &Settings, at: usize) -> Result<Vec<f32>> {
    let Settings { width, height, .. } = *settings;
    if let Some(video) = &request.video {
        let frame = video.frames().get(at);
        let frame = frame.ok_or_else(|| Error::graph("encode", format!("no frame {at} of a film")))?;
        return frame.resized(width, height, Filter::Lanczos)?.to_samples();
    }
    if request.image.is_none() {
        return reserve::zeros("a frame", CHANNELS * width * height);
    }
    match given(request, settings, at) {
        Some(picture) => picture.samples(width, height),
        None => reserve::repeat("a frame", &[2.0 * (GREY / 255.0) - 1.0], CHANNELS * width * height),
    }
}

/// The mask of frame number `at`, `[W, H]`: 1 where it is made anew.
fn mask(request: &Request, settings: &Settings, at: usize) -> Result<Vec<f32>> {
    let Settings { width, height, .. } = *settings;
    let pixels = width * height;
    if let Some(masks) = &request.video_mask {
        // One stands for all.
        let only = masks.frames().first().filter(|_| masks.frames().len() == 1);
        let mask = masks.frames().get(at).or(only);
        let mask = mask.ok_or_else(|| Error::graph("encode", format!("no mask {at} of a film")))?;
        let mut samples = mask.resized(width, height, Filter::Lanczos)?.to_samples()?;
        samples.truncate(pixels);
        samples.iter_mut().for_each(|sample| *sample = ((*sample + 1.0) / 2.0).clamp(0.0, 1.0));
        return Ok(samples);
    }
    let number = if request.video.is_none() && given(request, settings, at).is_some() { 0.0 } else { 1.0 };
    reserve::repeat("a mask", &[number], pixels)
}

/// The samples of `picture`, as large as it fits in the middle of white, `[W, H, 3]`.
fn on_canvas(picture: &Picture, settings: &Settings) -> Result<Vec<f32>> {
    /// What the sides of the picture are made multiples of.
    const MULTIPLE: usize = 8;
    let Settings { width, height, .. } = *settings;
    let image = picture.image();
    let whole = |side: usize| (side / MULTIPLE * MULTIPLE).max(MULTIPLE);
    let own = [whole(image.width()), whole(image.height())];
    let samples = picture.samples(own[0], own[1])?;
    let scale = (height as f64 / own[1] as f64).min(width as f64 / own[0] as f64);
    let fitted = own.map(|side| ((side as f64 * scale) as usize).max(1));
    let (left, top) = ((width - fitted[0]) / 2, (height - fitted[1]) / 2);
    let mut canvas = reserve::repeat("a picture", &[1.0], CHANNELS * width * height)?;
    let planes = samples.chunks_exact(own[0] * own[1]).zip(canvas.chunks_exact_mut(width * height));
    for (from, to) in planes {
        for y in 0..fitted[1] {
            let (rows, down) = between(y, [own[1], fitted[1]]);
            for x in 0..fitted[0] {
                let (columns, right) = between(x, [own[0], fitted[0]]);
                let [upper, lower] = rows.map(|row| {
                    let [one, other] = columns.map(|column| from[row * own[0] + column]);
                    one * (1.0 - right) + other * right
                });
                to[(top + y) * width + left + x] = upper * (1.0 - down) + lower * down;
            }
        }
    }
    Ok(canvas)
}

/// The two places of so many that number `at` of others lies between, and how near the second is: PyTorch's `bilinear` without aligned
/// corners.
fn between(at: usize, [from, to]: [usize; 2]) -> ([usize; 2], f32) {
    let scale = from as f32 / to as f32;
    let place = ((at as f32 + 0.5) * scale - 0.5).max(0.0);
    let first = (place as usize).min(from - 1);
    ([first, (first + 1).min(from - 1)], place - first as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_the_nearest() {
        let of = |frames, fewer| (0..fewer).map(|at| nearest(at, [frames, fewer])).collect::<Vec<_>>();
        assert_eq!(of(9, 3), [1, 4, 7]);
        assert_eq!(of(5, 2), [1, 3]);
        assert_eq!(of(1, 1), [0]);
    }

    #[test]
    fn places_lie_between_two() {
        assert_eq!(between(0, [2, 4]), ([0, 1], 0.0));
        assert_eq!(between(1, [2, 4]), ([0, 1], 0.25));
        assert_eq!(between(3, [2, 4]), ([1, 1], 0.25));
        assert_eq!(between(1, [6, 3]), ([2, 3], 0.5));
    }
}
