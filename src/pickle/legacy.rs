//! The files that `torch.save` wrote before PyTorch 1.6: pickles one behind the other, then the numbers of each storage.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::machine::{self, Made};
use super::tensors;
use super::value::{Heap, Value};
use crate::error::{Error, Result};
use crate::index::{CUT_SHORT, Index, Map, quoted};

/// The pickle of PyTorch's magic number: PROTO 2, LONG1 of ten bytes, STOP.
const MAGIC: [u8; 15] = [0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.'];

/// The version of the layout.
const VERSION: i64 = 1001;

/// Bytes of the count before each storage's numbers.
const COUNT_BYTES: usize = 8;

/// The tensors of a mapped file.
pub(super) fn read(map: &Arc<Map>) -> Result<Index> {
    let (path, bytes) = (map.path(), map.bytes());
    if !bytes.starts_with(&MAGIC) {
        return Err(Error::NotAModel {
            path: path.to_owned(),
            found: "a Python pickle that PyTorch did not write".into(),
            hint: Some("give a file with weights: safetensors, GGUF, or one of PyTorch's".into()),
        });
    }
    let mut at = MAGIC.len();
    let mut next = |name: &str| -> Result<Made> {
        let end = bytes.len().min(at.saturating_add(machine::MAX_BYTES));
        // Copied before it is read: the file may change meanwhile.
        let copy = bytes[at..end].to_vec();
        let made = machine::read(path, name, &copy)?;
        at += made.length;
        Ok(made)
    };
    let version = next("version")?;
    if !matches!(version.value, Value::Int(VERSION)) {
        let found = version.heap.describe(version.value);
        return Err(Error::malformed(path, "version", VERSION.to_string(), found));
    }
    let system = next("system")?;
    if is_big_endian(&system) {
        return Err(Error::malformed(path, "system", "numbers with the lowest byte first", "the highest first"));
    }
    let (made, keys) = (next("object")?, next("keys")?);
    let places = places(map, &made.heap, &keys, at)?;
    tensors::index(map, &made, &|key| Ok(places.get(key).cloned()))
}

/// Whether the machine that wrote a file has the highest byte of a number first.
fn is_big_endian(system: &Made) -> bool {
    let Value::Dict(id) = system.value else { return false };
    let mut pairs = system.heap.dicts[id].iter();
    pairs.any(|(key, value)| system.heap.text(*key) == Some("little_endian") && matches!(value, Value::Bool(false)))
}

/// Where the numbers of each storage lie, the first from byte `at` on.
fn places(map: &Map, heap: &Heap, keys: &Made, mut at: usize) -> Result<HashMap<String, Range<usize>>> {
    let (path, bytes) = (map.path(), map.bytes());
    let mut places = HashMap::new();
    for key in keys.heap.items(keys.value).unwrap_or_default() {
        let Some(key) = keys.heap.text(*key) else {
            return Err(Error::malformed(path, "keys", "names of storages", keys.heap.describe(*key)));
        };
        let place = format!("storage {}", quoted(key));
        let Some(stored) = heap.storages.iter().find(|stored| stored.key.as_ref() == key) else {
            return Err(Error::malformed(path, place, "a storage of a tensor", "none of this name"));
        };
        let count = bytes.get(at..).and_then(|rest| rest.first_chunk::<COUNT_BYTES>());
        let count = count.and_then(|count| usize::try_from(u64::from_le_bytes(*count)).ok());
        let start = at.saturating_add(COUNT_BYTES);
        let end = count.and_then(|count| start.checked_add(count.checked_mul(stored.format.width())?));
        let Some(end) = end.filter(|end| *end <= bytes.len()) else {
            let found = format!("a file of {} bytes", bytes.len());
            return Err(
                Error::malformed(path, place, format!("its numbers from byte {at} on"), found).with_hint(CUT_SHORT)
            );
        };
        if places.insert(key.to_owned(), start..end).is_some() {
            return Err(Error::malformed(path, place, "a storage that is there once", "another of this name"));
        }
        at = end;
    }
    Ok(places)
}
