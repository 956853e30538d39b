//! Levels of DPM-Solver, DEIS and UniPC, over discrete timesteps and along a flow.

use super::config::{DiscreteConfig, FinalSigmas};
use super::discrete::{ays, finite, rounded};
use super::dpm::singlestep_orders;
use super::levels::{Levels, Space};
use super::method::{Algorithm, Method, Rule, SolverType, UniPcRule};
use super::rounding::log;
use super::timesteps::{Spaced, Spacing, Table, between, respaced};
use super::{BetaSchedule, Chosen, Sampler, Schedule};
use crate::{Error, Result};

/// How the sigmas of a flow are bent towards noise.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shift {
    /// The `k` of `k sigma / (1 + (k - 1) sigma)`, unless it depends on the size of the picture.
    pub(super) fixed: f64,
    /// The `w` of `w / (w + 1/sigma - 1)`, if it does.
    pub(super) dynamic: Option<f64>,
    /// Where UniPC's sigmas are stretched to.
    pub(super) terminal: Option<f64>,
}

impl Shift {
    fn apply(self, sigma: f64) -> f64 {
        match self.dynamic {
            Some(weight) => weight / (weight + (1.0 / sigma - 1.0)),
            None => self.fixed * sigma / (1.0 + (self.fixed - 1.0) * sigma),
        }
    }
}

/// How far UniPC keeps away from noise alone, which has no logarithm of the signal-to-noise ratio.
const NEAR_NOISE: f64 = 1e-6;

/// By what a pipeline divides a timestep for the model.
const TIMESTEP_SCALE: f32 = 1000.0;

impl DiscreteConfig {
    /// The levels of a request; along a flow if that is bent by `flow`.
    pub(super) fn log_snr_levels(&self, chosen: &Chosen, steps: usize, flow: Option<Shift>) -> Result<Levels> {
        let sampler = chosen.sampler;
        let alphas = self.alphas(sampler, true);
        let table = Table::new(&alphas);
        let (times, exact) = match flow {
            Some(shift) => self.flow_times(chosen, steps, shift, &table),
            None => self.timesteps(chosen, steps, &alphas, &table),
        };
        let own = exact[exact.len() - 1];
        let is_told = chosen.sigmas.is_some();
        let moved = is_told || flow.is_some() || chosen.schedule.moves_sigmas();
        let last = match (sampler, self.final_sigmas_type) {
            (Sampler::Deis | Sampler::UniPc, FinalSigmas::SigmaMin) | (Sampler::Deis, _) if moved => own,
            (Sampler::Deis, _) => table.ends()[0],
            _ => self.last_sigma(&table),
        };
        let method = self.log_snr_method(sampler, times.len(), last == 0.0, flow.is_some())?;
        let sigmas = rounded(&exact, last);
        let scale = if flow.is_some() { TIMESTEP_SCALE } else { 1.0 };
        // diffusers' timesteps are whole numbers.
        let times = times.iter().map(|time| time.trunc() as f32 / scale).collect();
        let space = if flow.is_some() { Space::Flow } else { Space::Alphas };
        finite(Levels { steps, ..Levels::new(sampler, method, times, sigmas, space) })
    }

    /// Timesteps and sigmas.
    fn timesteps(&self, chosen: &Chosen, steps: usize, alphas: &[f32], table: &Table) -> (Vec<f64>, Vec<f64>) {
        let (sampler, schedule) = (chosen.sampler, chosen.schedule);
        let told = chosen.sigmas.as_ref().map(|sigmas| sigmas.iter().copied().map(f64::from).collect());
        if let Some(sigmas) = told.or_else(|| respaced(schedule, self.ends(table.ends()), steps)) {
            let sigmas: Vec<f64> = sigmas;
            let is_multistep = matches!(sampler, Sampler::Dpm2m | Sampler::Dpm2mSde);
            let cuts = is_multistep && self.beta_schedule == Some(BetaSchedule::Cosine);
            let rounds = chosen.sigmas.is_some() || matches!(schedule, Schedule::Karras | Schedule::Lu) && !cuts;
            let mut times: Vec<f64> = sigmas.iter().map(|&sigma| table.time_at(sigma)).collect();
            if rounds {
                times.iter_mut().for_each(|time| *time = time.round_ties_even());
            }
            return (times, sigmas);
        }
        let clips = matches!(sampler, Sampler::Dpm2m | Sampler::Dpm2mSde | Sampler::Dpm2s);
        let used = if clips { self.used(alphas) } else { alphas.len() };
        let mut times = match (schedule, sampler) {
            (Schedule::Ays, _) => ays(&chosen.ays, table, steps),
            (_, Sampler::Dpm2s) => {
                let spaced = self.spaced(schedule, steps, Spacing::Linspace);
                Spaced { spacing: Spacing::Linspace, ..spaced }.times_of_dpm(used)
            }
            _ => self.spaced(schedule, steps, Spacing::Linspace).times_of_dpm(used),
        };
        times.iter_mut().for_each(|time| *time = time.round_ties_even());
        let sigmas = times.iter().map(|&time| table.sigma_at(time)).collect();
        (times, sigmas)
    }

    /// How many timesteps of training are used: those that `lambda_min_clipped` leaves.
    fn used(&self, alphas: &[f32]) -> usize {
        let used = alphas.iter().rposition(|&alpha| f64::from(lambda(alpha)) >= self.lambda_min_clipped);
        used.map_or(1, |last| last + 1)
    }

    /// Timesteps and sigmas along a flow.
    fn flow_times(&self, chosen: &Chosen, steps: usize, shift: Shift, table: &Table) -> (Vec<f64>, Vec<f64>) {
        let training = f64::from(self.num_train_timesteps);
        let mut sigmas: Vec<f64>;
        if chosen.sampler != Sampler::UniPc {
            // In ascending order, without the first one, which is 0.
            let shift = shift.dynamic.unwrap_or(shift.fixed);
            sigmas = between(1.0, 1.0 / training, steps + 1).into_iter().map(|alpha| 1.0 - alpha).collect();
            sigmas.iter_mut().for_each(|sigma| *sigma = shift * *sigma / (1.0 + (shift - 1.0) * *sigma));
            sigmas.reverse();
            sigmas.pop();
        } else if let Some(other) = respaced(chosen.schedule, self.ends(table.ends()), steps) {
            sigmas = other.into_iter().map(|sigma| sigma / (sigma + 1.0)).collect();
        } else {
            sigmas = match &chosen.sigmas {
                Some(sigmas) => sigmas.iter().copied().map(f64::from).collect(),
                None => between(1.0, 1.0 / training, steps + 1)[..steps].to_vec(),
            };
            sigmas.iter_mut().for_each(|sigma| *sigma = shift.apply(*sigma));
            if let Some(terminal) = shift.terminal {
                let scale = (1.0 - sigmas[steps - 1]) / (1.0 - terminal);
                sigmas.iter_mut().for_each(|sigma| *sigma = 1.0 - (1.0 - *sigma) / scale);
            }
            if (sigmas[0] - 1.0).abs() < NEAR_NOISE {
                sigmas[0] -= NEAR_NOISE;
            }
        }
        (sigmas.iter().map(|sigma| sigma * training).collect(), sigmas)
    }

    /// The method of a sampler for so many steps; the last one ends without noise if `to_zero`.
    fn log_snr_method(&self, sampler: Sampler, steps: usize, to_zero: bool, is_flow: bool) -> Result<Method> {
        let rule = self.rule(sampler);
        let refuse = |expected: &str, found: String| {
            let error = Error::option("--sampler", format!("a scheduler_config.json with {expected}"), found);
            Err(error.with_hint(format!("give another --sampler than {sampler}")))
        };
        if sampler != Sampler::UniPc && rule.order > 3 {
            return refuse("solver_order of 1 to 3", rule.order.to_string());
        }
        let follows_noise = match sampler {
            Sampler::Deis => false,
            Sampler::UniPc => !self.predict_x0,
            _ => rule.algorithm.follows_noise(),
        };
        let is_dpm = !matches!(sampler, Sampler::Deis | Sampler::UniPc);
        if follows_noise && (to_zero || is_flow) {
            let what = if sampler == Sampler::UniPc { "predict_x0" } else { "algorithm_type of the predicted picture" };
            let expected = if is_flow { what.to_owned() } else { format!("final_sigmas_type sigma_min, or {what}") };
            return refuse(&expected, "one that follows the predicted noise".into());
        }
        if is_dpm && sampler != Sampler::Dpm2s && rule.algorithm == Algorithm::Sde && rule.order > 2 {
            return refuse("solver_order of 1 or 2", rule.order.to_string());
        }
        Ok(match sampler {
            Sampler::Dpm2s if rule.algorithm == Algorithm::Sde => {
                return refuse("algorithm_type other than sde-dpmsolver", "sde-dpmsolver".into());
            }
            Sampler::Dpm2s => Method::Singlestep(rule, singlestep_orders(&rule, steps).into()),
            Sampler::Deis => Method::Deis(rule),
            Sampler::UniPc => {
                let is_bh2 = self.solver_type != Some(SolverType::Bh1);
                if to_zero && !is_bh2 {
                    return refuse("solver_type bh2, or final_sigmas_type sigma_min", "bh1".into());
                }
                if to_zero && !rule.lower_order_final && rule.order > 1 && steps > 1 {
                    return refuse("lower_order_final, or final_sigmas_type sigma_min", "neither".into());
                }
                let disable_corrector = self.disable_corrector.clone().into();
                Method::UniPc(rule, UniPcRule { is_bh2, predict_x0: self.predict_x0, disable_corrector })
            }
            _ => Method::Multistep(rule),
        })
    }

    fn rule(&self, sampler: Sampler) -> Rule {
        let to_zero = self.final_sigmas_type == FinalSigmas::Zero;
        let own = self.algorithm_type.unwrap_or_default();
        let algorithm = match (sampler, own) {
            (Sampler::Dpm2m, Algorithm::SdePlus) => Algorithm::DpmPlus,
            (Sampler::Dpm2m, Algorithm::Sde) => Algorithm::Dpm,
            (Sampler::Dpm2mSde, Algorithm::DpmPlus) => Algorithm::SdePlus,
            (Sampler::Dpm2mSde, Algorithm::Dpm) => Algorithm::Sde,
            _ => own,
        };
        let is_heun = self.solver_type == Some(SolverType::Heun);
        Rule {
            algorithm,
            solver_type: if is_heun { SolverType::Heun } else { SolverType::Midpoint },
            order: self.solver_order as usize,
            first_order_last: match sampler {
                Sampler::Deis | Sampler::UniPc => false,
                Sampler::Dpm2s => to_zero,
                _ => self.euler_at_final || to_zero,
            },
            lower_order_final: self.lower_order_final.unwrap_or(sampler != Sampler::Dpm2s),
            clip: self.clip(true, None),
        }
    }
}

/// Half the logarithm of the signal-to-noise ratio.
fn lambda(alpha: f32) -> f32 {
    log(alpha.sqrt()) - log((1.0 - alpha).sqrt())
}
