//! Sampling: noise, sigma schedules, solvers, guidance. Plain f32 on the host; nothing here knows a model or a device.
//!
//! | part | what it is |
//! |---|---|
//! | [`randn`] | the noise that PyTorch's CPU generator gives for a seed |
//! | [`FlowMatchConfig`] | `scheduler_config.json` of a flow-matching model, and the sigmas it stands for |
//! | [`Sampler`], [`Solver`] | how latents move from one sigma to the next |
//! | [`classifier_free_guidance`] | one velocity out of a conditional and an unconditional one |

mod euler;
mod flow;
mod guidance;
mod levels;
mod noise;
#[cfg(test)]
#[allow(clippy::approx_constant)] // numbers that happen to be near one
#[rustfmt::skip]
mod reference;
mod solver;

pub use euler::Euler;
pub use flow::{FlowMatchConfig, MAX_STEPS, TimeShift};
pub use guidance::classifier_free_guidance;
pub use levels::Levels;
pub use noise::randn;
pub use solver::{Sampler, Solver};
