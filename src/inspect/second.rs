//! The header of a GGUF file, read a second time by somebody else: the crate `gguf-rs`.
//!
//! It believes what it reads, so only headers come before it that the [first reading](crate::gguf) has found sound, and that
//! have nothing it is known not to read. Its tables of types and sizes are its own: where both readings agree on every value,
//! name, shape, type and place, a mistake would have to be in both.

use std::io::Cursor;
use std::path::PathBuf;
use std::sync::Arc;

use gguf_rs::{ByteOrder, GGUFContainer, GGUFModel};
use pinhole_quant::DType;
use serde::Serialize;
use serde_json::Value as Json;

use crate::gguf::{Array, Gguf, Value};
use crate::index::{Map, Storage, quoted};
use crate::{Result, quiet, reserve};

/// Bytes before what the crate reads.
const MAGIC: &[u8; 4] = b"GGUF";
/// The most dimensions, and the first type, that it does not read.
const DIMS: usize = 4;
const TYPES: u32 = 40;
/// The most values in arrays that are compared: gguf-rs keeps each as a value of JSON.
const VALUES: usize = 1 << 21;
/// How many differences are told.
const TOLD: usize = 20;

/// What a second reading of a header found.
#[derive(Debug, Serialize)]
pub struct SecondReading {
    /// The file.
    pub file: PathBuf,
    /// How many entries of metadata it has.
    pub entries: usize,
    /// How many tensors.
    pub tensors: usize,
    /// Where the two readings differ.
    pub differences: Vec<String>,
    /// Why there is no second reading.
    pub unread: Vec<String>,
}

/// Reads the header of `map` again, if it is a GGUF file.
///
/// # Errors
/// What reading the file returns.
pub(super) fn read(map: &Arc<Map>) -> Result<Option<SecondReading>> {
    if !map.bytes().starts_with(MAGIC) {
        return Ok(None);
    }
    let gguf = Gguf::from_map(Arc::clone(map))?;
    let (entries, tensors) = (gguf.metadata.len(), gguf.index.len());
    let mut reading =
        SecondReading { file: map.path().to_owned(), entries, tensors, differences: Vec::new(), unread: unread(&gguf) };
    if reading.unread.is_empty() {
        // Tensors follow the header.
        let end = gguf.index.iter().map(|(_, tensor)| tensor.offset()).min().unwrap_or(map.bytes().len());
        let mut header = reserve::zeros::<u8>("a header", end - MAGIC.len())?;
        map.read(MAGIC.len(), &mut header)?;
        match quiet::caught(|| decode(header)) {
            Some(Ok(theirs)) => reading.differences = differences(&gguf, &theirs),
            Some(Err(why)) => reading.unread.push(why),
            None => reading.unread.push("it panics".into()),
        }
    }
    Ok(Some(reading))
}

fn decode(header: Vec<u8>) -> std::result::Result<GGUFModel, String> {
    let mut container = GGUFContainer::new(ByteOrder::LE, Box::new(Cursor::new(header)), u64::MAX);
    container.decode().map_err(|error| error.to_string().escape_debug().take(200).collect())
}

/// What the crate does not read.
fn unread(gguf: &Gguf) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut values = 0usize;
    for (key, value) in gguf.metadata.iter() {
        if let Value::Array(array) = value {
            values = values.saturating_add(array.len());
            if matches!(array, Array::Array(_)) {
                reasons.push(format!("metadata {} is an array of arrays", quoted(key)));
            }
        }
    }
    if values > VALUES {
        reasons.push(format!("{values} values in arrays, and {VALUES} are compared at most"));
    }
    for (name, tensor) in gguf.index.iter() {
        if tensor.file_shape.len() > DIMS {
            reasons.push(format!("tensor {} has {} dimensions", quoted(name), tensor.file_shape.len()));
        }
        match tensor.storage {
            Storage::Number(dtype) if dtype.id() < TYPES => {}
            other => reasons.push(format!("tensor {} is {other}", quoted(name))),
        }
    }
    for other in gguf.index.others() {
        reasons.push(format!("tensor {} is {} {:?}", quoted(&other.name), other.storage, other.file_shape));
    }
    cut(reasons)
}

fn cut(mut lines: Vec<String>) -> Vec<String> {
    if lines.len() > TOLD {
        let more = lines.len() - TOLD;
        lines.truncate(TOLD);
        lines.push(format!("and {more} more"));
    }
    lines
}

/// Where the readings differ.
fn differences(ours: &Gguf, theirs: &GGUFModel) -> Vec<String> {
    let mut found = Vec::new();
    let mut same = |what: String, ours: String, theirs: String| {
        if ours != theirs {
            found.push(format!("{what}: {ours}, and {theirs} to gguf-rs"));
        }
    };
    same("version".into(), format!("v{}", ours.version), theirs.get_version());
    same("alignment".into(), ours.alignment.to_string(), theirs.alignment().to_string());
    same("entries".into(), ours.metadata.len().to_string(), theirs.metadata().len().to_string());
    same("tensors".into(), ours.index.len().to_string(), theirs.tensors().len().to_string());
    for (key, value) in ours.metadata.iter() {
        if theirs.metadata().get(key) != Some(&json(value)) {
            same(format!("metadata {}", quoted(key)), value.describe(), "another value".into());
        }
    }
    for (theirs_tensor, (name, tensor)) in theirs.tensors().iter().zip(ours.index.iter()) {
        let what = format!("tensor {}", quoted(name));
        same(what.clone(), quoted(name), quoted(&theirs_tensor.name));
        same(format!("{what}, shape"), format!("{:?}", tensor.file_shape), format!("{:?}", theirs_tensor.shape));
        let storage = DType::from_id(theirs_tensor.kind).map(|dtype| dtype.to_string());
        same(format!("{what}, type"), tensor.storage.to_string(), storage.unwrap_or_default());
        let place = theirs.data_offset().saturating_add(theirs_tensor.offset);
        same(format!("{what}, first byte"), tensor.offset().to_string(), place.to_string());
    }
    cut(found)
}

/// A value as the crate keeps it.
fn json(value: &Value) -> Json {
    match value {
        Value::U8(n) => (*n).into(),
        Value::I8(n) => (*n).into(),
        Value::U16(n) => (*n).into(),
        Value::I16(n) => (*n).into(),
        Value::U32(n) => (*n).into(),
        Value::I32(n) => (*n).into(),
        Value::F32(n) => (*n).into(),
        Value::Bool(truth) => (*truth).into(),
        Value::String(text) => text.as_str().into(),
        Value::U64(n) => (*n).into(),
        Value::I64(n) => (*n).into(),
        Value::F64(n) => (*n).into(),
        Value::Array(array) => match array {
            Array::U8(all) => all.as_slice().into(),
            Array::I8(all) => all.as_slice().into(),
            Array::U16(all) => all.as_slice().into(),
            Array::I16(all) => all.as_slice().into(),
            Array::U32(all) => all.as_slice().into(),
            Array::I32(all) => all.as_slice().into(),
            Array::F32(all) => all.as_slice().into(),
            Array::Bool(all) => all.as_slice().into(),
            Array::String(all) => all.iter().collect(),
            Array::U64(all) => all.as_slice().into(),
            Array::I64(all) => all.as_slice().into(),
            Array::F64(all) => all.as_slice().into(),
            // Not read.
            Array::Array(_) => Json::Null,
        },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use pinhole_quant::gguf::{Layout, TensorSpec, Writer};

    use super::*;

    fn file(metadata: &[(String, Value)], tensors: &[(&str, DType, &[usize])]) -> Arc<Map> {
        let specs: Vec<_> = tensors
            .iter()
            .map(|&(name, dtype, dims)| TensorSpec { name: name.into(), dims: dims.to_vec(), dtype })
            .collect();
        let layout = Layout::new(metadata, &specs, 32).unwrap();
        let mut writer = Writer::new(Vec::new(), layout.clone()).unwrap();
        for tensor in layout.tensors() {
            writer.write_tensor(&tensor.name, &vec![0; tensor.bytes as usize]).unwrap();
        }
        Map::from_bytes("f.gguf", &writer.finish().unwrap()).unwrap()
    }

    fn entries() -> Vec<(String, Value)> {
        let array = |array| Value::Array(array);
        [
            ("a.f", Value::F32(0.1)),
            ("a.inf", Value::F64(f64::INFINITY)),
            ("a.i", Value::I64(i64::MIN)),
            ("a.u", Value::U64(u64::MAX)),
            ("a.text", "ż\n".into()),
            ("a.truths", array(Array::Bool(vec![true, false]))),
            ("a.floats", array(Array::F32(vec![1e-7, -0.0, 3e38]))),
            ("a.bytes", array(Array::U8(vec![0, 255]))),
            ("tokenizer.texts", array(Array::String(["x", ""].into_iter().collect()))),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }

    #[test]
    fn both_read_the_same() {
        let tensors: [(&str, DType, &[usize]); 4] = [
            ("x", DType::F32, &[3]),
            ("y", DType::Q4_K, &[256, 2]),
            ("z", DType::BF16, &[1, 2, 3, 4]),
            ("w", DType::MXFP4, &[32, 2]),
        ];
        let reading = read(&file(&entries(), &tensors)).unwrap().unwrap();
        assert_eq!((reading.differences, reading.unread), (vec![], vec![]));
        assert_eq!((reading.entries, reading.tensors), (entries().len(), 4));
        let mini = crate::builtin::mini().unwrap();
        let reading = read(&mini.indexes()[0].maps()[0]).unwrap().unwrap();
        assert_eq!((reading.differences, reading.unread), (vec![], vec![]));
        assert!(read(&Map::from_bytes("other", b"PK").unwrap()).unwrap().is_none());
    }

    #[test]
    fn what_is_not_read_is_listed() {
        let nested = Value::Array(Array::Array(vec![Array::U8(vec![1])]));
        let metadata = [entries(), vec![("a.nested".to_owned(), nested)]].concat();
        let tensors: [(&str, DType, &[usize]); 2] = [("x", DType::F32, &[1, 2, 3, 4]), ("y", DType::NVFP4, &[64])];
        let reading = read(&with_a_fifth_extent(&file(&metadata, &tensors), "x")).unwrap().unwrap();
        assert_eq!(
            reading.unread,
            ["metadata `a.nested` is an array of arrays", "tensor `x` has 5 dimensions", "tensor `y` is nvfp4"]
        );
        let many = vec![("a.many".to_owned(), Value::Array(Array::U8(vec![7; VALUES + 1])))];
        let reading = read(&file(&many, &[])).unwrap().unwrap();
        assert_eq!(reading.unread, [format!("{} values in arrays, and {VALUES} are compared at most", VALUES + 1)]);
    }

    /// The same file, in which the tensor `name` of four extents has a fifth of 1.
    fn with_a_fifth_extent(file: &Map, name: &str) -> Arc<Map> {
        let entry = [&(name.len() as u64).to_le_bytes()[..], name.as_bytes(), &4u32.to_le_bytes()].concat();
        let mut bytes = file.bytes().to_vec();
        let start = bytes.windows(entry.len()).position(|window| window == entry).unwrap();
        let behind = start + entry.len() + 4 * 8;
        bytes[behind - 4 * 8 - 4] = 5;
        bytes.splice(behind..behind, 1u64.to_le_bytes());
        // The header's end, behind the last tensor's offset, is padded to a multiple of 32 as before.
        let last = [&1u64.to_le_bytes()[..], b"y"].concat();
        let end = bytes.windows(last.len()).rposition(|window| window == last).unwrap() + last.len() + 4 + 8 + 4 + 8;
        match (end - 8).next_multiple_of(32) - (end - 8) {
            padding @ 8.. => drop(bytes.drain(end + padding - 8..end + padding)),
            _ => drop(bytes.splice(end..end, [0; 24])),
        }
        Map::from_bytes("f.gguf", &bytes).unwrap()
    }

    /// Another header than the one that was read first, as if one of the two were wrong.
    #[test]
    fn differences_are_named() {
        let ours = file(&entries(), &[("x", DType::F32, &[3, 2])]);
        let mut other = entries();
        other[2].1 = Value::I64(7);
        let theirs = file(&other, &[("y", DType::F16, &[3, 3])]);
        let gguf = Gguf::from_map(Arc::clone(&ours)).unwrap();
        let theirs = decode(theirs.bytes()[4..].to_vec()).unwrap();
        assert_eq!(
            differences(&gguf, &theirs),
            [
                "metadata `a.i`: i64, and another value to gguf-rs",
                "tensor `x`: `x`, and `y` to gguf-rs",
                "tensor `x`, shape: [3, 2], and [3, 3] to gguf-rs",
                "tensor `x`, type: f32, and f16 to gguf-rs",
            ]
        );
    }
}
