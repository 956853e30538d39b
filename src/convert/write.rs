//! Writing a planned bundle, a few rows at a time.

use std::path::Path;

use pinhole_quant::gguf::{WriteError, Writer};
use pinhole_quant::output::{AtomicFile, OutputError};
use pinhole_quant::rows;

use super::{Plan, PlannedTensor};
use crate::bind::{Bound, Piece};
use crate::weights::WeightId;
use crate::{Error, Result};

/// How many numbers go through memory at once: 16 MiB of F32, enough for all threads to share.
const CHUNK: usize = 4 << 20;

/// How far a conversion is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The tensor that is being written.
    pub tensor: &'a str,
    /// Bytes of tensors written.
    pub done: u64,
    /// Bytes of all tensors.
    pub total: u64,
}

impl Plan<'_> {
    /// Writes the bundle to `output`, which appears whole or not at all. `observer` hears of every few megabytes; an
    /// error it returns ends the conversion.
    ///
    /// # Errors
    /// [`Error::Io`] where the output cannot be written, [`Error::Exists`] where it exists and `overwrite` is
    /// false, [`Error::Option`] where it is the source, [`Error::NotFinite`] naming a weight that holds a NaN or an infinity.
    pub fn write(
        &self,
        output: &Path,
        overwrite: bool,
        observer: &mut dyn FnMut(Progress<'_>) -> Result<()>,
    ) -> Result<()> {
        self.refuse_source(output)?;
        let file = AtomicFile::create(output, overwrite).map_err(output_error)?;
        let failed = |error: WriteError| write_error(output, error);
        let mut writer = Writer::new(file, self.layout.clone()).map_err(failed)?;
        let mut buffers = Buffers::default();
        let total = self.tensors.iter().map(|tensor| tensor.bytes).sum();
        let mut done = 0;
        for (tensor, &(bound, id)) in self.tensors.iter().zip(&self.weights) {
            writer.begin(&tensor.name).map_err(failed)?;
            for_each_chunk(tensor, bound, id, &mut buffers, |bytes| {
                writer.write(bytes).map_err(failed)?;
                done += bytes.len() as u64;
                observer(Progress { tensor: &tensor.name, done, total })
            })?;
            writer.end().map_err(failed)?;
        }
        writer.finish().map_err(failed)?.commit().map_err(output_error)
    }

    /// A source must not be written over while it is read: neither a bundle nor a file of a directory, bundles in it aside.
    fn refuse_source(&self, output: &Path) -> Result<()> {
        let Ok(output) = output.canonicalize() else { return Ok(()) };
        let is_bundle = output.extension().is_some_and(|extension| extension == "gguf");
        let mut sources = self.sources.iter().filter_map(|source| source.canonicalize().ok());
        if output.is_file() && sources.any(|source| output == source || (output.starts_with(&source) && !is_bundle)) {
            let found = format!("{}, which is part of the source", output.display());
            return Err(Error::option("--output", "another file than the source", found));
        }
        Ok(())
    }
}

/// What is used for every chunk again.
#[derive(Default)]
struct Buffers {
    numbers: Vec<f32>,
    bytes: Vec<u8>,
}

/// Calls `take` with the bytes of the tensor, converted, chunk by chunk.
fn for_each_chunk(
    tensor: &PlannedTensor,
    bound: &Bound,
    id: WeightId,
    buffers: &mut Buffers,
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    for piece in bound.pieces(id) {
        // A vector may come in two halves, each shorter than its row.
        let row = tensor.shape.row().min(piece.len());
        let chunk = (CHUNK / row).max(1) * row;
        let mut start = 0;
        while start < piece.len() {
            let part = piece.part(start, chunk.min(piece.len() - start));
            start += part.len();
            take(convert(tensor, bound, &part, row, buffers)?)?;
        }
    }
    Ok(())
}

/// The bytes of `part` in the tensor's format.
fn convert<'a>(
    tensor: &PlannedTensor,
    bound: &Bound,
    part: &'a Piece,
    row: usize,
    buffers: &'a mut Buffers,
) -> Result<&'a [u8]> {
    let as_is = part.storage() == tensor.to;
    if as_is && tensor.to.is_quantized() {
        return Ok(part.bytes());
    }
    let no_memory = || Error::OutOfMemory { what: "a part of a weight".into(), bytes: CHUNK * 4, hint: None };
    let Buffers { numbers, bytes } = buffers;
    numbers.clear();
    numbers.try_reserve(part.len()).map_err(|_| no_memory())?;
    numbers.resize(part.len(), 0.0);
    part.read_f32(numbers)?;
    if rows::first_non_finite(numbers).is_some() {
        let at = format!("tensor {} of {}", part.name(), bound.origin().display());
        let hint = "the file is damaged, or was saved from a training run that diverged";
        return Err(Error::NotFinite { at, hint: Some(hint.into()) });
    }
    if as_is {
        return Ok(part.bytes());
    }
    let size = tensor.to.row_bytes(row).map_or(0, |bytes| bytes * (numbers.len() / row));
    bytes.clear();
    bytes.try_reserve(size).map_err(|_| no_memory())?;
    bytes.resize(size, 0);
    rows::quantize_parallel(tensor.to, numbers, row, bytes).map_err(|error| {
        Error::mismatch(bound.origin(), format!("tensor {}", part.name()), "rows to convert", error.to_string())
    })?;
    Ok(bytes)
}

/// An [`OutputError`] as the library's error.
pub(crate) fn output_error(error: OutputError) -> Error {
    match error {
        OutputError::Exists { path } => Error::Exists { path, hint: Some("--overwrite replaces it".into()) },
        OutputError::Io { action, path, source } => Error::Io { action, path, source },
        other => Error::graph("output", other.to_string()),
    }
}

fn write_error(output: &Path, error: WriteError) -> Error {
    match error {
        WriteError::Io(source) => Error::io("write", output, source),
        other => Error::graph("write bundle", other.to_string()),
    }
}
