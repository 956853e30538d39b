//! `scheduler_config.json` of models that were trained on discrete timesteps.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::betas::BetaSchedule;
use super::method::{Algorithm, SolverType, Variance};
use super::prediction::Prediction;
use super::python;
use super::timesteps::Spacing;
use crate::{Error, Result};

/// The most timesteps of training that a configuration may name. Published models have a thousand.
const MOST_TIMESTEPS: u32 = 100_000;

/// What the last sigma is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigmas {
    /// 0.
    #[default]
    Zero,
    /// That of the first timestep of training.
    SigmaMin,
}

/// What a `scheduler_config.json` says. `None` if it says nothing and diffusers' schedulers have different defaults:
/// then the default is that of the scheduler of the sampler in use.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct DiscreteConfig {
    /// diffusers' class.
    #[serde(rename = "_class_name")]
    pub class_name: String,
    /// Timesteps of training.
    pub num_train_timesteps: u32,
    /// The noise that the first timestep adds, a variance. 0.0001, or 0.00085 for Heun, KDPM2, DPM++ SDE, LCM and TCD.
    #[serde(deserialize_with = "python::optional_float")]
    pub beta_start: Option<f64>,
    /// The noise that the last timestep adds, a variance. 0.02, or 0.012 for the same.
    #[serde(deserialize_with = "python::optional_float")]
    pub beta_end: Option<f64>,
    /// What lies between the two. Linear, or scaled linear for LCM and TCD.
    pub beta_schedule: Option<BetaSchedule>,
    /// Instead of these three, the variance of each timestep.
    #[serde(deserialize_with = "python::optional_floats")]
    pub trained_betas: Option<Vec<f64>>,
    /// What the output of the model stands for.
    pub prediction_type: Prediction,
    /// How timesteps are chosen. DDIM, DDPM and PNDM: leading, the others: linspace.
    pub timestep_spacing: Option<Spacing>,
    /// What is added to leading timesteps.
    pub steps_offset: u32,
    /// Whether betas are bent so that the last timestep is noise alone, for DDIM, DDPM, both of Euler's, multistep
    /// DPM-Solver, UniPC, LCM and TCD.
    pub rescale_betas_zero_snr: bool,
    /// Whether predicted latents are cut to a range, for DDIM and DDPM (true), Heun and LCM (false).
    pub clip_sample: Option<bool>,
    /// That range, on both sides of 0.
    #[serde(deserialize_with = "python::float")]
    pub clip_sample_range: f64,
    /// Whether the step from the first timestep ends at the picture. DDIM: true, PNDM: false.
    pub set_alpha_to_one: Option<bool>,
    /// Whether PNDM begins without Runge-Kutta steps. pinhole's always does.
    pub skip_prk_steps: bool,
    /// Whether sigmas are those of Karras et al., 2022: [`Schedule::Karras`](super::Schedule::Karras).
    pub use_karras_sigmas: bool,
    /// Whether sigmas are [`Schedule::Exponential`](super::Schedule::Exponential).
    pub use_exponential_sigmas: bool,
    /// Whether sigmas are [`Schedule::Beta`](super::Schedule::Beta).
    pub use_beta_sigmas: bool,
    /// Whether sigmas are [`Schedule::Lu`](super::Schedule::Lu), for multistep DPM-Solver.
    pub use_lu_lambdas: bool,
    /// The least of these sigmas, instead of the schedule's own.
    #[serde(deserialize_with = "python::optional_float")]
    pub sigma_min: Option<f64>,
    /// The largest of these sigmas, instead of the schedule's own.
    #[serde(deserialize_with = "python::optional_float")]
    pub sigma_max: Option<f64>,
    /// What the last sigma is, for Euler, DPM-Solver and UniPC.
    pub final_sigmas_type: FinalSigmas,
    /// What DPM-Solver follows.
    pub algorithm_type: Option<Algorithm>,
    /// The order of DPM-Solver, DEIS and UniPC.
    pub solver_order: u32,
    /// How they use the prediction before.
    pub solver_type: Option<SolverType>,
    /// Whether their last steps are of lower order (if there are fewer than 15; UniPC: always). True, except for singlestep
    /// DPM-Solver.
    pub lower_order_final: Option<bool>,
    /// Whether multistep DPM-Solver's last step is of first order.
    pub euler_at_final: bool,
    /// Whether UniPC follows the predicted picture instead of the noise.
    pub predict_x0: bool,
    /// After which evaluations UniPC leaves out the corrector.
    pub disable_corrector: Vec<usize>,
    /// Whether predicted latents are cut to a quantile of theirs: dynamic thresholding, for DDIM, DDPM, LCM, DPM-Solver,
    /// DEIS and UniPC.
    pub thresholding: bool,
    /// That quantile.
    #[serde(deserialize_with = "python::float")]
    pub dynamic_thresholding_ratio: f64,
    /// The most that it may be.
    #[serde(deserialize_with = "python::float")]
    pub sample_max_value: f64,
    /// The variance of DDPM's noise.
    pub variance_type: Option<Variance>,
    /// The seed of the noise of DPM++ SDE, for all pictures of a batch together. `None` is each picture's own.
    pub noise_sampler_seed: Option<u64>,
    /// How many timesteps LCM and TCD were distilled for.
    pub original_inference_steps: u32,
    /// By what LCM multiplies timesteps in its boundary condition.
    #[serde(deserialize_with = "python::float")]
    pub timestep_scaling: f64,
    /// DPM-Solver leaves out timesteps at which half the logarithm of the signal-to-noise ratio is below this.
    #[serde(deserialize_with = "python::float")]
    pub lambda_min_clipped: f64,
}

impl Default for DiscreteConfig {
    fn default() -> Self {
        DiscreteConfig {
            class_name: String::new(),
            num_train_timesteps: 1000,
            beta_start: None,
            beta_end: None,
            beta_schedule: None,
            trained_betas: None,
            prediction_type: Prediction::Epsilon,
            timestep_spacing: None,
            steps_offset: 0,
            rescale_betas_zero_snr: false,
            clip_sample: None,
            clip_sample_range: 1.0,
            set_alpha_to_one: None,
            skip_prk_steps: false,
            use_karras_sigmas: false,
            use_exponential_sigmas: false,
            use_beta_sigmas: false,
            use_lu_lambdas: false,
            sigma_min: None,
            sigma_max: None,
            final_sigmas_type: FinalSigmas::Zero,
            algorithm_type: None,
            solver_order: 2,
            solver_type: None,
            lower_order_final: None,
            euler_at_final: false,
            predict_x0: true,
            disable_corrector: Vec::new(),
            thresholding: false,
            dynamic_thresholding_ratio: 0.995,
            sample_max_value: 1.0,
            variance_type: None,
            noise_sampler_seed: None,
            original_inference_steps: 50,
            timestep_scaling: 10.0,
            lambda_min_clipped: f64::NEG_INFINITY,
        }
    }
}

/// Flags that change the schedule or the step in ways that are not built.
const UNSUPPORTED_FLAGS: [&str; 3] = ["use_flow_sigmas", "use_dynamic_shifting", "solver_p"];

/// Words that change them, and what does not.
const UNSUPPORTED_WORDS: [(&str, &str, &[&str]); 3] = [
    ("interpolation_type", "linear", &["log_linear"]),
    ("timestep_type", "discrete", &["continuous"]),
    // A learned variance takes a model with twice the channels; the square root of a logarithm is no number.
    ("variance_type", "fixed_small, fixed_small_log or fixed_large", &["learned", "learned_range", "fixed_large_log"]),
];

/// Flags for sigmas; at most one is on.
const EXCLUSIVE: [&str; 3] = ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"];

/// The largest order of a solver that is built. DPM-Solver and DEIS have at most 3.
const MOST_ORDER: u32 = 6;

impl DiscreteConfig {
    /// Stable Diffusion 1.5 as published.
    pub fn stable_diffusion() -> Self {
        DiscreteConfig {
            class_name: "PNDMScheduler".into(),
            beta_start: Some(0.00085),
            beta_end: Some(0.012),
            beta_schedule: Some(BetaSchedule::ScaledLinear),
            steps_offset: 1,
            clip_sample: Some(false),
            set_alpha_to_one: Some(false),
            skip_prk_steps: true,
            ..Self::default()
        }
    }

    /// Reads settings that [`python::settings`] gave. `origin` is for messages.
    pub(super) fn from_settings(settings: Map<String, Value>, origin: &Path) -> Result<Self> {
        for flag in UNSUPPORTED_FLAGS {
            if settings.get(flag).is_some_and(|value| *value != Value::Bool(false)) {
                return Err(Error::mismatch(origin, flag, "false", settings[flag].to_string()));
            }
        }
        for (key, expected, refused) in UNSUPPORTED_WORDS {
            if let Some(word) = settings.get(key).and_then(Value::as_str).filter(|word| refused.contains(word)) {
                return Err(Error::mismatch(origin, key, expected, word));
            }
        }
        let config = Self::deserialize(Value::Object(settings)).map_err(|error| python::malformed(origin, &error))?;
        config.check(origin)?;
        Ok(config)
    }

    fn check(&self, origin: &Path) -> Result<()> {
        let refuse = |at, expected: &str, found: String| Err(Error::mismatch(origin, at, expected, found));
        let count = self.num_train_timesteps;
        if !(2..=MOST_TIMESTEPS).contains(&count) {
            return refuse("num_train_timesteps", &format!("2 to {MOST_TIMESTEPS}"), count.to_string());
        }
        if self.steps_offset >= count {
            return refuse("steps_offset", &format!("less than {count}"), self.steps_offset.to_string());
        }
        let is_beta = |beta: f64| beta > 0.0 && beta < 1.0;
        for (at, beta) in [("beta_start", self.beta_start), ("beta_end", self.beta_end)] {
            if let Some(beta) = beta.filter(|&beta| !is_beta(beta)) {
                return refuse(at, "more than 0 and less than 1", beta.to_string());
            }
        }
        if let Some(betas) = &self.trained_betas {
            if betas.len() != count as usize {
                return refuse("trained_betas", &format!("{count} numbers"), betas.len().to_string());
            }
            if let Some(beta) = betas.iter().find(|&&beta| !is_beta(beta)) {
                return refuse("trained_betas", "numbers above 0 and below 1", beta.to_string());
            }
        }
        for (at, sigma) in [("sigma_min", self.sigma_min), ("sigma_max", self.sigma_max)] {
            if let Some(sigma) = sigma.filter(|sigma| !(sigma.is_finite() && *sigma > 0.0)) {
                return refuse(at, "a number above 0", sigma.to_string());
            }
        }
        if self.lambda_min_clipped.is_nan() {
            return refuse("lambda_min_clipped", "a number", "NaN".into());
        }
        for (at, number) in [
            ("clip_sample_range", self.clip_sample_range),
            ("sample_max_value", self.sample_max_value),
            ("timestep_scaling", self.timestep_scaling),
        ] {
            if number.is_nan() || number < 0.0 {
                return refuse(at, "a number from 0", number.to_string());
            }
        }
        if !(0.0..=1.0).contains(&self.dynamic_thresholding_ratio) {
            return refuse("dynamic_thresholding_ratio", "0 to 1", self.dynamic_thresholding_ratio.to_string());
        }
        self.check_solver(origin)
    }

    /// The settings of DPM-Solver, DEIS, UniPC, LCM and TCD.
    fn check_solver(&self, origin: &Path) -> Result<()> {
        let refuse = |at, expected: &str, found: String| Err(Error::mismatch(origin, at, expected, found));
        let on = [self.use_karras_sigmas, self.use_exponential_sigmas, self.use_beta_sigmas];
        if on.iter().filter(|on| **on).count() > 1 {
            return refuse("use_karras_sigmas", &format!("one of: {}", EXCLUSIVE.join(", ")), "several".into());
        }
        let most = if self.class_name == "UniPCMultistepScheduler" { MOST_ORDER } else { 3 };
        if !(1..=most).contains(&self.solver_order) {
            return refuse("solver_order", &format!("1 to {most}"), self.solver_order.to_string());
        }
        if self.original_inference_steps == 0 {
            return refuse("original_inference_steps", "at least 1", "0".into());
        }
        if self.algorithm_type == Some(Algorithm::Sde) && self.solver_order == 3 {
            return refuse("solver_order", "1 or 2 with algorithm_type sde-dpmsolver", "3".into());
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<DiscreteConfig> {
        let origin = Path::new("scheduler_config.json");
        DiscreteConfig::from_settings(python::settings(text, origin)?, origin)
    }

    #[test]
    fn stable_diffusion_is_what_is_in_its_file() {
        let file = r#"{"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012,
            "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": false,
            "skip_prk_steps": true, "steps_offset": 1, "trained_betas": null, "clip_sample": false}"#;
        assert_eq!(read(file).unwrap(), DiscreteConfig::stable_diffusion());
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        for flag in UNSUPPORTED_FLAGS {
            let error = read(&format!(r#"{{"{flag}": true}}"#)).unwrap_err();
            assert_eq!(error.to_string(), format!("scheduler_config.json: {flag}: expected false, found true"));
            assert!(read(&format!(r#"{{"{flag}": false}}"#)).is_ok());
        }
        for (key, _, refused) in UNSUPPORTED_WORDS {
            for word in refused {
                let error = read(&format!(r#"{{"{key}": "{word}"}}"#)).unwrap_err();
                assert!(matches!(error, Error::Mismatch { at, .. } if at == key));
            }
        }
        assert!(
            read(r#"{"interpolation_type": "linear", "timestep_type": "discrete", "variance_type": "fixed_small"}"#)
                .is_ok()
        );
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        for text in [
            r#"{"num_train_timesteps": 1}"#,
            r#"{"num_train_timesteps": 100001}"#,
            r#"{"steps_offset": 1000}"#,
            r#"{"beta_start": NaN}"#,
            r#"{"beta_start": 0}"#,
            r#"{"beta_end": Infinity}"#,
            r#"{"beta_end": 1.0}"#,
            r#"{"trained_betas": [0.1]}"#,
            r#"{"trained_betas": [0.1, NaN], "num_train_timesteps": 2}"#,
            r#"{"sigma_min": 0}"#,
            r#"{"sigma_max": -Infinity}"#,
            r#"{"lambda_min_clipped": NaN}"#,
            r#"{"clip_sample_range": -1}"#,
            r#"{"sample_max_value": NaN}"#,
            r#"{"dynamic_thresholding_ratio": 1.5}"#,
            r#"{"solver_order": 4}"#,
            r#"{"solver_order": 0}"#,
            r#"{"_class_name": "UniPCMultistepScheduler", "solver_order": 7}"#,
            r#"{"solver_order": 3, "algorithm_type": "sde-dpmsolver"}"#,
            r#"{"original_inference_steps": 0}"#,
            r#"{"use_karras_sigmas": true, "use_beta_sigmas": true}"#,
        ] {
            assert!(matches!(read(text), Err(Error::Mismatch { .. })), "{text}");
        }
        for text in [
            r#"{"beta_start": "low"}"#,
            r#"{"beta_schedule": "sigmoid"}"#,
            r#"{"prediction_type": "flow_prediction"}"#,
            r#"{"timestep_spacing": 3}"#,
            r#"{"steps_offset": -1}"#,
            r#"{"trained_betas": 3}"#,
            r#"{"algorithm_type": "euler"}"#,
            r#"{"solver_type": "rk4"}"#,
            r#"{"variance_type": "small"}"#,
        ] {
            assert!(matches!(read(text), Err(Error::Malformed { .. })), "{text}");
        }
    }
}
