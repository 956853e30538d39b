//! How many threads there are to work with.

use clap::builder::{RangedU64ValueParser, TypedValueParser};
use pinhole::processors;
use pinhole_quant::workers::{Inside, Workers};

/// More tokens than any model takes, and few enough that no product of extents overflows.
const MOST_TOKENS: u64 = 1 << 20;

/// The parser of `--threads`.
pub(super) fn parser() -> impl TypedValueParser<Value = usize> {
    RangedU64ValueParser::<usize>::new().range(1..=processors::MOST_THREADS as u64)
}

/// The parser of a number of tokens.
pub(super) fn tokens() -> impl TypedValueParser<Value = usize> {
    RangedU64ValueParser::<usize>::new().range(1..=MOST_TOKENS)
}

/// How many threads `given` means: as many, or one for each core that this process may use. They do the library's parallel work
/// for this thread as long as the second value lives.
pub(super) fn start(given: Option<usize>) -> (usize, Inside) {
    let threads = given.unwrap_or_else(processors::cores);
    (threads, Workers::new(threads).enter())
}
