//! Language models: canonical names are llama.cpp's; checkpoints have those of transformers.

use super::{Alternative, Follows, Kind, Part, Reads, Sign};

/// A decoder-only language model, as files know it.
pub static KIND: Kind = Kind {
    words: "language model",
    what: "language model",
    signs: &[
        Sign::named("model.layers.0.mlp.gate_proj.weight", "transformers names"),
        Sign::named("blk.0.attn_output.weight", "llama.cpp names"),
        Sign::named("language_model.layers.0.mlp.gate_proj.weight", "transformers names"),
        // Of files that lack their first block.
        Sign::named("model.layers.1.mlp.gate_proj.weight", "transformers names"),
        Sign::named("blk.1.attn_output.weight", "llama.cpp names"),
        // The layers without what makes words of their states.
        Sign::named("layers.0.mlp.gate_proj.weight", "transformers names"),
    ],
    also: &["token_embd.weight"],
    beside: &[
        "lm_head.",
        "output.weight",
        // The norm of the last layer, which encoders that stop before it do not read.
        "output_norm.weight",
        "model.norm.weight",
        "model.language_model.norm.weight",
        "language_model.norm.weight",
        "norm.weight",
        "rope_freqs.weight",
        // What models have that see.
        "visual.",
        "model.visual.",
        "vision_tower.",
        "model.vision_tower.",
        "multi_modal_projector.",
        "model.multi_modal_projector.",
        "tekken_model",
    ],
    highlights: &[
        "model_type",
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "vocab_size",
    ],
    follows: Follows::Text,
    label: "",
    reads: Some(Reads::Words),
};

/// See [`Aliases`](super::Aliases).
pub fn aliases(canonical: &str) -> Vec<Alternative> {
    let mut names = vec![canonical.to_owned()];
    if let Some(name) = in_transformers(canonical) {
        let places = ["model.", "", "model.language_model.", "language_model.", "language_model.model."];
        names.extend(places.map(|place| format!("{place}{name}")));
    }
    names.into_iter().map(|name| vec![Part::all(name)]).collect()
}

/// The name in transformers' model.
fn in_transformers(canonical: &str) -> Option<String> {
    match canonical {
        "token_embd.weight" => Some("embed_tokens.weight".into()),
        "output_norm.weight" => Some("norm.weight".into()),
        _ => {
            let (block, weight) = canonical.strip_prefix("blk.")?.split_once('.')?;
            let (layer, kind) = weight.rsplit_once('.')?;
            let (_, name) = LAYERS.iter().find(|(ours, _)| layer == *ours)?;
            Some(format!("layers.{block}.{name}.{kind}"))
        }
    }
}

/// What llama.cpp and transformers call the layers of a block.
const LAYERS: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn names(canonical: &str) -> Vec<String> {
        aliases(canonical).into_iter().flatten().map(|part| part.name).collect()
    }

    #[test]
    fn blocks_have_both_kinds_of_names() {
        let theirs = "layers.12.self_attn.q_proj.bias";
        assert_eq!(names("blk.12.attn_q.bias")[..3], ["blk.12.attn_q.bias", &format!("model.{theirs}"), theirs]);
        let norm = ["blk.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm.weight"];
        assert_eq!(names("blk.0.ffn_norm.weight")[..2], norm);
        assert_eq!(names("token_embd.weight")[1], "model.embed_tokens.weight");
        assert_eq!(names("blk.0.other.weight"), ["blk.0.other.weight"]);
    }
}
