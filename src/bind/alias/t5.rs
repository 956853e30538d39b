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

/// The encoder of umt5, which has a relative bias in every layer, as files know it.
pub static UMT5: Kind = Kind {
    words: "UMT5 text encoder",
    what: "UMT5 encoder",
    signs: &[
        Sign::named("encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight", "transformers names"),
        Sign::named("enc.blk.1.attn_rel_b.weight", "llama.cpp names"),
        Sign::named("blocks.1.pos_embedding.embedding.weight", "original names"),
        // An encoder that was saved by itself.
        Sign::named("block.1.layer.0.SelfAttention.relative_attention_bias.weight", "transformers names"),
    ],
    ..KIND
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
    names.extend(of_wan(canonical));
    names.into_iter().map(|name| vec![Part::all(name)]).collect()
}

/// The name in the encoder that Wan's publisher gives.
fn of_wan(canonical: &str) -> Option<String> {
    match canonical {
        "token_embd.weight" => return Some("token_embedding.weight".into()),
        "enc.output_norm.weight" => return Some("norm.weight".into()),
        _ => {}
    }
    let (block, weight) = canonical.strip_prefix("enc.blk.")?.split_once('.')?;
    let (_, name) = OF_WAN.iter().find(|(ours, _)| weight.strip_suffix(".weight") == Some(ours))?;
    Some(format!("blocks.{block}.{name}.weight"))
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

/// What llama.cpp and Wan's publisher call the weights of a block.
const OF_WAN: [(&str, &str); 10] = [
    ("attn_norm", "norm1"),
    ("attn_q", "attn.q"),
    ("attn_k", "attn.k"),
    ("attn_v", "attn.v"),
    ("attn_o", "attn.o"),
    ("attn_rel_b", "pos_embedding.embedding"),
    ("ffn_norm", "norm2"),
    ("ffn_gate", "ffn.gate.0"),
    ("ffn_up", "ffn.fc1"),
    ("ffn_down", "ffn.fc2"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn names(canonical: &str) -> Vec<String> {
        aliases(canonical).into_iter().flatten().map(|part| part.name).collect()
    }

    #[test]
    fn blocks_have_all_kinds_of_names() {
        let theirs = "block.12.layer.0.SelfAttention.q.weight";
        let q = ["enc.blk.12.attn_q.weight", &format!("encoder.{theirs}"), theirs, "blocks.12.attn.q.weight"];
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
