//! What the output of a model stands for.

use serde::Deserialize;

/// What the output of a model stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// Noise less picture, in a flow.
    #[serde(skip)]
    Velocity,
    /// The noise.
    #[default]
    Epsilon,
    /// `sqrt(alpha) noise - sqrt(1 - alpha) picture` (Salimans and Ho, "Progressive Distillation", 2022).
    #[serde(rename = "v_prediction")]
    V,
    /// The picture.
    #[serde(alias = "original_sample")]
    Sample,
}

impl Prediction {
    /// The finished latents that `output` stands for, if noise of standard deviation `sigma` was added to them.
    pub(super) fn clean(self, sigma: f32, output: f32, x: f32) -> f32 {
        match self {
            Prediction::Velocity | Prediction::Epsilon => x - sigma * output,
            Prediction::V => output * (-sigma / (sigma * sigma + 1.0).sqrt()) + x / (sigma * sigma + 1.0),
            Prediction::Sample => output,
        }
    }
}
