//! What a server adds to drawing.

use std::io::Write;
use std::time::{Duration, Instant};

use pinhole::ggml::Device;
use pinhole::pipeline::{Pipeline, Request};
use serde_json::json;

use crate::rig::{Served, pixels};

/// Jobs of each kind, in turn, so that whatever else the machine does meets both.
const ROUNDS: usize = 50;
/// Before what is measured: models are loaded, and threads started.
const WARM: usize = 5;
/// What a job may take beyond drawing its picture.
const MOST: Duration = Duration::from_millis(5);

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// The library plans, computes its phases, and encodes a picture. So does a server, and has HTTP, JSON and a queue beside. The phases are
/// the same computation and take most of the time: what is compared is what each takes beyond its own.
#[test]
#[ignore = "measures time: the machine has to be quiet, and --nocapture shows the numbers"]
fn a_job_takes_little_more_than_drawing_its_picture() {
    let served = Served::start(&[]);
    let mut pipeline = Pipeline::new(pinhole::open("mini").unwrap(), Device::best().unwrap()).unwrap();
    for (side, steps) in [(64, 2), (128, 4)] {
        let (mut alone, mut over_http, mut phases) = (Vec::new(), Vec::new(), Vec::new());
        for seed in 0..(WARM + ROUNDS) as u64 {
            let begun = Instant::now();
            let request = Request {
                seed,
                width: Some(side),
                height: Some(side),
                steps: Some(steps),
                ..Request::new("a red heart")
            };
            let mut generated = pipeline.generate(&request).unwrap();
            let image = generated.images.remove(0);
            let mut png = Vec::new();
            image.write_png(&mut png, &[]).unwrap();
            let all = begun.elapsed();
            let own: Duration = generated.timings.values().sum();
            alone.push(all.saturating_sub(own));
            phases.push(own);
            let drawing =
                json!({ "prompt": "a red heart", "width": side, "height": side, "steps": steps, "seed": seed });
            let begun = Instant::now();
            let done = served.post("/v1/jobs?wait=true", &drawing).json();
            let png = served.get(done["images"][0].as_str().unwrap()).body;
            let all = begun.elapsed();
            let seconds = done["outcome"]["seconds"].as_object().unwrap();
            let own: f64 = seconds.values().map(|time| time.as_f64().unwrap()).sum();
            over_http.push(all.saturating_sub(Duration::from_secs_f64(own)));
            assert_eq!(pixels(&png), image);
        }
        let [alone, over_http, phases] = [alone, over_http, phases].map(|times| median(times[WARM..].to_vec()));
        let added = over_http.saturating_sub(alone);
        let line = format!(
            "{side}x{side}, {steps} steps, {ROUNDS} of each: beyond phases of {phases:.2?}, {alone:.2?} by the library and {over_http:.2?} \
             over HTTP: {added:.2?} more\n"
        );
        std::io::stdout().write_all(line.as_bytes()).unwrap();
        assert!(added <= MOST, "{line}");
    }
}
