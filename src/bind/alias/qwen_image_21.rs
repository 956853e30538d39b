//! The Qwen-Image 2.1 transformer: canonical names are diffusers'; ComfyUI's files have two matrices of a block in one.

use super::{Alternative, Follows, Kind, Part, Rows, Sign};

/// The Qwen-Image 2.1 transformer, as files know it.
pub static KIND: Kind = Kind {
    words: "Qwen-Image 2.1 transformer",
    what: "Qwen-Image 2.1 transformer",
    signs: &[
        Sign::new("txt_in.text_norm.weight"),
        // Of files that lack what comes before their blocks.
        Sign::new("transformer_blocks.0.img_mlp.gate_layer.weight"),
        Sign::new("transformer_blocks.0.img_mlp.gate_up.weight"),
    ],
    also: &[],
    beside: &[],
    highlights: &[
        "num_layers",
        "num_attention_heads",
        "attention_head_dim",
        "in_channels",
        "context_in_dim",
        "mlp_ratio",
    ],
    follows: Follows::Same,
    label: "qwen_image",
    reads: None,
};

/// See [`Aliases`](super::Aliases).
pub fn aliases(name: &str) -> Vec<Alternative> {
    std::iter::once(vec![Part::all(name)]).chain(fused(name)).collect()
}

/// The half of ComfyUI's matrix that `name` is, if it is one.
fn fused(name: &str) -> Option<Alternative> {
    let (block, layer) = name.split_once(".img_mlp.")?;
    let (half, kind) = match layer.split_once('.')? {
        ("gate_layer", kind) => (Rows::FIRST, kind),
        ("proj", kind) => (Rows::SECOND, kind),
        _ => return None,
    };
    Some(vec![Part { name: format!("{block}.img_mlp.gate_up.{kind}"), rows: half }])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_matrices_may_be_one() {
        let halves =
            ["gate_layer", "proj"].map(|layer| aliases(&format!("transformer_blocks.3.img_mlp.{layer}.weight")));
        for (alternatives, rows) in halves.into_iter().zip([Rows::FIRST, Rows::SECOND]) {
            let name = "transformer_blocks.3.img_mlp.gate_up.weight".to_owned();
            assert_eq!(alternatives[1..], [vec![Part { name, rows }]]);
        }
        assert_eq!(aliases("transformer_blocks.3.img_mlp.out.weight").len(), 1);
    }
}
