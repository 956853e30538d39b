//! What attends to what: sizes, operands and the result.

use half::f16;

/// What attends to what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Numbers of a query, a key or a value.
    pub width: usize,
    /// Queries of one head.
    pub queries: usize,
    /// Keys of one head, and values.
    pub keys: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values: so many neighbouring heads of queries share one.
    pub groups: usize,
}

/// Rows of all tokens of all heads.
pub trait Rows {
    /// The row of a token of a head.
    fn row(&self, token: usize, head: usize) -> &[f32];
}

/// What an attention is computed from.
#[derive(Clone, Copy, Debug)]
pub struct Attended<'a, R> {
    /// Queries.
    pub q: R,
    /// Keys.
    pub k: R,
    /// Values.
    pub v: R,
    /// What is added to the scores of every head, `[keys, queries]`.
    pub mask: Option<&'a [f16]>,
}

/// A result that several threads write to, each its own tiles.
pub trait Outputs {
    /// The row of a query of a head.
    fn row(&mut self, query: usize, head: usize) -> &mut [f32];

    /// Whether the result is still wanted. If not, its rows may be anything.
    #[inline(always)]
    fn wanted(&self) -> bool {
        true
    }
}
