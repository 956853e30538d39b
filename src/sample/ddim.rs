//! Denoising diffusion implicit models: Song, Meng and Ermon, 2020.

use super::betas::Training;
use super::clip::Clip;
use super::levels::Levels;
use super::solver::{Solver, check_lengths, draw};
use super::{Noise, Prediction};
use crate::{Result, reserve};

/// As diffusers' `DDIMScheduler` does it. Keeps nothing from step to step.
#[derive(Clone, Debug)]
pub(super) struct Ddim {
    pub(super) training: Training,
    pub(super) clip: Clip,
}

impl Solver for Ddim {
    fn step(&mut self, i: usize, levels: &Levels, output: &[f32], x: &mut [f32], noise: &mut Noise) -> Result<()> {
        check_lengths("ddim", output, x)?;
        let time = levels.timestep(i)?;
        let alpha = self.training.alpha(time)?;
        let next = self.training.alpha(time - self.training.stride)?;
        let (root, beta_root) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        let variance = (1.0 - next) / (1.0 - alpha) * (1.0 - alpha / next);
        // The share of fresh noise in each step: 0 is none, 1 as much as DDPM.
        let eta = levels.eta.unwrap_or(0.0);
        let deviation = eta * variance.sqrt();
        let direction = (1.0 - next - deviation * deviation).sqrt();
        let next_root = next.sqrt();
        let mut predicted = reserve::room("predicted latents", x.len())?;
        for (x, &out) in x.iter_mut().zip(output) {
            let (clean, epsilon) = match levels.predicts {
                Prediction::Velocity | Prediction::Epsilon => ((*x - beta_root * out) / root, out),
                Prediction::Sample => (out, (*x - root * out) / beta_root),
                Prediction::V => (root * *x - beta_root * out, root * out + beta_root * *x),
            };
            predicted.push(clean);
            *x = epsilon;
        }
        self.clip.cut("ddim", &mut predicted, noise.batch())?;
        for (x, clean) in x.iter_mut().zip(&predicted) {
            *x = next_root * clean + direction * *x;
        }
        if eta > 0.0 {
            let fresh = draw("ddim", noise, x)?;
            for (x, fresh) in x.iter_mut().zip(&fresh) {
                *x += deviation * fresh;
            }
        }
        Ok(())
    }
}
