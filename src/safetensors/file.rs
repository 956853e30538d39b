//! One safetensors file: length, header, tensors.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use pinhole_quant::DType;

use super::header::{Header, TensorInfo};
use crate::error::{Error, Result};
use crate::index::{
    CUT_SHORT, Entry, Form, Index, Map, Other, Storage, check_name, extents_needed, failed_weights, looks_like, quoted,
    tensor_at,
};

/// Bytes of the header's length.
const LENGTH_BYTES: usize = 8;
/// Most bytes of a header: the limit of the format's own reader.
const MAX_HEADER_BYTES: usize = 100_000_000;
/// Most characters of the name of a number format that are kept.
const MAX_FORMAT_CHARACTERS: usize = 32;

/// An open safetensors file.
#[derive(Clone, Debug)]
pub struct Safetensors {
    /// What the file says about itself under `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// Its tensors, in the order of their bytes.
    pub index: Index,
}

impl Safetensors {
    /// Opens the file at `path`.
    ///
    /// # Errors
    ///
    /// Those of [`Map::open`] and [`Safetensors::from_map`].
    pub fn open(path: &Path) -> Result<Safetensors> {
        Safetensors::from_map(Map::open(path)?)
    }

    /// Reads the header of a mapped file and checks it. No tensor's bytes are touched.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`], which says what and where, for anything that breaks the format; [`Error::NotAModel`] for what a
    /// download that failed leaves, and for files of other formats.
    pub fn from_map(map: Arc<Map>) -> Result<Safetensors> {
        if let Some(error) = failed_weights(map.path(), map.bytes()) {
            return Err(error);
        }
        // Too short a file may begin like anything.
        if let Some(found) = looks_like(map.bytes()).filter(|_| map.bytes().len() > LENGTH_BYTES) {
            let hint = Some("a safetensors file is needed here".into());
            return Err(Error::NotAModel { path: map.path().to_owned(), found: found.into(), hint });
        }
        let (Header { metadata, mut tensors }, data) = read_header(&map)?;
        tensors.sort_by_key(|(_, info)| info.data_offsets);
        let mut index = Index::of(&map);
        let mut end = data;
        for (name, info) in tensors {
            let tensor = tensor(&map, &name, &info, data, end)?;
            end += tensor.bytes();
            index.insert(name.into(), tensor)?;
        }
        check_covered(&map, end)?;
        Ok(Safetensors { metadata, index })
    }
}

/// The header, and where the data behind it begins.
fn read_header(map: &Map) -> Result<(Header, usize)> {
    let (path, bytes) = (map.path(), map.bytes());
    let Some(length) = bytes.first_chunk::<LENGTH_BYTES>() else {
        let found = format!("a file of {} bytes", bytes.len());
        let error = Error::malformed(path, "header length", format!("{LENGTH_BYTES} bytes"), found);
        return Err(error.with_hint(CUT_SHORT));
    };
    let length = u64::from_le_bytes(*length);
    let fits = (bytes.len() - LENGTH_BYTES).min(MAX_HEADER_BYTES);
    let Some(length) = usize::try_from(length).ok().filter(|&length| length <= fits) else {
        let expected = format!("at most {fits}, for a file of {} bytes", bytes.len());
        return Err(Error::malformed(path, "header length", expected, length.to_string()).with_hint(CUT_SHORT));
    };
    let data = LENGTH_BYTES + length;
    // Copied before it is checked: the file may change between the two, and a `str` must stay UTF-8.
    let text = bytes[LENGTH_BYTES..data].to_vec();
    let header = serde_json::from_slice(&text).map_err(|error| {
        // The text of the error may quote the file.
        let found = error.to_string().escape_debug().to_string();
        Error::malformed(path, "header", "a JSON object of tensors", found)
    })?;
    Ok((header, data))
}

/// The tensor of one entry, whose bytes must begin at byte `start` of the file, where those before it end.
fn tensor(map: &Arc<Map>, name: &str, info: &TensorInfo, data: usize, start: usize) -> Result<Entry> {
    let fail = |expected: String, found: String| Err(Error::malformed(map.path(), tensor_at(name), expected, found));
    check_name(map.path(), name)?;
    // PyTorch's order has the slowest extent first.
    let dims: Vec<usize> = info.shape.iter().rev().copied().collect();
    let (first, last) = info.data_offsets;
    if first != start - data {
        return fail(format!("data from offset {} on, where that before it ends", start - data), first.to_string());
    }
    let Some(bytes) = last.checked_sub(first) else {
        return fail(format!("an end at offset {first} or later"), last.to_string());
    };
    let limit = map.bytes().len();
    let Some(storage) = storage(&info.dtype) else {
        let format: String = info.dtype.chars().take(MAX_FORMAT_CHARACTERS).collect();
        let other = Other::new(map, name, format, "a float of 8 to 64 bits, an integer or a bool", quoted(&info.dtype));
        return other.placed(dims, start, bytes, limit).map(Entry::Other);
    };
    let wrong_size =
        |needed: usize| fail(format!("{needed} bytes for {storage} {:?}", info.shape), format!("{first}..{last}"));
    if let Some(expected) = extents_needed(storage, &dims) {
        if bytes != 0 {
            return wrong_size(0);
        }
        let other = Other::new(map, name, storage.name().into(), &expected, format!("{storage} {:?}", info.shape));
        return other.placed(dims, start, bytes, limit).map(Entry::Other);
    }
    let form = Form::new(map.path(), name, storage, dims)?;
    if bytes != form.bytes() {
        return wrong_size(form.bytes());
    }
    form.place(map, name, start).map(Entry::Tensor)
}

/// The storage of a number format's name; `None` for one that pinhole does not read.
fn storage(dtype: &str) -> Option<Storage> {
    Some(match dtype {
        "F64" => DType::F64.into(),
        "F32" => DType::F32.into(),
        "F16" => DType::F16.into(),
        "BF16" => DType::BF16.into(),
        "F8_E4M3" => Storage::F8E4M3,
        "F8_E5M2" => Storage::F8E5M2,
        "I64" => DType::I64.into(),
        "I32" => DType::I32.into(),
        "I16" => DType::I16.into(),
        "I8" => DType::I8.into(),
        "U64" => Storage::U64,
        "U32" => Storage::U32,
        "U16" => Storage::U16,
        "U8" => Storage::U8,
        "BOOL" => Storage::Bool,
        _ => return None,
    })
}

/// Refuses bytes that belong to no tensor, as the format does: they would be a second file inside the first.
fn check_covered(map: &Map, end: usize) -> Result<()> {
    let length = map.bytes().len();
    if end != length {
        let expected = format!("the end of the file at byte {end}, where the last tensor ends");
        return Err(Error::malformed(map.path(), "data", expected, format!("a file of {length} bytes")));
    }
    Ok(())
}
