//! ControlNets of Stable Diffusion: canonical names are the original ones, behind `control_model.` or alone; diffusers has others.

use super::unet::{self, Layout as UnetLayout};
use super::{Alternative, Follows, Kind, Part, Rows, Sign};

/// A ControlNet of Stable Diffusion, as files know it.
pub static KIND: Kind = Kind {
    words: "ControlNet of Stable Diffusion",
    what: "ControlNet of Stable Diffusion",
    signs: &[
        Sign::named("zero_convs.0.0.weight", "original names"),
        Sign::named("controlnet_down_blocks.0.weight", "diffusers names"),
    ],
    also: &["input_hint_block.0.", "mid_block.attentions.0.transformer_blocks."],
    beside: &[],
    highlights: &[
        "in_channels",
        "block_out_channels",
        "layers_per_block",
        "attention_head_dim",
        "cross_attention_dim",
        "addition_embed_type",
        "conditioning_embedding_out_channels",
        "controlnet_conditioning_channel_order",
        "global_pool_conditions",
        "num_control_type",
    ],
    follows: Follows::Same,
    label: "",
    reads: None,
};

/// What diffusers' names depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// That of the way down.
    pub unet: UnetLayout,
    /// How many convolutions a picture's pixels go through.
    pub hints: usize,
}

/// Every way in which a file may hold the weight with this canonical name, in a ControlNet of this `layout`.
pub fn aliases(layout: &Layout, canonical: &str) -> Vec<Alternative> {
    if let Some((layer, leaf)) = canonical.split_once(".attn.v.") {
        let name = format!("{layer}.attn.in_proj_{leaf}");
        return vec![vec![Part::all(canonical)], vec![Part { name, rows: VALUES }]];
    }
    match own(layout, canonical) {
        Some(other) => vec![vec![Part::all(canonical)], vec![Part::all(other)]],
        None => unet::aliases(&layout.unet, canonical),
    }
}

/// Of the projections of attention, which lie in one tensor, the third.
const VALUES: Rows = Rows::Part { at: 2, of: 3 };

/// What diffusers calls a weight that a UNet does not have.
fn own(layout: &Layout, canonical: &str) -> Option<String> {
    if let Some(leaf) = canonical.strip_prefix("middle_block_out.0.") {
        return Some(format!("controlnet_mid_block.{leaf}"));
    }
    if let Some(rest) = canonical.strip_prefix("zero_convs.") {
        let (number, leaf) = rest.split_once(".0.")?;
        return Some(format!("controlnet_down_blocks.{number}.{leaf}"));
    }
    if let Some(rest) = canonical.strip_prefix("control_add_embedding.") {
        let (number, leaf) = rest.split_once('.')?;
        return Some(format!("control_add_embedding.linear_{}.{leaf}", if number == "0" { 1 } else { 2 }));
    }
    let (place, leaf) = canonical.strip_prefix("input_hint_block.")?.split_once('.')?;
    // Every second entry of the original list is a function.
    let place = place.parse::<usize>().ok()? / 2;
    let convolution = match place {
        0 => "conv_in".to_owned(),
        last if last + 1 == layout.hints => "conv_out".to_owned(),
        inside => format!("blocks.{}", inside - 1),
    };
    Some(format!("controlnet_cond_embedding.{convolution}.{leaf}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_both_makers_are_known() {
        let layout = Layout { unet: UnetLayout { layers: vec![2; 4] }, hints: 8 };
        for (canonical, name) in [
            ("input_hint_block.0.weight", "controlnet_cond_embedding.conv_in.weight"),
            ("input_hint_block.2.bias", "controlnet_cond_embedding.blocks.0.bias"),
            ("input_hint_block.12.weight", "controlnet_cond_embedding.blocks.5.weight"),
            ("input_hint_block.14.weight", "controlnet_cond_embedding.conv_out.weight"),
            ("zero_convs.11.0.bias", "controlnet_down_blocks.11.bias"),
            ("middle_block_out.0.weight", "controlnet_mid_block.weight"),
            ("input_blocks.4.1.proj_in.weight", "down_blocks.1.attentions.0.proj_in.weight"),
            ("control_add_embedding.2.bias", "control_add_embedding.linear_2.bias"),
            ("transformer_layes.0.attn.v.bias", "transformer_layes.0.attn.in_proj_bias"),
        ] {
            let names: Vec<String> = aliases(&layout, canonical).into_iter().flatten().map(|part| part.name).collect();
            assert_eq!(names, [canonical, name]);
        }
    }
}
