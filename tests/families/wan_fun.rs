//! Fun Control, of one network and of two experts, against DiffSynth-Studio's transformer in float32; recorded by
//! `tests/reference/wan_fun.py`.

use std::sync::Arc;

use super::wan::{bits, bundle, directory_of, generate, last_picture, on, open, with};
use super::wan_vace::{draws_the_same, film};
use crate::support::cases::films_equal_the_reference;
use crate::support::numbers::Format;
use crate::support::sd1::{Tensor, write_tensors};
use crate::support::wan::{Kernel, original, write_gguf, write_single};
use crate::support::{Golden, given, in_parts};
use pinhole::image::Picture;
use pinhole::pipeline::{self, Additions, Opened, Request};
use pinhole::source::slot::TRANSFORMER;

/// How far latents may be from the reference's.
const MOST: f64 = 1e-7;

/// A picture from right to left.
fn mirrored(width: usize, height: usize) -> Arc<Picture> {
    let picture = given::picture(width, height);
    let mut rgb = Vec::new();
    for row in picture.image().rgb().chunks_exact(3 * width) {
        row.chunks_exact(3).rev().for_each(|pixel| rgb.extend_from_slice(pixel));
    }
    Arc::new(Picture::from_rgb8(width, height, &rgb).unwrap())
}

/// The request of a case.
fn request(golden: &Golden, case: &str) -> Request {
    let at = |key: &str| golden.at(&format!("/cases/{case}/{key}"));
    let whole = |key: &str| at(key).as_u64().unwrap() as usize;
    let number = |key: &str| at(key).as_f64().map(|number| number as f32);
    let has = |key: &str| at(key).as_bool().unwrap();
    let size @ [width, height, frames] = ["width", "height", "frames"].map(whole);
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
        video: Some(film(size)),
        image: has("image").then(|| given::picture(width + 16, height)),
        last_image: has("last_image").then(|| last_picture(width, height + 8)),
        references: if has("reference") { vec![mirrored(width, height + 32)] } else { Vec::new() },
        ..Request::default()
    }
}

/// Draws all cases of `model` and compares them.
fn compare_cases(model: &str) {
    let (golden, dir) = directory_of("wan_fun", model);
    let mut pipeline = on(open(dir.path()), "cpu");
    films_equal_the_reference(&golden, model, [MOST, 60.0], |case| generate(&mut pipeline, &request(&golden, case)));
}

#[test]
fn videos_equal_the_reference() {
    compare_cases("fun");
}

#[test]
fn videos_by_two_experts_equal_the_reference() {
    compare_cases("fun_pair");
}

#[test]
fn streamed_equals_resident_and_batches_their_parts() {
    let (golden, dir) = directory_of("wan_fun", "fun");
    let mut pipeline = on(open(dir.path()), "cpu:discrete");
    let all = Request { batch: 2, steps: Some(2), negative_prompt: Some("a moon".into()), ..request(&golden, "all") };
    let guided = Request { cfg_scale: Some(2.0), ..all };
    draws_the_same(&mut pipeline, &guided, "all");
    in_parts::draws_the_same(&mut pipeline, &guided, "all");
    draws_the_same(&mut pipeline, &Request { steps: Some(2), ..request(&golden, "film") }, "a film alone");
}

#[test]
fn quantized_pairs_stream() {
    let (golden, dir) = directory_of("wan_fun", "fun_pair");
    let pair = request(&golden, "pair");
    for file_type in ["q8_0", "q4_k_s"] {
        let path = dir.path().join(format!("{file_type}.gguf"));
        bundle(&open(dir.path()), &path, file_type);
        let model = open(&path);
        assert!(model.rules.followed.is_some_and(|followed| followed.refers) && model.rules.experts.is_some());
        draws_the_same(&mut on(model, "cpu:discrete"), &pair, file_type);
    }
}

#[test]
fn files_of_other_tools_draw_the_same() {
    let (golden, dir) = directory_of("wan_fun", "fun");
    let at = |name: &str| dir.path().join(name);
    write_single(&at("wan2.1_fun_control_1.3B_bf16.safetensors"), &golden, "fun", "model.diffusion_model.");
    write_gguf(&at("fun.gguf"), &golden, "fun", (Format::F32, Kernel::Folded));
    let case = Request { steps: Some(2), ..request(&golden, "all") };
    let expected = bits(&generate(&mut on(open(dir.path()), "cpu"), &case));
    for name in ["wan2.1_fun_control_1.3B_bf16.safetensors", "fun.gguf"] {
        let model = with(dir.path(), &[(&TRANSFORMER, name)], &Additions::default()).unwrap();
        assert!(bits(&generate(&mut on(model, "cpu"), &case)) == expected, "{name}");
    }
}

#[test]
fn what_does_not_go_together_is_refused() {
    let (golden, dir) = directory_of("wan_fun", "fun");
    let model = open(dir.path());
    let refused = |model: &Opened, request: Request| pipeline::settings(model, &request).unwrap_err().to_string();
    let all = request(&golden, "all");
    let said = refused(&model, Request { video: None, ..all.clone() });
    assert!(said.starts_with("--video: expected a film, since this model follows one"), "{said}");
    let said = refused(&model, Request { video: Some(film([48, 80, 8])), ..all.clone() });
    assert!(said.starts_with("--video: expected at least 9 frames"), "{said}");
    let said = refused(&model, Request { last_image: Some(last_picture(48, 80)), ..all.clone() });
    assert!(said.starts_with("--last-image: expected nothing"), "{said}");
    let said = refused(&model, Request { strength: Some(0.5), ..all.clone() });
    assert!(said.starts_with("--strength"), "{said}");
    let said = refused(&model, Request { video_mask: Some(film([48, 80, 9])), ..all.clone() });
    assert!(said.starts_with("--video-mask: expected nothing"), "{said}");
    let said = refused(&model, Request { guide_scale: Some(1.0), ..all.clone() });
    assert!(said.starts_with("--guide-scale: expected nothing"), "{said}");
    let said = refused(&model, Request { references: vec![given::picture(16, 16); 2], ..all.clone() });
    assert!(said.starts_with("--reference: expected at most 1"), "{said}");
    let (_, looking) = directory_of("wan", "i2v");
    let said = refused(&open(looking.path()), Request { references: Vec::new(), ..all });
    assert!(said.starts_with("--video: expected nothing"), "{said}");
}

#[test]
fn what_follows_a_camera_is_refused_by_name() {
    const NAME: &str = "wan2.1_fun_v1.1_1.3B_control_camera.safetensors";
    let (golden, dir) = directory_of("wan_fun", "fun");
    let mut all = original(&golden, "fun", "", Kernel::Whole);
    let camera = Tensor { name: "control_adapter.conv.weight".into(), ..all[0].clone() };
    all.push(camera);
    write_tensors(&dir.path().join(NAME), &all);
    let said = with(dir.path(), &[(&TRANSFORMER, NAME)], &Additions::default()).err().unwrap().to_string();
    assert!(said.contains("Wan Fun Camera Control transformer"), "{said}");
}
