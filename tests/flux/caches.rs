//! Step caches against diffusers in float32: the same evaluations are skipped, and the same latents come of it. The expected ones were
//! recorded by `tests/reference/caches.py`. And what a cache must not change: that plans are kept, and that what streams draws what stays.

use std::fs;

use crate::support::drawing::{bits, open};
use crate::support::{self, Golden, Layout, given, in_parts};
use pinhole::convert::{self, WriteOptions};
use pinhole::ggml::{CancelFlag, Device};
use pinhole::pipeline::{
    self, Cache, CacheKind, CacheRequest, Event, Generated, MemoryOptions, Opened, Phase, Pipeline, ReferenceResize,
    Request, skipped,
};
use pinhole::plan::Offload;
use pinhole::sample::Sampler;
use pinhole_quant::metrics;
use pinhole_quant::recipe::FileType;
use serde_json::Value;
use tempfile::TempDir;

/// Two threads, as many as the smallest machine that runs the tests has.
const THREADS: usize = 2;

/// How far the latents may be from diffusers'. Of FLUX.1 Fill, a guidance of 30 is an angle of up to 30,000, and PyTorch's exponential
/// function is off by one unit in the last place for two of the 128 frequencies.
const MODELS: [(&str, f64); 2] = [("flux_cache", 1e-9), ("flux_cache_fill", 1e-7)];

/// The model of a golden as a directory.
fn directory(golden: &Golden) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    support::write_model(dir.path(), golden, &Layout::default());
    let path = dir.path().join("model_index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    index["_class_name"] = golden.at("/class").clone();
    fs::write(path, index.to_string()).unwrap();
    dir
}

fn on(model: Opened, device: &str) -> Pipeline {
    let device = Device::by_name(device).unwrap();
    Pipeline::with_threads(model, device, THREADS, CancelFlag::new()).unwrap()
}

/// The request of a case, and which evaluations it computes in each pass.
fn case(golden: &Golden, case: &str) -> (Request, Vec<Vec<bool>>) {
    let at = |key: &str| golden.at(&format!("/cases/{case}/{key}"));
    let whole = |key: &str| at(key).as_u64().map(|number| number as usize);
    let number = |key: &str| at(key).as_f64().map(|number| number as f32);
    let (width, height) = (whole("width").unwrap(), whole("height").unwrap());
    let has = |key: &str| at(key).as_bool().unwrap();
    let reference = at("reference").as_array().map(|sides| [0, 1].map(|i| sides[i].as_u64().unwrap() as usize));
    let cache: CacheRequest = at("cache").as_str().unwrap().parse().unwrap();
    let request = Request {
        prompt: at("prompt").as_str().unwrap().to_owned(),
        negative_prompt: at("negative_prompt").as_str().map(str::to_owned),
        width: Some(width),
        height: Some(height),
        steps: whole("steps"),
        seed: at("seed").as_u64().unwrap(),
        guidance: number("guidance_scale"),
        cfg_scale: number("cfg_scale"),
        strength: number("strength"),
        max_sequence_length: whole("max_sequence_length"),
        image: has("image").then(|| given::picture(width, height)),
        mask: has("masked").then(|| given::mask(width, height)),
        references: reference.map(|[width, height]| given::picture(width, height)).into_iter().collect(),
        reference_resize: ReferenceResize::None,
        batch: whole("batch").unwrap(),
        cache: Some(CacheRequest { threshold: number("threshold"), ..cache }),
        ..Request::default()
    };
    let mut computed = Vec::new();
    for pass in at("computed").as_array().unwrap() {
        computed.push(pass.as_array().unwrap().iter().map(|mark| mark.as_bool().unwrap()).collect());
    }
    (request, computed)
}

fn generate(pipeline: &mut Pipeline, request: &Request) -> Generated {
    let mut stages = (0, 0);
    let generated = pipeline
        .generate_watched(request, &mut |event: Event| {
            match event {
                Event::Begin { phase: Phase::Denoise, stages: all, .. } => stages = (0, all),
                Event::Stage => stages.0 += 1,
                Event::End { phase: Phase::Denoise } => assert_eq!(stages.0, stages.1),
                _ => {}
            }
            Ok(())
        })
        .unwrap();
    for phase in &generated.phases {
        assert_eq!(phase.measured.peak, phase.planned, "{:?}: {:?}", phase.phase, phase.measured);
    }
    assert_eq!(generated.memory.peak, generated.plan.peak());
    generated
}

#[test]
fn latents_and_what_is_skipped_equal_diffusers() {
    let mut wrong = Vec::new();
    for (name, most) in MODELS {
        let golden = Golden::load(name);
        let dir = directory(&golden);
        let mut pipeline = on(open(dir.path()), "cpu");
        for key in golden.at("/cases").as_object().unwrap().keys() {
            let (request, computed) = case(&golden, key);
            let generated = generate(&mut pipeline, &request);
            let nmse = metrics::nmse(&golden.f32(&format!("{key}.latents")), &generated.latents).unwrap();
            println!("{name} {key}: nmse {nmse:.2e} (at most {most:.0e})");
            if generated.computed != computed {
                wrong.push(format!("{name} {key}: computed {:?}, expected {computed:?}", generated.computed));
            } else if nmse > most {
                wrong.push(format!("{name} {key}: {nmse:.2e}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn streamed_equals_resident() {
    let golden = Golden::load("flux_cache");
    let dir = directory(&golden);
    for file_type in [None, Some("q8_0"), Some("q4_k_s")] {
        let path = dir.path().join("bundle.gguf");
        let model = match file_type {
            None => open(dir.path()),
            Some(file_type) => {
                let model = open(dir.path());
                let plan =
                    convert::plan(&model.source, &model.networks(), file_type.parse::<FileType>().unwrap()).unwrap();
                plan.write(&path, WriteOptions { overwrite: true, ..WriteOptions::default() }, &mut |_| Ok(()))
                    .unwrap();
                open(&path)
            }
        };
        let mut pipeline = on(model, "cpu:discrete");
        for key in ["teacache_cfg", "first_block_batch", "first_block_cfg", "magcache_start", "taylorseer_cfg"] {
            let (request, _) = case(&golden, key);
            let mut draw = |offload| {
                pipeline.set_memory(MemoryOptions { vram: None, offload, host: None });
                generate(&mut pipeline, &request)
            };
            let (resident, streamed) = (draw(Offload::None), draw(Offload::Sequential));
            assert!(resident.plan.all_resident && !streamed.plan.all_resident);
            assert_eq!(resident.computed, streamed.computed, "{key} {file_type:?}");
            assert!(skipped(&streamed.computed) > 0, "{key} {file_type:?}");
            assert!(bits(&resident) == bits(&streamed), "{key} {file_type:?}: other latents");
            assert!(resident.images == streamed.images, "{key} {file_type:?}: other pictures");
        }
    }
}

#[test]
fn passes_one_after_the_other_draw_the_same() {
    let golden = Golden::load("flux_cache");
    let dir = directory(&golden);
    let mut pipeline = on(open(dir.path()), "cpu:discrete");
    for key in ["teacache_cfg", "first_block_cfg", "magcache_cfg", "taylorseer_cfg"] {
        let (request, _) = case(&golden, key);
        let request = Request { batch: 2, width: Some(48), height: Some(48), ..request };
        in_parts::draws_the_same(&mut pipeline, &request, key);
    }
}

/// With a slot for each of two stages, and as little else as there can be on the device.
#[test]
fn skipped_steps_move_nothing() {
    let mut pipeline = on(pinhole::open("mini").unwrap(), "cpu:discrete");
    for (kind, threshold) in [
        (CacheKind::TeaCache, 1.0),
        (CacheKind::FirstBlock, 0.3),
        (CacheKind::FirstBlock, 1e9),
        (CacheKind::MagCache, 0.2),
        (CacheKind::TaylorSeer, 4.0),
    ] {
        let request = Request {
            width: Some(64),
            height: Some(48),
            steps: Some(10),
            cache: Some(Cache { kind, threshold }.into()),
            ..Request::new("a red circle")
        };
        pipeline.set_memory(MemoryOptions { vram: None, offload: Offload::Sequential, host: None });
        let least = pipeline.least_budget(&request).unwrap();
        pipeline.set_memory(MemoryOptions { vram: Some(least), offload: Offload::Sequential, host: None });
        let streamed = generate(&mut pipeline, &request);
        let plan = streamed.plan.component("transformer").unwrap();
        // The miniature has two passes, one after the other: each brings what it computes with.
        let (parts, passes) = (plan.batch.parts_each_step(), streamed.computed.len());
        assert_eq!((parts, passes), (2, 2));
        let steps = streamed.computed.iter().flatten().filter(|computed| **computed).count();
        let measured = streamed.phases.iter().find(|phase| phase.phase == Phase::Denoise).unwrap().moved as usize;
        let bytes = plan.moved_once + plan.moved_each_step / parts * steps;
        println!("{kind:?}: {steps} of 20 steps, {measured} of {bytes} bytes, {} each step", plan.moved_each_step);
        assert!(plan.placement.slots == 2 && steps < 20 && steps > 0);
        assert_eq!(plan.moved(), plan.moved_once + 10 * plan.moved_each_step);
        // What is planned counts alignment; and if the last step is skipped, its first stages have come already.
        let ahead = if streamed.computed[1][9] { 0 } else { 2 * plan.placement.slot_bytes };
        assert!(measured <= bytes + ahead && measured > bytes * 9 / 10, "{measured} of {bytes}");
    }
}

#[test]
fn every_evaluation_of_a_sampler_is_decided() {
    let mut pipeline = on(pinhole::open("mini").unwrap(), "cpu");
    let request = |cache: Option<&str>| Request {
        width: Some(48),
        height: Some(64),
        steps: Some(6),
        sampler: Some(Sampler::Heun),
        cache: cache.map(|cache| cache.parse().unwrap()),
        ..Request::new("a blue ring")
    };
    let whole = generate(&mut pipeline, &request(None));
    assert!(whole.computed.is_empty());
    for cache in ["teacache:0.3", "first-block:0.2", "magcache:0.3", "taylorseer:2"] {
        let generated = generate(&mut pipeline, &request(Some(cache)));
        assert_eq!(generated.computed[0].len(), 11, "{cache}");
        assert!(generated.computed[0][0], "{cache}");
    }
    // Nothing is skipped: not a bit changes.
    for cache in ["first-block:0", "taylorseer:1"] {
        let generated = generate(&mut pipeline, &request(Some(cache)));
        assert_eq!(skipped(&generated.computed), 0, "{cache}");
        assert!(bits(&generated) == bits(&whole), "{cache}");
    }
}

#[test]
fn weights_that_stay_serve_requests_with_and_without() {
    let mut pipeline = on(pinhole::open("mini").unwrap(), "cpu:discrete");
    pipeline.set_memory(MemoryOptions { vram: None, offload: Offload::None, host: None });
    let request = |cache: Option<&str>| Request {
        width: Some(48),
        height: Some(48),
        steps: Some(5),
        cache: cache.map(|cache| cache.parse().unwrap()),
        ..Request::new("a green square")
    };
    let first = generate(&mut pipeline, &request(None));
    let cached = generate(&mut pipeline, &request(Some("first-block:0.4")));
    for cache in ["magcache:0.3", "teacache:0.4", "taylorseer:2"] {
        generate(&mut pipeline, &request(Some(cache)));
    }
    assert!(bits(&generate(&mut pipeline, &request(Some("first-block:0.4")))) == bits(&cached));
    assert!(bits(&generate(&mut pipeline, &request(None))) == bits(&first));
    assert_ne!(cached.plan.peak(), first.plan.peak());
}

#[test]
fn models_without_a_cache_and_thresholds_that_cannot_work() {
    let mini = pinhole::open("mini").unwrap();
    let refused = |model: &Opened, cache: CacheRequest| {
        let request = Request { cache: Some(cache), ..Request::new("") };
        pipeline::settings(model, &request).unwrap_err().to_string()
    };
    let error = refused(&mini, Cache { kind: CacheKind::TeaCache, threshold: f32::INFINITY }.into());
    assert_eq!(error, "--cache: expected a finite threshold of at least 0 behind teacache:, found inf");
    let error = refused(&mini, Cache { kind: CacheKind::TaylorSeer, threshold: 0.0 }.into());
    assert_eq!(error, "--cache: expected a whole number of evaluations from 1 to 1000 behind taylorseer:, found 0");
    let golden = Golden::load("sd1");
    let dir = tempfile::tempdir().unwrap();
    support::sd1::write_directory(dir.path(), &golden, golden.at("/scheduler"));
    let error = refused(&open(dir.path()), CacheRequest::new(CacheKind::MagCache));
    assert_eq!(error, "--cache: expected none, since no step cache is defined for this model, found magcache");
}
