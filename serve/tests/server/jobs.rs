//! Jobs through the native interface.

use std::io::Read;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::rig::{Answer, PATIENCE, Served, command, pixels, quick, slow};

/// What `pinhole::Pipeline` draws of the same request.
fn drawn_alone(prompt: &str, seed: u64, steps: usize) -> pinhole::image::Image {
    use pinhole::pipeline::{Pipeline, Request};
    let model = pinhole::open("mini").unwrap();
    let mut pipeline = Pipeline::new(model, pinhole::ggml::Device::best().unwrap()).unwrap();
    let [width, height, steps] = [64, 64, steps].map(Some);
    let request = Request { seed, width, height, steps, ..Request::new(prompt) };
    pipeline.generate(&request).unwrap().images.remove(0)
}

#[test]
fn a_job_is_accepted_with_its_plan_and_ends_with_its_picture() {
    let served = Served::start(&[]);
    let answer = served.post("/v1/jobs", &quick(7));
    let accepted = answer.json();
    let id = accepted["id"].as_str().unwrap();
    assert_eq!(answer.status, 202);
    assert!(answer.head.contains(&format!("location: /v1/jobs/{id}")), "{}", answer.head);
    assert!(accepted["plan"]["peak_bytes"].as_u64() > Some(0));
    let done = served.end_of(id);
    assert_eq!(done["status"], "done", "{done}");
    let png = served.get(done["images"][0].as_str().unwrap());
    assert_eq!(png.status, 200);
    assert_eq!(pixels(&png.body), drawn_alone("a red heart", 7, 2));
    let outcome = &done["outcome"];
    assert_eq!(outcome["seeds"], json!([7]));
    let parameters = outcome["parameters"][0].as_str().unwrap();
    assert!(
        parameters.starts_with("a red heart\n") && parameters.contains("\nSteps: 2, Sampler: Euler"),
        "{parameters}"
    );
    // The plan was kept to the byte.
    assert_eq!(outcome["planned_bytes"], accepted["plan"]["peak_bytes"]);
    assert!(outcome["measured_bytes"].as_u64() <= outcome["planned_bytes"].as_u64());
}

#[test]
fn a_job_is_waited_for_and_the_same_seed_gives_the_same_picture() {
    let served = Served::start(&[]);
    let mut seen = Vec::new();
    for _ in 0..2 {
        let answer = served.post("/v1/jobs?wait=true", &quick(3));
        assert_eq!(answer.status, 200, "{}", answer.text());
        seen.push(served.get(answer.json()["images"][0].as_str().unwrap()).body);
    }
    assert_eq!(pixels(&seen[0]), pixels(&seen[1]));
    // Without a seed, another one is taken each time, and said.
    let seeds = [0, 1].map(|_| {
        let drawing = json!({ "prompt": "", "width": 64, "height": 64, "steps": 1 });
        served.post("/v1/jobs?wait=true", &drawing).json()["outcome"]["seeds"][0].clone()
    });
    assert_ne!(seeds[0], seeds[1]);
}

/// The events of a stream, each with its data.
fn events(answer: &Answer) -> Vec<(String, Value)> {
    let mut events = Vec::new();
    for text in answer.text().split("\n\n") {
        if let Some((name, data)) = text.strip_prefix("event: ").and_then(|text| text.split_once("\ndata: ")) {
            events.push((name.to_owned(), serde_json::from_str(data).unwrap()));
        }
    }
    events
}

#[test]
fn who_listens_hears_of_steps_previews_and_the_end() {
    let served = Served::start(&[]);
    let id = served.submit(&json!({ "prompt": "a star", "width": 64, "height": 64, "steps": 20, "preview": 1 }));
    let heard = events(&served.get(&format!("/v1/jobs/{id}/events")));
    let names: Vec<&str> = heard.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!((names.first(), names.last()), (Some(&"job"), Some(&"end")));
    let steps: Vec<u64> =
        heard.iter().filter(|(name, _)| name == "progress").filter_map(|(_, it)| it["step"].as_u64()).collect();
    assert!(steps.len() > 5 && steps.is_sorted() && steps.last() == Some(&20), "{steps:?}");
    let previews: Vec<&Value> = heard.iter().filter(|(name, _)| name == "preview").map(|(_, data)| data).collect();
    assert!(previews.len() > 2, "{names:?}");
    let png = base64::decode(previews[0]["b64_png"].as_str().unwrap()).unwrap();
    assert_eq!(pixels(&png).width(), 8);
    assert_eq!(heard.last().unwrap().1["status"], "done");
    // Afterwards there is the end alone.
    let late = events(&served.get(&format!("/v1/jobs/{id}/events")));
    assert_eq!(late.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["job", "end"]);
}

#[test]
fn jobs_are_cancelled_while_they_wait_and_while_they_are_drawn() {
    let served = Served::start(&["--coalesce", "1"]);
    let (drawn, waiting) = (served.submit(&slow(1)), served.submit(&slow(2)));
    served.until_running(&drawn);
    assert_eq!(
        (served.job(&waiting)["status"].clone(), served.job(&waiting)["ahead"].clone()),
        (json!("queued"), json!(0))
    );
    for id in [&waiting, &drawn] {
        let begun = Instant::now();
        assert_eq!(served.ask("DELETE", &format!("/v1/jobs/{id}"), &[], b"").status, 202);
        let ended = served.end_of(id);
        assert_eq!((ended["status"].clone(), ended["error"]["type"].clone()), (json!("cancelled"), json!("cancelled")));
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
    // One more time changes nothing.
    assert_eq!(served.ask("DELETE", &format!("/v1/jobs/{drawn}"), &[], b"").status, 202);
    assert_eq!(served.metric("pinhole_jobs_ended_total{outcome=\"cancelled\"}"), 2.0);
    assert_eq!(served.post("/v1/jobs?wait=true", &quick(1)).status, 200);
}

#[test]
fn a_client_that_leaves_stops_its_job_where_it_waits_for_it() {
    let served = Served::start(&["--coalesce", "1"]);
    let body = slow(1).to_string();
    for path in ["/v1/jobs?wait=true", "/v1/images/generations", "/sdapi/v1/txt2img"] {
        let before = served.metric("pinhole_jobs_ended_total{outcome=\"cancelled\"}");
        let stream = served.begin("POST", path, crate::rig::JSON, body.as_bytes());
        served.until(|served| served.metric("pinhole_jobs_running") == 1.0);
        drop(stream);
        served.until(|served| served.metric("pinhole_jobs_ended_total{outcome=\"cancelled\"}") == before + 1.0);
    }
    // Who only listens may leave.
    let id = served.submit(&json!({ "prompt": "a star", "width": 64, "height": 64, "steps": 30 }));
    let mut stream = served.begin("GET", &format!("/v1/jobs/{id}/events"), &[], b"");
    let mut first = [0];
    stream.read_exact(&mut first).unwrap();
    drop(stream);
    assert_eq!(served.end_of(&id)["status"], "done");
}

#[test]
fn deadlines_hold_for_jobs_that_wait_and_that_are_drawn() {
    let served = Served::start(&["--coalesce", "1"]);
    let mut late = slow(1);
    // Larger than any processor draws in a second.
    (late["width"], late["height"], late["deadline"]) = (json!(256), json!(256), json!(1.0));
    let (drawn, waiting) = (served.submit(&late), served.submit(&late));
    for id in [drawn, waiting] {
        let ended = served.end_of(&id);
        assert_eq!((ended["status"].clone(), ended["error"]["type"].clone()), (json!("failed"), json!("deadline")));
    }
    let answer = served.post("/v1/jobs?wait=true", &late);
    assert_eq!(answer.status, 504, "{}", answer.text());
}

#[test]
fn what_cannot_fit_is_refused_with_numbers_before_it_is_accepted() {
    let served = Served::start(&["--device", "cpu:discrete", "--vram", "6M"]);
    let mut large = quick(1);
    (large["width"], large["height"]) = (json!(1024), json!(1024));
    for path in ["/v1/jobs", "/v1/plan", "/v1/images/generations"] {
        let mut body = large.clone();
        if path.contains("images") {
            body = json!({ "prompt": "a star", "size": "1024x1024" });
        }
        let refused = served.post(path, &body);
        let error = &refused.json()["error"];
        assert_eq!((refused.status, error["type"].as_str()), (422, Some("over_budget")), "{error}");
        assert_eq!(error["given_bytes"], 6 << 20);
        let needed = error["needed_bytes"].as_u64().unwrap();
        assert!(needed > 6 << 20 && error["hint"].as_str().unwrap().contains("--vram"), "{error}");
    }
    assert_eq!(served.metric("pinhole_jobs_refused_total{why=\"over_budget\"}"), 2.0);
    assert_eq!(served.metric("pinhole_jobs_accepted_total"), 0.0);
    // And what fits is drawn below the ceiling.
    let plan = served.post("/v1/plan", &quick(1)).json();
    let done = served.post("/v1/jobs?wait=true", &quick(1));
    assert_eq!((plan["limit_bytes"].as_u64(), done.status), (Some(6 << 20), 200), "{}", done.text());
    assert!(served.metric("pinhole_highest_peak_bytes") <= f64::from(6 << 20));
}

#[test]
fn each_key_has_its_turn_and_sees_its_own_jobs_alone() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    std::fs::write(&keys, "anna:anna-0123456789abcdef\nbert:bert-0123456789abcdef\n").unwrap();
    let served = Served::start(&["--coalesce", "1", "--api-keys", keys.to_str().unwrap()]);
    let [anna, bert] = ["anna", "bert"].map(|name| format!("Bearer {name}-0123456789abcdef"));
    let ask = |method: &str, path: &str, key: &str, body: &str| {
        served.ask(method, path, &[("authorization", key), ("content-type", "application/json")], body.as_bytes())
    };
    let submit = |key: &str, body: Value| {
        ask("POST", "/v1/jobs", key, &body.to_string()).json()["id"].as_str().unwrap().to_owned()
    };
    for path in ["/v1/jobs", "/v1/models", "/metrics", "/sdapi/v1/options", "/v1/server"] {
        assert_eq!(served.get(path).status, 401, "{path}");
        assert_eq!(ask("GET", path, "Bearer wrong", "").status, 401, "{path}");
    }
    for path in ["/health", "/ready", "/", "/openapi.json"] {
        assert_eq!(served.get(path).status, 200, "{path}");
    }
    let first = submit(&anna, slow(0));
    let annas: Vec<String> = (1..4).map(|seed| submit(&anna, quick(seed))).collect();
    let berts: Vec<String> = (1..3).map(|seed| submit(&bert, quick(seed))).collect();
    let path = format!("/v1/jobs/{}", berts[0]);
    assert_eq!(ask("GET", &path, &anna, "").status, 404);
    assert_eq!(ask("DELETE", &path, &anna, "").status, 404);
    assert_eq!(ask("GET", "/v1/jobs", &bert, "").json().as_array().unwrap().len(), 2);
    assert_eq!(ask("DELETE", &format!("/v1/jobs/{first}"), &anna, "").status, 202);
    let ended = |id: &String, key: &String| {
        let begun = Instant::now();
        loop {
            let job = ask("GET", &format!("/v1/jobs/{id}"), key, "").json();
            if let Some(began) = job["ended"].as_f64() {
                return began;
            }
            assert!(begun.elapsed() < PATIENCE);
        }
    };
    // They take turns: Bert's second is done before Anna's third.
    assert!(ended(&berts[1], &bert) < ended(&annas[2], &anna));
}

#[test]
fn a_server_that_stops_finishes_what_is_drawn_and_says_so_to_others() {
    let served = Served::start(&["--coalesce", "1", "--grace", "120"]);
    let drawn = json!({ "prompt": "a star", "width": 64, "height": 64, "steps": 20, "seed": 1 }).to_string();
    let waiting = json!({ "prompt": "a heart", "width": 64, "height": 64, "steps": 20, "seed": 1 }).to_string();
    let first = served.begin("POST", "/v1/jobs?wait=true", crate::rig::JSON, drawn.as_bytes());
    served.until(|served| served.metric("pinhole_jobs_running") == 1.0);
    let second = served.begin("POST", "/v1/jobs?wait=true", crate::rig::JSON, waiting.as_bytes());
    served.until(|served| served.metric("pinhole_queue_length") == 1.0);
    served.signal("TERM");
    let second = Answer::read(second);
    assert_eq!((second.status, second.json()["error"]["type"].as_str()), (503, Some("stopping")));
    let first = Answer::read(first);
    assert_eq!((first.status, first.json()["status"].as_str()), (200, Some("done")));
    assert_eq!(served.wait(), Some(0));
}

#[test]
fn a_start_that_cannot_work_says_why() {
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("keys");
    std::fs::write(&empty, "").unwrap();
    for (arguments, said) in [
        (&["-m", "mini", "--listen", &taken][..], "--listen takes another address"),
        (&["-m", "mini", "--listen", "0.0.0.0:0"], "there are no API keys"),
        (&["-m", "mini", "-m", "mini"], "two are called `mini`"),
        (&["-m", "no/such.gguf"], "no/such.gguf"),
        (&["-m", "mini", "--lora", "no/such.safetensors"], "no/such.safetensors"),
        (&["-m", "mini", "--api-keys", empty.to_str().unwrap()], "no key in it"),
        (&["-m", "mini", "--device", "cuda99"], "cuda99"),
    ] {
        let mut command = command(&[]);
        if arguments.contains(&"--listen") {
            command = std::process::Command::new(env!("CARGO_BIN_EXE_pinhole-serve"));
            command.stderr(std::process::Stdio::piped());
        }
        let output = command.args(arguments).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && stderr.contains(said), "{arguments:?}: {stderr}");
    }
}
