//! The FLUX.3 transformer: original names, and those of diffusers.

use super::{Alternative, Follows, Kind, Part, Rows, Sign};

/// The FLUX.3 transformer, as files know it.
pub static KIND: Kind = Kind {
    words: "FLUX.3 transformer",
    what: "FLUX.3 transformer",
    signs: &[
        Sign::named("early_stream_modulations.image.lin.weight", "original names"),
        Sign::named("early_stream_modulations.image.linear.weight", "diffusers names"),
    ],
    also: &[],
    // What helped training.
    beside: &["repa_projectors."],
    highlights: &[
        "num_layers",
        "num_single_layers",
        "num_attention_heads",
        "attention_head_dim",
        "axes_dims_rope",
        "in_channels",
        "joint_attention_dim",
        "flow_map",
    ],
    follows: Follows::Same,
    label: "",
    reads: None,
};

/// See [`Aliases`](super::Aliases).
pub fn aliases(name: &str) -> Vec<Alternative> {
    let own = std::iter::once(name.to_owned()).chain(repacked(name)).map(|name| vec![Part::all(name)]);
    own.chain(diffusers(name)).collect()
}

/// What ComfyUI calls the scales of norms, in files that it saves.
fn repacked(name: &str) -> Option<String> {
    Some(format!("{}.weight", name.strip_suffix(".scale")?))
}

/// How layers are called whose names begin so: here, and in diffusers.
const PLACES: [(&str, &str); 4] = [
    ("content_mode_blocks.", "mode_blocks."),
    ("single_blocks.", "single_transformer_blocks."),
    ("emb_in.", "x_embedders."),
    ("txt_mode_blocks.", "txt_mode_blocks."),
];

/// What the layers of a block are called: here, and in diffusers.
const LAYERS: [(&str, &str); 8] = [
    ("q_proj", "attn.to_q"),
    ("k_proj", "attn.to_k"),
    ("v_proj", "attn.to_v"),
    ("norm.query_norm", "attn.norm_q"),
    ("norm.key_norm", "attn.norm_k"),
    ("attn_out", "attn.to_out.0"),
    ("mlp_in", "ff.linear_in"),
    ("mlp_out", "ff.linear_out"),
];

/// The others.
const OTHERS: [(&str, &str); 6] = [
    ("txt_in", "context_embedder"),
    ("time_in.in_layer", "timestep_embedder.linear_1"),
    ("time_in.out_layer", "timestep_embedder.linear_2"),
    ("ref_time_in.in_layer", "target_timestep_embedder.linear_1"),
    ("ref_time_in.out_layer", "target_timestep_embedder.linear_2"),
    ("final_layer.image.linear", "proj_out"),
];

/// The parts in diffusers' layout, which has scale before shift at the end.
fn diffusers(name: &str) -> Option<Alternative> {
    let (path, kind) = name.rsplit_once('.')?; // kind: weight, scale
    // Norm scales are called `scale` in original files and `weight` in diffusers'.
    let kind = if path.ends_with("_norm") { "weight" } else { kind };
    if path == "final_layer.image.adaLN_modulation.1" {
        let half = |rows| Part { name: format!("norm_out.linear.{kind}"), rows };
        return Some(vec![half(Rows::SECOND), half(Rows::FIRST)]);
    }
    let theirs = match OTHERS.iter().find(|(ours, _)| *ours == path) {
        Some((_, theirs)) => (*theirs).to_owned(),
        None => within(path)?,
    };
    Some(vec![Part::all(format!("{theirs}.{kind}"))])
}

/// What diffusers calls a modulation, an embedding, or a layer of a block.
fn within(path: &str) -> Option<String> {
    if let Some(modulation) = path.strip_suffix(".lin") {
        return Some(format!("{modulation}.linear"));
    }
    let (ours, theirs) = PLACES.iter().find(|(ours, _)| path.starts_with(ours))?;
    let rest = path.strip_prefix(ours)?;
    let layer = LAYERS.iter().find_map(|(own, name)| Some((rest.strip_suffix(own)?.strip_suffix('.')?, name)));
    Some(match layer {
        Some((block, layer)) => format!("{theirs}{block}.{layer}"),
        None => format!("{theirs}{rest}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_diffusers(name: &str) -> Vec<String> {
        aliases(name).pop().unwrap_or_default().into_iter().map(|part| part.name).collect()
    }

    #[test]
    fn names_of_both_makers() {
        for (ours, theirs) in [
            ("content_mode_blocks.image_cond.3.q_proj.weight", "mode_blocks.image_cond.3.attn.to_q.weight"),
            ("content_mode_blocks.image.0.norm.key_norm.scale", "mode_blocks.image.0.attn.norm_k.weight"),
            ("txt_mode_blocks.4.mlp_out.weight", "txt_mode_blocks.4.ff.linear_out.weight"),
            ("single_blocks.19.attn_out.weight", "single_transformer_blocks.19.attn.to_out.0.weight"),
            ("single_stream_modulations.txt.lin.weight", "single_stream_modulations.txt.linear.weight"),
            ("emb_in.image_cond.weight", "x_embedders.image_cond.weight"),
            ("txt_in.weight", "context_embedder.weight"),
            ("ref_time_in.out_layer.weight", "target_timestep_embedder.linear_2.weight"),
            ("final_layer.image.linear.weight", "proj_out.weight"),
        ] {
            assert_eq!(in_diffusers(ours), [theirs]);
        }
        let parts = aliases("final_layer.image.adaLN_modulation.1.weight").pop().unwrap_or_default();
        assert_eq!(parts.iter().map(|part| part.rows).collect::<Vec<_>>(), [Rows::SECOND, Rows::FIRST]);
        assert_eq!(
            aliases("single_blocks.0.norm.query_norm.scale")[1][0].name,
            "single_blocks.0.norm.query_norm.weight"
        );
        assert_eq!(aliases("other.weight").len(), 1);
    }
}
