//! Arrays in NumPy's `.npy` files: little-endian floats, row by row.
//!
//! A file is a magic number, a version, the length of a header, the header (a dictionary as Python writes it), and the numbers. Objects, which are
//! pickles, are refused, as all else is that is no float.

use std::path::Path;

use crate::index::{CUT_SHORT, quoted};
use crate::{Error, Result, reserve};

/// How a file begins.
const MAGIC: &[u8] = b"\x93NUMPY";

/// Most bytes of a header.
const MAX_HEADER: usize = 1 << 16;

/// Most dimensions of an array.
const MAX_DIMS: usize = 8;

/// An array of numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Its extents, the slowest first.
    pub shape: Vec<usize>,
    /// Its numbers, row by row.
    pub numbers: Vec<f32>,
}

/// Whether a file that begins with `start` is one.
pub fn begins(start: &[u8]) -> bool {
    start.starts_with(MAGIC)
}

/// The array in `bytes`, which `path` holds.
///
/// # Errors
/// [`Error::Malformed`], which says what and where; [`Error::OutOfMemory`].
pub fn read(path: &Path, bytes: &[u8]) -> Result<Array> {
    let fail = |at: &str, expected: &str, found: String| Error::malformed(path, at, expected, found);
    let short = || fail("header", "a whole file", format!("{} bytes", bytes.len())).with_hint(CUT_SHORT);
    let version = *bytes.get(MAGIC.len()).filter(|_| begins(bytes)).ok_or_else(short)?;
    // Later versions have longer headers.
    let width = match version {
        1 => 2,
        2 | 3 => 4,
        other => return Err(fail("version", "1, 2 or 3", other.to_string())),
    };
    let start = MAGIC.len() + 2;
    let mut length = [0; 8];
    length[..width].copy_from_slice(bytes.get(start..start + width).ok_or_else(short)?);
    let length = usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > MAX_HEADER {
        return Err(fail("header", &format!("at most {MAX_HEADER} bytes"), length.to_string()));
    }
    let start = start + width;
    let header = String::from_utf8_lossy(bytes.get(start..start + length).ok_or_else(short)?);
    let Header { format, shape } = header_of(path, &header)?;
    let count = shape.iter().try_fold(1usize, |product, extent| product.checked_mul(*extent));
    let data = &bytes[start + length..];
    let each = format.width();
    let Some(count) = count.filter(|count| count.checked_mul(each) == Some(data.len())) else {
        return Err(fail(
            "data",
            &format!("{each} bytes for each number of {shape:?}"),
            format!("{} bytes", data.len()),
        ));
    };
    let mut numbers = reserve::room("an array", count)?;
    for number in data.chunks_exact(each) {
        numbers.push(format.number(number));
    }
    Ok(Array { shape, numbers })
}

/// How numbers are stored.
#[derive(Clone, Copy)]
enum Format {
    F32,
    F64,
}

impl Format {
    fn width(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::F64 => 8,
        }
    }

    /// The number in as many bytes.
    fn number(self, bytes: &[u8]) -> f32 {
        match self {
            Format::F32 => bytes.first_chunk().map_or(f32::NAN, |bytes| f32::from_le_bytes(*bytes)),
            Format::F64 => bytes.first_chunk().map_or(f32::NAN, |bytes| f64::from_le_bytes(*bytes) as f32),
        }
    }
}

struct Header {
    format: Format,
    shape: Vec<usize>,
}

/// What a header says: `{'descr': '<f4', 'fortran_order': False, 'shape': (1, 512), }`.
fn header_of(path: &Path, text: &str) -> Result<Header> {
    let fail = |expected: &str, found: &str| Err(Error::malformed(path, "header", expected, quoted(found)));
    let value = |key: &str| text.split_once(&format!("'{key}':")).map(|(_, rest)| rest.trim_start());
    let (Some(descr), Some(order), Some(shape)) = (value("descr"), value("fortran_order"), value("shape")) else {
        return fail("descr, fortran_order and shape", text.trim_end());
    };
    let kind = descr.strip_prefix('\'').and_then(|rest| rest.split_once('\''));
    let format = match kind.map(|(kind, _)| kind) {
        Some("<f4") => Format::F32,
        Some("<f8") => Format::F64,
        other => return fail("little-endian floats of 32 or 64 bits, <f4 or <f8", other.unwrap_or(descr)),
    };
    if !order.starts_with("False") {
        return fail("numbers row by row (fortran_order False)", order);
    }
    let inner = shape.strip_prefix('(').and_then(|rest| rest.split_once(')')).map(|(inner, _)| inner);
    let extents = inner.map(|inner| inner.split(',').map(str::trim).filter(|extent| !extent.is_empty()));
    let extents: Option<Vec<usize>> = extents.and_then(|extents| extents.map(|extent| extent.parse().ok()).collect());
    match extents.filter(|extents| extents.len() <= MAX_DIMS) {
        Some(shape) => Ok(Header { format, shape }),
        None => fail(&format!("at most {MAX_DIMS} extents in `shape`"), shape),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn file(descr: &str, order: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let header = format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n");
        let length = (header.len() as u16).to_le_bytes();
        [MAGIC, &[1, 0], &length, header.as_bytes(), data].concat()
    }

    fn opened(bytes: &[u8]) -> Result<Array> {
        read(Path::new("face.npy"), bytes)
    }

    #[test]
    fn floats_are_read() {
        let data: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|number| number.to_le_bytes()).collect();
        let expected = Array { shape: vec![1, 2], numbers: vec![1.5, -2.0] };
        assert_eq!(opened(&file("'<f4'", "False", "(1, 2)", &data)).unwrap(), expected);
        let data: Vec<u8> = [1.5f64, -2.0].iter().flat_map(|number| number.to_le_bytes()).collect();
        assert_eq!(opened(&file("'<f8'", "False", "(2,)", &data)).unwrap().numbers, [1.5, -2.0]);
        assert_eq!(opened(&file("'<f4'", "False", "()", &data[..4])).unwrap().shape, [0; 0]);
    }

    #[test]
    fn all_else_is_refused_by_name() {
        for (file, part) in [
            (file("'|O'", "False", "(2,)", &[]), "little-endian floats of 32 or 64 bits, <f4 or <f8, found `|O`"),
            (file("'>f4'", "False", "(1,)", &[0; 4]), "found `>f4`"),
            (file("[('a', '<f4')]", "False", "(1,)", &[0; 4]), "little-endian floats"),
            (file("'<f4'", "True", "(1,)", &[0; 4]), "row by row"),
            (file("'<f4'", "False", "(2,)", &[0; 4]), "data: expected 4 bytes for each number of [2], found 4 bytes"),
            (file("'<f4'", "False", "(4294967296, 4294967296, 2)", &[0; 4]), "data"),
            (file("'<f4'", "False", "(-1,)", &[0; 4]), "extents in `shape`"),
            (file("'<f4'", "False", "(1,1,1,1,1,1,1,1,1)", &[0; 4]), "at most 8 extents"),
            (b"\x93NUMPY\x01\x00\xff\xffx".to_vec(), "a whole file"),
            (b"\x93NUMPY\x02\x00\xff\xff\xff\xffx".to_vec(), "at most 65536 bytes"),
            (b"\x93NUMPY\x09\x00\x01\x00x".to_vec(), "version: expected 1, 2 or 3, found 9"),
            (b"\x93NUM".to_vec(), "a whole file"),
        ] {
            let message = opened(&file).unwrap_err().to_string();
            assert!(message.starts_with("face.npy: ") && message.contains(part), "{message}");
        }
        let whole = file("'<f4'", "False", "(1,)", &[0; 4]);
        for length in 0..whole.len() {
            assert!(opened(&whole[..length]).is_err(), "{length}");
        }
    }
}
