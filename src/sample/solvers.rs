//! The solver of each sampler.

use super::ddim::Ddim;
use super::dpm::Dpm2m;
use super::euler::{Euler, EulerAncestral};
use super::levels::Levels;
use super::method::Method;
use super::pndm::Pndm;
use super::solver::{Solver, SolverOptions};

impl Levels {
    /// A solver at the start of its request.
    pub fn solver(&self, options: &SolverOptions) -> Box<dyn Solver + Send> {
        match &self.method {
            Method::Euler => Box::new(Euler),
            Method::Ancestral => Box::new(EulerAncestral),
            Method::Ddim(training, clip) => {
                Box::new(Ddim { training: training.clone(), clip: *clip, eta: options.eta })
            }
            Method::Pndm(training) => Box::new(Pndm::new(training.clone())),
            Method::Dpm2m(rule) => Box::new(Dpm2m::new(*rule)),
        }
    }
}
