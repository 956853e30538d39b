//! DPM-Solver++: Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", 2022.

use super::levels::{Levels, shares_of};
use super::method::{Rule, SolverType};
use super::solver::{Solver, check_lengths};
use super::{Noise, Prediction};
use crate::{Result, reserve};

/// With fewer steps than this, the last one is of first order.
const FEW: usize = 15;

/// The multistep solver of second order, as diffusers' `DPMSolverMultistepScheduler` does it.
#[derive(Clone, Debug)]
pub(super) struct Dpm2m {
    rule: Rule,
    /// The finished latents that the evaluation before predicted.
    before: Option<Vec<f32>>,
}

impl Dpm2m {
    pub(super) fn new(rule: Rule) -> Dpm2m {
        Dpm2m { rule, before: None }
    }

    /// Whether evaluation `i` takes a step of first order although there is one before it.
    fn is_lower(&self, i: usize, levels: &Levels) -> bool {
        let few = self.rule.lower_order_final && levels.untruncated() < FEW;
        i + 1 == levels.len() && (self.rule.first_order_last || few)
    }
}

impl Solver for Dpm2m {
    fn step(&mut self, i: usize, levels: &Levels, output: &[f32], x: &mut [f32], _: &mut Noise) -> Result<()> {
        check_lengths("dpm++_2m", output, x)?;
        let [sigma, next] = levels.pair(i)?;
        let [alpha, spread] = shares_of(sigma);
        let [next_alpha, next_spread] = shares_of(next);
        let mut clean = reserve::room("predicted latents", x.len())?;
        clean.extend(x.iter().zip(output).map(|(x, out)| match levels.predicts {
            Prediction::Velocity | Prediction::Epsilon => (x - spread * out) / alpha,
            Prediction::Sample => *out,
            Prediction::V => alpha * x - spread * out,
        }));
        let h = lambda(next) - lambda(sigma);
        let fades = exp(-h) - 1.0;
        let (keeps, adds) = (next_spread / spread, next_alpha * fades);
        match self.before.take() {
            Some(before) if i > 0 && !self.is_lower(i, levels) => {
                check_lengths("dpm++_2m", &before, x)?;
                let [earlier, _] = levels.pair(i - 1)?;
                let r = (lambda(sigma) - lambda(earlier)) / h;
                let turns = match self.rule.solver_type {
                    SolverType::Midpoint => -(0.5 * adds),
                    SolverType::Heun => next_alpha * (fades / h + 1.0),
                };
                for ((x, m), before) in x.iter_mut().zip(&clean).zip(&before) {
                    *x = keeps * *x - adds * m + turns * (1.0 / r * (m - before));
                }
            }
            _ => {
                for (x, m) in x.iter_mut().zip(&clean) {
                    *x = keeps * *x - adds * m;
                }
            }
        }
        self.before = Some(clean);
        Ok(())
    }
}

/// Half the logarithm of the signal-to-noise ratio.
fn lambda(sigma: f32) -> f32 {
    let [alpha, spread] = shares_of(sigma);
    log(alpha) - log(spread)
}

/// Rounded once, as PyTorch's `log` is, except its last digit.
fn log(x: f32) -> f32 {
    f64::from(x).ln() as f32
}

fn exp(x: f32) -> f32 {
    f64::from(x).exp() as f32
}
