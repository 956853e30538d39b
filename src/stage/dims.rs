//! The sizes of a request, by name, and extents made of them.

use std::fmt;
use std::ops::Mul;

use crate::{Error, Result};

/// The name of a size that is known only with the request. Models share those below; a model family adds its own with
/// [`Symbol::new`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Symbol(&'static str);

impl Symbol {
    /// Pictures computed side by side: images times guidance passes.
    pub const BATCH: Symbol = Symbol("batch");
    /// Guidance passes. If a request says how many, they may be computed one after the other: then [`Symbol::BATCH`] is a multiple of
    /// it, and [`Symbol::CONDITIONS`] too.
    pub const PASSES: Symbol = Symbol("passes");
    /// There if all passes have to be computed at once.
    pub const UNDIVIDED: Symbol = Symbol("undivided");
    /// Tokens of the picture.
    pub const IMAGE_TOKENS: Symbol = Symbol("image tokens");
    /// Tokens of the prompt.
    pub const TEXT_TOKENS: Symbol = Symbol("text tokens");
    /// Tokens of prompt and picture together.
    pub const JOINT_TOKENS: Symbol = Symbol("joint tokens");
    /// Pairs of text tokens: the square of [`Symbol::TEXT_TOKENS`].
    pub const TEXT_PAIRS: Symbol = Symbol("text pairs");
    /// Conditions that modulation is computed for: evaluations times guidance passes.
    pub const CONDITIONS: Symbol = Symbol("conditions");
    /// Columns of the latent picture.
    pub const LATENT_WIDTH: Symbol = Symbol("latent width");
    /// Rows of the latent picture.
    pub const LATENT_HEIGHT: Symbol = Symbol("latent height");

    /// A size of this name. Symbols of one name are the same.
    pub const fn new(name: &'static str) -> Symbol {
        Symbol(name)
    }

    /// This size halved so many times, each time rounded up: what a convolution with a stride of 2 makes of a picture's side.
    pub fn halved(self, times: u8) -> Extent {
        Extent { halved: times, ..self.into() }
    }
}

impl fmt::Display for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// The sizes of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dims(Vec<(Symbol, usize)>);

impl Dims {
    /// No sizes.
    pub fn new() -> Dims {
        Dims::default()
    }

    /// The same, with `value` for `symbol`.
    #[must_use]
    pub fn with(mut self, symbol: Symbol, value: usize) -> Dims {
        match self.0.iter_mut().find(|(known, _)| *known == symbol) {
            Some((_, known)) => *known = value,
            None => self.0.push((symbol, value)),
        }
        self
    }

    /// The value of `symbol`, if the request has one: for sizes that only some requests have.
    pub fn find(&self, symbol: Symbol) -> Option<usize> {
        self.0.iter().find(|(known, _)| *known == symbol).map(|(_, value)| *value)
    }

    /// The value of `symbol`.
    ///
    /// # Errors
    /// [`Error::Graph`] if the request has no value for it.
    pub fn get(&self, symbol: Symbol) -> Result<usize> {
        self.find(symbol).ok_or_else(|| Error::graph("dims", format!("the request has no {symbol}")))
    }
}

/// One extent of a port: a number, or a [`Symbol`], halved some times and then multiplied by a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    factor: usize,
    symbol: Option<Symbol>,
    halved: u8,
}

impl From<usize> for Extent {
    fn from(factor: usize) -> Extent {
        Extent { factor, symbol: None, halved: 0 }
    }
}

impl From<Symbol> for Extent {
    fn from(symbol: Symbol) -> Extent {
        Extent { factor: 1, symbol: Some(symbol), halved: 0 }
    }
}

impl Mul<usize> for Symbol {
    type Output = Extent;

    fn mul(self, factor: usize) -> Extent {
        Extent { factor, ..self.into() }
    }
}

impl Extent {
    /// Whether it is made of `symbol`.
    pub(crate) fn is_of(self, symbol: Symbol) -> bool {
        self.symbol == Some(symbol)
    }

    /// Its value in a request of size `dims`: `ceil(n / 2^halved) * factor` for a symbol of value `n`. [`usize::MAX`] where
    /// it is more than can be counted.
    ///
    /// # Errors
    /// [`Error::Graph`] if the request has no value for its symbol.
    pub fn resolve(self, dims: &Dims) -> Result<usize> {
        let n = self.symbol.map_or(Ok(1), |symbol| dims.get(symbol))?;
        // Halving and rounding up again and again is the same as dividing by the power and rounding up once.
        let halved = match 1usize.checked_shl(self.halved.into()) {
            Some(divisor) => n.div_ceil(divisor),
            None => usize::from(n > 0),
        };
        Ok(halved.saturating_mul(self.factor))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sizes_without_a_value_are_errors() {
        let dims = Dims::new().with(Symbol::BATCH, 2).with(Symbol::BATCH, 3);
        assert_eq!(dims.get(Symbol::BATCH).unwrap(), 3);
        assert_eq!(dims.get(Symbol::new("batch")).unwrap(), 3);
        let error = dims.get(Symbol::CONDITIONS).unwrap_err().to_string();
        assert!(error.contains("the request has no conditions"), "{error}");
    }

    #[test]
    fn halves_are_rounded_up() {
        let of = |n, extent: Extent| extent.resolve(&Dims::new().with(Symbol::LATENT_WIDTH, n)).unwrap();
        let halves = [0, 1, 2, 3, 4, 200].map(|times| of(13, Symbol::LATENT_WIDTH.halved(times)));
        assert_eq!(halves, [13, 7, 4, 2, 1, 1]);
        assert_eq!(of(13, Symbol::LATENT_WIDTH * 8), 104);
        assert_eq!(of(usize::MAX, Symbol::LATENT_WIDTH * 8), usize::MAX);
        assert_eq!(of(0, Symbol::LATENT_WIDTH.halved(200)), 0);
    }
}
