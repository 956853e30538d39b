//! Rows of the source in the format of the output, on all threads.

use pinhole_quant::{DType, rows};
use rayon::prelude::*;

use super::pipeline::Chunk;
use crate::bind::Piece;
use crate::bind::lora::Changes;
use crate::index::Storage;
use crate::{Error, Result, reserve};

/// About how many numbers one task converts: their F32 stays in the second-level cache.
const TASK: usize = 1 << 16;

/// Appends `chunk`, with the `changes` that LoRAs make, in `to` to `out`, which is empty. Returns how many of its numbers are not finite, which is an error
/// unless `allow_nonfinite` is set.
///
/// # Errors
/// [`Error::NotFinite`], [`Error::OutOfMemory`], [`Error::Mismatch`] for a storage that holds no weights.
pub(super) fn convert(
    chunk: &Chunk<'_>,
    changes: Option<&Changes<'_>>,
    to: DType,
    allow_nonfinite: bool,
    out: &mut Vec<u8>,
) -> Result<u64> {
    let row = chunk.row;
    let row_bytes = to.row_bytes(row).unwrap_or(0);
    let size = row_bytes.saturating_mul(chunk.len() / row);
    let no_memory = |_| Error::OutOfMemory { what: "a part of a weight".into(), bytes: size, hint: None };
    out.try_reserve(size).map_err(no_memory)?;
    let task_numbers = (TASK / row).max(1) * row;
    let task = |i: usize| Task { chunk, to, start: i * task_numbers, allow_nonfinite };
    let task_bytes = (task_numbers / row * row_bytes).max(1);
    match (changes, chunk.parts.as_slice()) {
        (None, [part]) if part.storage() == to && to.is_quantized() => {
            out.extend_from_slice(part.bytes());
            Ok(0)
        }
        (None, [part]) => {
            out.resize(size, 0);
            let tasks = out.par_chunks_mut(task_bytes).enumerate();
            let counts = tasks.map_init(Vec::new, |numbers, (i, out)| task(i).convert(part, numbers, out));
            counts.try_reduce(|| 0, |a, b| Ok(a + b))
        }
        (changes, parts) => {
            out.resize(size, 0);
            let mut numbers = reserve::zeros("a part of a weight", chunk.len())?;
            read(parts, &mut numbers)?;
            changes.map_or(Ok(()), |changes| changes.apply(chunk.start, &mut numbers))?;
            let tasks = out.par_chunks_mut(task_bytes).zip(numbers.par_chunks_mut(task_numbers)).enumerate();
            tasks.map(|(i, (out, numbers))| task(i).store(numbers, out)).try_reduce(|| 0, |a, b| Ok(a + b))
        }
    }
}

/// Reads all numbers of `parts`.
fn read(parts: &[Piece], numbers: &mut [f32]) -> Result<()> {
    let mut rest = numbers;
    for part in parts {
        let (here, after) = rest.split_at_mut(part.len());
        part.read_f32(here)?;
        rest = after;
    }
    Ok(())
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
    /// Fills `out` from `part`, all of the chunk.
    fn convert(&self, part: &Piece, numbers: &mut Vec<f32>, out: &mut [u8]) -> Result<u64> {
        let row = self.chunk.row;
        let row_bytes = self.to.row_bytes(row).unwrap_or(1).max(1);
        let part = part.part(self.start, out.len() / row_bytes * row);
        reserve::resize("a part of a weight", numbers, part.len())?;
        part.read_f32(numbers)?;
        if part.storage() == Storage::Number(self.to) {
            let count = self.check(numbers)?;
            out.copy_from_slice(part.bytes());
            return Ok(count);
        }
        self.store(numbers, out)
    }

    /// Fills `out` with `numbers`.
    fn store(&self, numbers: &mut [f32], out: &mut [u8]) -> Result<u64> {
        let Chunk { bound, row, name, .. } = self.chunk;
        let count = self.check(numbers)?;
        if count > 0 && self.to.is_quantized() {
            // ggml's quantizers promise nothing for such numbers, and one would spoil its whole block.
            numbers.iter_mut().filter(|number| !number.is_finite()).for_each(|number| *number = 0.0);
        }
        rows::quantize(self.to, numbers, *row, out).map_err(|error| {
            Error::mismatch(bound.origin(), format!("tensor {name}"), "rows to convert", error.to_string())
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
        let Chunk { name, bound, .. } = self.chunk;
        let number = self.chunk.start + self.start + first;
        let at = format!("number {number} of tensor {name} in {}", bound.origin().display());
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
