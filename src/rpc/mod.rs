//! Lends a device to another machine: `pinhole rpc-server`.
//!
//! One client at a time is served; others are told so. What a client may ask for is in `ggml::remote::wire`; it is checked as what this
//! library's own models ask for, and whatever it allocates is within the server's budget, to the byte. The protocol has no secrets: who
//! reaches the server may use the device, and hears and changes whatever goes by. So a server is bound to addresses that the internet does
//! not know, unless it is told otherwise.
//!
//! | file | |
//! |---|---|
//! | `address.rs` | which addresses a server may have |
//! | `bench.rs` | a client's graphs and arenas, and the device that computes them |
//! | `desk.rs` | a client's messages, one after another |
//! | `lending.rs` | what is lent |
//! | `queue.rs` | computations that were asked for, which weights for others arrive beside |

mod address;
mod bench;
mod desk;
mod lending;
mod queue;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use crate::ggml::remote::wire::{self, Greeting, Served};
use crate::ggml::{CancelFlag, Ledger, Usage, alive};
use crate::{Error, Result};
pub use lending::Lending;
use lending::STACK;

/// How often a server without news looks for a client, and whether it should stop.
const TICK: Duration = Duration::from_millis(20);

/// How long a client may take to say what it is.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long one that is turned away may take to hear it.
const BRIEFLY: Duration = Duration::from_millis(200);

/// What happens to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Heard {
    /// A client is computed for.
    Came(SocketAddr),
    /// It is gone, and why, if that is not of its own will.
    Went(SocketAddr, Option<String>),
    /// A client was told that there is another one.
    TurnedAway(SocketAddr),
}

/// A server that has its address.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    lending: Lending,
    ledger: Ledger,
}

impl Server {
    /// Binds a server to `address`, an `ADDRESS:PORT`; with port 0 to any that is free. `public` allows addresses that the internet may know.
    ///
    /// # Errors
    /// [`Error::Option`] for an address that cannot be had, or is public and not allowed; [`Error::Device`] for a device of a third machine.
    pub fn bind(address: &str, public: bool, lending: Lending) -> Result<Server> {
        if lending.device.is_remote() {
            let name = lending.device.name();
            return Err(Error::option("--device", "a device of this machine", name));
        }
        let refused = |found: String| Error::option("--bind", "an ADDRESS:PORT of this machine", found);
        let addresses = address::resolved(address, public)?;
        let listener =
            TcpListener::bind(addresses.as_slice()).map_err(|error| refused(format!("{address}: {error}")))?;
        let bound = listener.local_addr().and_then(|own| listener.set_nonblocking(true).map(|()| own));
        let bound = bound.map_err(|error| refused(format!("{address}: {error}")))?;
        let ledger = Ledger::new();
        ledger.set_limit(Some(lending.vram));
        Ok(Server { listener, address: bound, lending, ledger })
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What its clients hold on the device, and held at most.
    pub fn usage(&self) -> Usage {
        self.ledger.usage()
    }

    /// Serves one client after another until `stop` is raised. `heard` is told of them.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where there is no thread to be had.
    pub fn run(&self, stop: &CancelFlag, heard: &(dyn Fn(Heard) + Sync)) -> Result<()> {
        thread::scope(|scope| {
            let mut current: Option<Client<'_>> = None;
            while !stop.is_raised() {
                current = current.filter(|client| !client.thread.is_finished());
                let (stream, peer) = match self.listener.accept() {
                    Ok(accepted) => accepted,
                    // None is there, or one that has gone again.
                    Err(_) => {
                        thread::sleep(TICK);
                        continue;
                    }
                };
                if let Some(client) = &current {
                    // Who does not listen is not told.
                    let _ = turn_away(stream, client.peer);
                    heard(Heard::TurnedAway(peer));
                    continue;
                }
                // Without it the client could not be ended.
                let Ok(ending) = stream.try_clone() else { continue };
                let client = thread::Builder::new().name("client".into()).stack_size(STACK);
                let client = client.spawn_scoped(scope, move || {
                    heard(Heard::Came(peer));
                    let why = self.serve(stream).err().filter(|error| error.kind() != ErrorKind::UnexpectedEof);
                    heard(Heard::Went(peer, why.map(|error| error.to_string())));
                });
                let thread = client.map_err(|_| Error::no_thread())?;
                current = Some(Client { peer, ending, thread });
            }
            if let Some(client) = current {
                // One that is gone is ended already.
                let _ = client.ending.shutdown(Shutdown::Both);
            }
            Ok(())
        })
    }

    /// Serves one client until it goes.
    fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        alive::keep(&stream);
        let mut introduction = [0; 12];
        stream.read_exact(&mut introduction)?;
        stream.write_all(&wire::introduction())?;
        match wire::version_of(introduction) {
            Some(wire::VERSION) => {}
            Some(other) => {
                let message = format!("it speaks version {other} of the protocol, and this pinhole {}", wire::VERSION);
                return Err(io::Error::other(message));
            }
            None => return Err(io::Error::other("it is no client of pinhole's")),
        }
        let Lending { device, .. } = self.lending;
        let overhead = device.overhead().map_err(io::Error::other)?;
        let served = Served {
            device: device.name(),
            description: device.description(),
            own_operations: device.runs_own_operations(),
            rounding: device.rounding(),
            alignment: device.alignment(),
            overhead,
        };
        wire::send(&mut stream, &Greeting::Ready(served), &[])?;
        stream.set_read_timeout(None)?;
        desk::serve(stream, &self.lending, &self.ledger)
    }
}

/// Who is computed for.
struct Client<'scope> {
    peer: SocketAddr,
    /// Ends it.
    ending: TcpStream,
    thread: thread::ScopedJoinHandle<'scope, ()>,
}

/// Tells a client that `other` is computed for.
fn turn_away(mut stream: TcpStream, other: SocketAddr) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(BRIEFLY))?;
    stream.set_read_timeout(Some(BRIEFLY))?;
    stream.write_all(&wire::introduction())?;
    wire::send(&mut stream, &Greeting::Busy { client: other.to_string() }, &[])?;
    // Closed with something unread, what was sent might not arrive.
    stream.read_exact(&mut [0; 12])
}
