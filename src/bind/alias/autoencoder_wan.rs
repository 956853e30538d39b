//! The causal autoencoder: canonical names are those of its first publisher; diffusers has others.

use super::{Alternative, Follows, Kind, Part, Sign};
use crate::index::Index;

/// The causal autoencoder, as files know it.
pub static KIND: Kind = Kind {
    words: "autoencoder of Wan and Qwen-Image",
    what: "autoencoder of Wan and Qwen-Image",
    signs: &[
        Sign::named("decoder.middle.0.residual.", "original names"),
        Sign::named("decoder.mid_block.resnets.0.norm1.gamma", "diffusers names"),
        // Of files that lack the first of these.
        Sign::named("decoder.middle.2.residual.", "original names"),
        Sign::named("decoder.mid_block.resnets.1.norm1.gamma", "diffusers names"),
    ],
    also: &[],
    // What pictures do not go through.
    beside: &[".time_conv."],
    highlights: &["z_dim", "base_dim", "dim_mult", "num_res_blocks"],
    // Its colours are sensitive, and it is small.
    follows: Follows::Half,
    label: "",
    reads: None,
};

/// More residual blocks than any level has.
const MOST_BLOCKS: usize = 64;

/// How many residual blocks a level of the decoder under `prefix` of `index` has if its names are diffusers'; 1 if they are others,
/// which do not depend on it.
pub fn blocks(index: &Index, prefix: &str) -> usize {
    for last in (0..MOST_BLOCKS).rev() {
        if index.has(&format!("{prefix}decoder.up_blocks.0.resnets.{last}.conv1.bias")) {
            return last + 1;
        }
    }
    1
}

/// The [`Aliases`](super::Aliases) of an autoencoder with so many residual `blocks` on each level of the decoder: diffusers counts these
/// by level.
pub fn aliases(blocks: usize) -> impl Fn(&str) -> Vec<Alternative> {
    move |canonical| {
        if let Some((kernel, plane)) = plane(canonical) {
            let names = std::iter::once(kernel.to_owned()).chain(diffusers(kernel, blocks));
            let planes = names.map(|name| vec![Part::plane(name, plane)]);
            return std::iter::once(vec![Part::all(canonical)]).chain(planes).collect();
        }
        let names = std::iter::once(canonical.to_owned()).chain(diffusers(canonical, blocks));
        // Kernels over time lie in files of films and pictures alike.
        match canonical.ends_with(".weight") {
            true => names.map(|name| vec![Part::last_plane(name)]).collect(),
            false => names.map(|name| vec![Part::all(name)]).collect(),
        }
    }
}

/// The kernel that `canonical` is a plane of, beside the last, and the plane's number.
fn plane(canonical: &str) -> Option<(&str, usize)> {
    let (kernel, plane) = canonical.rsplit_once('.')?;
    let plane = plane.parse().ok().filter(|_| kernel.ends_with(".weight"))?;
    Some((kernel, plane))
}

/// The name in diffusers.
fn diffusers(canonical: &str, blocks: usize) -> Option<String> {
    let parts: Vec<&str> = canonical.split('.').collect();
    let renamed = match parts[..] {
        ["conv1", leaf] => format!("quant_conv.{leaf}"),
        ["conv2", leaf] => format!("post_quant_conv.{leaf}"),
        [side, "conv1", leaf] => format!("{side}.conv_in.{leaf}"),
        [side, "head", "0", "gamma"] => format!("{side}.norm_out.gamma"),
        [side, "head", "2", leaf] => format!("{side}.conv_out.{leaf}"),
        [side, "middle", "1", ref rest @ ..] => format!("{side}.mid_block.attentions.0.{}", rest.join(".")),
        [side, "middle", block, ref rest @ ..] => {
            let block = if block == "0" { 0 } else { 1 };
            format!("{side}.mid_block.resnets.{block}.{}", residual(rest)?)
        }
        ["encoder", "downsamples", level, "downsamples", block, ref rest @ ..] => match residual(rest) {
            Some(name) => format!("encoder.down_blocks.{level}.resnets.{block}.{name}"),
            None => format!("encoder.down_blocks.{level}.downsampler.{}", rest.join(".")),
        },
        ["decoder", "upsamples", level, "upsamples", block, ref rest @ ..] => match residual(rest) {
            Some(name) => format!("decoder.up_blocks.{level}.resnets.{block}.{name}"),
            None => format!("decoder.up_blocks.{level}.upsampler.{}", rest.join(".")),
        },
        ["encoder", "downsamples", block, ref rest @ ..] => {
            format!("encoder.down_blocks.{block}.{}", residual(rest).unwrap_or_else(|| rest.join(".")))
        }
        ["decoder", "upsamples", block, ref rest @ ..] => {
            let block: usize = block.parse().ok()?;
            let (level, block) = (block / (blocks + 1), block % (blocks + 1));
            // What doubles the pixels is the last of a level.
            match residual(rest) {
                Some(name) if block < blocks => format!("decoder.up_blocks.{level}.resnets.{block}.{name}"),
                None if block == blocks => format!("decoder.up_blocks.{level}.upsamplers.0.{}", rest.join(".")),
                _ => return None,
            }
        }
        _ => return None,
    };
    Some(renamed)
}

/// The name of a layer in a residual block; `None` if it is in none.
fn residual(rest: &[&str]) -> Option<String> {
    match rest {
        ["residual", "0", leaf] => Some(format!("norm1.{leaf}")),
        ["residual", "2", leaf] => Some(format!("conv1.{leaf}")),
        ["residual", "3", leaf] => Some(format!("norm2.{leaf}")),
        ["residual", "6", leaf] => Some(format!("conv2.{leaf}")),
        ["shortcut", leaf] => Some(format!("conv_shortcut.{leaf}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_diffusers(canonical: &str, blocks: usize) -> String {
        aliases(blocks)(canonical).pop().into_iter().flatten().map(|part| part.name).collect()
    }

    #[test]
    fn names_of_both_makers() {
        for (ours, theirs) in [
            ("conv1.weight", "quant_conv.weight"),
            ("conv2.bias", "post_quant_conv.bias"),
            ("encoder.conv1.bias", "encoder.conv_in.bias"),
            ("decoder.head.0.gamma", "decoder.norm_out.gamma"),
            ("encoder.head.2.weight", "encoder.conv_out.weight"),
            ("decoder.middle.1.to_qkv.weight", "decoder.mid_block.attentions.0.to_qkv.weight"),
            ("decoder.middle.1.norm.gamma", "decoder.mid_block.attentions.0.norm.gamma"),
            ("encoder.middle.2.residual.3.gamma", "encoder.mid_block.resnets.1.norm2.gamma"),
            ("encoder.downsamples.3.shortcut.weight", "encoder.down_blocks.3.conv_shortcut.weight"),
            ("encoder.downsamples.2.resample.1.bias", "encoder.down_blocks.2.resample.1.bias"),
            ("decoder.upsamples.4.residual.6.bias", "decoder.up_blocks.1.resnets.0.conv2.bias"),
            ("decoder.upsamples.7.resample.1.weight", "decoder.up_blocks.1.upsamplers.0.resample.1.weight"),
            ("decoder.upsamples.14.residual.2.bias", "decoder.up_blocks.3.resnets.2.conv1.bias"),
            ("decoder.upsamples.7.time_conv.weight.1", "decoder.up_blocks.1.upsamplers.0.time_conv.weight"),
            ("encoder.downsamples.5.time_conv.bias", "encoder.down_blocks.5.time_conv.bias"),
            ("encoder.downsamples.1.downsamples.0.shortcut.bias", "encoder.down_blocks.1.resnets.0.conv_shortcut.bias"),
            (
                "encoder.downsamples.1.downsamples.2.resample.1.bias",
                "encoder.down_blocks.1.downsampler.resample.1.bias",
            ),
            ("decoder.upsamples.0.upsamples.2.residual.6.weight.0", "decoder.up_blocks.0.resnets.2.conv2.weight"),
            ("decoder.upsamples.1.upsamples.3.time_conv.bias", "decoder.up_blocks.1.upsampler.time_conv.bias"),
        ] {
            assert_eq!(in_diffusers(ours, 3), theirs);
        }
        assert_eq!(in_diffusers("decoder.upsamples.4.residual.6.bias", 2), "decoder.up_blocks.1.resnets.1.conv2.bias");
        let none = "decoder.upsamples.0.resample.1.bias";
        assert_eq!(in_diffusers(none, 3), none);
    }
}
