//! Writing a planned file: checked beforehand, whole or not at all.

use std::path::Path;

use pinhole_quant::gguf::{WriteError, Writer};
use pinhole_quant::output::AtomicFile;

use super::pipeline::{self, Chunk};
use super::{Plan, Planned, PlannedTensor, rows};
use crate::bind::lora::Changes;
use crate::{Error, Result};

/// How many numbers go through memory at once: 16 MiB of F32, enough for all threads to share.
const CHUNK: usize = 4 << 20;

/// How many if LoRAs change them: as they were, as they become, and what is worked out in between are in memory together.
const MERGED_CHUNK: usize = CHUNK / 4;

/// How a plan is carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Whether a file that exists is replaced.
    pub overwrite: bool,
    /// Whether weights that are not finite, or not in the format that they are converted to, are let through: as they are
    /// where they are stored one by one, and as 0 where they share a block with others.
    pub allow_nonfinite: bool,
}

/// How far a conversion is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The tensor that is being converted.
    pub tensor: &'a str,
    /// Bytes of tensors converted.
    pub done: u64,
    /// Bytes of all tensors.
    pub total: u64,
}

/// A tensor of the output with numbers that are not finite, which was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NonFinite {
    /// Its name in the output.
    pub tensor: String,
    /// How many of its numbers are not finite.
    pub count: u64,
}

impl Plan<'_> {
    /// Writes the file to `output`, which appears whole or not at all. `observer` hears of every few megabytes; an
    /// error it returns ends the conversion. Returns the tensors whose numbers are not all finite.
    ///
    /// # Errors
    /// [`Error::Io`] where the output cannot be written, [`Error::NoSpace`] where the disk has no room for it,
    /// [`Error::Exists`] where it exists and may not be replaced, [`Error::Option`] where it is the source,
    /// [`Error::NotFinite`] naming a weight that holds a NaN or an infinity, unless that is allowed.
    pub fn write(
        &self,
        output: &Path,
        options: WriteOptions,
        observer: &mut dyn FnMut(Progress<'_>) -> Result<()>,
    ) -> Result<Vec<NonFinite>> {
        self.refuse_source(output)?;
        let file = AtomicFile::create(output, options.overwrite).map_err(Error::output)?;
        self.check_space(file.target())?;
        let failed = |error: WriteError| write_error(output, error);
        let writer = Writer::new(file, self.layout.clone()).map_err(failed)?;
        let total = self.tensors.iter().map(|tensor| tensor.bytes).sum();
        let (mut done, mut found, mut changes) = (0, Vec::new(), None);
        let written = pipeline::run(
            self.chunks(),
            &mut |chunk, bytes| {
                let tensor = &self.tensors[chunk.tensor];
                let changes = self.changes(chunk.weight, &mut changes)?;
                let count = rows::convert(chunk, changes, tensor.to, options.allow_nonfinite, bytes)?;
                count_up(&mut found, &tensor.name, count);
                done += bytes.len() as u64;
                observer(Progress { tensor: &tensor.name, done, total })
            },
            writer,
            &self.tensors,
        );
        let writer = written.map_err(|error| match error {
            pipeline::Stopped::Convert(error) => error,
            pipeline::Stopped::Write(error) => failed(error),
        })?;
        writer.finish().map_err(failed)?.commit().map_err(Error::output)?;
        Ok(found)
    }

    /// The source, piece by piece, in the order of the output.
    fn chunks(&self) -> impl Iterator<Item = Chunk<'_>> + Send {
        self.weights.iter().enumerate().flat_map(|(weight, planned)| -> Box<dyn Iterator<Item = Chunk<'_>> + Send> {
            match planned.merged {
                None => Box::new(self.chunks_as_they_are(weight, planned)),
                Some(network) => Box::new(self.chunks_to_change(weight, planned, network)),
            }
        })
    }

    fn chunks_as_they_are<'p>(&'p self, weight: usize, planned: &'p Planned<'_>) -> impl Iterator<Item = Chunk<'p>> {
        let Planned { tensor, bound, id, shape, .. } = *planned;
        let row = shape.row();
        bound.pieces(id).iter().flat_map(move |piece| {
            // A vector may come in two halves, each shorter than its row.
            let row = row.min(piece.len());
            let step = (CHUNK / row).max(1) * row;
            (0..piece.len()).step_by(step).map(move |start| {
                let part = piece.part(start, step.min(piece.len() - start));
                let (name, start) = (part.name().to_owned(), part.start());
                Chunk { tensor, weight, bound, name, start, parts: vec![part], row }
            })
        })
    }

    /// The weight that LoRAs change as they need it: rows of the changes are whole, whichever pieces they come from.
    fn chunks_to_change<'p>(
        &'p self,
        weight: usize,
        planned: &'p Planned<'_>,
        network: usize,
    ) -> impl Iterator<Item = Chunk<'p>> {
        let Planned { tensor, bound, id, shape, .. } = *planned;
        let PlannedTensor { name, .. } = &self.tensors[tensor];
        // Of a kernel, the changes have all rows of an output in one.
        let row = shape.row().max(self.merged[network].row(id));
        let step = (MERGED_CHUNK / row).max(1) * row;
        (0..shape.elements()).step_by(step).map(move |start| {
            let parts = bound.parts(id, start..(start + step).min(shape.elements()));
            Chunk { tensor, weight, bound, parts, name: format!("{name} with LoRAs"), start, row: shape.row() }
        })
    }

    /// What LoRAs change of the weight at a position. `known` has those of one weight, with their factors in memory.
    fn changes<'p, 'k>(
        &'p self,
        weight: usize,
        known: &'k mut Option<(usize, Changes<'p>)>,
    ) -> Result<Option<&'k Changes<'p>>> {
        let Planned { id, merged, .. } = self.weights[weight];
        if known.as_ref().is_none_or(|(of, _)| *of != weight) {
            // The last weight's make room first.
            *known = None;
            if let Some(network) = merged {
                *known = Some((weight, self.merged[network].of(id)?));
            }
        }
        Ok(known.as_ref().map(|(_, changes)| changes))
    }

    /// A source must not be written over while it is read: no file of it, nor one of its directory, bundles in it aside.
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

    /// Refuses a file for which there is no room. One that it replaces stays until the end, and frees nothing before.
    fn check_space(&self, target: &Path) -> Result<()> {
        let directory = match target.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        // Where the system does not say, the write itself will.
        match fs4::available_space(directory) {
            Ok(available) if available < self.total_bytes => Err(Error::NoSpace {
                path: target.to_owned(),
                needed: self.total_bytes,
                available,
                hint: Some("make room, write to another disk, or choose a smaller --type".into()),
            }),
            _ => Ok(()),
        }
    }
}

fn count_up(found: &mut Vec<NonFinite>, tensor: &str, count: u64) {
    match found.last_mut() {
        Some(last) if last.tensor == tensor => last.count += count,
        _ if count > 0 => found.push(NonFinite { tensor: tensor.to_owned(), count }),
        _ => {}
    }
}

pub(crate) fn write_error(output: &Path, error: WriteError) -> Error {
    match error {
        WriteError::Io(source) => Error::io("write", output, source),
        other => Error::graph("write", other.to_string()),
    }
}
