//! Step caches: what most stages of a step add to the hidden states of the picture is kept, and added again in steps that skip these
//! stages. Shapes are in ggml order: `D` hidden, `Ti` image tokens, `B` batch.
//!
//! A model with a cache is the same model with more stages: what is to be known before it is decided; the stages that are skipped;
//! behind them one that keeps what they have added, and one that runs in their place.

use std::ops::Range;

use pinhole_quant::DType;

use crate::Result;
use crate::stage::{Block, Build, Cadence, Extent, Lifetime, Model, Port, Symbol};

/// What it is decided by whether a step skips anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecidedBy {
    /// Nothing that the model computes.
    Host,
    /// The first block's input, as its modulation leaves it.
    Input,
    /// What becomes of the time, which all blocks are modulated by.
    Time,
    /// What the first block adds, which is therefore computed in every step.
    FirstBlock,
}

/// The ports that a cache adds.
#[derive(Clone, Copy, Debug)]
pub struct CachePorts {
    /// `[D, Ti, B]`, or `[D, 1, B]` of a time: what it is decided by, once the lead of a step has run.
    pub probe: Option<Port>,
    /// `[D, 1, B]`: 1 for every item of the batch that is computed, and 0 for those that take what is kept.
    pub computed: Port,
    /// `[D, Ti, B]`: what the skipped stages added when they were computed last. Numbers that are not finite must not be in it when
    /// they are first computed.
    pub residual: Port,
    /// `[D, Ti, B]`: the hidden states before these stages.
    pub before: Port,
    /// `D`
    pub width: usize,
}

/// A model with a cache.
pub struct Cached {
    /// Its stages. Its weights are those of the model without, in the same order.
    pub model: Model,
    /// Where the cache is.
    pub ports: CachePorts,
}

/// Where the hidden states of the picture are: in a port `[D, tokens, B]`, behind as many tokens as `behind` says.
#[derive(Clone, Copy)]
pub(super) struct States {
    pub(super) port: Port,
    pub(super) behind: Option<Symbol>,
}

impl States {
    /// Where they begin.
    fn start(self, b: &Build<'_>) -> Result<usize> {
        self.behind.map_or(Ok(0), |symbol| b.dim(symbol))
    }
}

impl Cached {
    /// `model` with a cache: steps may skip `stages`, as `by` decides. Behind them, the hidden states of `width` numbers a token are `after`.
    /// Stages before them have yet to be inserted that fill [`probe`](CachePorts::probe) and [`before`](CachePorts::before).
    pub(super) fn new(model: &Model, width: usize, stages: Range<usize>, after: States, by: DecidedBy) -> Cached {
        let mut model = model.clone();
        let states = [Extent::from(width), Symbol::IMAGE_TOKENS.into(), Symbol::BATCH.into()];
        let one = [Extent::from(width), 1.into(), Symbol::BATCH.into()];
        let looked_at = match by {
            DecidedBy::Host => None,
            DecidedBy::Time => Some(&one),
            DecidedBy::Input | DecidedBy::FirstBlock => Some(&states),
        };
        let ports = CachePorts {
            probe: looked_at.map(|extents| model.port("cache.probe", extents, DType::F32, Lifetime::Pass)),
            computed: model.port("cache.computed", &one, DType::F32, Lifetime::Pass),
            residual: model.port("cache.residual", &states, DType::F32, Lifetime::Request),
            before: model.port("cache.before", &states, DType::F32, Lifetime::Pass),
            width,
        };
        let Range { end, .. } = stages;
        model.make_skippable(stages);
        model.insert(end, "cache.keep", Cadence::Skippable, Keep { ports, after });
        model.insert(end + 1, "cache.add", Cadence::Instead, Add { ports, after });
        Cached { model, ports }
    }
}

/// A copy of the hidden states.
pub(super) struct Copied {
    pub(super) from: States,
    pub(super) to: Port,
}

impl Block for Copied {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let [_, tokens, ..] = b.shape(self.to)?.dims();
        let states = b.read(self.from.port)?;
        b.write_tokens(self.to, 0, b.g.slice(states, 1, self.from.start(b)?, tokens)?)
    }
}

/// What the first block has added to what `probe` holds, and a copy of its hidden states.
pub(super) struct FirstChange {
    pub(super) after: States,
    pub(super) probe: Port,
    pub(super) before: Port,
}

impl Block for FirstChange {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let start = self.after.start(b)?;
        b.tokens(self.probe, |input, at| {
            let states = b.piece(self.after.port, start + at.start..start + at.end)?;
            b.write_tokens(self.before, at.start, states)?;
            b.write_tokens(self.probe, at.start, b.g.sub(states, input)?)
        })
    }
}

/// Keeps what the skipped stages have added, of the items that are computed. The others take what is kept.
struct Keep {
    ports: CachePorts,
    after: States,
}

impl Block for Keep {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let CachePorts { computed, residual, before, .. } = self.ports;
        let start = self.after.start(b)?;
        // One of the two factors is 1 and the other 0, so that no number is rounded.
        let is_computed = b.read(computed)?;
        let is_kept = b.g.scale_bias(is_computed, -1.0, 1.0)?;
        b.tokens(before, |before, at| {
            let states = b.piece(self.after.port, start + at.start..start + at.end)?;
            let old = b.piece(residual, at.clone())?;
            let new = b.g.mul(b.g.sub(states, before)?, is_computed)?;
            let new = b.g.add(new, b.g.mul(old, is_kept)?)?;
            b.write_tokens(residual, at.start, new)?;
            let kept = b.g.mul(b.g.add(before, new)?, is_kept)?;
            b.write_tokens(self.after.port, start + at.start, b.g.add(b.g.mul(states, is_computed)?, kept)?)
        })
    }
}

/// Adds what was kept.
struct Add {
    ports: CachePorts,
    after: States,
}

impl Block for Add {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let start = self.after.start(b)?;
        b.tokens(self.ports.before, |before, at| {
            let kept = b.piece(self.ports.residual, at.clone())?;
            b.write_tokens(self.after.port, start + at.start, b.g.add(before, kept)?)
        })
    }
}
