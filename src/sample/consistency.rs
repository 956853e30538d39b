//! Samplers of models that were distilled to predict the end of a trajectory in one evaluation.

use super::betas::Training;
use super::clip::Clip;
use super::ddpm;
use super::levels::Levels;
use super::solver::{Solver, check_lengths, draw};
use super::{Noise, Prediction};
use crate::Result;

/// The standard deviation of the data that the boundary condition assumes: diffusers' number.
const DATA: f32 = 0.5;

/// Luo et al., "Latent Consistency Models", 2023, as diffusers' `LCMScheduler` does it: the predicted picture, under fresh
/// noise of the next level.
#[derive(Clone, Debug)]
pub(super) struct Lcm {
    pub(super) training: Training,
    pub(super) clip: Clip,
    /// By what timesteps are multiplied in the boundary condition.
    pub(super) scaling: f32,
}

impl Solver for Lcm {
    fn step(&mut self, i: usize, levels: &Levels, output: &[f32], x: &mut [f32], noise: &mut Noise) -> Result<()> {
        check_lengths("lcm", output, x)?;
        let time = levels.timestep(i)?;
        let mut clean = ddpm::clean(levels.predicts, self.training.alpha(time)?, (output, x))?;
        self.clip.cut("lcm", &mut clean, noise.batch())?;
        let scaled = time as f32 * self.scaling;
        let total = scaled * scaled + DATA * DATA;
        let (of_x, of_clean) = (DATA * DATA / total, scaled / total.sqrt());
        for (x, clean) in x.iter_mut().zip(&clean) {
            *x = of_clean * clean + of_x * *x;
        }
        if i + 1 < levels.len() {
            let next = self.training.alpha(levels.timestep(i + 1)?)?;
            let (signal, spread) = (next.sqrt(), (1.0 - next).sqrt());
            let fresh = draw("lcm", noise, x)?;
            x.iter_mut().zip(&fresh).for_each(|(x, fresh)| *x = signal * *x + spread * fresh);
        }
        Ok(())
    }
}

/// The same along a flow, as diffusers' `FlowMatchLCMScheduler` does it.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlowLcm;

impl Solver for FlowLcm {
    fn step(&mut self, i: usize, levels: &Levels, output: &[f32], x: &mut [f32], noise: &mut Noise) -> Result<()> {
        check_lengths("lcm", output, x)?;
        let [sigma, next] = levels.pair(i)?;
        // Drawn in the last step too, in which it counts nothing.
        let fresh = draw("lcm", noise, x)?;
        for ((x, out), fresh) in x.iter_mut().zip(output).zip(&fresh) {
            *x = (1.0 - next) * (*x - sigma * out) + next * fresh;
        }
        Ok(())
    }
}

/// Zheng et al., "Trajectory Consistency Distillation", 2024, as diffusers' `TCDScheduler` does it: a step to below the
/// next timestep, and fresh noise back up to it.
#[derive(Clone, Debug)]
pub(super) struct Tcd {
    pub(super) training: Training,
}

impl Solver for Tcd {
    fn step(&mut self, i: usize, levels: &Levels, output: &[f32], x: &mut [f32], noise: &mut Noise) -> Result<()> {
        check_lengths("tcd", output, x)?;
        let is_last = i + 1 >= levels.len();
        let next = if is_last { 0 } else { levels.timestep(i + 1)? };
        let eta = levels.eta.unwrap_or(0.0);
        let below = (kept_share(eta) * next as f32).floor() as i64;
        let alpha = self.training.alpha(levels.timestep(i)?)?;
        let [next, below] = [self.training.alpha(next)?, self.training.alpha(below)?];
        let (root, beta_root) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        let (signal, spread) = (below.sqrt(), (1.0 - below).sqrt());
        for (x, &out) in x.iter_mut().zip(output) {
            let (clean, epsilon) = match levels.predicts {
                Prediction::Velocity | Prediction::Epsilon => ((*x - beta_root * out) / root, out),
                Prediction::Sample => (out, (*x - root * out) / beta_root),
                Prediction::V => (root * *x - beta_root * out, root * out + beta_root * *x),
            };
            *x = signal * clean + spread * epsilon;
        }
        if eta > 0.0 && !is_last {
            let (keep, up) = ((next / below).sqrt(), (1.0 - next / below).sqrt());
            let fresh = draw("tcd", noise, x)?;
            x.iter_mut().zip(&fresh).for_each(|(x, fresh)| *x = keep * *x + up * fresh);
        }
        Ok(())
    }
}

/// `1 - eta`, of the number as it was written: 0.3 rounded to f32 is above 0.3.
fn kept_share(eta: f32) -> f32 {
    (1.0 - eta.to_string().parse().unwrap_or(f64::from(eta))) as f32
}
