//! Euler's method: one straight step along the derivative.

use super::levels::{Levels, Space};
use super::solver::{Solver, check_lengths, draw};
use super::{Noise, Prediction};
use crate::Result;

/// Euler's method over a flow or over discrete timesteps, in f32 and rounded after each operation, as `step` of
/// diffusers' `FlowMatchEulerDiscreteScheduler` and `EulerDiscreteScheduler` does it. Keeps nothing from step to step.
#[derive(Clone, Copy, Debug, Default)]
pub struct Euler;

impl Solver for Euler {
    fn step(&mut self, i: usize, levels: &Levels, output: &[f32], x: &mut [f32], _: &mut Noise) -> Result<()> {
        check_lengths("euler", output, x)?;
        let [sigma, next] = levels.pair(i)?;
        let dt = next - sigma;
        if levels.space == Space::Flow {
            for (x, v) in x.iter_mut().zip(output) {
                *x += dt * v;
            }
        } else {
            for (x, out) in x.iter_mut().zip(output) {
                *x += derivative(levels.predicts, sigma, *out, *x) * dt;
            }
        }
        Ok(())
    }
}

/// Euler's method with fresh noise, as diffusers' `EulerAncestralDiscreteScheduler` does it: a step to below the next
/// sigma, and noise back up to it.
#[derive(Clone, Copy, Debug, Default)]
pub struct EulerAncestral;

impl Solver for EulerAncestral {
    fn step(&mut self, i: usize, levels: &Levels, output: &[f32], x: &mut [f32], noise: &mut Noise) -> Result<()> {
        check_lengths("euler_a", output, x)?;
        let [sigma, next] = levels.pair(i)?;
        let [down, up] = down_and_up(sigma, next);
        let dt = down - sigma;
        // Drawn in the last step too, in which it counts nothing.
        let fresh = draw("euler_a", noise, x)?;
        for ((x, out), fresh) in x.iter_mut().zip(output).zip(&fresh) {
            *x = *x + derivative(levels.predicts, sigma, *out, *x) * dt + fresh * up;
        }
        Ok(())
    }
}

/// The same along a flow, as the class of [`Sampler::classes`](super::Sampler::classes) does it with an eta of 1.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FlowEulerAncestral;

/// What keeps quotients finite there.
const TINY: f32 = 1e-12;

/// What is no noise any more.
const NO_SIGMA: f32 = 1e-8;

impl Solver for FlowEulerAncestral {
    fn step(&mut self, i: usize, levels: &Levels, output: &[f32], x: &mut [f32], noise: &mut Noise) -> Result<()> {
        check_lengths("euler_a", output, x)?;
        let [sigma, next] = levels.pair(i)?;
        if next.abs() < NO_SIGMA {
            x.iter_mut().zip(output).for_each(|(x, v)| *x -= sigma * v);
            return Ok(());
        }
        let down = next * (1.0 + (next / sigma - 1.0));
        let (signal, signal_down, ratio) = (1.0 - next, 1.0 - down, down / sigma);
        let rest = next * next - down * down * (signal * signal) / (signal_down * signal_down + TINY);
        let (keep, up) = (signal / (signal_down + TINY), rest.max(0.0).sqrt());
        let fresh = draw("euler_a", noise, x)?;
        for ((x, v), fresh) in x.iter_mut().zip(output).zip(&fresh) {
            let clean = *x - sigma * v;
            *x = keep * (ratio * *x + (1.0 - ratio) * clean) + fresh * up;
        }
        Ok(())
    }
}

/// Euler's method over the preconditioning of Karras et al., 2022, as diffusers' `EDMEulerScheduler` does it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct EdmEuler;

impl Solver for EdmEuler {
    fn step(&mut self, i: usize, levels: &Levels, output: &[f32], x: &mut [f32], _: &mut Noise) -> Result<()> {
        check_lengths("edm_euler", output, x)?;
        let [sigma, next] = levels.pair(i)?;
        let dt = next - sigma;
        for (x, out) in x.iter_mut().zip(output) {
            *x += (*x - levels.predicts.preconditioned(sigma, levels.data, *out, *x)) / sigma * dt;
        }
        Ok(())
    }
}

/// The derivative of the latents by sigma.
pub(super) fn derivative(predicts: Prediction, sigma: f32, output: f32, x: f32) -> f32 {
    (x - predicts.clean(sigma, output, x)) / sigma
}

/// Which sigma an ancestral step from `sigma` to `next` aims for, and how much fresh noise leads from there to `next`.
pub(super) fn down_and_up(sigma: f32, next: f32) -> [f32; 2] {
    let [from, to] = [sigma * sigma, next * next];
    let up = (to * (from - to) / from).sqrt();
    [(to - up * up).sqrt(), up]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::Sampler;
    use super::super::method::Method;
    use super::super::reference::{AFTER, LATENTS, SIGMAS, VELOCITY};
    use super::*;

    fn flow(sigmas: &[f32]) -> (Levels, Noise) {
        (
            Levels::new(
                Sampler::Euler,
                Method::Euler,
                sigmas[..sigmas.len() - 1].to_vec(),
                sigmas.to_vec(),
                Space::Flow,
            ),
            Noise::new(0, 1),
        )
    }

    #[test]
    fn two_steps_equal_diffusers_to_the_bit() {
        let (levels, mut noise) = flow(SIGMAS);
        let mut latents = LATENTS.to_vec();
        for i in 0..2 {
            Euler.step(i, &levels, VELOCITY, &mut latents, &mut noise).unwrap();
        }
        assert_eq!(latents, AFTER);
    }

    #[test]
    fn steps_off_the_schedule_and_lengths_that_differ_are_refused() {
        let (levels, mut noise) = flow(&[1.0, 0.0]);
        let mut latents = [0.0; 2];
        for i in [1, 2, usize::MAX] {
            assert!(Euler.step(i, &levels, &[1.0; 2], &mut latents, &mut noise).is_err(), "step {i}");
        }
        assert!(Euler.step(0, &levels, &[1.0; 3], &mut latents, &mut noise).is_err());
        assert_eq!(latents, [0.0; 2]);
    }

    #[test]
    fn noise_for_other_pictures_is_refused() {
        let (levels, _) = flow(&[1.0, 0.5]);
        for batch in [0, 2] {
            let mut noise = Noise::new(0, batch);
            assert!(EulerAncestral.step(0, &levels, &[1.0; 3], &mut [0.0; 3], &mut noise).is_err(), "{batch}");
        }
    }
}
