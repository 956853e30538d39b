//! ControlNets of Z-Image: the names of their first publisher, who has diffusers' names for attention. Other tools store queries, keys
//! and values as one.

use super::{Alternative, Follows, Kind, Sign, z_image};

/// A ControlNet of Z-Image, as files know it.
pub static KIND: Kind = Kind {
    words: "ControlNet of Z-Image",
    what: "ControlNet of Z-Image",
    signs: &[Sign::new("control_all_x_embedder.2-1.weight")],
    also: &["control_all_x_embedder.", "control_layers.0.", "control_noise_refiner.0."],
    // Refiners of 2.0, which never were trained.
    beside: &["control_noise_refiner."],
    highlights: &[
        "control_layers_places",
        "control_refiner_layers_places",
        "add_control_noise_refiner",
        "control_in_dim",
        "dim",
        "n_heads",
    ],
    follows: Follows::Same,
    label: "",
    reads: None,
};

/// See [`Aliases`](super::Aliases).
pub fn aliases(name: &str) -> Vec<Alternative> {
    z_image::aliases(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_is_in_one_part_or_in_three() {
        let all = |name: &str| -> Vec<String> { aliases(name).into_iter().flatten().map(|part| part.name).collect() };
        let found = all("control_layers.3.attention.qkv.weight");
        assert_eq!(found.len(), 4);
        assert!(found.contains(&"control_layers.3.attention.to_k.weight".to_owned()), "{found:?}");
        assert!(
            all("control_noise_refiner.0.before_proj.bias")
                .contains(&"control_noise_refiner.0.before_proj.bias".to_owned())
        );
    }
}
