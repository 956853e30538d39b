//! Stages that a step may skip.

use std::ops::Range;
use std::sync::Arc;

use super::{Block, Cadence, Model, Stage};

/// A part of a step. What runs first is the same in every step; then the host decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What comes before the first stage that can be skipped: all of a step if none can.
    Lead,
    /// All that follows, if nothing is skipped.
    Rest,
    /// What follows if all is skipped that can be.
    Shortcut,
}

impl Model {
    /// The stages that run in `part` of a step, in order.
    pub fn part(&self, part: Part) -> Vec<usize> {
        let step = self.at(Cadence::Step);
        let decided = self.decided(&step);
        let (range, left_out) = match part {
            Part::Lead => (step.start..decided, None),
            Part::Rest => (decided..step.end, Some(Cadence::Instead)),
            Part::Shortcut => (decided..step.end, Some(Cadence::Skippable)),
        };
        range.filter(|&i| Some(self.stages[i].cadence) != left_out).collect()
    }

    /// Whether a step may skip anything.
    pub fn can_skip(&self) -> bool {
        self.stages.iter().any(|stage| stage.cadence == Cadence::Skippable)
    }

    /// The first stage of `step` that does not run in every step.
    pub(crate) fn decided(&self, step: &Range<usize>) -> usize {
        step.clone().find(|&i| self.stages[i].cadence != Cadence::Step).unwrap_or(step.end)
    }

    /// Says that steps may skip `stages`.
    pub fn make_skippable(&mut self, stages: Range<usize>) {
        for stage in &mut self.stages[stages] {
            stage.cadence = Cadence::Skippable;
        }
    }

    /// Puts a stage without weights before stage number `before`.
    pub fn insert<B: Block + 'static>(&mut self, before: usize, name: &str, cadence: Cadence, block: B) {
        let stage =
            Stage { name: name.to_owned(), cadence, weights: Vec::new(), block: Arc::new(block), runs_if: None };
        self.stages.insert(before, stage);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::Result;
    use crate::stage::Build;

    struct Nothing;

    impl Block for Nothing {
        fn build(&self, _: &Build<'_>) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_step_has_parts() {
        let mut model = Model::new();
        model.stage("once", Cadence::Request, |_| Ok(Nothing)).unwrap();
        for name in ["first", "second", "third", "last"] {
            model.stage(name, Cadence::Step, |_| Ok(Nothing)).unwrap();
        }
        let whole = model.clone();
        model.make_skippable(2..4);
        model.insert(4, "instead", Cadence::Instead, Nothing);
        let parts = |model: &Model| [Part::Lead, Part::Rest, Part::Shortcut].map(|part| model.part(part));
        assert_eq!(parts(&model), [vec![1], vec![2, 3, 5], vec![4, 5]]);
        assert_eq!(parts(&whole), [vec![1, 2, 3, 4], vec![], vec![]]);
        assert!(model.can_skip() && !whole.can_skip());
        assert_eq!((model.at(Cadence::Request), model.at(Cadence::Step)), (0..1, 1..6));
    }
}
