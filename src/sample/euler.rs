//! Euler's method for a flow: one straight step along the velocity.

use super::Solver;
use crate::{Error, Result};

/// `x += (sigma_next - sigma) * velocity`, in f32 and rounded after each operation, as diffusers'
/// `FlowMatchEulerDiscreteScheduler.step` does it. Keeps nothing from step to step.
#[derive(Clone, Copy, Debug, Default)]
pub struct Euler;

impl Solver for Euler {
    fn step(&mut self, i: usize, sigmas: &[f32], velocity: &[f32], latents: &mut [f32]) -> Result<()> {
        let Some(&[sigma, next]) = sigmas.get(i..).and_then(|rest| rest.first_chunk()) else {
            return Err(Error::graph("euler", format!("step {i} of a schedule of {} sigmas", sigmas.len())));
        };
        if velocity.len() != latents.len() {
            let message = format!("{} velocities for {} latents", velocity.len(), latents.len());
            return Err(Error::graph("euler", message));
        }
        let dt = next - sigma;
        for (x, v) in latents.iter_mut().zip(velocity) {
            *x += dt * v;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::reference::{AFTER, LATENTS, SIGMAS, VELOCITY};
    use super::*;

    #[test]
    fn two_steps_equal_diffusers_to_the_bit() {
        let mut latents = LATENTS.to_vec();
        for i in 0..2 {
            Euler.step(i, SIGMAS, VELOCITY, &mut latents).unwrap();
        }
        assert_eq!(latents, AFTER);
    }

    #[test]
    fn steps_off_the_schedule_and_lengths_that_differ_are_refused() {
        let mut latents = [0.0; 2];
        for i in [1, 2, usize::MAX] {
            assert!(Euler.step(i, &[1.0, 0.0], &[1.0; 2], &mut latents).is_err(), "step {i}");
        }
        assert!(Euler.step(0, &[1.0, 0.0], &[1.0; 3], &mut latents).is_err());
        assert_eq!(latents, [0.0; 2]);
    }
}
