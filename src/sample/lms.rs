//! Linear multistep: Adams and Bashforth's method over unequal steps, in the form of k-diffusion's `sample_lms`.

use super::Noise;
use super::euler::derivative;
use super::history::History;
use super::levels::Levels;
use super::solver::{Solver, check_lengths};
use crate::{Result, reserve};

const NAME: &str = "lms";

/// How many derivatives are combined at most.
const ORDER: usize = 4;

/// As diffusers' `LMSDiscreteScheduler` does it.
#[derive(Clone, Debug)]
pub(super) struct Lms {
    history: History,
}

impl Lms {
    pub(super) fn new() -> Lms {
        Lms { history: History::new(ORDER) }
    }
}

impl Solver for Lms {
    fn step(&mut self, i: usize, levels: &Levels, output: &[f32], x: &mut [f32], _: &mut Noise) -> Result<()> {
        check_lengths(NAME, output, x)?;
        let [sigma, next] = levels.pair(i)?;
        let derivatives = x.iter().zip(output).map(|(x, out)| derivative(levels.predicts, sigma, *out, *x));
        self.history.push(reserve::collect("derivatives", x.len(), derivatives)?);
        // diffusers takes the polynomial through sigmas that a request with a picture leaves out, too.
        let sigmas: Vec<f32> = levels.earlier.iter().chain(&levels.sigmas[..=i]).rev().take(ORDER).copied().collect();
        let mut kept = Vec::new();
        for back in 0..self.history.len().min(sigmas.len()) {
            let coefficient = coefficient(&sigmas, back, f64::from(next)) as f32;
            kept.push((coefficient, self.history.ago(NAME, back, x.len())?));
        }
        for (j, x) in x.iter_mut().enumerate() {
            let mut sum = 0.0;
            for (coefficient, derivatives) in &kept {
                sum += coefficient * derivatives[j];
            }
            *x += sum;
        }
        Ok(())
    }
}

/// The integral, from the first of `sigmas` to `next`, of the polynomial that is 1 at sigma number `at` and 0 at the
/// others. diffusers integrates numerically, which is exact for these except for rounding.
fn coefficient(sigmas: &[f32], at: usize, next: f64) -> f64 {
    let from = f64::from(sigmas[0]);
    // Coefficients of the polynomial in `tau - from`, the constant one first.
    let mut polynomial = vec![1.0];
    for (k, &sigma) in sigmas.iter().enumerate() {
        if k == at {
            continue;
        }
        let (root, scale) = (f64::from(sigma) - from, f64::from(sigmas[at]) - f64::from(sigma));
        let mut product = vec![0.0; polynomial.len() + 1];
        for (power, c) in polynomial.iter().enumerate() {
            product[power + 1] += c / scale;
            product[power] -= c * root / scale;
        }
        polynomial = product;
    }
    let length = next - from;
    let mut integral = 0.0;
    for (power, c) in polynomial.iter().enumerate().rev() {
        integral = integral * length + c / (power + 1) as f64;
    }
    integral * length
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_steps_are_those_of_adams_and_bashforth() {
        let sigmas = [1.0, 2.0, 3.0, 4.0];
        for (at, wanted) in [55.0, -59.0, 37.0, -9.0].into_iter().enumerate() {
            let found = coefficient(&sigmas, at, 0.0);
            assert!((found + wanted / 24.0).abs() < 1e-12, "{at}: {found}");
        }
        assert_eq!(coefficient(&[3.0], 0, 1.0), -2.0);
    }
}
