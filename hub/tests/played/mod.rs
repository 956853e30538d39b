//! A server on this machine that plays a hub, and a second one that plays the host its redirects lead to.

#![allow(dead_code, clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The commit that `main` is at.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What a server does in the place of an answer.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// A status, with headers.
    Status(u16, Vec<(&'static str, String)>),
    /// The body breaks off after so many bytes.
    Cut(usize),
    /// A page for browsers, with status 200.
    Page,
    /// Other bytes than those of the file.
    Wrong,
    /// The whole file in the place of a range.
    Whole,
    /// A body without a length.
    Unsized,
    /// Another range than the one that is asked for.
    OtherRange,
    /// Any body.
    Body(&'static str, Vec<u8>),
}

/// A request, as it came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Whether it came to the second host.
    pub(crate) elsewhere: bool,
    pub(crate) path: String,
    pub(crate) headers: HashMap<String, String>,
}

/// Decides whether something goes wrong: by the request, and by how many came before it.
type Choose = Box<dyn Fn(&Asked, usize) -> Option<Fault> + Send + Sync>;

/// A file of the hub.
pub(crate) struct Played {
    pub(crate) repository: String,
    pub(crate) path: String,
    pub(crate) content: Vec<u8>,
    /// Whether it is large: known by SHA-256, and given by the second host.
    pub(crate) is_large: bool,
}

/// A file with what is asked about it often.
struct Held {
    file: Played,
    sha256: String,
    digits: String,
}

struct State {
    files: Vec<Held>,
    faults: Mutex<Option<Choose>>,
    asked: Mutex<Vec<Asked>>,
    /// Bytes in a second, over all connections together.
    speed: Mutex<Option<u64>>,
    /// When the next piece may go.
    next: Mutex<Instant>,
    elsewhere: Mutex<String>,
}

/// The two servers. They end with the process.
pub(crate) struct Hub {
    /// The hub's address.
    pub(crate) url: String,
    /// The second host's.
    pub(crate) elsewhere: String,
    state: Arc<State>,
}

/// A file with the path `path`, of `size` bytes that only it has.
pub(crate) fn file(repository: &str, path: &str, size: usize, is_large: bool) -> Played {
    let mut seed = path.bytes().fold(size as u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    let mut content = Vec::with_capacity(size);
    for _ in 0..size {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        content.push((seed >> 56) as u8);
    }
    Played { repository: repository.into(), path: path.into(), content, is_large }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Played {
    pub(crate) fn sha256(&self) -> String {
        hex(&Sha256::digest(&self.content))
    }

    /// What names its blob.
    pub(crate) fn digits(&self) -> String {
        if self.is_large {
            return self.sha256();
        }
        let mut hasher = Sha1::new();
        hasher.update(format!("blob {}\0", self.content.len()));
        hasher.update(&self.content);
        hex(&hasher.finalize())
    }
}

impl Hub {
    pub(crate) fn new(files: Vec<Played>) -> Hub {
        let mut held = Vec::new();
        for file in files {
            held.push(Held { sha256: file.sha256(), digits: file.digits(), file });
        }
        let state = Arc::new(State {
            files: held,
            faults: Mutex::new(None),
            asked: Mutex::default(),
            speed: Mutex::default(),
            next: Mutex::new(Instant::now()),
            elsewhere: Mutex::default(),
        });
        let elsewhere = serve(Arc::clone(&state), true);
        *state.elsewhere.lock().unwrap() = elsewhere.clone();
        Hub { url: serve(Arc::clone(&state), false), elsewhere, state }
    }

    /// From now on, things go wrong as `choose` says.
    pub(crate) fn fail(&self, choose: impl Fn(&Asked, usize) -> Option<Fault> + Send + Sync + 'static) {
        *self.state.faults.lock().unwrap() = Some(Box::new(choose));
        self.state.asked.lock().unwrap().clear();
    }

    /// From now on, nothing does.
    pub(crate) fn mend(&self) {
        *self.state.faults.lock().unwrap() = None;
        self.state.asked.lock().unwrap().clear();
    }

    /// From now on, no more bytes come in a second.
    pub(crate) fn slow(&self, speed: Option<u64>) {
        *self.state.speed.lock().unwrap() = speed;
    }

    /// What was asked for since the last change of faults.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state.asked.lock().unwrap().clone()
    }
}

/// Listens on a port of its own, and gives its address.
fn serve(state: Arc<State>, elsewhere: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(stream), state) = (stream, Arc::clone(&state)) else { continue };
            thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut stream = stream;
                // A client that is killed breaks the connection off.
                while answer(&state, elsewhere, &mut reader, &mut stream).is_some() {}
            });
        }
    });
    address
}

/// Answers one request; `None` when the connection ends.
fn answer(state: &State, elsewhere: bool, reader: &mut BufReader<TcpStream>, stream: &mut TcpStream) -> Option<()> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|&count| count > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|&count| count > 0)?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let asked = Asked { elsewhere, path, headers };
    let before = {
        let mut all = state.asked.lock().unwrap();
        all.push(asked.clone());
        all.len() - 1
    };
    let fault = state.faults.lock().unwrap().as_ref().and_then(|choose| choose(&asked, before));
    match (&fault, route(state, &asked)) {
        (Some(Fault::Status(status, headers)), _) => send(state, stream, *status, headers, b"", None),
        (Some(Fault::Page), _) => page(state, stream),
        (Some(Fault::Body(kind, body)), _) => send(state, stream, 200, &[("Content-Type", (*kind).into())], body, None),
        (_, Route::File(held)) => give(state, stream, &asked, held, fault.as_ref()),
        (_, Route::Answer(status, headers, body)) => send(state, stream, status, &headers, &body, None),
    }
}

enum Route<'a> {
    File(&'a Held),
    Answer(u16, Vec<(&'static str, String)>, Vec<u8>),
}

fn route<'a>(state: &'a State, asked: &Asked) -> Route<'a> {
    let path = asked.path.split('?').next().unwrap();
    let json = |text: String| Route::Answer(200, vec![("Content-Type", "application/json".into())], text.into_bytes());
    let missing = |code: &str| Route::Answer(404, vec![("X-Error-Code", code.into())], Vec::new());
    let of =
        |repository: &str| state.files.iter().filter(|held| held.file.repository == repository).collect::<Vec<_>>();
    if let Some(rest) = path.strip_prefix("/api/models/") {
        let steps: Vec<&str> = rest.split('/').collect();
        let [owner, name, what, revision] = steps[..] else { return missing("RepoNotFound") };
        let files = of(&format!("{owner}/{name}"));
        return match what {
            _ if files.is_empty() => missing("RepoNotFound"),
            _ if revision != "main" && revision != COMMIT => missing("RevisionNotFound"),
            "revision" => json(format!("{{\"sha\": \"{COMMIT}\"}}")),
            _ => json(tree(&files)),
        };
    }
    if let Some(rest) = path.strip_prefix("/api/v1/models/") {
        let id = rest.trim_end_matches("/repo/files");
        let mut entries = Vec::new();
        for Held { file, sha256, .. } in of(id) {
            let (path, size) = (&file.path, file.content.len());
            entries.push(format!(r#"{{"Path": "{path}", "Type": "blob", "Size": {size}, "Sha256": "{sha256}"}}"#));
        }
        return json(format!(r#"{{"Code": 200, "Data": {{"Files": [{}]}}, "Success": true}}"#, entries.join(", ")));
    }
    let path = path.strip_prefix("/models").unwrap_or(path);
    if let Some(plain) = path.strip_prefix("/plain/") {
        let found = state.files.iter().find(|held| held.file.path == plain);
        return found.map_or(missing(""), Route::File);
    }
    let steps: Vec<&str> = path.trim_start_matches('/').splitn(5, '/').collect();
    let [owner, name, "resolve", _, inner] = steps[..] else { return missing("") };
    let files = of(&format!("{owner}/{name}"));
    let Some(held) = files.into_iter().find(|held| held.file.path == inner) else { return missing("EntryNotFound") };
    if held.file.is_large && !asked.elsewhere {
        let to = format!("{}{}?signature=x", state.elsewhere.lock().unwrap(), asked.path);
        return Route::Answer(302, vec![("Location", to)], Vec::new());
    }
    Route::File(held)
}

fn tree(files: &[&Held]) -> String {
    let mut entries = Vec::new();
    for Held { file, sha256, digits } in files {
        let (path, size) = (&file.path, file.content.len());
        entries.push(match file.is_large {
            true => format!(
                r#"{{"type": "file", "oid": "{}", "size": {size}, "path": "{path}", "lfs": {{"oid": "{sha256}", "size": {size}, "pointerSize": 135}}}}"#,
                "0".repeat(40)
            ),
            false => format!(r#"{{"type": "file", "oid": "{digits}", "size": {size}, "path": "{path}"}}"#),
        });
    }
    format!("[{}]", entries.join(", "))
}

/// Gives a file, or the range of it that is asked for.
fn give(state: &State, stream: &mut TcpStream, asked: &Asked, held: &Held, fault: Option<&Fault>) -> Option<()> {
    let mut wrong;
    let mut content = held.file.content.as_slice();
    if matches!(fault, Some(Fault::Wrong)) {
        wrong = content.to_vec();
        wrong.iter_mut().for_each(|byte| *byte ^= 0x55);
        content = &wrong;
    }
    let kind = ("Content-Type", "application/octet-stream".to_owned());
    let tag = ("ETag", format!("\"{}\"", held.sha256));
    let range = asked.headers.get("range").and_then(|range| range.strip_prefix("bytes="));
    let is_same = asked.headers.get("if-range").is_none_or(|version| *version == tag.1);
    let cut = if let Some(Fault::Cut(after)) = fault { Some(*after) } else { None };
    match range.filter(|_| is_same && !matches!(fault, Some(Fault::Whole | Fault::Unsized))) {
        None if matches!(fault, Some(Fault::Unsized)) => {
            let head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
            stream.write_all(head).and_then(|()| stream.write_all(content)).ok()?;
            None
        }
        None => send(state, stream, 200, &[kind, tag], content, cut),
        Some(range) => {
            let (from, to) = range.split_once('-').unwrap();
            let (from, to): (usize, usize) =
                (from.parse().unwrap(), to.parse::<usize>().unwrap().min(content.len() - 1));
            let said = if matches!(fault, Some(Fault::OtherRange)) { from + 1 } else { from };
            let range = ("Content-Range", format!("bytes {said}-{to}/{}", content.len()));
            send(state, stream, 206, &[kind, tag, range], &content[from..=to], cut)
        }
    }
}

fn page(state: &State, stream: &mut TcpStream) -> Option<()> {
    send(
        state,
        stream,
        200,
        &[("Content-Type", "text/html".into())],
        b"<!DOCTYPE html><html>Please log in</html>",
        None,
    )
}

/// Sends an answer, as slowly as is asked for; with `cut`, the connection ends after so many bytes of the body.
fn send(
    state: &State,
    stream: &mut TcpStream,
    status: u16,
    headers: &[(&'static str, String)],
    body: &[u8],
    cut: Option<usize>,
) -> Option<()> {
    let mut head = format!("HTTP/1.1 {status} Played\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
    let body = &body[..cut.unwrap_or(body.len()).min(body.len())];
    for piece in body.chunks(64 << 10) {
        if let Some(speed) = *state.speed.lock().unwrap() {
            let due = {
                let mut next = state.next.lock().unwrap();
                *next = (*next).max(Instant::now()) + Duration::from_secs_f64(piece.len() as f64 / speed as f64);
                *next
            };
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        stream.write_all(piece).ok()?;
    }
    stream.flush().ok()?;
    if cut.is_some() { None } else { Some(()) }
}
