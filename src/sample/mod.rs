//! Sampling: noise, schedules, solvers, guidance. Plain f32 on the host; nothing here knows a model or a device.
//!
//! | part | what it is |
//! |---|---|
//! | [`Scheduler`] | `scheduler_config.json`: how a model was trained to denoise |
//! | [`Sampler`], [`Schedule`] | a rule for denoising and the levels of noise that it visits, by name |
//! | [`Sampling`], [`Chosen`] | what a request says of both, and what holds for it |
//! | [`Levels`] | the evaluations of the model that a sampler makes of a number of steps |
//! | [`Solver`] | how latents move from one evaluation to the next |
//! | [`Noise`], [`randn`] | the noise that PyTorch's CPU generator gives for a seed |
//! | [`classifier_free_guidance`] | one prediction out of a conditional and an unconditional one |
//!
//! [`Scheduler::choose`] chooses, [`Scheduler::levels`] lists the evaluations, [`Levels::starting_at`] leaves out the first of
//! them for a request that begins with a picture, and [`Levels::solver`] takes them. Numbers are those of diffusers'
//! schedulers, each in its own form and order of operations.

mod beta_quantile;
mod betas;
mod brownian;
mod clip;
mod config;
mod consistency;
mod ddim;
mod ddpm;
mod deis;
mod discrete;
mod dpm;
mod dpm_sde;
mod edm;
mod euler;
mod flow;
mod guidance;
mod heun;
mod history;
mod levels;
mod lms;
mod log_snr;
mod log_snr_levels;
mod method;
mod names;
mod noise;
mod pndm;
mod prediction;
mod python;
#[cfg(test)]
#[allow(clippy::approx_constant)] // numbers that happen to be near one
#[rustfmt::skip]
mod reference;
mod rounding;
mod sampler;
mod sampling;
mod schedule;
mod scheduler;
mod seed_sequence;
mod solver;
mod solvers;
mod timesteps;
mod unipc;

pub use betas::BetaSchedule;
pub use config::{DiscreteConfig, FinalSigmas};
pub use edm::{EdmConfig, SigmaSchedule};
pub use euler::{Euler, EulerAncestral};
pub use flow::{FlowMatchConfig, MAX_STEPS, TimeShift};
pub use guidance::{classifier_free_guidance, guidance_with_picture, rescaled, with_lengths_of};
pub use levels::{Levels, Space};
pub use method::{Algorithm, SolverType, Variance};
pub use noise::{Noise, randn};
pub use prediction::Prediction;
pub use sampler::Sampler;
pub use sampling::{AYS, AYS_XL, Chosen, Sampling};
pub use schedule::Schedule;
pub use scheduler::{Scheduler, Share};
pub use solver::Solver;
pub use timesteps::Spacing;
