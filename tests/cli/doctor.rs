use serde_json::Value;

use super::run::{Workplace, snapshot};

/// What differs from machine to machine becomes its type.
fn redacted(value: &mut Value) {
    match value {
        Value::Object(members) => members.values_mut().for_each(redacted),
        Value::Array(items) => {
            items.truncate(1);
            items.iter_mut().for_each(redacted);
        }
        Value::String(text) => *text = "[text]".into(),
        Value::Number(_) => *value = "[number]".into(),
        Value::Bool(_) => *value = "[bool]".into(),
        Value::Null => {}
    }
}

#[test]
fn what_there_is() {
    let place = Workplace::new();
    let mut report = place.json(&["doctor", "--arch", "sd1.5", "--type", "q8_0", "--device", "cpu", "--quiet"]);
    assert!(place.names().is_empty(), "the disk is measured with nothing left behind");
    assert!(report["disk"]["bytes_per_second"].as_u64().unwrap() > 0);
    assert_eq!(report["plan"]["model"], "sd1.5 in q8_0");
    let devices = place.json(&["devices"]);
    let names = |report: &Value| -> Vec<Value> {
        report["devices"].as_array().unwrap().iter().map(|device| device["name"].clone()).collect()
    };
    assert_eq!(names(&report), names(&devices));
    // The machine's own problems, and the shapes of everything else.
    for problem in report["problems"].as_array().unwrap() {
        assert!(!problem["found"].as_str().unwrap().is_empty() && !problem["advice"].as_str().unwrap().is_empty());
    }
    for varying in ["problems", "cards"] {
        report[varying] = Value::Null;
    }
    report["memory"]["address_bytes"] = Value::Null;
    redacted(&mut report);
    snapshot("doctor_json", &serde_json::to_string_pretty(&report).unwrap());
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
