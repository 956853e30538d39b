//! The UNet of Stable Diffusion: canonical names are the original ones; diffusers has others.

use super::{Alternative, Follows, Kind, Part, Sign};

/// The UNet of Stable Diffusion, as files know it.
pub static KIND: Kind = Kind {
    words: "UNet",
    what: "Stable Diffusion UNet",
    signs: &[
        Sign::named("input_blocks.0.0.weight", "original names"),
        Sign::named("down_blocks.0.resnets.0.time_emb_proj.weight", "diffusers names"),
    ],
    also: &["mid_block.attentions.0.transformer_blocks."],
    beside: &[],
    highlights: &[
        "in_channels",
        "block_out_channels",
        "layers_per_block",
        "attention_head_dim",
        "cross_attention_dim",
        "use_linear_projection",
        "addition_embed_type",
    ],
    follows: Follows::Same,
    label: "",
    reads: None,
};

/// What diffusers' names depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// How many residual blocks each level has on the way down.
    pub layers: Vec<usize>,
}

impl Layout {
    /// The level of block `n` and its place there, where the levels have `blocks` blocks.
    fn place(blocks: impl Iterator<Item = usize>, mut n: usize) -> Option<(usize, usize)> {
        for (level, blocks) in blocks.enumerate() {
            match n.checked_sub(blocks) {
                Some(left) => n = left,
                None => return Some((level, n)),
            }
        }
        None
    }
}

/// For a canonical name of a UNet of this `layout`, every way in which a file may hold the weight.
pub fn aliases(layout: &Layout, canonical: &str) -> Vec<Alternative> {
    let other = diffusers(layout, canonical);
    std::iter::once(canonical.to_owned()).chain(other).map(|name| vec![Part::all(name)]).collect()
}

/// The layers of a residual block, and diffusers' names for them.
const RESNET: [(&str, &str); 6] = [
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
];

/// What stands before and after the blocks.
const ENDS: [(&str, &str); 8] = [
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("time_embed.cond_proj", "time_embedding.cond_proj"),
    ("label_emb.0.0", "add_embedding.linear_1"),
    ("label_emb.0.2", "add_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
];

/// The name in diffusers; `None` for a name that is not one of a UNet's.
fn diffusers(layout: &Layout, canonical: &str) -> Option<String> {
    let (path, leaf) = canonical.rsplit_once('.')?;
    if let Some((_, theirs)) = ENDS.iter().find(|(ours, _)| *ours == path) {
        return Some(format!("{theirs}.{leaf}"));
    }
    let (side, rest) = path.split_once('.')?;
    let (place, layer) = match side {
        "input_blocks" => {
            let (n, inside) = rest.split_once('.')?;
            // Block 0 is the first convolution; a level ends in a block that is its downsampling.
            let n = n.parse::<usize>().ok()?.checked_sub(1)?;
            let (level, block) = Layout::place(layout.layers.iter().map(|layers| layers + 1), n)?;
            if (inside == "0.op") != (layout.layers.get(level) == Some(&block)) {
                return None;
            }
            (Place { blocks: format!("down_blocks.{level}"), block }, inside)
        }
        "output_blocks" => {
            let (n, inside) = rest.split_once('.')?;
            let (level, block) = Layout::place(layout.layers.iter().rev().map(|layers| layers + 1), n.parse().ok()?)?;
            (Place { blocks: format!("up_blocks.{level}"), block }, inside)
        }
        "middle_block" => return middle(rest).map(|name| format!("{name}.{leaf}")),
        _ => return None,
    };
    place.layer(layer).map(|name| format!("{name}.{leaf}"))
}

/// `rest` of a name after `middle_block`.
fn middle(rest: &str) -> Option<String> {
    let (n, layer) = rest.split_once('.')?;
    match n {
        "0" => Some(format!("mid_block.resnets.0.{}", resnet(layer)?)),
        "1" => Some(format!("mid_block.attentions.0.{layer}")),
        "2" => Some(format!("mid_block.resnets.1.{}", resnet(layer)?)),
        _ => None,
    }
}

fn resnet(layer: &str) -> Option<&'static str> {
    RESNET.iter().find(|(ours, _)| *ours == layer).map(|(_, theirs)| *theirs)
}

/// Where a numbered block of the original stands in diffusers.
struct Place {
    blocks: String,
    block: usize,
}

impl Place {
    /// The name of `layer` of the block: `0.in_layers.0`, `1.proj_in`, `2.conv`.
    fn layer(&self, layer: &str) -> Option<String> {
        let Place { blocks, block } = self;
        match layer.split_once('.')? {
            ("0", "op") => Some(format!("{blocks}.downsamplers.0.conv")),
            ("0", inside) => Some(format!("{blocks}.resnets.{block}.{}", resnet(inside)?)),
            (_, "conv") => Some(format!("{blocks}.upsamplers.0.conv")),
            ("1", inside) => Some(format!("{blocks}.attentions.{block}.{inside}")),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_diffusers(canonical: &str) -> Option<String> {
        let aliases = aliases(&Layout { layers: vec![2; 4] }, canonical);
        aliases.into_iter().nth(1).and_then(|parts| parts.into_iter().next()).map(|part| part.name)
    }

    #[test]
    fn blocks_are_counted_by_level() {
        let pairs = [
            ("input_blocks.0.0.weight", "conv_in.weight"),
            ("input_blocks.1.0.in_layers.0.bias", "down_blocks.0.resnets.0.norm1.bias"),
            ("input_blocks.5.1.proj_in.weight", "down_blocks.1.attentions.1.proj_in.weight"),
            ("input_blocks.6.0.op.weight", "down_blocks.1.downsamplers.0.conv.weight"),
            ("input_blocks.11.0.skip_connection.weight", "down_blocks.3.resnets.1.conv_shortcut.weight"),
            ("middle_block.2.emb_layers.1.weight", "mid_block.resnets.1.time_emb_proj.weight"),
            (
                "middle_block.1.transformer_blocks.9.attn2.to_out.0.bias",
                "mid_block.attentions.0.transformer_blocks.9.attn2.to_out.0.bias",
            ),
            ("output_blocks.2.1.conv.weight", "up_blocks.0.upsamplers.0.conv.weight"),
            ("output_blocks.5.2.conv.bias", "up_blocks.1.upsamplers.0.conv.bias"),
            ("output_blocks.11.1.norm.weight", "up_blocks.3.attentions.2.norm.weight"),
            ("output_blocks.9.0.out_layers.3.weight", "up_blocks.3.resnets.0.conv2.weight"),
            ("label_emb.0.2.weight", "add_embedding.linear_2.weight"),
            ("out.0.weight", "conv_norm_out.weight"),
        ];
        for (canonical, name) in pairs {
            assert_eq!(in_diffusers(canonical).as_deref(), Some(name));
        }
    }

    #[test]
    fn unknown_names_stand_for_themselves() {
        // A level ends in its downsampling, and in that alone.
        assert_eq!(in_diffusers("input_blocks.4.0.op.weight"), None);
        assert_eq!(in_diffusers("input_blocks.6.0.in_layers.0.weight"), None);
        for name in ["input_blocks.x.0.op.weight", "middle_block.7.norm.weight", "other.weight", "other"] {
            assert_eq!(in_diffusers(name), None);
            assert_eq!(aliases(&Layout { layers: vec![2; 4] }, name), [vec![Part::all(name)]]);
        }
    }
}
