//! Several models under one ceiling, jobs that are drawn together, and models that are unloaded.

use serde_json::{Value, json};

use crate::rig::{Served, command, pixels, quick, slow};

/// A ceiling under which `mini` is loaded whole once, and not twice.
fn ceiling() -> String {
    let served = Served::start(&["--device", "cpu:discrete", "--offload", "none"]);
    let peak = served.post("/v1/plan", &quick(1)).json()["peak_bytes"].as_u64().unwrap();
    (peak + (1 << 20)).to_string()
}

/// The miniature in another type, in `folder`.
fn converted(folder: &std::path::Path) -> String {
    let path = folder.join("mini-q4_0.gguf");
    let opened = pinhole::pipeline::open(&pinhole::builtin::mini().unwrap()).unwrap();
    let types: pinhole::convert::Types = "q4_0".parse().unwrap();
    let networks = opened.networks();
    let plan = pinhole::convert::plan(&opened.source, &networks, types).unwrap();
    plan.write(&path, pinhole::convert::WriteOptions::default(), &mut |_| Ok(())).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn models_that_do_not_fit_together_take_turns_under_the_ceiling() {
    const JOBS: usize = 100;
    let folder = tempfile::tempdir().unwrap();
    let (limit, other) = (ceiling(), format!("two={}", converted(folder.path())));
    let discrete = ["--device", "cpu:discrete", "--offload", "none", "--vram", &limit, "--idle", "2"];
    let served = Served::start_with(&[&["-m", "one=mini", "-m", &other][..], &discrete].concat());
    let limit: f64 = limit.parse().unwrap();
    let mut pictures = Vec::new();
    for round in 0..JOBS {
        let mut drawing = quick(4);
        drawing["model"] = json!(["one", "two"][round % 2]);
        let done = served.post("/v1/jobs?wait=true", &drawing);
        assert_eq!(done.status, 200, "{}", done.text());
        let outcome = &done.json()["outcome"];
        let [planned, measured] = ["planned_bytes", "measured_bytes"].map(|name| outcome[name].as_f64().unwrap());
        assert!(0.0 < measured && measured <= planned && planned <= limit, "{measured} {planned} {limit}");
        let [highest, held] = ["pinhole_highest_peak_bytes", "pinhole_held_bytes"].map(|name| served.metric(name));
        assert!(highest <= limit && 0.0 < held && held <= limit, "{highest} {held} {limit}");
        assert_eq!(served.metric("pinhole_models_loaded"), 1.0);
        pictures.push(pixels(&served.get(done.json()["images"][0].as_str().unwrap()).body));
    }
    for (round, picture) in pictures.iter().enumerate() {
        assert_eq!(*picture, pictures[round % 2], "{round}");
    }
    assert_ne!(pictures[0], pictures[1]);
    assert_eq!(served.metric("pinhole_models_unloaded_total{why=\"room\"}"), (JOBS - 1) as f64);
    // Without work, the device gets everything back.
    served.until(|served| served.metric("pinhole_models_loaded") == 0.0);
    assert_eq!(served.metric("pinhole_held_bytes"), 0.0);
}

#[test]
fn models_that_fit_together_stay() {
    let served = Served::start_with(&[
        "-m",
        "one=mini",
        "-m",
        "two=mini",
        "--device",
        "cpu:discrete",
        "--offload",
        "none",
        "--vram",
        "1G",
    ]);
    for round in 0..4 {
        let mut drawing = quick(4);
        drawing["model"] = json!(["one", "two"][round % 2]);
        assert_eq!(served.post("/v1/jobs?wait=true", &drawing).status, 200);
    }
    assert_eq!((served.metric("pinhole_models_loaded"), served.metric("pinhole_models_loaded_total")), (2.0, 2.0));
}

/// Two devices have a budget each, and draw what one draws.
#[test]
fn several_devices_draw_each_job_together() {
    let guided = || {
        let mut drawing = quick(5);
        (drawing["cfg_scale"], drawing["negative_prompt"]) = (json!(2.0), json!("blue"));
        drawing
    };
    let drawn = |devices: &[&str]| {
        let served = Served::start(devices);
        let done = served.post("/v1/jobs?wait=true", &guided());
        assert_eq!(done.status, 200, "{}", done.text());
        let picture = pixels(&served.get(done.json()["images"][0].as_str().unwrap()).body);
        (served, done.json()["outcome"].clone(), picture)
    };
    let two =
        ["--device", "cpu:discrete,cpu:discrete1", "--vram", "1G,512M", "--devices-by", "passes", "--threads", "2"];
    let (_, _, one) = drawn(&["--device", "cpu:discrete", "--threads", "1"]);
    let (served, outcome, both) = drawn(&two);
    assert_eq!(one, both);
    let names = ["cpu:discrete", "cpu:discrete1"];
    let held = outcome["devices"].as_array().unwrap();
    assert_eq!(held.len(), 2, "{outcome}");
    for ((held, name), limit) in held.iter().zip(names).zip([1u64 << 30, 512 << 20]) {
        assert_eq!((held["device"].as_str(), held["limit_bytes"].as_u64()), (Some(name), Some(limit)));
        let peak = held["measured_bytes"].as_f64().unwrap();
        assert!(peak > 0.0 && held["planned_bytes"].as_f64() == Some(peak) && peak <= limit as f64, "{held}");
        let metric = |what: &str| served.metric(&format!("pinhole_device_{what}{{device=\"{name}\"}}"));
        assert_eq!([metric("planned_peak_bytes"), metric("measured_peak_bytes")], [peak; 2]);
        assert_eq!(metric("budget_bytes"), limit as f64);
        let moved = ["moved_bytes", "exchanged_bytes"].map(|what| held[what].as_f64().unwrap());
        assert_eq!([metric("moved_bytes_total"), metric("exchanged_bytes_total")], moved);
        assert!(moved.iter().all(|&bytes| bytes > 0.0), "{held}");
    }
    let plan = served.post("/v1/plan", &guided()).json();
    assert_eq!(plan["devices"][1]["limit_bytes"], 512 << 20);
    assert!(plan["components"].as_array().unwrap().iter().any(|component| component["device"] == 1), "{plan}");
    assert_eq!(served.get("/v1/server").json()["device"], names.join(","));
}

#[test]
fn devices_that_cannot_compute_together_are_refused_at_the_start() {
    for (devices, budgets, said) in
        [("cpu:discrete,cpu:discrete0", "1G", "twice"), ("cpu:discrete,cpu:discrete1", "1G,1G,1G", "3 sizes")]
    {
        let ended = command(&["-m", "mini", "--device", devices, "--vram", budgets]).output().unwrap();
        let said_there = String::from_utf8_lossy(&ended.stderr);
        assert!(!ended.status.success() && said_there.contains(said), "{said_there}");
    }
}

#[test]
fn an_idle_server_holds_nothing() {
    let served = Served::start(&["--device", "cpu:discrete", "--offload", "none", "--idle", "1"]);
    for _ in 0..2 {
        assert_eq!(served.post("/v1/jobs?wait=true", &quick(1)).status, 200);
        assert!(served.metric("pinhole_held_bytes") > 0.0);
        served.until(|served| served.metric("pinhole_models_loaded") == 0.0);
        assert_eq!(served.metric("pinhole_held_bytes"), 0.0);
    }
    assert_eq!(served.metric("pinhole_models_unloaded_total{why=\"idle\"}"), 2.0);
}

#[test]
fn jobs_that_differ_in_their_seeds_alone_are_drawn_together_and_are_the_same() {
    let served = Served::start(&["--coalesce", "3"]);
    let first = served.submit(&slow(0));
    served.until_running(&first);
    let drawing =
        |seed: u64, prompt: &str| json!({ "prompt": prompt, "width": 64, "height": 64, "steps": 4, "seed": seed });
    let ids: Vec<String> = [11, 400, 23].map(|seed| served.submit(&drawing(seed, "a star"))).to_vec();
    let other = served.submit(&drawing(5, "a heart"));
    assert_eq!(served.ask("DELETE", &format!("/v1/jobs/{first}"), &[], b"").status, 202);
    let together: Vec<Value> = ids.iter().map(|id| served.end_of(id)).collect();
    assert!(together.iter().all(|job| job["outcome"]["drawn_together"] == 3), "{together:?}");
    assert_eq!(served.end_of(&other)["outcome"]["drawn_together"], 1);
    for (job, seed) in together.iter().zip([11, 400, 23]) {
        assert_eq!(job["outcome"]["seeds"], json!([seed]));
        let alone = served.post("/v1/jobs?wait=true", &drawing(seed, "a star")).json();
        assert_eq!(alone["outcome"]["drawn_together"], 1);
        let [a, b] = [job, &alone].map(|job| pixels(&served.get(job["images"][0].as_str().unwrap()).body));
        let differ = a.rgb().iter().zip(b.rgb()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(differ <= Some(1), "{differ:?}");
    }
}

#[test]
fn a_model_that_is_replaced_while_it_is_served_is_opened_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let mini = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/mini/mini.gguf");
    std::fs::copy(mini, &path).unwrap();
    let served = Served::start_with(&["-m", path.to_str().unwrap()]);
    assert_eq!(served.post("/v1/jobs?wait=true", &quick(1)).status, 200);
    let other = folder.path().join("other");
    std::fs::copy(mini, &other).unwrap();
    std::fs::rename(&other, &path).unwrap();
    assert_eq!(served.post("/v1/jobs?wait=true", &quick(1)).status, 200);
    assert_eq!(served.metric("pinhole_models_loaded_total"), 2.0);
    // What is no model any more is an error of that job, and no more.
    std::fs::write(&other, b"no model").unwrap();
    std::fs::rename(&other, &path).unwrap();
    let failed = served.post("/v1/jobs?wait=true", &quick(1));
    assert_eq!(failed.status, 500, "{}", failed.text());
    std::fs::copy(mini, &other).unwrap();
    std::fs::rename(&other, &path).unwrap();
    assert_eq!(served.post("/v1/jobs?wait=true", &quick(1)).status, 200);
}
