//! Pictures of latents on the way: by a tiny autoencoder, if the model has one; or without a decoder, by one linear map for every
//! latent, fitted to the model's own autoencoder.
//!
//! The decoder draws a few small pictures of smooth noise once; each latent of them and the mean colour of the 8x8 pixels that
//! came of it are a pair of the fit. Other tools carry tables of such factors for each model
//! (ComfyUI's `latent_formats.py`, "latent_rgb_factors"); a fit needs no table and knows every autoencoder.

use super::opened::{Direction, Opened, once};
use super::request::{Request, Settings};
use super::run::{Run, Running, finite};
use crate::image::{CHANNELS, Image};
use crate::plan::Phase;
use crate::plan::measure::Subject;
use crate::sample::randn;
use crate::{Error, Result, reserve};

/// Latents on a side of the pictures that are fitted to, at most.
const PROBE_SIDE: usize = 16;

/// How many latents the fit sees at least: an order of magnitude more than it has unknowns.
const PROBE_LATENTS: usize = 512;

/// Added to the diagonal of the normal equations, relative to the number of pairs: latents that never vary do no harm.
const RIDGE: f64 = 1e-3;

/// For each colour, a factor of every channel and a constant.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fit([Vec<f64>; 3]);

/// The name of what makes previews, if that is a network.
const PREVIEW: &str = "preview";

/// The network that makes the previews of a request, if there is one.
pub(super) fn subject<'m>(model: &'m Opened, settings: &Settings) -> Option<Subject<'m>> {
    let tiny = model.tiny.as_ref().filter(|_| settings.previewed)?;
    // Its weights stay: how often it runs changes nothing.
    let subject = tiny.subjects(settings, Direction::Decode, settings.batch).into_iter().next()?;
    Some(Subject { name: PREVIEW, phase: Phase::Denoise, ..subject })
}

/// Bytes of the arrays that it has in host memory beside its ports, at most: samples, what they become, and the latents that are shown.
pub(super) fn arrays(settings: &Settings) -> usize {
    let samples = CHANNELS.saturating_mul(settings.width).saturating_mul(settings.height);
    samples.saturating_mul(3 * size_of::<f32>()).saturating_add(samples)
}

/// Previews of one request.
pub(super) struct Painter {
    way: Paint,
    interval: usize,
}

/// How they are made.
enum Paint {
    Fitted(Fit),
    /// By the model's tiny autoencoder.
    Tiny,
}

impl Painter {
    /// Whether there is to be one after `done` steps.
    pub(super) fn is_due(&self, done: usize) -> bool {
        done.is_multiple_of(self.interval)
    }

    /// Brings the network that makes them, if there is one.
    pub(super) fn start<'m>(
        &self,
        model: &'m Opened,
        settings: &Settings,
        run: &Run<'_>,
    ) -> Result<Option<Running<'m>>> {
        match (&self.way, subject(model, settings)) {
            (Paint::Tiny, Some(subject)) => run.start_unheard(&subject).map(Some),
            _ => Ok(None),
        }
    }

    /// The picture of `latents`, `[w, h, C]`. `running` is what [`start`](Painter::start) returned.
    pub(super) fn paint(
        &self,
        (model, run): (&Opened, &mut Run<'_>),
        running: Option<&mut Running<'_>>,
        [w, h]: [usize; 2],
        latents: &[f32],
    ) -> Result<Image> {
        match (&self.way, &model.tiny, running) {
            (Paint::Fitted(fit), ..) => fit.paint(w, h, latents),
            (Paint::Tiny, Some(tiny), Some(running)) => {
                let samples = tiny.decode(run, running, latents)?;
                Image::from_samples(w * tiny.factor(), h * tiny.factor(), &samples)
            }
            _ => Err(Error::graph("preview", "the tiny autoencoder is not there")),
        }
    }
}

impl Fit {
    fn paint(&self, w: usize, h: usize, latents: &[f32]) -> Result<Image> {
        let each = w * h;
        let mut samples = reserve::room("a preview", 3 * each)?;
        for factors in &self.0 {
            let constant = factors.last().copied().unwrap_or_default();
            for i in 0..each {
                let channels = latents.iter().skip(i).step_by(each);
                let sum: f64 = channels.zip(factors).map(|(&latent, factor)| f64::from(latent) * factor).sum();
                samples.push((sum + constant) as f32);
            }
        }
        Image::from_samples(w, h, &samples)
    }
}

/// What paints the previews of `request`; `None` if it wants none. The fit is made once, and kept in `fit`.
pub(super) fn painter(
    fit: &mut Option<Fit>,
    model: &Opened,
    request: &Request,
    settings: &Settings,
    run: &mut Run<'_>,
) -> Result<Option<Painter>> {
    let Some(interval) = request.preview else { return Ok(None) };
    let interval = interval.max(1);
    if model.tiny.is_some() {
        return Ok(Some(Painter { way: Paint::Tiny, interval }));
    }
    let found = match fit {
        Some(fit) => fit.clone(),
        None => make(model, settings, run)?,
    };
    *fit = Some(found.clone());
    Ok(Some(Painter { way: Paint::Fitted(found), interval }))
}

/// Fits the map. The pictures are no larger than the request's, so that they need no more than its plan has.
fn make(model: &Opened, settings: &Settings, run: &mut Run<'_>) -> Result<Fit> {
    let autoencoder = &*model.autoencoder;
    let (pixels, channels) = (autoencoder.factor(), autoencoder.channels());
    let (w, h) = ((settings.width / pixels).min(PROBE_SIDE), (settings.height / pixels).min(PROBE_SIDE));
    let probes = PROBE_LATENTS.div_ceil(w * h);
    let small = Settings { width: w * pixels, height: h * pixels, ..settings.clone() };
    let subjects = autoencoder.subjects(&small, Direction::Decode, probes);
    let decoder = subjects.into_iter().next().ok_or_else(|| Error::graph("preview", "the model has no decoder"))?;
    // Of films, first frames alone.
    let mut running = run.start_unheard(&Subject { runs: once(probes), ..decoder })?;
    let mut pairs = Pairs::new(channels, pixels);
    for probe in 0..probes {
        let latents = smooth_noise(probe as u64, w, h, channels)?;
        let picture = finite(autoencoder.decode(run, &mut running, &latents)?, "the decoded picture")?;
        pairs.add(w, h, &latents, &picture);
    }
    pairs.fit()
}

/// Noise of unit variance whose channels vary over one latent, over four, and over the whole: as latents of pictures do.
fn smooth_noise(seed: u64, w: usize, h: usize, channels: usize) -> Result<Vec<f32>> {
    const COARSE: usize = 4;
    let (cw, ch) = (w.div_ceil(COARSE), h.div_ceil(COARSE));
    let fine = randn(3 * seed, w * h * channels)?;
    let coarse = randn(3 * seed + 1, cw * ch * channels)?;
    let whole = randn(3 * seed + 2, channels)?;
    let third = (1.0f32 / 3.0).sqrt();
    Ok((0..fine.len())
        .map(|i: usize| {
            let (channel, y, x) = (i / (w * h), i / w % h, i % w);
            (fine[i] + coarse[(channel * ch + y / COARSE) * cw + x / COARSE] + whole[channel]) * third
        })
        .collect())
}

/// The normal equations of the fit.
struct Pairs {
    /// Unknowns: a factor of every channel and a constant.
    n: usize,
    /// Pixels of a latent, in both directions.
    pixels: usize,
    /// `[n, n]`, and beside it a right side for each colour.
    products: Vec<f64>,
    sides: [Vec<f64>; 3],
    count: usize,
}

impl Pairs {
    fn new(channels: usize, pixels: usize) -> Pairs {
        let n = channels + 1;
        Pairs { n, pixels, products: vec![0.0; n * n], sides: std::array::from_fn(|_| vec![0.0; n]), count: 0 }
    }

    /// Adds `latents`, `[w, h, C]`, and the `picture` of them, `[W, H, 3]`.
    fn add(&mut self, w: usize, h: usize, latents: &[f32], picture: &[f32]) {
        let (n, pixels) = (self.n, self.pixels);
        for i in 0..w * h {
            let row: Vec<f64> = latents.iter().skip(i).step_by(w * h).map(|&x| f64::from(x)).chain([1.0]).collect();
            for (a, &x) in row.iter().enumerate() {
                row.iter().enumerate().for_each(|(b, &y)| self.products[a * n + b] += x * y);
            }
            for (plane, side) in picture.chunks_exact(w * h * pixels * pixels).zip(&mut self.sides) {
                let colour = mean(plane, w * pixels, (i % w * pixels, i / w * pixels), pixels);
                side.iter_mut().zip(&row).for_each(|(sum, x)| *sum += x * colour);
            }
            self.count += 1;
        }
    }

    fn fit(mut self) -> Result<Fit> {
        let n = self.n;
        (0..n).for_each(|i| self.products[i * n + i] += RIDGE * self.count as f64);
        let solved = self.sides.map(|side| solve(self.products.clone(), side));
        match solved.iter().flatten().all(|factor| factor.is_finite()) {
            true => Ok(Fit(solved)),
            false => Err(Error::NotFinite { at: "the fit of the previews".into(), hint: None }),
        }
    }
}

/// The mean of the square of `side` pixels that begins at `(x, y)`.
fn mean(plane: &[f32], width: usize, (x, y): (usize, usize), side: usize) -> f64 {
    let rows = plane.chunks_exact(width).skip(y).take(side);
    let sum: f64 = rows.flat_map(|row| &row[x..x + side]).map(|&sample| f64::from(sample.clamp(-1.0, 1.0))).sum();
    sum / (side * side) as f64
}

/// Solves `matrix * x = side` by elimination. The matrix is symmetric and, with the ridge, positive definite: no pivoting.
fn solve(mut matrix: Vec<f64>, mut side: Vec<f64>) -> Vec<f64> {
    let n = side.len();
    for pivot in 0..n {
        for row in pivot + 1..n {
            let factor = matrix[row * n + pivot] / matrix[pivot * n + pivot];
            (pivot..n).for_each(|column| matrix[row * n + column] -= factor * matrix[pivot * n + column]);
            side[row] -= factor * side[pivot];
        }
    }
    for pivot in (0..n).rev() {
        let known: f64 = (pivot + 1..n).map(|column| matrix[pivot * n + column] * side[column]).sum();
        side[pivot] = (side[pivot] - known) / matrix[pivot * n + pivot];
    }
    side
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_decoder_is_found() {
        let (w, h) = (8, 8);
        let mut pairs = Pairs::new(2, 8);
        for seed in 0..4 {
            let Ok(latents) = smooth_noise(seed, w, h, 2) else { panic!("no noise") };
            let at = |x: usize, y: usize, c: usize| latents[(c * h + y) * w + x];
            let mut samples = vec![0.0; 3 * 64 * w * h];
            for (i, sample) in samples.iter_mut().enumerate() {
                let (plane, y, x) = (i / (64 * w * h), i / (8 * w) % (8 * h) / 8, i % (8 * w) / 8);
                *sample = 0.02 * (plane + 1) as f32 * at(x, y, 0) - 0.1 * at(x, y, 1) + 0.1;
            }
            pairs.add(w, h, &latents, &samples);
        }
        let Ok(Fit(factors)) = pairs.fit() else { panic!("no fit") };
        for (plane, found) in factors.iter().enumerate() {
            let expected = [0.02 * (plane + 1) as f64, -0.1, 0.1];
            let near = found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 2e-3);
            assert!(near, "{found:?} for {expected:?}");
        }
    }
}
