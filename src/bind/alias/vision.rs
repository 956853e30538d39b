//! Vision towers: canonical names are those of transformers before version 5.

use super::{Alternative, Follows, Kind, Part, Sign};

/// The settings that `inspect` shows of a vision tower.
const HIGHLIGHTS: &[&str] = &[
    "model_type",
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "hidden_act",
    "image_size",
    "patch_size",
    "projection_dim",
];

/// What models with both towers have besides.
const BESIDE: &[&str] = &[
    "text_model.",
    "text_projection",
    "logit_scale",
    "logit_bias",
    "vision_model.embeddings.position_ids",
    "embeddings.position_ids",
    "vision_model.head.",
    "head.",
    "visual_projection.",
    "vision_model.post_layernorm.",
    "post_layernorm.",
];

/// CLIP's vision tower, as files know it: SigLIP's has no token of its own before those of the patches.
pub static CLIP: Kind = Kind {
    words: "CLIP vision tower",
    what: "CLIP vision tower",
    signs: &[Sign::new("vision_model.embeddings.class_embedding"), Sign::new("embeddings.class_embedding")],
    also: &[],
    beside: BESIDE,
    highlights: HIGHLIGHTS,
    follows: Follows::Same,
    label: "",
    reads: None,
};

/// SigLIP's vision tower, as files know it: CLIP's patches have no bias.
pub static SIGLIP: Kind = Kind {
    words: "SigLIP vision tower",
    what: "SigLIP vision tower",
    signs: &[Sign::new("vision_model.embeddings.patch_embedding.bias"), Sign::new("embeddings.patch_embedding.bias")],
    ..CLIP
};

/// See [`Aliases`](super::Aliases). Files written by transformers 5 may leave out the first part of the name.
pub fn aliases(canonical: &str) -> Vec<Alternative> {
    // PyTorch's attention holds queries, keys and values in a matrix without a module of its own.
    let own = canonical.replace(".attention.in_proj.", ".attention.in_proj_");
    let mut names = vec![own.as_str()];
    names.extend(own.strip_prefix("vision_model."));
    if own != canonical {
        // As pinhole writes it.
        names.push(canonical);
    }
    names.into_iter().map(|name| vec![Part::all(name)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shorter_or_longer() {
        let names = |canonical| aliases(canonical).into_iter().flatten().map(|part| part.name).collect::<Vec<_>>();
        let norm = "vision_model.post_layernorm.bias";
        assert_eq!(names(norm), [norm, "post_layernorm.bias"]);
        assert_eq!(names("visual_projection.weight"), ["visual_projection.weight"]);
        let fused = ["vision_model.head.attention.in_proj_weight", "head.attention.in_proj_weight"];
        assert_eq!(names("vision_model.head.attention.in_proj.weight")[..2], fused);
    }
}
