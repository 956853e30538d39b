//! Texts, numbers and names as people give them, and what becomes of them in pictures.

use pinhole::image::{PARAMETERS, PINHOLE};
use serde_json::Value;

use super::generate::{small, texts};
use super::run::{Workplace, mini_bytes};

#[test]
fn a_text_may_begin_like_an_option_and_a_seed_may_be_random() {
    let place = Workplace::new();
    let words = ["generate", "-m", "mini", "-p", "-1 degrees", "--negative-prompt", "-blurry", "--cfg-scale", "2"];
    let size = ["--width", "32", "--height", "32", "--steps", "1", "--seed", "-1", "-o", "a.png"];
    let report = place.json(&[&words[..], &size].concat());
    assert_eq!(report["parameters"]["prompt"], "-1 degrees");
    assert_eq!(report["parameters"]["negative_prompt"], "-blurry");
    let seed = &report["images"][0]["seed"];
    assert_ne!(place.json(&[&words[..], &size].concat())["images"][0]["seed"], *seed);
    assert_eq!(place.run(&["plan", "-m", "mini", "-p", "--steps 3", "--seed", "-7"]).code, 0);
    for seed in ["", "one", "1.5", "18446744073709551616"] {
        let refused = place.run(&["plan", "-m", "mini", "--seed", seed]);
        assert!(refused.code == 2 && refused.stderr.contains("--seed"), "{seed}: {}", refused.stderr);
    }
}

#[test]
fn a_text_has_a_length() {
    let place = Workplace::new();
    let text = "word ".repeat(14_000);
    for option in ["--prompt", "--negative-prompt"] {
        let refused = place.run(&["plan", "-m", "mini", option, &text]);
        assert_eq!(refused.code, 2);
        let expected = format!("error: {option}: expected at most 65536 bytes of text, found 70000 bytes\n");
        assert!(refused.stderr.starts_with(&expected), "{}", refused.stderr);
    }
}

#[test]
fn a_picture_names_the_parts_that_made_it() {
    let place = Workplace::new();
    place.write("mini.gguf", &mini_bytes());
    let convert = ["convert", "mini", "-o", "dit-q8.gguf", "--type", "q8_0", "--component", "transformer"];
    assert_eq!(place.run(&convert).code, 0);
    let size = ["--width", "64", "--height", "48", "--steps", "2", "--threads", "1"];
    let draw = |more: &[&str]| place.json(&[&["generate"], &size[..], more].concat());
    let prompt = "a\nSteps: 9, Seed: 8";
    let report = draw(&["-m", "mini", "--transformer", "dit-q8.gguf", "-p", prompt, "-o", "a.png"]);
    let listed = report["model"]["parts"].as_array().unwrap();
    let inside = texts(&place.path("a.png"));
    let text = |keyword: &str| &inside.iter().find(|(other, _)| other == keyword).unwrap().1;
    let json: Value = serde_json::from_str(text(PINHOLE)).unwrap();
    assert_eq!(json["parts"].as_array().unwrap(), listed);
    assert_eq!(
        (listed[0]["component"].as_str(), listed[0]["file"].as_str()),
        (Some("transformer"), Some("dit-q8.gguf"))
    );
    assert_eq!(listed[0]["header_sha256"].as_str().unwrap().len(), 64);
    assert!(listed.len() == 4 && listed[1]["header_sha256"] == listed[2]["header_sha256"]);
    // The prompt stays a prompt, and JSON has it as it was given.
    assert_eq!(json["prompt"], prompt);
    let parameters = text(PARAMETERS);
    assert!(parameters.starts_with("a\nSteps : 9, Seed: 8\n") && parameters.contains("\nSteps: 2, "), "{parameters}");
    // One file has one name.
    let whole = draw(&["-m", "mini.gguf", "-p", "x", "-o", "b.png"]);
    assert_eq!(whole["model"]["parts"], Value::Null);
}

/// The plan, the report and the picture tell of both passes.
#[test]
fn a_second_pass_is_told_of() {
    let place = Workplace::new();
    let size = ["-m", "mini", "-p", "a red heart", "--width", "64", "--height", "48", "--steps", "2", "--threads", "1"];
    let larger = ["--upscale", "1.5", "--upscale-strength", "0.5", "--upscale-space", "pixel"];
    let plan = place.json(&[&["plan"], &size[..], &larger].concat());
    let second = &plan["plan"]["second"];
    assert!(second["peak_bytes"].as_u64().unwrap() <= plan["plan"]["peak_bytes"].as_u64().unwrap());
    let phases: Vec<&str> =
        second["components"].as_array().unwrap().iter().map(|part| part["phase"].as_str().unwrap()).collect();
    assert_eq!(phases, ["condition", "denoise", "decode"]);
    let report = place.json(&[&["generate"], &size[..], &larger, &["-o", "a.png"]].concat());
    let upscale = &report["parameters"]["upscale"];
    assert_eq!((&upscale["width"], &upscale["height"], &upscale["space"]), (&96.into(), &80.into(), &"pixel".into()));
    let measured = &report["memory"]["phases"];
    assert_eq!(measured["denoise_2"]["planned_peak_bytes"], measured["denoise_2"]["measured_peak_bytes"]);
    let inside = texts(&place.path("a.png"));
    let parameters = &inside.iter().find(|(other, _)| other == PARAMETERS).unwrap().1;
    for said in ["Size: 64x48", "Denoising strength: 0.5", "Hires upscale: 1.5", "Hires upscaler: Lanczos"] {
        assert!(parameters.contains(said), "{parameters}");
    }
    assert_eq!(place.run(&[&["plan"], &size[..], &["--upscale-strength", "0.5"]].concat()).code, 2);
}

#[test]
fn long_arguments_are_not_quoted_whole() {
    let place = Workplace::new();
    let long = "x".repeat(5000);
    for arguments in [
        &["plan", "-m", "mini", "--width", &long][..],
        &["plan", "-m", "mini", "--device", &long],
        &["plan", "-m", "mini", "--seed", &long],
        &["plan", "-m", "mini", "--offload", &long],
        &["plan", "-m", "mini", &long],
        &["plan", &format!("--{long}")],
        &["convert", "mini", "-o", "a.gguf", "--type", "q8_0", "--component", &long],
        &["convert", "mini", "-o", "a.gguf", "--type", &long],
        &["convert", "mini", "-o", "a.gguf", "--type", "q8_0", "--tensor", &long],
        &["generate", "-m", "mini", "-p", "x", "--sampler", &long],
        &[&long],
    ] {
        let refused = place.run(arguments);
        assert!(refused.code == 2 && refused.stderr.starts_with("error: "), "{}: {}", refused.code, refused.stderr);
        assert!(refused.stderr.len() < 1000 && refused.stderr.contains("xxx"), "{}", refused.stderr);
    }
}

#[test]
fn long_paths_are_not_quoted_whole() {
    let place = Workplace::new();
    let (folder, list) = ("x/".repeat(2500), "1,".repeat(2500) + "x");
    let [picture, tensors, bundle] = ["a.png", "a.safetensors", "a.gguf"].map(|name| folder.clone() + name);
    let drawn = |option, value| ["generate", "-m", "mini", "-p", "x", "-o", "a.png", option, value];
    for arguments in [
        &["plan", "-m", &folder][..],
        &["inspect", &bundle],
        &["convert", &folder, "-o", "a.gguf", "--type", "q8_0"],
        &["convert", "mini", "-o", &bundle, "--type", "q8_0"],
        &["convert", "mini", "-o", "a.gguf", "--type", "q8_0", "--merge", &tensors],
        &["compare", &picture, &picture],
        &["generate", "-m", "mini", "-p", "x", "-o", &picture],
        &drawn("--save-latents", &tensors),
        &drawn("--noise", &tensors),
        &drawn("--prompt-cache", &folder),
        &drawn("--image", &picture),
        &drawn("--reference", &picture),
        &drawn("--control-image", &picture),
        &drawn("--lora", &tensors),
        &drawn("--vae", &tensors),
        &drawn("--text-encoder-2", &tensors),
        &drawn("--sigmas", &list),
        &["bench", "step", "-m", &bundle],
        &["bench", "matmul", "--types", &folder],
        &["bench", "matmul", "--size", &folder],
    ] {
        let refused = place.run(arguments);
        let said = &refused.stderr;
        assert!((1..=2).contains(&refused.code) && said.starts_with("error: "), "{}: {said}", refused.code);
        assert!(said.len() < 1500 && said.contains(" [...] ") && said.contains(" bytes)"), "{arguments:?}: {said}");
    }
    assert_eq!(place.names(), [""; 0]);
}

#[cfg(unix)]
#[test]
fn a_path_need_not_be_unicode() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    let place = Workplace::new();
    let name = OsStr::from_bytes(b"a\xff.png");
    let mut command = place.command(&small(&["--json", "-q"]));
    let output = command.arg("-o").arg(name).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["images"][0]["path"], "a\u{fffd}.png");
    assert!(place.path(".").join(name).exists());
}

#[test]
fn stdout_is_no_file() {
    let place = Workplace::new();
    for (option, arguments) in [
        ("--output", &["convert", "mini", "-o", "-", "--type", "q8_0"][..]),
        ("--output", &["generate", "-m", "mini", "-p", "x", "-o", "-"]),
        ("--save-latents", &["generate", "-m", "mini", "-p", "x", "--save-latents", "-"]),
        ("--output", &["bench", "model", "-o", "-"]),
    ] {
        let refused = place.run(arguments);
        assert_eq!(refused.code, 2, "{arguments:?}: {}", refused.stderr);
        assert!(
            refused.stderr.starts_with(&format!("error: {option}: expected a file, found `-`")),
            "{}",
            refused.stderr
        );
    }
    assert!(place.names().is_empty());
}

/// What every use of the file says, `inspect` says too.
#[test]
fn a_lone_component_that_cannot_be_used_is_no_good() {
    let place = Workplace::new();
    let convert = ["convert", "mini", "-o", "t5.gguf", "--type", "q8_0", "--component", "text_encoder_2"];
    assert_eq!(place.run(&convert).code, 0);
    assert_eq!(place.run(&["inspect", "t5.gguf"]).code, 0);
    let bytes = std::fs::read(place.path("t5.gguf")).unwrap();
    // One of its weights under another name.
    let name = b"enc.blk.0.attn_q.weight";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    let mut damaged = bytes;
    damaged[at..at + name.len()].copy_from_slice(b"enc.blk.0.attn_x.weight");
    place.write("damaged.gguf", &damaged);
    let refused = place.run(&["inspect", "damaged.gguf"]);
    assert_eq!(refused.code, 1, "{}{}", refused.stdout, refused.stderr);
    assert!(
        refused.stdout.contains("enc.blk.0.attn_q.weight") || refused.stderr.contains("problem"),
        "{}",
        refused.stdout
    );
}
