//! What a solver is.

use std::borrow::Cow;

use super::{Levels, Noise};
use crate::{Error, Result};

/// Moves latents along [`Levels`], one model evaluation at a time.
///
/// `x` holds the latents of all pictures of a batch, one picture behind the other. A solver of higher order keeps what
/// it needs of earlier evaluations. So one value serves one request, and its evaluations are taken in order from 0.
pub trait Solver {
    /// What the model is given as its latents in evaluation `i`.
    ///
    /// # Errors
    ///
    /// [`Error::Graph`] if there is no evaluation `i`, [`Error::OutOfMemory`].
    fn input<'a>(&self, i: usize, levels: &Levels, x: &'a [f32]) -> Result<Cow<'a, [f32]>> {
        levels.input(i, x)
    }

    /// Moves `x` along, given the `output` of the model in evaluation `i`. Samplers with fresh noise draw it from
    /// `noise`.
    ///
    /// # Errors
    ///
    /// [`Error::Graph`] if there is no evaluation `i`, or `output` and `x` differ in length, or `x` is not as many
    /// pictures as `noise` has; [`Error::OutOfMemory`].
    fn step(&mut self, i: usize, levels: &Levels, output: &[f32], x: &mut [f32], noise: &mut Noise) -> Result<()>;
}

/// Refuses an `output` that does not fit the latents.
pub(super) fn check_lengths(solver: &'static str, output: &[f32], x: &[f32]) -> Result<()> {
    if output.len() == x.len() {
        return Ok(());
    }
    Err(Error::graph(solver, format!("{} outputs for {} latents", output.len(), x.len())))
}

/// How many numbers of `x` belong to each picture.
pub(super) fn each(solver: &'static str, noise: &Noise, x: &[f32]) -> Result<usize> {
    let batch = noise.batch();
    if batch == 0 || !x.len().is_multiple_of(batch) {
        return Err(Error::graph(solver, format!("{} latents for {batch} pictures", x.len())));
    }
    Ok(x.len() / batch)
}

/// Fresh noise for all of `x`.
pub(super) fn draw(solver: &'static str, noise: &mut Noise, x: &[f32]) -> Result<Vec<f32>> {
    let each = each(solver, noise, x)?;
    noise.draw(each)
}
