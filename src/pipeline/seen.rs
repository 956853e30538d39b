//! What is seen of pictures that take part in a prompt.

use super::prompts::Prompt;
use super::request::Settings;
use crate::{Error, Result, reserve};

/// What was seen of the pictures of a request.
#[derive(Default)]
pub struct Seen {
    /// The weighted sum of what Redux makes of each picture, `[J, T]`; nothing without pictures.
    pub redux: Vec<f32>,
    /// What an IP-Adapter is given, for each pass: `[E, P]`. Nothing without one.
    pub ip: Vec<Vec<f32>>,
}

impl Seen {
    /// `prompts` with what was seen: tokens of pictures stand before those of the text, which have the same position as far as the
    /// denoiser is told. All is weighted as diffusers does it: a text comes in once with each picture. The negative prompt has no
    /// pictures, and zeros where they would be, which it does not look at.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(super) fn joined(&self, prompts: &[&Prompt], settings: &Settings) -> Result<Vec<Prompt>> {
        let mut all = Vec::with_capacity(prompts.len());
        for (pass, Prompt(arrays)) in prompts.iter().enumerate() {
            let [hidden, rest @ ..] = &arrays[..] else { return Err(Error::graph("prompt", "a prompt of nothing")) };
            let mut joined = reserve::room("the prompt", self.redux.len() + hidden.len())?;
            let weighted = |number: f32| match pass {
                0 => settings.redux.iter().fold(0.0, |sum, weight| sum + weight * number),
                _ => number,
            };
            match pass {
                0 => joined.extend_from_slice(&self.redux),
                _ => joined.resize(self.redux.len(), 0.0),
            }
            joined.extend(hidden.iter().map(|&number| weighted(number)));
            let mut made = vec![joined];
            for array in rest {
                made.push(reserve::collect("the prompt", array.len(), array.iter().map(|&number| weighted(number)))?);
            }
            all.push(Prompt(made));
        }
        Ok(all)
    }
}
