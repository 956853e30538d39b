//! Networks that make pictures larger: canonical names are Real-ESRGAN's.

use super::{Alternative, Follows, Kind, Part, Sign};
use crate::index::Index;

/// ESRGAN's network and Real-ESRGAN's compact one, as files know them. The sign of the latter are its first slopes.
pub static KIND: Kind = Kind {
    words: "upscaler",
    what: "upscaler",
    signs: &[
        Sign::named("body.0.rdb1.conv1.weight", "Real-ESRGAN names"),
        Sign::named("RRDB_trunk.0.RDB1.conv1.weight", "ESRGAN names"),
        Sign::named("model.1.sub.0.RDB1.conv1.0.weight", "first ESRGAN names"),
        Sign::named("body.1.weight", "compact"),
    ],
    also: &[],
    beside: &[],
    highlights: &["architecture", "features", "growth", "blocks", "doublings", "unshuffled", "convolutions", "factor"],
    follows: Follows::Same,
    label: "",
    reads: None,
};

/// How often a map is doubled in any network, at most.
const MOST_DOUBLINGS: usize = 4;

/// What the first names depend on, which number modules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// How many blocks there are.
    pub blocks: usize,
    /// How often the map is doubled. Each time is three modules: the doubling, a convolution, and what follows it.
    pub doublings: usize,
}

impl Layout {
    /// That of the network behind `prefix` in `index`.
    pub fn of(index: &Index, prefix: &str) -> Layout {
        let has = |name: String| index.has(&format!("{prefix}{name}.weight"));
        let blocks = (0..).take_while(|block| has(format!("model.1.sub.{block}.RDB1.conv1.0"))).count();
        Layout {
            blocks,
            doublings: (0..=MOST_DOUBLINGS).find(|doublings| has(hr(*doublings)) && has(last(*doublings))).unwrap_or(2),
        }
    }
}

/// The first name of the last convolution but one.
fn hr(doublings: usize) -> String {
    format!("model.{}", 3 * doublings + 2)
}

/// The first name of the last convolution.
fn last(doublings: usize) -> String {
    format!("model.{}", 3 * doublings + 4)
}

/// The [`Aliases`](super::Aliases) of a network of this `layout`.
pub fn aliases(layout: Layout) -> impl Fn(&str) -> Vec<Alternative> {
    move |canonical| {
        let mut names = vec![canonical.to_owned()];
        if let Some((path, leaf)) = canonical.rsplit_once('.') {
            names.extend(older(path, layout).into_iter().map(|path| format!("{path}.{leaf}")));
        }
        names.into_iter().map(|name| vec![Part::all(name)]).collect()
    }
}

/// What ESRGAN's files, and the first of these, call the layer `path`.
fn older(path: &str, Layout { blocks, doublings }: Layout) -> Vec<String> {
    match path {
        "conv_first" => vec!["model.0".to_owned()],
        "conv_body" => vec!["trunk_conv".to_owned(), format!("model.1.sub.{blocks}")],
        "conv_hr" => vec!["HRconv".to_owned(), hr(doublings)],
        "conv_last" => vec![last(doublings)],
        _ => {
            if let Some(number) = path.strip_prefix("conv_up").and_then(|number| number.parse::<usize>().ok()) {
                return vec![format!("upconv{number}"), format!("model.{}", 3 * number)];
            }
            let Some(inside) = path.strip_prefix("body.").filter(|inside| inside.contains(".rdb")) else {
                return Vec::new();
            };
            let inside = inside.replace(".rdb", ".RDB");
            vec![format!("RRDB_trunk.{inside}"), format!("model.1.sub.{inside}.0")]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_spellings() {
        let layout = Layout { blocks: 23, doublings: 2 };
        let names =
            |canonical| aliases(layout)(canonical).into_iter().flatten().map(|part| part.name).collect::<Vec<_>>();
        let conv = ["body.3.rdb2.conv4.bias", "RRDB_trunk.3.RDB2.conv4.bias", "model.1.sub.3.RDB2.conv4.0.bias"];
        assert_eq!(names(conv[0]), conv);
        assert_eq!(names("conv_body.weight"), ["conv_body.weight", "trunk_conv.weight", "model.1.sub.23.weight"]);
        assert_eq!(names("conv_up2.bias"), ["conv_up2.bias", "upconv2.bias", "model.6.bias"]);
        assert_eq!(names("conv_hr.weight")[1..], ["HRconv.weight", "model.8.weight"]);
        assert_eq!(names("conv_last.weight")[1..], ["model.10.weight"]);
        assert_eq!(names("body.1.weight"), ["body.1.weight"]);
    }
}
