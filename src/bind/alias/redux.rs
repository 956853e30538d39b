//! FLUX.1 Redux: all files have the same names.

use super::{Alternative, Follows, Kind, Part, Sign};

/// The embedder of FLUX.1 Redux, as files know it.
pub static KIND: Kind = Kind {
    words: "Redux adapter of FLUX.1",
    what: "Redux adapter of FLUX.1",
    signs: &[Sign::new("redux_up.weight")],
    also: &[],
    beside: &[],
    highlights: &["redux_dim", "txt_in_features"],
    follows: Follows::Same,
    label: "",
    reads: None,
};

/// See [`Aliases`](super::Aliases).
pub fn aliases(canonical: &str) -> Vec<Alternative> {
    vec![vec![Part::all(canonical)]]
}
