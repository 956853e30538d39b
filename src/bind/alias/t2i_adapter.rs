//! T2I-Adapters: canonical names are diffusers', behind `adapter.`; the publisher, TencentARC, counts all residual blocks.

use super::{Alternative, Follows, Kind, Part, Sign};

/// A T2I-Adapter, as files know it.
pub static KIND: Kind = Kind {
    words: "T2I-Adapter",
    what: "T2I-Adapter",
    signs: &[
        Sign::named("body.0.resnets.0.block1.weight", "diffusers names"),
        // Before the one that its own end looks like.
        Sign::named("body.0.body.0.block1.weight", "original names"),
        Sign::named("body.0.block1.weight", "original names"),
    ],
    also: &[],
    beside: &[],
    highlights: &["adapter_type", "channels", "num_res_blocks", "downscale_factor", "in_channels"],
    follows: Follows::Same,
    label: "",
    reads: None,
};

/// What diffusers' names have before them in folders.
const BEHIND: &str = "adapter.";

/// How a file numbers the residual blocks of an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// In each body anew, by diffusers' names.
    ByBodies,
    /// In each body anew, by the publisher's names of light adapters.
    Light,
    /// One after the other through all bodies, so many in each. There, `body.2` is not diffusers' `body.2`.
    Through(usize),
}

impl Numbers {
    /// Those of a file with tensors of these `names`, if each body has `blocks` blocks.
    pub fn of<'a>(names: impl Iterator<Item = &'a str>, blocks: usize) -> Numbers {
        for name in names {
            match name.strip_prefix(BEHIND).unwrap_or(name) {
                own if own.contains(".resnets.") => return Numbers::ByBodies,
                own if own.contains(".body.") => return Numbers::Light,
                _ => {}
            }
        }
        Numbers::Through(blocks)
    }
}

/// What files with these `numbers` call the weight `canonical`.
pub fn aliases(numbers: Numbers, canonical: &str) -> Vec<Alternative> {
    let mut name = canonical.to_owned();
    let parts: Vec<&str> = canonical.split('.').collect();
    if let ["body", body, rest @ ..] = &parts[..]
        && let Ok(body) = body.parse::<usize>()
    {
        match (numbers, rest) {
            (Numbers::Light, ["resnets", block, layer, leaf]) => {
                name = format!("body.{body}.body.{block}.{layer}.{leaf}");
            }
            (Numbers::Through(blocks), ["resnets", block, layer, leaf]) => {
                if let Ok(block) = block.parse::<usize>()
                    && block < blocks
                {
                    name = format!("body.{}.{layer}.{leaf}", body * blocks + block);
                }
            }
            (Numbers::Through(blocks), ["in_conv", leaf]) => name = format!("body.{}.in_conv.{leaf}", body * blocks),
            _ => {}
        }
    }
    let behind = format!("{BEHIND}{name}");
    vec![vec![Part::all(name)], vec![Part::all(behind)]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_counted() {
        let name = |numbers, canonical| aliases(numbers, canonical)[0][0].name.clone();
        let block = "body.3.resnets.1.block2.bias";
        assert_eq!(name(Numbers::ByBodies, block), block);
        assert_eq!(name(Numbers::Light, block), "body.3.body.1.block2.bias");
        assert_eq!(name(Numbers::Through(2), block), "body.7.block2.bias");
        let first = "body.2.in_conv.weight";
        assert_eq!(name(Numbers::Light, first), first);
        assert_eq!(name(Numbers::Through(2), "body.0.resnets.2.block1.bias"), "body.0.resnets.2.block1.bias");
        assert_eq!(name(Numbers::Through(2), first), "body.4.in_conv.weight");
        assert_eq!(aliases(Numbers::Through(2), "conv_in.weight")[1][0].name, "adapter.conv_in.weight");
    }

    #[test]
    fn files_tell_how_they_number() {
        let of = |names: [&'static str; 2]| Numbers::of(names.into_iter(), 2);
        assert_eq!(of(["adapter.body.0.block1.weight", "adapter.body.2.in_conv.weight"]), Numbers::Through(2));
        assert_eq!(of(["adapter.body.0.in_conv.weight", "adapter.body.0.resnets.0.block1.weight"]), Numbers::ByBodies);
        assert_eq!(of(["body.0.in_conv.weight", "body.0.body.0.block1.weight"]), Numbers::Light);
        assert_eq!(of(["body.0.block1.weight", "body.2.in_conv.weight"]), Numbers::Through(2));
    }
}
