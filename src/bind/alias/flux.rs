//! The FLUX transformer: original names, and diffusers' split layout.

use super::{Alternative, Follows, Kind, Part, Rows, Sign};

/// The FLUX transformer, as files know it.
pub static KIND: Kind = Kind {
    words: "transformer",
    what: "FLUX transformer",
    signs: &[
        Sign::named("double_blocks.0.img_attn.qkv.weight", "original names"),
        Sign::named("single_transformer_blocks.0.norm.linear.weight", "diffusers names"),
        // Of files that lack their first block.
        Sign::named("single_blocks.0.linear1.weight", "original names"),
        Sign::named("single_transformer_blocks.1.norm.linear.weight", "diffusers names"),
    ],
    also: &["transformer_blocks.0.ff_context."],
    beside: &[],
    highlights: &[
        "num_layers",
        "num_single_layers",
        "num_attention_heads",
        "attention_head_dim",
        "axes_dims_rope",
        "in_channels",
        "joint_attention_dim",
        "pooled_projection_dim",
        "guidance_embeds",
    ],
    follows: Follows::Same,
    label: "",
    reads: None,
};

/// See [`Aliases`](super::Aliases).
pub fn aliases(name: &str) -> Vec<Alternative> {
    let own = std::iter::once(name.to_owned()).chain(repacked(name)).map(|name| vec![Part::all(name)]);
    own.chain(fused(name)).chain(diffusers(name)).collect()
}

/// What ComfyUI calls the scales of norms, in files that it saved since early 2026.
fn repacked(name: &str) -> Option<String> {
    Some(format!("{}.weight", name.strip_suffix(".scale")?))
}

/// The parts in diffusers' layout after its `fuse_qkv_projections`, with queries, keys and values in one.
fn fused(name: &str) -> Option<Alternative> {
    let (path, kind) = name.rsplit_once('.')?;
    if let Some((block, layer)) = path.strip_prefix("double_blocks.").and_then(|rest| rest.split_once('.')) {
        let theirs = match layer {
            "img_attn.qkv" => "to_qkv",
            "txt_attn.qkv" => "to_added_qkv",
            _ => return None,
        };
        return Some(vec![Part::all(format!("transformer_blocks.{block}.attn.{theirs}.{kind}"))]);
    }
    let block = path.strip_prefix("single_blocks.")?.strip_suffix(".linear1")?;
    let parts = ["attn.to_qkv", "proj_mlp"];
    Some(parts.map(|part| Part::all(format!("single_transformer_blocks.{block}.{part}.{kind}"))).into())
}

/// The parts in diffusers' layout, which has queries, keys and values apart, and scale before shift at the end.
fn diffusers(name: &str) -> Option<Alternative> {
    let (path, kind) = name.rsplit_once('.')?; // kind: weight, bias, scale
    if let Some((block, layer)) = path.strip_prefix("double_blocks.").and_then(|rest| rest.split_once('.')) {
        return Some(block_parts(&format!("transformer_blocks.{block}"), layer, double_block(layer)?, kind));
    }
    if let Some((block, layer)) = path.strip_prefix("single_blocks.").and_then(|rest| rest.split_once('.')) {
        return Some(block_parts(&format!("single_transformer_blocks.{block}"), layer, single_block(layer)?, kind));
    }
    if path == "final_layer.adaLN_modulation.1" {
        let half = |rows| Part { name: format!("norm_out.linear.{kind}"), rows };
        return Some(vec![half(Rows::SECOND), half(Rows::FIRST)]);
    }
    let embedder = |from: &str, to: &str| {
        let layer = path.strip_prefix(from)?;
        let number = match layer {
            ".in_layer" => 1,
            ".out_layer" => 2,
            _ => return None,
        };
        Some(format!("time_text_embed.{to}.linear_{number}"))
    };
    let simple = match path {
        "img_in" => Some("x_embedder".into()),
        "txt_in" => Some("context_embedder".into()),
        "final_layer.linear" => Some("proj_out".into()),
        _ => embedder("time_in", "timestep_embedder")
            .or_else(|| embedder("guidance_in", "guidance_embedder"))
            .or_else(|| embedder("vector_in", "text_embedder")),
    };
    Some(vec![Part::all(format!("{}.{kind}", simple?))])
}

/// `names` within a block. Norm scales are called `scale` in original files and `weight` in diffusers'.
fn block_parts(block: &str, layer: &str, names: &[&str], kind: &str) -> Alternative {
    let kind = if layer.ends_with("_norm") { "weight" } else { kind };
    names.iter().map(|name| Part::all(format!("{block}.{name}.{kind}"))).collect()
}

fn double_block(layer: &str) -> Option<&'static [&'static str]> {
    Some(match layer {
        "img_mod.lin" => &["norm1.linear"],
        "txt_mod.lin" => &["norm1_context.linear"],
        "img_attn.qkv" => &["attn.to_q", "attn.to_k", "attn.to_v"],
        "txt_attn.qkv" => &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
        "img_attn.norm.query_norm" => &["attn.norm_q"],
        "img_attn.norm.key_norm" => &["attn.norm_k"],
        "txt_attn.norm.query_norm" => &["attn.norm_added_q"],
        "txt_attn.norm.key_norm" => &["attn.norm_added_k"],
        "img_attn.proj" => &["attn.to_out.0"],
        "txt_attn.proj" => &["attn.to_add_out"],
        "img_mlp.0" => &["ff.net.0.proj"],
        "img_mlp.2" => &["ff.net.2"],
        "txt_mlp.0" => &["ff_context.net.0.proj"],
        "txt_mlp.2" => &["ff_context.net.2"],
        _ => return None,
    })
}

fn single_block(layer: &str) -> Option<&'static [&'static str]> {
    Some(match layer {
        "modulation.lin" => &["norm.linear"],
        "linear1" => &["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"],
        "linear2" => &["proj_out"],
        "norm.query_norm" => &["attn.norm_q"],
        "norm.key_norm" => &["attn.norm_k"],
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_diffusers(name: &str) -> Vec<String> {
        let parts = aliases(name).pop().unwrap_or_default();
        parts.into_iter().map(|part| part.name).collect()
    }

    #[test]
    fn fused_layers_have_their_parts_in_order() {
        assert_eq!(
            in_diffusers("single_blocks.7.linear1.bias"),
            ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"]
                .map(|n| format!("single_transformer_blocks.7.{n}.bias"))
        );
        assert_eq!(
            in_diffusers("double_blocks.0.txt_attn.norm.key_norm.scale"),
            ["transformer_blocks.0.attn.norm_added_k.weight"]
        );
        assert_eq!(in_diffusers("guidance_in.out_layer.weight"), ["time_text_embed.guidance_embedder.linear_2.weight"]);
    }

    #[test]
    fn scales_and_queries_have_more_names() {
        let all = |name: &str| -> Vec<Vec<String>> {
            aliases(name).into_iter().map(|parts| parts.into_iter().map(|part| part.name).collect()).collect()
        };
        let norm = "single_blocks.7.norm.query_norm";
        assert_eq!(all(&format!("{norm}.scale"))[..2], [[format!("{norm}.scale")], [format!("{norm}.weight")]]);
        let fused = all("double_blocks.0.txt_attn.qkv.bias");
        assert_eq!(fused[1], ["transformer_blocks.0.attn.to_added_qkv.bias"]);
        let single = ["single_transformer_blocks.3.attn.to_qkv.weight", "single_transformer_blocks.3.proj_mlp.weight"];
        assert_eq!(all("single_blocks.3.linear1.weight")[1], single);
        assert_eq!(all("img_in.weight").len(), 2);
    }

    #[test]
    fn the_last_modulation_is_swapped() {
        let parts = aliases("final_layer.adaLN_modulation.1.weight").pop().unwrap_or_default();
        assert_eq!(parts.iter().map(|part| part.rows).collect::<Vec<_>>(), [Rows::SECOND, Rows::FIRST]);
    }
}
