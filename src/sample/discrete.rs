//! Levels of models that were trained on discrete timesteps, as diffusers' schedulers make them: those of samplers that
//! count in whole timesteps, and of those that count in sigmas.

use std::sync::Arc;

use super::betas::{self, BetaSchedule, Training};
use super::clip::Clip;
use super::config::{DiscreteConfig, FinalSigmas};
use super::dpm_sde::middle_sigma;
use super::euler::down_and_up;
use super::levels::{Levels, Space};
use super::method::Method;
use super::prediction::Prediction;
use super::rounding::{exp, log};
use super::timesteps::{Spaced, Spacing, Table, between, respaced, sigma};
use super::{Chosen, Sampler, Schedule};
use crate::{Error, Result};

impl DiscreteConfig {
    /// The levels of a request for a sampler of [`Sampler::DISCRETE`], over a schedule that it can follow.
    ///
    /// # Errors
    ///
    /// [`Error::Option`] if `steps` is 0, more than there are timesteps of training or another number than there are
    /// sigmas, or the sampler has no rule for what the model predicts or for another of its settings;
    /// [`Error::NotFinite`] if a timestep is noise alone and that has no solution.
    pub fn levels(&self, chosen: &Chosen, steps: usize) -> Result<Levels> {
        let (sampler, most) = (chosen.sampler, self.num_train_timesteps as usize);
        if !(1..=most).contains(&steps) {
            return Err(Error::option("--steps", format!("1 to {most}"), steps.to_string()));
        }
        if let Some(sigmas) = chosen.sigmas.as_ref().filter(|sigmas| sigmas.len() != steps) {
            return Err(Error::option("--steps", format!("{}, as many as --sigmas", sigmas.len()), steps.to_string()));
        }
        if !sampler.takes(self.prediction_type) {
            let known: Vec<Sampler> =
                Sampler::DISCRETE.iter().copied().filter(|other| other.takes(self.prediction_type)).collect();
            let found = format!("`{sampler}` for a model that predicts pictures");
            return Err(Error::option("--sampler", Sampler::list(&known), found));
        }
        if chosen.schedule == Schedule::Ays && most <= usize::from(chosen.ays[0]) {
            let expected = format!("a model with {} timesteps of training", chosen.ays[0] + 1);
            return Err(Error::option("--schedule", expected, format!("`{}` for one with {most}", Schedule::Ays)));
        }
        let mut levels = match sampler {
            Sampler::Ddim | Sampler::Ddpm | Sampler::Pndm | Sampler::Lcm | Sampler::Tcd => {
                self.whole_levels(chosen, steps)?
            }
            Sampler::Dpm2m | Sampler::Dpm2mSde | Sampler::Dpm2s | Sampler::Deis | Sampler::UniPc => {
                self.log_snr_levels(chosen, steps, None)?
            }
            _ => self.sigma_levels(chosen, steps)?,
        };
        levels.predicts = self.prediction_type;
        levels.eta = chosen.eta;
        Ok(levels)
    }

    /// `alphas_cumprod`, for samplers that count in timesteps or, `finite`, in sigmas.
    pub(super) fn alphas(&self, sampler: Sampler, finite: bool) -> Vec<f32> {
        use Sampler::{Ddim, Ddpm, DpmSde, Euler, EulerAncestral, Heun, Kdpm2, Kdpm2Ancestral, Lcm, Tcd, UniPc};
        let is_distilled = matches!(sampler, Lcm | Tcd);
        let is_stable_diffusion = is_distilled || matches!(sampler, Heun | Kdpm2 | Kdpm2Ancestral | DpmSde);
        let [start, end] = if is_stable_diffusion { [0.00085, 0.012] } else { [0.0001, 0.02] };
        let schedule = if is_distilled { BetaSchedule::ScaledLinear } else { BetaSchedule::Linear };
        let mut betas = match &self.trained_betas {
            Some(betas) => betas.iter().map(|&beta| beta as f32).collect(),
            None => betas::betas(
                self.beta_schedule.unwrap_or(schedule),
                self.beta_start.unwrap_or(start),
                self.beta_end.unwrap_or(end),
                self.num_train_timesteps as usize,
            ),
        };
        let can_rescale = is_distilled
            || matches!(sampler, Ddim | Ddpm | Euler | EulerAncestral | UniPc | Sampler::Dpm2m | Sampler::Dpm2mSde);
        let rescale = self.rescale_betas_zero_snr && can_rescale;
        if rescale {
            betas::rescale_to_zero_snr(&mut betas);
        }
        let mut alphas = betas::cumulative(&betas);
        if rescale && finite {
            betas::keep_above_zero(&mut alphas);
        }
        alphas
    }

    /// How timesteps are spaced for a schedule. `default` is what the sampler's class does by itself.
    pub(super) fn spaced(&self, schedule: Schedule, steps: usize, default: Spacing) -> Spaced {
        let own = self.timestep_spacing.unwrap_or(default);
        Spaced {
            spacing: if schedule == Schedule::SgmUniform { Spacing::Trailing } else { own },
            training: self.num_train_timesteps as usize,
            offset: self.steps_offset as usize,
            steps,
        }
    }

    /// How predicted latents are cut: if `can_threshold`, by dynamic thresholding, and otherwise to a range, if `default`
    /// says so.
    pub(super) fn clip(&self, can_threshold: bool, default: Option<bool>) -> Clip {
        if self.thresholding && can_threshold {
            let [ratio, most] = [self.dynamic_thresholding_ratio, self.sample_max_value].map(|number| number as f32);
            return Clip::Dynamic { ratio, most };
        }
        match default {
            Some(default) if self.clip_sample.unwrap_or(default) => Clip::Range(self.clip_sample_range as f32),
            _ => Clip::None,
        }
    }

    /// DDIM, DDPM, PNDM, LCM and TCD: whole timesteps.
    fn whole_levels(&self, chosen: &Chosen, steps: usize) -> Result<Levels> {
        let sampler = chosen.sampler;
        let alphas: Arc<[f32]> = self.alphas(sampler, false).into();
        let ends_clean = match sampler {
            Sampler::Ddpm => true,
            _ => self.set_alpha_to_one.unwrap_or(sampler != Sampler::Pndm),
        };
        let last = if ends_clean { 1.0 } else { alphas[0] };
        let training = Training { alphas, last, stride: i64::from(self.num_train_timesteps) / steps as i64 };
        let mut times = match sampler {
            Sampler::Lcm | Sampler::Tcd => self.distilled_times(steps)?,
            _ if chosen.schedule == Schedule::Ays => ays(&chosen.ays, &Table::new(&training.alphas), steps),
            _ => self.spaced(chosen.schedule, steps, Spacing::Leading).times(),
        };
        times.iter_mut().for_each(|time| *time = time.round_ties_even());
        if sampler == Sampler::Pndm && times.len() > 1 {
            times.insert(1, times[1]);
        }
        let times: Vec<f32> = times.into_iter().map(|time| time as f32).collect();
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
        let method = match sampler {
            Sampler::Ddpm => {
                Method::Ddpm(training, self.clip(true, Some(true)), self.variance_type.unwrap_or_default())
            }
            Sampler::Pndm => Method::Pndm(training),
            Sampler::Lcm => Method::Lcm(training, self.clip(true, Some(false)), self.timestep_scaling as f32),
            Sampler::Tcd => Method::Tcd(training),
            _ => Method::Ddim(training, self.clip(true, Some(true))),
        };
        let levels = Levels::new(sampler, method, times, sigmas, Space::Alphas);
        Ok(Levels { shares, steps, ..levels })
    }

    /// The timesteps of LCM and TCD: of those that the model was distilled for.
    fn distilled_times(&self, steps: usize) -> Result<Vec<f64>> {
        let original = self.original_inference_steps.min(self.num_train_timesteps);
        if steps > original as usize {
            let expected = format!("1 to {original}, original_inference_steps of the model");
            return Err(Error::option("--steps", expected, steps.to_string()));
        }
        let (stride, share) = (self.num_train_timesteps / original, f64::from(original) / steps as f64);
        let mut times = Vec::with_capacity(steps);
        for i in 0..steps {
            let place = f64::from(original) - (i as f64 * share).floor();
            times.push(place * f64::from(stride) - 1.0);
        }
        Ok(times)
    }

    /// Euler's, Heun's, LMS, both of KDPM2, DPM++ SDE: timesteps that need not be whole, and latents whose noise has the
    /// standard deviation sigma.
    fn sigma_levels(&self, chosen: &Chosen, steps: usize) -> Result<Levels> {
        let (sampler, schedule) = (chosen.sampler, chosen.schedule);
        let table = Table::new(&self.alphas(sampler, true));
        let spaced = self.spaced(schedule, steps, Spacing::Linspace);
        let mut times = spaced.times();
        if schedule == Schedule::Ays {
            times = ays(&chosen.ays, &table, steps);
        }
        if sampler != Sampler::DpmSde {
            times.iter_mut().for_each(|time| *time = f64::from(*time as f32));
        }
        let mut exact: Vec<f64> = times.iter().map(|&time| table.sigma_at(time)).collect();
        let own = [exact[exact.len() - 1], exact[0]];
        let ignores_ends = schedule == Schedule::Karras && matches!(sampler, Sampler::Lms | Sampler::DpmSde);
        let ends = if ignores_ends { own } else { self.ends(own) };
        let told = chosen.sigmas.as_ref().map(|sigmas| sigmas.iter().copied().map(f64::from).collect());
        if let Some(other) = told.or_else(|| respaced(schedule, ends, steps)) {
            exact = other;
            times = exact.iter().map(|&sigma| table.time_at(sigma)).collect();
        }
        if schedule == Schedule::Karras && matches!(sampler, Sampler::Kdpm2 | Sampler::Kdpm2Ancestral) {
            times.iter_mut().for_each(|time| *time = time.round_ties_even());
        }
        let last = if sampler == Sampler::Euler && chosen.sigmas.is_none() { self.last_sigma(&table) } else { 0.0 };
        let sigmas = rounded(&exact, last);
        let most = sigmas.iter().copied().fold(0.0, f32::max);
        let start = match spaced.spacing {
            Spacing::Linspace | Spacing::Trailing => most,
            Spacing::Leading => (most * most + 1.0).sqrt(),
        };
        let levels = match sampler {
            Sampler::Euler => plain(sampler, Method::Euler, &times, sigmas),
            Sampler::EulerAncestral => plain(sampler, Method::Ancestral, &times, sigmas),
            Sampler::Lms => plain(sampler, Method::Lms, &times, sigmas),
            _ => self.doubled(sampler, &table, (&times, &exact), &sigmas),
        };
        finite(Levels { start, steps, ..levels })
    }

    /// Levels of samplers that evaluate the model twice in each step except the last.
    fn doubled(&self, sampler: Sampler, table: &Table, exact: (&[f64], &[f64]), sigmas: &[f32]) -> Levels {
        let (times, exact_sigmas) = exact;
        let (mut all_times, mut all_sigmas, mut at) = (Vec::new(), Vec::new(), Vec::new());
        for (k, &time) in times.iter().enumerate() {
            all_times.push(time);
            all_sigmas.push(sigmas[k]);
            at.push(sigmas[k]);
            let Some(&next_time) = times.get(k + 1) else { break };
            let (sigma, next) = (sigmas[k], sigmas[k + 1]);
            all_sigmas.push(next);
            let (middle, time) = match sampler {
                Sampler::Heun => (next, next_time),
                Sampler::DpmSde => (middle_sigma(sigma, next), table.time_at(log_middle(exact_sigmas, k))),
                _ => {
                    let is_ancestral = sampler == Sampler::Kdpm2Ancestral;
                    let middle = if is_ancestral { below(sigma, next) } else { halfway(next, sigma) };
                    (middle, table.time_at(f64::from(middle)))
                }
            };
            at.push(middle);
            all_times.push(time);
        }
        all_sigmas.push(0.0);
        at.push(0.0);
        let method = match sampler {
            Sampler::Heun => Method::Heun(self.clip(false, Some(false))),
            Sampler::DpmSde => Method::DpmSde(self.noise_sampler_seed),
            _ => Method::Kdpm2(sampler == Sampler::Kdpm2Ancestral),
        };
        Levels { at, ..plain(sampler, method, &all_times, all_sigmas) }
    }

    /// The least and the largest sigma of a schedule, unless the configuration says other ones.
    pub(super) fn ends(&self, [least, most]: [f64; 2]) -> [f64; 2] {
        [self.sigma_min.unwrap_or(least), self.sigma_max.unwrap_or(most)]
    }

    pub(super) fn last_sigma(&self, table: &Table) -> f64 {
        match self.final_sigmas_type {
            FinalSigmas::Zero => 0.0,
            FinalSigmas::SigmaMin => table.ends()[0],
        }
    }
}

fn plain(sampler: Sampler, method: Method, times: &[f64], sigmas: Vec<f32>) -> Levels {
    Levels::new(sampler, method, times.iter().map(|&time| time as f32).collect(), sigmas, Space::Sigmas)
}

/// The sigma in the middle of a step, in double precision.
fn log_middle(sigmas: &[f64], k: usize) -> f64 {
    let [from, to] = [sigmas[k], sigmas[k + 1]].map(|sigma| -sigma.ln());
    (-(from + (to - from) * 0.5)).exp()
}

/// The sigma halfway between the logarithms of two: `torch.lerp`, which begins at the end.
fn halfway(from: f32, to: f32) -> f32 {
    let [from, to] = [from, to].map(log);
    exp(to - (to - from) * 0.5)
}

/// The sigma halfway to where an ancestral step aims.
fn below(sigma: f32, next: f32) -> f32 {
    halfway(sigma, down_and_up(sigma, next)[0])
}

/// `steps` timesteps: the ten of `ays`, or so many between them at equal distances along the logarithm of sigma.
pub(super) fn ays(ays: &[u16; 10], table: &Table, steps: usize) -> Vec<f64> {
    if steps == ays.len() {
        return ays.iter().copied().map(f64::from).collect();
    }
    let last = ays.len() - 1;
    let logs: Vec<f64> = ays.iter().map(|&time| table.sigma_at(f64::from(time)).ln()).collect();
    let mut times = Vec::new();
    for place in between(0.0, last as f64, steps) {
        let below = (place as usize).min(last - 1);
        let log = logs[below] + (logs[below + 1] - logs[below]) * (place - below as f64);
        times.push(table.time_at(log.exp()));
    }
    times
}

pub(super) fn rounded(sigmas: &[f64], last: f64) -> Vec<f32> {
    sigmas.iter().chain([&last]).map(|&sigma| sigma as f32).collect()
}

/// Refuses levels at which numbers are not finite.
pub(super) fn finite(levels: Levels) -> Result<Levels> {
    if levels.times.iter().chain(&levels.sigmas).chain(&levels.at).all(|number| number.is_finite()) {
        return Ok(levels);
    }
    let at = format!("the schedule of {} steps for {}", levels.steps, levels.sampler);
    Err(Error::NotFinite { at, hint: Some("the scheduler's betas leave nothing of the picture, or no noise".into()) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn levels(config: &DiscreteConfig, sampler: Sampler, steps: usize) -> Result<Levels> {
        config.levels(&sampler.into(), steps)
    }

    #[test]
    fn steps_have_limits() {
        let config = DiscreteConfig::stable_diffusion();
        for &sampler in Sampler::DISCRETE {
            for steps in [0, 1001, usize::MAX] {
                let error = levels(&config, sampler, steps).unwrap_err();
                assert_eq!(error.to_string(), format!("--steps: expected 1 to 1000, found {steps}"));
            }
            for steps in [1, 2, 49] {
                let more =
                    if sampler == Sampler::Pndm { usize::from(steps > 1) } else { (steps - 1) * (sampler.order() - 1) };
                let levels = levels(&config, sampler, steps).unwrap();
                assert_eq!((levels.len(), levels.steps()), (steps + more, steps), "{sampler}, {steps} steps");
                assert_eq!((levels.sigmas.len(), levels.at.len()), (levels.len() + 1, levels.len() + 1), "{sampler}");
            }
        }
        let error = levels(&config, Sampler::Lcm, 51).unwrap_err().to_string();
        assert_eq!(error, "--steps: expected 1 to 50, original_inference_steps of the model, found 51");
    }

    #[test]
    fn a_picture_is_not_predicted_for_every_sampler() {
        let config = DiscreteConfig { prediction_type: Prediction::Sample, ..DiscreteConfig::default() };
        for sampler in [Sampler::Pndm, Sampler::EulerAncestral, Sampler::Kdpm2, Sampler::DpmSde] {
            let error = levels(&config, sampler, 5).unwrap_err().to_string();
            let known = "euler, ddim, dpm++_2m, dpm++_2m_sde, dpm++_2s, ddpm, lms, heun, deis, unipc, lcm, tcd";
            let found = format!("`{sampler}` for a model that predicts pictures");
            assert_eq!(error, format!("--sampler: expected one of: {known}, found {found}"));
        }
    }

    #[test]
    fn sigmas_are_as_many_as_steps() {
        let config = DiscreteConfig::stable_diffusion();
        let chosen = Chosen { sigmas: Some(vec![10.0, 2.0]), ..Sampler::Euler.into() };
        let error = config.levels(&chosen, 3).unwrap_err().to_string();
        assert_eq!(error, "--steps: expected 2, as many as --sigmas, found 3");
        assert_eq!(config.levels(&chosen, 2).unwrap().sigmas, [10.0, 2.0, 0.0]);
    }

    #[test]
    fn noise_alone_has_no_epsilon() {
        let config = DiscreteConfig {
            rescale_betas_zero_snr: true,
            timestep_spacing: Some(Spacing::Trailing),
            ..DiscreteConfig::default()
        };
        for sampler in [Sampler::Ddim, Sampler::Ddpm, Sampler::Lcm, Sampler::Tcd] {
            assert!(matches!(levels(&config, sampler, 5), Err(Error::NotFinite { .. })), "{sampler}");
        }
        assert!(levels(&config, Sampler::Euler, 5).is_ok());
    }

    #[test]
    fn betas_that_leave_nothing_are_an_error() {
        let config = DiscreteConfig { beta_start: Some(0.9), beta_end: Some(0.99), ..DiscreteConfig::default() };
        for sampler in
            [Sampler::Euler, Sampler::Heun, Sampler::Kdpm2Ancestral, Sampler::DpmSde, Sampler::Dpm2m, Sampler::UniPc]
        {
            assert!(matches!(levels(&config, sampler, 5), Err(Error::NotFinite { .. })), "{sampler}");
        }
    }
}
