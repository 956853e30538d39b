//! How many threads there are to work with.

use std::num::NonZero;
use std::thread;

use clap::builder::{RangedU64ValueParser, TypedValueParser};

/// ggml's own limit (`GGML_MAX_N_THREADS`).
const MOST: u64 = 512;

/// More tokens than any model takes, and few enough that no product of extents overflows.
const MOST_TOKENS: u64 = 1 << 20;

/// The parser of `--threads`.
pub(super) fn parser() -> impl TypedValueParser<Value = usize> {
    RangedU64ValueParser::<usize>::new().range(1..=MOST)
}

/// The parser of a number of tokens.
pub(super) fn tokens() -> impl TypedValueParser<Value = usize> {
    RangedU64ValueParser::<usize>::new().range(1..=MOST_TOKENS)
}

/// Sets up `given` threads, or one for each core that this process may use, for the library's parallel work. Returns
/// how many.
pub(super) fn start(given: Option<usize>) -> usize {
    let threads = given.unwrap_or_else(|| thread::available_parallelism().map_or(1, NonZero::get));
    // Fails only where the pool is there already; it has the same size then, since commands call this once.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    threads
}
