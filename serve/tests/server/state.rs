//! `--state`: what was accepted is done, whatever happens to the process.

use std::process::{Command, Stdio};

use serde_json::json;

use crate::rig::{Served, command, pixels, quick, slow};

#[test]
fn every_accepted_job_ends_once_although_the_process_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().to_str().unwrap();
    let arguments = ["--state", state, "--queue-length", "50", "--queue-per-key", "50", "--coalesce", "1"];
    let served = Served::start(&arguments);
    let ids: Vec<String> = (0..12).map(|seed| served.submit(&quick(seed))).collect();
    served.until(|served| served.metric("pinhole_jobs_ended_total{outcome=\"done\"}") >= 3.0);
    served.signal("KILL");
    let before = served.address;
    assert_eq!(served.wait(), None);
    let again = Served::start(&arguments);
    assert_ne!(again.address, before);
    for (seed, id) in ids.iter().enumerate() {
        let done = again.end_of(id);
        assert_eq!(
            (done["status"].clone(), done["outcome"]["seeds"].clone()),
            (json!("done"), json!([seed])),
            "{done}"
        );
        pixels(&again.get(done["images"][0].as_str().unwrap()).body);
    }
    // Those that had ended were not drawn again.
    let resumed = again.metric("pinhole_jobs_resumed_total");
    assert_eq!(resumed, again.metric("pinhole_jobs_ended_total{outcome=\"done\"}"));
    assert!(resumed <= 9.0, "{resumed}");
}

#[test]
fn a_server_that_stops_hands_its_jobs_to_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().to_str().unwrap();
    let arguments = ["--state", state, "--grace", "0", "--coalesce", "1"];
    let served = Served::start(&arguments);
    let (drawn, waiting) = (served.submit(&slow(1)), served.submit(&quick(2)));
    let cancelled = served.submit(&quick(3));
    served.until_running(&drawn);
    assert_eq!(served.ask("DELETE", &format!("/v1/jobs/{cancelled}"), &[], b"").status, 202);
    served.signal("TERM");
    assert_eq!(served.wait(), Some(0));
    let again = Served::start(&arguments);
    assert_eq!(again.metric("pinhole_jobs_resumed_total"), 2.0);
    assert_eq!(again.ask("DELETE", &format!("/v1/jobs/{drawn}"), &[], b"").status, 202);
    assert_eq!(again.end_of(&waiting)["status"], "done");
    assert_eq!(again.end_of(&drawn)["status"], "cancelled");
    assert_eq!(again.job(&cancelled)["status"], "cancelled");
}

#[test]
fn a_state_belongs_to_one_server() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().to_str().unwrap();
    let _served = Served::start(&["--state", state]);
    let output = command(&["-m", "mini", "--state", state]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && stderr.contains("another server has it open"), "{stderr}");
}

#[test]
fn a_job_whose_model_is_gone_ends_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().to_str().unwrap();
    let id = {
        let served = Served::start_with(&["-m", "one=mini", "--state", state]);
        let id = served.submit(&slow(1));
        served.signal("KILL");
        assert_eq!(served.wait(), None);
        id
    };
    let again = Served::start_with(&["-m", "other=mini", "--state", state]);
    let ended = again.end_of(&id);
    assert_eq!(ended["status"], "failed");
    assert!(ended["error"]["message"].as_str().unwrap().contains("no model `one`"), "{ended}");
}

#[test]
fn old_jobs_are_forgotten_with_their_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(&["--state", folder.path().to_str().unwrap(), "--keep", "2"]);
    let ids: Vec<String> = (0..4)
        .map(|seed| {
            let done = served.post("/v1/jobs?wait=true", &quick(seed)).json();
            done["id"].as_str().unwrap().to_owned()
        })
        .collect();
    let codes: Vec<u16> = ids.iter().map(|id| served.get(&format!("/v1/files/{id}/0.png")).status).collect();
    assert_eq!(codes, [404, 404, 200, 200]);
}

#[test]
fn a_disk_that_fills_is_said_and_what_was_accepted_is_done_when_there_is_room_again() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().to_str().unwrap();
    let arguments =
        ["-m", "mini", "--listen", "127.0.0.1:0", "--state", state, "--queue-length", "200", "--queue-per-key", "200"];
    let mut full = Command::new("sh");
    // A limit on files stands for the disk, as a process may set it for itself. Beyond it a signal would come.
    full.args(["-c", "trap '' XFSZ; ulimit -S -f 8192; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_pinhole-serve")]);
    full.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let served = Served::of(&mut full);
    let drawn = served.submit(&slow(0));
    served.until_running(&drawn);
    let mut drawing = quick(1);
    drawing["image"] = json!(base64::encode(noise()));
    let mut accepted = Vec::new();
    let refused = loop {
        let answer = served.post("/v1/jobs", &drawing);
        if answer.status != 202 {
            break answer;
        }
        accepted.push(answer.json()["id"].as_str().unwrap().to_owned());
    };
    let error = &refused.json()["error"];
    assert_eq!((refused.status, error["type"].as_str()), (507, Some("storage_full")), "{error}");
    assert!(error["message"].as_str().unwrap().contains("File too large"), "{error}");
    assert!(error["hint"].as_str().unwrap().contains("make room"), "{error}");
    assert!(!accepted.is_empty());
    // It answers all the same, and those that were accepted end.
    assert_eq!(served.ask("DELETE", &format!("/v1/jobs/{drawn}"), &[], b"").status, 202);
    for id in &accepted {
        let ended = served.end_of(id);
        assert_eq!(ended["status"], "done", "{ended}");
        pixels(&served.get(ended["images"][0].as_str().unwrap()).body);
    }
    served.limit_files(1 << 30);
    accepted.push(served.submit(&drawing));
    assert_eq!(served.end_of(accepted.last().unwrap())["status"], "done");
    // And what could not be written is drawn again by the next server.
    served.signal("KILL");
    assert_eq!(served.wait(), None);
    let again = Served::start(&["--state", state]);
    for id in &accepted {
        let ended = again.end_of(id);
        assert_eq!(ended["status"], "done", "{ended}");
        pixels(&again.get(ended["images"][0].as_str().unwrap()).body);
    }
}

/// A picture that does not get smaller.
fn noise() -> Vec<u8> {
    let mut state = 1_u32;
    let mut rgb = Vec::new();
    for _ in 0..192 * 192 * 3 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        rgb.push((state >> 24) as u8);
    }
    let mut png = Vec::new();
    pinhole::image::Image::new(192, 192, rgb).unwrap().write_png(&mut png, &[]).unwrap();
    png
}
