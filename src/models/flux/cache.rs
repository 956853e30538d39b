//! Transformers with a step cache.

use super::modulation::Modulation;
use super::{Flux, Hidden, Shared};
use crate::Result;
use crate::models::step_cache::{Cached, Copied, DecidedBy, FirstChange, States};
use crate::stage::{Block, Build, Cadence, Model, Port, Symbol};

impl Flux {
    /// The same with a step cache that is decided `by` that. `None` if the model has too few blocks for it.
    pub fn cached(&self, by: DecidedBy) -> Option<Cached> {
        let blocks = self.config.num_layers + self.config.num_single_layers;
        self.hidden.cached(&self.model, (self.config.hidden(), blocks), by)
    }
}

impl Hidden {
    /// `model`, which has so many `blocks` over hidden states of `width` numbers a token, with a step cache. `None` if these are too few.
    pub(super) fn cached(self, model: &Model, (width, blocks): (usize, usize), by: DecidedBy) -> Option<Cached> {
        let Hidden { img, joint, shared, first_modulation } = self;
        let position = |name: &str| model.stages().iter().position(|stage| stage.name == name);
        let image = States { port: img, behind: None };
        let joined = States { port: joint, behind: Some(Symbol::TEXT_TOKENS) };
        // Where all blocks begin, and where they end.
        let (first, last) = (position("embed")? + 1, position("final")?);
        let of = |from: usize| Cached::new(model, width, from..last, joined, by);
        match by {
            DecidedBy::Host if blocks > 0 => {
                let mut cached = of(first);
                let copied = Copied { from: image, to: cached.ports.before };
                cached.model.insert(first, "cache.copy", Cadence::Step, copied);
                Some(cached)
            }
            DecidedBy::Input => {
                let (modulation, mut cached) = (first_modulation?, of(first));
                let (probe, before) = (cached.ports.probe?, cached.ports.before);
                let input = ModulatedInput { img, modulation, shared, probe, before };
                cached.model.insert(first, "cache.probe", Cadence::Step, input);
                Some(cached)
            }
            DecidedBy::FirstBlock if blocks > 1 => {
                let (block, after) = match position("double.0.text") {
                    Some(block) => (block, image),
                    None => (position("single.0")?, joined),
                };
                let mut cached = of(block + 1);
                let (probe, before) = (cached.ports.probe?, cached.ports.before);
                let change = FirstChange { after, probe, before };
                cached.model.insert(block + 1, "cache.probe", Cadence::Step, change);
                cached.model.insert(first, "cache.copy", Cadence::Step, Copied { from: image, to: probe });
                Some(cached)
            }
            DecidedBy::Host | DecidedBy::FirstBlock | DecidedBy::Time => None,
        }
    }
}

/// The image as the first block's modulation leaves it, and a copy of it as it was.
struct ModulatedInput {
    img: Port,
    modulation: Port,
    shared: Shared,
    probe: Port,
    before: Port,
}

impl Block for ModulatedInput {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let m = Modulation::read(b, self.modulation, &self.shared, 6)?;
        b.tokens(self.img, |x, at| {
            b.write_tokens(self.before, at.start, x)?;
            b.write_tokens(self.probe, at.start, m.modulate(x, 0)?)
        })
    }
}
