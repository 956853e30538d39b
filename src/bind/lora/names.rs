//! What the weights of a model may be called in a LoRA: every name that the alias table gives them, with dots and flat.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use crate::bind::alias::{self, Alternative, Rows};
use crate::weights::{Manifest, WeightId};

/// A weight that a name stands for, or the part of it.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) id: WeightId,
    /// The file tensors that would make up the weight, one below the other.
    pub(super) parts: Arc<[alias::Part]>,
    /// Which of them the name is.
    pub(super) at: usize,
}

/// The last parts of weights' names: what a LoRA's module does not say.
const LEAVES: [&str; 4] = ["weight", "bias", "scale", "gamma"];

/// The names of one model's weights.
pub(super) struct Names {
    /// By name, with its dots and without them, each for weights and for biases.
    places: [HashMap<String, Vec<Place>>; 2],
    /// Flat names with `#` for numbers.
    patterns: HashSet<String>,
}

impl Names {
    /// Of `manifest`, whose weights files call as `aliases` says.
    pub(super) fn new(manifest: &Manifest, aliases: &dyn Fn(&str) -> Vec<Alternative>) -> Names {
        let mut names = Names { places: [HashMap::new(), HashMap::new()], patterns: HashSet::new() };
        for (id, weight) in manifest.iter() {
            for parts in aliases(&weight.name) {
                let parts: Arc<[alias::Part]> = parts.into();
                for at in 0..parts.len() {
                    names.insert(&Place { id, parts: Arc::clone(&parts), at });
                }
            }
        }
        names
    }

    fn insert(&mut self, place: &Place) {
        let name = &place.parts[place.at].name;
        let (stem, leaf) = name.rsplit_once('.').filter(|(_, leaf)| LEAVES.contains(leaf)).unwrap_or((name, ""));
        let flat = stem.replace('.', "_");
        self.patterns.insert(pattern(&flat));
        let places = &mut self.places[usize::from(leaf == "bias")];
        for key in [stem, flat.as_str()] {
            let known = places.entry(key.to_owned()).or_default();
            if !known.iter().any(|other| other.id == place.id && other.at == place.at && other.parts == place.parts) {
                known.push(place.clone());
            }
        }
    }

    /// The weights, or biases, that `stem` stands for. If a weight can be parted in several ways, the way with the most parts counts,
    /// and the first of equals: the modules of one file then part the weight in the same way.
    pub(super) fn find(&self, stem: &str, bias: bool) -> Vec<Place> {
        let Some(places) = self.places[usize::from(bias)].get(stem) else { return Vec::new() };
        let mut found: Vec<Place> = Vec::new();
        for place in places {
            let is_finest = places.iter().all(|other| other.id != place.id || other.parts.len() <= place.parts.len());
            if is_finest && found.iter().all(|other| other.id != place.id || other.parts == place.parts) {
                found.push(place.clone());
            }
        }
        found
    }

    /// Whether the model has such a module, in blocks of other numbers.
    pub(super) fn has_like(&self, stem: &str) -> bool {
        self.patterns.contains(&pattern(&stem.replace('.', "_")))
    }
}

/// The flat `name` with `#` for every number between underscores: blocks are counted there, and layers within words.
fn pattern(name: &str) -> String {
    let parts = name.split('_').map(|part| {
        let is_number = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if is_number { "#" } else { part }
    });
    parts.collect::<Vec<_>>().join("_")
}

/// Which of a file tensor's `outputs` a part takes.
pub(super) fn taken(rows: Rows, outputs: usize) -> Range<usize> {
    match rows {
        Rows::All | Rows::Columns | Rows::LastPlane | Rows::Plane(_) | Rows::Flat => 0..outputs,
        Rows::Part { at, of } => {
            let each = outputs / usize::from(of.max(1));
            usize::from(at) * each..(usize::from(at) + 1) * each
        }
    }
}

/// How many outputs each part of a weight of `total` has, where a file tells of some: the others have as many as the next that
/// is known, or share what is left. `None` where that does not add up.
pub(super) fn sizes(known: &[Option<usize>], total: usize) -> Option<Vec<usize>> {
    let mut sizes = known.to_vec();
    if known.last().is_some_and(Option::is_none) {
        // Queries, keys and values are of one size; the last part has what is left.
        for at in (0..sizes.len().saturating_sub(1)).rev() {
            sizes[at] = sizes[at].or(sizes[at + 1]);
        }
        for at in 1..sizes.len().saturating_sub(1) {
            sizes[at] = sizes[at].or(sizes[at - 1]);
        }
    }
    let told = sizes.iter().flatten().try_fold(0usize, |sum, size| sum.checked_add(*size))?;
    let unknown = sizes.iter().filter(|size| size.is_none()).count();
    let left = total.checked_sub(told)?;
    if unknown == 0 {
        return (left == 0).then(|| sizes.into_iter().flatten().collect());
    }
    let each = left / unknown;
    let sizes: Vec<usize> = sizes.into_iter().map(|size| size.unwrap_or(each)).collect();
    // Three parts are queries, keys and values.
    let uneven = sizes.len() == 3 && sizes.iter().any(|size| *size != sizes[0]);
    (each > 0 && each * unknown == left && !uneven).then_some(sizes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::weights::{Role, Scope};

    fn names() -> Names {
        let (mut manifest, mut declared) = (Manifest::default(), Vec::new());
        let mut root = Scope::root(&mut manifest, &mut declared);
        root.weight("single_blocks.1.linear1.weight", &[8, 56], Role::MatMul).unwrap();
        root.weight("single_blocks.1.linear1.bias", &[56], Role::Vector).unwrap();
        root.weight("final_layer.adaLN_modulation.1.weight", &[8, 16], Role::MatMul).unwrap();
        root.weight("single_blocks.1.norm.key_norm.scale", &[8], Role::Vector).unwrap();
        Names::new(&manifest, &|name| alias::flux(name))
    }

    #[test]
    fn weights_are_found_by_every_name() {
        let names = names();
        let at = |stem: &str| names.find(stem, false).iter().map(|p| (p.id.index(), p.at)).collect::<Vec<_>>();
        assert_eq!(at("single_blocks.1.linear1"), [(0, 0)]);
        assert_eq!(at("single_blocks_1_linear1"), [(0, 0)]);
        assert_eq!(at("single_transformer_blocks_1_attn_to_v"), [(0, 2)]);
        assert_eq!(at("norm_out.linear"), [(2, 0), (2, 1)]);
        assert_eq!(at("single_transformer_blocks.1.attn.norm_k"), [(3, 0)]);
        assert_eq!(names.find("single_transformer_blocks.1.proj_mlp", true)[0].id.index(), 1);
        assert!(at("single_blocks_2_linear1").is_empty());
        assert!(names.has_like("single_blocks.22.linear1") && !names.has_like("single_blocks.2.linear3"));
    }

    #[test]
    fn sizes_follow_from_those_that_are_known() {
        let sizes = |known: &[usize], total| {
            let known: Vec<_> = known.iter().map(|&n| (n > 0).then_some(n)).collect();
            super::sizes(&known, total)
        };
        assert_eq!(sizes(&[8, 8, 8, 32], 56), Some(vec![8, 8, 8, 32]));
        assert_eq!(sizes(&[0, 0, 8, 0], 56), Some(vec![8, 8, 8, 32]));
        assert_eq!(sizes(&[8, 0, 0, 0], 56), Some(vec![8, 8, 8, 32]));
        assert_eq!(sizes(&[0, 0, 0, 32], 56), Some(vec![8, 8, 8, 32]));
        assert_eq!(sizes(&[0, 8, 0], 24), Some(vec![8, 8, 8]));
        assert_eq!(sizes(&[9, 8, 8, 32], 56), None);
        assert_eq!(sizes(&[0, 60, 0, 0], 56), None);
        assert_eq!(sizes(&[9, 0, 0], 24), None);
    }
}
