//! How much of the picture is left at each timestep of training, in PyTorch's operations and precision.

use std::f64::consts::FRAC_PI_2;
use std::sync::Arc;

use serde::Deserialize;

use crate::{Error, Result};

/// What `alphas_cumprod` ends with instead of 0, where sigma must be finite: diffusers' number, the least that half
/// precision holds.
const LEAST_ALPHA: f32 = 1.0 / (1 << 24) as f32;

/// The most noise that the cosine schedule adds in one timestep.
const MOST_BETA: f64 = 0.999;

/// How betas go from the first timestep to the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// A straight line.
    #[default]
    Linear,
    /// The squares of a straight line.
    ScaledLinear,
    /// From a cosine (Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021).
    #[serde(rename = "squaredcos_cap_v2")]
    Cosine,
}

/// The schedule that a model was trained with, and by how much a step of a request goes back in it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Training {
    /// `alphas_cumprod`, by timestep.
    pub(super) alphas: Arc<[f32]>,
    /// What stands for the timestep before the first.
    pub(super) last: f32,
    /// Timesteps of training in a step of the request.
    pub(super) stride: i64,
}

impl Training {
    /// `alphas_cumprod` at `time`; below 0 it is [`Training::last`].
    pub(super) fn alpha(&self, time: i64) -> Result<f32> {
        let Ok(index) = usize::try_from(time) else { return Ok(self.last) };
        self.alphas.get(index).copied().ok_or_else(|| {
            Error::graph("scheduler", format!("timestep {time} of a training with {}", self.alphas.len()))
        })
    }
}

/// The betas of `count` timesteps from `start` to `end`.
pub(super) fn betas(schedule: BetaSchedule, start: f64, end: f64, count: usize) -> Vec<f32> {
    match schedule {
        BetaSchedule::Linear => linspace(start as f32, end as f32, count),
        BetaSchedule::ScaledLinear => {
            let mut betas = linspace(start.sqrt() as f32, end.sqrt() as f32, count);
            betas.iter_mut().for_each(|beta| *beta *= *beta);
            betas
        }
        BetaSchedule::Cosine => (0..count).map(|i| cosine(i, count)).collect(),
    }
}

fn cosine(i: usize, count: usize) -> f32 {
    let left = |i: usize| ((i as f64 / count as f64 + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2);
    (1.0 - left(i + 1) / left(i)).min(MOST_BETA) as f32
}

/// `torch.linspace`: from the nearer end, the product and the sum rounded together.
pub(super) fn linspace(start: f32, end: f32, count: usize) -> Vec<f32> {
    let step = (end - start) / (count.max(2) - 1) as f32;
    let mut values = Vec::with_capacity(count);
    for i in 0..count {
        values.push(if i < count / 2 || count == 1 {
            step.mul_add(i as f32, start)
        } else {
            (-step).mul_add((count - 1 - i) as f32, end)
        });
    }
    values
}

/// Running products of `1 - beta`: in double precision, each rounded.
pub(super) fn cumulative(betas: &[f32]) -> Vec<f32> {
    let mut product = 1.0;
    let mut alphas = Vec::with_capacity(betas.len());
    for beta in betas {
        product *= f64::from(1.0 - beta);
        alphas.push(product as f32);
    }
    alphas
}

/// Bends `betas` so that the last timestep is noise alone: algorithm 1 of Lin et al., "Common Diffusion Noise Schedules
/// and Sample Steps are Flawed", 2023.
pub(super) fn rescale_to_zero_snr(betas: &mut [f32]) {
    let mut roots = cumulative(betas);
    roots.iter_mut().for_each(|alpha| *alpha = alpha.sqrt());
    let (Some(&first), Some(&last)) = (roots.first(), roots.last()) else { return };
    let scale = first / (first - last);
    let mut before = 1.0;
    for (beta, root) in betas.iter_mut().zip(&roots) {
        let root = (root - last) * scale;
        let alpha = root * root;
        *beta = 1.0 - alpha / before;
        before = alpha;
    }
}

/// Keeps the last sigma finite.
pub(super) fn keep_above_zero(alphas: &mut [f32]) {
    if let Some(last) = alphas.last_mut() {
        *last = LEAST_ALPHA;
    }
}
