use serde_json::Value;

use super::run::Workplace;

/// What every machine has something to say about.
const SAID: [(&str, &[&str]); 5] = [
    ("build", &["system", "ggml", "computes_on", "compiled_for"]),
    ("processor", &["cores", "instructions", "unused"]),
    ("disk", &["path", "bytes", "bytes_per_second"]),
    ("cards", &["found", "drivers", "closed"]),
    ("plan", &["model", "device", "width", "height", "steps", "model_bytes"]),
];

#[test]
fn what_there_is() {
    let place = Workplace::new();
    let report = place.json(&["doctor", "--arch", "sd1.5", "--type", "q8_0", "--device", "cpu", "--quiet"]);
    assert!(place.names().is_empty(), "the disk is measured with nothing left behind");
    assert!(report["disk"]["bytes_per_second"].as_u64().unwrap() > 0);
    assert_eq!(report["plan"]["model"], "sd1.5 in q8_0");
    let devices = place.json(&["devices"]);
    let names = |report: &Value| -> Vec<Value> {
        report["devices"].as_array().unwrap().iter().map(|device| device["name"].clone()).collect()
    };
    assert_eq!(names(&report), names(&devices));
    for (part, members) in SAID {
        for member in members {
            assert!(!report[part][member].is_null(), "{part}: {member}: {report}");
        }
    }
    for problem in report["problems"].as_array().unwrap() {
        assert!(!problem["found"].as_str().unwrap().is_empty() && !problem["advice"].as_str().unwrap().is_empty());
    }
}

/// The same plan as that of the model in a file.
#[test]
fn the_plan_is_that_of_the_model() {
    let place = Workplace::new();
    assert_eq!(place.run(&["bench", "model", "-o", "dev.gguf", "--hollow", "--quiet"]).code, 0);
    let device = ["--device", "cpu:discrete", "--quiet"];
    let planned = place.json(&[&["plan", "-m", "dev.gguf"], &device[..]].concat());
    let report = place.json(&[&["doctor"], &device[..]].concat());
    assert_eq!(
        report["plan"]["model_bytes"].as_u64().unwrap(),
        std::fs::metadata(place.path("dev.gguf")).unwrap().len()
    );
    // What is free changes from moment to moment; what stages there are does not.
    let stages = |plan: &Value| -> Vec<Value> {
        let components = plan["plan"]["components"].as_array().unwrap();
        components.iter().map(|component| component["stages"].clone()).collect()
    };
    match report["plan"]["refusal"].as_str() {
        Some(refusal) => assert!(refusal.contains("GiB"), "{refusal}"),
        None => assert_eq!(stages(&report["plan"]), stages(&planned)),
    }
}

#[test]
fn as_text() {
    let place = Workplace::new();
    let outcome = place.run(&["doctor", "--arch", "sd1.5", "--device", "cpu:discrete"]);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    for said in [
        "  system",
        "  instructions",
        "  memory",
        "reads ",
        "\ndevices\n",
        "plan of sd1.5 in q4_k_s",
        "cpu:discrete",
        "problem",
    ] {
        assert!(outcome.stdout.contains(said), "{said}: {}", outcome.stdout);
    }
}

#[test]
fn what_cannot_be_looked_at() {
    let place = Workplace::new();
    place.run(&["doctor", "--path", "none"]).snapshot("doctor_no_path");
    place.run(&["doctor", "--device", "cuda9"]).snapshot("doctor_no_device");
    assert_eq!(place.run(&["doctor", "--arch", "dalle"]).code, 2);
}
