//! Sigma schedules of flow-matching models, as diffusers' `FlowMatchEulerDiscreteScheduler` makes them.
//!
//! Sigma is the share of noise in the latents: 1 is noise alone, 0 the finished picture. The operations, their order
//! and their precision are diffusers': a linear schedule in double precision, rounded to f32, then everything in f32.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Levels, python};
use crate::{Error, Result};

/// The most steps a request can have. Published schedules have at most a thousand; work done once per step is held
/// for all of them, so a slip of the finger must not become an allocation.
pub const MAX_STEPS: usize = 10_000;

/// The class that a `scheduler_config.json` must name.
const CLASS: &str = "FlowMatchEulerDiscreteScheduler";

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
    /// The shift `k` of `k sigma / (1 + (k - 1) sigma)`. Counts only without `use_dynamic_shifting`.
    pub shift: f64,
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
}

impl Default for FlowMatchConfig {
    fn default() -> Self {
        FlowMatchConfig {
            num_train_timesteps: 1000,
            shift: 1.0,
            use_dynamic_shifting: false,
            base_shift: 0.5,
            max_shift: 1.15,
            base_image_seq_len: 256,
            max_image_seq_len: 4096,
            time_shift_type: TimeShift::Exponential,
            shift_terminal: None,
        }
    }
}

/// Settings that change the schedule or the step in ways that are not built. Off in the published models.
#[derive(Deserialize)]
#[serde(default)]
struct Unsupported {
    #[serde(rename = "_class_name")]
    class_name: String,
    use_karras_sigmas: bool,
    use_exponential_sigmas: bool,
    use_beta_sigmas: bool,
    invert_sigmas: bool,
    stochastic_sampling: bool,
}

impl Default for Unsupported {
    fn default() -> Self {
        Unsupported {
            class_name: CLASS.to_owned(),
            use_karras_sigmas: false,
            use_exponential_sigmas: false,
            use_beta_sigmas: false,
            invert_sigmas: false,
            stochastic_sampling: false,
        }
    }
}

impl Unsupported {
    fn flags(&self) -> [(&'static str, bool); 5] {
        [
            ("use_karras_sigmas", self.use_karras_sigmas),
            ("use_exponential_sigmas", self.use_exponential_sigmas),
            ("use_beta_sigmas", self.use_beta_sigmas),
            ("invert_sigmas", self.invert_sigmas),
            ("stochastic_sampling", self.stochastic_sampling),
        ]
    }

    fn check(&self, origin: &Path) -> Result<()> {
        if self.class_name != CLASS {
            return Err(Error::mismatch(origin, "_class_name", CLASS, &self.class_name));
        }
        match self.flags().into_iter().find(|(_, on)| *on) {
            Some((flag, _)) => Err(Error::mismatch(origin, flag, "false", "true")
                .with_hint("pinhole has no such schedule; the model's own sigmas are the plain ones")),
            None => Ok(()),
        }
    }
}

impl FlowMatchConfig {
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
    pub(super) fn from_settings(settings: Map<String, Value>, origin: &Path) -> Result<Self> {
        let settings = Value::Object(settings);
        let malformed = |error| python::malformed(origin, &error);
        Unsupported::deserialize(&settings).map_err(malformed)?.check(origin)?;
        let config = Self::deserialize(&settings).map_err(malformed)?;
        config.check(origin)?;
        Ok(config)
    }

    fn check(&self, origin: &Path) -> Result<()> {
        let refuse = |at, expected: &str, found: String| Err(Error::mismatch(origin, at, expected, found));
        if self.num_train_timesteps == 0 {
            return refuse("num_train_timesteps", "at least 1", "0".into());
        }
        if !(self.shift.is_finite() && self.shift > 0.0) {
            return refuse("shift", "a number above 0", self.shift.to_string());
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

    /// The `steps + 1` sigmas of a request: from 1 (or just below) down to the last, and then 0. `image_tokens` is
    /// how many tokens the transformer has for the picture.
    ///
    /// # Errors
    ///
    /// [`Error::Option`] where `steps` is 0 or above [`MAX_STEPS`], or is 1 in a schedule that is stretched between
    /// its ends; [`Error::NotFinite`] if the shift overflows: one that grows with the picture does above half a
    /// million tokens.
    pub fn sigmas(&self, steps: usize, image_tokens: usize) -> Result<Vec<f32>> {
        let least = if self.terminal().is_some() { 2 } else { 1 };
        if !(least..=MAX_STEPS).contains(&steps) {
            return Err(Error::option("--steps", format!("{least} to {MAX_STEPS}"), steps.to_string()));
        }
        let mut sigmas = linear(steps);
        self.apply_shift(&mut sigmas, image_tokens);
        if let Some(last) = self.terminal() {
            stretch_to(&mut sigmas, last as f32);
        }
        sigmas.push(0.0);
        if sigmas.iter().all(|sigma| sigma.is_finite()) {
            return Ok(sigmas);
        }
        let at = format!("the schedule of {steps} steps for {image_tokens} image tokens");
        Err(Error::NotFinite { at, hint: Some("the shift that the model asks for is too large for this size".into()) })
    }

    /// The levels of a request for Euler's method, from [`FlowMatchConfig::sigmas`].
    ///
    /// # Errors
    ///
    /// As [`FlowMatchConfig::sigmas`].
    pub fn levels(&self, steps: usize, image_tokens: usize) -> Result<Levels> {
        let sigmas = self.sigmas(steps, image_tokens)?;
        Ok(Levels::flow(sigmas[..steps].iter().map(|&sigma| self.timestep(sigma)).collect(), sigmas))
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

    /// `mu`, on the line through (`base_image_seq_len`, `base_shift`) and (`max_image_seq_len`, `max_shift`).
    fn mu(&self, image_tokens: usize) -> f64 {
        let base = f64::from(self.base_image_seq_len);
        let slope = (self.max_shift - self.base_shift) / (f64::from(self.max_image_seq_len) - base);
        image_tokens as f64 * slope + (self.base_shift - slope * base)
    }

    fn apply_shift(&self, sigmas: &mut [f32], image_tokens: usize) {
        if self.use_dynamic_shifting {
            let mu = self.mu(image_tokens);
            let weight = match self.time_shift_type {
                TimeShift::Exponential => mu.exp(),
                TimeShift::Linear => mu,
            } as f32;
            sigmas.iter_mut().for_each(|sigma| *sigma = weight / (weight + (1.0 / *sigma - 1.0)));
        } else {
            let (shift, less_one) = (self.shift as f32, (self.shift - 1.0) as f32);
            sigmas.iter_mut().for_each(|sigma| *sigma = shift * *sigma / (1.0 + less_one * *sigma));
        }
    }
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

    fn read(text: &str) -> Result<FlowMatchConfig> {
        FlowMatchConfig::from_json(text, Path::new("scheduler_config.json"))
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
        assert_eq!(read(file).unwrap(), shifted());
        assert_eq!(read(r#"{"shift": 1.0, "shift_terminal": null}"#).unwrap(), FlowMatchConfig::default());
        assert_eq!(read("{}").unwrap(), FlowMatchConfig::default());
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        for flag in
            ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas", "stochastic_sampling"]
        {
            let error = read(&format!(r#"{{"{flag}": true}}"#)).unwrap_err();
            assert_eq!(error.to_string(), format!("scheduler_config.json: {flag}: expected false, found true"));
            assert!(read(&format!(r#"{{"{flag}": false}}"#)).is_ok());
        }
        let error = read(r#"{"_class_name": "UniPCMultistepScheduler"}"#).unwrap_err();
        assert!(matches!(error, Error::Mismatch { at, .. } if at == "_class_name"));
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
