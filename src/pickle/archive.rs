//! The zip archives that `torch.save` writes since PyTorch 1.6: stored entries, whose bytes are used where they lie.

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use zip::read::{ArchiveOffset, Config};
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use super::machine::{self, MAX_BYTES};
use super::tensors;
use crate::error::{Error, Result};
use crate::index::{CUT_SHORT, Index, Map, quoted};

/// Most entries of an archive. A model has one for each tensor.
const MAX_ENTRIES: u64 = 1 << 18;

/// The record that ends an archive, and the one before it that says where its longer form lies, as they begin, and how long they are.
const END: ([u8; 4], usize) = (*b"PK\x05\x06", 22);
const LOCATOR: ([u8; 4], usize) = (*b"PK\x06\x07", 20);

/// The entry with the pickle.
const PICKLE: &str = "data.pkl";

/// The tensors of a mapped archive.
pub(super) fn read(map: &Arc<Map>) -> Result<Index> {
    let entries = entries(map)?;
    let path = map.path();
    let mut pickles = entries.keys().filter(|name| name.split_once('/').is_some_and(|(_, rest)| rest == PICKLE));
    let (Some(name), None) = (pickles.next().cloned(), pickles.next()) else {
        return Err(Error::NotAModel {
            path: path.to_owned(),
            found: "a zip archive that is no file of PyTorch's (no data.pkl in its only folder)".into(),
            hint: Some("unpack it first, or give a file with weights".into()),
        });
    };
    let folder = name.strip_suffix(PICKLE).unwrap_or_default().to_owned();
    if entries.contains_key(&format!("{folder}constants.pkl")) {
        let found = "a program of TorchScript".into();
        let hint = Some("save its state_dict as safetensors".into());
        return Err(Error::NotAModel { path: path.to_owned(), found, hint });
    }
    let stored = |name: &str| match entries.get(name) {
        Some(Entry::Stored(range)) => Ok(Some(range.clone())),
        Some(Entry::Packed) => {
            let expected = "an entry that is stored as it is";
            let found = "one that is compressed, or encrypted";
            Err(Error::malformed(path, format!("entry {}", quoted(name)), expected, found))
        }
        None => Ok(None),
    };
    if let Some(order) = stored(&format!("{folder}byteorder"))?
        && map.bytes()[order.clone()] != *b"little"
    {
        let found = quoted(&String::from_utf8_lossy(&map.bytes()[order]));
        return Err(Error::malformed(path, "byteorder", "`little`", found));
    }
    let range = stored(&name)?.unwrap_or_default();
    if range.len() > MAX_BYTES {
        let expected = format!("a pickle of at most {MAX_BYTES} bytes");
        return Err(Error::malformed(path, PICKLE, expected, format!("{} bytes", range.len())));
    }
    // Copied before it is read: the file may change meanwhile.
    let bytes = map.bytes()[range].to_vec();
    let made = machine::read(path, PICKLE, &bytes)?;
    tensors::index(map, &made, &|key| stored(&format!("{folder}data/{key}")))
}

/// An entry of an archive.
enum Entry {
    /// One whose bytes lie there as they are.
    Stored(Range<usize>),
    /// One that is compressed or encrypted: such entries are never unpacked.
    Packed,
}

/// The entries, by their names.
fn entries(map: &Map) -> Result<HashMap<String, Entry>> {
    let path = map.path();
    check_end(path, map.bytes())?;
    let config = Config { archive_offset: ArchiveOffset::Known(0) };
    let mut archive =
        ZipArchive::with_config(config, Cursor::new(map.bytes())).map_err(|error| damaged(path, error))?;
    if archive.has_duplicate_names() {
        return Err(Error::malformed(path, "archive", "names of entries that are used once", "one that is used twice"));
    }
    let mut entries = HashMap::new();
    let mut by_start = Vec::new();
    for at in 0..archive.len() {
        let entry = archive.by_index_raw(at).map_err(|error| damaged(path, error))?;
        let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
        let is_packed = entry.compression() != CompressionMethod::Stored || entry.encrypted();
        if is_packed || entry.size() != entry.compressed_size() {
            entries.insert(name, Entry::Packed);
            continue;
        }
        let start = entry.data_start().and_then(|start| usize::try_from(start).ok());
        let size = usize::try_from(entry.size()).ok();
        let range = start.zip(size).and_then(|(start, size)| Some(start..start.checked_add(size)?));
        let Some(range) = range.filter(|range| range.end <= map.bytes().len()) else {
            let found = format!("{} bytes from byte {start:?} on", entry.size());
            let error = Error::malformed(path, format!("entry {}", quoted(&name)), "bytes inside the file", found);
            return Err(error.with_hint(CUT_SHORT));
        };
        if !range.is_empty() {
            by_start.push((range.start, range.end));
        }
        entries.insert(name, Entry::Stored(range));
    }
    by_start.sort_unstable();
    if let Some(pair) = by_start.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        let expected = format!("entries that share no bytes, the next from byte {} on", pair[0].1);
        return Err(Error::malformed(path, "archive", expected, format!("one from byte {} on", pair[1].0)));
    }
    Ok(entries)
}

/// Refuses an archive that does not end with its directory, as PyTorch's do, or says that it has more entries than any model: room
/// for as many is made before they are read.
fn check_end(path: &Path, bytes: &[u8]) -> Result<()> {
    let record = |end: usize, (mark, length): ([u8; 4], usize)| {
        let record = bytes.get(end.checked_sub(length)?..end)?;
        record.starts_with(&mark).then_some(record)
    };
    let Some(end) = record(bytes.len(), END) else {
        let expected = "a zip archive that ends with its directory";
        return Err(Error::malformed(path, "archive", expected, "another end").with_hint(CUT_SHORT));
    };
    let mut count = u64::from(u16::from_le_bytes([end[10], end[11]]));
    if let Some(locator) = record(bytes.len() - END.1, LOCATOR) {
        let number = |bytes: &[u8], at: usize| bytes.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        let long = number(locator, 8).and_then(|at| bytes.get(usize::try_from(at).ok()?..));
        count = count.max(long.and_then(|long| number(long, 32)).unwrap_or(0));
    }
    if count > MAX_ENTRIES {
        return Err(Error::malformed(path, "archive", format!("at most {MAX_ENTRIES} entries"), count.to_string()));
    }
    Ok(())
}

fn damaged(path: &Path, error: ZipError) -> Error {
    let found = error.to_string().escape_debug().to_string();
    Error::malformed(path, "archive", "a zip archive as PyTorch writes it", found).with_hint(CUT_SHORT)
}
