//! Safety checkers: canonical names are diffusers', except that those of the tower are CLIP's.

use super::{Alternative, Follows, Kind, Part, Sign, vision};

/// What the tower is called in diffusers' files, before CLIP's own names.
pub const TOWER: &str = "vision_model.";

/// Stable Diffusion's safety checker, as files know it.
pub static KIND: Kind = Kind {
    words: "safety checker",
    what: "safety checker",
    signs: &[Sign::new("special_care_embeds_weights")],
    also: &[],
    beside: &["vision_model.vision_model.embeddings.position_ids", "vision_model.embeddings.position_ids"],
    highlights: &[
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "image_size",
        "patch_size",
        "projection_dim",
        "concepts",
        "special_care",
    ],
    follows: Follows::Half,
    label: "",
    reads: None,
};

/// See [`Aliases`](super::Aliases). Files written by transformers 5 may leave out the first part of the tower's names.
pub fn aliases(canonical: &str) -> Vec<Alternative> {
    let mut names = vision(canonical);
    if canonical.starts_with(TOWER) {
        names.insert(0, vec![Part::all(format!("{TOWER}{canonical}"))]);
        names.truncate(2);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tower_is_a_part_of_it() {
        let names = |canonical| aliases(canonical).into_iter().flatten().map(|part| part.name).collect::<Vec<_>>();
        let norm = "vision_model.post_layernorm.bias";
        assert_eq!(names(norm), [&format!("vision_model.{norm}"), norm]);
        assert_eq!(names("concept_embeds"), ["concept_embeds"]);
    }
}
