//! Step caches with Wan against diffusers in float32: the same evaluations are skipped, and the same latents come of it. What is expected
//! was recorded by `tests/reference/wan_caches.py`.

use std::path::Path;

use super::wan::{bits, generate, on, open, request};
use crate::support::sd1::{Tensor, write_tensors};
use crate::support::wan::write_directory;
use crate::support::z_image::tensors;
use crate::support::{Golden, given, in_parts};
use pinhole::pipeline::{self, CacheKind, CacheRequest, MemoryOptions, Request, skipped};
use pinhole::plan::Offload;
use pinhole_quant::metrics;
use tempfile::TempDir;

/// How far latents may be from the reference's.
const MOST: f64 = 1e-7;

/// A tensor as the golden has it: what becomes of a time is made more like what becomes of the next.
fn smoothed(golden: &Golden, mut tensor: Tensor) -> Tensor {
    let [factor, offset] = [0, 1].map(|i| golden.at("/smoothed")[i].as_f64().unwrap() as f32);
    for value in &mut tensor.values {
        match tensor.name.strip_prefix("condition_embedder.time_embedder.linear_2.") {
            Some("weight") => *value *= factor,
            Some("bias") => *value += offset,
            _ => {}
        }
    }
    tensor
}

/// The `model` of the golden `wan` as a directory with that name, with transformers as they are here.
fn directory(golden: &Golden, model: &str, name: &str) -> TempDir {
    let (networks, dir) = (Golden::load("wan"), tempfile::tempdir().unwrap());
    let path = dir.path().join(name);
    write_directory(&path, &networks, model);
    let transformers = networks.list(&format!("/models/{model}/transformers"));
    for (slot, transformer) in ["transformer", "transformer_2"].into_iter().zip(transformers) {
        let all = tensors(&networks, transformer.as_str().unwrap()).into_iter().map(|tensor| smoothed(golden, tensor));
        let file = path.join(slot).join("diffusion_pytorch_model.safetensors");
        write_tensors(&file, &all.collect::<Vec<Tensor>>());
    }
    dir
}

/// The request of a case, and which evaluations it computes in each pass.
fn case(golden: &Golden, case: &str) -> (Request, Vec<Vec<bool>>) {
    let at = |key: &str| golden.at(&format!("/cases/{case}/{key}"));
    let cache: CacheRequest = at("cache").as_str().unwrap().parse().unwrap();
    let threshold = at("threshold").as_f64().map(|threshold| threshold as f32);
    let request = Request { cache: Some(CacheRequest { threshold, ..cache }), ..request(golden, case) };
    let mut computed = Vec::new();
    for pass in at("computed").as_array().unwrap() {
        computed.push(pass.as_array().unwrap().iter().map(|mark| mark.as_bool().unwrap()).collect());
    }
    (request, computed)
}

/// The model of a case as the directory `wan` in a folder, and its request.
pub(super) fn written(key: &str) -> (TempDir, Request) {
    let golden = Golden::load("wan_caches");
    let dir = directory(&golden, golden.text(&format!("/cases/{key}/model")), "wan");
    (dir, case(&golden, key).0)
}

/// A folder's name as it is published, by which models for pictures are told apart.
fn published(coefficients: &str) -> &'static str {
    if coefficients == "i2v-720p" { "Wan2.1-I2V-14B-720P-Diffusers" } else { "Wan2.1-I2V-14B-480P-Diffusers" }
}

#[test]
fn latents_and_what_is_skipped_equal_diffusers() {
    let (golden, mut wrong) = (Golden::load("wan_caches"), Vec::new());
    for (key, described) in golden.at("/cases").as_object().unwrap() {
        let name = published(described["coefficients"].as_str().unwrap());
        let dir = directory(&golden, described["model"].as_str().unwrap(), name);
        let (request, computed) = case(&golden, key);
        let generated = generate(&mut on(open(&dir.path().join(name)), "cpu"), &request);
        let nmse = metrics::nmse(&golden.f32(&format!("{key}.latents")), &generated.latents).unwrap();
        println!("{key}: nmse {nmse:.2e} (at most {MOST:.0e})");
        if generated.computed != computed {
            wrong.push(format!("{key}: computed {:?}, expected {computed:?}", generated.computed));
        } else if nmse.is_nan() || nmse > MOST {
            wrong.push(format!("{key}: {nmse:.2e}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn streamed_equals_resident() {
    let golden = Golden::load("wan_caches");
    for key in ["teacache_cfg", "first_block_pair", "magcache_cfg", "taylorseer_cfg"] {
        let model = golden.text(&format!("/cases/{key}/model"));
        let dir = directory(&golden, model, "wan");
        let mut pipeline = on(open(&dir.path().join("wan")), "cpu:discrete");
        let (request, _) = case(&golden, key);
        let mut draw = |offload| {
            pipeline.set_memory(MemoryOptions { vram: None, offload, host: None });
            generate(&mut pipeline, &request)
        };
        let (resident, streamed) = (draw(Offload::None), draw(Offload::Sequential));
        assert!(resident.plan.all_resident && !streamed.plan.all_resident);
        assert_eq!(resident.computed, streamed.computed, "{key}");
        assert!(skipped(&streamed.computed) > 0, "{key}");
        assert!(bits(&resident) == bits(&streamed), "{key}: other latents");
        assert!(resident.images == streamed.images, "{key}: other frames");
    }
}

/// Guidance passes one after the other.
#[test]
fn passes_may_come_one_by_one() {
    let golden = Golden::load("wan_caches");
    for key in ["teacache_cfg", "first_block_pair", "magcache_cfg", "taylorseer_cfg"] {
        let dir = directory(&golden, golden.text(&format!("/cases/{key}/model")), "wan");
        let mut pipeline = on(open(&dir.path().join("wan")), "cpu:discrete");
        let (request, _) = case(&golden, key);
        in_parts::draws_the_same(&mut pipeline, &Request { batch: 2, ..request }, key);
    }
}

#[test]
fn models_have_caches_and_thresholds_of_their_own() {
    let golden = Golden::load("wan_caches");
    let threshold = |path: &Path| {
        let model = open(path);
        let needs = model.rules.first.is_some_and(|first| first.needed);
        let image = needs.then(|| given::picture(64, 64));
        let cache = Some(CacheRequest::new(CacheKind::TeaCache));
        let settings = pipeline::settings(&model, &Request { image, cache, ..Request::new("") });
        settings.map(|settings| settings.cache.unwrap().to_string()).map_err(|error| error.to_string())
    };
    for (model, name, expected) in [
        ("t2v", "wan", "teacache:0.08"),
        ("i2v", "wan2.1-i2v-14b-480p", "teacache:0.26"),
        ("i2v", "Wan2.1-I2V-14B-720P", "teacache:0.3"),
    ] {
        let dir = directory(&golden, model, name);
        assert_eq!(threshold(&dir.path().join(name)).unwrap(), expected, "{model} {name}");
    }
    for (model, expected) in [("t2v_pair", "first-block"), ("ti2v", "first-block, magcache, taylorseer")] {
        let dir = directory(&golden, model, model);
        let said = threshold(&dir.path().join(model)).unwrap_err();
        let expected =
            format!("--cache: expected none, or one that is defined for this model: {expected}, found teacache");
        assert_eq!(said, expected, "{model}");
    }
}
