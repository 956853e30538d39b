//! IP-Adapters of FLUX.1: XLabs' names and InstantX'. Canonical names are pinhole's own: they stand among those of the transformer.

use super::{Alternative, Follows, Kind, Part, Rows, Sign};

/// An IP-Adapter of FLUX.1, as files know it.
pub static KIND: Kind = Kind {
    words: "IP-Adapter of FLUX.1",
    what: "IP-Adapter of FLUX.1",
    signs: &[
        Sign::named("ip_adapter_proj_model.proj.weight", "XLabs names"),
        // Those of Stable Diffusion begin with number 1.
        Sign::named("ip_adapter.0.to_k_ip.weight", "InstantX names"),
        Sign::named("ip.double.0.k.weight", "pinhole's names"),
    ],
    also: &["ip_adapter.1."],
    beside: &[],
    highlights: &[],
    follows: Follows::Same,
    label: "",
    reads: None,
};

/// What files call the weight `canonical` of an adapter beside a transformer with `double` double blocks. InstantX counts all blocks, and
/// its last projection, which the adapter has in `parts`, is one matrix.
pub fn aliases(double: usize, parts: u8, canonical: &str) -> Vec<Alternative> {
    if let Some((at, leaf)) = canonical.strip_prefix("ip.proj.2.").and_then(|own| own.split_once('.')) {
        let mut found = vec![vec![Part::all(canonical)]];
        if let Some(at) = at.parse::<u8>().ok().filter(|at| *at < parts) {
            for whole in ["ip.proj.2", "ip_adapter_proj_model.proj.2", "image_proj.proj.2"] {
                let rows = if parts == 1 { Rows::All } else { Rows::Part { at, of: parts } };
                found.push(vec![Part { name: format!("{whole}.{leaf}"), rows }]);
            }
        }
        return found;
    }
    let mut names = vec![canonical.to_owned()];
    let own = canonical.strip_prefix("ip.").unwrap_or(canonical);
    let parts: Vec<&str> = own.split('.').collect();
    match parts[..] {
        ["norm" | "proj", ..] => {
            names.push(format!("ip_adapter_proj_model.{own}"));
            names.push(format!("image_proj.{own}"));
        }
        [kind @ ("double" | "single"), number, of @ ("k" | "v"), leaf] => {
            if kind == "double" {
                let stem = format!("double_blocks.{number}.processor.ip_adapter_double_stream_{of}_proj");
                names.push(format!("{stem}.{leaf}"));
            }
            if let Ok(number) = number.parse::<usize>() {
                let before = if kind == "single" { double } else { 0 };
                // Numbers of single blocks come after those of double blocks.
                if kind == "single" || number < double {
                    names.push(format!("ip_adapter.{}.to_{of}_ip.{leaf}", before + number));
                }
            }
        }
        _ => {}
    }
    names.into_iter().map(|name| vec![Part::all(name)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_both_kinds_of_names() {
        let names =
            |canonical| aliases(19, 4, canonical).into_iter().flatten().map(|part| part.name).collect::<Vec<_>>();
        let xlabs = "double_blocks.3.processor.ip_adapter_double_stream_v_proj.bias";
        assert_eq!(names("ip.double.3.v.bias")[1..], [xlabs, "ip_adapter.3.to_v_ip.bias"]);
        assert_eq!(names("ip.single.2.k.weight")[1..], ["ip_adapter.21.to_k_ip.weight"]);
        assert_eq!(names("ip.double.19.k.weight").len(), 2);
        assert_eq!(names("ip.proj.0.weight")[2], "image_proj.proj.0.weight");
    }

    #[test]
    fn the_last_projection_is_cut() {
        let found = aliases(19, 4, "ip.proj.2.3.bias");
        assert_eq!(found[0], [Part::all("ip.proj.2.3.bias")]);
        assert_eq!(found[3], [Part { name: "image_proj.proj.2.bias".into(), rows: Rows::Part { at: 3, of: 4 } }]);
        assert_eq!(aliases(19, 4, "ip.proj.2.4.bias").len(), 1);
        assert_eq!(aliases(19, 1, "ip.proj.2.0.bias")[1], [Part::all("ip.proj.2.bias")]);
        assert_eq!(aliases(19, 4, "ip.proj.2.weight")[2], [Part::all("image_proj.proj.2.weight")]);
    }
}
