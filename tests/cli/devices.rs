use super::run::Workplace;

#[test]
fn the_cpu_is_listed() {
    let place = Workplace::new();
    let report = place.json(&["devices"]);
    let cpu = report["devices"].as_array().unwrap().iter().find(|device| device["name"] == "cpu").unwrap();
    assert_eq!(cpu["kind"], "cpu");
    assert!(cpu["memory_total_bytes"].as_u64().unwrap() > 1 << 20);
    assert_eq!(cpu["attention_sums"], "f32");
    let outcome = place.run(&["devices"]);
    assert_eq!(outcome.code, 0);
    assert!(outcome.stdout.starts_with("  name") && outcome.stdout.contains("\n  cpu"), "{}", outcome.stdout);
    assert_eq!(outcome.stdout.lines().count(), 1 + report["devices"].as_array().unwrap().len());
}

#[test]
fn an_unknown_option_is_refused() {
    Workplace::new().run(&["devices", "--all"]).snapshot("devices_unknown_option");
}
