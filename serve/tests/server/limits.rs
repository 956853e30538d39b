//! What clients may not do: everything is bounded, and no name leads anywhere.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::rig::{Answer, JSON, Served, quick, slow};

#[test]
fn refusals_of_a_full_queue_are_exact() {
    let served = Served::start(&["--queue-length", "5", "--queue-per-key", "5", "--coalesce", "1"]);
    let drawn = served.submit(&slow(0));
    served.until_running(&drawn);
    let answers: Vec<Answer> = (1..=12).map(|seed| served.post("/v1/jobs", &slow(seed))).collect();
    let codes: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(codes, [vec![202; 5], vec![429; 7]].concat());
    assert!(answers[5].head.contains("retry-after:"), "{}", answers[5].head);
    assert_eq!(answers[5].json()["error"]["type"], "queue_full");
    assert_eq!(served.metric("pinhole_jobs_refused_total{why=\"queue_full\"}"), 7.0);
    assert_eq!((served.metric("pinhole_jobs_accepted_total"), served.metric("pinhole_queue_length")), (6.0, 5.0));
}

#[test]
fn one_address_gets_its_share_of_the_queue() {
    let served = Served::start(&["--queue-length", "9", "--queue-per-key", "2", "--coalesce", "1"]);
    let drawn = served.submit(&slow(0));
    served.until_running(&drawn);
    let codes: Vec<u16> = (1..=4).map(|seed| served.post("/v1/jobs", &quick(seed)).status).collect();
    assert_eq!(codes, [202, 202, 429, 429]);
}

#[test]
fn bodies_that_are_too_large_or_too_deep_are_refused() {
    let served = Served::start(&["--max-body", "1M"]);
    // 200 MB are announced, and not read.
    let head = format!(
        "POST /v1/jobs HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: 200000000\r\n\r\n",
        served.address
    );
    let mut stream = served.connect();
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
    // In chunks no one announces anything.
    let mut stream = served.connect();
    let head = head.replace("content-length: 200000000", "transfer-encoding: chunked\r\nconnection: close");
    stream.write_all(head.as_bytes()).unwrap();
    let chunk = [b"10000\r\n".to_vec(), vec![b' '; 0x10000], b"\r\n".to_vec()].concat();
    let mut sent = 0;
    while sent < 200_000_000 && stream.write_all(&chunk).is_ok() {
        sent += chunk.len();
    }
    assert!(sent < 100_000_000, "{sent} bytes were taken");
    let deep = "[".repeat(500_000);
    let many = format!("{{\"loras\": [{}]}}", vec!["{\"name\": \"x\"}"; 60_000].join(","));
    let wide = format!("{{\"prompt\": \"\", \"unknown\": [{}0]}}", "0,".repeat(400_000));
    let number = "{\"width\": 1e999999999}";
    for body in [deep.as_str(), "{\"prompt\": 1}", "null", "\"\"", "{\"prompt\": \"\\ud800\"}", "{", "\0"] {
        for path in ["/v1/jobs", "/v1/plan", "/v1/images/generations", "/sdapi/v1/txt2img", "/sdapi/v1/img2img"] {
            let answer = served.ask("POST", path, JSON, body.as_bytes());
            assert_eq!(answer.status, 400, "{path}: {}", answer.text());
        }
    }
    // The native interface knows all members that there are.
    for body in [many.as_str(), &wide, number] {
        assert_eq!(served.ask("POST", "/v1/jobs", JSON, body.as_bytes()).status, 400);
    }
    assert_eq!(served.ask("POST", "/v1/jobs", &[("content-type", "text/plain")], b"{}").status, 415);
    let prompt = json!({ "prompt": "a".repeat(1_000_000) });
    assert_eq!(served.post("/v1/jobs", &prompt).json()["error"]["param"], "prompt");
    assert_eq!(served.get("/health").status, 200);
}

#[test]
fn no_name_leads_to_a_file_and_nothing_is_fetched() {
    let served = Served::start(&[]);
    for path in [
        "/../../etc/passwd",
        "/v1/files/../../etc/passwd",
        "/v1/files/%2e%2e%2f%2e%2e%2fetc/passwd",
        "/v1/files/00000000-0000-0000-0000-000000000000/0.png",
        "/v1/files/00000000-0000-0000-0000-000000000000/..%2f..%2fetc%2fpasswd",
        "/v1/jobs/..%2f..%2fetc%2fpasswd",
        "/v1/jobs/not-an-id/events",
        "/v1/models/..%2fmini",
        "/nothing",
    ] {
        let answer = served.get(path);
        assert_eq!((answer.status, answer.json()["error"]["type"].as_str()), (404, Some("not_found")), "{path}");
    }
    for drawing in [
        json!({ "model": "../models/mini" }),
        json!({ "model": "/etc/passwd" }),
        json!({ "loras": [{ "name": "/etc/passwd" }] }),
    ] {
        assert_eq!(served.post("/v1/jobs", &drawing).status, 404, "{drawing}");
    }
    // Somebody listens who would notice.
    let inside = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    inside.set_nonblocking(true).unwrap();
    let url = format!("http://{}/picture.png", inside.local_addr().unwrap());
    for name in ["image", "mask"] {
        let refused = served.post("/v1/jobs", &json!({ "prompt": "", (name): url }));
        assert_eq!((refused.status, refused.json()["error"]["param"].as_str()), (400, Some(name)));
    }
    let refused = served.post("/sdapi/v1/img2img", &json!({ "init_images": [url] }));
    assert_eq!(refused.status, 400);
    assert!(inside.accept().is_err(), "something was fetched");
    assert_eq!(served.get("/v1/jobs").json(), json!([]));
}

#[test]
fn limits_of_pictures_hold() {
    let served =
        Served::start(&["--max-pixels", "20000", "--max-batch", "3", "--max-steps", "10", "--max-input-pixels", "100"]);
    let refused = |drawing: serde_json::Value| {
        let answer = served.post("/v1/jobs", &drawing);
        assert_eq!(answer.status, 400, "{}", answer.text());
        answer.json()["error"]["param"].as_str().unwrap().to_owned()
    };
    assert_eq!(refused(json!({ "width": 160, "height": 128 })), "width");
    assert_eq!(refused(json!({ "width": 64, "height": 64, "batch": 4 })), "batch");
    assert_eq!(refused(json!({ "width": 128, "height": 128, "batch": 2 })), "width");
    assert_eq!(refused(json!({ "steps": 11 })), "steps");
    assert_eq!(refused(json!({ "width": 65 })), "width");
    assert_eq!(refused(json!({ "width": 18446744073709551615u64 })), "width");
    let image = pinhole::image::Image::new(11, 10, vec![0; 330]).unwrap();
    let mut png = Vec::new();
    image.write_png(&mut png, &[]).unwrap();
    assert_eq!(refused(json!({ "image": base64::encode(png) })), "image");
}

#[test]
fn pictures_of_jobs_that_wait_have_their_room() {
    // Room for sixteen of the largest pictures, which are a few kilobytes each as PNGs.
    let served = Served::start(&["--queue-length", "40", "--queue-per-key", "40", "--coalesce", "1"]);
    let drawn = served.submit(&slow(0));
    served.until_running(&drawn);
    let image = pinhole::image::Image::new(4096, 4096, vec![9; 3 << 24]).unwrap();
    let mut png = Vec::new();
    image.write_png(&mut png, &[]).unwrap();
    let mut drawing = quick(1);
    drawing["image"] = json!(base64::encode(png));
    let answers: Vec<Answer> = (0..18).map(|_| served.post("/v1/jobs", &drawing)).collect();
    let codes: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(codes, [vec![202; 16], vec![429; 2]].concat());
    assert_eq!(answers[16].json()["error"]["type"], "pictures_full");
    // Who is stopped makes room.
    let first = answers[0].json()["id"].as_str().unwrap().to_owned();
    assert_eq!(served.ask("DELETE", &format!("/v1/jobs/{first}"), &[], b"").status, 202);
    assert_eq!(served.post("/v1/jobs", &drawing).status, 202);
}

#[test]
fn connections_beyond_the_limit_are_told_and_idle_ones_are_closed() {
    let served = Served::start(&["--max-connections", "20"]);
    let open: Vec<TcpStream> = (0..20).map(|_| served.connect()).collect();
    let turned_away = Answer::read(served.connect());
    assert_eq!(turned_away.status, 503);
    // 10,000 come at once, and are all answered.
    for _ in 0..100 {
        let more: Vec<TcpStream> = (0..100).filter_map(|_| TcpStream::connect(served.address).ok()).collect();
        drop(more);
    }
    // A connection that says nothing is closed, so that others get in.
    let begun = Instant::now();
    served.until(|served| served.get("/health").status == 200);
    assert!(begun.elapsed() < Duration::from_secs(30));
    assert!(served.metric("pinhole_connections_refused_total") >= 1.0);
    drop(open);
}

#[test]
fn a_client_that_sends_slowly_is_let_go() {
    let served = Served::start(&[]);
    let mut stream = served.connect();
    let begun = Instant::now();
    // A head that never ends.
    let mut closed = false;
    while begun.elapsed() < Duration::from_secs(40) {
        if stream.write_all(b"a").is_err() {
            closed = true;
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(closed, "it may send forever");
}

#[test]
fn pages_of_other_sites_are_not_answered() {
    let served = Served::start(&["--cors", "https://example.org"]);
    let rebound = {
        let mut stream = served.connect();
        stream.write_all(b"GET /v1/jobs HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n").unwrap();
        Answer::read(stream)
    };
    assert_eq!(rebound.status, 421);
    let asked = |origin: &str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "content-type"),
        ];
        served.ask("OPTIONS", "/v1/jobs", &headers, b"").head
    };
    assert!(asked("https://example.org").contains("access-control-allow-origin: https://example.org"));
    assert!(!asked("https://evil.example").contains("access-control-allow-origin"));
}
