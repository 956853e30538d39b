//! Ways to compute a component: the same result for less memory and more time.

use std::fmt;

use super::Runs;
use crate::size::Size;
use crate::stage::{Model, Pieces};

/// How a component is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    /// Each stage as one graph over everything.
    #[default]
    Whole,
    /// Each stage as one graph that computes at most so many tokens at a time, where they do not depend on each other.
    Tokens(usize),
    /// The same, and attention in so many parts of its heads, whose queries and keys are computed anew for each.
    Heads {
        /// How many parts there are.
        parts: usize,
        /// How many tokens are computed at a time.
        tokens: usize,
    },
    /// Each stage a few rows at a time, such that the rows of a map take about so many bytes; the maps themselves are in host
    /// memory.
    Strips(usize),
    /// In strips, a band of the picture's rows after the other: each of the frames of a film before the next band, so that what they
    /// leave to each other is as high as a band. What two bands need is computed twice.
    Bands {
        /// How many there are.
        count: usize,
        /// Bytes of strips.
        strips: usize,
    },
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Way::Whole => f.write_str("whole"),
            Way::Tokens(tokens) => write!(f, "{tokens} tokens at a time"),
            Way::Heads { parts, tokens } => write!(f, "{tokens} tokens at a time, heads in {parts} parts"),
            Way::Strips(bytes) => write!(f, "strips of {}", Size(bytes as u64)),
            Way::Bands { count, strips } => write!(f, "{count} bands in strips of {}", Size(strips as u64)),
        }
    }
}

/// In how many parts tokens are computed. More would make graphs of thousands of operations, and matrices of few columns.
const PARTS: [usize; 5] = [2, 4, 8, 16, 32];

/// In more parts than these only if each has at least so many tokens, and with all heads at once: graphs would be too long.
const FEW: usize = 16;
const MANY: usize = 1024;

/// In how many parts heads are computed, where all tokens at once are too many. Fewer would save nothing: what is attended to has to be
/// kept until all parts are there.
const HEADS: [usize; 2] = [4, 8];

/// Parts of tokens are multiples of this: kernels compute so many columns together.
const TOKENS: usize = 32;

/// Bytes of strips. Below, the weights of a stage and what ggml takes to convolve are more than what is saved.
const STRIPS: [usize; 4] = [64 << 20, 16 << 20, 4 << 20, 1 << 20];

/// How many bands of a film's rows there are. More would compute most rows twice.
const BANDS: [usize; 4] = [2, 4, 6, 8];

impl Way {
    /// The ways to compute `model`, fastest first. A dry run found that stages can compute up to `tokens` tokens in pieces, and whether
    /// any can compute attention in parts of its `heads`.
    pub(crate) fn all(model: &Model, (tokens, heads): (usize, bool)) -> Vec<Way> {
        let mut ways = vec![Way::Whole];
        if model.has_strips() {
            ways.extend(STRIPS.map(Way::Strips));
            for count in if model.keeps_maps() { &BANDS[..] } else { &[] } {
                ways.extend(STRIPS.map(|strips| Way::Bands { count: *count, strips }));
            }
            return ways;
        }
        let part = |parts| tokens.div_ceil(parts).next_multiple_of(TOKENS);
        for parts in PARTS {
            if part(parts) < tokens && (parts <= FEW || part(parts) >= MANY) {
                ways.push(Way::Tokens(part(parts)));
            }
        }
        ways.dedup();
        if heads && part(FEW) < tokens {
            ways.extend(HEADS.map(|parts| Way::Heads { parts, tokens: part(FEW) }));
        }
        ways
    }

    /// How much of a stage is computed at a time that is not in strips.
    pub(crate) fn pieces(self) -> Pieces {
        match self {
            Way::Tokens(tokens) => Pieces { tokens, ..Pieces::WHOLE },
            Way::Heads { parts, tokens } => Pieces { tokens, head_parts: parts, ..Pieces::WHOLE },
            Way::Whole | Way::Strips(_) | Way::Bands { .. } => Pieces::WHOLE,
        }
    }

    /// Bytes of strips, and how many bands there are; `None` if it is not in strips.
    pub(crate) fn strips(self) -> Option<(usize, usize)> {
        match self {
            Way::Whole | Way::Tokens(_) | Way::Heads { .. } => None,
            Way::Strips(bytes) => Some((bytes, 1)),
            Way::Bands { count, strips } => Some((strips, count)),
        }
    }

    /// How many bands come one after the other.
    pub fn bands(self) -> usize {
        self.strips().map_or(1, |(_, bands)| bands)
    }

    /// How often stages run that would run so often in one band: each band is a film of its own.
    pub fn runs(self, runs: Runs) -> Runs {
        let bands = self.bands();
        Runs { request: runs.request.saturating_mul(bands), steps: runs.steps.saturating_mul(bands), ..runs }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_in_parts_of_whole_columns() {
        let all = |tokens| Way::all(&Model::new(), (tokens, false));
        let parts = [2304, 1152, 576, 288].map(Way::Tokens);
        assert_eq!(all(4608), [vec![Way::Whole], parts.to_vec()].concat());
        assert_eq!(all(77), [Way::Whole, Way::Tokens(64), Way::Tokens(32)]);
        assert_eq!(all(1), [Way::Whole]);
        assert_eq!(all(0), [Way::Whole]);
        let heads = Way::all(&Model::new(), (77, true)).split_off(3);
        assert_eq!(heads, [4, 8].map(|parts| Way::Heads { parts, tokens: 32 }));
        assert_eq!(heads[0].to_string(), "32 tokens at a time, heads in 4 parts");
        assert_eq!(Way::Tokens(288).to_string(), "288 tokens at a time");
        assert_eq!(Way::Strips(4 << 20).to_string(), "strips of 4.00 MiB");
    }

    #[test]
    fn a_film_runs_again_for_each_band() {
        let way = Way::Bands { count: 4, strips: 16 << 20 };
        assert_eq!(way.to_string(), "4 bands in strips of 16.0 MiB");
        assert_eq!(way.runs(Runs::of_films(2, 5)), Runs::of_films(8, 5));
        assert_eq!(Way::Strips(1).runs(Runs::of_films(2, 5)), Runs::of_films(2, 5));
    }
}
