use std::fs;

use pinhole_quant::recipe::FileType;

use super::run::{Workplace, mini_bytes, safetensors};

#[test]
fn a_bundle_is_written_and_reads_back() {
    let place = Workplace::new();
    let report = place.json(&["convert", "mini", "-o", "f32.gguf", "--type", "f32"]);
    assert_eq!(report["written"], true);
    assert_eq!(report["bytes"].as_u64().unwrap(), fs::metadata(place.path("f32.gguf")).unwrap().len());
    let inspected = place.json(&["inspect", "f32.gguf", "--check"]);
    assert_eq!(inspected["kind"], "bundle");
    assert_eq!(inspected["tensors"], report["tensors"]);
    assert_eq!(inspected["types"].as_array().unwrap().len(), 1);
    assert_eq!(inspected["types"][0]["type"], "f32");
    assert_eq!(place.names(), ["f32.gguf"]);
}

#[test]
fn success() {
    let place = Workplace::new();
    place.run(&["convert", "mini", "-o", "q8_0.gguf", "--type", "q8_0"]).snapshot("convert");
    place
        .run(&["convert", "mini", "-o", "t5.gguf", "--type", "f16", "--component", "text_encoder_2", "--dry-run"])
        .snapshot("convert_dry_run");
    assert_eq!(place.names(), ["q8_0.gguf"]);
}

#[test]
fn a_dry_run_lists_every_tensor_and_the_size() {
    let place = Workplace::new();
    for file_type in FileType::all() {
        let arguments = ["convert", "mini", "-o", "out.gguf", "--overwrite", "--type", file_type.name()];
        let planned = place.json(&[&arguments[..], &["--dry-run"]].concat());
        assert_eq!(planned["written"], false);
        let written = place.json(&arguments);
        let size = fs::metadata(place.path("out.gguf")).unwrap().len();
        assert_eq!((&planned["bytes"], &written["bytes"]), (&size.into(), &size.into()), "{file_type}");
        let listed = place.json(&["inspect", "out.gguf", "--tensors"])["tensor_list"].clone();
        let found =
            listed.as_array().unwrap().iter().map(|tensor| [&tensor["name"], &tensor["type"], &tensor["bytes"]]);
        let expected = planned["tensor_list"].as_array().unwrap().iter();
        assert!(found.eq(expected.map(|tensor| [&tensor["name"], &tensor["to"], &tensor["bytes"]])), "{file_type}");
    }
}

/// A LoRA of one layer, and a tensor that fits nothing.
fn lora(layer: &str, width: usize) -> Vec<u8> {
    let [down, up] = ["down", "up"].map(|part| format!("{layer}.lora_{part}.weight"));
    let numbers = vec![0.25; 2 * width];
    safetensors(&[(&down, &[2, width], &numbers), (&up, &[width, 2], &numbers), ("something", &[1], &[1.0])])
}

#[test]
fn loras_are_merged() {
    let place = Workplace::new();
    let layer = "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q";
    place.write("style.safetensors", &lora(layer, 256));
    place.write("other.safetensors", &lora("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q", 256));
    let convert = ["convert", "mini", "-o", "merged.gguf", "--type", "q8_0", "--merge"];
    let merge = |lora: &str, more: &[&str]| place.run(&[&convert[..], &[lora], more].concat());
    let component = ["--component", "text_encoder_2", "--dry-run"];
    merge("style.safetensors:0.5", &component).snapshot("convert_merge_dry_run");
    merge("other.safetensors", &[]).snapshot("convert_merge_other");
    merge("style.safetensors:inf", &[]).snapshot("convert_merge_strength");
    merge("missing.safetensors", &[]).snapshot("convert_merge_missing");
    assert_eq!(place.names(), ["other.safetensors", "style.safetensors"]);
    let two = ["style.safetensors:0.5", "--merge", "style.safetensors"];
    let report = place.json(&[&convert[..], &two].concat());
    let named = serde_json::json!([
        {"path": "style.safetensors", "strength": 0.5}, {"path": "style.safetensors", "strength": 1.0}
    ]);
    assert_eq!((&report["merged"], &report["merged_tensors"]), (&named, &1.into()));
    assert_eq!(report["warnings"].as_array().unwrap().len(), 2);
    let metadata = &place.json(&["inspect", "merged.gguf"])["metadata"];
    assert_eq!(metadata["pinhole.merged"], serde_json::json!(["style:0.5", "style:1"]));
    let onto_it = ["convert", "mini", "-o", "style.safetensors", "--overwrite", "--type", "q8_0"];
    let outcome = place.run(&[&onto_it[..], &["--merge", "style.safetensors"]].concat());
    assert!(outcome.code != 0 && outcome.stderr.contains("part of the source"), "{}", outcome.stderr);
}

#[test]
fn tensors_can_be_given_formats_of_their_own() {
    let place = Workplace::new();
    let convert = |patterns: &[&str]| {
        let arguments = ["convert", "mini", "-o", "x.gguf", "--type", "q8_0", "--dry-run"];
        let patterns = patterns.iter().flat_map(|pattern| ["--tensor", pattern]);
        place.run(&arguments.into_iter().chain(patterns).collect::<Vec<_>>())
    };
    let ran = convert(&["dit.single_blocks.*.linear1=q5_k", "img_in=q5_0"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let format = |name: &str| {
        let line = ran.stdout.lines().find(|line| line.trim_start().starts_with(name)).unwrap();
        line.split_whitespace().rev().nth(1).unwrap().to_owned()
    };
    assert_eq!(format("dit.single_blocks.3.linear1.weight"), "q5_k");
    assert_eq!(format("dit.single_blocks.3.linear2.weight"), "q8_0");
    assert_eq!(format("dit.img_in.weight"), "q5_0");
    convert(&["single_blocks.*.linear9=q8_0"]).snapshot("convert_pattern_without_match");
    convert(&["linear1"]).snapshot("convert_pattern_without_format");
    convert(&["*.bias=q8_0"]).snapshot("convert_pattern_of_vectors");
}

#[test]
fn what_is_quantized_is_quantized_again_only_where_asked_for() {
    let place = Workplace::new();
    let convert = |source: &str, output: &str, file_type: &str, more: &[&str]| {
        place.run(&[&["convert", source, "-o", output, "--type", file_type], more].concat())
    };
    // The built-in model is q8_0, which is a source like any other.
    assert_eq!(convert("mini", "q4_k.gguf", "q4_k_s", &["-q"]).code, 0);
    convert("q4_k.gguf", "q6_k.gguf", "q6_k", &[]).snapshot("convert_requantize_refused");
    convert("q4_k.gguf", "q6_k.gguf", "q6_k", &["--allow-requantize"]).snapshot("convert_requantize");
    // As they are, and as f32, quantized numbers lose nothing.
    assert_eq!(convert("q4_k.gguf", "same.gguf", "q4_k_s", &["-q"]).code, 0);
    assert_eq!(convert("q4_k.gguf", "f32.gguf", "f32", &["-q"]).code, 0);
    let numbers = |name: &str| fs::read(place.path(name)).unwrap();
    let (first, same) = (numbers("q4_k.gguf"), numbers("same.gguf"));
    // Behind the headers, which name the sources.
    let tail = first.len() / 2;
    assert!(first[first.len() - tail..] == same[same.len() - tail..]);
}

/// A conversion that takes a while, begun: it has a temporary file, or one without a name.
#[cfg(unix)]
fn begun(place: &Workplace) -> std::process::Child {
    // ggml makes these formats slowly.
    started(place, &["convert", "mini", "-o", "out.gguf", "--type", "iq4_nl,text_encoder=iq4_xs", "--threads", "1"], 0)
}

/// A command that has begun its output, in a place with as many `files` before.
#[cfg(unix)]
pub(super) fn started(place: &Workplace, arguments: &[&str], files: usize) -> std::process::Child {
    use std::process::Stdio;
    use std::time::{Duration, Instant};

    let child = place.command(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let patience = Instant::now() + Duration::from_secs(60);
    while place.names().len() == files && !has_a_file_without_a_name(&child) {
        assert!(Instant::now() < patience, "no output was begun");
        std::thread::sleep(Duration::from_millis(1));
    }
    child
}

/// Whether a process has a file open that no directory has.
#[cfg(unix)]
fn has_a_file_without_a_name(child: &std::process::Child) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{}/fd", child.id())) else { return false };
    let paths = open.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    paths
        .into_iter()
        .any(|path| path.to_string_lossy().contains("/#") && path.to_string_lossy().ends_with(" (deleted)"))
}

#[cfg(unix)]
fn signal(child: &std::process::Child, name: &str) {
    let sent = std::process::Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

#[test]
#[cfg(unix)]
fn signals_that_ask_for_an_end_leave_nothing_behind() {
    for name in ["-INT", "-TERM", "-HUP"] {
        let place = Workplace::new();
        let mut child = begun(&place);
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(130), "{name}");
        assert_eq!(place.names(), [""; 0], "{name}");
        // A user in a hurry.
        let mut child = begun(&place);
        for _ in 0..5 {
            signal(&child, name);
        }
        assert_eq!(child.wait().unwrap().code(), Some(130), "{name}");
        assert_eq!(place.names(), [""; 0], "{name}");
    }
}

#[test]
#[cfg(unix)]
fn what_a_killed_conversion_left_is_removed_by_the_next() {
    let place = Workplace::new();
    let mut child = begun(&place);
    signal(&child, "-KILL");
    assert_eq!(child.wait().unwrap().code(), None);
    // Nothing, where the system has files without a name; so one as others leave it.
    let left = place.names();
    assert!(left.iter().all(|name| name.ends_with(".part")), "{left:?}");
    fs::write(place.path(".out.gguf.pinhole-Stale1.part"), "left").unwrap();
    assert_eq!(place.run(&["convert", "mini", "-o", "out.gguf", "--type", "q8_0", "-q"]).code, 0);
    assert_eq!(place.names(), ["out.gguf"]);
}

/// A source that somebody cuts short while it is read is named, and nothing is left behind.
#[test]
#[cfg(target_os = "linux")]
fn a_source_that_is_cut_short_is_named() {
    let draw = ["-p", "a red circle", "--steps", "200", "--threads", "1", "-o", "out.png"];
    let convert = ["-o", "out.gguf", "--type", "iq4_nl,text_encoder=iq4_xs", "--threads", "1"];
    for arguments in
        [[&["generate", "-m", "model.gguf"][..], &draw].concat(), [&["convert", "model.gguf"][..], &convert].concat()]
    {
        let place = Workplace::new();
        place.write("model.gguf", &mini_bytes());
        let child = started(&place, &arguments, 1);
        let model = fs::File::options().write(true).open(place.path("model.gguf")).unwrap();
        model.set_len(1 << 16).unwrap();
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
        assert!(stderr.contains("model.gguf: ") && stderr.contains("it was cut short while it was in use"), "{stderr}");
        assert_eq!(place.names(), ["model.gguf"]);
    }
}

/// A limit on the size of files stands for a full disk: the write fails half-way. The signal that comes with it ends nothing.
#[test]
#[cfg(unix)]
fn a_disk_that_fills_up_leaves_nothing_behind() {
    for trap in ["trap '' XFSZ; ", ""] {
        let place = Workplace::new();
        let pinhole = env!("CARGO_BIN_EXE_pinhole");
        let script = format!("{trap}ulimit -f 8192; exec '{pinhole}' convert mini -o out.gguf --type f32");
        let output = std::process::Command::new("sh").args(["-c", &script]).current_dir(place.path(".")).output();
        let output = output.unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{trap}: {stderr}");
        assert!(stderr.starts_with("error: cannot write out.gguf: File too large"), "{trap}: {stderr}");
        assert_eq!(place.names(), [""; 0]);
    }
}

#[test]
fn components_by_themselves() {
    let place = Workplace::new();
    let convert = |component: &str| {
        place.run(&["convert", "mini", "-o", "part.gguf", "--type", "q8_0", "--component", component, "--overwrite"])
    };
    convert("transformer").snapshot("convert_component");
    place.run(&["inspect", "part.gguf"]).snapshot("inspect_component");
    convert("vae").snapshot("convert_component_unusual");
    convert("unet").snapshot("convert_component_unknown");
    // The transformer is enough for itself, and for nothing else.
    let again = ["convert", "part.gguf", "-o", "again.gguf", "--type", "q8_0"];
    assert_eq!(place.run(&[&again[..], &["--component", "transformer"]].concat()).code, 0);
    assert!(fs::read(place.path("part.gguf")).unwrap() == fs::read(place.path("again.gguf")).unwrap());
    place.run(&[&again[..], &["--overwrite"]].concat()).snapshot("convert_parts_missing");
}

#[test]
fn files_are_replaced_only_where_asked_for() {
    let place = Workplace::new();
    place.write("out.gguf", b"precious");
    place.run(&["convert", "mini", "-o", "out.gguf", "--type", "q8_0"]).snapshot("convert_exists");
    assert_eq!(fs::read(place.path("out.gguf")).unwrap(), b"precious");
    assert_eq!(place.run(&["convert", "mini", "-o", "out.gguf", "--type", "q8_0", "--overwrite", "-q"]).code, 0);
    assert!(fs::read(place.path("out.gguf")).unwrap().starts_with(b"GGUF"));
}

#[test]
fn failures() {
    let place = Workplace::new();
    place.write("empty/readme.txt", b"nothing here");
    place.write("cut.gguf", &mini_bytes()[..100_000]);
    let run = |source: &str, file_type: &str, output: &str| {
        place.run(&["convert", source, "-o", output, "--type", file_type])
    };
    run("missing", "q8_0", "o.gguf").snapshot("convert_missing");
    run("empty", "q8_0", "o.gguf").snapshot("convert_no_model");
    run("cut.gguf", "q8_0", "o.gguf").snapshot("convert_truncated");
    run("mini", "q9_9", "o.gguf").snapshot("convert_unknown_type");
    run("mini", "q8_0", "no/such/o.gguf").snapshot("convert_unwritable");
    assert_eq!(place.names(), ["cut.gguf", "empty"]);
}
