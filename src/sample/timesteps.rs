//! Which timesteps of training a request visits and which sigmas those have, in NumPy's operations and precision.

use serde::Deserialize;

use super::Schedule;
use super::beta_quantile::beta_quantile;
use super::rounding::log;

/// Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022: the exponent of equation 5.
pub(super) const RHO: f64 = 7.0;

/// How the timesteps of a request lie in those of training. Table 2 of Lin et al., "Common Diffusion Noise Schedules and
/// Sample Steps are Flawed", 2023.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Spacing {
    /// From the last timestep to the first.
    Linspace,
    /// Multiples of a whole number, from the first timestep up.
    Leading,
    /// At equal distances, from the last timestep down.
    Trailing,
}

/// What timesteps are made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spaced {
    pub(super) spacing: Spacing,
    /// Timesteps of training.
    pub(super) training: usize,
    /// What is added to leading timesteps.
    pub(super) offset: usize,
    /// Steps of the request.
    pub(super) steps: usize,
}

impl Spaced {
    /// The timesteps of every sampler except DPM-Solver's, the largest first. Whole numbers, except under
    /// [`Spacing::Linspace`].
    pub(super) fn times(self) -> Vec<f64> {
        let mut times = match self.spacing {
            Spacing::Linspace => linspace((self.training - 1) as f64, self.steps),
            Spacing::Leading => self.leading(self.training / self.steps, self.steps),
            Spacing::Trailing => return self.trailing(self.training),
        };
        times.reverse();
        times
    }

    /// DPM-Solver's timesteps, whole numbers, the largest first: of one step more, without the last. Only the first
    /// `used` timesteps of training count.
    pub(super) fn times_of_dpm(self, used: usize) -> Vec<f64> {
        let more = self.steps + 1;
        let mut times = match self.spacing {
            Spacing::Linspace => linspace(used as f64 - 1.0, more),
            Spacing::Leading => self.leading(used / more, more),
            Spacing::Trailing => return self.trailing(used),
        };
        times.iter_mut().for_each(|time| *time = time.round_ties_even());
        times.reverse();
        times.pop();
        times
    }

    fn leading(self, stride: usize, count: usize) -> Vec<f64> {
        (0..count).map(|i| (i * stride + self.offset) as f64).collect()
    }

    /// `numpy.arange(start, 0, -training / steps)`, rounded, less 1. For some numbers of steps (61 of 1000) diffusers'
    /// list has one more timestep, which is -1: the rounding error of `steps * (training / steps)`. It is left out.
    fn trailing(self, start: usize) -> Vec<f64> {
        let start = start as f64;
        let stride = self.training as f64 / self.steps as f64;
        let difference = (start - stride) - start;
        let mut times = Vec::new();
        for i in 0..self.steps {
            let time = (start + i as f64 * difference).round_ties_even() - 1.0;
            if time >= 0.0 {
                times.push(time);
            }
        }
        times
    }
}

/// `numpy.linspace(0, stop, count)`.
pub(super) fn linspace(stop: f64, count: usize) -> Vec<f64> {
    let step = stop / (count.max(2) - 1) as f64;
    let mut values: Vec<f64> = (0..count).map(|i| i as f64 * step).collect();
    if count > 1 {
        values[count - 1] = stop;
    }
    values
}

/// `sqrt((1 - alpha) / alpha)`: the noise's standard deviation over the picture's.
pub(super) fn sigma(alpha: f32) -> f32 {
    ((1.0 - alpha) / alpha).sqrt()
}

/// The sigmas of every timestep of training, and what lies between them.
pub(super) struct Table {
    sigmas: Vec<f32>,
    /// Logarithms, rounded to f32.
    logs: Vec<f32>,
}

impl Table {
    pub(super) fn new(alphas: &[f32]) -> Table {
        let sigmas: Vec<f32> = alphas.iter().map(|&alpha| sigma(alpha)).collect();
        let logs = sigmas.iter().map(|&sigma| f64::from(sigma).ln() as f32).collect();
        Table { sigmas, logs }
    }

    /// The least and the largest sigma.
    pub(super) fn ends(&self) -> [f64; 2] {
        [self.sigmas.first(), self.sigmas.last()].map(|sigma| sigma.copied().map_or(0.0, f64::from))
    }

    /// `numpy.interp`: the sigma at a timestep that need not be whole.
    pub(super) fn sigma_at(&self, time: f64) -> f64 {
        let (last, at) = (self.sigmas.len() - 1, time.max(0.0) as usize);
        if at >= last {
            return f64::from(self.sigmas[last]);
        }
        let [low, high] = [self.sigmas[at], self.sigmas[at + 1]].map(f64::from);
        (high - low) * (time.max(0.0) - at as f64) + low
    }

    /// The timestep, not whole, at which `sigma` is reached: linear in the logarithm.
    pub(super) fn time_at(&self, sigma: f64) -> f64 {
        let log = sigma.max(1e-10).ln();
        let below = self.logs.iter().rposition(|&other| log >= f64::from(other)).unwrap_or(0);
        let below = below.min(self.logs.len().saturating_sub(2));
        let [low, high] = [self.logs[below], self.logs[below + 1]];
        let weight = ((f64::from(low) - log) / f64::from(low - high)).clamp(0.0, 1.0);
        (1.0 - weight) * below as f64 + weight * (below + 1) as f64
    }
}

/// `count` sigmas from `most` to `least`, close together near the least.
pub(super) fn karras([least, most]: [f64; 2], count: usize, rho: f64) -> Vec<f64> {
    let [low, high] = [least, most].map(|sigma| sigma.powf(1.0 / rho));
    linspace(1.0, count).into_iter().map(|share| (high + share * (low - high)).powf(rho)).collect()
}

/// `count` sigmas from `most` to `least` at equal distances of their logarithms.
fn exponential([least, most]: [f64; 2], count: usize) -> Vec<f64> {
    between(most.ln(), least.ln(), count).into_iter().map(f64::exp).collect()
}

/// `count` sigmas from `most` to `least`, close together at both ends.
fn beta([least, most]: [f64; 2], count: usize) -> Vec<f64> {
    let quantiles = linspace(1.0, count).into_iter().map(|share| beta_quantile(1.0 - share));
    quantiles.map(|quantile| least + quantile * (most - least)).collect()
}

/// `count` sigmas from `most` to `least` with logarithms at equal distances, in the operations of diffusers'
/// `_convert_to_lu`.
fn lu(ends: [f64; 2], count: usize) -> Vec<f64> {
    let [low, high] = ends.map(|sigma| f64::from(log(sigma as f32)));
    linspace(1.0, count).into_iter().map(|share| (high + share * (low - high)).exp()).collect()
}

/// `numpy.linspace(start, stop, count)`.
pub(super) fn between(start: f64, stop: f64, count: usize) -> Vec<f64> {
    let step = (stop - start) / (count.max(2) - 1) as f64;
    let mut values: Vec<f64> = (0..count).map(|i| i as f64 * step + start).collect();
    if count > 1 {
        values[count - 1] = stop;
    }
    values
}

/// The sigmas of a schedule that begins and ends with `ends`, the least first. `None` if the schedule takes those of its
/// timesteps.
pub(super) fn respaced(schedule: Schedule, ends: [f64; 2], count: usize) -> Option<Vec<f64>> {
    match schedule {
        Schedule::Normal | Schedule::SgmUniform | Schedule::Ays => None,
        Schedule::Karras => Some(karras(ends, count, RHO)),
        Schedule::Exponential => Some(exponential(ends, count)),
        Schedule::Beta => Some(beta(ends, count)),
        Schedule::Lu => Some(lu(ends, count)),
    }
}
