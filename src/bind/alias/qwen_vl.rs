//! The vision tower of Qwen2.5-VL: canonical names are those of transformers; llama.cpp has others, in a file of its own (`mmproj`).

use super::{Alternative, Follows, Kind, Part, Sign};

/// The vision tower, as files know it.
pub static KIND: Kind = Kind {
    words: "Qwen2.5-VL vision tower",
    what: "Qwen2.5-VL vision tower",
    signs: &[
        Sign::named("visual.merger.ln_q.weight", "transformers names"),
        Sign::named("v.patch_embd.weight.1", "llama.cpp names"),
    ],
    also: &[],
    // What files have that hold the language model as well.
    beside: &[
        "model.layers.",
        "model.embed_tokens.",
        "model.norm.",
        "language_model.",
        "model.language_model.",
        "lm_head.",
        "layers.",
        "embed_tokens.",
        "norm.",
    ],
    highlights: &["depth", "hidden_size", "num_heads", "patch_size", "window_size", "out_hidden_size"],
    follows: Follows::Text,
    label: "",
    reads: None,
};

/// See [`Aliases`](super::Aliases).
pub fn aliases(canonical: &str) -> Vec<Alternative> {
    let own = canonical.strip_prefix("visual.").unwrap_or(canonical);
    // Both frames of a patch are planes of one kernel.
    for (at, frame) in ["0", "1"].into_iter().enumerate() {
        if own == format!("patch_embed.proj.{frame}.weight") {
            let llama = if at == 0 { "v.patch_embd.weight" } else { "v.patch_embd.weight.1" };
            let whole = Part::plane("visual.patch_embed.proj.weight", at);
            return vec![vec![Part::all(canonical)], vec![whole], vec![Part::all(llama)]];
        }
    }
    std::iter::once(vec![Part::all(canonical)]).chain(in_llama(own)).collect()
}

/// The parts in llama.cpp's layout, which has queries, keys and values apart.
fn in_llama(own: &str) -> Option<Alternative> {
    let (path, kind) = own.rsplit_once('.')?;
    let one = |name: &str| Some(vec![Part::all(format!("{name}.{kind}"))]);
    match path {
        "merger.ln_q" => return one("v.post_ln"),
        "merger.mlp.0" => return one("mm.0"),
        "merger.mlp.2" => return one("mm.2"),
        _ => {}
    }
    let (block, layer) = path.strip_prefix("blocks.")?.split_once('.')?;
    if layer == "attn.qkv" {
        return Some(
            ["attn_q", "attn_k", "attn_v"].map(|part| Part::all(format!("v.blk.{block}.{part}.{kind}"))).into(),
        );
    }
    let (_, name) = LAYERS.iter().find(|(ours, _)| *ours == layer)?;
    one(&format!("v.blk.{block}.{name}"))
}

/// What transformers and llama.cpp call the layers of a block.
const LAYERS: [(&str, &str); 6] = [
    ("norm1", "ln1"),
    ("attn.proj", "attn_out"),
    ("norm2", "ln2"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn names(canonical: &str) -> Vec<String> {
        aliases(canonical).into_iter().flatten().map(|part| part.name).collect()
    }

    #[test]
    fn names_of_both_makers() {
        let qkv =
            ["visual.blocks.3.attn.qkv.bias", "v.blk.3.attn_q.bias", "v.blk.3.attn_k.bias", "v.blk.3.attn_v.bias"];
        assert_eq!(names("visual.blocks.3.attn.qkv.bias"), qkv);
        assert_eq!(names("visual.blocks.0.mlp.gate_proj.weight")[1], "v.blk.0.ffn_gate.weight");
        assert_eq!(names("visual.merger.ln_q.weight")[1], "v.post_ln.weight");
        let kernels = names("visual.patch_embed.proj.1.weight");
        assert_eq!(kernels[1..], ["visual.patch_embed.proj.weight", "v.patch_embd.weight.1"]);
    }
}
