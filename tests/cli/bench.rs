use std::fs;
use std::path::Path;

use pinhole::image::Image;
use serde_json::{Value, json};

use super::run::{Outcome, Workplace, mini_bytes, snapshot};

/// A measurement that takes a moment: one prompt, one step, few pixels.
const SMALL: &[&str] = &[
    "bench",
    "quality",
    "-m",
    "mini",
    "--prompts",
    "prompts.txt",
    "--steps",
    "1",
    "--width",
    "64",
    "--height",
    "48",
    "--threads",
    "1",
];

fn small<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [SMALL, more].concat()
}

/// A workplace with a list of one prompt.
fn workplace() -> Workplace {
    let place = Workplace::new();
    place.write("prompts.txt", b"\n  a red circle on a white background \n\n");
    place
}

/// Compares with the snapshot `name`, all but what processors compute alike.
fn snapshot_of_table(outcome: &Outcome, name: &str) {
    let mut settings = insta::Settings::clone_current();
    for (pattern, replacement) in
        [(r" +\d+\.\d+ dB", " [dB]"), (r" +0\.\d{4}\b", " [ssim]"), (r"\d\.\de-\d+", "[nmse]")]
    {
        settings.add_filter(pattern, replacement);
    }
    settings.bind(|| outcome.snapshot(name));
}

#[test]
fn success() {
    let place = workplace();
    let outcome = place.run(&small(&["--types", "q4_k_s,bf16"]));
    snapshot_of_table(&outcome, "bench_quality");
    snapshot_of_table(&place.run(&small(&["--types", "q4_k_s", "--recipe", "--quiet"])), "bench_quality_recipe");
    assert_eq!(place.names(), ["prompts.txt"]);
}

/// Replaces every number under a name in `measured` by a word, anywhere in `value`.
fn redact(value: &mut Value, measured: &[&str]) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| redact(item, measured)),
        Value::Object(members) => {
            for (name, member) in members {
                match member.is_number() && measured.contains(&name.as_str()) {
                    true => *member = json!("[measured]"),
                    false => redact(member, measured),
                }
            }
        }
        _ => {}
    }
}

#[test]
fn the_report_says_everything() {
    let place = workplace();
    let mut report = place.json(&small(&["--types", "q4_0", "--seed", "5", "--cfg-scale", "2", "--keep", "kept"]));
    let (f32, q4_0) = (&report["types"][0], &report["types"][1]);
    assert_eq!(f32["matrices"]["error"], 0.0, "f32 holds every number of q8_0");
    let error = |row: &Value| row["matrices"]["error"].as_f64().unwrap();
    // The two smallest distances of 4-bit numbers and of 8-bit ones are 16 apart, their squares 256.
    assert!((1e-3..3e-2).contains(&error(q4_0)), "{}", error(q4_0));
    let file = fs::metadata(place.path("kept/q4_0.gguf")).unwrap().len();
    assert_eq!(q4_0["bytes"], file);
    // The one picture is mean and worst.
    let (psnr, ssim, picture) = (&q4_0["psnr"], &q4_0["ssim"], &q4_0["pictures"][0]);
    assert_eq!((&psnr["mean"], &psnr["worst"]), (&picture["psnr"], &picture["psnr"]));
    assert_eq!((&ssim["mean"], &ssim["worst"]), (&picture["ssim"], &picture["ssim"]));
    // And it is what `compare` says of the files.
    let compared = place.json(&["compare", "kept/f32/00.png", "kept/q4_0/00.png"]);
    assert_eq!((&compared["psnr"], &compared["ssim"]), (&picture["psnr"], &picture["ssim"]));
    redact(&mut report, &["psnr", "ssim", "error", "mean", "worst", "seconds", "seconds_per_picture"]);
    for row in report["types"].as_array_mut().unwrap() {
        for matrices in ["matrices", "transformer_matrices"] {
            row[matrices]["worst"]["tensor"] = json!("[measured]");
            row[matrices]["worst"]["component"] = json!("[measured]");
        }
    }
    report["version"] = json!("[version]");
    snapshot("bench_quality_json", &serde_json::to_string_pretty(&report).unwrap());
}

#[test]
fn what_was_kept_is_used_again() {
    let place = workplace();
    let run = |more: &[&str]| place.json(&small(&[&["--keep", "kept/q4", "--types", "q4_0"], more].concat()));
    let changed = |name: &str| fs::metadata(place.path("kept/q4").join(name)).unwrap().modified().unwrap();
    let files = ["f32.gguf", "q4_0.gguf", "f32/00.png", "q4_0/00.png"];
    let first = run(&[]);
    let before = files.map(changed);
    let again = run(&[]);
    assert_eq!(files.map(changed), before);
    assert_eq!(first["types"], again["types"], "the times are those of the pictures");
    // Another seed is another picture of the same bundle.
    let other = run(&["--seed", "1"]);
    assert_eq!([changed(files[0]), changed(files[1])], [before[0], before[1]]);
    assert!(changed(files[2]) > before[2] && changed(files[3]) > before[3]);
    assert_ne!(first["types"][1]["ssim"], other["types"][1]["ssim"]);
    // A damaged picture is drawn again, a bundle that was cut is converted again.
    let whole = Image::open_png(&place.path("kept/q4/f32/00.png")).unwrap();
    place.write("kept/q4/f32/00.png", b"\x89PNG");
    place.write("kept/q4/q4_0.gguf", &mini_bytes()[..1000]);
    assert_eq!(run(&["--seed", "1"])["types"][1]["ssim"], other["types"][1]["ssim"]);
    assert!(Image::open_png(&place.path("kept/q4/f32/00.png")).unwrap() == whole);
}

#[test]
fn failures() {
    let place = workplace();
    place.write("empty.txt", b"\n  \n");
    place.write("binary.txt", b"\xff\xfe\x00");
    place.write("file", b"");
    place.write("precious/q8_0.gguf", b"precious");
    place.write("other.gguf", &mini_bytes());
    assert_eq!(place.run(&small(&["--types", "f32", "--keep", "kept", "-m", "mini"])).code, 2, "-m twice");
    assert_eq!(place.run(&small(&["--types", "f32", "--keep", "kept"])).code, 0);
    for (name, more) in [
        ("unknown_type", &["--types", "q8_0,q9"][..]),
        ("unwritable", &["--keep", "file/kept"]),
        ("keep_occupied", &["--keep", "precious"]),
        ("device", &["--device", "gpu7"]),
    ] {
        place.run(&small(more)).snapshot(&format!("bench_quality_{name}"));
    }
    let run = |arguments: &[&str]| place.run(&[&["bench", "quality"], arguments].concat());
    run(&["-m", "mini", "--prompts", "empty.txt"]).snapshot("bench_quality_no_prompt");
    run(&["-m", "mini", "--prompts", "binary.txt"]).snapshot("bench_quality_prompts_no_text");
    run(&["-m", "mini", "--width", "100"]).snapshot("bench_quality_width");
    run(&["-m", "missing"]).snapshot("bench_quality_missing");
    run(&["-m", "other.gguf", "--keep", "kept"]).snapshot("bench_quality_keep_of_another");
    assert_eq!(place.run(&["bench"]).code, 2);
    assert_eq!(fs::read(place.path("precious/q8_0.gguf")).unwrap(), b"precious");
}

/// Ctrl-C while it draws: exit code 130, and nothing where temporary files go.
#[cfg(unix)]
#[test]
fn an_interrupt_leaves_nothing_behind() {
    use std::process::{Command, Stdio};
    use std::thread;
    use std::time::{Duration, Instant};

    let place = workplace();
    fs::create_dir(place.path("temporary")).unwrap();
    let entries = |path: &Path| fs::read_dir(path).unwrap().count();
    let mut command = place.command(&["bench", "quality", "-m", "mini", "--steps", "900", "--types", "f16"]);
    command.env("TMPDIR", place.path("temporary")).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let patience = Instant::now() + Duration::from_secs(60);
    while entries(&place.path("temporary")) == 0 {
        assert!(Instant::now() < patience && child.try_wait().unwrap().is_none(), "no bundle was begun");
        thread::sleep(Duration::from_millis(10));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(String::from_utf8(output.stderr).unwrap().ends_with("error: interrupted\n"));
    assert!(output.stdout.is_empty());
    assert_eq!(entries(&place.path("temporary")), 0);
}

/// Ctrl-C in the middle of a product of ggml's, which takes many seconds and looks at no flag.
#[cfg(unix)]
#[test]
fn an_interrupt_ends_what_does_not_listen() {
    use std::process::{Command, Stdio};
    use std::thread;
    use std::time::{Duration, Instant};

    let place = workplace();
    let product = ["--types", "q6_k", "--size", "4096x4096", "--tokens", "8192", "--threads", "1", "--by", "ggml"];
    let mut command = place.command(&[&["bench", "matmul"][..], &product].concat());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    thread::sleep(Duration::from_millis(1500));
    assert!(child.try_wait().unwrap().is_none(), "it is done already");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let asked = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    assert_eq!(output.status.code(), Some(130));
    assert!(String::from_utf8(output.stderr).unwrap().ends_with("error: interrupted\n"));
}

#[test]
fn a_step_beside_other_threads() {
    let place = Workplace::new();
    let report = place.json(&["bench", "busy", "-m", "mini", "--load", "2", "--threads", "2", "--steps", "1"]);
    let [one, two, ratio] = ["one_thread_seconds", "seconds", "ratio"].map(|name| report[name].as_f64().unwrap());
    assert!(one > 0.0 && two > 0.0 && (ratio - two / one).abs() < 1e-9, "{report}");
}

/// Products that take no time.
const PRODUCTS: &[&str] =
    &["bench", "matmul", "--size", "64x40", "--tokens", "1,17", "--rounds", "3", "--threads", "1", "--quiet"];

#[test]
fn products() {
    let place = Workplace::new();
    let mut report = place.json(&[PRODUCTS, &["--types", "q8_0,f32", "--against", "ggml"]].concat());
    for product in report["products"].as_array().unwrap() {
        for who in ["by", "against"] {
            let [slowest, median, fastest] =
                ["slowest", "median", "fastest"].map(|name| product[who][name].as_f64().unwrap());
            assert!(0.0 < slowest && slowest <= median && median <= fastest, "{product}");
        }
    }
    redact(&mut report, &["slowest", "median", "fastest", "ratio"]);
    report["kernel"] = json!("[kernel]");
    snapshot("bench_matmul_json", &serde_json::to_string_pretty(&report).unwrap());
    let table = place.run(&[PRODUCTS, &["--types", "q4_0"]].concat());
    let rows: Vec<Vec<&str>> = table.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["type", "tokens", "pinhole", "spread"]);
    assert_eq!([&rows[1][..2], &rows[2][..2]], [["q4_0", "1"], ["q4_0", "17"]]);
    assert_eq!((rows.len(), rows[2].len(), table.code), (3, 6, 0), "{}", table.stdout);
}

#[test]
fn products_that_are_none() {
    let place = Workplace::new();
    for (name, options) in [
        ("type", &["--types", "q8_0,q9"][..]),
        ("rows", &["--types", "q4_k", "--size", "64x40"]),
        ("size", &["--size", "64"]),
        ("who", &["--against", "torch"]),
    ] {
        place.run(&[&["bench", "matmul"], options].concat()).snapshot(&format!("bench_matmul_{name}"));
    }
}

/// Attentions that take no time.
const ATTENTIONS: &[&str] =
    &["bench", "attention", "--shapes", "16x20x30x2,9x1x5x1", "--rounds", "2", "--threads", "1", "--quiet"];

#[test]
fn attentions() {
    let place = Workplace::new();
    let mut report = place.json(&[ATTENTIONS, &["--against", "ggml"]].concat());
    for attention in report["attentions"].as_array().unwrap() {
        for (who, most) in [("by", 1e-6), ("against", 1e-3)] {
            let of = |name: &str| attention[who][name].as_f64().unwrap();
            assert!(0.0 < of("slowest") && of("slowest") <= of("median") && of("median") <= of("fastest"));
            assert!(of("error") <= most, "{attention}");
        }
    }
    redact(&mut report, &["slowest", "median", "fastest", "ratio", "error"]);
    report["kernel"] = json!("[kernel]");
    snapshot("bench_attention_json", &serde_json::to_string_pretty(&report).unwrap());
    let table = place.run(ATTENTIONS);
    let rows: Vec<Vec<&str>> = table.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["shape", "pinhole", "spread", "error"]);
    assert_eq!((rows[1][0], rows[2][0]), ("16x20x30x2", "9x1x5x1"));
    assert_eq!((rows.len(), rows[2].len(), table.code), (3, 6, 0), "{}", table.stdout);
    place.run(&["bench", "attention", "--shapes", "16x20x30"]).snapshot("bench_attention_shape");
}

#[test]
fn a_card_has_a_row_for_each_run() {
    let place = Workplace::new();
    let card = |mode| {
        let size = ["--width", "64", "--height", "48", "--steps", "1", "--threads", "1", "--device", "cpu:discrete"];
        [&["bench", "card", "-m", "mini", "--rows", "rows.jsonl", "--offload", mode], &size[..]].concat()
    };
    let (model, sequential) = (place.json(&card("model")), place.json(&card("sequential")));
    let rows = fs::read_to_string(place.path("rows.jsonl")).unwrap();
    let rows: Vec<Value> = rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows, [model.clone(), sequential.clone()]);
    for row in &rows {
        assert_eq!(row["planned_peak_bytes"], row["allocated_peak_bytes"]);
        assert!(row["link_bytes_per_second"].as_f64().unwrap() > 0.0);
        assert!(row["host_peak_bytes"].as_u64() > row["host_anonymous_peak_bytes"].as_u64(), "{row}");
        assert!(row["host_anonymous_peak_bytes"].as_u64().unwrap() > row["allocated_peak_bytes"].as_u64().unwrap());
    }
    let moved = |row: &Value| row["denoise_moved_bytes"].as_u64().unwrap();
    assert!(moved(&sequential) >= moved(&model) && moved(&model) > 0);
    // Rows that are not rows are an error that names the file.
    place.write("rows.jsonl", b"{}\n");
    let outcome = place.run(&card("model"));
    assert!(outcome.stderr.contains("rows.jsonl") && outcome.code == 1, "{}", outcome.stderr);
}

#[test]
fn streaming_beside_computing() {
    let place = Workplace::new();
    let options =
        ["--width", "64", "--height", "64", "--text-tokens", "8", "--steps", "1", "--threads", "1", "--quiet"];
    place.write("mini.gguf", &mini_bytes());
    let offload = [&["bench", "offload", "-m", "mini.gguf", "--link", "5M"][..], &options].concat();
    let report = place.json(&offload);
    let of = |name: &str| report["links"][0][name].as_u64().unwrap();
    // Two steps, the first among them, of two double blocks, three stages each, and four single ones, over a link that is far too slow.
    assert_eq!(of("uploads"), 2 * (2 * 3 + 4));
    assert!(of("exposed_other_uploads") > of("exposed_first_uploads") && of("exposed_first_uploads") <= 2, "{report}");
    assert!(place.run(&offload).stdout.contains("exposed"));
}

/// The miniature's step, at a size that takes a moment.
const STEP: &[&str] =
    &["bench", "step", "--width", "64", "--height", "64", "--text-tokens", "8", "--steps", "2", "--threads", "1"];

#[test]
fn a_step_by_stage() {
    let place = Workplace::new();
    let report = place.json(&[STEP, &["-m", "mini", "--against", "ggml", "--operations", "--quiet"]].concat());
    assert!(report["against_over_by"].as_f64().unwrap() > 0.0);
    for (way, by) in report["ways"].as_array().unwrap().iter().zip(["pinhole", "ggml"]) {
        assert_eq!(way["by"], by);
        let seconds = |row: &Value, name: &str| row[name].as_f64().unwrap();
        let step = &way["step"];
        // A machine that is busy while one of them is measured makes it longer than the whole.
        assert!(seconds(step, "over_alone") > 0.0, "{step}");
        assert_eq!(seconds(step, "over_alone") > 1.0, seconds(step, "outside") > 0.0, "{step}");
        assert!(seconds(step, "products_gflops") > 0.0 && seconds(step, "attentions_gflops") > 0.0);
        let kinds: Vec<&str> =
            way["kinds"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["embed", "double", "join", "single", "final"]);
        let count: u64 = way["kinds"].as_array().unwrap().iter().map(|row| row["stages"].as_u64().unwrap()).sum();
        assert_eq!((count, way["stages"].as_array().unwrap().len() as u64), (step["stages"].as_u64().unwrap(), count));
        let shares: f64 = way["operations"].as_array().unwrap().iter().map(|row| seconds(row, "share")).sum();
        assert!((shares - 1.0).abs() < 1e-9);
    }
    let table = place.run(&[STEP, &["-m", "mini", "--quiet"]].concat());
    let names: Vec<&str> = table.stdout.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, ["by", "embed", "double", "join", "single", "final", "step"], "{}", table.stdout);
}

#[test]
fn decoding_and_encoding_in_every_way() {
    let place = Workplace::new();
    let common = ["-m", "mini", "--device", "cpu:discrete", "--runs", "1", "--threads", "1", "--quiet"];
    // Strips make less of a decoder; T5 is computed as a whole.
    let decode = &["bench", "decode", "--width", "512", "--height", "128"][..];
    for (command, least) in [(decode, 2), (&["bench", "encode"], 1)] {
        let report = place.json(&[command, &common].concat());
        let ways = report["ways"].as_array().unwrap();
        assert!(ways.len() >= least && ways[0]["way"] == "whole", "{report}");
        let peaks: Vec<u64> = ways.iter().map(|way| way["peak_bytes"].as_u64().unwrap()).collect();
        assert!(peaks.is_sorted_by(|a, b| a > b), "{peaks:?}");
        for way in ways {
            assert_eq!(way["peak_bytes"], way["planned_peak_bytes"]);
            assert!(way["seconds"].as_f64().unwrap() > 0.0);
        }
        // A budget leads to one way, and may be too small for any.
        let within = place.json(&[command, &common, &["--vram", "1G"]].concat());
        assert_eq!(within["ways"].as_array().unwrap().len(), 1);
        let refused = place.run(&[command, &common, &["--vram", "1"]].concat());
        assert_eq!(refused.code, 1);
        assert!(refused.stderr.contains("hint: try --vram"), "{}", refused.stderr);
    }
}

#[test]
fn what_passes_before_the_first_step() {
    let place = Workplace::new();
    let options = ["--runs", "2", "--threads", "1", "--width", "64", "--height", "64", "--quiet"];
    let report = place.json(&[&["bench", "load", "-m", "mini"][..], &options].concat());
    let parts: Vec<&str> =
        report["parts"].as_array().unwrap().iter().map(|part| part["name"].as_str().unwrap()).collect();
    assert_eq!(parts, ["open", "models", "plan", "encode", "prepare", "modulation"]);
    let total = |name: &str| report[name].as_f64().unwrap();
    assert!(total("total_seconds") > total("total_without_encoders_seconds"));
    assert!(report["parts"].as_array().unwrap().iter().all(|part| part["seconds"].as_f64().unwrap() > 0.0));
}

/// Of a model that is made, only what is measured is made; where it is kept, once.
#[test]
fn models_are_made_and_kept() {
    let place = Workplace::new();
    let options =
        ["--arch", "flux-dev", "--runs", "1", "--width", "16", "--height", "16", "--cache", "kept", "--quiet"];
    let decode = [&["bench", "decode"][..], &options].concat();
    assert_eq!(place.run(&decode).code, 0);
    let path = place.path("kept/flux-dev-q4_k_s-vae.gguf");
    let made = fs::metadata(&path).unwrap().modified().unwrap();
    assert_eq!(place.run(&decode).code, 0);
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), made);
    for (name, options) in [
        ("no_model", &["bench", "step"][..]),
        ("both", &["bench", "step", "-m", "mini", "--arch", "flux-dev"]),
        ("width", &["bench", "decode", "-m", "mini", "--width", "20"]),
        ("missing", &["bench", "encode", "-m", "missing.gguf"]),
    ] {
        place.run(options).snapshot(&format!("bench_subject_{name}"));
    }
}
