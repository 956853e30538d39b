//! Sampling: noise, schedules, solvers, guidance. Plain f32 on the host; nothing here knows a model or a device.
//!
//! | part | what it is |
//! |---|---|
//! | [`Scheduler`] | `scheduler_config.json`: how a model was trained to denoise |
//! | [`Sampler`] | a rule for denoising, by name |
//! | [`Levels`] | the evaluations of the model that a sampler makes of a number of steps |
//! | [`Solver`] | how latents move from one evaluation to the next |
//! | [`Noise`], [`randn`] | the noise that PyTorch's CPU generator gives for a seed |
//! | [`classifier_free_guidance`] | one prediction out of a conditional and an unconditional one |
//!
//! [`Scheduler::sampler`] chooses, [`Scheduler::levels`] lists the evaluations, [`Levels::starting_at`] leaves out the first of
//! them for a request that begins with a picture, and [`Levels::solver`] takes them. Numbers are those of diffusers'
//! schedulers, each in its own form and order of operations.

mod betas;
mod ddim;
mod discrete;
mod dpm;
mod euler;
mod flow;
mod guidance;
mod levels;
mod method;
mod noise;
mod pndm;
mod prediction;
mod python;
#[cfg(test)]
#[allow(clippy::approx_constant)] // numbers that happen to be near one
#[rustfmt::skip]
mod reference;
mod sampler;
mod scheduler;
mod solver;
mod solvers;
mod timesteps;

pub use betas::BetaSchedule;
pub use discrete::{DiscreteConfig, FinalSigmas};
pub use euler::{Euler, EulerAncestral};
pub use flow::{FlowMatchConfig, MAX_STEPS, TimeShift};
pub use guidance::{classifier_free_guidance, guidance_with_picture};
pub use levels::{Levels, Space};
pub use method::SolverType;
pub use noise::{Noise, randn};
pub use prediction::Prediction;
pub use sampler::Sampler;
pub use scheduler::Scheduler;
pub use solver::{Solver, SolverOptions};
pub use timesteps::Spacing;
