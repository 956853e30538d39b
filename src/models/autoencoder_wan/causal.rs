//! Convolutions that look back in time: a kernel over three frames as three kernels of pictures, and the frames that one run leaves to
//! the next.

use crate::Result;
use crate::ggml::Tensor;
use crate::models::layers::Conv2d;
use crate::models::route::{Pixels, Route};
use crate::stage::{Build, FeatureMap, Port, Reach};
use crate::weights::Scope;

/// How many frames a kernel sees beside the newest.
const PAST: usize = 2;

/// The frames that a chain of layers is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chain {
    /// A picture: one frame, with nothing before it and nothing behind.
    Picture,
    /// The first frame of a film: the same, and it leaves behind what others look back at.
    First,
    /// The frames of one latent frame behind others.
    Following,
}

/// The last two frames of a map, `[w, h, C, 1]` each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Past {
    older: Port,
    newer: Port,
}

/// What a layer has to do with the past of the map that it reads.
#[derive(Clone, Copy, Debug)]
pub(super) enum Memory {
    /// Nothing.
    None,
    /// There is none yet. It leaves its newest frame.
    Leaves(Past),
    /// It looks back, and then leaves its newest frames.
    LooksBack(Past),
}

impl Route {
    /// What the layer `name` of a `chain` has to do with the past of a map of `pixels`.
    pub(super) fn memory(&mut self, chain: Chain, name: &str, pixels: Pixels) -> Memory {
        if chain == Chain::Picture {
            return Memory::None;
        }
        let [older, newer] = ["older", "newer"].map(|frame| self.kept(&format!("{name}.{frame}"), pixels));
        match chain {
            Chain::Following => Memory::LooksBack(Past { older, newer }),
            _ => Memory::Leaves(Past { older, newer }),
        }
    }
}

impl Memory {
    /// Whether it looks back.
    pub(super) fn looks_back(self) -> bool {
        matches!(self, Memory::LooksBack(_))
    }

    /// The two frames before, and then `x`, which are rows of all frames of a map that were read as far as `reach`: `[w, rows, C, T + 2]`.
    /// `x` alone if there are none before.
    pub(super) fn with_past(self, b: &Build<'_>, x: Tensor, reach: Reach) -> Result<Tensor> {
        let Memory::LooksBack(Past { older, newer }) = self else { return Ok(x) };
        let past = b.g.concat(b.read_rows(older, reach)?, b.read_rows(newer, reach)?, 3)?;
        b.g.concat(past, x, 3)
    }

    /// Leaves the newest of the frames of `x`, which are the strip's own rows.
    pub(super) fn leave(self, b: &Build<'_>, x: Tensor) -> Result<()> {
        let (Memory::Leaves(Past { newer, .. }) | Memory::LooksBack(Past { newer, .. })) = self else { return Ok(()) };
        let [.., frames] = b.g.shape(x)?.dims();
        if let Memory::LooksBack(Past { older, .. }) = self {
            let before = match frames {
                1 => b.read_rows(newer, Reach::Around(0))?,
                _ => b.g.slice(x, 3, frames - 2, 1)?,
            };
            // First: it may be what the next line writes over.
            b.write_rows(older, before)?;
        }
        b.write_rows(newer, b.g.slice(x, 3, frames - 1, 1)?)
    }

    /// A pass that leaves the newest frames of `map`. It follows the pass that looks back, because neighbours still read them there.
    pub(super) fn leave_map(self, b: &Build<'_>, map: impl Into<FeatureMap>) -> Result<()> {
        self.leave(b, b.read_newest_rows(map, Reach::Around(0), PAST)?)
    }
}

/// A convolution over frames: each sees itself and the two before it.
pub(super) struct CausalConv {
    /// The planes of the kernel for the frame before the last, and for the last. None for the first frame, which sees zeros there.
    older: Vec<Conv2d>,
    newest: Conv2d,
    pub(super) memory: Memory,
}

impl CausalConv {
    /// A kernel of `size x size` pixels in every frame.
    pub(super) fn declare(
        scope: &mut Scope<'_>,
        (inputs, outputs): (usize, usize),
        size: usize,
        memory: Memory,
    ) -> Result<CausalConv> {
        let mut older = Vec::with_capacity(PAST);
        for plane in 0..if memory.looks_back() { PAST } else { 0 } {
            older.push(Conv2d::kernel(scope, &format!("weight.{plane}"), (inputs, outputs), size)?);
        }
        Ok(CausalConv { older, newest: Conv2d::declare(scope, inputs, outputs, size)?, memory })
    }

    /// The convolution of the strip's rows of `from`. Before it, `prepare` makes every pixel ready, and keeps zeros as they are.
    pub(super) fn build(
        &self,
        b: &Build<'_>,
        from: impl Into<FeatureMap>,
        prepare: impl Fn(Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let reach = Reach::Around(self.newest.halo());
        let x = b.read_rows(from, reach)?;
        let ready = prepare(self.memory.with_past(b, x, reach)?)?;
        if self.older.is_empty() {
            return self.newest.build_rows(b, ready);
        }
        let [.., frames] = b.g.shape(x)?.dims();
        let seen = |first| b.g.slice(ready, 3, first, frames);
        let mut sum = self.newest.build_rows(b, seen(PAST)?)?;
        for (first, plane) in self.older.iter().enumerate() {
            sum = plane.build_rows_added(b, seen(first)?, sum)?;
        }
        Ok(sum)
    }

    /// How many passes it comes in, with the one that leaves the newest frames behind it.
    pub(super) fn passes(&self) -> usize {
        match self.memory {
            Memory::None => 1,
            Memory::Leaves(_) | Memory::LooksBack(_) => 2,
        }
    }
}
