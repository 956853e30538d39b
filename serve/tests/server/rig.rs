//! A server in a process of its own, and a client that does what no proper client would.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A server that runs.
pub(crate) struct Served {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program with `arguments`, on a port that is free.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pinhole-serve"));
    command.args(["--listen", "127.0.0.1:0"]).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

impl Served {
    /// A server of `mini` with more `arguments`, once it takes jobs.
    pub(crate) fn start(arguments: &[&str]) -> Served {
        Served::start_with(&[&["-m", "mini"], arguments].concat())
    }

    /// The same with these arguments alone.
    pub(crate) fn start_with(arguments: &[&str]) -> Served {
        Served::of(&mut command(arguments))
    }

    /// The same of a command, whose stderr is piped.
    pub(crate) fn of(command: &mut Command) -> Served {
        // From here on whatever fails ends the process, too.
        let mut served = Served { child: command.spawn().unwrap(), address: ([127, 0, 0, 1], 0).into() };
        let stderr = BufReader::new(served.child.stderr.take().unwrap());
        let (found, address) = mpsc::channel();
        // Reads on, so that the log never stops the server.
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if let Some((_, address)) = line.split_once("listening on http://") {
                    let _ = found.send(address.split(" ").next().unwrap_or_default().to_owned());
                }
            }
        });
        let address = address.recv_timeout(PATIENCE).expect("the server says where it listens");
        served.address = address.parse().unwrap();
        served.until(|served| served.get("/ready").status == 200);
        served
    }

    /// Waits until `holds`.
    #[track_caller]
    pub(crate) fn until(&self, holds: impl Fn(&Served) -> bool) {
        let begun = Instant::now();
        while !holds(self) {
            assert!(begun.elapsed() < PATIENCE, "it takes too long");
            thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends a request and returns the connection that its answer will come on.
    pub(crate) fn begin(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> TcpStream {
        let mut stream = self.connect();
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", self.address);
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() {
            head += &format!("content-length: {}\r\n", body.len());
        }
        // A server that refuses a body need not read it.
        let _ = stream.write_all((head + "\r\n").as_bytes()).and_then(|()| stream.write_all(body));
        stream
    }

    pub(crate) fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        Answer::read(self.begin(method, path, headers, body))
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], b"")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, JSON, body.to_string().as_bytes())
    }

    /// Sends a job that is accepted, and returns its id.
    #[track_caller]
    pub(crate) fn submit(&self, drawing: &Value) -> String {
        let answer = self.post("/v1/jobs", drawing);
        assert_eq!(answer.status, 202, "{}", answer.text());
        answer.json()["id"].as_str().unwrap().to_owned()
    }

    pub(crate) fn job(&self, id: &str) -> Value {
        self.get(&format!("/v1/jobs/{id}")).json()
    }

    /// The job once it has ended.
    #[track_caller]
    pub(crate) fn end_of(&self, id: &str) -> Value {
        self.until(|served| {
            ["done", "failed", "cancelled"].contains(&served.job(id)["status"].as_str().unwrap_or("?"))
        });
        self.job(id)
    }

    /// The job once it is drawn.
    #[track_caller]
    pub(crate) fn until_running(&self, id: &str) {
        self.until(|served| served.job(id)["status"] == "running" && served.job(id)["step"].as_u64() > Some(0));
    }

    /// A metric with its labels, as it is written; 0 if it is not there.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |number| number.parse().unwrap())
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for the end of the process.
    pub(crate) fn wait(mut self) -> Option<i32> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

pub(crate) const JSON: &[(&str, &str)] = &[("content-type", "application/json")];

/// An answer that was read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn read(mut stream: TcpStream) -> Answer {
        let mut bytes = Vec::new();
        // What came before the connection broke counts.
        let _ = stream.read_to_end(&mut bytes);
        let at = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or(bytes.len());
        let head = String::from_utf8_lossy(&bytes[..at]).to_lowercase();
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        let body = bytes.get(at + 4..).unwrap_or_default();
        let is_chunked = head.contains("transfer-encoding: chunked");
        Answer { status, body: if is_chunked { unchunked(body) } else { body.to_vec() }, head }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{} {}", self.head, self.text()))
    }
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|window| window == b"\r\n") {
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap_or("0").trim(), 16).unwrap_or(0);
        let Some(chunk) = rest.get(end + 2..end + 2 + length).filter(|chunk| !chunk.is_empty()) else { break };
        body.extend_from_slice(chunk);
        rest = rest.get(end + 4 + length..).unwrap_or_default();
    }
    body
}

/// A job that is drawn at once.
pub(crate) fn quick(seed: u64) -> Value {
    json!({ "prompt": "a red heart", "width": 64, "height": 64, "steps": 2, "seed": seed })
}

/// A job that takes many seconds.
pub(crate) fn slow(seed: u64) -> Value {
    json!({ "prompt": "a red heart", "width": 128, "height": 128, "steps": 150, "seed": seed })
}

/// The pixels of a PNG.
#[track_caller]
pub(crate) fn pixels(png: &[u8]) -> pinhole::image::Image {
    pinhole::image::Image::read_png(std::io::Cursor::new(png), "answer.png".as_ref()).unwrap()
}
