//! A client's messages, one after another.

use std::collections::HashMap;
use std::io;
use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::bench::Bench;
use super::lending::{Lending, STACK};
use super::queue::{Job, Queue, Touched};
use crate::ggml::remote::wire::{self, Failure, MOST_BYTES, Message, Reply};
use crate::ggml::{Buffer, CancelFlag, Ledger};
use crate::{Error, Result, reserve};

/// The most buffers.
const MOST_BUFFERS: usize = 1 << 12;

/// What the thread that listens and the one that computes share.
struct Shared {
    bench: Mutex<Bench>,
    queue: Queue,
    outgoing: Mutex<TcpStream>,
    /// Stops what is computed.
    cancel: Mutex<CancelFlag>,
    /// Why nothing is computed until that is settled.
    failed: Mutex<Option<Failure>>,
}

/// Serves a client until it goes, or breaks the rules.
///
/// # Errors
/// Why it ended.
pub(super) fn serve(stream: TcpStream, lending: &Lending, ledger: &Ledger) -> io::Result<()> {
    let bench = Bench::new(lending, ledger).map_err(io::Error::other)?;
    let shared = Shared {
        bench: Mutex::new(bench),
        queue: Queue::default(),
        outgoing: Mutex::new(stream.try_clone()?),
        cancel: Mutex::default(),
        failed: Mutex::default(),
    };
    shared.settle().map_err(io::Error::other)?;
    thread::scope(|scope| {
        let computing = thread::Builder::new().name("compute".into()).stack_size(STACK);
        computing.spawn_scoped(scope, || shared.compute())?;
        let (buffers, touched) = (HashMap::new(), HashMap::new());
        let mut desk = Desk { shared: &shared, lending, ledger, buffers, touched, failure: None };
        let ended = desk.listen(stream);
        lock(&shared.cancel).raise();
        shared.queue.close();
        ended
    })
}

impl Shared {
    /// Computes what is asked for, until no more is.
    fn compute(&self) {
        while let Some(job) = self.queue.take() {
            let mut failed = lock(&self.failed).clone();
            if failed.is_none() {
                failed = match job.what {
                    Ok((graph, arena)) => lock(&self.bench).compute(graph, arena).err().map(Failure::from),
                    Err(failure) => Some(failure),
                };
                lock(&self.failed).clone_from(&failed);
            }
            // Before the job is done: answers go out in the order of what they answer. If the client is gone, the thread that listens
            // finds that out.
            let _ = self.answer(&failed.map_or(Reply::Done, Reply::Failed), &[]);
            self.queue.done();
        }
    }

    /// Makes everything ready again, whatever failed or was stopped. Nothing is being computed.
    fn settle(&self) -> Result<()> {
        let cancel = CancelFlag::new();
        lock(&self.cancel).clone_from(&cancel);
        *lock(&self.failed) = None;
        lock(&self.bench).settle(cancel)
    }

    fn answer(&self, reply: &Reply, bytes: &[u8]) -> io::Result<()> {
        wire::send(&mut *lock(&self.outgoing), reply, bytes)
    }
}

/// What a client has, as far as the thread that listens has to do with it.
struct Desk<'a> {
    shared: &'a Shared,
    lending: &'a Lending,
    ledger: &'a Ledger,
    buffers: HashMap<u64, Arc<Buffer>>,
    /// By graph.
    touched: HashMap<u64, Touched>,
    /// What went wrong with a message that is not answered.
    failure: Option<Failure>,
}

impl Desk<'_> {
    fn listen(&mut self, mut incoming: TcpStream) -> io::Result<()> {
        loop {
            let (message, bytes) = wire::receive(&mut incoming)?;
            match message {
                Message::Compute { graph, arena } => self.ask_to_compute(graph, arena),
                Message::Cancel => lock(&self.shared.cancel).raise(),
                Message::Write { .. } | Message::Free { .. } | Message::Define { .. } => self.note(&message, &bytes),
                Message::Drop { .. } | Message::DropArena { .. } => self.note(&message, &bytes),
                asked => self.answer(&asked)?,
            }
        }
    }

    fn ask_to_compute(&mut self, graph: u64, arena: u64) {
        let what = self.failure.take().map_or(Ok((graph, arena)), Err);
        self.shared.queue.put(Job { what, touched: self.touched.get(&graph).cloned().unwrap_or_default() });
    }

    /// Does what is not answered.
    fn note(&mut self, message: &Message, bytes: &[u8]) {
        if let Err(error) = self.follow(message, bytes) {
            self.failure.get_or_insert(error.into());
        }
    }

    fn follow(&mut self, message: &Message, bytes: &[u8]) -> Result<()> {
        match message {
            Message::Write { buffer, offset } => {
                let end = offset.saturating_add(bytes.len());
                self.shared.queue.wait_for_bytes(*buffer, &(*offset..end));
                return self.buffer(*buffer)?.write_at(*offset, bytes);
            }
            Message::Free { buffer } => {
                self.buffers.remove(buffer);
                return Ok(());
            }
            _ => self.shared.queue.wait_for_all(),
        }
        match message {
            Message::Define { graph, text } => {
                let touched = lock(&self.shared.bench).define(*graph, text, &self.buffers)?;
                self.touched.insert(*graph, Arc::new(touched));
            }
            Message::Drop { graph } => {
                self.touched.remove(graph);
                lock(&self.shared.bench).drop_graph(*graph);
            }
            Message::DropArena { arena } => lock(&self.shared.bench).drop_arena(*arena),
            _ => {}
        }
        Ok(())
    }

    /// Answers `asked`, once all computations before it are done.
    fn answer(&mut self, asked: &Message) -> io::Result<()> {
        self.shared.queue.wait_for_all();
        let answered = match (self.failure.take(), asked) {
            // Nothing is left of it.
            (_, Message::Settle) => self.shared.settle().map(|()| (Reply::Done, Vec::new())),
            (Some(failure), _) => Ok((Reply::Failed(failure), Vec::new())),
            (None, Message::Read { buffer, offset, len }) => self.read(*buffer, *offset, *len),
            (None, _) => self.answered(asked).map(|reply| (reply, Vec::new())),
        };
        let (reply, bytes) = answered.unwrap_or_else(|error| (Reply::Failed(error.into()), Vec::new()));
        self.shared.answer(&reply, &bytes)
    }

    fn answered(&mut self, asked: &Message) -> Result<Reply> {
        let mut bench = lock(&self.shared.bench);
        match asked {
            Message::Allocate { buffer, bytes } => {
                if self.buffers.len() >= MOST_BUFFERS || self.buffers.contains_key(buffer) {
                    return Err(Error::graph("allocate", format!("buffer {buffer} is there already, or one too many")));
                }
                let made = Buffer::allocate(self.lending.device, *bytes, self.ledger, "buffers of a client")?;
                self.buffers.insert(*buffer, made);
                Ok(Reply::Done)
            }
            Message::Measure { graph } => bench.measure(graph, &self.buffers),
            Message::Assign { arena, graphs } => bench.assign(*arena, graphs),
            Message::Reserve { arena, graphs } => bench.reserve(*arena, graphs),
            Message::Memory => {
                let total = self.lending.vram;
                Ok(Reply::Memory { free: total.saturating_sub(self.ledger.usage().total), total })
            }
            other => Err(Error::graph("answer", format!("{other:?} has no answer"))),
        }
    }

    fn read(&self, buffer: u64, offset: usize, len: usize) -> Result<(Reply, Vec<u8>)> {
        if len > MOST_BYTES {
            return Err(Error::graph("read", format!("{len} bytes, where {MOST_BYTES} are the most")));
        }
        let mut bytes = reserve::zeros("what is read", len)?;
        self.buffer(buffer)?.read_at(offset, &mut bytes)?;
        Ok((Reply::Bytes, bytes))
    }

    fn buffer(&self, number: u64) -> Result<&Arc<Buffer>> {
        self.buffers.get(&number).ok_or_else(|| Error::graph("buffer", format!("there is no buffer {number}")))
    }
}

/// What panicked with it in hand is not used again: its client is gone.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
