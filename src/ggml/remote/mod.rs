//! Devices of other machines: `rpc:HOST:PORT`.
//!
//! ggml has a backend for this, with a protocol of its own. It is not used: its client ends the process where its server is gone, its server
//! ends where a message asks for nonsense, neither counts memory, and what it knows of a graph are ggml's own operations, where pinhole's
//! devices compute with pinhole's. Here a graph goes over as what it was asked for (see [`Call`](super::call::Call)), and the server asks
//! a graph of its own for the same: whatever is checked or decided for a local device is checked and decided there. So results are those of the
//! server's device, to the bit, and a hostile client can ask for nothing that the library's user could not.
//!
//! A client measures and plans with what the server's own device says; its ledger has what was allocated there for it.

mod connection;
pub(crate) mod wire;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};

pub(crate) use connection::Connection;
use wire::{GraphText, Message, Reply, Served};

use super::Scratch;
use crate::{Error, Result};

/// What names begin with.
pub(super) const PREFIX: &str = "rpc:";

/// A device of another machine. There is one for each address, until the process ends.
pub(crate) struct Remote {
    /// `rpc:HOST:PORT`
    name: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connection: Option<Arc<Connection>>,
    /// What the server said of itself last.
    served: Served,
    /// What graphs take there, by the digest of their text.
    measured: HashMap<[u8; 32], (usize, Scratch)>,
}

impl PartialEq for Remote {
    fn eq(&self, other: &Remote) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Remote {}

impl Remote {
    /// The device called `name`, which begins with [`PREFIX`], with a connection to it.
    ///
    /// # Errors
    /// [`Error::Device`] where the server cannot be reached, or is not one for this client.
    pub(super) fn named(name: &str) -> Result<&'static Remote> {
        static ALL: Mutex<Vec<&'static Remote>> = Mutex::new(Vec::new());
        let known = {
            let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
            match all.iter().find(|remote| remote.name == name) {
                Some(known) => *known,
                None => {
                    let remote = Remote { name: name.to_owned(), state: Mutex::default() };
                    let remote: &'static Remote = Box::leak(Box::new(remote));
                    all.push(remote);
                    remote
                }
            }
        };
        known.connection()?;
        Ok(known)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What its server said of itself last.
    pub(super) fn served(&self) -> Served {
        self.state().served.clone()
    }

    /// The connection, made anew if it is lost.
    ///
    /// # Errors
    /// As [`named`](Self::named).
    pub(super) fn connection(&self) -> Result<Arc<Connection>> {
        let mut state = self.state();
        if let Some(connection) = state.connection.as_ref().filter(|connection| !connection.is_lost()) {
            return Ok(Arc::clone(connection));
        }
        // The server serves one client at a time: the old connection has to be gone first.
        state.connection = None;
        let endpoint = self.name.trim_start_matches(PREFIX);
        let connection = Arc::new(Connection::open(&self.name, endpoint)?);
        if state.served != *connection.served() {
            state.served = connection.served().clone();
            state.measured.clear();
        }
        state.connection = Some(Arc::clone(&connection));
        Ok(connection)
    }

    /// `(free, total)` memory in bytes, as the server allows it now.
    ///
    /// # Errors
    /// As [`named`](Self::named).
    pub(super) fn memory(&self) -> Result<(usize, usize)> {
        let connection = self.connection()?;
        match connection.ask(&Message::Memory)?.0 {
            Reply::Memory { free, total } => Ok((free, total)),
            other => Err(connection.senseless(&other)),
        }
    }

    /// What `graph` takes there for its intermediate results, and beside.
    ///
    /// # Errors
    /// As [`named`](Self::named); what the server says.
    pub(super) fn measure(&self, graph: GraphText) -> Result<(usize, Scratch)> {
        let text = serde_json::to_vec(&graph).map_err(|error| Error::graph("measure", error.to_string()))?;
        let digest = Sha256::digest(&text).into();
        let connection = self.connection()?;
        if let Some(known) = self.state().measured.get(&digest) {
            return Ok(*known);
        }
        let measured = match connection.ask(&Message::Measure { graph })?.0 {
            Reply::Measured { arena, scratch } => (arena, Scratch::of_buffers(scratch)),
            other => return Err(connection.senseless(&other)),
        };
        self.state().measured.insert(digest, measured);
        Ok(measured)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
