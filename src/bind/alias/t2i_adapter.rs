//! T2I-Adapters: canonical names are diffusers', behind `adapter.`; the publisher, TencentARC, counts all residual blocks.

use super::{Alternative, Follows, Kind, Part, Sign};

/// A T2I-Adapter, as files know it.
pub static KIND: Kind = Kind {
    words: "T2I-Adapter",
    what: "T2I-Adapter",
    signs: &[
        Sign::named("body.0.resnets.0.block1.weight", "diffusers names"),
        Sign::named("body.0.block1.weight", "original names"),
        Sign::named("body.0.body.0.block1.weight", "original names"),
    ],
    also: &[],
    beside: &[],
    highlights: &["adapter_type", "channels", "num_res_blocks", "downscale_factor", "in_channels"],
    follows: Follows::Same,
    label: "",
    reads: None,
};

/// What files call the weight `canonical` of an adapter that has `blocks` residual blocks in each body.
pub fn aliases(blocks: usize, canonical: &str) -> Vec<Alternative> {
    let mut names = vec![canonical.to_owned()];
    let parts: Vec<&str> = canonical.split('.').collect();
    if let ["body", body, rest @ ..] = &parts[..]
        && let Ok(body) = body.parse::<usize>()
    {
        match rest {
            ["resnets", block, layer, leaf] => {
                // Those of a light one are in a list of their own.
                names.push(format!("body.{body}.body.{block}.{layer}.{leaf}"));
                if let Ok(block) = block.parse::<usize>()
                    && block < blocks
                {
                    names.push(format!("body.{}.{layer}.{leaf}", body * blocks + block));
                }
            }
            ["in_conv", leaf] if blocks > 1 => names.push(format!("body.{}.in_conv.{leaf}", body * blocks)),
            _ => {}
        }
    }
    // In folders, diffusers' names have a word before them.
    let behind: Vec<String> = names.iter().map(|name| format!("adapter.{name}")).collect();
    names.into_iter().chain(behind).map(|name| vec![Part::all(name)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_counted() {
        let names = |canonical| aliases(2, canonical).into_iter().flatten().map(|part| part.name).collect::<Vec<_>>();
        let block = "body.3.resnets.1.block2.bias";
        assert_eq!(names(block)[..3], [block, "body.3.body.1.block2.bias", "body.7.block2.bias"]);
        assert_eq!(names("body.2.in_conv.weight")[1], "body.4.in_conv.weight");
        assert_eq!(names("conv_in.weight"), ["conv_in.weight", "adapter.conv_in.weight"]);
    }
}
