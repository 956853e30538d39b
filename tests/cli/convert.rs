use std::fs;

use super::run::{Workplace, mini_bytes};

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
    place.run(&["convert", "mini", "-o", "new.gguf", "--type", "f16", "--dry-run"]).snapshot("convert_dry_run");
    assert_eq!(place.names(), ["q8_0.gguf"]);
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
