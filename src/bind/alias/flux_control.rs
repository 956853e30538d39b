//! ControlNets of FLUX.1: the names of XLabs, which has original names for what the model has as well, and diffusers'.

use super::{Alternative, Follows, Kind, Part, Sign, flux};

/// A ControlNet of FLUX.1, as files know it.
pub static KIND: Kind = Kind {
    words: "ControlNet of FLUX.1",
    what: "ControlNet of FLUX.1",
    signs: &[
        Sign::named("controlnet_x_embedder.weight", "diffusers names"),
        Sign::named("pos_embed_input.weight", "original names"),
    ],
    also: &["controlnet_x_embedder.", "transformer_blocks.0.ff_context.", "input_hint_block.0."],
    beside: &[],
    highlights: &[
        "num_layers",
        "num_single_layers",
        "num_mode",
        "conditioning_embedding_channels",
        "extra_condition_channels",
        "num_attention_heads",
        "attention_head_dim",
        "in_channels",
        "joint_attention_dim",
        "pooled_projection_dim",
        "guidance_embeds",
    ],
    follows: Follows::Same,
    label: "",
    reads: None,
};

/// Diffusers' names for the convolutions of XLabs' `input_hint_block`, in which every second entry is a function.
const HINT: [&str; 8] = ["conv_in", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "blocks.4", "blocks.5", "conv_out"];

/// See [`Aliases`](super::Aliases).
pub fn aliases(name: &str) -> Vec<Alternative> {
    let mut all = flux::aliases(name);
    all.extend(own(name).map(|name| vec![Part::all(name)]));
    all
}

/// What `name` is called in files of the other kind.
fn own(name: &str) -> Option<String> {
    if let Some(kind) = name.strip_prefix("controlnet_x_embedder.") {
        return Some(format!("pos_embed_input.{kind}"));
    }
    let (number, kind) = name.strip_prefix("input_hint_block.")?.split_once('.')?;
    let convolution = HINT.get(number.parse::<usize>().ok()? / 2)?;
    Some(format!("input_hint_block.{convolution}.{kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_both_makers_are_known() {
        let all = |name: &str| -> Vec<String> { aliases(name).into_iter().flatten().map(|part| part.name).collect() };
        assert!(all("controlnet_x_embedder.bias").contains(&"pos_embed_input.bias".to_owned()));
        assert!(all("input_hint_block.14.weight").contains(&"input_hint_block.conv_out.weight".to_owned()));
        assert!(all("input_hint_block.4.bias").contains(&"input_hint_block.blocks.1.bias".to_owned()));
        assert_eq!(all("controlnet_blocks.3.weight"), ["controlnet_blocks.3.weight"]);
    }
}
