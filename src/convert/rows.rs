//! Rows of the source in the format of the output, on the threads of the current workers.

use std::sync::atomic::{AtomicU64, Ordering};

use pinhole_quant::rows::{self, RowError};
use pinhole_quant::{DType, workers};

use super::pipeline::Chunk;
use crate::bind::Piece;
use crate::bind::lora::Changes;
use crate::{Error, Result, reserve};

/// About how many numbers one task converts: their F32 stays in the second-level cache.
const TASK: usize = 1 << 16;
/// F16's largest number, which is also the largest scale of most formats with blocks.
const LARGEST: f32 = 65504.0;

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
    out.try_reserve(size).map_err(|_| Error::OutOfMemory {
        what: "a part of a weight".into(),
        bytes: size,
        hint: None,
    })?;
    let task_numbers = (TASK / row).max(1) * row;
    let task = |i: usize| Task { chunk, to, start: i * task_numbers, allow_nonfinite };
    let task_bytes = (task_numbers / row * row_bytes).max(1);
    match (changes, chunk.parts.as_slice()) {
        (None, [part]) if part.is_stored_as(to) && to.is_quantized() => {
            part.copy(out)?;
            Ok(0)
        }
        (None, [part]) => {
            out.resize(size, 0);
            let tasks = out.chunks_mut(task_bytes).enumerate().collect();
            count(tasks, |(i, out): (usize, &mut [u8])| task(i).convert(part, out))
        }
        (changes, parts) => {
            out.resize(size, 0);
            let mut numbers = reserve::zeros("a part of a weight", chunk.len())?;
            read(parts, &mut numbers)?;
            changes.map_or(Ok(()), |changes| changes.apply(chunk.start, &mut numbers))?;
            let tasks = out.chunks_mut(task_bytes).zip(numbers.chunks_mut(task_numbers)).enumerate().collect();
            count(tasks, |(i, (out, numbers)): (usize, (&mut [u8], &mut [f32]))| task(i).store(numbers, out))
        }
    }
}

/// Does `work` with every task, and adds up what it counts.
fn count<T: Send>(tasks: Vec<T>, work: impl Fn(T) -> Result<u64> + Sync + Send) -> Result<u64> {
    let sum = AtomicU64::new(0);
    workers::try_for_each(tasks, |task| {
        sum.fetch_add(work(task)?, Ordering::Relaxed);
        Ok(())
    })?;
    Ok(sum.into_inner())
}

/// Reads all numbers of `parts`.
fn read(parts: &[Piece], numbers: &mut [f32]) -> Result<()> {
    let (mut rest, mut bytes) = (numbers, Vec::new());
    for part in parts {
        let (here, after) = rest.split_at_mut(part.len());
        part.copy(&mut bytes)?;
        part.convert_f32(&bytes, here)?;
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
    fn convert(&self, part: &Piece, out: &mut [u8]) -> Result<u64> {
        let row = self.chunk.row;
        let row_bytes = self.to.row_bytes(row).unwrap_or(1).max(1);
        let part = part.part(self.start, out.len() / row_bytes * row);
        let (mut numbers, mut bytes) = (reserve::zeros("a part of a weight", part.len())?, Vec::new());
        // Past the map: a source that is cut short meanwhile is an error then.
        part.copy(&mut bytes)?;
        part.convert_f32(&bytes, &mut numbers)?;
        if part.is_stored_as(self.to) {
            let count = self.check(&numbers)?;
            out.copy_from_slice(&bytes);
            return Ok(count);
        }
        self.store(&mut numbers, out)
    }

    /// Fills `out` with `numbers`.
    fn store(&self, numbers: &mut [f32], out: &mut [u8]) -> Result<u64> {
        let Chunk { bound, row, name, .. } = self.chunk;
        let count = self.check(numbers)?;
        if count > 0 && self.to.is_quantized() {
            // ggml's quantizers promise nothing for such numbers, and one would spoil its whole block.
            numbers.iter_mut().filter(|number| !number.is_finite()).for_each(|number| *number = 0.0);
        }
        let mut zeroed = 0;
        loop {
            match rows::quantize(self.to, numbers, *row, out) {
                Ok(()) => return Ok(count + zeroed),
                Err(RowError::TooLarge { number, .. }) if self.allow_nonfinite => {
                    // By octaves: every turn leaves smaller ones, and there are not many turns.
                    let half = number.abs() / 2.0;
                    let limit = if half > LARGEST { half } else { number.abs() };
                    for value in numbers.iter_mut().filter(|value| value.abs() >= limit) {
                        *value = 0.0;
                        zeroed += 1;
                    }
                }
                Err(RowError::TooLarge { at, number, .. }) => return Err(self.too_large(at, number)),
                Err(error) => {
                    let at = format!("tensor {name}");
                    return Err(Error::mismatch(bound.origin(), at, "rows to convert", error.to_string()));
                }
            }
        }
    }

    /// What is wrong with number `at` of the task.
    fn too_large(&self, at: usize, number: f32) -> Error {
        let expected = match self.to {
            DType::F16 => format!("numbers that {} can hold, up to {LARGEST}", self.to),
            to => format!("numbers that {to} can hold"),
        };
        let error = Error::mismatch(self.chunk.bound.origin(), self.place(at), expected, number.to_string());
        let becomes = if self.to.is_quantized() { "0" } else { "infinite" };
        let room = if self.to == DType::BF16 { "f32 has" } else { "bf16 and f32 have" };
        error.with_hint(format!("{room} room for it; --allow-nonfinite makes it {becomes}"))
    }

    /// Number `at` of the task, for a message.
    fn place(&self, at: usize) -> String {
        let Chunk { name, bound, start, .. } = self.chunk;
        format!("number {} of tensor {name} in {}", start + self.start + at, bound.origin().display())
    }

    /// How many numbers have no finite value in the output.
    fn check(&self, numbers: &[f32]) -> Result<u64> {
        // From half a step above the largest number on, numbers round to infinity.
        let limit = match self.to {
            DType::F16 => 65520.0,
            DType::BF16 => f32::from_bits(0x7f7f_8000),
            _ => f32::INFINITY,
        };
        let lost = |number: &f32| number.is_nan() || number.abs() >= limit;
        let Some(first) = numbers.iter().position(lost) else { return Ok(0) };
        if self.allow_nonfinite {
            return Ok(numbers.iter().filter(|number| lost(number)).count() as u64);
        }
        if numbers[first].is_finite() {
            return Err(self.too_large(first, numbers[first]));
        }
        let at = self.place(first);
        let hint = "the file is damaged, or was saved from a training run that diverged; --allow-nonfinite converts it \
                    all the same";
        Err(Error::NotFinite { at, hint: Some(hint.into()) })
    }
}
