//! The predictions that multistep solvers keep.

use std::collections::VecDeque;

use crate::{Error, Result};

/// Predictions of the evaluations so far, as many as the solver's order.
#[derive(Clone, Debug)]
pub(super) struct History {
    kept: VecDeque<Vec<f32>>,
    order: usize,
}

impl History {
    pub(super) fn new(order: usize) -> History {
        History { kept: VecDeque::new(), order }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    /// Keeps `prediction`, and forgets the oldest one if there are more than `order`.
    pub(super) fn push(&mut self, prediction: Vec<f32>) {
        self.kept.push_front(prediction);
        self.kept.truncate(self.order);
    }

    /// The prediction of `back` evaluations ago; 0 is the last one that was kept. It has `len` numbers.
    pub(super) fn ago(&self, solver: &'static str, back: usize, len: usize) -> Result<&[f32]> {
        match self.kept.get(back) {
            Some(prediction) if prediction.len() == len => Ok(prediction),
            Some(prediction) => {
                Err(Error::graph(solver, format!("{} predictions for {len} latents", prediction.len())))
            }
            None => Err(Error::graph(solver, format!("{back} evaluations ago there was none"))),
        }
    }
}
