//! The autoencoder: canonical names are the original ones (LDM's and BFL's); diffusers has others, and older diffusers
//! others again.

use super::{Alternative, Follows, Kind, Part, Sign};
use crate::index::Index;

/// The KL autoencoder, as files know it.
pub static KIND: Kind = Kind {
    words: "autoencoder",
    what: "autoencoder",
    signs: &[
        Sign::named("decoder.up.0.block.0.", "original names"),
        Sign::named("decoder.up_blocks.0.resnets.0.", "diffusers names"),
        // Of files that lack their first block.
        Sign::named("decoder.up.1.block.0.", "original names"),
        Sign::named("decoder.up_blocks.1.resnets.0.", "diffusers names"),
    ],
    also: &[],
    beside: &["loss.", "model_ema.", "bn.num_batches_tracked"],
    highlights: &["latent_channels", "block_out_channels", "norm_num_groups", "scaling_factor", "shift_factor"],
    // Its colours are sensitive, and it is small.
    follows: Follows::Half,
    label: "",
    reads: None,
};

/// More levels than any autoencoder has.
const MOST_LEVELS: usize = 16;

/// How many levels the decoder under `prefix` of `index` has if its names are diffusers'; 1 if they are others, which do not
/// depend on it.
pub fn levels(index: &Index, prefix: &str) -> usize {
    (0..MOST_LEVELS)
        .rev()
        .find(|level| index.has(&format!("{prefix}decoder.up_blocks.{level}.resnets.0.conv1.weight")))
        .map_or(1, |last| last + 1)
}

/// The [`Aliases`](super::Aliases) of an autoencoder of `levels` levels: diffusers counts the decoder's from the other end.
pub fn aliases(levels: usize) -> impl Fn(&str) -> Vec<Alternative> {
    move |canonical| of(canonical, levels)
}

fn of(canonical: &str, levels: usize) -> Vec<Alternative> {
    let (path, leaf) = canonical.rsplit_once('.').unwrap_or(("", canonical));
    let mut names = vec![canonical.to_owned()];
    names.extend([&NAMES, &OLD].into_iter().filter_map(|layers| diffusers(path, leaf, levels, layers)));
    names.extend(match path {
        "quant_conv" => Some(format!("encoder.{canonical}")),
        "post_quant_conv" => Some(format!("decoder.{canonical}")),
        _ => None,
    });
    names.dedup();
    names.into_iter().map(|name| vec![Part::all(name)]).collect()
}

/// Canonical names of layers inside a block, and others for them.
type Layers = [(&'static str, &'static str); 6];

/// Those of diffusers.
const NAMES: Layers = [
    ("nin_shortcut", "conv_shortcut"),
    ("norm", "group_norm"),
    ("q", "to_q"),
    ("k", "to_k"),
    ("v", "to_v"),
    ("proj_out", "to_out.0"),
];

/// Those of diffusers before version 0.18, which its downloads still have.
const OLD: Layers = [
    ("nin_shortcut", "conv_shortcut"),
    ("norm", "group_norm"),
    ("q", "query"),
    ("k", "key"),
    ("v", "value"),
    ("proj_out", "proj_attn"),
];

/// The name of `path.leaf` in diffusers; `None` where it is the canonical one or there is none.
fn diffusers(path: &str, leaf: &str, levels: usize, layers: &Layers) -> Option<String> {
    let parts: Vec<&str> = path.split('.').collect();
    let rename = |layer| layers.iter().find(|(ours, _)| *ours == layer).map_or(layer, |(_, theirs)| *theirs);
    let renamed = match parts[..] {
        [side, "norm_out"] => format!("{side}.conv_norm_out"),
        [side, "mid", block, layer] => format!("{side}.mid_block.{}.{}", mid(block)?, rename(layer)),
        [side, way @ ("down" | "up"), level, "block", block, layer] => {
            format!("{side}.{}.resnets.{block}.{}", blocks(way, level, levels)?, rename(layer))
        }
        [side, way @ ("down" | "up"), level, "downsample" | "upsample", layer] => {
            format!("{side}.{}.{way}samplers.0.{layer}", blocks(way, level, levels)?)
        }
        _ => return None,
    };
    Some(format!("{renamed}.{leaf}"))
}

fn mid(block: &str) -> Option<&'static str> {
    match block {
        "block_1" => Some("resnets.0"),
        "attn_1" => Some("attentions.0"),
        "block_2" => Some("resnets.1"),
        _ => None,
    }
}

/// The blocks of a level. diffusers counts the decoder's in the order in which they run.
fn blocks(way: &str, level: &str, levels: usize) -> Option<String> {
    let level: usize = level.parse().ok()?;
    let level = if way == "up" { levels.checked_sub(level + 1)? } else { level };
    Some(format!("{way}_blocks.{level}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(canonical: &str, levels: usize) -> Vec<String> {
        aliases(levels)(canonical).into_iter().flatten().map(|part| part.name).collect()
    }

    #[test]
    fn the_decoder_is_counted_from_the_other_end() {
        let weight = "decoder.up.1.block.2.nin_shortcut.weight";
        assert_eq!(names(weight, 4)[1], "decoder.up_blocks.2.resnets.2.conv_shortcut.weight");
        assert_eq!(names(weight, 3)[1], "decoder.up_blocks.1.resnets.2.conv_shortcut.weight");
        assert_eq!(names("decoder.up.3.upsample.conv.bias", 4)[1], "decoder.up_blocks.0.upsamplers.0.conv.bias");
        assert_eq!(names("encoder.down.1.block.0.norm1.bias", 4)[1], "encoder.down_blocks.1.resnets.0.norm1.bias");
        assert_eq!(
            names("encoder.down.0.downsample.conv.bias", 4)[1],
            "encoder.down_blocks.0.downsamplers.0.conv.bias"
        );
        assert_eq!(names("decoder.up.4.upsample.conv.bias", 4), ["decoder.up.4.upsample.conv.bias"]);
    }

    #[test]
    fn attention_has_three_names() {
        let norm = names("encoder.mid.attn_1.norm.weight", 4);
        assert_eq!(norm, ["encoder.mid.attn_1.norm.weight", "encoder.mid_block.attentions.0.group_norm.weight"]);
        let out = [
            "decoder.mid.attn_1.proj_out.bias",
            "decoder.mid_block.attentions.0.to_out.0.bias",
            "decoder.mid_block.attentions.0.proj_attn.bias",
        ];
        assert_eq!(names("decoder.mid.attn_1.proj_out.bias", 4), out);
        assert_eq!(names("decoder.mid.block_2.conv1.bias", 2)[1], "decoder.mid_block.resnets.1.conv1.bias");
    }

    #[test]
    fn some_names_are_everywhere_the_same() {
        for name in ["decoder.conv_in.weight", "encoder.conv_out.bias", "bn.running_var"] {
            assert_eq!(names(name, 4), [name]);
        }
        // Beside those of the side that they belong to, in files of autoencoders with statistics.
        assert_eq!(names("post_quant_conv.weight", 4), ["post_quant_conv.weight", "decoder.post_quant_conv.weight"]);
        assert_eq!(names("quant_conv.bias", 4), ["quant_conv.bias", "encoder.quant_conv.bias"]);
        assert_eq!(names("decoder.norm_out.weight", 4)[1], "decoder.conv_norm_out.weight");
    }
}
