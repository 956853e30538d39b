//! The Qwen-Image transformer: all files have diffusers' names.

use super::{Alternative, Follows, Kind, Part, Sign};

/// The Qwen-Image transformer, as files know it.
pub static KIND: Kind = Kind {
    words: "Qwen-Image transformer",
    what: "Qwen-Image transformer",
    signs: &[
        Sign::new("transformer_blocks.0.img_mod.1.weight"),
        // Of files that lack their first block.
        Sign::new("transformer_blocks.1.img_mod.1.weight"),
    ],
    also: &[],
    beside: &[],
    highlights: &[
        "num_layers",
        "num_attention_heads",
        "attention_head_dim",
        "in_channels",
        "joint_attention_dim",
        "zero_cond_t",
    ],
    follows: Follows::Same,
    label: "qwen_image",
    reads: None,
};

/// See [`Aliases`](super::Aliases).
pub fn aliases(name: &str) -> Vec<Alternative> {
    vec![vec![Part::all(name)]]
}
