//! The transformer with a step cache.

use super::Wan;
use super::block::STAGES;
use super::ports::REFERENCE_TOKENS;
use crate::Result;
use crate::models::step_cache::{Cached, Copied, DecidedBy, FirstChange, States};
use crate::stage::{Block, Build, Cadence, Port};

impl Wan {
    /// The same with a step cache that is decided `by` that. `None` if the model has too few blocks for it, or if none is defined that is
    /// decided so.
    pub fn cached(&self, by: DecidedBy) -> Option<Cached> {
        if self.config.guide_channels() > 0 {
            return None;
        }
        let position = |name: &str| self.model.stages().iter().position(|stage| stage.name == name);
        let behind = self.config.add_ref_conv.then_some(REFERENCE_TOKENS);
        let states = States { port: self.hidden.states, behind };
        // Where all blocks begin, and where they end.
        let (first, last) = (position("embed")? + 1, position("final")?);
        let of = |from: usize| Cached::new(&self.model, self.config.hidden(), from..last, states, by);
        match by {
            DecidedBy::Host if last > first => {
                let mut cached = of(first);
                let copied = Copied { from: states, to: cached.ports.before };
                cached.model.insert(first, "cache.copy", Cadence::Step, copied);
                Some(cached)
            }
            DecidedBy::Time if last > first => {
                let mut cached = of(first);
                let time = TimeOfStep {
                    vector: self.hidden.vector,
                    condition: self.ports.condition,
                    probe: cached.ports.probe?,
                };
                cached.model.insert(first, "cache.probe", Cadence::Step, time);
                let copied = Copied { from: states, to: cached.ports.before };
                cached.model.insert(first, "cache.copy", Cadence::Step, copied);
                Some(cached)
            }
            DecidedBy::FirstBlock if last > first + STAGES => {
                let second = first + STAGES;
                let mut cached = of(second);
                let (probe, before) = (cached.ports.probe?, cached.ports.before);
                let change = FirstChange { after: states, probe, before };
                cached.model.insert(second, "cache.probe", Cadence::Step, change);
                cached.model.insert(first, "cache.copy", Cadence::Step, Copied { from: states, to: probe });
                Some(cached)
            }
            _ => None,
        }
    }
}

/// What becomes of the time of a step.
struct TimeOfStep {
    vector: Port,
    condition: Port,
    probe: Port,
}

impl Block for TimeOfStep {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let rows = b.g.get_rows(b.read(self.vector)?, b.read(self.condition)?)?; // [D, B]
        let shape = b.shape(self.probe)?;
        b.write(self.probe, b.g.reshape(rows, &shape.dims()[..3])?)
    }
}
