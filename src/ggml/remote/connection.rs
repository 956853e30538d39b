//! A client's connection to a machine that computes for it.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::super::log::{self, Level};
use super::super::{CancelFlag, alive};
use super::wire::{self, Failure, Greeting, Message, Reply, Served};
use crate::{Error, Result};

/// How long a server may take to be reached, and to say what it is.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a server may be busy before that is an error.
const BUSY: Duration = Duration::from_secs(1);

/// How often one that waits looks whether it should go on.
const TICK: Duration = Duration::from_millis(50);

/// After how long without an answer that is said; after twice as long again, and so on. A stage may take that long on a slow device.
const SLOW: Duration = Duration::from_secs(30);

/// How many computations are asked for before the first of them is done: enough that the way there and back costs nothing, and few enough
/// that a stop is heard soon.
const AHEAD: usize = 8;

/// One connection. Used from several threads: messages go out one at a time, and their answers come in that order.
pub(crate) struct Connection {
    /// The device's name: `rpc:HOST:PORT`.
    name: String,
    served: Served,
    outgoing: Mutex<TcpStream>,
    incoming: Mutex<Incoming>,
    /// Why it is of no use any more.
    lost: OnceLock<String>,
    next: AtomicU64,
    /// See [`SLOW`].
    slow: Duration,
}

/// The answers.
struct Incoming {
    stream: TcpStream,
    /// Computations that were asked for and are not answered.
    computing: usize,
    /// Why one of them failed.
    failure: Option<Failure>,
    /// Whether they were asked to stop.
    stopping: bool,
}

impl Connection {
    /// Connects to `endpoint`, `HOST:PORT`, for the device `name`.
    ///
    /// # Errors
    /// [`Error::Device`] for a server that is not there, is another program, another version, or computes for somebody else.
    pub(super) fn open(name: &str, endpoint: &str) -> Result<Connection> {
        let begun = Instant::now();
        loop {
            let (stream, greeting) = greeted(name, endpoint)?;
            match greeting {
                Greeting::Ready(served) if served.alignment.is_power_of_two() => {
                    return Connection::over(stream, name, served).map_err(|error| silent(name, &error));
                }
                Greeting::Ready(_) => {
                    return Err(device_error(name, "the server's device makes no sense".into(), STRANGER));
                }
                // A client that has just gone may not be gone yet for the server.
                Greeting::Busy { .. } if begun.elapsed() < BUSY => thread::sleep(TICK),
                Greeting::Busy { client } => {
                    let message = format!("the server computes for another client, {client}");
                    return Err(device_error(name, message, "wait until that one is done, or start another server"));
                }
            }
        }
    }

    fn over(stream: TcpStream, name: &str, served: Served) -> io::Result<Connection> {
        stream.set_read_timeout(Some(TICK))?;
        let outgoing = Mutex::new(stream.try_clone()?);
        Ok(Connection {
            name: name.to_owned(),
            served,
            outgoing,
            incoming: Mutex::new(Incoming { stream, computing: 0, failure: None, stopping: false }),
            lost: OnceLock::new(),
            next: AtomicU64::new(1),
            slow: SLOW,
        })
    }

    /// The device there.
    pub(crate) fn served(&self) -> &Served {
        &self.served
    }

    /// A number for something new.
    pub(crate) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether it is of no use any more.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.get().is_some()
    }

    /// Sends what is not answered.
    ///
    /// # Errors
    /// [`Error::Device`] where the connection is lost.
    pub(crate) fn tell(&self, message: &Message, bytes: &[u8]) -> Result<()> {
        if let Some(why) = self.lost.get() {
            return Err(self.error(why.clone()));
        }
        let mut outgoing = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        wire::send(&mut *outgoing, message, bytes).map_err(|error| self.lose(&error))
    }

    /// Sends what is answered, and waits for the answer.
    ///
    /// # Errors
    /// [`Error::Device`] where the connection is lost; what the server says.
    pub(crate) fn ask(&self, message: &Message) -> Result<(Reply, Vec<u8>)> {
        let mut incoming = self.incoming();
        self.tell(message, &[])?;
        while incoming.computing > 0 {
            self.hear_computed(&mut incoming, None)?;
        }
        match self.hear(&mut incoming, None)? {
            (Reply::Failed(failure), _) => Err(self.failed(failure)),
            answer => Ok(answer),
        }
    }

    /// Sends all `messages`, and hands their answers to `take`, each with the number of its message.
    ///
    /// # Errors
    /// As [`ask`](Self::ask); the first of `take`.
    pub(crate) fn ask_each(
        &self,
        messages: &[Message],
        mut take: impl FnMut(usize, (Reply, Vec<u8>)) -> Result<()>,
    ) -> Result<()> {
        let mut incoming = self.incoming();
        for message in messages {
            self.tell(message, &[])?;
        }
        while incoming.computing > 0 {
            self.hear_computed(&mut incoming, None)?;
        }
        let mut first = Ok(());
        for number in 0..messages.len() {
            // Every answer is heard, or the next would be taken for another.
            let taken = match self.hear(&mut incoming, None)? {
                (Reply::Failed(failure), _) => Err(self.failed(failure)),
                answer => take(number, answer),
            };
            first = first.and(taken);
        }
        first
    }

    /// The same of what is answered with a number of bytes.
    pub(crate) fn ask_bytes(&self, message: &Message) -> Result<usize> {
        match self.ask(message)?.0 {
            Reply::Taken { bytes } => Ok(bytes),
            other => Err(self.senseless(&other)),
        }
    }

    /// The same of what is only said to be done.
    pub(crate) fn ask_done(&self, message: &Message) -> Result<()> {
        match self.ask(message)?.0 {
            Reply::Done => Ok(()),
            other => Err(self.senseless(&other)),
        }
    }

    /// Begins a computation. What becomes of it is seen in [`finish`](Self::finish), or before the next.
    ///
    /// # Errors
    /// [`Error::Device`] where the connection is lost; [`Error::Cancelled`] where `cancel` is raised; how a computation before it failed.
    pub(crate) fn begin(&self, graph: u64, arena: u64, cancel: &CancelFlag) -> Result<()> {
        let mut incoming = self.incoming();
        while incoming.computing >= AHEAD {
            self.hear_computed(&mut incoming, Some(cancel))?;
        }
        if incoming.failure.is_some() {
            drop(incoming);
            return self.finish(cancel);
        }
        self.tell(&Message::Compute { graph, arena }, &[])?;
        incoming.computing += 1;
        Ok(())
    }

    /// Waits for all computations.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub(crate) fn finish(&self, cancel: &CancelFlag) -> Result<()> {
        let mut incoming = self.incoming();
        while incoming.computing > 0 {
            self.hear_computed(&mut incoming, Some(cancel))?;
        }
        let (failure, stopping) = (incoming.failure.take(), std::mem::take(&mut incoming.stopping));
        drop(incoming);
        if failure.is_some() || stopping {
            // Who asks next is computed for again.
            self.ask_done(&Message::Settle)?;
        }
        failure.map_or(Ok(()), |failure| Err(self.failed(failure)))
    }

    fn incoming(&self) -> MutexGuard<'_, Incoming> {
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear_computed(&self, incoming: &mut Incoming, cancel: Option<&CancelFlag>) -> Result<()> {
        let (reply, _) = self.hear(incoming, cancel)?;
        incoming.computing -= 1;
        if let Reply::Failed(failure) = reply {
            incoming.failure.get_or_insert(failure);
        }
        Ok(())
    }

    fn hear(&self, incoming: &mut Incoming, cancel: Option<&CancelFlag>) -> Result<(Reply, Vec<u8>)> {
        let Incoming { stream, stopping, .. } = incoming;
        let (began, said) = (Instant::now(), self.slow);
        let mut waiting = Waiting { connection: self, stream, cancel, stopping, began, said };
        let heard = wire::receive(&mut waiting);
        heard.map_err(|error| self.lose(&error))
    }

    /// Notes that it is of no use any more.
    fn lose(&self, error: &io::Error) -> Error {
        let why = self.lost.get_or_init(|| ended(error));
        if let Ok(outgoing) = self.outgoing.try_lock() {
            // Who waits for an answer hears of it as well. If this fails, it is closed already.
            let _ = outgoing.shutdown(std::net::Shutdown::Both);
        }
        self.error(why.clone())
    }

    fn error(&self, why: String) -> Error {
        device_error(&self.name, why, "see whether it still runs; the next request connects anew")
    }

    fn failed(&self, failure: Failure) -> Error {
        match failure {
            Failure::Cancelled => Error::Cancelled,
            Failure::Memory { what, bytes } => Error::OutOfMemory {
                what: format!("{what} of {}", self.name),
                bytes,
                hint: Some("give its server a larger --vram, or this request a smaller one".into()),
            },
            Failure::Other { message } => Error::Device { device: self.name.clone(), message, hint: None },
        }
    }

    pub(crate) fn senseless(&self, reply: &Reply) -> Error {
        self.error(format!("the server's answer makes no sense here: {reply:?}"))
    }
}

/// A connection to `endpoint`, and what the server there says of itself.
fn greeted(name: &str, endpoint: &str) -> Result<(TcpStream, Greeting)> {
    let mut stream = reach(name, endpoint)?;
    let failed = |error: &io::Error| silent(name, error);
    stream.set_read_timeout(Some(PATIENCE)).map_err(|error| failed(&error))?;
    stream.write_all(&wire::introduction()).map_err(|error| failed(&error))?;
    let mut introduction = [0; 12];
    stream.read_exact(&mut introduction).map_err(|error| failed(&error))?;
    match wire::version_of(introduction) {
        Some(wire::VERSION) => {}
        Some(other) => {
            let own = wire::VERSION;
            let message = format!("the server speaks version {other} of the protocol, and this pinhole {own}");
            return Err(device_error(name, message, "use the same pinhole on both machines"));
        }
        None => return Err(device_error(name, "this is no pinhole rpc-server".into(), STRANGER)),
    }
    let (greeting, _) = wire::receive(&mut stream).map_err(|error| failed(&error))?;
    Ok((stream, greeting))
}

/// What a program that is no server of pinhole's may be.
const STRANGER: &str = "`pinhole rpc-server` is the other side; ggml's and llama.cpp's own rpc-server are not";

fn device_error(name: &str, message: String, hint: &str) -> Error {
    Error::Device { device: name.to_owned(), message, hint: Some(hint.to_owned()) }
}

/// Connects to one of the addresses of `endpoint`.
fn reach(name: &str, endpoint: &str) -> Result<TcpStream> {
    let hint = "start `pinhole rpc-server --bind ADDRESS:PORT` there";
    let addresses = endpoint.to_socket_addrs();
    let addresses =
        addresses.map_err(|error| device_error(name, format!("{endpoint} is no HOST:PORT: {error}"), hint))?;
    let mut why = "it has no address".to_owned();
    for address in addresses {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => {
                alive::keep(&stream);
                return Ok(stream);
            }
            Err(error) => why = error.to_string(),
        }
    }
    Err(device_error(name, format!("cannot be reached: {why}"), hint))
}

/// Why there is no connection to a server that was reached.
fn silent(name: &str, error: &io::Error) -> Error {
    let message = match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("the server has not said what it is for {} s", PATIENCE.as_secs())
        }
        io::ErrorKind::InvalidData => "what the server says of itself makes no sense".to_owned(),
        _ => ended(error),
    };
    device_error(name, message, STRANGER)
}

/// What became of a connection.
fn ended(error: &io::Error) -> String {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, InvalidData, UnexpectedEof};
    match error.kind() {
        UnexpectedEof | BrokenPipe | ConnectionReset | ConnectionAborted => {
            "the server closed the connection".to_owned()
        }
        InvalidData => format!("the server sent what makes no sense: {error}"),
        _ => format!("the connection failed: {error}"),
    }
}

/// Answers that may take a while.
struct Waiting<'a> {
    connection: &'a Connection,
    stream: &'a mut TcpStream,
    /// Whether what is waited for is to be stopped, and whether that was said.
    cancel: Option<&'a CancelFlag>,
    stopping: &'a mut bool,
    began: Instant,
    /// After how long it is said next that there was none.
    said: Duration,
}

impl Read for Waiting<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(out) {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    self.wait()?
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }
}

impl Waiting<'_> {
    fn wait(&mut self) -> io::Result<()> {
        if self.cancel.is_some_and(CancelFlag::is_raised) && !*self.stopping {
            *self.stopping = true;
            self.connection.tell(&Message::Cancel, &[]).map_err(io::Error::other)?;
        }
        if self.began.elapsed() >= self.said {
            let seconds = self.said.as_secs();
            log::say(Level::Warning, &format!("{} has not answered for {seconds} s: waiting", self.connection.name));
            self.said *= 2;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::TcpListener;
    use std::sync::{Arc, mpsc};

    use super::*;

    /// A server that answers once its client has said that it waits: else this would not end.
    #[test]
    fn a_slow_server_is_waited_for_with_a_message() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, (said, hears)) = (listener.local_addr().unwrap(), mpsc::channel::<()>());
        thread::scope(|scope| {
            scope.spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                stream.read_exact(&mut [0; 12]).unwrap();
                stream.write_all(&wire::introduction()).unwrap();
                let served = Served { alignment: 32, ..Served::default() };
                wire::send(&mut stream, &Greeting::Ready(served), &[]).unwrap();
                wire::receive::<Message>(&mut stream).unwrap();
                hears.recv().unwrap();
                wire::send(&mut stream, &Reply::Done, &[]).unwrap();
            });
            let mut connection = Connection::open("rpc:slow", &address.to_string()).unwrap();
            connection.slow = Duration::ZERO;
            log::set_hook(Some(Arc::new(move |_, message| {
                if message.starts_with("rpc:slow has not answered") {
                    // It may have been said before.
                    let _ = said.send(());
                }
            })));
            connection.ask_done(&Message::Settle).unwrap();
            log::set_hook(None);
        });
    }
}
