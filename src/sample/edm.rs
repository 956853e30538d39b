//! Levels of models with the preconditioning of Karras et al., "Elucidating the Design Space of Diffusion-Based Generative
//! Models", 2022, as diffusers' `EDMEulerScheduler` makes them.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::betas::linspace;
use super::config::FinalSigmas;
use super::flow::MAX_STEPS;
use super::levels::{Levels, Space};
use super::method::Method;
use super::timesteps::{RHO, karras};
use super::{Chosen, Prediction, Sampler, Schedule, python};
use crate::{Error, Result};

/// The schedules that its configuration can name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SigmaSchedule {
    /// Those of the paper.
    #[default]
    Karras,
    /// At equal distances of their logarithms.
    Exponential,
}

/// What a `scheduler_config.json` says, with diffusers' defaults where it says nothing.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct EdmConfig {
    /// The least sigma above 0.
    pub sigma_min: f64,
    /// The largest sigma.
    pub sigma_max: f64,
    /// The standard deviation of the pictures of training.
    pub sigma_data: f64,
    /// What lies between the two.
    pub sigma_schedule: SigmaSchedule,
    /// What the output of the model stands for: epsilon or v.
    pub prediction_type: Prediction,
    /// The exponent of Karras's sigmas.
    pub rho: f64,
    /// What the last sigma is.
    pub final_sigmas_type: FinalSigmas,
}

impl Default for EdmConfig {
    fn default() -> Self {
        EdmConfig {
            sigma_min: 0.002,
            sigma_max: 80.0,
            sigma_data: 0.5,
            sigma_schedule: SigmaSchedule::Karras,
            prediction_type: Prediction::Epsilon,
            rho: RHO,
            final_sigmas_type: FinalSigmas::Zero,
        }
    }
}

impl EdmConfig {
    /// Reads settings that [`python::settings`] gave. `origin` is for messages.
    pub(super) fn from_settings(settings: Map<String, Value>, origin: &Path) -> Result<Self> {
        let config = Self::deserialize(Value::Object(settings)).map_err(|error| python::malformed(origin, &error))?;
        let refuse = |at, expected: &str, found: String| Err(Error::mismatch(origin, at, expected, found));
        for (at, number) in [("sigma_min", config.sigma_min), ("sigma_data", config.sigma_data), ("rho", config.rho)] {
            if !(number.is_finite() && number > 0.0) {
                return refuse(at, "a number above 0", number.to_string());
            }
        }
        if !(config.sigma_max.is_finite() && config.sigma_max > config.sigma_min) {
            return refuse("sigma_max", "a number above sigma_min", config.sigma_max.to_string());
        }
        if config.prediction_type == Prediction::Sample {
            return refuse("prediction_type", "epsilon or v_prediction", "sample".into());
        }
        Ok(config)
    }

    /// The schedule that the configuration names.
    pub(super) fn schedule(&self) -> Schedule {
        match self.sigma_schedule {
            SigmaSchedule::Karras => Schedule::Karras,
            SigmaSchedule::Exponential => Schedule::Exponential,
        }
    }

    /// The levels of a request.
    ///
    /// # Errors
    ///
    /// [`Error::Option`] if `steps` is 0 or above [`MAX_STEPS`].
    pub fn levels(&self, chosen: &Chosen, steps: usize) -> Result<Levels> {
        if !(1..=MAX_STEPS).contains(&steps) {
            return Err(Error::option("--steps", format!("1 to {MAX_STEPS}"), steps.to_string()));
        }
        let mut sigmas: Vec<f32> = if chosen.schedule == Schedule::Exponential {
            // In PyTorch's single precision.
            let [low, high] = [self.sigma_min, self.sigma_max].map(|sigma| sigma.ln() as f32);
            let logs = linspace(low, high, steps);
            logs.into_iter().rev().map(|log| f64::from(log).exp() as f32).collect()
        } else {
            karras([self.sigma_min, self.sigma_max], steps, self.rho).into_iter().map(|sigma| sigma as f32).collect()
        };
        let times = sigmas.iter().map(|&sigma| 0.25 * f64::from(sigma).ln() as f32).collect();
        sigmas.push(match self.final_sigmas_type {
            FinalSigmas::Zero => 0.0,
            FinalSigmas::SigmaMin => sigmas[steps - 1],
        });
        let levels = Levels::new(Sampler::EdmEuler, Method::Edm, times, sigmas, Space::Edm);
        let start = (self.sigma_max * self.sigma_max + 1.0).sqrt() as f32;
        Ok(Levels { predicts: self.prediction_type, data: self.sigma_data as f32, start, ..levels })
    }
}
