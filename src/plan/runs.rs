//! How often stages run.

use crate::stage::Cadence;

/// How often the stages of a component run in one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runs {
    /// Those of [`Cadence::Request`].
    pub request: usize,
    /// Those of steps: at most, if steps may skip some.
    pub steps: usize,
}

impl Runs {
    /// Of `cadence`.
    pub fn of(self, cadence: Cadence) -> usize {
        match cadence {
            Cadence::Request => self.request,
            Cadence::Step | Cadence::Skippable | Cadence::Instead => self.steps,
        }
    }
}
