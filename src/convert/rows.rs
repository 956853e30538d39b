//! Rows of the source in the format of the output, on all threads.

use pinhole_quant::{DType, rows};
use rayon::prelude::*;

use super::pipeline::Chunk;
use crate::index::Storage;
use crate::{Error, Result};

/// About how many numbers one task converts: their F32 stays in the second-level cache.
const TASK: usize = 1 << 16;

/// Appends `chunk` in `to` to `out`, which is empty. Returns how many of its numbers are not finite, which is an error
/// unless `allow_nonfinite` is set.
///
/// # Errors
/// [`Error::NotFinite`], [`Error::OutOfMemory`], [`Error::Mismatch`] for a storage that holds no weights.
pub(super) fn convert(chunk: &Chunk<'_>, to: DType, allow_nonfinite: bool, out: &mut Vec<u8>) -> Result<u64> {
    let (part, row) = (&chunk.part, chunk.row);
    let row_bytes = to.row_bytes(row).unwrap_or(0);
    let size = row_bytes.saturating_mul(part.len() / row);
    let no_memory = |_| Error::OutOfMemory { what: "a part of a weight".into(), bytes: size, hint: None };
    out.try_reserve(size).map_err(no_memory)?;
    if part.storage() == to && to.is_quantized() {
        out.extend_from_slice(part.bytes());
        return Ok(0);
    }
    out.resize(size, 0);
    let task_rows = (TASK / row).max(1);
    let counts =
        out.par_chunks_mut((task_rows * row_bytes).max(1)).enumerate().map_init(Vec::new, |numbers, (i, out)| {
            let task = Task { chunk, to, start: i * task_rows * row, allow_nonfinite };
            task.run(numbers, out)
        });
    counts.try_reduce(|| 0, |a, b| Ok(a + b))
}

/// What one thread converts at a time.
struct Task<'a> {
    chunk: &'a Chunk<'a>,
    to: DType,
    /// The first number, counted from the chunk's first.
    start: usize,
    allow_nonfinite: bool,
}

impl Task<'_> {
    fn run(&self, numbers: &mut Vec<f32>, out: &mut [u8]) -> Result<u64> {
        let Chunk { part, bound, row, .. } = self.chunk;
        let row_bytes = self.to.row_bytes(*row).unwrap_or(1).max(1);
        let part = part.part(self.start, out.len() / row_bytes * row);
        crate::reserve::resize("a part of a weight", numbers, part.len())?;
        part.read_f32(numbers)?;
        let count = self.check(numbers)?;
        if part.storage() == Storage::Number(self.to) {
            out.copy_from_slice(part.bytes());
            return Ok(count);
        }
        if count > 0 && self.to.is_quantized() {
            // ggml's quantizers promise nothing for such numbers, and one would spoil its whole block.
            numbers.iter_mut().filter(|number| !number.is_finite()).for_each(|number| *number = 0.0);
        }
        rows::quantize(self.to, numbers, *row, out).map_err(|error| {
            Error::mismatch(bound.origin(), format!("tensor {}", part.name()), "rows to convert", error.to_string())
        })?;
        Ok(count)
    }

    /// How many numbers have no finite value in the output.
    fn check(&self, numbers: &[f32]) -> Result<u64> {
        // F16's largest number is 65504; from half a step above it on, numbers round to infinity.
        let limit = if self.to == DType::F16 { 65520.0 } else { f32::INFINITY };
        let lost = |number: &f32| number.is_nan() || number.abs() >= limit;
        let Some(first) = numbers.iter().position(lost) else { return Ok(0) };
        if self.allow_nonfinite {
            return Ok(numbers.iter().filter(|number| lost(number)).count() as u64);
        }
        let Chunk { part, bound, .. } = self.chunk;
        let number = part.start() + self.start + first;
        let at = format!("number {number} of tensor {} in {}", part.name(), bound.origin().display());
        if numbers[first].is_finite() {
            let expected = format!("numbers that {} can hold, up to 65504", self.to);
            let error = Error::mismatch(bound.origin(), at, expected, numbers[first].to_string());
            return Err(error.with_hint("bf16 and f32 have room for it; --allow-nonfinite makes it infinite"));
        }
        let hint = "the file is damaged, or was saved from a training run that diverged; --allow-nonfinite converts it \
                    all the same";
        Err(Error::NotFinite { at, hint: Some(hint.into()) })
    }
}
