//! What a file lacks, in the words of that file.

use std::collections::HashSet;
use std::path::Path;

use super::alias::{Aliases, Alternative};
use crate::index::{Index, Other, tensor_at};
use crate::weights::Manifest;
use crate::{Error, Result};

/// How many missing tensors an error names.
const NAMED: usize = 4;

/// What to do about a file that lacks something.
const INCOMPLETE: &str = "the file is incomplete, or of another kind of model";

/// The first tensor of `alternatives` that is in the index and that no weight can be read from.
pub(super) fn unreadable<'a>(index: &'a Index, prefix: &str, alternatives: Vec<Alternative>) -> Option<&'a Other> {
    alternatives.into_iter().flatten().find_map(|part| index.other(&format!("{prefix}{}", part.name)))
}

/// The error for the weight `name`, which is needed and not found in `index`.
pub fn missing(index: &Index, prefix: &str, aliases: Aliases<'_>, name: &str, origin: &Path) -> Error {
    if let Some(other) = unreadable(index, prefix, aliases(name)) {
        return other.refusal();
    }
    let at = tensor_at(&called(index, prefix, aliases(name), name));
    Error::mismatch(origin, at, "a tensor", "none").with_hint(INCOMPLETE)
}

/// The error for `names` of the weights of `manifest`, which are not found in `index`.
pub(super) fn several(
    index: &Index,
    prefix: &str,
    aliases: Aliases<'_>,
    (names, manifest): (&[&str], &Manifest),
    origin: &Path,
) -> Error {
    let mut named = Vec::new();
    for name in names.iter().take(NAMED) {
        named.push(called(index, prefix, aliases(name), name));
    }
    let more = if names.len() > NAMED { format!(" and {} more", names.len() - NAMED) } else { String::new() };
    let (total, found) = (manifest.len(), manifest.len() - names.len());
    let error = Error::mismatch(origin, "weights", format!("{total} tensors"), format!("{found} of them"));
    error.with_hint(format!("missing: {}{more}", named.join(", ")))
}

/// What `index` would call the weight `name`, which it lacks: of all names in `alternatives` that it lacks, the one that is most
/// like those that it has.
fn called(index: &Index, prefix: &str, alternatives: Vec<Alternative>, name: &str) -> String {
    let (mut best, mut most) = (format!("{prefix}{name}"), (0, 0));
    for parts in alternatives {
        let names: Vec<String> = parts.into_iter().map(|part| format!("{prefix}{}", part.name)).collect();
        let there = names.iter().filter(|name| index.has(name)).count();
        let Some(lacking) = names.into_iter().find(|name| !index.has(name)) else { continue };
        let like = index.names().map(|other| shared(&lacking, other)).max().unwrap_or(0);
        if (there, like) > most {
            (best, most) = (lacking, (there, like));
        }
    }
    best
}

/// How much two names share: parts before the first that differs count twice, and those behind the last once, since many names end
/// alike. Numbers are like each other.
fn shared(one: &str, other: &str) -> usize {
    let same = |(one, other): &(&str, &str)| one == other || (is_number(one) && is_number(other));
    let first = one.split('.').zip(other.split('.')).take_while(same).count();
    2 * first + one.rsplit('.').zip(other.rsplit('.')).take_while(same).count()
}

fn is_number(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())
}

/// The tensors under `prefix` that are like weights of `manifest` in blocks of other numbers: weights of blocks that the network
/// does not have.
pub fn strays(manifest: &Manifest, index: &Index, prefix: &str, aliases: Aliases<'_>) -> Vec<String> {
    let mut known = HashSet::new();
    for (_, weight) in manifest.iter() {
        known.extend(aliases(&weight.name).into_iter().flatten().map(|part| part.name));
    }
    let patterns: HashSet<String> = known.iter().map(|name| pattern(name)).collect();
    let mut strays = Vec::new();
    for name in index.names() {
        let Some(own) = name.strip_prefix(prefix) else { continue };
        if !known.contains(own) && patterns.contains(&pattern(own)) {
            strays.push(name.to_owned());
        }
    }
    strays
}

/// `name` with `#` for every part that is a number.
fn pattern(name: &str) -> String {
    let parts = name.split('.').map(|part| if is_number(part) { "#" } else { part });
    parts.collect::<Vec<_>>().join(".")
}

/// Refuses a file without a configuration that has weights of blocks which are not whole: read off its shapes, the network would
/// be smaller than it was.
///
/// # Errors
/// [`Error::Mismatch`] naming the first of `strays`.
pub fn refuse_parts_of_blocks(strays: &[String], origin: &Path) -> Result<()> {
    let Some(first) = strays.first() else { return Ok(()) };
    let error = Error::mismatch(origin, tensor_at(first), "the other weights of its block", "not all of them");
    Err(error.with_hint(INCOMPLETE))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use pinhole_quant::DType;

    use super::*;
    use crate::bind::alias;
    use crate::index::{Entry, Form, Map};
    use crate::weights::{Role, Scope};

    /// An index of tensors with these names.
    fn index(names: &[&str]) -> Index {
        let map = Map::from_bytes("f", &vec![0; 4 * names.len()]).unwrap();
        let mut index = Index::of(&map);
        for (at, name) in names.iter().enumerate() {
            let form = Form::new(map.path(), name, DType::F32.into(), vec![1]).unwrap();
            index.insert((*name).into(), Entry::Tensor(form.place(&map, name, 4 * at).unwrap())).unwrap();
        }
        index
    }

    #[test]
    fn missing_weights_have_the_names_of_their_file() {
        let message = |names: &[&str], prefix: &str, name: &str| {
            missing(&index(names), prefix, &alias::flux, name, Path::new("f")).to_string()
        };
        let norm = "double_blocks.3.img_attn.norm.query_norm.scale";
        let original = message(&["p.double_blocks.2.img_attn.norm.query_norm.scale"], "p.", norm);
        assert_eq!(original, format!("f: tensor `p.{norm}`: expected a tensor, found none"));
        let repacked = message(&["double_blocks.0.img_attn.norm.query_norm.weight"], "", norm);
        assert!(repacked.contains("`double_blocks.3.img_attn.norm.query_norm.weight`"), "{repacked}");
        let diffusers = message(&["transformer_blocks.0.attn.norm_q.weight"], "", norm);
        assert!(diffusers.contains("`transformer_blocks.3.attn.norm_q.weight`"), "{diffusers}");
        // A whole kind of blocks is missing.
        let single = message(&["single_transformer_blocks.0.attn.norm_q.weight"], "", norm);
        assert!(single.contains("`transformer_blocks.3.attn.norm_q.weight`"), "{single}");
        // Of a weight in parts, the part that is not there.
        let parts = ["transformer_blocks.3.attn.to_q.weight", "transformer_blocks.3.attn.to_v.weight"];
        let key = message(&parts, "", "double_blocks.3.img_attn.qkv.weight");
        assert!(key.contains("`transformer_blocks.3.attn.to_k.weight`"), "{key}");
        assert!(message(&[], "", norm).contains(norm));
    }

    #[test]
    fn blocks_of_other_numbers_are_strays() {
        let (mut manifest, mut declared) = (Manifest::default(), Vec::new());
        let mut root = Scope::root(&mut manifest, &mut declared);
        root.weight("text_model.encoder.layers.0.mlp.fc1.bias", &[1], Role::Vector).unwrap();
        let names = [
            "t.text_model.encoder.layers.0.mlp.fc1.bias",
            "t.text_model.encoder.layers.12.mlp.fc1.bias",
            "t.encoder.layers.1.mlp.fc1.bias",
            "t.vision_model.encoder.layers.1.mlp.fc1.bias",
            "t.text_model.embeddings.position_ids",
            "text_model.encoder.layers.1.mlp.fc1.bias",
        ];
        assert_eq!(strays(&manifest, &index(&names), "t.", &alias::clip), names[1..3]);
        let error = refuse_parts_of_blocks(&[names[1].to_owned()], Path::new("f")).unwrap_err();
        assert!(error.to_string().starts_with("f: tensor `t.text_model.encoder.layers.12."), "{error}");
    }
}
