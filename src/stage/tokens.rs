//! Tokens in pieces, and stages whose tokens several devices have among them.
//!
//! Where several devices compute a stage together, each builds it for its [share](super::TokenShare) of the tokens. Tokens meet in attention
//! alone: the keys and values of all of them are [gathered](Build::gathered) in a place of their own on each device. Such a stage is two
//! graphs: the first fills in the keys and values of the device's own tokens; then devices exchange them; and the second is all the rest.

use std::ops::Range;

use pinhole_quant::DType;

use super::share::{Gathered, Half};
use super::{Build, Leaf, Port, Spans};
use crate::ggml::{Placed, Tensor};
use crate::tensor::Shape;
use crate::{Error, Result};

impl Build<'_> {
    /// The pieces in which a block should compute tokens that do not depend on each other, in order. There are `tokens` of them, and the
    /// pieces are those of the device's own share.
    pub fn token_ranges(&self, tokens: usize) -> Vec<Range<usize>> {
        let own = self.pieces.share.range(tokens);
        self.most_tokens.set(self.most_tokens.get().max(own.len()));
        let step = self.pieces.tokens.min(tokens).max(1);
        own.clone().step_by(step).map(|start| start..own.end.min(start + step)).collect()
    }

    /// Calls `compute` for all tokens of `port [width, tokens, B]`, a piece at a time: with the piece `[width, n, B]` and
    /// where it stands among the tokens.
    ///
    /// # Errors
    /// What `compute` returns; [`Error::Graph`] for a port of another model.
    pub fn tokens(&self, port: Port, mut compute: impl FnMut(Tensor, Range<usize>) -> Result<()>) -> Result<()> {
        let [_, tokens, ..] = self.shape(port)?.dims();
        for at in self.token_ranges(tokens) {
            compute(self.piece(port, at.clone())?, at)?;
        }
        Ok(())
    }

    /// The tokens `at` of `port [width, tokens, B]`: `[width, n, B]`. If these are all, it is what [`read`](Build::read) gives, so that
    /// what is computed of it twice can be recognised.
    ///
    /// # Errors
    /// [`Error::Graph`] for a port of another model, or tokens that it does not have.
    pub fn piece(&self, port: Port, at: Range<usize>) -> Result<Tensor> {
        let all = self.leaf(Leaf::Port(port), self.place(port)?)?;
        let [_, tokens, ..] = self.g.shape(all)?.dims();
        self.reads.borrow_mut().push((port, at.clone()));
        if at.len() == tokens { Ok(all) } else { self.g.slice(all, 1, at.start, at.len()) }
    }

    /// Writes `value [width, n, B]` to the tokens from `start` on of `port [width, tokens, B]`, at once: what is added to the
    /// graph later and reads these tokens finds it there.
    ///
    /// # Errors
    /// [`Error::Graph`] where shapes differ.
    pub fn write_tokens(&self, port: Port, start: usize, value: Tensor) -> Result<()> {
        let [_, tokens, ..] = self.g.shape(value)?.dims();
        self.write_along(1, port, start, value, start..start + tokens)
    }

    /// The same of `value [n, tokens, B]`, which are some of the numbers of each token, from number `start` on.
    ///
    /// # Errors
    /// As [`write_tokens`](Build::write_tokens).
    pub fn write_part(&self, port: Port, start: usize, value: Tensor) -> Result<()> {
        self.write_along(0, port, start, value, 0..usize::MAX)
    }

    /// Writes `value` from `start` of dimension `dim` on: to `tokens`.
    fn write_along(&self, dim: usize, port: Port, start: usize, value: Tensor, tokens: Range<usize>) -> Result<()> {
        if self.half == Half::Gathering {
            return Ok(());
        }
        let target = self.leaf(Leaf::Written(port), self.place(port)?)?;
        self.g.fill(target, dim, start, value)?;
        self.written_in_parts.borrow_mut().push((port, tokens));
        Ok(())
    }

    /// A tensor `[d, H, T, B]` for what all tokens look at, which comes with [`gather`](Build::gather): all of it before the first of them
    /// does.
    ///
    /// # Errors
    /// [`Error::Graph`] for impossible extents, or where there is no room.
    pub fn gathered(&self, dims: [usize; 4]) -> Result<Tensor> {
        let Some((buffer, start)) = self.gathering else { return self.g.unfilled(&dims) };
        let shape = Shape::new(&dims)
            .ok_or_else(|| Error::graph("gather", format!("a tensor of impossible extents {dims:?}")))?;
        let offset = self.gathered_bytes.get();
        let place = match buffer.is_nowhere() {
            true => Placed::nowhere(buffer, DType::F32, shape),
            false => Placed::new(buffer, start + offset, DType::F32, shape)?,
        };
        let tensor = self.g.leaf(&place)?;
        let bytes = place.bytes().checked_next_multiple_of(self.g.device().alignment());
        self.gathered_bytes.set(offset.saturating_add(bytes.unwrap_or(usize::MAX)));
        self.gathers.borrow_mut().push(Gathered { place, own: Spans::default(), tensor });
        Ok(tensor)
    }

    /// Fills `value [d, H, n, B]` into `gathered [d, H, T, B]`: the tokens from `start` on.
    ///
    /// # Errors
    /// [`Error::Graph`] where shapes differ.
    pub fn gather(&self, gathered: Tensor, start: usize, value: Tensor) -> Result<()> {
        let [_, _, tokens, _] = self.g.shape(value)?.dims();
        if let Some(known) = self.gathers.borrow_mut().iter_mut().find(|known| known.tensor == gathered) {
            known.own.add(start..start + tokens);
            if self.half == Half::Main {
                return Ok(());
            }
        }
        self.g.fill(gathered, 2, start, value)
    }
}
