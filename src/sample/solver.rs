//! What a solver is, and the solvers by name.

use std::fmt;
use std::str::FromStr;

use super::Euler;
use crate::{Error, Result};

/// Moves latents along a schedule of sigmas, one model evaluation a step.
///
/// A solver of higher order keeps what it needs of earlier steps, so one value serves one request, and its steps are
/// taken in order from 0.
pub trait Solver {
    /// Takes `latents` from `sigmas[i]` to `sigmas[i + 1]`, given the `velocity` that the model predicted at
    /// `sigmas[i]`.
    ///
    /// # Errors
    ///
    /// [`Error::Graph`] where `sigmas` has no entry `i + 1`, or `velocity` and `latents` differ in length.
    fn step(&mut self, i: usize, sigmas: &[f32], velocity: &[f32], latents: &mut [f32]) -> Result<()>;
}

/// The solvers that `--sampler` can name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Sampler {
    /// Euler's method, the one that FLUX is published with.
    #[default]
    Euler,
}

impl Sampler {
    /// Every sampler, the default first.
    pub const ALL: &[Sampler] = &[Sampler::Euler];

    /// The name on the command line and in PNG files.
    pub fn name(self) -> &'static str {
        match self {
            Sampler::Euler => "euler",
        }
    }

    /// A solver at the start of its request.
    pub fn solver(self) -> Box<dyn Solver + Send> {
        match self {
            Sampler::Euler => Box::new(Euler),
        }
    }
}

impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Sampler {
    type Err = Error;

    fn from_str(name: &str) -> Result<Sampler> {
        let lower = name.to_ascii_lowercase();
        Sampler::ALL.iter().copied().find(|sampler| sampler.name() == lower).ok_or_else(|| {
            let known: Vec<_> = Sampler::ALL.iter().map(|sampler| sampler.name()).collect();
            Error::option("--sampler", format!("one of: {}", known.join(", ")), format!("`{name}`"))
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for &sampler in Sampler::ALL {
            assert_eq!(sampler.to_string().parse::<Sampler>().unwrap(), sampler);
        }
        assert_eq!("Euler".parse::<Sampler>().unwrap(), Sampler::default());
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = "dpm++".parse::<Sampler>().unwrap_err();
        assert_eq!(error.to_string(), "--sampler: expected one of: euler, found `dpm++`");
    }

    #[test]
    fn a_solver_by_name_takes_the_step() {
        let mut latents = [1.0, 2.0];
        Sampler::Euler.solver().step(0, &[1.0, 0.5], &[2.0, -2.0], &mut latents).unwrap();
        assert_eq!(latents, [0.0, 3.0]);
    }
}
