//! The noise levels of a request.

use super::FlowMatchConfig;
use crate::Result;

/// The evaluations of a model in one request.
#[derive(Clone, Debug, PartialEq)]
pub struct Levels {
    /// The share of noise at each evaluation, and after the last one.
    pub sigmas: Vec<f32>,
    /// What the model is given as the time of each evaluation.
    pub times: Vec<f32>,
}

impl Levels {
    /// Those of `steps` steps for a picture of `image_tokens` tokens.
    ///
    /// # Errors
    /// As [`FlowMatchConfig::sigmas`].
    pub fn new(scheduler: &FlowMatchConfig, steps: usize, image_tokens: usize) -> Result<Levels> {
        let sigmas = scheduler.sigmas(steps, image_tokens)?;
        let times = sigmas[..steps].iter().map(|&sigma| scheduler.timestep(sigma)).collect();
        Ok(Levels { sigmas, times })
    }
}
