//! T5's encoder: canonical names are llama.cpp's; checkpoints have those of transformers.

use super::{Alternative, Follows, Kind, Part, Reads, Sign};

/// T5's encoder, as files know it.
pub static KIND: Kind = Kind {
    words: "T5 text encoder",
    what: "T5 encoder",
    signs: &[
        Sign::named("encoder.block.0.layer.0.SelfAttention.q.weight", "transformers names"),
        Sign::named("enc.blk.0.attn_q.weight", "llama.cpp names"),
        // Of files that lack their first block.
        Sign::named("encoder.block.1.layer.0.SelfAttention.q.weight", "transformers names"),
        Sign::named("enc.blk.1.attn_q.weight", "llama.cpp names"),
        // An encoder that was saved by itself.
        Sign::named("block.0.layer.0.SelfAttention.q.weight", "transformers names"),
    ],
    also: &["token_embd.weight"],
    beside: &[
        "decoder.",
        "dec.",
        "lm_head.",
        "output.weight",
        "spiece_model",
        // The table of tokens, which files hold under one or two names.
        "shared.",
        "encoder.embed_tokens.",
        "embed_tokens.",
    ],
    highlights: &["num_layers", "d_model", "num_heads", "d_ff", "feed_forward_proj", "vocab_size"],
    follows: Follows::Text,
    label: "",
    reads: Some(Reads::T5),
};

/// See [`Aliases`](super::Aliases).
pub fn aliases(canonical: &str) -> Vec<Alternative> {
    let mut names = vec![canonical.to_owned()];
    // Tied: files hold either or both.
    if canonical == "token_embd.weight" {
        names.push("shared.weight".into());
    }
    if let Some(name) = in_transformers(canonical) {
        names.extend([format!("encoder.{name}"), name]);
    }
    names.into_iter().map(|name| vec![Part::all(name)]).collect()
}

/// The name in transformers' encoder.
fn in_transformers(canonical: &str) -> Option<String> {
    match canonical {
        "token_embd.weight" => Some("embed_tokens.weight".into()),
        "enc.output_norm.weight" => Some("final_layer_norm.weight".into()),
        _ => in_block(canonical),
    }
}

/// The name in transformers' encoder of a weight of a block, `enc.blk.3.attn_q.weight`.
fn in_block(canonical: &str) -> Option<String> {
    let (block, weight) = canonical.strip_prefix("enc.blk.")?.split_once('.')?;
    let (_, name) = WEIGHTS.iter().find(|(ours, _)| weight.strip_suffix(".weight") == Some(ours))?;
    Some(format!("block.{block}.{name}.weight"))
}

/// What llama.cpp and transformers call the weights of a block.
const WEIGHTS: [(&str, &str); 10] = [
    ("attn_norm", "layer.0.layer_norm"),
    ("attn_q", "layer.0.SelfAttention.q"),
    ("attn_k", "layer.0.SelfAttention.k"),
    ("attn_v", "layer.0.SelfAttention.v"),
    ("attn_o", "layer.0.SelfAttention.o"),
    ("attn_rel_b", "layer.0.SelfAttention.relative_attention_bias"),
    ("ffn_norm", "layer.1.layer_norm"),
    ("ffn_gate", "layer.1.DenseReluDense.wi_0"),
    ("ffn_up", "layer.1.DenseReluDense.wi_1"),
    ("ffn_down", "layer.1.DenseReluDense.wo"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn names(canonical: &str) -> Vec<String> {
        aliases(canonical).into_iter().flatten().map(|part| part.name).collect()
    }

    #[test]
    fn blocks_have_both_kinds_of_names() {
        let theirs = "block.12.layer.0.SelfAttention.q.weight";
        let q = ["enc.blk.12.attn_q.weight", &format!("encoder.{theirs}"), theirs];
        assert_eq!(names("enc.blk.12.attn_q.weight"), q);
        let down = ["enc.blk.0.ffn_down.weight", "encoder.block.0.layer.1.DenseReluDense.wo.weight"];
        assert_eq!(names("enc.blk.0.ffn_down.weight")[..2], down);
    }

    #[test]
    fn the_embedding_is_shared() {
        let embedding = ["token_embd.weight", "shared.weight", "encoder.embed_tokens.weight"];
        assert_eq!(names("token_embd.weight")[..3], embedding);
    }

    #[test]
    fn unknown_names_stand_for_themselves() {
        assert_eq!(names("enc.blk.0.other.weight"), ["enc.blk.0.other.weight"]);
    }
}
