//! Where everything in a file lies, known before the first byte is written.

use std::collections::HashSet;
use std::fmt;
use std::ops::RangeInclusive;

use super::value::Value;
use super::{
    ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, MAX_HEADER_BYTES, MAX_KEY_BYTES, MAX_KEYS, MAX_NESTING, MAX_TENSORS,
    VERSION, WriteError, encode,
};
use crate::dtype::DType;

/// Most bytes in a tensor's name: ggml keeps 64, and the last one is a zero.
const MAX_NAME_BYTES: usize = 63;
/// ggml's tensors have at most four dimensions.
const MAX_DIMS: usize = 4;
/// The format asks for a multiple of 8; nothing has pages larger than 64 KiB that a file could be aligned for.
const ALIGNMENTS: RangeInclusive<u32> = 8..=1 << 16;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name, 1 to 63 bytes, unique in the file.
    pub name: String,
    /// One to four extents, fastest first, none zero.
    pub dims: Vec<usize>,
    /// Its number format, whose block divides the first extent.
    pub dtype: DType,
}

/// A tensor's place in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its name.
    pub name: String,
    /// Where its first byte lies, counted from the start of the file.
    pub offset: u64,
    /// How many bytes it takes, padding aside.
    pub bytes: u64,
}

/// The header of a file, with the place of every tensor and the size of the whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    header: Vec<u8>,
    tensors: Vec<Placed>,
    alignment: u32,
    total_bytes: u64,
}

impl Layout {
    /// Lays out a file with this metadata and these tensors, in the order given.
    ///
    /// `alignment`, in bytes, is what every tensor's offset is a multiple of. Where it is not 32, the metadata key
    /// `general.alignment` says so; the caller must not give that key.
    ///
    /// # Errors
    ///
    /// [`WriteError::Invalid`] where a key or name is empty, too long or there twice, arrays nest too deep, the
    /// alignment is no power of two from 8 to 65536, a shape has no or a zero extent or more than four of them, a block
    /// does not divide a row, or a limit of [this module](super) is passed.
    pub fn new(metadata: &[(String, Value)], tensors: &[TensorSpec], alignment: u32) -> Result<Layout, WriteError> {
        if !alignment.is_power_of_two() || !ALIGNMENTS.contains(&alignment) {
            let expected = format!("a power of two from {} to {}", ALIGNMENTS.start(), ALIGNMENTS.end());
            return Err(WriteError::invalid("alignment", expected, alignment.to_string()));
        }
        check_metadata(metadata)?;
        let sizes = check_tensors(tensors)?;

        let mut header = Vec::new();
        encode_metadata(&mut header, metadata, tensors.len(), alignment);
        let mut offset = 0u64;
        let mut placed = Vec::with_capacity(tensors.len());
        for (tensor, bytes) in tensors.iter().zip(sizes) {
            encode_tensor(&mut header, tensor, offset);
            placed.push(Placed { name: tensor.name.clone(), offset, bytes });
            offset =
                offset.checked_add(bytes).and_then(|end| align(end, alignment)).ok_or_else(|| too_large(tensor))?;
        }
        if header.len() > MAX_HEADER_BYTES {
            let expected = format!("at most {MAX_HEADER_BYTES} bytes");
            return Err(WriteError::invalid("header", expected, format!("{} bytes", header.len())));
        }
        header.resize(header.len().next_multiple_of(alignment as usize), 0);

        let start = header.len() as u64;
        placed.iter_mut().for_each(|tensor| tensor.offset += start);
        Ok(Layout { header, tensors: placed, alignment, total_bytes: start + offset })
    }

    /// The tensors in the order in which they are written.
    pub fn tensors(&self) -> &[Placed] {
        &self.tensors
    }

    /// What every tensor's offset is a multiple of, in bytes.
    pub fn alignment(&self) -> u32 {
        self.alignment
    }

    /// The size of the whole file in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Everything before the first tensor's data, padding included.
    pub fn header(&self) -> &[u8] {
        &self.header
    }
}

/// The next multiple of `alignment`, or `None` where a file, which no system lets pass `i64::MAX` bytes, cannot reach.
fn align(offset: u64, alignment: u32) -> Option<u64> {
    offset.checked_next_multiple_of(alignment.into()).filter(|&end| end <= i64::MAX as u64 / 2)
}

fn too_large(tensor: &TensorSpec) -> WriteError {
    WriteError::invalid(format!("tensor `{}`", tensor.name), "a size that a file can hold", shape(tensor))
}

fn shape(tensor: &TensorSpec) -> String {
    format!("{} {:?}", tensor.dtype, tensor.dims)
}

/// Refuses `count` where it passes `limit`.
fn check_count(what: &str, count: usize, limit: usize) -> Result<(), WriteError> {
    if count > limit {
        return Err(WriteError::invalid(what, format!("at most {limit}"), count.to_string()));
    }
    Ok(())
}

/// Refuses a name that is empty, longer than `limit` bytes, holds control characters or is already in `seen`.
fn check_name<'a>(
    what: fmt::Arguments<'_>,
    name: &'a str,
    limit: usize,
    seen: &mut HashSet<&'a str>,
) -> Result<(), WriteError> {
    if name.is_empty() || name.len() > limit || name.contains(char::is_control) {
        let expected = format!("a name of 1 to {limit} bytes without control characters");
        return Err(WriteError::invalid(what.to_string(), expected, format!("{} bytes", name.len())));
    }
    if !seen.insert(name) {
        return Err(WriteError::invalid(what.to_string(), "a name that is there once", "a second one"));
    }
    Ok(())
}

fn check_metadata(metadata: &[(String, Value)]) -> Result<(), WriteError> {
    // One more key may be added for the alignment.
    check_count("metadata", metadata.len(), MAX_KEYS - 1)?;
    let mut seen = HashSet::from([ALIGNMENT_KEY]);
    for (key, value) in metadata {
        check_name(format_args!("metadata `{key:.80}`"), key, MAX_KEY_BYTES, &mut seen)?;
        if let Value::Array(array) = value
            && array.depth() > MAX_NESTING
        {
            let expected = format!("arrays in arrays at most {MAX_NESTING} deep");
            return Err(WriteError::invalid(format!("metadata `{key:.80}`"), expected, array.depth().to_string()));
        }
    }
    Ok(())
}

/// The sizes of all tensors in bytes.
fn check_tensors(tensors: &[TensorSpec]) -> Result<Vec<u64>, WriteError> {
    check_count("tensors", tensors.len(), MAX_TENSORS)?;
    let mut seen = HashSet::new();
    let mut sizes = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        check_name(format_args!("tensor `{:.80}`", tensor.name), &tensor.name, MAX_NAME_BYTES, &mut seen)?;
        sizes.push(tensor_bytes(tensor)?);
    }
    Ok(sizes)
}

fn tensor_bytes(tensor: &TensorSpec) -> Result<u64, WriteError> {
    let at = || format!("tensor `{}`", tensor.name);
    if tensor.dims.is_empty() || tensor.dims.len() > MAX_DIMS || tensor.dims.contains(&0) {
        let expected = format!("1 to {MAX_DIMS} extents, none zero");
        return Err(WriteError::invalid(at(), expected, format!("{:?}", tensor.dims)));
    }
    if !tensor.dims[0].is_multiple_of(tensor.dtype.block_size()) {
        let expected = format!("rows of a multiple of {} numbers", tensor.dtype.block_size());
        return Err(WriteError::invalid(at(), expected, shape(tensor)));
    }
    let row = tensor.dtype.row_bytes(tensor.dims[0]).ok_or_else(|| too_large(tensor))?;
    let bytes = tensor.dims[1..].iter().try_fold(row, |bytes, &extent| bytes.checked_mul(extent));
    bytes.map(|bytes| bytes as u64).ok_or_else(|| too_large(tensor))
}

/// Magic, version, counts and all metadata.
fn encode_metadata(header: &mut Vec<u8>, metadata: &[(String, Value)], tensors: usize, alignment: u32) {
    let says_alignment = alignment != DEFAULT_ALIGNMENT;
    let keys = metadata.len() + usize::from(says_alignment);
    header.extend_from_slice(&MAGIC);
    header.extend_from_slice(&VERSION.to_le_bytes());
    header.extend_from_slice(&(tensors as u64).to_le_bytes());
    header.extend_from_slice(&(keys as u64).to_le_bytes());
    for (key, value) in metadata {
        encode::string(header, key);
        encode::typed_value(header, value);
    }
    if says_alignment {
        encode::string(header, ALIGNMENT_KEY);
        encode::typed_value(header, &Value::U32(alignment));
    }
}

/// One entry of the tensor list. `offset` counts from the start of the data.
fn encode_tensor(header: &mut Vec<u8>, tensor: &TensorSpec, offset: u64) {
    encode::string(header, &tensor.name);
    header.extend_from_slice(&(tensor.dims.len() as u32).to_le_bytes());
    for &extent in &tensor.dims {
        header.extend_from_slice(&(extent as u64).to_le_bytes());
    }
    header.extend_from_slice(&tensor.dtype.id().to_le_bytes());
    header.extend_from_slice(&offset.to_le_bytes());
}
