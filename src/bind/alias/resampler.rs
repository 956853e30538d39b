//! Resamplers: canonical names are those of IP-Adapter and InfiniteYou.

use super::{Alternative, Follows, Kind, Part, Sign};

/// A resampler, as files know it.
pub static KIND: Kind = Kind {
    words: "resampler",
    what: "resampler of what is seen of a picture",
    signs: &[Sign::new("layers.0.0.to_kv.weight")],
    also: &[],
    beside: &[],
    highlights: &["embedding_dim", "dim", "depth", "heads", "num_queries", "output_dim"],
    follows: Follows::Half,
    label: "",
    reads: None,
};

/// See [`Aliases`](super::Aliases). There is one naming.
pub fn aliases(canonical: &str) -> Vec<Alternative> {
    vec![vec![Part::all(canonical)]]
}
