//! Noise and schedules against torch and diffusers, as recorded.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod support;

use std::path::Path;

use pinhole::sample::{FlowMatchConfig, randn};
use pinhole_quant::metrics;
use support::Golden;

/// How far a number may be from torch's.
const MOST: f64 = 1e-6;

/// How many numbers the longest recorded draw has, and which of them were recorded.
const LONG: usize = 262_144;
const EVERY: usize = 1021;
const ENDS: usize = 16;

#[track_caller]
fn assert_close(what: &str, reference: &[f32], value: &[f32]) {
    let error = metrics::max_error(reference, value).unwrap_or_else(|| panic!("{what}: lengths differ"));
    assert!(error <= MOST, "{what}: off by {error}");
}

#[test]
fn noise_is_that_of_torch() {
    let golden = Golden::load("noise");
    for seed in [0, 42, (1 << 32) + 5, 1 << 63, u64::MAX] {
        for n in [5, 17, 64] {
            assert_close(&format!("seed {seed}, {n}"), &golden.f32(&format!("{seed}.{n}")), &randn(seed, n).unwrap());
        }
        let drawn = randn(seed, LONG).unwrap();
        let recorded = |part: &str| golden.f32(&format!("{seed}.{LONG}.{part}"));
        assert_close("first", &recorded("first"), &drawn[..ENDS]);
        assert_close("last", &recorded("last"), &drawn[LONG - ENDS..]);
        let sample: Vec<f32> = drawn.iter().copied().step_by(EVERY).collect();
        assert_close("sample", &recorded("sample"), &sample);
        let sums = golden.f64(&format!("{seed}.{LONG}.sums"));
        let sum: f64 = drawn.iter().copied().map(f64::from).sum();
        let absolute: f64 = drawn.iter().map(|value| f64::from(value.abs())).sum();
        let most = MOST * LONG as f64;
        assert!((sum - sums[0]).abs() <= most && (absolute - sums[1]).abs() <= most, "{sum} {absolute} {sums:?}");
    }
}

#[test]
fn sigmas_are_those_of_diffusers() {
    let golden = Golden::load("sigmas");
    for (i, schedule) in golden.list("/schedules").iter().enumerate() {
        let text = schedule["scheduler"].to_string();
        let config = FlowMatchConfig::from_json(&text, Path::new("scheduler_config.json")).unwrap();
        for (j, run) in golden.list(&format!("/schedules/{i}/runs")).iter().enumerate() {
            let [steps, tokens] = ["steps", "tokens"].map(|key| run[key].as_u64().unwrap() as usize);
            let recorded = golden.numbers(&format!("/schedules/{i}/runs/{j}/sigmas"));
            let sigmas = config.sigmas(steps, tokens).unwrap();
            let what = format!("{} at {steps} steps, {tokens} tokens", schedule["name"]);
            assert_close(&what, &recorded, &sigmas);
        }
    }
}
