//! `--check`: reads every number, a slice at a time.

use std::ops::Range;

use crate::index::{FileTensor, Storage};
use pinhole_quant::fp8::Fp8;
use pinhole_quant::rows;
use serde::Serialize;

use super::second::{self, SecondReading};
use super::subject::Subject;
use crate::{Result, reserve};

/// About how many numbers are in memory at once. A multiple of every format's block.
const SLICE: usize = 1 << 22;

/// What `--check` found.
#[derive(Serialize)]
pub struct CheckReport {
    /// How many numbers were read.
    pub numbers: u64,
    /// Tensors with numbers that are not finite.
    pub not_finite: Vec<NotFinite>,
    /// Tensors in formats that cannot be read.
    pub unreadable: Vec<Unreadable>,
    /// What a second reader made of the header of each GGUF file.
    pub headers: Vec<SecondReading>,
}

impl CheckReport {
    /// How many things are wrong.
    pub fn faults(&self) -> usize {
        let differences: usize = self.headers.iter().map(|header| header.differences.len()).sum();
        self.not_finite.len() + self.unreadable.len() + differences
    }
}

/// A tensor with numbers that are not finite.
#[derive(Serialize)]
pub struct NotFinite {
    /// Its name.
    pub tensor: String,
    /// How many are NaN.
    pub nan: u64,
    /// How many are infinite.
    pub infinite: u64,
    /// The position of the first one, counted from the tensor's first number.
    pub first: u64,
}

/// A tensor in a format that cannot be read.
#[derive(Serialize)]
pub struct Unreadable {
    /// Its name.
    pub tensor: String,
    /// Why.
    pub reason: String,
}

/// Reads every number of `subject`, and the headers of GGUF files a second time. `observer` hears how many bytes are read, and of
/// how many; an error that it returns ends the work.
///
/// # Errors
/// The observer's, and what reading the files returns.
pub fn check(subject: &Subject, observer: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<CheckReport> {
    let tensors = subject.tensors();
    let mut headers = Vec::new();
    for map in subject.maps() {
        headers.extend(second::read(&map)?);
    }
    let mut report = CheckReport { numbers: 0, not_finite: Vec::new(), unreadable: Vec::new(), headers };
    let (mut buffer, mut bytes) = (Vec::new(), Vec::new());
    let total = tensors.iter().map(|(_, tensor)| tensor.bytes().len() as u64).sum();
    let mut done = 0;
    observer(done, total)?;
    for (name, tensor) in tensors {
        let mut found = NotFinite { tensor: name.to_owned(), nan: 0, infinite: 0, first: 0 };
        let mut position = 0;
        for (range, len) in slices(tensor) {
            buffer.truncate(len);
            reserve::resize("a slice of a tensor", &mut buffer, len)?;
            reserve::resize("a slice of a tensor", &mut bytes, range.len())?;
            // Past the map: where the file is cut short meanwhile, that is an error.
            tensor.map().read(range.start, &mut bytes)?;
            if let Err(reason) = read(tensor.storage, &bytes, &mut buffer) {
                report.unreadable.push(Unreadable { tensor: name.to_owned(), reason });
                break;
            }
            found.count(&buffer, position);
            position += len as u64;
            done += bytes.len() as u64;
            observer(done, total)?;
        }
        report.numbers += position;
        if found.nan + found.infinite > 0 {
            report.not_finite.push(found);
        }
    }
    Ok(report)
}

/// Where the bytes of `tensor` lie in its file, a slice of whole blocks at a time, and how many numbers each holds.
fn slices(tensor: &FileTensor) -> impl Iterator<Item = (Range<usize>, usize)> {
    let (all, start) = (tensor.shape.elements(), tensor.offset());
    let bytes = tensor.bytes().len();
    // Whole: blocks divide rows, as the index has checked, and `SLICE`.
    let slice_bytes = bytes / (all / tensor.storage.block_size()) * (SLICE / tensor.storage.block_size());
    (0..bytes)
        .step_by(slice_bytes)
        .enumerate()
        .map(move |(i, first)| (start + first..start + bytes.min(first + slice_bytes), SLICE.min(all - i * SLICE)))
}

/// Reads numbers as f32. Integers need no reading: they are finite, and read as 0.
fn read(storage: Storage, bytes: &[u8], out: &mut [f32]) -> std::result::Result<(), String> {
    match storage {
        Storage::Number(dtype) => rows::dequantize_parallel(dtype, bytes, out).map_err(|error| error.to_string()),
        Storage::F8E4M3 => {
            Fp8::E4M3Fn.row_to_f32(bytes, out);
            Ok(())
        }
        Storage::F8E5M2 => {
            Fp8::E5M2.row_to_f32(bytes, out);
            Ok(())
        }
        Storage::Bool | Storage::U8 | Storage::U16 | Storage::U32 | Storage::U64 => {
            out.fill(0.0);
            Ok(())
        }
    }
}

impl NotFinite {
    /// Counts those of `numbers`, whose first is at `position` of the tensor.
    fn count(&mut self, numbers: &[f32], position: u64) {
        let Some(first) = rows::first_non_finite(numbers) else { return };
        if self.nan + self.infinite == 0 {
            self.first = position + first as u64;
        }
        for number in &numbers[first..] {
            self.nan += u64::from(number.is_nan());
            self.infinite += u64::from(number.is_infinite());
        }
    }
}
