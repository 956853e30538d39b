//! The FLUX.2 transformer: original names, and diffusers' split layout.

use super::{Alternative, Follows, Kind, Part, Rows, Sign};

/// The FLUX.2 transformer, as files know it.
pub static KIND: Kind = Kind {
    words: "FLUX.2 transformer",
    what: "FLUX.2 transformer",
    signs: &[
        Sign::named("double_stream_modulation_img.lin.weight", "original names"),
        Sign::named("double_stream_modulation_img.linear.weight", "diffusers names"),
    ],
    also: &["transformer_blocks.0.ff_context.", "double_stream_modulation_img."],
    beside: &[],
    highlights: &[
        "num_layers",
        "num_single_layers",
        "num_attention_heads",
        "attention_head_dim",
        "axes_dims_rope",
        "in_channels",
        "joint_attention_dim",
        "guidance_embeds",
    ],
    follows: Follows::Same,
    label: "flux",
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

/// The parts in diffusers' layout, which has queries, keys and values of double blocks apart, and scale before shift at the end.
fn diffusers(name: &str) -> Option<Alternative> {
    let (path, kind) = name.rsplit_once('.')?; // kind: weight, scale
    // Norm scales are called `scale` in original files and `weight` in diffusers'.
    let kind = if path.ends_with("_norm") { "weight" } else { kind };
    if let Some((block, layer)) = path.strip_prefix("double_blocks.").and_then(|rest| rest.split_once('.')) {
        let names = double_block(layer)?;
        return Some(names.iter().map(|name| Part::all(format!("transformer_blocks.{block}.{name}.{kind}"))).collect());
    }
    if let Some((block, layer)) = path.strip_prefix("single_blocks.").and_then(|rest| rest.split_once('.')) {
        let name = single_block(layer)?;
        return Some(vec![Part::all(format!("single_transformer_blocks.{block}.attn.{name}.{kind}"))]);
    }
    if path == "final_layer.adaLN_modulation.1" {
        let half = |rows| Part { name: format!("norm_out.linear.{kind}"), rows };
        return Some(vec![half(Rows::SECOND), half(Rows::FIRST)]);
    }
    let simple = match path {
        "img_in" => "x_embedder",
        "txt_in" => "context_embedder",
        "time_in.in_layer" => "time_guidance_embed.timestep_embedder.linear_1",
        "time_in.out_layer" => "time_guidance_embed.timestep_embedder.linear_2",
        "guidance_in.in_layer" => "time_guidance_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer" => "time_guidance_embed.guidance_embedder.linear_2",
        "double_stream_modulation_img.lin" => "double_stream_modulation_img.linear",
        "double_stream_modulation_txt.lin" => "double_stream_modulation_txt.linear",
        "single_stream_modulation.lin" => "single_stream_modulation.linear",
        "final_layer.linear" => "proj_out",
        _ => return None,
    };
    Some(vec![Part::all(format!("{simple}.{kind}"))])
}

fn double_block(layer: &str) -> Option<&'static [&'static str]> {
    Some(match layer {
        "img_attn.qkv" => &["attn.to_q", "attn.to_k", "attn.to_v"],
        "txt_attn.qkv" => &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
        "img_attn.norm.query_norm" => &["attn.norm_q"],
        "img_attn.norm.key_norm" => &["attn.norm_k"],
        "txt_attn.norm.query_norm" => &["attn.norm_added_q"],
        "txt_attn.norm.key_norm" => &["attn.norm_added_k"],
        "img_attn.proj" => &["attn.to_out.0"],
        "txt_attn.proj" => &["attn.to_add_out"],
        "img_mlp.0" => &["ff.linear_in"],
        "img_mlp.2" => &["ff.linear_out"],
        "txt_mlp.0" => &["ff_context.linear_in"],
        "txt_mlp.2" => &["ff_context.linear_out"],
        _ => return None,
    })
}

fn single_block(layer: &str) -> Option<&'static str> {
    Some(match layer {
        "linear1" => "to_qkv_mlp_proj",
        "linear2" => "to_out",
        "norm.query_norm" => "norm_q",
        "norm.key_norm" => "norm_k",
        _ => return None,
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
        let parts = ["to_q", "to_k", "to_v"].map(|part| format!("transformer_blocks.3.attn.{part}.weight"));
        assert_eq!(in_diffusers("double_blocks.3.img_attn.qkv.weight"), parts);
        for (ours, theirs) in [
            ("double_blocks.0.txt_attn.norm.key_norm.scale", "transformer_blocks.0.attn.norm_added_k.weight"),
            ("double_blocks.7.txt_mlp.2.weight", "transformer_blocks.7.ff_context.linear_out.weight"),
            ("single_blocks.19.linear1.weight", "single_transformer_blocks.19.attn.to_qkv_mlp_proj.weight"),
            ("single_blocks.0.norm.query_norm.scale", "single_transformer_blocks.0.attn.norm_q.weight"),
            ("guidance_in.out_layer.weight", "time_guidance_embed.guidance_embedder.linear_2.weight"),
            ("single_stream_modulation.lin.weight", "single_stream_modulation.linear.weight"),
        ] {
            assert_eq!(in_diffusers(ours), [theirs]);
        }
        let parts = aliases("final_layer.adaLN_modulation.1.weight").pop().unwrap_or_default();
        assert_eq!(parts.iter().map(|part| part.rows).collect::<Vec<_>>(), [Rows::SECOND, Rows::FIRST]);
        assert_eq!(
            aliases("single_blocks.0.norm.query_norm.scale")[1][0].name,
            "single_blocks.0.norm.query_norm.weight"
        );
    }
}
