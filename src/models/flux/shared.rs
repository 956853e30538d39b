//! What all blocks of a stack read.

use std::ops::Range;

use crate::Result;
use crate::ggml::Tensor;
use crate::stage::{Block, Build, Port, Symbol};

/// How many items of the batch see all tokens, if some do not: those of the prompt that begin with tokens of pictures.
pub const SEEN_BY: Symbol = Symbol::new("items that see all tokens");

/// How many of the first tokens the other items do not see.
pub const UNSEEN: Symbol = Symbol::new("tokens that some items do not see");

/// What the blocks of a stack are as large as. Their image has [`Symbol::IMAGE_TOKENS`].
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    /// Items side by side: those of the first passes of the batch.
    pub(super) batch: Symbol,
    /// Tokens of the text.
    pub(super) text: Symbol,
    /// Tokens of text and image.
    pub(super) joint: Symbol,
}

impl Sizes {
    /// The model's own.
    pub(super) const OWN: Sizes =
        Sizes { batch: Symbol::BATCH, text: Symbol::TEXT_TOKENS, joint: Symbol::JOINT_TOKENS };
}

/// Where the rotary tables are.
#[derive(Clone, Copy)]
pub(super) struct Rotary {
    pub(super) cos: Port,
    pub(super) sin: Port,
}

impl Rotary {
    /// Queries or keys `x [d, H, n, B]` of the tokens from `start` on, turned to their positions.
    pub(super) fn turn(self, b: &Build<'_>, x: Tensor, start: usize) -> Result<Tensor> {
        let [_, _, tokens, _] = b.g.shape(x)?.dims();
        let of = |table| b.g.slice(b.read(table)?, 2, start, tokens);
        b.g.rotate_pairs(x, of(self.cos)?, of(self.sin)?)
    }
}

/// What all blocks of a stack read.
#[derive(Clone, Copy)]
pub(super) struct Shared {
    pub(super) rotary: Rotary,
    /// `[B]`, I32: the condition of each item of the model's batch.
    pub(super) condition: Port,
    pub(super) sizes: Sizes,
}

impl Shared {
    /// The rows of `port [n, N]`, which has one for each condition, that belong to the items: `[n, B]`.
    pub(super) fn of_condition(&self, b: &Build<'_>, port: Port) -> Result<Tensor> {
        let rows = b.g.get_rows(b.read(port)?, b.read(self.condition)?)?;
        first(b, rows, 1, self.sizes.batch)
    }
}

/// The first `count` of `x` along dimension `dim`.
pub(super) fn first(b: &Build<'_>, x: Tensor, dim: usize, count: Symbol) -> Result<Tensor> {
    let count = b.dim(count)?;
    if b.g.shape(x)?.dims()[dim] == count { Ok(x) } else { b.g.slice(x, dim, 0, count) }
}

/// What a ControlNet adds to the image's tokens: `[D, Ti, B']`.
#[derive(Clone, Copy)]
pub(super) struct Residual {
    pub(super) port: Port,
    /// Where the ControlNet does not run, this is 0.
    pub(super) runs_if: Option<Symbol>,
}

/// `x [D, n, B]`, the tokens `at` of the image, with those of `residuals` added that are there. Each of their items counts for every
/// pass.
pub(super) fn with_residuals(b: &Build<'_>, x: Tensor, at: Range<usize>, residuals: &[Residual]) -> Result<Tensor> {
    let mut sum = x;
    for residual in residuals {
        if residual.runs_if.and_then(|symbol| b.dim_if_any(symbol)) != Some(0) {
            sum = b.g.add(sum, b.piece(residual.port, at.clone())?)?;
        }
    }
    Ok(sum)
}

/// Adds what ControlNets add behind a block, by itself.
pub(super) struct Add {
    /// `[D, .., B]`
    pub(super) port: Port,
    /// How many tokens stand before those of the image there.
    pub(super) behind: Option<Symbol>,
    pub(super) residuals: Vec<Residual>,
}

impl Block for Add {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let before = self.behind.map_or(Ok(0), |symbol| b.dim(symbol))?;
        for at in b.token_ranges(b.dim(Symbol::IMAGE_TOKENS)?) {
            let start = before + at.start;
            let x = b.piece(self.port, start..start + at.len())?;
            b.write_tokens(self.port, start, with_residuals(b, x, at, &self.residuals)?)?;
        }
        Ok(())
    }
}

/// What a stack is modulated by: ports that the host fills.
#[derive(Clone, Copy)]
pub(super) struct Inputs {
    pub(super) time: Port,
    pub(super) guidance: Option<Port>,
    pub(super) pooled: Port,
}
