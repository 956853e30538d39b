//! Ten thousand at once, none of whom behaves.

use std::io::Write;
use std::net::TcpStream;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

use crate::rig::{JSON, Served, quick};

/// One crowd at a time: this process has files for one.
static ONE: Mutex<()> = Mutex::new(());

/// As many connections as there are to be, and as this process and the server may each have files for.
fn crowd() -> usize {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    // Other tests have connections of their own, and the server has other files.
    let room = maximum.unwrap_or(u64::MAX).saturating_sub(500);
    room.min(10_000) as usize
}

/// Begins something, and never ends it: a head, reading an answer, or a body, most of them.
fn begin(served: &Served, number: usize) -> TcpStream {
    let host = served.address;
    let text = match number % 10 {
        0 => format!("GET /health HTTP/1.1\r\nhost: {host}\r\nx-slow: "),
        // Some ask for more than the system takes while no one reads.
        1 => {
            let times = if number % 1000 == 1 { 400 } else { 1 };
            format!("GET /openapi.json HTTP/1.1\r\nhost: {host}\r\n\r\n").repeat(times)
        }
        _ => format!(
            "POST /v1/jobs HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: 9999\r\n\r\n{{"
        ),
    };
    let mut stream = served.connect();
    // Who is let go has nothing to say any more.
    let _ = stream.write_all(text.as_bytes());
    stream
}

#[test]
fn ten_thousand_slow_clients_do_not_keep_others_waiting() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let crowd = crowd();
    let served = Served::start(&["--max-connections", &(crowd + 20).to_string()]);
    assert_eq!(served.post("/v1/jobs?wait=true", &quick(1)).status, 200);
    let before = served.resident();
    let open: Vec<TcpStream> = (0..crowd).map(|number| begin(&served, number)).collect();
    served.until(|served| served.metric("pinhole_connections") > crowd as f64 * 0.75);
    for seed in 2..5 {
        let begun = Instant::now();
        assert_eq!(served.post("/v1/jobs?wait=true", &quick(seed)).status, 200);
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    }
    let each = served.resident().saturating_sub(before) / crowd;
    assert!(each < 160 << 10, "{each} bytes for each of {crowd}");
    // Heads that do not end are let go, and so is who has been answered and says nothing more; bodies have a minute.
    served.until(|served| served.metric("pinhole_connections") < crowd as f64 * 0.85);
    assert_eq!(served.metric("pinhole_connections_refused_total"), 0.0);
    drop(open);
}

#[test]
fn more_than_there_is_room_for_are_told_so_and_the_server_goes_on() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let crowd = crowd();
    let served = Served::start(&["--max-connections", "100"]);
    let open: Vec<TcpStream> = (0..crowd).map(|_| served.connect()).collect();
    served.until(|served| served.get("/health").status == 200);
    // Those that say nothing make room for some of the others after a while.
    let refused = served.metric("pinhole_connections_refused_total");
    assert!(refused >= crowd as f64 * 0.5, "{refused} of {crowd}");
    assert_eq!(served.post("/v1/jobs?wait=true", &quick(1)).status, 200);
    drop(open);
}

#[test]
fn bombs_of_json_take_little_more_memory_than_they_have_bytes() {
    const BYTES: usize = 30 << 20;
    let served = Served::start(&["--max-body", "32M"]);
    assert_eq!(served.post("/v1/jobs?wait=true", &quick(1)).status, 200);
    let before = served.highest();
    for (path, head, item, tail) in [
        ("/v1/jobs", r#"{"prompt": "", "references": ["#, r#""","#, r#"""]}"#),
        ("/v1/jobs", r#"{"prompt": "", "loras": ["#, r#"{"name":""},"#, r#"{"name":""}]}"#),
        ("/sdapi/v1/txt2img", r#"{"steps": 1000, "alwayson_scripts": ["#, "0,", "0]}"),
        ("/sdapi/v1/txt2img", r#"{"steps": 1000, "override_settings": {"x": ["#, "0,", "0]}}"),
        ("/sdapi/v1/img2img", r#"{"init_images": ["#, r#""","#, r#"""]}"#),
        ("/sdapi/v1/options", r#"{"sd_model_checkpoint": "none", "x": ["#, "0,", "0]}"),
        ("/v1/images/generations", r#"{"steps": 1000, "style": ["#, "0,", "0]}"),
    ] {
        let body = [head, &item.repeat(BYTES / item.len()), tail].concat();
        let answer = served.ask("POST", path, JSON, body.as_bytes());
        assert!([400, 404].contains(&answer.status), "{path}: {} {}", answer.status, answer.text());
    }
    // The bytes of a body come in pieces first, and are put together then.
    let grown = served.highest().saturating_sub(before);
    assert!(grown < 3 * BYTES, "{grown} bytes more");
    assert_eq!(served.post("/v1/jobs", &json!({ "references": vec![""; 65] })).status, 400);
}
