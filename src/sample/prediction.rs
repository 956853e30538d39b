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

    /// The same for a model with the preconditioning of Karras et al., 2022 (table 1), whose pictures of training have the
    /// standard deviation `data`.
    pub(super) fn preconditioned(self, sigma: f32, data: f32, output: f32, x: f32) -> f32 {
        let total = sigma * sigma + data * data;
        let scale = match self {
            Prediction::V => -sigma * data / total.sqrt(),
            _ => sigma * data / total.sqrt(),
        };
        data * data / total * x + scale * output
    }
}
