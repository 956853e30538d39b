//! `pinhole rpc-server` and those who use it, as processes: a server that is killed, and what both say.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::{fs, thread, time};

use super::run::Workplace;

/// A server, which is killed in the end.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start() -> Server {
        let mut child = Command::new(env!("CARGO_BIN_EXE_pinhole"))
            .args(["rpc-server", "--bind", "127.0.0.1:0", "--vram", "1G", "--device", "cpu:discrete", "--threads", "1"])
            .args(["--json", "--quiet"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut report, mut lines) = (String::new(), BufReader::new(child.stdout.take().unwrap()).lines());
        let report: serde_json::Value = loop {
            report += &lines.next().unwrap().unwrap();
            if let Ok(report) = serde_json::from_str(&report) {
                break report;
            }
        };
        assert_eq!((&report["device"], &report["vram_bytes"]), (&"cpu:discrete".into(), &(1u64 << 30).into()));
        Server { child, address: report["address"].as_str().unwrap().to_owned() }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_server_is_looked_at_and_drawn_with() {
    let (place, server) = (Workplace::new(), Server::start());
    let device = format!("rpc:{}", server.address);
    let report = place.json(&["devices", "--device", &device]);
    let row = &report["devices"][0];
    assert_eq!((&row["name"], &row["memory_total_bytes"]), (&device.as_str().into(), &(1u64 << 30).into()));
    assert!(row["round_trip_seconds"].as_f64().unwrap() > 0.0);
    let draw = |device: &str, name: &str| {
        let args = ["generate", "-m", "mini", "-p", "x", "--steps", "1", "--seed", "1", "--threads", "1"];
        let outcome = place.run(&[&args[..], &["--device", device, "-o", name]].concat());
        assert_eq!(outcome.code, 0, "{}", outcome.stderr);
        fs::read(place.path(name)).unwrap()
    };
    assert!(draw(&device, "far.png") == draw("cpu:discrete", "near.png"));
}

#[test]
fn a_server_that_is_killed_in_a_step_ends_the_command() {
    let (place, mut server) = (Workplace::new(), Server::start());
    let (device, preview) = (format!("rpc:{}", server.address), place.path("preview.png"));
    let mut drawing = Command::new(env!("CARGO_BIN_EXE_pinhole"))
        .args(["generate", "-m", "mini", "-p", "x", "--steps", "500", "-o", "out.png", "--device", &device])
        .arg("--preview")
        .arg(&preview)
        .current_dir(place.path(""))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while !preview.exists() {
        assert!(drawing.try_wait().unwrap().is_none());
        thread::sleep(time::Duration::from_millis(10));
    }
    server.kill();
    let output = drawing.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let expected = format!("error: device {device}: the server closed the connection in step ");
    assert!(said.contains(&expected) && said.contains("hint: see whether it still runs"), "{said}");
    let outcome = place.run(&["generate", "-m", "mini", "-p", "x", "--device", &device]);
    assert!(outcome.code == 1 && outcome.stderr.contains("cannot be reached"), "{}", outcome.stderr);
}

#[test]
fn what_is_not_lent_is_said() {
    let place = Workplace::new();
    let refused = |arguments: &[&str]| {
        let outcome = place.run(&[&["rpc-server", "--device", "cpu:discrete"], arguments].concat());
        assert_ne!(outcome.code, 0, "{arguments:?}");
        outcome.stderr
    };
    assert!(refused(&[]).contains("--vram"));
    assert!(refused(&["--vram", "0"]).contains("more than 0 bytes"));
    let open = refused(&["--vram", "1G", "--bind", "0.0.0.0:0"]);
    assert!(open.contains("private network") && open.contains("--allow-public-address"), "{open}");
    assert!(refused(&["--vram", "1G", "--bind", "nowhere"]).contains("ADDRESS:PORT"));
}
