//! What a denoiser is given before its first step.

use std::ops::Range;

use super::super::prompts::Prompt;
use super::super::request::Settings;
use crate::sample::Levels;
use crate::{Result, reserve};

/// What holds for all steps that one subject computes.
pub struct Given<'a> {
    /// The request.
    pub settings: &'a Settings,
    /// All noise levels of the request.
    pub levels: &'a Levels,
    /// The evaluations that this subject computes.
    pub evaluations: Range<usize>,
    /// The prompt of each pass that is computed at once: the positive one first. Behind them may be others, which are those of conditions
    /// alone and have no items.
    pub prompts: &'a [&'a Prompt],
    /// What each ControlNet is given of its picture.
    pub controls: &'a [Vec<f32>],
    /// What an IP-Adapter is given for each pass.
    pub ip: &'a [Vec<f32>],
    /// The first pass of those that are computed at once.
    pub pass: usize,
    /// How many passes are computed at once.
    pub passes: usize,
    /// How many pictures are computed at once in each of these passes.
    pub pictures: usize,
    /// The tokens of a face, for the ControlNet that reads it; none without one.
    pub face: &'a [f32],
}

impl Given<'_> {
    /// What `embed` makes of the time of each evaluation, once for each pass: `[width, conditions]`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn times(&self, embed: impl Fn(f32) -> Vec<f32>) -> Result<Vec<f32>> {
        let passes = self.prompts.len();
        let mut all = Vec::new();
        for &time in &self.levels.times[self.evaluations.clone()] {
            let one = embed(time);
            if all.is_empty() {
                all = reserve::room("the times", one.len() * passes * self.evaluations.len())?;
            }
            for _ in 0..passes {
                all.extend_from_slice(&one);
            }
        }
        Ok(all)
    }

    /// Array `at` of the prompts, for every item of the batch: item `pass * batch + i` is picture `i` of that pass.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn prompt(&self, at: usize) -> Result<Vec<f32>> {
        let prompts = self.prompts.get(..self.passes).unwrap_or(self.prompts);
        let each: usize = prompts.iter().map(|Prompt(arrays)| arrays[at].len()).sum();
        let mut all = reserve::room("the prompts", each * self.pictures)?;
        for Prompt(arrays) in prompts {
            for _ in 0..self.pictures {
                all.extend_from_slice(&arrays[at]);
            }
        }
        Ok(all)
    }

    /// The first array of the prompts, of vectors of `width` numbers, for every item of the batch, filled up with zeros to `room` tokens.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn filled_prompt(&self, width: usize, room: usize) -> Result<Vec<f32>> {
        let each = room.saturating_mul(width);
        let mut text = reserve::room("the prompts", (self.pictures * self.passes).saturating_mul(each))?;
        for Prompt(arrays) in self.prompts.iter().take(self.passes) {
            for _ in 0..self.pictures {
                let behind = text.len() + each;
                text.extend_from_slice(&arrays[0]);
                text.resize(behind, 0.0);
            }
        }
        Ok(text)
    }

    /// What an IP-Adapter is given, for every item of the batch.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn ip(&self) -> Result<Vec<f32>> {
        let mut all = Vec::new();
        for pass in self.ip {
            all.extend(reserve::repeat("what is seen of a picture", pass, self.pictures)?);
        }
        Ok(all)
    }

    /// Array `at` of the prompts, for every condition.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn prompt_by_condition(&self, at: usize) -> Result<Vec<f32>> {
        let mut one = Vec::new();
        for Prompt(arrays) in self.prompts {
            one.extend_from_slice(&arrays[at]);
        }
        reserve::repeat("the prompts", &one, self.evaluations.len())
    }
}
