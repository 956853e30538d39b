//! What each sampler is told beyond levels.

use serde::Deserialize;

use super::betas::Training;

/// What belongs to one sampler.
#[derive(Clone, Debug)]
pub(super) enum Method {
    Euler,
    Ancestral,
    Ddim(Training, Option<f32>),
    Pndm(Training),
    Dpm2m(Rule),
}

/// What a configuration says about DPM-Solver's steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rule {
    pub(super) solver_type: SolverType,
    /// Whether the last step is of first order, however many there are.
    pub(super) first_order_last: bool,
    /// Whether the last step is of first order if there are few.
    pub(super) lower_order_final: bool,
}

/// How DPM-Solver's step of second order uses the difference of two predictions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SolverType {
    /// Half of the first-order term.
    #[default]
    #[serde(alias = "logrho", alias = "bh1", alias = "bh2")]
    Midpoint,
    /// The exact integral of a straight line.
    Heun,
}
