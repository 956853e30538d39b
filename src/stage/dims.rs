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
    /// Pictures computed side by side in each guidance pass.
    pub const PICTURES: Symbol = Symbol("pictures");
    /// Items of the batch that ControlNets see, which are its first: all of them, or those of the first guidance pass.
    pub const CONTROLLED: Symbol = Symbol("controlled items");
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
    /// Rotary tables: one, or one for each item of the batch.
    pub const TABLES: Symbol = Symbol("tables");
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
pub struct Dims {
    sizes: Vec<(Symbol, usize)>,
    /// Those of single passes.
    of_passes: Vec<(usize, Symbol, usize)>,
    /// Those of some of the steps.
    spans: Vec<Span>,
}

/// Steps one after the other that have sizes of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// How many they are.
    pub steps: usize,
    /// Their sizes.
    pub sizes: Vec<(Symbol, usize)>,
}

impl Dims {
    /// No sizes.
    pub fn new() -> Dims {
        Dims::default()
    }

    /// The same, with `value` for `symbol`.
    #[must_use]
    pub fn with(mut self, symbol: Symbol, value: usize) -> Dims {
        match self.sizes.iter_mut().find(|(known, _)| *known == symbol) {
            Some((_, known)) => *known = value,
            None => self.sizes.push((symbol, value)),
        }
        self
    }

    /// The same, with `value` for `symbol` in all of its steps if guidance pass number `pass` is computed by itself. No port is larger or
    /// smaller for it.
    #[must_use]
    pub fn with_in_pass(mut self, pass: usize, symbol: Symbol, value: usize) -> Dims {
        self.of_passes.push((pass, symbol, value));
        self
    }

    /// The same, with the tokens of each pass's text for a symbol of its own; where they differ, a pass that is computed by itself has its
    /// own in the place of the first's.
    #[must_use]
    pub fn with_texts(mut self, symbols: &[Symbol], texts: &[usize]) -> Dims {
        let differ = texts.windows(2).any(|pair| pair[0] != pair[1]);
        for (pass, (&symbol, &tokens)) in symbols.iter().zip(texts).enumerate() {
            self = self.with(symbol, tokens);
            if differ {
                self = self.with_in_pass(pass, symbols[0], tokens);
            }
        }
        self
    }

    /// The same, where the steps are those of `spans`, in turn. No port is larger or smaller for it.
    #[must_use]
    pub fn with_spans(self, spans: Vec<Span>) -> Dims {
        Dims { spans, ..self }
    }

    /// How many spans of steps there are.
    pub(crate) fn span_count(&self) -> usize {
        self.spans.len().max(1)
    }

    /// Which span step number `step` is of.
    pub(crate) fn span_of(&self, step: usize) -> usize {
        let mut end = 0;
        self.spans
            .iter()
            .take_while(|span| {
                end += span.steps;
                end <= step
            })
            .count()
            .min(self.span_count() - 1)
    }

    /// How many steps each span has, if a request has so many `steps`.
    pub(crate) fn steps_of_spans(&self, steps: usize) -> Vec<usize> {
        match self.spans.is_empty() {
            true => vec![steps],
            false => self.spans.iter().map(|span| span.steps).collect(),
        }
    }

    /// Whether any size is that of a single pass.
    pub(crate) fn passes_differ(&self) -> bool {
        !self.of_passes.is_empty()
    }

    /// The sizes of guidance pass number `pass` by itself; of all of them for `None`.
    pub(crate) fn in_pass(&self, pass: Option<usize>) -> Dims {
        let mut one = Dims { of_passes: Vec::new(), ..self.clone() };
        for &(of, symbol, value) in &self.of_passes {
            if Some(of) == pass {
                one = one.with(symbol, value);
                // That of a pass counts more than that of a step.
                for span in &mut one.spans {
                    span.sizes.retain(|(of_span, _)| *of_span != symbol);
                }
            }
        }
        one
    }

    /// The sizes in each span of steps.
    pub(crate) fn in_spans(&self) -> Vec<Dims> {
        let plain = Dims { spans: Vec::new(), ..self.clone() };
        if self.spans.is_empty() {
            return vec![plain];
        }
        let mut all = Vec::new();
        for span in &self.spans {
            all.push(span.sizes.iter().fold(plain.clone(), |dims, &(symbol, n)| dims.with(symbol, n)));
        }
        all
    }

    /// The value of `symbol`, if the request has one: for sizes that only some requests have.
    pub fn find(&self, symbol: Symbol) -> Option<usize> {
        self.sizes.iter().find(|(known, _)| *known == symbol).map(|(_, value)| *value)
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
