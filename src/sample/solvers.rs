//! The solver of each sampler.

use super::consistency::{FlowLcm, Lcm, Tcd};
use super::ddim::Ddim;
use super::ddpm::Ddpm;
use super::deis::Deis;
use super::dpm::{Multistep, Singlestep};
use super::dpm_sde::DpmSde;
use super::euler::{EdmEuler, Euler, EulerAncestral, FlowEulerAncestral};
use super::heun::{Heun, Kdpm2};
use super::levels::Levels;
use super::lms::Lms;
use super::method::Method;
use super::pndm::Pndm;
use super::solver::Solver;
use super::unipc::UniPc;

impl Levels {
    /// A solver at the start of its request.
    pub fn solver(&self) -> Box<dyn Solver + Send> {
        match self.method.clone() {
            Method::Euler => Box::new(Euler),
            Method::Ancestral => Box::new(EulerAncestral),
            Method::FlowAncestral => Box::new(FlowEulerAncestral),
            Method::Edm => Box::new(EdmEuler),
            Method::Heun(clip) => Box::new(Heun::new(clip)),
            Method::Kdpm2(is_ancestral) => Box::new(Kdpm2::new(is_ancestral)),
            Method::Lms => Box::new(Lms::new()),
            Method::DpmSde(seed) => Box::new(DpmSde::new(seed)),
            Method::Ddim(training, clip) => Box::new(Ddim { training, clip }),
            Method::Ddpm(training, clip, variance) => Box::new(Ddpm { training, clip, variance }),
            Method::Pndm(training) => Box::new(Pndm::new(training)),
            Method::Lcm(training, clip, scaling) => Box::new(Lcm { training, clip, scaling }),
            Method::FlowLcm => Box::new(FlowLcm),
            Method::Tcd(training) => Box::new(Tcd { training }),
            Method::Multistep(rule) => Box::new(Multistep::new(rule)),
            Method::Singlestep(rule, orders) => Box::new(Singlestep::new(rule, orders)),
            Method::Deis(rule) => Box::new(Deis::new(rule)),
            Method::UniPc(rule, own) => Box::new(UniPc::new(rule, own)),
        }
    }
}
