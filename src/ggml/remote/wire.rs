//! What goes between a client and the machine that computes for it.
//!
//! Both begin with [`MAGIC`] and [`VERSION`]; a client that hears another version says so and goes. The server then says what it has: a
//! [`Greeting`]. From then on each side sends frames: the lengths of a text and of what follows it, the text, which is a [`Message`] or a
//! [`Reply`] in JSON, and the bytes that it is about. Messages are answered in order, those of them that are answered.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::call::Noted;
use crate::{Error, reserve};

/// What both sides send first.
pub(crate) const MAGIC: [u8; 8] = *b"pinhole\n";

/// The version of all that is here, of [calls](super::super::call::Call), and of what they mean. It counts up with each change.
pub(crate) const VERSION: u32 = 1;

/// The longest text of a frame: that of a graph with as many tensors as one can have.
const MOST_TEXT: usize = 2 << 20;

/// The most bytes of a frame beside its text.
pub(crate) const MOST_BYTES: usize = 1 << 20;

/// What a server says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Greeting {
    /// It computes for this client.
    Ready(Served),
    /// It computes for another one.
    Busy {
        /// Whose address this is.
        client: String,
    },
}

/// The device that a server computes on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Served {
    /// Its name there.
    pub(crate) device: String,
    pub(crate) description: String,
    /// Whether pinhole's own operations run on it.
    pub(crate) own_operations: bool,
    /// What its results depend on: two devices that say the same give the same bits.
    pub(crate) rounding: String,
    pub(crate) alignment: usize,
    /// What its driver takes, whatever is computed.
    pub(crate) overhead: usize,
}

/// A graph, as calls make it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct GraphText {
    pub(crate) capacity: usize,
    pub(crate) calls: Vec<Noted>,
}

/// What a client asks for. Numbers are its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Message {
    /// Makes a buffer. Answered.
    Allocate { buffer: u64, bytes: usize },
    /// Lets go of a buffer. Graphs that use it keep it.
    Free { buffer: u64 },
    /// The frame's bytes go to `offset`, after all computations that were asked for before and touch what is there.
    Write { buffer: u64, offset: usize },
    /// Answered with the bytes.
    Read { buffer: u64, offset: usize, len: usize },
    /// What a graph takes. Answered.
    Measure { graph: GraphText },
    /// Makes a graph.
    Define { graph: u64, text: GraphText },
    /// Lets go of a graph.
    Drop { graph: u64 },
    /// Gives graphs their memory in an arena, which is made if it is new. Answered.
    Assign { arena: u64, graphs: Vec<u64> },
    /// Makes room for what computing graphs takes beside. Answered.
    Reserve { arena: u64, graphs: Vec<u64> },
    /// Lets go of an arena.
    DropArena { arena: u64 },
    /// Computes a graph. Answered when that is done.
    Compute { graph: u64, arena: u64 },
    /// Stops all computations that were asked for before.
    Cancel,
    /// Answered when all before it is done. What comes afterwards is computed, whatever failed or was stopped.
    Settle,
    /// How much memory is left of how much. Answered.
    Memory,
}

/// What a server answers. What went wrong with a message that is not answered is the answer to a later one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Reply {
    Done,
    /// The frame has bytes.
    Bytes,
    /// Bytes of an arena, and of the buffers of the backend.
    Measured {
        arena: usize,
        scratch: [usize; 4],
    },
    /// Bytes that an arena or its scratch memory has now.
    Taken {
        bytes: usize,
    },
    Memory {
        free: usize,
        total: usize,
    },
    Failed(Failure),
}

/// Why it did not work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Failure {
    Cancelled,
    Memory { what: String, bytes: usize },
    Other { message: String },
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        match error {
            Error::Cancelled => Failure::Cancelled,
            Error::OutOfMemory { what, bytes, .. } => Failure::Memory { what, bytes },
            other => Failure::Other { message: other.to_string() },
        }
    }
}

/// Sends a frame.
///
/// # Errors
/// The system's; a text or bytes that are too long.
pub(crate) fn send(to: &mut impl Write, text: &impl Serialize, bytes: &[u8]) -> io::Result<()> {
    let text = serde_json::to_vec(text)?;
    if text.len() > MOST_TEXT || bytes.len() > MOST_BYTES {
        return Err(io::Error::other(format!("a frame of {} and {} bytes", text.len(), bytes.len())));
    }
    let mut frame = Vec::with_capacity(8 + text.len() + bytes.len());
    for part in [text.len(), bytes.len()] {
        frame.extend((part as u32).to_le_bytes()); // at most 2 MiB
    }
    frame.extend(text);
    frame.extend(bytes);
    to.write_all(&frame)
}

/// Receives a frame. `from` waits as long as it likes.
///
/// # Errors
/// The system's; [`io::ErrorKind::UnexpectedEof`] where the other side has closed; [`io::ErrorKind::InvalidData`] for what is no frame.
pub(crate) fn receive<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<(T, Vec<u8>)> {
    let mut lengths = [0; 8];
    from.read_exact(&mut lengths)?;
    let [text, bytes] = [&lengths[..4], &lengths[4..]].map(|part| {
        // Both halves have four bytes.
        part.try_into().map_or(usize::MAX, |part| u32::from_le_bytes(part) as usize)
    });
    if text > MOST_TEXT || bytes > MOST_BYTES {
        return Err(invalid(format!("a frame of {text} and {bytes} bytes")));
    }
    let none = |_| io::Error::from(io::ErrorKind::OutOfMemory);
    let mut texts = reserve::zeros("a message", text).map_err(none)?;
    from.read_exact(&mut texts)?;
    let mut payload = reserve::zeros("a message", bytes).map_err(none)?;
    from.read_exact(&mut payload)?;
    let parsed = serde_json::from_slice(&texts).map_err(|error| invalid(error.to_string()))?;
    Ok((parsed, payload))
}

/// What both sides send first.
pub(crate) fn introduction() -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..].copy_from_slice(&VERSION.to_le_bytes());
    bytes
}

/// The version that an introduction names; `None` if it is of something else.
pub(crate) fn version_of(introduction: [u8; 12]) -> Option<u32> {
    let [magic @ .., a, b, c, d] = introduction;
    (magic == MAGIC).then_some(u32::from_le_bytes([a, b, c, d]))
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn frames_arrive_as_they_were_sent() {
        let mut sent = Vec::new();
        let message = Message::Write { buffer: 3, offset: usize::MAX };
        send(&mut sent, &message, &[1, 2, 3]).unwrap();
        let (received, bytes) = receive::<Message>(&mut sent.as_slice()).unwrap();
        assert_eq!((&received, bytes), (&message, vec![1, 2, 3]));
        for end in 0..sent.len() {
            assert!(receive::<Message>(&mut &sent[..end]).is_err());
        }
        sent[3] = 0xFF;
        let refused = receive::<Message>(&mut sent.as_slice()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        assert!(send(&mut Vec::new(), &message, &[0; MOST_BYTES + 1]).is_err());
    }

    #[test]
    fn an_introduction_has_a_version() {
        assert_eq!(version_of(introduction()), Some(VERSION));
        assert_eq!(version_of(*b"pinhole\n\x02\0\0\0"), Some(2));
        assert_eq!(version_of(*b"HTTP/1.1 400"), None);
    }
}
