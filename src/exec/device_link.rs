//! The link to a device with memory of its own: from the file into pinned memory, and from there beside the computation.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pinhole_quant::workers;

use super::link::Link;
use crate::ggml::{Buffer, CopyQueue, Device, Event, SlotEvents, Staging};
use crate::{Error, Result};

/// Pieces of pinned memory: while some are on their way, another is filled.
const PIECES: usize = 4;

/// Large enough that what a copy costs by itself does not count, small enough that the first is soon on its way.
const PIECE: usize = Staging::BYTES / PIECES;

/// What one thread brings from the file at once: pages that are not there yet are read by several at a time.
const PART: usize = 1 << 20;

/// Within a piece, what is copied begins at multiples of this.
const ALIGNMENT: usize = 256;

/// ggml's Vulkan backend keeps every recording of an event until the host waits for the last one: now and then it does.
const ROUNDS: usize = 64;

/// Copies on a queue of their own, ordered with computations by the events of each slot.
pub(crate) struct DeviceLink {
    queue: CopyQueue,
    staging: Staging,
    pieces: Vec<Piece>,
    current: usize,
    slots: Option<SlotEvents>,
    rounds: usize,
    stop: Arc<AtomicBool>,
}

/// A part of the pinned memory.
struct Piece {
    /// It may be filled anew.
    free: Event,
    used: usize,
}

impl DeviceLink {
    /// A link to `device`; `None` where copies cannot go on beside computations. `stop` ends a copy.
    pub(crate) fn new(
        device: Device,
        slots: Option<&SlotEvents>,
        stop: &Arc<AtomicBool>,
    ) -> Result<Option<DeviceLink>> {
        let Some(queue) = CopyQueue::new(device)? else { return Ok(None) };
        let Some(staging) = Staging::new(device, Staging::BYTES)? else { return Ok(None) };
        let pieces =
            (0..PIECES).map(|_| Ok(Piece { free: Event::new(device)?, used: 0 })).collect::<Result<Vec<_>>>()?;
        let (slots, stop) = (slots.cloned(), Arc::clone(stop));
        Ok(Some(DeviceLink { queue, staging, pieces, current: 0, slots, rounds: 0, stop }))
    }

    /// Goes on to the next piece, once the copies from it are done.
    fn next_piece(&mut self) -> Result<()> {
        self.queue.record(&self.pieces[self.current].free)?;
        self.current = (self.current + 1) % PIECES;
        let piece = &mut self.pieces[self.current];
        piece.free.synchronize()?;
        piece.used = 0;
        Ok(())
    }
}

impl Link for DeviceLink {
    fn begin(&mut self, slot: Option<usize>) -> Result<()> {
        let Some((slots, slot)) = self.slots.as_ref().zip(slot) else { return Ok(()) };
        let events = &slots.0[slot];
        self.rounds += 1;
        if self.rounds.is_multiple_of(ROUNDS) {
            for events in slots.0.iter() {
                events.filled.synchronize()?;
            }
            events.used.synchronize()?;
        }
        self.queue.wait(&events.used)
    }

    fn write(&mut self, to: &Buffer, offset: usize, bytes: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            if self.pieces[self.current].used >= PIECE {
                self.next_piece()?;
            }
            let piece = &mut self.pieces[self.current];
            let len = (PIECE - piece.used).min(bytes.len() - done);
            let from = self.current * PIECE + piece.used;
            let target = &mut self.staging.bytes()[from..][..len];
            let parts = target.chunks_mut(PART).zip(bytes[done..][..len].chunks(PART)).collect();
            workers::for_each(parts, |(to, from): (&mut [u8], &[u8])| to.copy_from_slice(from));
            self.queue.copy(&self.staging, from, len, to, offset + done)?;
            piece.used = (piece.used + len).next_multiple_of(ALIGNMENT);
            done += len;
        }
        Ok(())
    }

    fn finish(&mut self, slot: Option<usize>) -> Result<()> {
        match self.slots.as_ref().zip(slot) {
            Some((slots, slot)) => self.queue.record(&slots.0[slot].filled),
            None => self.queue.synchronize(),
        }
    }
}

impl Drop for DeviceLink {
    fn drop(&mut self) {
        // Copies read the staging memory; a device that fails here reads nothing any more.
        let _ = self.queue.synchronize();
    }
}
