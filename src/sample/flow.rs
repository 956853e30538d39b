//! Sigma schedules of flow-matching models, as diffusers' `FlowMatchEulerDiscreteScheduler` makes them, and for samplers with
//! schedules of their own, their classes with `use_flow_sigmas`.
//!
//! Sigma is the share of noise in the latents: 1 is noise alone, 0 the finished picture. The operations, their order
//! and their precision are diffusers': a linear schedule in double precision, rounded to f32, then everything in f32.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::clip::Clip;
use super::config::DiscreteConfig;
use super::levels::{Levels, Space};
use super::log_snr_levels::Shift;
use super::method::Method;
use super::sampler::{FLOW_CLASSES, FLOW_SIGMAS};
use super::timesteps::{between, respaced};
use super::{Chosen, Sampler, python};
use crate::{Error, Result};

/// The most steps a request can have. Published schedules have at most a thousand; work done once per step is held
/// for all of them, so a slip of the finger must not become an allocation.
pub const MAX_STEPS: usize = 10_000;

/// What these then predict.
const FLOW_PREDICTION: &str = "flow_prediction";

/// By what a diffusers pipeline divides a timestep for the transformer, whatever `num_train_timesteps` says.
const TIMESTEP_SCALE: f32 = 1000.0;

/// How a schedule is bent towards noise when it depends on the size of the picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeShift {
    /// `e^mu / (e^mu + 1/sigma - 1)`.
    #[default]
    Exponential,
    /// `mu / (mu + 1/sigma - 1)`.
    Linear,
}

/// What a `scheduler_config.json` says, with diffusers' defaults where it says nothing.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct FlowMatchConfig {
    /// How many timesteps sigma 0..1 was divided into in training.
    pub num_train_timesteps: u32,
    /// The shift `k` of `k sigma / (1 + (k - 1) sigma)`. Counts only without `use_dynamic_shifting`, except for Heun's method,
    /// which knows no other.
    pub shift: f64,
    /// The same by its name in UniPC's, DPM-Solver's and DEIS's configurations.
    pub flow_shift: Option<f64>,
    /// Whether the shift depends on how many image tokens there are.
    pub use_dynamic_shifting: bool,
    /// `mu` at `base_image_seq_len` image tokens.
    pub base_shift: f64,
    /// `mu` at `max_image_seq_len` image tokens.
    pub max_shift: f64,
    /// Image tokens of the smallest picture.
    pub base_image_seq_len: u32,
    /// Image tokens of the largest picture; beyond it `mu` goes on along the same line.
    pub max_image_seq_len: u32,
    /// The formula of a dynamic shift.
    pub time_shift_type: TimeShift,
    /// Where the schedule is stretched so that its last sigma before 0 has this value.
    pub shift_terminal: Option<f64>,
    /// Whether fresh noise lies under each predicted picture: what [`Sampler::Lcm`] does.
    pub stochastic_sampling: bool,
    /// Whether `mu` follows the number of steps as well, by a line that its publisher fitted: no configuration says so.
    #[serde(skip)]
    pub empirical_shift: bool,
    /// Whether sigmas are spaced evenly between the ends of those of training, which are shifted when they are made, and again: what the
    /// scheduler does if a pipeline does not say where they are. No configuration says so.
    #[serde(skip)]
    pub spaced_by_training: bool,
    /// What the configuration says besides, for UniPC, DPM-Solver and DEIS.
    #[serde(skip)]
    pub solver: DiscreteConfig,
}

impl Default for FlowMatchConfig {
    fn default() -> Self {
        FlowMatchConfig {
            num_train_timesteps: 1000,
            shift: 1.0,
            flow_shift: None,
            use_dynamic_shifting: false,
            base_shift: 0.5,
            max_shift: 1.15,
            base_image_seq_len: 256,
            max_image_seq_len: 4096,
            time_shift_type: TimeShift::Exponential,
            shift_terminal: None,
            stochastic_sampling: false,
            empirical_shift: false,
            spaced_by_training: false,
            solver: DiscreteConfig::default(),
        }
    }
}

/// Settings that change the schedule or the step in ways that are not built, and the only value that is.
const UNSUPPORTED: [(&str, &str); 4] =
    [("invert_sigmas", "false"), ("scale_factors", "[]"), ("eta", "1.0"), ("s_noise", "1.0")];

/// Refuses classes that follow no flow, and what is not built.
fn check_supported(settings: &Map<String, Value>, origin: &Path) -> Result<()> {
    let class = settings.get("_class_name").and_then(Value::as_str).unwrap_or(FLOW_CLASSES[0].0);
    let is_flow_alone = FLOW_CLASSES.iter().any(|(known, _)| *known == class);
    if !is_flow_alone && !FLOW_SIGMAS.iter().any(|(known, _)| *known == class) {
        let known: Vec<&str> = FLOW_CLASSES.iter().chain(&FLOW_SIGMAS).map(|(class, _)| *class).collect();
        return Err(Error::mismatch(origin, "_class_name", format!("one of: {}", known.join(", ")), class));
    }
    for (key, only) in UNSUPPORTED {
        if let Some(value) = settings.get(key).map(Value::to_string).filter(|value| value != only && value != "1") {
            return Err(Error::mismatch(origin, key, only, value));
        }
    }
    let predicts = settings.get("prediction_type").and_then(Value::as_str).unwrap_or("epsilon");
    if !is_flow_alone && predicts != FLOW_PREDICTION {
        let error = Error::mismatch(origin, "prediction_type", FLOW_PREDICTION, predicts);
        return Err(error.with_hint("use_flow_sigmas is for models that predict a flow"));
    }
    Ok(())
}

impl FlowMatchConfig {
    /// The defaults, sampled as a class of UniPC's, DPM-Solver's or DEIS's is that predicts a flow.
    pub fn of_solver(sampler: Sampler) -> Self {
        let class = FLOW_SIGMAS.iter().find(|(_, known)| *known == sampler);
        let class_name = class.map_or(FLOW_CLASSES[0].0, |(class, _)| class).to_owned();
        let solver = DiscreteConfig { class_name, ..DiscreteConfig::default() };
        FlowMatchConfig { solver, ..FlowMatchConfig::default() }
    }

    /// Reads the text of a `scheduler_config.json`. `origin`, the file that the text came from, is for messages. Keys
    /// that mean nothing here are passed over; a `null` stands for the default.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] where the text is no JSON object or a value has another type, [`Error::Mismatch`] where
    /// it names another scheduler, switches on what is not supported, or holds a number that no schedule can come of.
    pub fn from_json(text: &str, origin: &Path) -> Result<Self> {
        Self::from_settings(python::settings(text, origin)?, origin)
    }

    /// Reads settings that [`python::settings`] gave.
    pub(super) fn from_settings(mut settings: Map<String, Value>, origin: &Path) -> Result<Self> {
        check_supported(&settings, origin)?;
        let config = Self::deserialize(&Value::Object(settings.clone()));
        let mut config = config.map_err(|error| python::malformed(origin, &error))?;
        config.check(origin)?;
        for known in ["use_flow_sigmas", "use_dynamic_shifting", "prediction_type"] {
            settings.remove(known);
        }
        config.solver = DiscreteConfig::from_settings(settings, origin)?;
        Ok(config)
    }

    /// Whether settings of a class that also does without are those of a flow.
    pub(super) fn is_in(settings: &Map<String, Value>) -> bool {
        let class = settings.get("_class_name").and_then(Value::as_str).unwrap_or_default();
        FLOW_CLASSES.iter().any(|(known, _)| *known == class)
            || FLOW_SIGMAS.iter().any(|(known, _)| *known == class)
                && settings.get("use_flow_sigmas") == Some(&Value::Bool(true))
    }

    /// The sampler that the configuration names.
    pub(super) fn sampler(&self) -> Sampler {
        let class = self.solver.class_name.as_str();
        let known = FLOW_CLASSES.iter().chain(&FLOW_SIGMAS).find(|(known, _)| *known == class);
        match known.map_or(Sampler::Euler, |(_, sampler)| *sampler) {
            Sampler::Euler if self.stochastic_sampling => Sampler::Lcm,
            Sampler::Dpm2m if self.solver.algorithm_type.unwrap_or_default().draws() => Sampler::Dpm2mSde,
            sampler => sampler,
        }
    }

    /// The shift that does not depend on the picture.
    fn fixed_shift(&self) -> f64 {
        self.flow_shift.unwrap_or(self.shift)
    }

    fn check(&self, origin: &Path) -> Result<()> {
        let refuse = |at, expected: &str, found: String| Err(Error::mismatch(origin, at, expected, found));
        if self.num_train_timesteps == 0 {
            return refuse("num_train_timesteps", "at least 1", "0".into());
        }
        for (at, shift) in [("shift", Some(self.shift)), ("flow_shift", self.flow_shift)] {
            if let Some(shift) = shift.filter(|shift| !(shift.is_finite() && *shift > 0.0)) {
                return refuse(at, "a number above 0", shift.to_string());
            }
        }
        for (at, mu) in [("base_shift", self.base_shift), ("max_shift", self.max_shift)] {
            if !mu.is_finite() {
                return refuse(at, "a finite number", mu.to_string());
            }
        }
        if self.base_image_seq_len >= self.max_image_seq_len {
            let expected = format!("more than base_image_seq_len, {}", self.base_image_seq_len);
            return refuse("max_image_seq_len", &expected, self.max_image_seq_len.to_string());
        }
        match self.shift_terminal {
            Some(last) if !(0.0..1.0).contains(&last) => refuse("shift_terminal", "0 to less than 1", last.to_string()),
            _ => Ok(()),
        }
    }

    /// The `steps + 1` sigmas of a request for Euler's method: from 1 (or just below) down to the last, and then 0.
    /// `image_tokens` is how many tokens the transformer has for the picture.
    ///
    /// # Errors
    ///
    /// [`Error::Option`] where `steps` is 0 or above [`MAX_STEPS`], or is 1 in a schedule that is stretched between
    /// its ends; [`Error::NotFinite`] if the shift overflows: one that grows with the picture does above half a
    /// million tokens.
    pub fn sigmas(&self, steps: usize, image_tokens: usize) -> Result<Vec<f32>> {
        Ok(self.levels(&Sampler::Euler.into(), steps, image_tokens)?.sigmas)
    }

    fn spaced_sigmas(&self, chosen: &Chosen, steps: usize, image_tokens: usize) -> Result<Vec<f32>> {
        let mut sigmas = chosen
            .sigmas
            .clone()
            .unwrap_or_else(|| if self.spaced_by_training { self.between_ends(steps) } else { linear(steps) });
        if chosen.sigmas.is_none() || chosen.sampler != Sampler::EulerAncestral {
            self.apply_shift(&mut sigmas, steps, image_tokens);
            if let Some(last) = self.terminal() {
                stretch_to(&mut sigmas, last as f32);
            }
        }
        let ends = [sigmas[sigmas.len() - 1], sigmas[0]].map(f64::from);
        if let Some(respaced) = respaced(chosen.schedule, ends, sigmas.len()) {
            sigmas = respaced.into_iter().map(|sigma| sigma as f32).collect();
        }
        sigmas.push(0.0);
        finite(&sigmas, steps, image_tokens)?;
        Ok(sigmas)
    }

    /// The levels of a request for a sampler of [`Sampler::FLOW`], over a schedule that it can follow.
    ///
    /// # Errors
    ///
    /// As [`FlowMatchConfig::sigmas`]; [`Error::Option`] if there are as many sigmas as another number than `steps`, or one
    /// is above 1, or the sampler has no rule for another setting.
    pub fn levels(&self, chosen: &Chosen, steps: usize, image_tokens: usize) -> Result<Levels> {
        if let Some(shift) = chosen.shift {
            let chosen = Chosen { shift: None, ..chosen.clone() };
            return self.shifted_by(shift).levels(&chosen, steps, image_tokens);
        }
        let least = if self.terminal().is_some() && chosen.sampler != Sampler::Heun { 2 } else { 1 };
        if !(least..=MAX_STEPS).contains(&steps) {
            return Err(Error::option("--steps", format!("{least} to {MAX_STEPS}"), steps.to_string()));
        }
        if let Some(sigmas) = &chosen.sigmas {
            if sigmas.len() != steps {
                let expected = format!("{}, as many as --sigmas", sigmas.len());
                return Err(Error::option("--steps", expected, steps.to_string()));
            }
            if sigmas[0] > 1.0 {
                return Err(Error::option("--sigmas", "at most 1 along a flow", sigmas[0].to_string()));
            }
        }
        let method = match chosen.sampler {
            Sampler::EulerAncestral => Method::FlowAncestral,
            Sampler::Lcm => Method::FlowLcm,
            Sampler::Heun => return self.heun_levels(steps),
            Sampler::Euler => Method::Euler,
            _ => return self.solver_levels(chosen, steps, image_tokens),
        };
        let sigmas = self.spaced_sigmas(chosen, steps, image_tokens)?;
        let times = sigmas[..steps].iter().map(|&sigma| self.timestep(sigma)).collect();
        Ok(Levels::new(chosen.sampler, method, times, sigmas, Space::Flow))
    }

    /// The same with `shift` for all sizes of pictures, and a schedule that is not stretched.
    fn shifted_by(&self, shift: f32) -> FlowMatchConfig {
        let shift = f64::from(shift);
        FlowMatchConfig { shift, flow_shift: None, use_dynamic_shifting: false, shift_terminal: None, ..self.clone() }
    }

    /// UniPC, DPM-Solver and DEIS.
    fn solver_levels(&self, chosen: &Chosen, steps: usize, image_tokens: usize) -> Result<Levels> {
        let mu = self.use_dynamic_shifting.then(|| self.mu(steps, image_tokens));
        if mu.is_some() && self.time_shift_type == TimeShift::Linear && chosen.sampler != Sampler::UniPc {
            let expected = "a model with a time_shift_type of exponential";
            return Err(Error::option("--sampler", expected, format!("`{}` for linear", chosen.sampler)));
        }
        let shift =
            Shift { fixed: self.fixed_shift(), dynamic: mu.map(|mu| self.weight(mu)), terminal: self.terminal() };
        let levels = self.solver.log_snr_levels(chosen, steps, Some(shift))?;
        finite(&levels.sigmas, steps, image_tokens)?;
        Ok(levels)
    }

    /// Sigmas evenly between the ends of those of training.
    fn between_ends(&self, steps: usize) -> Vec<f32> {
        let training = f64::from(self.num_train_timesteps);
        let (shift, less_one) = match self.use_dynamic_shifting {
            true => (1.0, 0.0),
            false => (self.fixed_shift() as f32, (self.fixed_shift() - 1.0) as f32),
        };
        let ends = [1.0, (1.0 / training) as f32]
            .map(|sigma: f32| f64::from(shift * sigma / (1.0 + less_one * sigma)) * training);
        between(ends[0], ends[1], steps).into_iter().map(|time| (time / training) as f32).collect()
    }

    /// Heun's method: between sigmas of training, which are shifted when they are made, and again.
    fn heun_levels(&self, steps: usize) -> Result<Levels> {
        let (shift, less_one) = (self.fixed_shift() as f32, (self.fixed_shift() - 1.0) as f32);
        let count = self.num_train_timesteps as f32;
        let of_training = |time: f32| f64::from(shift * (time / count) / (1.0 + less_one * (time / count)));
        let training = f64::from(self.num_train_timesteps);
        let [first, last] = [of_training(count), of_training(1.0)].map(|sigma| sigma * training);
        let mut sigmas: Vec<f32> = Vec::with_capacity(steps);
        for time in between(first, last, steps) {
            let sigma = time / training;
            sigmas.push((self.fixed_shift() * sigma / (1.0 + (self.fixed_shift() - 1.0) * sigma)) as f32);
        }
        let (mut doubled, mut times) = (Vec::new(), Vec::new());
        for (k, &sigma) in sigmas.iter().enumerate() {
            let twice = if k == 0 { 1 } else { 2 };
            doubled.extend(std::iter::repeat_n(sigma, twice));
            times.extend(std::iter::repeat_n(self.timestep(sigma), twice));
        }
        // The last step has one evaluation, and no noise is left after it.
        doubled.push(0.0);
        let levels = Levels::new(Sampler::Heun, Method::Heun(Clip::None), times, doubled, Space::Flow);
        Ok(Levels { steps, ..levels })
    }

    /// What the transformer is given as its timestep at `sigma`, again in 0..=1: the scheduler multiplies by
    /// `num_train_timesteps`, the pipeline divides by 1000, each rounded to f32. The embedding then multiplies by 1000.
    pub fn timestep(&self, sigma: f32) -> f32 {
        sigma * self.num_train_timesteps as f32 / TIMESTEP_SCALE
    }

    /// diffusers takes a `shift_terminal` of 0 for none.
    fn terminal(&self) -> Option<f64> {
        self.shift_terminal.filter(|&last| last != 0.0)
    }

    /// `mu`, on the line through (`base_image_seq_len`, `base_shift`) and (`max_image_seq_len`, `max_shift`), or as fitted.
    fn mu(&self, steps: usize, image_tokens: usize) -> f64 {
        if self.empirical_shift {
            return empirical_mu(steps, image_tokens);
        }
        let base = f64::from(self.base_image_seq_len);
        let slope = (self.max_shift - self.base_shift) / (f64::from(self.max_image_seq_len) - base);
        image_tokens as f64 * slope + (self.base_shift - slope * base)
    }

    fn weight(&self, mu: f64) -> f64 {
        match self.time_shift_type {
            TimeShift::Exponential => mu.exp(),
            TimeShift::Linear => mu,
        }
    }

    fn apply_shift(&self, sigmas: &mut [f32], steps: usize, image_tokens: usize) {
        if self.use_dynamic_shifting {
            let weight = self.weight(self.mu(steps, image_tokens)) as f32;
            sigmas.iter_mut().for_each(|sigma| *sigma = weight / (weight + (1.0 / *sigma - 1.0)));
        } else {
            let (shift, less_one) = (self.fixed_shift() as f32, (self.fixed_shift() - 1.0) as f32);
            sigmas.iter_mut().for_each(|sigma| *sigma = shift * *sigma / (1.0 + less_one * *sigma));
        }
    }
}

/// `mu` as diffusers' `compute_empirical_mu` has it: for each number of tokens on a line through that of 10 steps and that of 200
/// steps, and from so many tokens on that of 200 steps.
fn empirical_mu(steps: usize, image_tokens: usize) -> f64 {
    const MANY_TOKENS: usize = 4300;
    let tokens = image_tokens as f64;
    let (of_200, of_10) = (0.00016927 * tokens + 0.45666666, 8.73809524e-05 * tokens + 1.89833333);
    if image_tokens > MANY_TOKENS {
        return of_200;
    }
    let slope = (of_200 - of_10) / 190.0;
    slope * steps as f64 + (of_200 - 200.0 * slope)
}

/// Refuses sigmas that are no numbers.
fn finite(sigmas: &[f32], steps: usize, image_tokens: usize) -> Result<()> {
    if sigmas.iter().all(|sigma| sigma.is_finite()) {
        return Ok(());
    }
    let at = format!("the schedule of {steps} steps for {image_tokens} image tokens");
    Err(Error::NotFinite { at, hint: Some("the shift that the model asks for is too large for this size".into()) })
}

/// `numpy.linspace(1, 1 / steps, steps)`, rounded to f32: each value is a multiple of the step, and the last is set.
fn linear(steps: usize) -> Vec<f32> {
    let last = 1.0 / steps as f64;
    let step = (last - 1.0) / (steps as f64 - 1.0).max(1.0);
    let mut sigmas: Vec<f32> = (0..steps).map(|i| (i as f64 * step + 1.0) as f32).collect();
    if steps > 1 {
        sigmas[steps - 1] = last as f32;
    }
    sigmas
}

/// Stretches 1 - sigma so that the schedule ends at `last` (diffusers' `stretch_shift_to_terminal`).
fn stretch_to(sigmas: &mut [f32], last: f32) {
    let Some(&end) = sigmas.last() else { return };
    let scale = (1.0 - end) / (1.0 - last);
    sigmas.iter_mut().for_each(|sigma| *sigma = 1.0 - (1.0 - *sigma) / scale);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::reference::SCHEDULES;
    use super::*;

    /// With a shift that grows with the picture.
    fn shifted() -> FlowMatchConfig {
        FlowMatchConfig { shift: 3.0, use_dynamic_shifting: true, ..FlowMatchConfig::default() }
    }

    /// Of diffusers' `compute_empirical_mu`.
    #[test]
    fn a_fitted_shift_follows_tokens_and_steps() {
        for (tokens, steps, mu) in [
            (35, 4, 1.9468274702813895f64),
            (4096, 4, 2.291179894115571),
            (4096, 50, 2.0233511571292637),
            (4300, 28, 2.170851489658105),
            (4301, 28, 1.18469693),
            (6400, 4, 1.53999466),
        ] {
            let config = FlowMatchConfig { empirical_shift: true, ..shifted() };
            assert!((config.mu(steps, tokens) - mu).abs() < 1e-12, "{tokens} {steps}");
            let first = mu.exp() as f32;
            let sigmas = config.sigmas(steps, tokens).unwrap();
            let second = 1.0 - 1.0 / steps as f32;
            assert!((sigmas[1] - first / (first + 1.0 / second - 1.0)).abs() < 1e-6 && sigmas[0] == 1.0);
        }
    }

    fn read(text: &str) -> Result<FlowMatchConfig> {
        FlowMatchConfig::from_json(text, Path::new("scheduler_config.json"))
    }

    #[test]
    fn a_shift_that_is_told_holds_for_all_sizes() {
        let config = FlowMatchConfig { shift_terminal: Some(0.02), ..shifted() };
        let chosen = Chosen { shift: Some(3.0), ..Sampler::Euler.into() };
        let plain = FlowMatchConfig { shift: 3.0, ..FlowMatchConfig::default() };
        for tokens in [256, 4096] {
            let expected = plain.levels(&Sampler::Euler.into(), 4, tokens).unwrap().sigmas;
            assert_eq!(config.levels(&chosen, 4, tokens).unwrap().sigmas, expected);
        }
        // What a dynamic shift with mu = ln 3 on both ends makes.
        let same = FlowMatchConfig { base_shift: 3f64.ln(), max_shift: 3f64.ln(), ..shifted() };
        let (fixed, dynamic) = (config.levels(&chosen, 4, 256).unwrap().sigmas, same.sigmas(4, 256).unwrap());
        assert!(fixed.iter().zip(&dynamic).all(|(one, other)| (one - other).abs() < 1e-6), "{fixed:?} {dynamic:?}");
    }

    #[test]
    fn schedules_equal_diffusers_to_the_bit() {
        for case in SCHEDULES {
            let config = read(case.config).unwrap();
            let sigmas = config.sigmas(case.steps, case.image_tokens).unwrap();
            assert_eq!(sigmas, case.sigmas, "{}", case.name);
            let embedded: Vec<f32> =
                sigmas[..case.steps].iter().map(|&sigma| config.timestep(sigma) * 1000.0).collect();
            assert_eq!(embedded, case.embedded, "{}", case.name);
        }
    }

    #[test]
    fn published_schedules_are_the_ones_in_their_files() {
        let file = r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.30.0.dev0",
            "base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15,
            "num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": true}"#;
        let mut wanted = shifted();
        wanted.solver.class_name = FLOW_CLASSES[0].0.into();
        assert_eq!(read(file).unwrap(), wanted);
        assert_eq!(read(r#"{"shift": 1.0, "shift_terminal": null}"#).unwrap(), FlowMatchConfig::default());
        assert_eq!(read("{}").unwrap(), FlowMatchConfig::default());
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        for (key, value, only) in [
            ("invert_sigmas", "true", "false"),
            ("scale_factors", "[0.5]", "[]"),
            ("eta", "0.5", "1.0"),
            ("s_noise", "0", "1.0"),
        ] {
            let error = read(&format!(r#"{{"{key}": {value}}}"#)).unwrap_err();
            assert_eq!(error.to_string(), format!("scheduler_config.json: {key}: expected {only}, found {value}"));
            assert!(read(&format!(r#"{{"{key}": {only}}}"#)).is_ok());
        }
        let error = read(r#"{"_class_name": "DDIMScheduler"}"#).unwrap_err();
        assert!(matches!(error, Error::Mismatch { at, .. } if at == "_class_name"));
        let error = read(r#"{"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": true}"#).unwrap_err();
        let wanted = "prediction_type: expected flow_prediction, found epsilon";
        assert!(error.to_string().starts_with(&format!("scheduler_config.json: {wanted}")), "{error}");
    }

    #[test]
    fn sigmas_that_are_told_lie_along_the_flow() {
        let told = |sampler: Sampler, sigmas: &[f32], steps| {
            let chosen = Chosen { sigmas: Some(sigmas.to_vec()), ..sampler.into() };
            FlowMatchConfig { shift: 3.0, ..FlowMatchConfig::default() }.levels(&chosen, steps, 64)
        };
        // diffusers shifts them, except for the ancestral sampler.
        assert_eq!(told(Sampler::Euler, &[1.0, 0.5], 2).unwrap().sigmas, [1.0, 0.75, 0.0]);
        assert_eq!(told(Sampler::EulerAncestral, &[1.0, 0.5], 2).unwrap().sigmas, [1.0, 0.5, 0.0]);
        let error = told(Sampler::Euler, &[1.5, 0.5], 2).unwrap_err().to_string();
        assert_eq!(error, "--sigmas: expected at most 1 along a flow, found 1.5");
        let error = told(Sampler::UniPc, &[1.0, 0.5], 3).unwrap_err().to_string();
        assert_eq!(error, "--steps: expected 2, as many as --sigmas, found 3");
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        for text in [
            r#"{"num_train_timesteps": 0}"#,
            r#"{"shift": 0}"#,
            r#"{"base_image_seq_len": 4096}"#,
            r#"{"shift_terminal": 1.0}"#,
            r#"{"shift_terminal": -0.1}"#,
        ] {
            assert!(matches!(read(text), Err(Error::Mismatch { .. })), "{text}");
        }
        for text in ["", "[]", "3", "{", r#"{"shift": "high"}"#, r#"{"time_shift_type": "cubic"}"#] {
            assert!(matches!(read(text), Err(Error::Malformed { .. })), "{text}");
        }
        for key in ["shift", "base_shift", "max_shift", "shift_terminal"] {
            assert!(read(&format!(r#"{{"{key}": 1e999}}"#)).is_err(), "{key}");
        }
    }

    #[test]
    fn steps_have_limits() {
        let config = FlowMatchConfig::default();
        for steps in [0, MAX_STEPS + 1, usize::MAX] {
            let error = config.sigmas(steps, 64).unwrap_err();
            assert_eq!(error.to_string(), format!("--steps: expected 1 to 10000, found {steps}"));
        }
        assert_eq!(config.sigmas(MAX_STEPS, 64).unwrap().len(), MAX_STEPS + 1);
        let stretched = FlowMatchConfig { shift_terminal: Some(0.02), ..config };
        assert!(stretched.sigmas(1, 64).is_err() && stretched.sigmas(2, 64).is_ok());
    }

    #[test]
    fn a_shift_that_overflows_is_an_error() {
        assert!(matches!(shifted().sigmas(4, 1 << 20), Err(Error::NotFinite { .. })));
    }
}
