//! The Z-Image transformer: original names, and diffusers' split layout.

use super::{Alternative, Follows, Kind, Part, Sign};

/// The Z-Image transformer, as files know it.
pub static KIND: Kind = Kind {
    words: "Z-Image transformer",
    what: "Z-Image transformer",
    signs: &[
        Sign::named("layers.0.attention.qkv.weight", "original names"),
        Sign::named("layers.0.attention.to_q.weight", "diffusers names"),
        // Of files that lack their first block.
        Sign::named("layers.1.attention.qkv.weight", "original names"),
        Sign::named("layers.1.attention.to_q.weight", "diffusers names"),
    ],
    also: &["cap_embedder.0."],
    // A norm that the original's last layer has and does not use.
    beside: &["norm_final.weight", "final_layer.norm_final."],
    highlights: &["n_layers", "n_refiner_layers", "dim", "n_heads", "in_channels", "cap_feat_dim", "axes_dims"],
    follows: Follows::Same,
    label: "lumina2",
    reads: None,
};

/// See [`Aliases`](super::Aliases).
pub fn aliases(name: &str) -> Vec<Alternative> {
    std::iter::once(vec![Part::all(name)]).chain(diffusers(name)).collect()
}

/// The parts in diffusers' layout, which has queries, keys and values apart, and the size of a patch in two names.
fn diffusers(name: &str) -> Option<Alternative> {
    let (path, kind) = name.rsplit_once('.')?;
    let one = |theirs: String| Some(vec![Part::all(format!("{theirs}.{kind}"))]);
    if let Some((block, layer)) = path.rsplit_once(".attention.") {
        return match layer {
            "qkv" => {
                Some(["to_q", "to_k", "to_v"].map(|part| Part::all(format!("{block}.attention.{part}.{kind}"))).into())
            }
            "out" => one(format!("{block}.attention.to_out.0")),
            "q_norm" => one(format!("{block}.attention.norm_q")),
            "k_norm" => one(format!("{block}.attention.norm_k")),
            _ => None,
        };
    }
    match path {
        "x_embedder" => one("all_x_embedder.2-1".into()),
        _ => one(format!("all_final_layer.2-1.{}", path.strip_prefix("final_layer.")?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_diffusers(name: &str) -> Vec<String> {
        aliases(name).pop().unwrap_or_default().into_iter().map(|part| part.name).collect()
    }

    #[test]
    fn names_of_both_makers() {
        let parts =
            ["layers.3.attention.to_q.weight", "layers.3.attention.to_k.weight", "layers.3.attention.to_v.weight"];
        assert_eq!(in_diffusers("layers.3.attention.qkv.weight"), parts);
        for (ours, theirs) in [
            ("noise_refiner.1.attention.out.weight", "noise_refiner.1.attention.to_out.0.weight"),
            ("context_refiner.0.attention.q_norm.weight", "context_refiner.0.attention.norm_q.weight"),
            ("x_embedder.bias", "all_x_embedder.2-1.bias"),
            ("final_layer.adaLN_modulation.1.weight", "all_final_layer.2-1.adaLN_modulation.1.weight"),
            ("layers.0.feed_forward.w2.weight", "layers.0.feed_forward.w2.weight"),
        ] {
            assert_eq!(in_diffusers(ours), [theirs]);
        }
    }
}
