//! Read ahead, convert, write behind: three stages that work at the same time, a few chunks apart.
//!
//! The converting thread shares its work with all cores, and should wait for nothing. So one thread waits for the disk before
//! the pages of the source are needed, and one hands finished bytes to the system. Both queues are short, and buffers go round, so that memory is bounded whatever the size of the model.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use pinhole_quant::gguf::{WriteError, Writer};

use super::PlannedTensor;
use crate::bind::{Bound, Piece};
use crate::{Error, Result};

/// How many chunks each queue holds.
const AHEAD: usize = 4;

/// Some rows of one tensor of the output, as they lie in the source.
pub(super) struct Chunk<'a> {
    /// The position of the tensor in the output.
    pub(super) tensor: usize,
    /// The position of the weight among those that are planned.
    pub(super) weight: usize,
    /// Where the weight comes from, for messages.
    pub(super) bound: &'a Bound,
    /// The rows: of one piece, except if LoRAs change them.
    pub(super) parts: Vec<Piece>,
    /// What has these rows, for messages: a tensor of the source, or of the output if LoRAs change it.
    pub(super) name: String,
    /// The first of its numbers, counted from the first of what has them.
    pub(super) start: usize,
    /// Numbers in a row.
    pub(super) row: usize,
}

impl Chunk<'_> {
    /// How many numbers it has.
    pub(super) fn len(&self) -> usize {
        self.parts.iter().map(Piece::len).sum()
    }
}

/// Why the work ended early.
pub(super) enum Stopped {
    /// Converting failed, or was cancelled.
    Convert(Error),
    /// The output did not take the bytes.
    Write(WriteError),
}

/// Finished bytes of the tensor at a position.
type Finished = (usize, Vec<u8>);

/// Converts all `chunks`, which are those of `tensors` in order, and writes them with `writer`, which is handed back.
pub(super) fn run<'a, W: Write + Send>(
    chunks: impl Iterator<Item = Chunk<'a>> + Send,
    convert: &mut dyn FnMut(&Chunk<'a>, &mut Vec<u8>) -> Result<()>,
    writer: Writer<W>,
    tensors: &[PlannedTensor],
) -> Result<Writer<W>, Stopped> {
    let (to_convert, read) = sync_channel(AHEAD);
    let (to_write, finished) = sync_channel(AHEAD);
    // Never full: there are as many buffers as both ends can hold.
    let (back, buffers) = sync_channel(2 * AHEAD + 2);
    thread::scope(|scope| {
        thread::Builder::new().spawn_scoped(scope, move || read_ahead(chunks, &to_convert)).map_err(no_thread)?;
        let write = move || write_behind(writer, tensors, &finished, &back);
        let writing = thread::Builder::new().spawn_scoped(scope, write).map_err(no_thread)?;
        let converted = convert_all(&read, convert, &to_write, &buffers);
        // Ends the reader, and then the writer once it has what is in its queue.
        drop((read, to_write));
        // The writer has nothing that panics.
        let written = writing.join().map_err(|_| Stopped::Convert(Error::graph("write", "the writer panicked")))?;
        converted.map_err(Stopped::Convert)?;
        written.map_err(Stopped::Write)
    })
}

fn no_thread(_: io::Error) -> Stopped {
    Stopped::Convert(Error::no_thread())
}

/// Sends every chunk once its pages are in memory. Ends early when no one takes them any more.
fn read_ahead<'a>(chunks: impl Iterator<Item = Chunk<'a>>, to_convert: &SyncSender<Chunk<'a>>) {
    for chunk in chunks {
        for part in &chunk.parts {
            let (map, span) = part.span();
            map.will_read(span.clone());
            // What cannot be read is said by the thread that needs it.
            let _ = map.populate(span);
        }
        if to_convert.send(chunk).is_err() {
            return;
        }
    }
}

/// Converts what was read until nothing comes any more, or the writer has ended, which then says why.
fn convert_all<'a>(
    read: &Receiver<Chunk<'a>>,
    convert: &mut dyn FnMut(&Chunk<'a>, &mut Vec<u8>) -> Result<()>,
    to_write: &SyncSender<Finished>,
    buffers: &Receiver<Vec<u8>>,
) -> Result<()> {
    for chunk in read {
        let mut bytes = buffers.try_recv().unwrap_or_default();
        bytes.clear();
        convert(&chunk, &mut bytes)?;
        if to_write.send((chunk.tensor, bytes)).is_err() {
            break;
        }
    }
    Ok(())
}

/// Writes what is finished, one tensor after the other, and gives the buffers back.
fn write_behind<W: Write>(
    mut writer: Writer<W>,
    tensors: &[PlannedTensor],
    finished: &Receiver<Finished>,
    back: &SyncSender<Vec<u8>>,
) -> Result<Writer<W>, WriteError> {
    let mut begun = None;
    for (tensor, bytes) in finished {
        if begun != Some(tensor) {
            if begun.is_some() {
                writer.end()?;
            }
            writer.begin(&tensors[tensor].name)?;
            begun = Some(tensor);
        }
        writer.write(&bytes)?;
        // A buffer that no one takes back is freed.
        let _ = back.try_send(bytes);
    }
    // After an early end the tensor is not whole, and the file is given up anyway.
    if begun == tensors.len().checked_sub(1) && begun.is_some() {
        writer.end()?;
    }
    Ok(writer)
}
