//! CLIP's text encoder: canonical names are those of transformers before version 5.

use super::{Alternative, Part};

/// What stands before it in ComfyUI's all-in-one files.
const PREFIX: &str = "text_encoders.clip_l.transformer.";

/// See [`Aliases`](super::Aliases). Files written by transformers 5 leave out the first part of the name.
pub fn aliases(canonical: &str) -> Vec<Alternative> {
    let short = canonical.strip_prefix("text_model.").unwrap_or(canonical);
    [canonical.to_owned(), short.to_owned(), format!("{PREFIX}{canonical}")].map(|name| vec![Part::all(name)]).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shorter_or_longer() {
        let expected = [
            "text_model.final_layer_norm.bias",
            "final_layer_norm.bias",
            "text_encoders.clip_l.transformer.text_model.final_layer_norm.bias",
        ];
        assert_eq!(aliases("text_model.final_layer_norm.bias"), expected.map(|name| vec![Part::all(name)]));
    }
}
