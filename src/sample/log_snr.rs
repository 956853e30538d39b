//! Steps along half the logarithm of the signal-to-noise ratio: what DPM-Solver, DEIS and UniPC share.

use super::clip::Clip;
use super::levels::{Levels, Space, shares_of};
use super::method::{Algorithm, SolverType};
use super::rounding::{exp, log};
use super::solver::check_lengths;
use super::{Noise, Prediction};
use crate::{Result, reserve};

/// A level of noise: `x = alpha x0 + spread e`. diffusers' `_sigma_to_alpha_sigma_t`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    /// The share of the picture.
    pub(super) alpha: f32,
    /// The share of the noise.
    pub(super) spread: f32,
    /// Half the logarithm of the signal-to-noise ratio. Infinite without noise.
    pub(super) lambda: f32,
}

impl Point {
    /// The level of evaluation `i`, or behind the last one.
    pub(super) fn of(levels: &Levels, i: usize) -> Result<Point> {
        let sigma = if i == levels.len() { levels.pair(i - 1)?[1] } else { levels.pair(i)?[0] };
        let [alpha, spread] = match levels.space {
            Space::Flow => [1.0 - sigma, sigma],
            Space::Sigmas | Space::Alphas | Space::Edm => shares_of(sigma),
        };
        Ok(Point { alpha, spread, lambda: log(alpha) - log(spread) })
    }
}

/// What the solver works with: the finished latents or, `noise_of` them, the noise that the model predicts in evaluation `i`.
/// diffusers' `convert_model_output`.
pub(super) fn converted(
    solver: &'static str,
    (i, levels): (usize, &Levels),
    (output, x): (&[f32], &[f32]),
    clip: Clip,
    as_noise: bool,
    noise: &Noise,
) -> Result<Vec<f32>> {
    check_lengths(solver, output, x)?;
    levels.pair(i)?;
    let Point { alpha, spread, .. } = Point::of(levels, i)?;
    let pairs = || x.iter().zip(output);
    if as_noise && clip == Clip::None {
        let noise = pairs().map(|(x, out)| match levels.predicts {
            Prediction::Velocity | Prediction::Epsilon => *out,
            Prediction::Sample => (x - alpha * out) / spread,
            Prediction::V => alpha * out + spread * x,
        });
        return reserve::collect("predicted noise", x.len(), noise);
    }
    let clean = pairs().map(|(x, out)| match levels.predicts {
        Prediction::Velocity => x - spread * out,
        Prediction::Epsilon => (x - spread * out) / alpha,
        Prediction::Sample => *out,
        Prediction::V => alpha * x - spread * out,
    });
    let mut clean = reserve::collect("predicted latents", x.len(), clean)?;
    clip.cut(solver, &mut clean, noise.batch())?;
    if as_noise {
        clean.iter_mut().zip(x).for_each(|(clean, x)| *clean = (x - alpha * *clean) / spread);
    }
    Ok(clean)
}

/// What a step adds up: `keep x + of_first D0 + of_second D1 + of_third D2 + fresh e`, over the differences `D` of
/// predictions and fresh noise `e`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Step {
    pub(super) keep: f32,
    pub(super) of_first: f32,
    pub(super) of_second: f32,
    pub(super) of_third: f32,
    pub(super) fresh: f32,
}

impl Step {
    /// The step of `order` from one level to another: the integral of the polynomial through the predictions, exactly
    /// (Lu et al., "DPM-Solver++", 2022, and its appendix for the stochastic ones). The formulas and their order of
    /// operations are those of diffusers' `DPMSolverMultistepScheduler`, which `DPMSolverSinglestepScheduler` shares.
    /// A second order of [`SolverType::Midpoint`] takes half of the first-order term instead of the integral.
    pub(super) fn new(algorithm: Algorithm, solver_type: SolverType, order: usize, [from, to]: [Point; 2]) -> Step {
        let h = to.lambda - from.lambda;
        let is_half = order == 2 && solver_type == SolverType::Midpoint;
        match algorithm {
            Algorithm::DpmPlus => {
                let fades = exp(-h) - 1.0;
                Step {
                    keep: to.spread / from.spread,
                    of_first: -(to.alpha * fades),
                    of_second: if is_half { -(0.5 * (to.alpha * fades)) } else { to.alpha * (fades / h + 1.0) },
                    of_third: -(to.alpha * ((fades + h) / (h * h) - 0.5)),
                    fresh: 0.0,
                }
            }
            Algorithm::Dpm => {
                let grows = exp(h) - 1.0;
                Step {
                    keep: to.alpha / from.alpha,
                    of_first: -(to.spread * grows),
                    of_second: -if is_half { 0.5 * (to.spread * grows) } else { to.spread * (grows / h - 1.0) },
                    of_third: -(to.spread * ((grows - h) / (h * h) - 0.5)),
                    fresh: 0.0,
                }
            }
            Algorithm::SdePlus => {
                let fades = 1.0 - exp(-2.0 * h);
                let twice = -2.0 * h;
                Step {
                    keep: to.spread / from.spread * exp(-h),
                    of_first: to.alpha * fades,
                    of_second: if is_half { 0.5 * (to.alpha * fades) } else { to.alpha * (fades / twice + 1.0) },
                    of_third: to.alpha * ((fades + twice) / (twice * twice) - 0.5),
                    fresh: to.spread * (1.0 - exp(-2.0 * h)).sqrt(),
                }
            }
            Algorithm::Sde => {
                let grows = exp(h) - 1.0;
                Step {
                    keep: to.alpha / from.alpha,
                    of_first: -(2.0 * (to.spread * grows)),
                    of_second: -if is_half { to.spread * grows } else { 2.0 * (to.spread * (grows / h - 1.0)) },
                    of_third: 0.0,
                    fresh: to.spread * (exp(2.0 * h) - 1.0).sqrt(),
                }
            }
        }
    }
}
