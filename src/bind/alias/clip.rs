//! CLIP's text encoder: canonical names are those of transformers before version 5.

use super::{Alternative, Part};

/// See [`Aliases`](super::Aliases). Files written by transformers 5 leave out the first part of the name.
pub fn aliases(canonical: &str) -> Vec<Alternative> {
    let short = canonical.strip_prefix("text_model.").unwrap_or(canonical);
    [canonical, short].map(|name| vec![Part::all(name)]).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shorter_or_longer() {
        let expected = ["text_model.final_layer_norm.bias", "final_layer_norm.bias"];
        assert_eq!(aliases("text_model.final_layer_norm.bias"), expected.map(|name| vec![Part::all(name)]));
    }
}
