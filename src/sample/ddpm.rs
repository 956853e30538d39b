//! Denoising diffusion probabilistic models: Ho, Jain and Abbeel, 2020.

use super::betas::Training;
use super::clip::Clip;
use super::levels::Levels;
use super::method::Variance;
use super::rounding::{exp, log};
use super::solver::{Solver, check_lengths, draw};
use super::{Noise, Prediction};
use crate::{Result, reserve};

const NAME: &str = "ddpm";

/// The least variance, so that its logarithm is finite.
const LEAST_VARIANCE: f32 = 1e-20;

/// As diffusers' `DDPMScheduler` does it. Keeps nothing from step to step.
#[derive(Clone, Debug)]
pub(super) struct Ddpm {
    pub(super) training: Training,
    pub(super) clip: Clip,
    pub(super) variance: Variance,
}

impl Solver for Ddpm {
    fn step(&mut self, i: usize, levels: &Levels, output: &[f32], x: &mut [f32], noise: &mut Noise) -> Result<()> {
        check_lengths(NAME, output, x)?;
        let time = levels.timestep(i)?;
        let before = if i + 1 < levels.len() { levels.timestep(i + 1)? } else { -1 };
        let (alpha, next) = (self.training.alpha(time)?, self.training.alpha(before)?);
        let (beta, next_beta, step) = (1.0 - alpha, 1.0 - next, alpha / next);
        let mut clean = clean(levels.predicts, alpha, (output, x))?;
        self.clip.cut(NAME, &mut clean, noise.batch())?;
        let of_clean = next.sqrt() * (1.0 - step) / beta;
        let keep = step.sqrt() * next_beta / beta;
        for (x, clean) in x.iter_mut().zip(&clean) {
            *x = of_clean * clean + keep * *x;
        }
        if time > 0 {
            let small = (next_beta / beta * (1.0 - step)).max(LEAST_VARIANCE);
            let deviation = match self.variance {
                Variance::FixedSmall => small.sqrt(),
                Variance::FixedSmallLog => exp(0.5 * log(small)),
                Variance::FixedLarge => (1.0 - step).sqrt(),
            };
            let fresh = draw(NAME, noise, x)?;
            x.iter_mut().zip(&fresh).for_each(|(x, fresh)| *x += deviation * fresh);
        }
        Ok(())
    }
}

/// The finished latents that the `output` of the model for `x` stands for, if `alpha` of the picture's variance is left.
pub(super) fn clean(predicts: Prediction, alpha: f32, (output, x): (&[f32], &[f32])) -> Result<Vec<f32>> {
    let (root, beta_root) = (alpha.sqrt(), (1.0 - alpha).sqrt());
    let clean = x.iter().zip(output).map(|(x, out)| match predicts {
        Prediction::Velocity | Prediction::Epsilon => (x - beta_root * out) / root,
        Prediction::Sample => *out,
        Prediction::V => root * x - beta_root * out,
    });
    reserve::collect("predicted latents", x.len(), clean)
}
