//! Pictures, masks and strengths that cannot work, and samplers and schedules that do not go with the model. All is refused
//! before anything is loaded.

use std::sync::Arc;

use pinhole::Result;
use pinhole::image::Picture;
use pinhole::pipeline::{Event, Generated, Pipeline, Request};
use pinhole::sample::Sampler;
use serde_json::json;

use crate::disk::{Disk, refused};
use crate::requests::small;
use crate::support::given;

/// A request that begins with a picture.
fn with_picture() -> Request {
    Request { image: Some(given::picture(32, 48)), steps: Some(4), ..small() }
}

/// What `pipeline` answers; fails if a phase has begun by then.
fn answer(pipeline: &mut Pipeline, request: &Request) -> Result<Generated> {
    let mut begun = Vec::new();
    let answer = pipeline.generate_watched(request, &mut |event: Event| {
        if let Event::Begin { phase, .. } = event {
            begun.push(phase);
        }
        Ok(())
    });
    assert!(answer.is_ok() || begun.is_empty(), "begun before the refusal: {begun:?}");
    answer
}

#[test]
fn the_request_itself_is_good() {
    let mut pipeline = Disk::new().pipeline();
    let request = Request { mask: Some(given::mask(32, 48)), strength: Some(0.5), ..with_picture() };
    assert_eq!(answer(&mut pipeline, &request).unwrap().images.len(), 1);
}

#[test]
fn a_mask_or_a_strength_alone() {
    let mut pipeline = Disk::new().pipeline();
    let request = Request { mask: Some(given::mask(32, 48)), ..small() };
    let error =
        refused!(Option, answer(&mut pipeline, &request), "--mask", "together with its picture", "a mask alone");
    assert!(error.hint().unwrap().contains("--image"));
    let request = Request { strength: Some(0.5), ..small() };
    let error = refused!(Option, answer(&mut pipeline, &request), "--strength", "with a picture", "a strength alone");
    assert!(error.hint().unwrap().contains("--image"));
}

#[test]
fn strengths_that_are_none() {
    let mut pipeline = Disk::new().pipeline();
    for (strength, found) in [(-1.0, "-1"), (2.0, "2"), (f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let request = Request { strength: Some(strength), ..with_picture() };
        refused!(Option, answer(&mut pipeline, &request), "--strength", "0 to 1", found);
    }
    let request = Request { strength: Some(0.0), ..with_picture() };
    refused!(Option, answer(&mut pipeline, &request), "--strength", "at least 1 of 4 steps", "found 0");
    // A flow rounds up, as in diffusers: the least that there is takes one step.
    let request = Request { strength: Some(0.01), ..with_picture() };
    assert_eq!(answer(&mut pipeline, &request).unwrap().images.len(), 1);
}

#[test]
fn a_mask_of_another_size() {
    let mut pipeline = Disk::new().pipeline();
    let request = Request { mask: Some(given::mask(48, 32)), ..with_picture() };
    let error = refused!(Mismatch, answer(&mut pipeline, &request), "mask", "32x48 pixels", "48x32");
    assert!(error.hint().unwrap().contains("resize or crop"));
}

#[test]
fn pictures_that_are_too_large_or_none() {
    let of = |width, height, bytes: usize| Picture::from_rgb8(width, height, &vec![0; bytes]).map(Arc::new);
    refused!(Option, of(0, 0, 0), "picture", "at least one");
    refused!(Option, of(4, 4, 47), "picture", "48 bytes", "47 bytes");
    refused!(Option, of(16385, 1, 16385 * 3), "picture", "16384", "16385x1");
    refused!(Option, of(usize::MAX, usize::MAX, 3), "picture", "16384");
}

#[test]
fn an_autoencoder_without_its_encoder() {
    let disk = Disk::new();
    disk.edit_tensors("vae", |tensors| {
        tensors.retain(|name, _| !name.starts_with("encoder.") && !name.starts_with("quant_conv."));
    });
    let mut pipeline = disk.pipeline();
    assert_eq!(answer(&mut pipeline, &small()).unwrap().images.len(), 1);
    let error = refused!(Option, answer(&mut pipeline, &with_picture()), "--image", "can encode", "a decoder alone");
    assert!(error.hint().unwrap().contains("--vae"));
}

#[test]
fn samplers_of_other_models() {
    let mut pipeline = Disk::new().pipeline();
    for &sampler in Sampler::ALL {
        let request = Request { sampler: Some(sampler), ..small() };
        if Sampler::FLOW.contains(&sampler) {
            answer(&mut pipeline, &request).unwrap();
            continue;
        }
        let named = format!("`{sampler}`");
        refused!(Option, answer(&mut pipeline, &request), "--sampler", "one of: euler", &named);
    }
}

#[test]
fn schedules_of_other_models() {
    let config = "scheduler/scheduler_config.json";
    let disk = Disk::new();
    disk.edit(config, |config| config["_class_name"] = "DreamScheduler".into());
    let known = ["_class_name", "FlowMatchEulerDiscreteScheduler", "PNDMScheduler", "DreamScheduler"];
    refused!(Mismatch, disk.open(), config, known[0], known[1], known[2], known[3]);
    // A class that is known, of models with discrete timesteps.
    disk.write(config, json!({ "_class_name": "PNDMScheduler", "skip_prk_steps": true }).to_string());
    refused!(Mismatch, disk.open(), config, "FlowMatchEulerDiscreteScheduler", "PNDMScheduler");
}

#[test]
fn classes_of_pipelines_that_are_not_run() {
    for class in ["LTXPipeline", "StableDiffusion3Pipeline", "FluxControlNetPipeline", "Flux2KleinKVPipeline"] {
        let disk = Disk::new();
        disk.edit("model_index.json", |index| index["_class_name"] = class.into());
        let error = refused!(NotAModel, disk.open(), class);
        let hint = error.hint().unwrap();
        assert!(hint.contains("this version runs: ") && hint.contains("FluxPipeline"), "{hint}");
    }
}
