//! What a request's evaluations of the model are: at which times, at which levels of noise.

use std::borrow::Cow;

use super::method::Method;
use super::prediction::Prediction;
use super::sampler::Sampler;
use crate::{Error, Result, reserve};

/// How latents `x` are mixed of a picture `x0` and noise `e` at a level `sigma`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// `x = (1 - sigma) x0 + sigma e`.
    Flow,
    /// `x = x0 + sigma e`. The model is given `x / sqrt(sigma^2 + 1)`.
    Sigmas,
    /// `x = (x0 + sigma e) / sqrt(sigma^2 + 1)`.
    Alphas,
    /// `x = x0 + sigma e`. The model is given `x / sqrt(sigma^2 + data^2)`, and what it says is mixed with `x`: `data` is the
    /// standard deviation of the pictures of training (Karras et al., 2022, table 1).
    Edm,
}

/// The evaluations of the model that a request makes, in their order. There may be more of them than steps.
#[derive(Clone, Debug)]
pub struct Levels {
    /// What the model is given as its timestep, for each evaluation: sigma in 0..=1 for a flow, otherwise a timestep of
    /// training, which need not be whole.
    pub times: Vec<f32>,
    /// The level of noise of each evaluation, and behind them the one that the last evaluation leads to. In
    /// [`Space::Alphas`] it is infinite where there is noise alone.
    pub sigmas: Vec<f32>,
    /// How latents are mixed.
    pub space: Space,
    /// What the output of the model stands for.
    pub predicts: Prediction,
    /// How steps are taken.
    pub sampler: Sampler,
    /// Shares of picture and noise in latents, for each evaluation.
    pub(super) shares: Vec<[f32; 2]>,
    /// The level of noise that the model is asked about in each evaluation, and behind them 0. Other than `sigmas` in the
    /// middle of a step.
    pub(super) at: Vec<f32>,
    /// What the standard deviation of the pictures of training is, in [`Space::Edm`].
    pub(super) data: f32,
    /// The share of fresh noise that was asked for.
    pub(super) eta: Option<f32>,
    /// Sigmas of evaluations that were left out.
    pub(super) earlier: Vec<f32>,
    pub(super) method: Method,
    pub(super) start: f32,
    pub(super) steps: usize,
    /// Evaluations that were left out before the first.
    pub(super) skipped: usize,
    /// How many evaluations are made. Solvers know of the others.
    pub(super) taken: usize,
}

impl Levels {
    /// Levels from noise alone, whose evaluations are at their sigmas.
    pub(super) fn new(sampler: Sampler, method: Method, times: Vec<f32>, sigmas: Vec<f32>, space: Space) -> Levels {
        let mut shares = Vec::with_capacity(sigmas.len());
        for &sigma in &sigmas {
            shares.push(match space {
                Space::Flow => [1.0 - sigma, sigma],
                Space::Sigmas | Space::Edm => [1.0, sigma],
                Space::Alphas => shares_of(sigma),
            });
        }
        let predicts = if space == Space::Flow { Prediction::Velocity } else { Prediction::Epsilon };
        Levels {
            steps: times.len(),
            taken: times.len(),
            shares,
            at: sigmas.clone(),
            times,
            sigmas,
            space,
            predicts,
            sampler,
            data: 1.0,
            eta: None,
            earlier: Vec::new(),
            method,
            start: 1.0,
            skipped: 0,
        }
    }

    /// How many evaluations there are.
    #[allow(clippy::len_without_is_empty)] // there is always one
    pub fn len(&self) -> usize {
        self.times.len()
    }

    /// How many evaluations are made: all, unless another model makes the last ones.
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// The levels without the evaluations from time `cut` on, counted from the last: another model makes these. diffusers'
    /// `denoising_end`.
    ///
    /// # Errors
    ///
    /// [`Error::Option`] if no evaluation is left.
    pub(super) fn until(mut self, cut: f32, option: &'static str) -> Result<Levels> {
        self.taken = self.times.iter().filter(|&&time| time >= cut).count();
        match self.taken {
            0 => Err(Error::option(option, "a part of the steps with at least one of them before", "none before")),
            _ => Ok(self),
        }
    }

    /// The evaluations that [`until`](Levels::until) leaves, for another model: diffusers' `denoising_start`.
    ///
    /// # Errors
    ///
    /// [`Error::Option`] if there is none.
    pub(super) fn from(self, cut: f32, option: &'static str) -> Result<Levels> {
        let mut left = self.times.iter().filter(|&&time| time < cut).count();
        if self.sampler.order() == 2 && left.is_multiple_of(2) {
            // Not in the middle of a step.
            left += 1;
        }
        match left {
            0 => Err(Error::option(option, "a part of the steps with at least one of them behind", "none behind")),
            _ => {
                let first = self.len().saturating_sub(left);
                self.starting_at(first)
            }
        }
    }

    /// How many steps were asked for, those that were left out included.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// By what noise is multiplied to become the latents of the first evaluation: diffusers' `init_noise_sigma`.
    pub fn start(&self) -> f32 {
        self.start
    }

    /// The first evaluation of a request that begins with a picture: a `strength` of 1 is all evaluations, and the less
    /// it is the fewer are left. diffusers' `get_timesteps`: along flows, a part of a step counts as one.
    ///
    /// # Errors
    ///
    /// [`Error::Option`] if `strength` is not in 0..=1, or so small that no step is left.
    pub fn first_of(&self, strength: f32) -> Result<usize> {
        self.first(strength, self.space == Space::Flow)
    }

    /// The same where whole steps alone count, along flows too, as for films.
    ///
    /// # Errors
    ///
    /// As [`first_of`](Levels::first_of).
    pub fn first_of_whole(&self, strength: f32) -> Result<usize> {
        self.first(strength, false)
    }

    fn first(&self, strength: f32, counts_parts: bool) -> Result<usize> {
        if !(0.0..=1.0).contains(&strength) {
            return Err(Error::option("--strength", "0 to 1", strength.to_string()));
        }
        // The number as it was written. 0.8 rounded to f32 is above 0.8, which takes one step too many of 20.
        let strength: f64 = strength.to_string().parse().unwrap_or(f64::from(strength));
        let steps = self.steps as f64;
        let taken = steps * strength;
        let first = match counts_parts {
            true => (steps - taken.min(steps)).max(0.0) as usize,
            false => self.steps - (taken as usize).min(self.steps),
        };
        if first < self.steps {
            return Ok(first * self.sampler.order());
        }
        let expected = format!("at least 1 of {} steps, {}", self.steps, 1.0 / steps);
        Err(Error::option("--strength", expected, strength.to_string()))
    }

    /// The levels from evaluation `first` on. Solvers begin there as at a first step.
    ///
    /// # Errors
    ///
    /// [`Error::Graph`] if no evaluation is left.
    pub fn starting_at(mut self, first: usize) -> Result<Levels> {
        if first >= self.len() {
            return Err(self.no_such(first));
        }
        self.times.drain(..first);
        self.at.drain(..first);
        self.shares.drain(..first);
        self.earlier.extend(self.sigmas.drain(..first));
        self.skipped += first;
        self.taken = self.taken.saturating_sub(first);
        Ok(self)
    }

    /// Latents of evaluation `i` that show `picture` under `noise` (standard normal, [`Levels::start`] not applied):
    /// diffusers' `add_noise` or `scale_noise`. With `i` the number of evaluations, that is the picture.
    ///
    /// # Errors
    ///
    /// [`Error::Graph`] if there is no evaluation `i`, or the lengths differ; [`Error::OutOfMemory`].
    pub fn mixed(&self, picture: &[f32], noise: &[f32], i: usize) -> Result<Vec<f32>> {
        if picture.len() != noise.len() {
            let message = format!("{} latents under {} numbers of noise", picture.len(), noise.len());
            return Err(Error::graph("levels", message));
        }
        if i == self.len() {
            return reserve::repeat("the latents", picture, 1);
        }
        let [signal, spread] = self.shares(i)?;
        let mixed = picture.iter().zip(noise).map(|(x, e)| signal * x + spread * e);
        reserve::collect("the latents", picture.len(), mixed)
    }

    /// What the model is given as its latents in evaluation `i`: diffusers' `scale_model_input`.
    ///
    /// # Errors
    ///
    /// [`Error::Graph`] if there is no evaluation `i`, [`Error::OutOfMemory`].
    pub fn input<'a>(&self, i: usize, x: &'a [f32]) -> Result<Cow<'a, [f32]>> {
        self.pair(i)?;
        let sigma = self.at(i)?;
        let scale = match self.space {
            Space::Flow | Space::Alphas => return Ok(Cow::Borrowed(x)),
            Space::Sigmas => (sigma * sigma + 1.0).sqrt(),
            Space::Edm => {
                let scale = 1.0 / (sigma * sigma + self.data * self.data).sqrt();
                return Ok(Cow::Owned(reserve::collect("the model's input", x.len(), x.iter().map(|x| x * scale))?));
            }
        };
        Ok(Cow::Owned(reserve::collect("the model's input", x.len(), x.iter().map(|x| x / scale))?))
    }

    /// The finished latents that `output` predicts, for previews. `x` are the latents before evaluation `i`.
    ///
    /// # Errors
    ///
    /// [`Error::Graph`] if there is no evaluation `i`, or the lengths differ; [`Error::OutOfMemory`].
    pub fn clean(&self, i: usize, x: &[f32], output: &[f32]) -> Result<Vec<f32>> {
        self.pair(i)?;
        let (sigma, [signal, spread]) = (self.at(i)?, self.shares(i)?);
        if x.len() != output.len() {
            return Err(Error::graph("levels", format!("{} outputs for {} latents", output.len(), x.len())));
        }
        let clean = x.iter().zip(output).map(|(&x, &out)| match (self.space, self.predicts) {
            (Space::Edm, predicts) => predicts.preconditioned(sigma, self.data, out, x),
            (Space::Flow | Space::Sigmas, predicts) => predicts.clean(sigma, out, x),
            (Space::Alphas, Prediction::Velocity | Prediction::Epsilon) => (x - spread * out) / signal,
            (Space::Alphas, Prediction::V) => signal * x - spread * out,
            (Space::Alphas, Prediction::Sample) => out,
        });
        reserve::collect("predicted latents", x.len(), clean)
    }

    /// How many evaluations there were before any was left out.
    pub(super) fn untruncated(&self) -> usize {
        self.skipped + self.len()
    }

    /// The sigma of evaluation `i`, and the next.
    pub(super) fn pair(&self, i: usize) -> Result<[f32; 2]> {
        self.sigmas.get(i..).and_then(|rest| rest.first_chunk()).copied().ok_or_else(|| self.no_such(i))
    }

    /// The level of noise that the model is asked about in evaluation `i`; 0 behind the last one.
    pub(super) fn at(&self, i: usize) -> Result<f32> {
        self.at.get(i).copied().filter(|_| i <= self.len()).ok_or_else(|| self.no_such(i))
    }

    /// The timestep of evaluation `i`, for samplers whose timesteps are whole.
    pub(super) fn timestep(&self, i: usize) -> Result<i64> {
        self.times.get(i).map(|&time| time as i64).ok_or_else(|| self.no_such(i))
    }

    fn shares(&self, i: usize) -> Result<[f32; 2]> {
        self.shares.get(i).copied().ok_or_else(|| self.no_such(i))
    }

    fn no_such(&self, i: usize) -> Error {
        Error::graph("levels", format!("evaluation {i} of {}", self.len()))
    }
}

/// Shares of picture and noise in latents of [`Space::Alphas`] at `sigma`, as diffusers' DPM-Solver works them out.
pub(super) fn shares_of(sigma: f32) -> [f32; 2] {
    let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
    [alpha, sigma * alpha]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{DiscreteConfig, Noise};
    use super::*;

    fn levels(sampler: Sampler, steps: usize) -> Levels {
        DiscreteConfig::stable_diffusion().levels(&sampler.into(), steps).unwrap()
    }

    #[test]
    fn a_strength_is_the_number_that_was_written() {
        for (steps, strength, first) in [(20, 0.8, 4), (50, 0.3, 35), (50, 0.58, 22), (10, 1.0, 0), (7, 0.999, 1)] {
            assert_eq!(levels(Sampler::Ddim, steps).first_of(strength).unwrap(), first, "{steps} {strength}");
        }
        let flow = Levels::new(Sampler::Euler, Method::Euler, vec![0.0; 20], vec![0.0; 21], Space::Flow);
        assert_eq!([0.8, 0.99, 0.01].map(|strength| flow.first_of(strength).unwrap()), [4, 0, 19]);
        assert_eq!([0.8, 0.99, 0.06].map(|strength| flow.first_of_whole(strength).unwrap()), [4, 1, 19]);
    }

    #[test]
    fn strengths_that_leave_nothing_are_refused() {
        for strength in [-0.1, 1.1, f32::NAN, f32::INFINITY] {
            let error = levels(Sampler::Euler, 10).first_of(strength).unwrap_err();
            assert!(error.to_string().starts_with("--strength: expected 0 to 1"), "{error}");
        }
        let error = levels(Sampler::Pndm, 10).first_of(0.05).unwrap_err();
        assert_eq!(error.to_string(), "--strength: expected at least 1 of 10 steps, 0.1, found 0.05");
    }

    #[test]
    fn levels_begin_where_they_are_told() {
        let whole = levels(Sampler::Euler, 10);
        let part = whole.clone().starting_at(7).unwrap();
        assert_eq!((part.len(), part.steps(), part.start()), (3, 10, whole.start()));
        assert_eq!((&part.times[..], &part.sigmas[..]), (&whole.times[7..], &whole.sigmas[7..]));
        assert!(whole.starting_at(10).is_err());
    }

    #[test]
    fn a_picture_under_noise_is_found_again() {
        let (picture, noise) = ([0.5, -2.0, 1.0], [1.5, 0.25, -1.0]);
        for &sampler in Sampler::DISCRETE {
            let levels = levels(sampler, 8);
            // Not in the middle of a step.
            let mixed = levels.mixed(&picture, &noise, 4).unwrap();
            let clean = levels.clean(4, &mixed, &noise).unwrap();
            for (clean, picture) in clean.iter().zip(&picture) {
                assert!((clean - picture).abs() < 1e-5, "{sampler}: {clean} for {picture}");
            }
            assert_eq!(levels.mixed(&picture, &noise, levels.len()).unwrap(), picture);
        }
    }

    #[test]
    fn evaluations_that_are_not_there_and_lengths_that_differ_are_refused() {
        for &sampler in Sampler::DISCRETE {
            let levels = levels(sampler, 4);
            let beyond = levels.len();
            assert!(levels.mixed(&[0.0], &[0.0, 0.0], 0).is_err());
            assert!(levels.mixed(&[0.0], &[0.0], beyond + 1).is_err());
            assert!(levels.clean(beyond, &[0.0], &[0.0]).is_err());
            assert!(levels.clean(0, &[0.0], &[]).is_err());
            let mut solver = levels.solver();
            assert!(solver.input(beyond, &levels, &[0.0]).is_err());
            assert!(solver.step(beyond, &levels, &[0.0], &mut [0.0], &mut Noise::new(0, 1)).is_err());
            assert!(solver.step(0, &levels, &[0.0; 2], &mut [0.0], &mut Noise::new(0, 1)).is_err());
            for _ in 0..4 {
                // Out of order: the answer means nothing, and is one.
                let _ = levels.solver().step(1, &levels, &[0.0], &mut [0.0], &mut Noise::new(0, 1));
                let _ = solver.step(0, &levels, &[0.0], &mut [0.0], &mut Noise::new(0, 1));
            }
            let mut solver = levels.solver();
            solver.step(0, &levels, &[0.0], &mut [0.0], &mut Noise::new(0, 1)).unwrap();
            if sampler.order() == 2 || matches!(sampler, Sampler::Pndm | Sampler::Dpm2m | Sampler::Lms | Sampler::UniPc)
            {
                assert!(solver.step(1, &levels, &[0.0; 2], &mut [0.0; 2], &mut Noise::new(0, 1)).is_err());
            }
        }
    }
}
