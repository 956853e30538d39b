//! Models cut into several files, listed by an index.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::open::open;
use crate::error::{Error, Result};
use crate::index::{Index, Map, failed_text, quoted, tensor_at};

/// Most bytes of an index. The largest models have a few thousand tensors, of about a hundred bytes each.
const MAX_INDEX_BYTES: usize = 64 << 20;

/// A `*.safetensors.index.json`, or a `*.bin.index.json`.
#[derive(Deserialize)]
struct ShardIndex {
    weight_map: WeightMap,
}

/// Which file holds which tensor.
struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<WeightMap, D::Error> {
        deserializer.deserialize_map(WeightMapVisitor)
    }
}

struct WeightMapVisitor;

impl<'de> Visitor<'de> for WeightMapVisitor {
    type Value = WeightMap;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensor names and file names")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
        let mut files = BTreeMap::new();
        while let Some((name, file)) = map.next_entry::<String, String>()? {
            if files.contains_key(&name) {
                return Err(A::Error::custom(format!("{} is there twice", quoted(&name))));
            }
            files.insert(name, file);
        }
        Ok(WeightMap(files))
    }
}

/// Opens the shards that the index at `index_json` names, which lie beside it, as one.
///
/// # Errors
///
/// [`Error::Malformed`] where the index is no such index, a shard's name is more than a file name, or a tensor is in two
/// shards; [`Error::Mismatch`] where a shard is missing or lacks a tensor that it should hold; those of
/// [`open`](super::open).
pub fn open_sharded(index_json: &Path) -> Result<Index> {
    let WeightMap(files) = read_index(index_json)?;
    let mut index = Index::default();
    for file in files.values().collect::<BTreeSet<_>>() {
        let shard = open_shard(index_json, file)?;
        check_complete(index_json, &files, file, &shard)?;
        index.append(shard)?;
    }
    Ok(index)
}

/// The names of the shards that the index at `index_json` lists.
///
/// # Errors
///
/// [`Error::Malformed`] where the index is no such index.
pub(super) fn shards(index_json: &Path) -> Result<BTreeSet<String>> {
    let WeightMap(files) = read_index(index_json)?;
    Ok(files.into_values().collect())
}

/// Whether a file is named as the index of shards is. Some names have a precision in the middle.
pub(super) fn is_index_name(name: &str) -> bool {
    (name.contains(".safetensors.") || name.contains(".bin.")) && name.contains("index.") && name.ends_with(".json")
}

/// Whether a file is such an index, by its name or by its content.
pub(crate) fn is_index(path: &Path, bytes: &[u8]) -> bool {
    if path.file_name().is_some_and(|name| is_index_name(&name.to_string_lossy())) {
        return true;
    }
    let start = bytes.trim_ascii_start();
    let key = b"\"weight_map\"";
    start.starts_with(b"{") && bytes.len() <= MAX_INDEX_BYTES && start.windows(key.len()).any(|part| part == key)
}

fn read_index(path: &Path) -> Result<WeightMap> {
    let map = Map::open(path)?;
    let length = map.bytes().len();
    if length > MAX_INDEX_BYTES {
        let expected = format!("at most {MAX_INDEX_BYTES} bytes");
        return Err(Error::malformed(path, "index", expected, format!("{length} bytes")));
    }
    // Copied before it is checked: the file may change between the two, and a `str` must stay UTF-8.
    let text = map.bytes().to_vec();
    if let Some(error) = failed_text(path, &text) {
        return Err(error);
    }
    let malformed = |found: String| Error::malformed(path, "index", "a JSON object with a `weight_map`", found);
    // A struct would be read off a list as well.
    if text.trim_ascii_start().starts_with(b"[") {
        return Err(malformed("a list".into()));
    }
    let index: ShardIndex =
        serde_json::from_slice(&text).map_err(|error| malformed(error.to_string().escape_debug().to_string()))?;
    Ok(index.weight_map)
}

fn open_shard(index_json: &Path, file: &str) -> Result<Index> {
    let path = shard_path(index_json, file)?;
    match open(&path) {
        Ok(shard) => Ok(shard),
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            let at = format!("shard {}", quoted(file));
            let error = Error::mismatch(index_json, at, "the file beside the index", "none");
            Err(error.with_hint("the model is incomplete: download the missing file into the same directory"))
        }
        Err(error) => Err(error),
    }
}

/// Where the shard `file` lies: beside the index, and nowhere else.
fn shard_path(index_json: &Path, file: &str) -> Result<PathBuf> {
    let mut components = Path::new(file).components();
    let plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
    // Refused on every system, so that an index means the same everywhere.
    if !plain || file.contains(['/', '\\', ':']) || file.contains(char::is_control) {
        return Err(Error::malformed(index_json, "weight_map", "the name of a file beside the index", quoted(file)));
    }
    Ok(index_json.with_file_name(file))
}

/// Refuses a shard that lacks a tensor which the index says it has.
fn check_complete(index_json: &Path, files: &BTreeMap<String, String>, file: &str, shard: &Index) -> Result<()> {
    let expected = files.iter().filter(|(_, holder)| *holder == file);
    match expected.map(|(name, _)| name).find(|name| !shard.has(name)) {
        None => Ok(()),
        Some(name) => {
            let expected = format!("it in {}, as `weight_map` says", quoted(file));
            let error = Error::mismatch(index_json, tensor_at(name), expected, "no such tensor there");
            Err(error.with_hint("the index and the shards are not of the same model"))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn shards_lie_beside_the_index() {
        let index = Path::new("dir/model.safetensors.index.json");
        let good = shard_path(index, "model-00001-of-00002.safetensors").unwrap();
        assert_eq!(good, Path::new("dir/model-00001-of-00002.safetensors"));
        for bad in ["", ".", "..", "../x", "/etc/passwd", "a/b", "a/", "./a", "a\\b", "c:x", "a\nb"] {
            let error = shard_path(index, bad).unwrap_err().to_string();
            assert!(error.contains("weight_map: expected the name of a file"), "{bad}: {error}");
        }
    }
}
