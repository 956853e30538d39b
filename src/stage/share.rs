//! Which tokens one of several devices computes, and what it fills in of those that all look at.

use std::fmt;
use std::ops::Range;

use super::spans::Spans;
use crate::ggml::{Placed, Tensor};

/// Which of all tokens one of several devices computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenShare {
    /// The number of the device among them.
    pub number: usize,
    /// How many devices there are.
    pub of: usize,
}

/// Shares begin at multiples of this where there are tokens enough: kernels compute so many together.
const UNIT: usize = 32;

/// Where there are fewer, units are smaller, so that shares have about so many each.
const UNITS: usize = 4;

impl TokenShare {
    /// All tokens.
    pub const ALL: TokenShare = TokenShare { number: 0, of: 1 };

    /// Its part of `tokens` tokens; nothing, if there are more devices than tokens. None is a single token unless that is the only one:
    /// products of one column are rounded in another way than those of several.
    pub fn range(self, tokens: usize) -> Range<usize> {
        let of = self.of.max(1);
        let unit = (tokens / of / UNITS).clamp(2, UNIT);
        let units = tokens / unit;
        let start = |number: usize| if number >= of { tokens } else { unit * (units * number / of) };
        start(self.number)..start(self.number + 1)
    }
}

impl Default for TokenShare {
    fn default() -> TokenShare {
        TokenShare::ALL
    }
}

impl fmt::Display for TokenShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "part {} of {} of the tokens", self.number + 1, self.of)
    }
}

/// How much of a stage is computed at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pieces {
    /// At most so many tokens, where they do not depend on each other.
    pub(crate) tokens: usize,
    /// In how many parts heads are computed, where all of them look at all tokens.
    pub(crate) head_parts: usize,
    /// Which tokens are computed at all.
    pub(crate) share: TokenShare,
}

impl Pieces {
    /// Everything.
    pub(crate) const WHOLE: Pieces = Pieces { tokens: usize::MAX, head_parts: 1, share: TokenShare::ALL };
}

/// Which graph of a stage is built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Half {
    /// The only one; or all except keys and values, where these are gathered.
    #[default]
    Main,
    /// The keys and values that are gathered, of the device's own tokens.
    Gathering,
}

/// Keys or values of all tokens, `[d, H, T, B]`, at a place of their own.
#[derive(Clone, Debug)]
pub(crate) struct Gathered {
    pub(crate) place: Placed,
    /// The tokens that the device fills in.
    pub(crate) own: Spans,
    pub(super) tensor: Tensor,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn shares_are_all_tokens_and_none_is_a_single_one(tokens in 0usize..10_000, of in 1usize..20) {
            let mut next = 0;
            for number in 0..of {
                let own = TokenShare { number, of }.range(tokens);
                prop_assert!(own.start == next && own.end >= own.start);
                prop_assert!(own.len() != 1 || tokens == 1);
                next = own.end;
            }
            prop_assert_eq!(next, tokens);
        }

        #[test]
        fn shares_of_many_tokens_are_about_equal(tokens in 4096usize..100_000, of in 1usize..5) {
            for number in 0..of {
                let own = TokenShare { number, of }.range(tokens).len();
                prop_assert!(own.abs_diff(tokens / of) <= 2 * UNIT, "{own}");
            }
        }
    }
}
