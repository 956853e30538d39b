//! Pseudo linear multistep: Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds", 2022.

use super::betas::Training;
use super::levels::Levels;
use super::solver::{Solver, check_lengths};
use super::{Noise, Prediction};
use crate::{Result, reserve};

/// How many outputs the rule of highest order combines.
const ORDER: usize = 4;

/// As diffusers' `PNDMScheduler` does it with `skip_prk_steps`. The first step has two evaluations: the second one
/// is at the end of the first step, and takes that step again along the mean of both outputs.
#[derive(Clone, Debug)]
pub(super) struct Pndm {
    training: Training,
    /// Evaluations so far.
    count: usize,
    /// Outputs, the last one last.
    outputs: Vec<Vec<f32>>,
    /// The latents before the first step.
    before: Vec<f32>,
}

impl Pndm {
    pub(super) fn new(training: Training) -> Pndm {
        Pndm { training, count: 0, outputs: Vec::new(), before: Vec::new() }
    }

    /// Keeps `output`, and at most three before it. The second evaluation is not kept.
    fn keep(&mut self, output: &[f32]) -> Result<()> {
        if self.count == 1 {
            return Ok(());
        }
        if self.outputs.len() == ORDER {
            self.outputs.remove(0);
        }
        self.outputs.push(reserve::repeat("outputs of the model", output, 1)?);
        Ok(())
    }

    /// The combination of outputs for number `j`, given this evaluation's own `output`.
    fn combined(&self, j: usize, output: f32) -> f32 {
        match self.outputs.as_slice() {
            [first] if self.count == 1 => (output + first[j]) / 2.0,
            [b, a] => (3.0 * a[j] - b[j]) / 2.0,
            [c, b, a] => (23.0 * a[j] - 16.0 * b[j] + 5.0 * c[j]) / 12.0,
            [d, c, b, a] => (1.0 / 24.0) * (55.0 * a[j] - 59.0 * b[j] + 37.0 * c[j] - 9.0 * d[j]),
            _ => output,
        }
    }
}

impl Solver for Pndm {
    fn step(&mut self, i: usize, levels: &Levels, output: &[f32], x: &mut [f32], _: &mut Noise) -> Result<()> {
        check_lengths("pndm", output, x)?;
        let (mut time, stride) = (levels.timestep(i)?, self.training.stride);
        if self.count == 1 {
            check_lengths("pndm", &self.before, x)?;
            x.copy_from_slice(&self.before);
            self.before = Vec::new();
            time += stride;
        } else if self.count == 0 {
            self.before = reserve::repeat("the latents", x, 1)?;
        }
        self.keep(output)?;
        for kept in &self.outputs {
            check_lengths("pndm", kept, x)?;
        }
        let (alpha, next) = (self.training.alpha(time)?, self.training.alpha(time - stride)?);
        let (beta, next_beta) = (1.0 - alpha, 1.0 - next);
        let (root, beta_root) = (alpha.sqrt(), beta.sqrt());
        let keeps = (next / alpha).sqrt();
        let divisor = alpha * next_beta.sqrt() + (alpha * beta * next).sqrt();
        for (j, (x, &out)) in x.iter_mut().zip(output).enumerate() {
            let mut out = self.combined(j, out);
            if levels.predicts == Prediction::V {
                out = root * out + beta_root * *x;
            }
            *x = keeps * *x - (next - alpha) * out / divisor;
        }
        self.count += 1;
        Ok(())
    }
}
