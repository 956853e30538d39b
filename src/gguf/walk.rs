//! The bounded walk over a header: bytes in, plain values out, nothing believed.
//!
//! Pure and total: every length is checked against what is left of the header before it is used, so that memory stays
//! within a small multiple of the bytes that are really there. Whether the tensors make sense together is for
//! [`validate`](super::validate) to say.

use std::path::Path;

use pinhole_quant::gguf::{
    Array, Kind, MAGIC, MAX_HEADER_BYTES, MAX_KEY_BYTES, MAX_KEYS, MAX_NESTING, MAX_TENSORS, Strings, Value,
};

use super::cursor::{At, Cursor};
use crate::error::Result;
use crate::index::quoted;

/// Most dimensions of a tensor: those of PyTorch. ggml has four, and files have more.
const MAX_FILE_DIMS: u32 = 64;
/// Fewest bytes of a metadata entry: the length of the key, the type, the value.
const MIN_ENTRY_BYTES: usize = 8 + 4 + 1;
/// Fewest bytes of a tensor entry: the length of the name, the number of dimensions, the type, the offset.
const MIN_TENSOR_BYTES: usize = 8 + 4 + 4 + 8;

/// A header as it stands in the file.
pub(super) struct Header {
    pub(super) version: u32,
    /// Keys and values in file order; keys may be there twice.
    pub(super) metadata: Vec<(String, Value)>,
    pub(super) tensors: Vec<TensorEntry>,
    /// How many bytes the header takes, padding aside.
    pub(super) bytes: usize,
}

/// One entry of the tensor list as it stands in the file.
pub(super) struct TensorEntry {
    pub(super) name: String,
    /// Its extents, fastest first; none for a single number.
    pub(super) dims: Vec<u64>,
    pub(super) type_id: u32,
    /// Counted from the start of the data.
    pub(super) offset: u64,
}

/// Reads the header of the file at `path`, whose contents are `bytes`.
///
/// # Errors
///
/// [`Error::Malformed`](crate::error::Error::Malformed) where it is no GGUF file of version 2 or 3, little-endian, or
/// its header breaks off, passes a limit or holds a type that the format has not.
pub(super) fn walk(path: &Path, bytes: &[u8]) -> Result<Header> {
    let mut cursor = Cursor::new(path, bytes);
    let version = version(&mut cursor)?;
    let tensor_count = cursor.count("tensors", MIN_TENSOR_BYTES, MAX_TENSORS, At::Header)?;
    let key_count = cursor.count("metadata entries", MIN_ENTRY_BYTES, MAX_KEYS, At::Header)?;
    let metadata = (0..key_count).map(|position| entry(&mut cursor, position)).collect::<Result<_>>()?;
    let tensors = (0..tensor_count).map(|position| tensor(&mut cursor, position)).collect::<Result<_>>()?;
    Ok(Header { version, metadata, tensors, bytes: cursor.position() })
}

/// Magic and version.
fn version(cursor: &mut Cursor<'_>) -> Result<u32> {
    let magic = cursor.take(MAGIC.len(), At::Header)?;
    if magic.iter().eq(MAGIC.iter().rev()) {
        return Err(cursor.fail(At::Header, "a little-endian file", "a big-endian one"));
    }
    if magic != MAGIC {
        let expected = format!("{} in the first bytes", quoted(&String::from_utf8_lossy(&MAGIC)));
        return Err(cursor.fail(At::Header, expected, quoted(&String::from_utf8_lossy(magic))));
    }
    match cursor.u32(At::Header)? {
        version @ 2..=3 => Ok(version),
        // Big-endian files of today have the usual magic, and everything behind it turned round.
        version if (1..=3).contains(&version.swap_bytes()) => {
            Err(cursor.fail(At::Header, "a little-endian file", "a big-endian one"))
        }
        1 => {
            Err(cursor.fail(At::Header, "GGUF version 2 or 3", "version 1, which ggml reads no more: convert it again"))
        }
        version => Err(cursor.fail(At::Header, "GGUF version 2 or 3", format!("version {version}"))),
    }
}

/// A metadata key with its value.
fn entry(cursor: &mut Cursor<'_>, position: usize) -> Result<(String, Value)> {
    let key = cursor.string(MAX_KEY_BYTES, At::Entry(position))?;
    let value = value(cursor, &key)?;
    Ok((key, value))
}

fn value(cursor: &mut Cursor<'_>, key: &str) -> Result<Value> {
    let at = At::Value(key);
    Ok(match kind(cursor, at)? {
        Kind::U8 => Value::U8(number(cursor, at)?),
        Kind::I8 => Value::I8(number(cursor, at)?),
        Kind::U16 => Value::U16(number(cursor, at)?),
        Kind::I16 => Value::I16(number(cursor, at)?),
        Kind::U32 => Value::U32(number(cursor, at)?),
        Kind::I32 => Value::I32(number(cursor, at)?),
        Kind::F32 => Value::F32(number(cursor, at)?),
        Kind::Bool => {
            let byte = number(cursor, at)?;
            Value::Bool(boolean(cursor, byte, at)?)
        }
        Kind::String => Value::String(cursor.string(MAX_HEADER_BYTES, at)?),
        Kind::Array => Value::Array(array(cursor, 1, at)?),
        Kind::U64 => Value::U64(number(cursor, at)?),
        Kind::I64 => Value::I64(number(cursor, at)?),
        Kind::F64 => Value::F64(number(cursor, at)?),
    })
}

/// An array that is the `depth`th of nested ones.
fn array(cursor: &mut Cursor<'_>, depth: usize, at: At<'_>) -> Result<Array> {
    if depth > MAX_NESTING {
        return Err(cursor.fail(at, format!("arrays in arrays at most {MAX_NESTING} deep"), "deeper ones"));
    }
    let kind = kind(cursor, at)?;
    let count = cursor.count(format_args!("elements of type {kind}"), kind.min_bytes(), usize::MAX, at)?;
    Ok(match kind {
        Kind::U8 => Array::U8(numbers(cursor, count, at)?),
        Kind::I8 => Array::I8(numbers(cursor, count, at)?),
        Kind::U16 => Array::U16(numbers(cursor, count, at)?),
        Kind::I16 => Array::I16(numbers(cursor, count, at)?),
        Kind::U32 => Array::U32(numbers(cursor, count, at)?),
        Kind::I32 => Array::I32(numbers(cursor, count, at)?),
        Kind::F32 => Array::F32(numbers(cursor, count, at)?),
        Kind::Bool => Array::Bool(booleans(cursor, count, at)?),
        Kind::String => Array::String(strings(cursor, count, at)?),
        Kind::Array => Array::Array((0..count).map(|_| array(cursor, depth + 1, at)).collect::<Result<_>>()?),
        Kind::U64 => Array::U64(numbers(cursor, count, at)?),
        Kind::I64 => Array::I64(numbers(cursor, count, at)?),
        Kind::F64 => Array::F64(numbers(cursor, count, at)?),
    })
}

fn kind(cursor: &mut Cursor<'_>, at: At<'_>) -> Result<Kind> {
    let id = cursor.u32(at)?;
    Kind::from_id(id).ok_or_else(|| cursor.fail(at, "a value type from 0 to 12", format!("type {id}")))
}

/// A number of a fixed size, little-endian.
trait Number: Sized {
    const BYTES: usize;
    /// From [`Self::BYTES`] bytes.
    fn from_bytes(bytes: &[u8]) -> Self;
}

macro_rules! numbers {
    ($($type:ty),*) => {
        $(impl Number for $type {
            const BYTES: usize = size_of::<$type>();
            fn from_bytes(bytes: &[u8]) -> Self {
                let mut array = [0; size_of::<$type>()];
                array.copy_from_slice(bytes);
                <$type>::from_le_bytes(array)
            }
        })*
    };
}

numbers!(u8, i8, u16, i16, u32, i32, f32, u64, i64, f64);

fn number<N: Number>(cursor: &mut Cursor<'_>, at: At<'_>) -> Result<N> {
    Ok(N::from_bytes(cursor.take(N::BYTES, at)?))
}

fn numbers<N: Number>(cursor: &mut Cursor<'_>, count: usize, at: At<'_>) -> Result<Vec<N>> {
    // No overflow: `Cursor::count` has seen so many elements fit into the file.
    let bytes = cursor.take(count * N::BYTES, at)?;
    Ok(bytes.chunks_exact(N::BYTES).map(N::from_bytes).collect())
}

fn boolean(cursor: &Cursor<'_>, byte: u8, at: At<'_>) -> Result<bool> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(cursor.fail(at, "a bool of 0 or 1", other.to_string())),
    }
}

fn booleans(cursor: &mut Cursor<'_>, count: usize, at: At<'_>) -> Result<Vec<bool>> {
    let bytes = cursor.take(count, at)?;
    bytes.iter().map(|&byte| boolean(cursor, byte, at)).collect()
}

fn strings(cursor: &mut Cursor<'_>, count: usize, at: At<'_>) -> Result<Strings> {
    let mut strings = Strings::with_capacity(count);
    let mut bytes = Vec::new();
    for _ in 0..count {
        bytes.clear();
        cursor.string_bytes(&mut bytes, MAX_HEADER_BYTES, at)?;
        strings.push(str::from_utf8(&bytes).map_err(|error| cursor.not_utf8(error, at))?);
    }
    Ok(strings)
}

fn tensor(cursor: &mut Cursor<'_>, position: usize) -> Result<TensorEntry> {
    let name = cursor.string(MAX_KEY_BYTES, At::TensorEntry(position))?;
    let at = At::Tensor(&name);
    let rank = cursor.u32(at)?;
    if rank > MAX_FILE_DIMS {
        return Err(cursor.fail(at, format!("at most {MAX_FILE_DIMS} dimensions"), rank.to_string()));
    }
    let dims = (0..rank).map(|_| cursor.u64(at)).collect::<Result<_>>()?;
    let type_id = cursor.u32(at)?;
    let offset = cursor.u64(at)?;
    Ok(TensorEntry { name, dims, type_id, offset })
}
