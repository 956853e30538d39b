//! What a header claims, held against the file: types, shapes, alignment, places.

use std::sync::Arc;

use pinhole_quant::DType;
use pinhole_quant::gguf::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, Value};

use super::metadata::Metadata;
use super::walk::TensorEntry;
use crate::error::{Error, Result};
use crate::index::{Entry, FileTensor, Form, Index, Map, Other, check_name, extents_needed, fold, quoted, tensor_at};
use crate::tensor::Shape;

/// Type ids that old files may hold and ggml reads no more, with their names.
const RETIRED: &[(u32, &str)] = &[
    (4, "q4_2"),
    (5, "q4_3"),
    (31, "q4_0_4_4"),
    (32, "q4_0_4_8"),
    (33, "q4_0_8_8"),
    (36, "iq4_nl_4_4"),
    (37, "iq4_nl_4_8"),
    (38, "iq4_nl_8_8"),
];

/// How the keys begin under which ComfyUI-GGUF keeps the shapes of tensors that it reshapes so that blocks divide their rows:
/// PyTorch's extents, slowest first. The numbers stay in order.
const ORIGINAL_SHAPE: &str = "comfy.gguf.orig_shape.";

/// The alignment that the metadata asks for, in bytes.
///
/// # Errors
///
/// [`Error::Mismatch`] where the key has another type than `u32`, [`Error::Malformed`] where the value is no power of
/// two or less than 8: the format asks for a multiple of 8, and ggml for a power of two.
pub(super) fn alignment(metadata: &Metadata) -> Result<u64> {
    let alignment = metadata.u32(ALIGNMENT_KEY)?.unwrap_or(DEFAULT_ALIGNMENT);
    if alignment < 8 || !alignment.is_power_of_two() {
        let at = format!("metadata `{ALIGNMENT_KEY}`");
        let expected = "a power of two of at least 8";
        return Err(Error::malformed(metadata.path(), at, expected, alignment.to_string()));
    }
    Ok(alignment.into())
}

/// The index of the tensors in `entries`, whose list ends at byte `header` of the file.
///
/// # Errors
///
/// [`Error::Malformed`], with the tensor's name, where a name is empty, too long or there twice, a size is impossible, or
/// bytes are misaligned, outside the file or shared with another tensor.
pub(super) fn index(
    map: &Arc<Map>,
    metadata: &Metadata,
    entries: Vec<TensorEntry>,
    header: usize,
    alignment: u64,
) -> Result<Index> {
    // A header has at most `MAX_HEADER_BYTES` and an alignment at most 2^31: no overflow in 64 bits.
    let data = (header as u64).next_multiple_of(alignment);
    let mut index = Index::of(map);
    for entry in entries {
        check_name(map.path(), &entry.name)?;
        let mut tensor = tensor(map, &entry, data, alignment)?;
        if let Entry::Tensor(placed) = &mut tensor
            && let Some(given) = metadata.get(&format!("{ORIGINAL_SHAPE}{}", entry.name))
        {
            match original_shape(metadata, &entry.name).filter(|shape| shape.elements() == placed.shape.elements()) {
                Some(shape) => placed.shape = shape,
                None => tensor = Entry::Other(misshapen(map, placed, &entry.name, given)?),
            }
        }
        index.insert(entry.name.into(), tensor)?;
    }
    index.check_disjoint()?;
    Ok(index)
}

fn tensor(map: &Arc<Map>, entry: &TensorEntry, data: u64, alignment: u64) -> Result<Entry> {
    let fail = |expected: String, found: String| Error::malformed(map.path(), tensor_at(&entry.name), expected, found);
    let dims = entry.dims.iter().map(|&extent| usize::try_from(extent)).collect::<Result<Vec<_>, _>>();
    let dims = dims.map_err(|_| fail("a size that memory can hold".into(), format!("{:?}", entry.dims)))?;
    if !entry.offset.is_multiple_of(alignment) {
        return Err(fail(format!("an offset that is a multiple of {alignment}"), entry.offset.to_string()));
    }
    let start = data.checked_add(entry.offset).and_then(|start| usize::try_from(start).ok());
    let start = start.ok_or_else(|| fail("an offset inside the file".into(), entry.offset.to_string()))?;
    // What cannot be read has no size that is known. At the end of a file, its place may be behind padding that is not there.
    let limit = map.bytes().len().next_multiple_of(usize::try_from(alignment).unwrap_or(1));
    let Some(dtype) = DType::from_id(entry.type_id) else {
        return unknown(map, entry).placed(dims, start, 0, limit).map(Entry::Other);
    };
    if let Some(expected) = extents_needed(dtype.into(), &dims) {
        let other = Other::new(map, &entry.name, dtype.name().into(), &expected, format!("{dtype} {dims:?}"));
        return other.placed(dims, start, 0, limit).map(Entry::Other);
    }
    Form::new(map.path(), &entry.name, dtype.into(), dims)?.place(map, &entry.name, start).map(Entry::Tensor)
}

/// The shape that the tensor `name` had before ComfyUI-GGUF reshaped it, if the metadata has a shape for it.
fn original_shape(metadata: &Metadata, name: &str) -> Option<Shape> {
    let mut extents = Vec::new();
    for extent in metadata.integers(&format!("{ORIGINAL_SHAPE}{name}")).ok().flatten()? {
        extents.push(usize::try_from(extent).ok().filter(|&extent| extent > 0)?);
    }
    extents.reverse();
    fold(&extents)
}

/// The tensor `name`, which is `placed`, with a shape in the metadata that it cannot have had.
fn misshapen(map: &Arc<Map>, placed: &FileTensor, name: &str, given: &Value) -> Result<Other> {
    let key = quoted(&format!("{ORIGINAL_SHAPE}{name}"));
    let expected = format!("a shape of {} numbers in metadata {key}", placed.shape.elements());
    let other = Other::new(map, name, placed.storage.to_string(), &expected, given.describe());
    other.placed(placed.file_shape.clone(), placed.offset(), placed.bytes().len(), map.bytes().len())
}

/// The tensor of an `entry` with a type that ggml does not have.
fn unknown(map: &Arc<Map>, entry: &TensorEntry) -> Other {
    let id = entry.type_id;
    let (storage, found) = match RETIRED.iter().find(|retired| retired.0 == id) {
        Some((_, name)) => {
            ((*name).to_owned(), format!("type {id} ({name}), which was retired: quantize the model again"))
        }
        None => (format!("type {id}"), format!("type {id}, which ggml 0.26 does not know")),
    };
    Other::new(map, &entry.name, storage, "a type of ggml", found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use pinhole_quant::gguf::Array;

    use super::*;

    /// A file with a tensor of 256 by 2 numbers, and this shape for it in its metadata.
    fn with_shape(shape: Array) -> Index {
        let entries = vec![("comfy.gguf.orig_shape.w".to_owned(), Value::Array(shape))];
        let metadata = Metadata::new(Path::new("m.gguf"), entries).unwrap();
        let map = Map::from_bytes(Path::new("m.gguf"), &[0; 32 + 4 * 512]).unwrap();
        let entry = TensorEntry { name: "w".into(), dims: vec![256, 2], type_id: 0, offset: 0 };
        index(&map, &metadata, vec![entry], 20, 32).unwrap()
    }

    #[test]
    fn a_reshaped_tensor_has_the_shape_that_it_had() {
        let index = with_shape(Array::I32(vec![16, 8, 2, 2]));
        let tensor = index.get("w").unwrap();
        assert_eq!(tensor.shape, [2, 2, 8, 16]);
        assert_eq!(tensor.file_shape, [256, 2]);
    }

    #[test]
    fn a_shape_that_it_cannot_have_had_refuses_only_what_needs_it() {
        for shape in
            [Array::I32(vec![16, 8, 2, 3]), Array::I32(vec![-16, -32]), Array::F32(vec![512.0]), Array::I64(vec![])]
        {
            let index = with_shape(shape);
            assert!(index.get("w").is_none());
            let refusal = index.other("w").unwrap().refusal().to_string();
            assert!(refusal.contains("a shape of 512 numbers in metadata `comfy.gguf.orig_shape.w`"), "{refusal}");
        }
    }
}
