//! IP-Adapters of Stable Diffusion: their files' names. Canonical names are pinhole's own: they stand among those of the UNet.

use super::{Alternative, Follows, Kind, Part, Sign};

/// An IP-Adapter of Stable Diffusion, as files know it.
pub static KIND: Kind = Kind {
    words: "IP-Adapter of Stable Diffusion",
    what: "IP-Adapter of Stable Diffusion",
    // FLUX.1's begin with number 0.
    signs: &[Sign::new("ip_adapter.1.to_k_ip.weight"), Sign::new("ip.blocks.0.k.weight")],
    also: &["layers.0.0.to_kv."],
    beside: &[],
    highlights: &["form", "token_dim"],
    follows: Follows::Same,
    label: "",
    reads: None,
};

/// Of the weight `canonical` of a UNet, the attention that it is a matrix of, and what adapters that change it call it: `q`, `k`, `v`, `out`.
pub fn matrix(canonical: &str) -> Option<(&str, &str)> {
    let stem = canonical.strip_suffix(".weight")?;
    let (attention, of) = stem.strip_suffix(".0").unwrap_or(stem).rsplit_once(".to_")?;
    ["q", "k", "v", "out"].contains(&of).then_some((attention, of))
}

/// What files call the weight `canonical` of an adapter. They count all attentions; every second one looks at the prompt.
pub fn aliases(canonical: &str) -> Vec<Alternative> {
    let mut names = vec![canonical.to_owned()];
    let own = canonical.strip_prefix("ip.").unwrap_or(canonical);
    if let Some(resampler) = own.strip_prefix("resampler.") {
        names.push(format!("image_proj.{resampler}"));
    } else if let Some(block) = own.strip_prefix("blocks.") {
        let parts: Vec<&str> = block.split('.').collect();
        if let [number, of @ ("k" | "v"), leaf] = parts[..]
            && let Ok(number) = number.parse::<usize>()
        {
            names.push(format!("ip_adapter.{}.to_{of}_ip.{leaf}", 2 * number + 1));
        }
    } else {
        names.push(format!("image_proj.{own}"));
    }
    names.into_iter().map(|name| vec![Part::all(name)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_of_attentions() {
        let of = "middle_block.1.transformer_blocks.0.attn2";
        assert_eq!(matrix(&format!("{of}.to_out.0.weight")), Some((of, "out")));
        assert_eq!(matrix(&format!("{of}.to_k.weight")), Some((of, "k")));
        assert_eq!(matrix(&format!("{of}.to_out.0.bias")), None);
    }

    #[test]
    fn every_second_attention_has_a_number() {
        let name = |canonical| aliases(canonical).into_iter().flatten().map(|part| part.name).nth(1);
        assert_eq!(name("ip.blocks.3.v.weight").as_deref(), Some("ip_adapter.7.to_v_ip.weight"));
        assert_eq!(name("ip.proj.bias").as_deref(), Some("image_proj.proj.bias"));
        assert_eq!(name("ip.resampler.layers.1.0.to_q.weight").as_deref(), Some("image_proj.layers.1.0.to_q.weight"));
    }
}
