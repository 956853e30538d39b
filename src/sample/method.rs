//! What each sampler is told beyond levels.

use std::sync::Arc;

use serde::Deserialize;

use super::betas::Training;
use super::clip::Clip;

/// What belongs to one sampler.
#[derive(Clone, Debug)]
pub(super) enum Method {
    Euler,
    Ancestral,
    /// Along a flow.
    FlowAncestral,
    Edm,
    Heun(Clip),
    /// With fresh noise or without.
    Kdpm2(bool),
    Lms,
    /// The seed of a tree over all pictures, instead of one for each.
    DpmSde(Option<u64>),
    Ddim(Training, Clip),
    Ddpm(Training, Clip, Variance),
    Pndm(Training),
    /// What `timestep_scaling` says.
    Lcm(Training, Clip, f32),
    /// Along a flow.
    FlowLcm,
    Tcd(Training),
    Multistep(Rule),
    /// The order of each step.
    Singlestep(Rule, Arc<[usize]>),
    Deis(Rule),
    UniPc(Rule, UniPcRule),
}

/// What a configuration says about the steps of DPM-Solver, DEIS and UniPC.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rule {
    pub(super) algorithm: Algorithm,
    pub(super) solver_type: SolverType,
    pub(super) order: usize,
    /// Whether the last step is of first order, however many there are.
    pub(super) first_order_last: bool,
    /// Whether the last steps are of lower order if there are few.
    pub(super) lower_order_final: bool,
    pub(super) clip: Clip,
}

/// What a configuration says about UniPC alone.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct UniPcRule {
    /// Whether B(h) is `e^h - 1` instead of `h`.
    pub(super) is_bh2: bool,
    /// Whether finished latents are what is followed, instead of noise.
    pub(super) predict_x0: bool,
    /// After which evaluations the corrector is left out.
    pub(super) disable_corrector: Arc<[usize]>,
}

/// What DPM-Solver follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Algorithm {
    /// The predicted picture.
    #[default]
    #[serde(rename = "dpmsolver++", alias = "deis")]
    DpmPlus,
    /// The predicted noise.
    #[serde(rename = "dpmsolver")]
    Dpm,
    /// The predicted picture, along the stochastic equation.
    #[serde(rename = "sde-dpmsolver++")]
    SdePlus,
    /// The predicted noise, along the stochastic equation.
    #[serde(rename = "sde-dpmsolver")]
    Sde,
}

impl Algorithm {
    /// Whether fresh noise is drawn.
    pub(super) fn draws(self) -> bool {
        matches!(self, Algorithm::SdePlus | Algorithm::Sde)
    }

    /// Whether the predicted noise is what is followed.
    pub(super) fn follows_noise(self) -> bool {
        matches!(self, Algorithm::Dpm | Algorithm::Sde)
    }
}

/// How a solver uses the difference of two predictions. DPM-Solver knows the first two, UniPC the second two, DEIS the last
/// one; each takes what it does not know for its default, as diffusers does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SolverType {
    /// DPM-Solver: half of the first-order term.
    Midpoint,
    /// DPM-Solver: the exact integral of a straight line.
    Heun,
    /// UniPC: B(h) = h.
    Bh1,
    /// UniPC: B(h) = e^h - 1.
    Bh2,
    /// DEIS: the integral over the logarithm of rho.
    LogRho,
}

/// The variance of the noise that DDPM adds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variance {
    /// That of the posterior.
    #[default]
    FixedSmall,
    /// The same, through its logarithm.
    FixedSmallLog,
    /// Beta.
    FixedLarge,
}
