//! A client's graphs and arenas, and the device that computes them.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use pinhole_quant::DType;

use super::lending::Lending;
use crate::ggml::call::Place;
use crate::ggml::remote::wire::{GraphText, Reply};
use crate::ggml::{Arena, Backend, Buffer, CancelFlag, Graph, Ledger, Placed, Replay};
use crate::tensor::Shape;
use crate::{Error, Result};

/// The most tensors of all graphs together: each takes a few hundred bytes of the host.
const MOST_TENSORS: usize = 1 << 20;

/// The most bytes of all tensors of a graph together. Beyond, ggml's own sums of sizes might wrap round.
const MOST_BYTES: usize = 1 << 44;

/// The most arenas.
const MOST_ARENAS: usize = 1 << 10;

/// What computes.
pub(super) struct Bench {
    backend: Backend,
    ledger: Ledger,
    graphs: HashMap<u64, Graph>,
    /// Tensors that all graphs have room for.
    tensors: usize,
    arenas: HashMap<u64, Arena>,
    nowhere: Arc<Buffer>,
}

impl Bench {
    pub(super) fn new(lending: &Lending, ledger: &Ledger) -> Result<Bench> {
        Ok(Bench {
            backend: Backend::new(lending.device, lending.threads, CancelFlag::new())?,
            ledger: ledger.clone(),
            graphs: HashMap::new(),
            tensors: 0,
            arenas: HashMap::new(),
            nowhere: Buffer::nowhere(lending.device)?,
        })
    }

    /// What a graph of this `text` takes.
    pub(super) fn measure(&self, text: &GraphText, buffers: &HashMap<u64, Arc<Buffer>>) -> Result<Reply> {
        let graph = Graph::new(self.backend.device(), text.capacity)?;
        let mut replay = Replay::new(&graph, |place, dtype, shape| self.place(buffers, place, dtype, shape));
        text.calls.iter().try_for_each(|noted| replay.follow(noted))?;
        check_bytes(&graph)?;
        Ok(Reply::Measured { arena: Arena::measure(&graph)?, scratch: self.backend.scratch(&graph)?.buffers() })
    }

    /// Makes graph number `number`. Returns the bytes that it touches, each range with its buffer.
    pub(super) fn define(
        &mut self,
        number: u64,
        text: &GraphText,
        buffers: &HashMap<u64, Arc<Buffer>>,
    ) -> Result<Vec<(u64, Range<usize>)>> {
        if self.graphs.contains_key(&number) {
            return Err(Error::graph("define", format!("graph {number} is there already")));
        }
        let tensors = self.tensors.saturating_add(text.capacity);
        if tensors > MOST_TENSORS {
            return Err(Error::graph(
                "define",
                format!("graphs of {tensors} tensors, where {MOST_TENSORS} are the most"),
            ));
        }
        let graph = Graph::new(self.backend.device(), text.capacity)?;
        let mut replay = Replay::new(&graph, |place, dtype, shape| self.place(buffers, place, dtype, shape));
        text.calls.iter().try_for_each(|noted| replay.follow(noted))?;
        check_bytes(&graph)?;
        let (touched, written) = (replay.touched, replay.written);
        // Rows are looked at before a graph runs: it must not change them on the way.
        for looked_up in graph.lookups() {
            if written.iter().any(|place| meet(place, &looked_up)) {
                return Err(Error::graph("get_rows", "the graph writes the rows that it looks up"));
            }
        }
        let mut ranges = Vec::new();
        for place in &touched {
            let known = buffers.iter().find(|(_, buffer)| Arc::ptr_eq(buffer, place.buffer()));
            ranges.extend(known.map(|(number, _)| (*number, range(place))));
        }
        self.tensors = tensors;
        self.graphs.insert(number, graph);
        Ok(ranges)
    }

    fn place(&self, buffers: &HashMap<u64, Arc<Buffer>>, place: &Place, dtype: DType, shape: Shape) -> Result<Placed> {
        match place.buffer {
            Some(number) => {
                let buffer = buffers.get(&number);
                let buffer = buffer.ok_or_else(|| Error::graph("place", format!("there is no buffer {number}")))?;
                Placed::new(buffer, place.offset, dtype, shape)
            }
            None if shape.bytes(dtype).is_some() => Ok(Placed::nowhere(&self.nowhere, dtype, shape)),
            None => Err(Error::graph("place", format!("{shape} has rows that {dtype} blocks do not divide"))),
        }
    }

    pub(super) fn drop_graph(&mut self, number: u64) {
        if let Some(graph) = self.graphs.remove(&number) {
            self.tensors -= graph.capacity();
        }
    }

    pub(super) fn drop_arena(&mut self, number: u64) {
        self.arenas.remove(&number);
    }

    /// Gives graphs their memory.
    pub(super) fn assign(&mut self, arena: u64, graphs: &[u64]) -> Result<Reply> {
        if !self.arenas.contains_key(&arena) {
            if self.arenas.len() >= MOST_ARENAS {
                return Err(Error::graph("assign", format!("more than {MOST_ARENAS} arenas")));
            }
            self.arenas.insert(arena, Arena::new(self.backend.device(), &self.ledger)?);
        }
        let (graphs, arena) = parts(&self.graphs, graphs, &mut self.arenas, arena)?;
        arena.assign(&graphs)?;
        Ok(Reply::Taken { bytes: arena.size() })
    }

    /// Makes room for what computing graphs takes beside.
    pub(super) fn reserve(&mut self, arena: u64, graphs: &[u64]) -> Result<Reply> {
        let (graphs, arena) = parts(&self.graphs, graphs, &mut self.arenas, arena)?;
        self.backend.reserve(&graphs, arena)?;
        Ok(Reply::Taken { bytes: arena.scratch_bytes() })
    }

    /// Computes a graph.
    pub(super) fn compute(&mut self, graph: u64, arena: u64) -> Result<()> {
        let (graphs, arena) = parts(&self.graphs, &[graph], &mut self.arenas, arena)?;
        // One that its own work has no room for is refused: nothing is allocated on the way.
        graphs.iter().try_for_each(|graph| self.backend.compute(graph, arena))
    }

    /// Makes the device ready again, whatever failed or was stopped. `cancel` stops what is computed from now on.
    pub(super) fn settle(&mut self, cancel: CancelFlag) -> Result<()> {
        self.backend.set_cancel(cancel);
        self.backend.recover()
    }
}

fn check_bytes(graph: &Graph) -> Result<()> {
    match graph.bytes_of_all() {
        0..=MOST_BYTES => Ok(()),
        bytes => Err(Error::graph("graph", format!("tensors of {bytes} bytes"))),
    }
}

/// Graphs, and an arena.
fn parts<'a>(
    graphs: &'a HashMap<u64, Graph>,
    numbers: &[u64],
    arenas: &'a mut HashMap<u64, Arena>,
    arena: u64,
) -> Result<(Vec<&'a Graph>, &'a mut Arena)> {
    let mut found = Vec::new();
    for (at, number) in numbers.iter().enumerate() {
        if numbers[..at].contains(number) {
            return Err(Error::graph("graphs", format!("graph {number} twice")));
        }
        found.push(graphs.get(number).ok_or_else(|| Error::graph("graphs", format!("there is no graph {number}")))?);
    }
    let arena = arenas.get_mut(&arena).ok_or_else(|| Error::graph("graphs", format!("there is no arena {arena}")))?;
    Ok((found, arena))
}

/// Whether two places share bytes.
fn meet(a: &Placed, b: &Placed) -> bool {
    let (of_a, of_b) = (range(a), range(b));
    Arc::ptr_eq(a.buffer(), b.buffer()) && of_a.start < of_b.end && of_b.start < of_a.end
}

fn range(place: &Placed) -> Range<usize> {
    place.offset()..place.offset() + place.bytes()
}
