//! Memory for what graphs compute on the way: one block, shared by graphs that run one after another.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ggml_sys as sys;
use ggml_sys::account::{self, Block};

use super::remote::Connection;
use super::remote::wire::Message;
use super::{Device, Graph, Ledger, guarded};
use crate::{Error, Result};

/// An allocator of intermediate results, over ggml's graph allocator.
///
/// The block is made once, as large as the largest graph needs; every graph then gets addresses inside it. Graphs
/// that share an arena must not run at the same time, and a graph's results are overwritten by the next.
pub struct Arena {
    raw: NonNull<sys::ggml_gallocr>,
    device: Device,
    ledger: Ledger,
    entered: usize,
    /// What operations of the CPU compute with, beside their results.
    scratch: Vec<u8>,
    /// What a device allocates by itself while it computes, as entered.
    entered_scratch: usize,
    /// A number that no other arena has, and this one until graphs are assigned the next time.
    block: u64,
    /// Its memory, where that is the CPU's.
    memory: Option<Block>,
    /// Set when ggml was unwound while it allocated: what it holds is unknown from then on.
    broken: bool,
    /// The arena of another machine that it stands for.
    remote: Option<RemoteArena>,
}

/// An arena of another machine.
struct RemoteArena {
    connection: Arc<Connection>,
    number: u64,
    /// Bytes of its block.
    size: usize,
}

/// The number of the next block.
static NEXT_BLOCK: AtomicU64 = AtomicU64::new(0);

// SAFETY: the allocator belongs to this value alone and keeps no thread-local state.
unsafe impl Send for Arena {}

impl Arena {
    /// An arena without memory.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where its own bookkeeping finds no room.
    pub fn new(device: Device, ledger: &Ledger) -> Result<Arena> {
        let raw = guarded("arena", || {
            // SAFETY: the buffer type is the device's own.
            unsafe { sys::ggml_gallocr_new(device.buffer_type()) }
        })?;
        let raw =
            NonNull::new(raw).ok_or_else(|| Error::OutOfMemory { what: "an arena".into(), bytes: 0, hint: None })?;
        Ok(Arena {
            raw,
            device,
            ledger: ledger.clone(),
            entered: 0,
            scratch: Vec::new(),
            entered_scratch: 0,
            block: next_block(),
            memory: None,
            broken: false,
            remote: match device.remote() {
                Some(remote) => {
                    let connection = remote.connection()?;
                    Some(RemoteArena { number: connection.number(), connection, size: 0 })
                }
                None => None,
            },
        })
    }

    /// Bytes that `graph` needs for its intermediate results. Allocates nothing on the device.
    ///
    /// # Errors
    /// [`Error::Graph`] if ggml fails.
    pub fn measure(graph: &Graph) -> Result<usize> {
        if let Some(remote) = graph.device().remote() {
            return Ok(remote.measure(graph.text())?.0);
        }
        let mut scratch = Arena::new(graph.device(), &Ledger::new())?;
        let measured = graph.while_in_place(|| {
            guarded("measure", || {
                let mut bytes = 0;
                // SAFETY: one buffer type, so one size; null id lists mean buffer 0 for everything.
                unsafe {
                    sys::ggml_gallocr_reserve_n_size(
                        scratch.raw.as_ptr(),
                        graph.cgraph(),
                        std::ptr::null(),
                        std::ptr::null(),
                        &mut bytes,
                    );
                }
                bytes
            })
        });
        scratch.broken = measured.is_err();
        measured
    }

    /// Gives every graph its addresses in one block, as large as the largest of them needs. Graphs that were assigned earlier
    /// cannot be computed any more.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the device refuses the block; [`Error::Graph`] for a graph that has its memory already.
    pub fn assign(&mut self, graphs: &[&Graph]) -> Result<()> {
        if self.broken {
            return Err(Error::graph("assign", "the arena failed earlier and is not used again"));
        }
        if graphs.iter().any(|graph| graph.block.get().is_some()) {
            return Err(Error::graph("assign", "the graph has its memory already"));
        }
        if graphs.iter().any(|graph| graph.device() != self.device) {
            return Err(Error::graph("assign", "the graph was built for another device"));
        }
        if graphs.iter().any(|graph| graph.measured_only.get()) {
            return Err(Error::graph("assign", "a leaf of the graph has no memory"));
        }
        let mut largest: Option<(usize, &Graph)> = None;
        for &graph in graphs {
            let bytes = Arena::measure(graph)?;
            if largest.is_none_or(|(most, _)| bytes > most) {
                largest = Some((bytes, graph));
            }
        }
        let Some((bytes, largest)) = largest else { return Ok(()) };
        self.block = next_block();
        self.ledger.leave("activations", std::mem::take(&mut self.entered));
        self.ledger.enter("activations", bytes)?;
        self.entered = bytes;
        if self.remote.is_some() {
            return self.assign_there(graphs, bytes);
        }
        let (reserved, memory) = account::watch_block(|| {
            largest.while_in_place(|| {
                guarded("reserve", || {
                    // SAFETY: both are live.
                    unsafe { sys::ggml_gallocr_reserve(self.raw.as_ptr(), largest.cgraph()) }
                })
            })
        });
        self.broken = reserved.is_err();
        // After a failure the block from before may have been freed: only a new one is known to be there. After a success
        // without a new one, the one from before was large enough.
        self.memory = if matches!(reserved, Ok(true)) { memory.or(self.memory.take()) } else { memory };
        if !matches!(reserved, Ok(true)) {
            return Err(Error::OutOfMemory {
                what: format!("activations on {}", self.device.name()),
                bytes,
                hint: Some("choose a smaller picture".into()),
            });
        }
        let size = self.size();
        for graph in graphs {
            self.assign_one(graph)?;
        }
        // Graphs assigned earlier would point into a freed block if a later one had made it grow.
        if self.size() != size {
            return Err(Error::graph("assign", format!("the arena grew from {size} to {} bytes", self.size())));
        }
        if size > bytes {
            self.ledger.enter("activations", size - bytes)?;
            self.entered = size;
        }
        Ok(())
    }

    /// The same on another machine, where the largest graph takes `bytes`, which are entered.
    fn assign_there(&mut self, graphs: &[&Graph], bytes: usize) -> Result<()> {
        let Some(there) = &mut self.remote else { return Ok(()) };
        let numbers = graphs.iter().map(|graph| graph.number_there(&there.connection)).collect::<Result<_>>()?;
        there.size = there.connection.ask_bytes(&Message::Assign { arena: there.number, graphs: numbers })?;
        if there.size > bytes {
            self.ledger.enter("activations", there.size - bytes)?;
            self.entered = there.size;
        }
        for graph in graphs {
            graph.block.set(Some(self.block));
        }
        Ok(())
    }

    /// Makes room on another machine for what computing `graphs` takes beside, if this stands for an arena there, and enters it.
    ///
    /// # Errors
    /// As [`enter_scratch`](Self::enter_scratch); what the server says.
    pub(super) fn reserve_there(&mut self, graphs: &[&Graph]) -> Result<()> {
        let Some(RemoteArena { connection, number, .. }) = &self.remote else { return Ok(()) };
        let numbers = graphs.iter().map(|graph| graph.number_there(connection)).collect::<Result<_>>()?;
        let bytes = connection.ask_bytes(&Message::Reserve { arena: *number, graphs: numbers })?;
        self.enter_scratch(bytes)
    }

    /// The connection to the machine where it is, if that is another one, and its number there.
    pub(super) fn there(&self) -> Option<(&Arc<Connection>, u64)> {
        self.remote.as_ref().map(|there| (&there.connection, there.number))
    }

    /// What it has of scratch memory.
    pub(crate) fn scratch_bytes(&self) -> usize {
        self.scratch.len() + self.entered_scratch
    }

    /// At least `bytes` of scratch memory, entered as `scratch`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(super) fn scratch(&mut self, bytes: usize) -> Result<&mut [u8]> {
        if let Some(more) = bytes.checked_sub(self.scratch.len()).filter(|&more| more > 0) {
            self.ledger.enter("scratch", more)?;
            let reserved = self.scratch.try_reserve_exact(more);
            if reserved.is_err() {
                self.ledger.leave("scratch", more);
                let what = format!("work space on {}", self.device.name());
                return Err(Error::OutOfMemory { what, bytes, hint: Some("choose a smaller picture".into()) });
            }
            self.scratch.resize(bytes, 0);
        }
        Ok(&mut self.scratch)
    }

    /// Enters what the device will allocate by itself, in place of what was entered before.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where that exceeds the account's limit.
    pub(super) fn enter_scratch(&mut self, bytes: usize) -> Result<()> {
        self.ledger.leave("scratch", std::mem::take(&mut self.entered_scratch));
        self.ledger.enter("scratch", bytes)?;
        self.entered_scratch = bytes;
        Ok(())
    }

    fn assign_one(&mut self, graph: &Graph) -> Result<()> {
        let (assigned, grown) = account::watch_block(|| {
            graph.while_in_place(|| {
                guarded("assign", || {
                    // Reserved once more: ggml would take a graph of as many tensors for the one before, and use a plan under
                    // which results are overwritten too early.
                    // SAFETY: both are live; the graph's leaves have buffers of their own.
                    unsafe {
                        sys::ggml_gallocr_reserve(self.raw.as_ptr(), graph.cgraph())
                            && sys::ggml_gallocr_alloc_graph(self.raw.as_ptr(), graph.cgraph())
                    }
                })
            })
        });
        self.broken = assigned.is_err();
        // ggml frees the block from before only to make a larger one, and returns false where it got none.
        self.memory = if matches!(assigned, Ok(false)) { None } else { grown.or(self.memory.take()) };
        if !assigned? {
            return Err(Error::graph("assign", "ggml could not place the graph in the arena"));
        }
        graph.block.set(Some(self.block));
        Ok(())
    }

    /// Whether `graph` has its addresses in the block as it is now.
    pub(super) fn holds(&self, graph: &Graph) -> bool {
        graph.block.get() == Some(self.block)
    }

    /// Bytes of its block.
    pub fn size(&self) -> usize {
        if let Some(there) = &self.remote {
            return there.size;
        }
        // SAFETY: live, with one buffer.
        unsafe { sys::ggml_gallocr_get_buffer_size(self.raw.as_ptr(), 0) }
    }
}

fn next_block() -> u64 {
    NEXT_BLOCK.fetch_add(1, Ordering::Relaxed)
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.ledger.leave("activations", self.entered);
        self.ledger.leave("scratch", self.scratch_bytes());
        if let Some(there) = &self.remote {
            // A server that is gone has let go of it.
            let _ = there.connection.tell(&Message::DropArena { arena: there.number }, &[]);
        }
        // Bookkeeping that may have been freed already is better leaked than freed twice. What it is about is known.
        if self.broken {
            if let Some(memory) = self.memory.take() {
                // SAFETY: ggml has not freed it (see `assign` and `assign_one`), and its allocator is not used again.
                unsafe { memory.free() };
            }
            return;
        }
        // SAFETY: freed once. Graphs assigned here may outlive it, but can run only through `Backend::compute` with
        // this arena at hand.
        unsafe { sys::ggml_gallocr_free(self.raw.as_ptr()) };
    }
}
