//! VACE, of one network and of two experts, against diffusers in float32; recorded by `tests/reference/wan_vace.py`.

use std::sync::Arc;

use super::wan::{bits, bundle, directory_of, generate, last_picture, on, open, with};
use crate::support::cases::films_equal_the_reference;
use crate::support::numbers::Format;
use crate::support::wan::{Kernel, write_gguf, write_single};
use crate::support::{Golden, given, in_parts};
use pinhole::image::Image;
use pinhole::pipeline::{self, Additions, MemoryOptions, Opened, Pipeline, Request};
use pinhole::plan::{Offload, Phase};
use pinhole::source::slot::TRANSFORMER;
use pinhole::video::Clip;

/// How far latents may be from the reference's.
const MOST: f64 = 1e-7;

/// A picture that moves to the left, five pixels in each frame.
pub(super) fn film([width, height, frames]: [usize; 3]) -> Arc<Clip> {
    let picture = given::picture(width, height);
    let mut moved = Vec::new();
    for number in 0..frames {
        let mut rgb = picture.image().rgb().to_vec();
        rgb.chunks_exact_mut(3 * width).for_each(|row| row.rotate_left(3 * (5 * number % width)));
        moved.push(Image::new(width, height, rgb).unwrap());
    }
    Arc::new(Clip::of(moved, None).unwrap())
}

/// A white bar that moves to the right, seven pixels in each frame.
fn masks([width, height, frames]: [usize; 3]) -> Arc<Clip> {
    let mut masks = Vec::new();
    for number in 0..frames {
        let left = 7 * number % width;
        let mut rgb = Vec::new();
        for at in 0..width * height {
            let is_white = (5..height - 3).contains(&(at / width)) && (left..left + 19).contains(&(at % width));
            rgb.extend([if is_white { 255 } else { 0 }; 3]);
        }
        masks.push(Image::new(width, height, rgb).unwrap());
    }
    Arc::new(Clip::of(masks, None).unwrap())
}

/// The request of a case.
fn request(golden: &Golden, case: &str) -> Request {
    let at = |key: &str| golden.at(&format!("/cases/{case}/{key}"));
    let whole = |key: &str| at(key).as_u64().unwrap() as usize;
    let number = |key: &str| at(key).as_f64().map(|number| number as f32);
    let has = |key: &str| at(key).as_bool().unwrap();
    let size @ [width, height, frames] = ["width", "height", "frames"].map(whole);
    let mut references = Vec::new();
    for side in at("references").as_array().unwrap() {
        let [width, height] = [0, 1].map(|i| side[i].as_u64().unwrap() as usize);
        references.push(given::picture(width, height));
    }
    Request {
        prompt: at("prompt").as_str().unwrap().to_owned(),
        negative_prompt: at("negative_prompt").as_str().map(str::to_owned),
        width: Some(width),
        height: Some(height),
        frames: Some(frames),
        steps: Some(whole("steps")),
        seed: at("seed").as_u64().unwrap(),
        cfg_scale: number("cfg_scale"),
        cfg_scale_2: number("cfg_scale_2"),
        shift: number("shift"),
        video: has("film").then(|| film(size)),
        video_mask: has("masks").then(|| masks(size)),
        image: has("image").then(|| given::picture(width, height)),
        last_image: has("last_image").then(|| last_picture(width, height)),
        references,
        guide_scale: number("scale"),
        ..Request::default()
    }
}

/// Draws all cases of `model` and compares them.
fn compare_cases(model: &str) {
    let (golden, dir) = directory_of("wan_vace", model);
    let mut pipeline = on(open(dir.path()), "cpu");
    films_equal_the_reference(&golden, model, [MOST, 60.0], |case| generate(&mut pipeline, &request(&golden, case)));
}

#[test]
fn videos_equal_diffusers() {
    compare_cases("vace");
}

#[test]
fn videos_by_two_experts_equal_diffusers() {
    compare_cases("vace_pair");
}

/// Draws `request` with all weights on the device and as they stream: the same bits, of what moved as much as was planned.
pub(super) fn draws_the_same(pipeline: &mut Pipeline, request: &Request, what: &str) {
    let mut draw = |offload| {
        pipeline.set_memory(MemoryOptions { vram: None, offload, host: None });
        generate(pipeline, request)
    };
    let (resident, streamed) = (draw(Offload::None), draw(Offload::Sequential));
    assert!(resident.plan.all_resident && !streamed.plan.all_resident);
    assert!(bits(&resident) == bits(&streamed), "{what}: other latents");
    assert!(resident.images == streamed.images, "{what}: other frames");
    for phase in [Phase::Condition, Phase::Denoise, Phase::Decode] {
        let planned: usize = streamed.plan.components.iter().filter(|c| c.phase == phase).map(|c| c.moved()).sum();
        let moved: u64 = streamed.phases.iter().filter(|own| own.phase == phase).map(|own| own.moved).sum();
        println!("{what}, {phase:?}: {moved} of {planned} bytes");
        // The plan counts what alignment adds.
        assert!(moved <= planned as u64 && moved > planned as u64 * 9 / 10, "{what}, {phase:?}: {moved} of {planned}");
    }
}

#[test]
fn streamed_equals_resident_and_batches_their_parts() {
    let (golden, dir) = directory_of("wan_vace", "vace");
    let mut pipeline = on(open(dir.path()), "cpu:discrete");
    let all = Request { batch: 2, steps: Some(2), negative_prompt: Some("a moon".into()), ..request(&golden, "all") };
    let guided = Request { cfg_scale: Some(2.0), ..all };
    draws_the_same(&mut pipeline, &guided, "all");
    in_parts::draws_the_same(&mut pipeline, &guided, "all");
}

#[test]
fn quantized_pairs_stream() {
    let (golden, dir) = directory_of("wan_vace", "vace_pair");
    let pair = request(&golden, "pair");
    for file_type in ["q8_0", "q4_k_s"] {
        let path = dir.path().join(format!("{file_type}.gguf"));
        bundle(&open(dir.path()), &path, file_type);
        let model = open(&path);
        assert!(model.rules.guide && model.rules.experts.is_some());
        draws_the_same(&mut on(model, "cpu:discrete"), &pair, file_type);
    }
}

#[test]
fn files_of_other_tools_draw_the_same() {
    let (golden, dir) = directory_of("wan_vace", "vace");
    let at = |name: &str| dir.path().join(name);
    write_single(&at("wan2.1_vace_1.3B_fp16.safetensors"), &golden, "transformer", "model.diffusion_model.");
    write_gguf(&at("vace.gguf"), &golden, "transformer", (Format::F32, Kernel::Folded));
    let case = Request { steps: Some(2), ..request(&golden, "all") };
    let expected = bits(&generate(&mut on(open(dir.path()), "cpu"), &case));
    for name in ["wan2.1_vace_1.3B_fp16.safetensors", "vace.gguf"] {
        let model = with(dir.path(), &[(&TRANSFORMER, name)], &Additions::default()).unwrap();
        assert!(bits(&generate(&mut on(model, "cpu"), &case)) == expected, "{name}");
    }
}

#[test]
fn what_does_not_go_together_is_refused() {
    let (golden, dir) = directory_of("wan_vace", "vace");
    let model = open(dir.path());
    let refused = |model: &Opened, request: Request| pipeline::settings(model, &request).unwrap_err().to_string();
    let all = request(&golden, "all");
    let size = [48, 32, 5];
    let said = refused(&model, Request { video: None, ..all.clone() });
    assert!(said.starts_with("--video-mask: expected masks together with their film"), "{said}");
    let said = refused(&model, Request { video_mask: Some(masks([48, 32, 3])), ..all.clone() });
    assert!(said.starts_with("--video-mask: expected one for all frames, or at least 5"), "{said}");
    assert!(pipeline::settings(&model, &Request { video_mask: Some(masks([48, 32, 1])), ..all.clone() }).is_ok());
    let said = refused(&model, Request { video: Some(film([48, 32, 4])), video_mask: None, ..all.clone() });
    assert!(said.starts_with("--video: expected at least 5 frames"), "{said}");
    let said = refused(&model, Request { image: Some(given::picture(48, 32)), ..all.clone() });
    assert!(said.starts_with("--image: expected nothing together with --video"), "{said}");
    let said = refused(&model, Request { strength: Some(0.5), ..all.clone() });
    assert!(said.starts_with("--strength"), "{said}");
    let said = refused(&model, Request { guide_scale: Some(f32::NAN), ..all.clone() });
    assert!(said.starts_with("--guide-scale"), "{said}");
    let many = vec![given::picture(16, 16); 11];
    let said = refused(&model, Request { references: many, ..all });
    assert!(said.starts_with("--reference: expected at most 10"), "{said}");
    let (_, dir) = directory_of("wan", "t2v");
    let model = open(dir.path());
    let plain = Request { width: Some(48), height: Some(32), frames: Some(5), ..Request::new("a star") };
    let said = refused(&model, Request { guide_scale: Some(1.0), ..plain.clone() });
    assert!(said.starts_with("--guide-scale: expected nothing"), "{said}");
    let said = refused(&model, Request { video: Some(film(size)), video_mask: Some(masks(size)), ..plain });
    assert!(said.starts_with("--video-mask: expected nothing"), "{said}");
}
