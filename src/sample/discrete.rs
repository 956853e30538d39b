//! Schedules of models that were trained on discrete timesteps, as diffusers' schedulers make them.

use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::betas::{self, BetaSchedule, Training};
use super::levels::{Levels, Space, shares_of};
use super::method::{Method, Rule, SolverType};
use super::prediction::Prediction;
use super::timesteps::{Spaced, Spacing, Table, karras, sigma};
use super::{Sampler, python};
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
    /// The noise that the first timestep adds, a variance.
    #[serde(deserialize_with = "python::float")]
    pub beta_start: f64,
    /// The noise that the last timestep adds, a variance.
    #[serde(deserialize_with = "python::float")]
    pub beta_end: f64,
    /// What lies between the two.
    pub beta_schedule: BetaSchedule,
    /// Instead of these three, the variance of each timestep.
    #[serde(deserialize_with = "python::optional_floats")]
    pub trained_betas: Option<Vec<f64>>,
    /// What the output of the model stands for.
    pub prediction_type: Prediction,
    /// How timesteps are chosen. DDIM and PNDM: leading, the others: linspace.
    pub timestep_spacing: Option<Spacing>,
    /// What is added to leading timesteps.
    pub steps_offset: u32,
    /// Whether betas are bent so that the last timestep is noise alone. PNDM passes it over.
    pub rescale_betas_zero_snr: bool,
    /// Whether DDIM cuts predicted latents to a range. DDIM: true.
    pub clip_sample: Option<bool>,
    /// That range, on both sides of 0.
    #[serde(deserialize_with = "python::float")]
    pub clip_sample_range: f64,
    /// Whether the step from the first timestep ends at the picture. DDIM: true, PNDM: false.
    pub set_alpha_to_one: Option<bool>,
    /// Whether PNDM begins without Runge-Kutta steps. pinhole's always does.
    pub skip_prk_steps: bool,
    /// Whether sigmas are those of Karras et al., 2022. DPM-Solver: then `dpm++_2m_karras` is the model's sampler.
    pub use_karras_sigmas: bool,
    /// The least of Karras's sigmas, instead of the schedule's own.
    #[serde(deserialize_with = "python::optional_float")]
    pub sigma_min: Option<f64>,
    /// The largest of Karras's sigmas, instead of the schedule's own.
    #[serde(deserialize_with = "python::optional_float")]
    pub sigma_max: Option<f64>,
    /// What the last sigma is, for Euler and DPM-Solver.
    pub final_sigmas_type: FinalSigmas,
    /// DPM-Solver's variant: `dpmsolver++` is built.
    pub algorithm_type: String,
    /// DPM-Solver's order: 2 is built.
    pub solver_order: u32,
    /// How DPM-Solver uses the prediction before.
    pub solver_type: SolverType,
    /// Whether DPM-Solver's last step is of first order if there are fewer than 15.
    pub lower_order_final: bool,
    /// Whether DPM-Solver's last step is of first order.
    pub euler_at_final: bool,
    /// DPM-Solver leaves out timesteps at which half the logarithm of the signal-to-noise ratio is below this.
    #[serde(deserialize_with = "python::float")]
    pub lambda_min_clipped: f64,
}

impl Default for DiscreteConfig {
    fn default() -> Self {
        DiscreteConfig {
            class_name: String::new(),
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
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
            sigma_min: None,
            sigma_max: None,
            final_sigmas_type: FinalSigmas::Zero,
            algorithm_type: "dpmsolver++".into(),
            solver_order: 2,
            solver_type: SolverType::Midpoint,
            lower_order_final: true,
            euler_at_final: false,
            lambda_min_clipped: f64::NEG_INFINITY,
        }
    }
}

/// Flags that change the schedule or the step in ways that are not built.
const UNSUPPORTED_FLAGS: [&str; 6] = [
    "thresholding",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "use_flow_sigmas",
    "use_dynamic_shifting",
];

/// Words that change them, and the one that does not.
const UNSUPPORTED_WORDS: [(&str, &str, &[&str]); 3] = [
    ("interpolation_type", "linear", &["log_linear"]),
    ("timestep_type", "discrete", &["continuous"]),
    ("variance_type", "a fixed variance", &["learned", "learned_range"]),
];

impl DiscreteConfig {
    /// Stable Diffusion 1.5 as published.
    pub fn stable_diffusion() -> Self {
        DiscreteConfig {
            class_name: "PNDMScheduler".into(),
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
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
            if !is_beta(beta) {
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
        if self.clip_sample_range.is_nan() || self.clip_sample_range < 0.0 {
            return refuse("clip_sample_range", "a number from 0", self.clip_sample_range.to_string());
        }
        Ok(())
    }

    /// The levels of a request for `sampler`, which is one of [`Sampler::DISCRETE`].
    ///
    /// # Errors
    ///
    /// [`Error::Option`] if `steps` is 0 or more than there are timesteps of training, or the sampler has no rule for
    /// what the model predicts; [`Error::NotFinite`] if a timestep is noise alone and that has no solution.
    pub fn levels(&self, sampler: Sampler, steps: usize) -> Result<Levels> {
        let most = self.num_train_timesteps as usize;
        if !(1..=most).contains(&steps) {
            return Err(Error::option("--steps", format!("1 to {most}"), steps.to_string()));
        }
        if !sampler.takes(self.prediction_type) {
            let known: Vec<Sampler> =
                Sampler::DISCRETE.iter().copied().filter(|other| other.takes(self.prediction_type)).collect();
            let found = format!("`{sampler}` for a model that predicts pictures");
            return Err(Error::option("--sampler", Sampler::list(&known), found));
        }
        match sampler {
            Sampler::Ddim | Sampler::Pndm => self.whole_levels(sampler, steps),
            Sampler::Euler | Sampler::EulerAncestral => self.euler_levels(sampler, steps),
            Sampler::Dpm2m | Sampler::Dpm2mKarras => self.dpm_levels(sampler, steps),
        }
    }

    /// `alphas_cumprod`, for samplers that count in timesteps or, `finite`, in sigmas.
    fn alphas(&self, rescale: bool, finite: bool) -> Vec<f32> {
        let mut betas = match &self.trained_betas {
            Some(betas) => betas.iter().map(|&beta| beta as f32).collect(),
            None => betas::betas(self.beta_schedule, self.beta_start, self.beta_end, self.num_train_timesteps as usize),
        };
        if rescale {
            betas::rescale_to_zero_snr(&mut betas);
        }
        let mut alphas = betas::cumulative(&betas);
        if rescale && finite {
            betas::keep_above_zero(&mut alphas);
        }
        alphas
    }

    fn spaced(&self, steps: usize, default: Spacing) -> Spaced {
        Spaced {
            spacing: self.timestep_spacing.unwrap_or(default),
            training: self.num_train_timesteps as usize,
            offset: self.steps_offset as usize,
            steps,
        }
    }

    /// DDIM and PNDM: whole timesteps.
    fn whole_levels(&self, sampler: Sampler, steps: usize) -> Result<Levels> {
        let is_ddim = sampler == Sampler::Ddim;
        let alphas: Arc<[f32]> = self.alphas(self.rescale_betas_zero_snr && is_ddim, false).into();
        let last = if self.set_alpha_to_one.unwrap_or(is_ddim) { 1.0 } else { alphas[0] };
        let training = Training { alphas, last, stride: i64::from(self.num_train_timesteps) / steps as i64 };
        let mut times: Vec<f32> =
            self.spaced(steps, Spacing::Leading).times().iter().map(|time| time.round_ties_even() as f32).collect();
        if !is_ddim && times.len() > 1 {
            times.insert(1, times[1]);
        }
        let (mut sigmas, mut shares) = (Vec::new(), Vec::new());
        for &time in &times {
            let alpha = training.alpha(time as i64)?;
            if alpha == 0.0 && self.prediction_type == Prediction::Epsilon {
                return Err(Error::NotFinite {
                    at: format!("sigma at timestep {time}"),
                    hint: Some("with rescale_betas_zero_snr a model must predict v".into()),
                });
            }
            sigmas.push(sigma(alpha));
            shares.push([alpha.sqrt(), (1.0 - alpha).sqrt()]);
        }
        sigmas.push(sigma(last));
        let method = if is_ddim {
            let clips = self.clip_sample.unwrap_or(true);
            Method::Ddim(training, clips.then_some(self.clip_sample_range as f32))
        } else {
            Method::Pndm(training)
        };
        Ok(self.made(sampler, steps, Space::Alphas, times, sigmas, shares, method, 1.0))
    }

    /// Both of Euler's: timesteps that need not be whole.
    fn euler_levels(&self, sampler: Sampler, steps: usize) -> Result<Levels> {
        let alphas = self.alphas(self.rescale_betas_zero_snr, true);
        let (table, spaced) = (Table::new(&alphas), self.spaced(steps, Spacing::Linspace));
        let mut times: Vec<f32> = spaced.times().iter().map(|&time| time as f32).collect();
        let mut exact: Vec<f64> = times.iter().map(|&time| table.sigma_at(f64::from(time))).collect();
        let (mut last, mut method) = (0.0, Method::Ancestral);
        if sampler == Sampler::Euler {
            method = Method::Euler;
            if self.use_karras_sigmas {
                exact = karras(self.karras_ends([exact[exact.len() - 1], exact[0]]), steps);
                times = exact.iter().map(|&sigma| table.time_at(sigma) as f32).collect();
            }
            last = self.last_sigma(&table);
        }
        let sigmas = rounded(&exact, last);
        let most = sigmas.iter().copied().fold(0.0, f32::max);
        let start = match spaced.spacing {
            Spacing::Linspace | Spacing::Trailing => most,
            Spacing::Leading => (most * most + 1.0).sqrt(),
        };
        let shares = sigmas.iter().map(|&sigma| [1.0, sigma]).collect();
        finite(self.made(sampler, steps, Space::Sigmas, times, sigmas, shares, method, start))
    }

    /// DPM-Solver: whole timesteps, and sigmas that need not be theirs.
    fn dpm_levels(&self, sampler: Sampler, steps: usize) -> Result<Levels> {
        let alphas = self.alphas(self.rescale_betas_zero_snr, true);
        let table = Table::new(&alphas);
        let (times, exact): (Vec<f64>, Vec<f64>) = if sampler == Sampler::Dpm2mKarras {
            let sigmas = karras(self.karras_ends(table.ends()), steps);
            (sigmas.iter().map(|&sigma| self.whole_time(table.time_at(sigma))).collect(), sigmas)
        } else {
            let used = alphas.iter().rposition(|&alpha| f64::from(lambda(alpha)) >= self.lambda_min_clipped);
            let times = self.spaced(steps, Spacing::Linspace).times_of_dpm(used.map_or(1, |last| last + 1));
            let sigmas = times.iter().map(|&time| table.sigma_at(time)).collect();
            (times, sigmas)
        };
        let sigmas = rounded(&exact, self.last_sigma(&table));
        let rule = Rule {
            solver_type: self.solver_type,
            first_order_last: self.euler_at_final || self.final_sigmas_type == FinalSigmas::Zero,
            lower_order_final: self.lower_order_final,
        };
        let times = times.iter().map(|&time| time as f32).collect();
        let shares = sigmas.iter().map(|&sigma| shares_of(sigma)).collect();
        finite(self.made(sampler, steps, Space::Alphas, times, sigmas, shares, Method::Dpm2m(rule), 1.0))
    }

    fn karras_ends(&self, [least, most]: [f64; 2]) -> [f64; 2] {
        [self.sigma_min.unwrap_or(least), self.sigma_max.unwrap_or(most)]
    }

    /// DPM-Solver rounds the timesteps of Karras's sigmas, except under the cosine schedule, where it cuts them off.
    fn whole_time(&self, time: f64) -> f64 {
        if self.beta_schedule == BetaSchedule::Cosine { time.trunc() } else { time.round_ties_even() }
    }

    fn last_sigma(&self, table: &Table) -> f64 {
        match self.final_sigmas_type {
            FinalSigmas::Zero => 0.0,
            FinalSigmas::SigmaMin => table.ends()[0],
        }
    }

    #[allow(clippy::too_many_arguments)] // each is a field
    fn made(
        &self,
        sampler: Sampler,
        steps: usize,
        space: Space,
        times: Vec<f32>,
        sigmas: Vec<f32>,
        shares: Vec<[f32; 2]>,
        method: Method,
        start: f32,
    ) -> Levels {
        let predicts = self.prediction_type;
        Levels { times, sigmas, space, predicts, sampler, shares, method, start, steps, skipped: 0 }
    }
}

/// Half the logarithm of the signal-to-noise ratio.
fn lambda(alpha: f32) -> f32 {
    let log = |x: f32| f64::from(x).ln() as f32;
    log(alpha.sqrt()) - log((1.0 - alpha).sqrt())
}

fn rounded(sigmas: &[f64], last: f64) -> Vec<f32> {
    sigmas.iter().chain([&last]).map(|&sigma| sigma as f32).collect()
}

/// Refuses levels at which numbers are not finite.
fn finite(levels: Levels) -> Result<Levels> {
    if levels.times.iter().chain(&levels.sigmas).all(|number| number.is_finite()) {
        return Ok(levels);
    }
    let at = format!("the schedule of {} steps for {}", levels.steps, levels.sampler);
    Err(Error::NotFinite { at, hint: Some("the scheduler's betas leave nothing of the picture, or no noise".into()) })
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
        ] {
            assert!(matches!(read(text), Err(Error::Malformed { .. })), "{text}");
        }
    }

    #[test]
    fn steps_have_limits() {
        let config = DiscreteConfig::stable_diffusion();
        for &sampler in Sampler::DISCRETE {
            for steps in [0, 1001, usize::MAX] {
                let error = config.levels(sampler, steps).unwrap_err();
                assert_eq!(error.to_string(), format!("--steps: expected 1 to 1000, found {steps}"));
            }
            for steps in [1, 2, 499] {
                let wanted = steps + usize::from(sampler == Sampler::Pndm && steps > 1);
                let levels = config.levels(sampler, steps).unwrap();
                assert_eq!((levels.len(), levels.sigmas.len()), (wanted, wanted + 1), "{sampler}, {steps} steps");
            }
        }
    }

    #[test]
    fn a_picture_is_not_predicted_for_every_sampler() {
        let config = DiscreteConfig { prediction_type: Prediction::Sample, ..DiscreteConfig::default() };
        let error = config.levels(Sampler::Pndm, 5).unwrap_err();
        let wanted = "--sampler: expected one of: euler, ddim, dpm++_2m, dpm++_2m_karras, found `pndm` for a model that \
                      predicts pictures";
        assert_eq!(error.to_string(), wanted);
    }

    #[test]
    fn noise_alone_has_no_epsilon() {
        let config = DiscreteConfig {
            rescale_betas_zero_snr: true,
            timestep_spacing: Some(Spacing::Trailing),
            ..DiscreteConfig::default()
        };
        assert!(matches!(config.levels(Sampler::Ddim, 5), Err(Error::NotFinite { .. })));
        assert!(config.levels(Sampler::Euler, 5).is_ok());
    }

    #[test]
    fn betas_that_leave_nothing_are_an_error() {
        let config = DiscreteConfig { beta_start: 0.9, beta_end: 0.99, ..DiscreteConfig::default() };
        assert!(matches!(config.levels(Sampler::Euler, 5), Err(Error::NotFinite { .. })));
        assert!(matches!(config.levels(Sampler::Dpm2m, 5), Err(Error::NotFinite { .. })));
    }
}
