//! CLIP's text encoder: canonical names are those of transformers before version 5.

use super::{Alternative, Follows, Kind, Part, Reads, Sign};

/// CLIP's text encoder, as files know it.
pub static KIND: Kind = Kind {
    words: "CLIP text encoder",
    what: "CLIP text encoder",
    signs: &[
        Sign::new("text_model.embeddings.token_embedding.weight"),
        // transformers 5 leaves out the first part of the names.
        Sign::new("embeddings.token_embedding.weight"),
    ],
    also: &["vision_model.embeddings.patch_embedding."],
    beside: &[
        "vision_model.",
        "visual_projection.",
        "logit_scale",
        "text_projection",
        "text_model.text_projection",
        "text_model.embeddings.position_ids",
        "embeddings.position_ids",
    ],
    highlights: &[
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "hidden_act",
        "max_position_embeddings",
        "vocab_size",
    ],
    // CLIP's pooled vector is sensitive, and CLIP small.
    follows: Follows::Half,
    reads: Some(Reads::Clip),
};

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
