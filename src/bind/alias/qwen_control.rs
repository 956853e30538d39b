//! ControlNets of Qwen-Image: all files have diffusers' names.

use super::{Alternative, Follows, Kind, Part, Sign};

/// A ControlNet of Qwen-Image, as files know it.
pub static KIND: Kind = Kind {
    words: "ControlNet of Qwen-Image",
    what: "ControlNet of Qwen-Image",
    signs: &[Sign::new("controlnet_x_embedder.weight").beside("transformer_blocks.0.img_mod.1.weight")],
    also: &["controlnet_x_embedder.", "controlnet_blocks.0."],
    beside: &[],
    highlights: &[
        "num_layers",
        "extra_condition_channels",
        "num_attention_heads",
        "attention_head_dim",
        "in_channels",
        "joint_attention_dim",
    ],
    follows: Follows::Same,
    label: "",
    reads: None,
};

/// See [`Aliases`](super::Aliases).
pub fn aliases(name: &str) -> Vec<Alternative> {
    vec![vec![Part::all(name)]]
}
