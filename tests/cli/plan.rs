use serde_json::Value;

use super::run::Workplace;

const DISCRETE: [&str; 5] = ["plan", "-m", "mini", "--device", "cpu:discrete"];

fn plan(place: &Workplace, arguments: &[&str]) -> Value {
    place.json(&[&DISCRETE, arguments].concat())["plan"].take()
}

#[test]
fn success() {
    let place = Workplace::new();
    let one_thread = ["--threads", "1", "--width", "96", "--height", "64"];
    let with = |name: &str, arguments: &[&str]| {
        place.run(&[&DISCRETE, &one_thread[..], arguments].concat()).snapshot(&format!("plan_{name}"));
    };
    with("none", &["--offload", "none"]);
    with("model", &["--offload", "model"]);
    with("sequential", &["--offload", "sequential", "--vram", "64M", "--link", "1G"]);
    with("cache", &["--offload", "sequential", "--vram", "64M", "--link", "1G", "--cache", "teacache"]);
    place.run(&["plan", "-m", "mini", "--threads", "1"]).snapshot("plan_cpu");
}

#[test]
fn failures() {
    let place = Workplace::new();
    let with = |name: &str, arguments: &[&str]| {
        place.run(&[&DISCRETE[..], &["--threads", "1"], arguments].concat()).snapshot(&format!("plan_{name}"));
    };
    with("too_little", &["--vram", "1M"]);
    with("zero", &["--vram", "0"]);
    with("negative", &["--vram", "-1"]);
    with("no_size", &["--vram", "banana"]);
    with("no_mode", &["--offload", "disk"]);
    with("no_speed", &["--link", "fast"]);
    with("odd_size", &["--width", "100"]);
}

#[test]
fn passes_come_one_after_the_other_where_memory_is_short() {
    let place = Workplace::new();
    let guided = ["--cfg-scale", "3", "--batch", "3", "--width", "512", "--height", "512"];
    let whole = plan(&place, &guided);
    let one = place.json(&[&DISCRETE[..], &guided[..0], &["--width", "512", "--height", "512"]].concat());
    let all = place.json(&[&DISCRETE[..], &guided].concat());
    // The decoder takes one picture at a time in any case.
    assert!(all["least_budget_bytes"].as_u64() <= one["least_budget_bytes"].as_u64().map(|least| least * 5 / 4));
    let of = |plan: &Value| {
        let components = plan["components"].as_array().unwrap().clone();
        components.into_iter().find(|component| component["phase"] == "denoise").unwrap()
    };
    assert_eq!((&of(&whole)["batch"], &of(&whole)["parts_each_step"]), (&Value::from("all at once"), &Value::from(1)));
    let least = all["least_budget_bytes"].to_string();
    let short = [&["--vram", &least], &guided[..]].concat();
    assert!(of(&plan(&place, &short))["parts_each_step"].as_u64() > Some(1));
    let ran = place.run(&[&DISCRETE[..], &short].concat());
    assert!(ran.stderr.contains("transformer: 2 passes, one after the other"), "{}", ran.stderr);
    assert!(ran.stderr.contains("times in each step"), "{}", ran.stderr);
}

#[test]
fn units_are_all_the_same() {
    let place = Workplace::new();
    for budget in ["4GB", "4GiB", "4g", "4096M", "4294967296"] {
        assert_eq!(plan(&place, &["--vram", budget])["limit_bytes"], 4u64 << 30, "{budget}");
    }
    let all = plan(&place, &["--vram", "auto"]);
    assert!(all["limit_bytes"].as_u64().unwrap() > 64 << 20);
    assert_eq!(all["all_resident"], true);
}

#[test]
fn several_devices_have_a_plan_each() {
    let place = Workplace::new();
    let two = ["--device", "cpu:discrete,cpu:discrete1", "--vram", "64M,32M", "--threads", "2"];
    let size = ["--width", "64", "--height", "48", "--steps", "2", "--cfg-scale", "2"];
    let planned = place.json(&[&["plan", "-m", "mini"], &two[..], &size].concat());
    assert_eq!(planned["device"], "cpu:discrete,cpu:discrete1");
    let (first, second) = (&planned["plan"], &planned["plan"]["other_devices"][0]);
    assert_eq!((&first["device"], &first["limit_bytes"]), (&Value::from("cpu:discrete"), &Value::from(64 << 20)));
    assert_eq!((&second["device"], &second["limit_bytes"]), (&Value::from("cpu:discrete1"), &Value::from(32 << 20)));
    assert_eq!(second["components"][0]["batch"], "pass 2 of 2");
    let drawn = ["generate", "-m", "mini", "-p", "x", "-o", "x.png"];
    let memory = place.json(&[&drawn[..], &two, &size].concat())["memory"].take();
    for (at, planned) in [first, second].into_iter().enumerate() {
        let held = &memory["devices"][at];
        assert_eq!((&held["device"], &held["limit_bytes"]), (&planned["device"], &planned["limit_bytes"]));
        assert_eq!(held["device_peak_bytes"], planned["peak_bytes"]);
    }
    assert!(memory["phases"]["denoise@cpu:discrete1"]["exchanged_bytes"].as_u64() > Some(0), "{memory}");
    let said = place.run(&[&["plan", "-m", "mini"], &two[..], &size].concat());
    assert!(said.stderr.contains("transformer on cpu:discrete1: pass 2 of 2"), "{}", said.stderr);
    let tokens = ["--devices-by", "tokens"];
    let planned = place.json(&[&["plan", "-m", "mini"], &two[..], &size, &tokens].concat());
    let second = &planned["plan"]["other_devices"][0]["components"][0];
    assert_eq!(second["token_share"], serde_json::json!([1, 2]));
    assert!(second["exchanged_each_step_bytes"].as_u64() > Some(0), "{second}");
    let said = place.run(&[&["plan", "-m", "mini"], &two[..], &size, &tokens].concat());
    let expected = "transformer on cpu:discrete1: part 2 of 2 of the tokens; takes ";
    assert!(said.stderr.contains(expected) && said.stderr.contains("forecast"), "{}", said.stderr);
    let refused = place.run(&[&["plan", "-m", "mini"], &two[..], &["--devices-by", "heads"]].concat());
    let expected = "`heads` is not passes, tokens or stages";
    assert!(refused.code == 2 && refused.stderr.contains(expected), "{}: {}", refused.code, refused.stderr);
    for (devices, vram, expected) in [
        ("cpu:discrete,cpu:discrete0", "1G", "each device once"),
        ("cpu:discrete,cpu:discrete1", "1G,2G,3G", "one size, or one for each of 2 devices"),
        ("cpu:discrete", "1G,2G", "one size"),
        ("cpu:discrete,cuda77", "1G", "a device of this machine"),
        ("cpu:discrete,", "1G", "a device of this machine"),
    ] {
        let refused = place.run(&["plan", "-m", "mini", "--device", devices, "--vram", vram]);
        assert!(refused.code == 2 && refused.stderr.contains(expected), "{}: {}", refused.code, refused.stderr);
    }
}

#[test]
fn a_budget_above_the_device_is_clamped_with_a_note() {
    let place = Workplace::new();
    let outcome = place.run(&[&DISCRETE[..], &["--vram", "100T"]].concat());
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("more than cpu:discrete has"), "{}", outcome.stderr);
}

#[test]
fn what_is_refused_is_refused_before_anything_is_written() {
    let place = Workplace::new();
    let draw = ["generate", "-m", "mini", "-p", "x", "-o", "x.png", "--device", "cpu:discrete", "--vram"];
    let refused = place.run(&[&draw[..], &["2M"]].concat());
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    let (_, budget) = refused.stderr.split_once("--vram ").unwrap();
    assert!(place.names().is_empty());
    let works = place.run(&[&draw[..], &[budget.trim(), "--steps", "1"]].concat());
    assert_eq!(works.code, 0, "{}", works.stderr);
    assert_eq!(place.names(), ["x.png"]);
}

#[test]
fn flux_in_four_gibibytes() {
    let place = Workplace::new();
    for file_type in ["bf16", "q8_0", "q6_k", "q4_1", "q4_k_s"] {
        let file = format!("{file_type}.gguf");
        let made = place.run(&["bench", "model", "-o", &file, "--type", file_type, "--hollow"]);
        assert_eq!((made.code, made.stdout.trim()), (0, file.as_str()), "{}", made.stderr);
        let size =
            ["--width", "1024", "--height", "1024", "--vram", "4G", "--device", "cpu:discrete", "--threads", "2"];
        let report = place.json(&[&["plan", "-m", &file], &size[..]].concat());
        let (peak, least) = (&report["plan"]["peak_bytes"], &report["least_budget_bytes"]);
        assert!(peak.as_u64().unwrap() <= 4 << 30, "{file_type}: {peak}");
        assert!(least.as_u64().unwrap() <= peak.as_u64().unwrap(), "{file_type}: {least} of {peak}");
    }
    let again = place.run(&["bench", "model", "-o", "bf16.gguf", "--hollow"]);
    assert_eq!(again.code, 1, "{}", again.stderr);
}
