//! ControlNets beside Qwen-Image, against diffusers in float32; recorded by `tests/reference/qwen_image_controls.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pinhole::pipeline::{Control, alone};
use pinhole::plan::Phase;
use pinhole::synthetic::{self, Architecture};
use serde_json::Value;

use super::*;
use crate::support::{in_parts, lora, synth};

fn made() -> (Golden, TempDir) {
    let (golden, dir) = (Golden::load("qwen_image_controls"), tempfile::tempdir().unwrap());
    write_directory(dir.path(), &golden);
    (golden, dir)
}

fn open(model: &Path, controls: Vec<PathBuf>) -> pinhole::Result<Opened> {
    pipeline::open_with(&Source::open(model)?, &Additions { controls, ..Additions::default() })
}

/// The folders of a case's ControlNets.
fn folders(golden: &Golden, dir: &Path, case: &str) -> Vec<PathBuf> {
    let controls = golden.list(&format!("/cases/{case}/controls"));
    controls.iter().map(|control| dir.join(control["net"].as_str().unwrap())).collect()
}

/// What a ControlNet follows, as the golden has it.
fn followed(control: &Value, width: usize, height: usize) -> Control {
    let is_turned = control["turned"].as_bool().unwrap();
    let picture = if is_turned { given::turned(width, height) } else { given::picture(width, height) };
    let number = |key: &str| control[key].as_f64().unwrap();
    Control { scale: number("scale") as f32, start: number("start"), end: number("end"), ..Control::new(picture) }
}

/// The request of a case.
fn request(golden: &Golden, case: &str) -> Request {
    let at = |key: &str| golden.at(&format!("/cases/{case}/{key}"));
    let whole = |key: &str| at(key).as_u64().map(|number| number as usize);
    let (width, height) = (whole("width").unwrap(), whole("height").unwrap());
    let controls = golden.list(&format!("/cases/{case}/controls"));
    Request {
        prompt: at("prompt").as_str().unwrap().to_owned(),
        negative_prompt: at("negative_prompt").as_str().map(str::to_owned),
        width: Some(width),
        height: Some(height),
        steps: whole("steps"),
        seed: at("seed").as_u64().unwrap(),
        cfg_scale: at("cfg_scale").as_f64().map(|number| number as f32),
        mask: at("masked").as_bool().unwrap().then(|| given::mask(width, height)),
        batch: whole("batch").unwrap(),
        controls: controls.iter().map(|control| followed(control, width, height)).collect(),
        ..Request::default()
    }
}

#[test]
fn latents_equal_diffusers() {
    let (golden, dir) = made();
    let mut wrong = Vec::new();
    for case in golden.at("/cases").as_object().unwrap().keys() {
        let mut pipeline = on(open(dir.path(), folders(&golden, dir.path(), case)).unwrap(), "cpu");
        let generated = generate(&mut pipeline, &request(&golden, case));
        let nmse = metrics::nmse(&golden.f32(&format!("{case}.latents")), &generated.latents).unwrap();
        println!("{case}: nmse {nmse:.2e}");
        if nmse.is_nan() || nmse > MOST {
            wrong.push(format!("{case}: {nmse:.2e}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The ControlNet in `folder` as a GGUF of its own, beside it.
fn converted(folder: &Path, file_type: &str) -> PathBuf {
    let path = folder.with_extension(format!("{file_type}.gguf"));
    let alone = alone(&Source::open(folder).unwrap()).unwrap().unwrap();
    let options = convert::Options {
        target: convert::Target::Component(alone.slot),
        ..convert::Options::from(file_type.parse::<FileType>().unwrap())
    };
    let plan = convert::plan(&alone.source, &alone.networks.networks(), options).unwrap();
    plan.write(&path, WriteOptions { overwrite: true, ..WriteOptions::default() }, &mut |_| Ok(())).unwrap();
    path
}

#[test]
fn streamed_equals_resident() {
    let (golden, dir) = made();
    for file_type in [None, Some("q8_0"), Some("q4_k_s")] {
        let path = file_type.map(|file_type| {
            let path = dir.path().join("bundle.gguf");
            bundle(&super::open(dir.path()), &path, file_type);
            path
        });
        for case in ["union_cfg", "two", "inpaint_cfg"] {
            let mut controls = folders(&golden, dir.path(), case);
            if let Some(file_type) = file_type {
                controls = controls.iter().map(|folder| converted(folder, file_type)).collect();
            }
            let model = open(path.as_deref().unwrap_or(dir.path()), controls).unwrap();
            let (mut pipeline, request) = (on(model, "cpu:discrete"), request(&golden, case));
            let mut draw = |offload| {
                pipeline.set_memory(MemoryOptions { vram: None, offload, host: None });
                generate(&mut pipeline, &request)
            };
            let (resident, streamed) = (draw(Offload::None), draw(Offload::Sequential));
            assert!(resident.plan.all_resident && !streamed.plan.all_resident);
            assert!(bits(&resident) == bits(&streamed), "{case} {file_type:?}: other latents");
            let nmse = metrics::nmse(&golden.f32(&format!("{case}.latents")), &resident.latents).unwrap();
            println!("{case} {file_type:?}: nmse {nmse:.2e}");
            assert!(nmse < 0.1, "{case} {file_type:?}: {nmse:e}");
        }
    }
}

/// Prompts of different lengths, the longer one first and last: a ControlNet reads the first in every pass.
#[test]
fn passes_one_after_the_other_draw_the_same() {
    let (golden, dir) = made();
    for (case, batch) in [("union_cfg", 2), ("union_shorter", 1), ("inpaint_cfg", 2)] {
        let model = open(dir.path(), folders(&golden, dir.path(), case)).unwrap();
        let request = Request { batch, ..request(&golden, case) };
        in_parts::draws_the_same(&mut on(model, "cpu:discrete"), &request, case);
    }
}

/// Outside of its part of the steps, a ControlNet is not computed, its weights do not move, and the latents are those without it.
#[test]
fn what_does_not_work_does_not_run() {
    let (golden, dir) = made();
    let case = "union_part";
    let mut pipeline = on(open(dir.path(), folders(&golden, dir.path(), case)).unwrap(), "cpu:discrete");
    pipeline.set_memory(MemoryOptions { offload: Offload::Sequential, ..MemoryOptions::default() });
    let mut draw = |(start, end, scale)| {
        let mut request = request(&golden, case);
        request.posterior = pipeline::Posterior::Mean;
        (request.controls[0].start, request.controls[0].end, request.controls[0].scale) = (start, end, scale);
        let generated = generate(&mut pipeline, &request);
        let denoised = generated.phases.iter().find(|phase| phase.phase == Phase::Denoise).unwrap();
        (denoised.moved, bits(&generated))
    };
    let (whole, part, none) = (draw((0.0, 1.0, 1.0)), draw((0.2, 0.6, 1.0)), draw((0.0, 1.0, 0.0)));
    println!("bytes that move: {}, {}, {}", whole.0, part.0, none.0);
    // Two of five steps: nearly, since what comes first in a step may be there from the one before.
    let (whole_moved, part_moved) = (whole.0 - none.0, part.0 - none.0);
    assert!((part_moved * 5).abs_diff(whole_moved * 2) < whole_moved / 10, "{whole_moved} and {part_moved}");
    let mut plain = Request { controls: Vec::new(), ..request(&golden, case) };
    plain.posterior = pipeline::Posterior::Mean;
    assert!(bits(&generate(&mut on(open(dir.path(), Vec::new()).unwrap(), "cpu:discrete"), &plain)) == none.1);
    assert!(whole.1 != part.1 && part.1 != none.1);
}

/// A file without a configuration.
#[test]
fn single_files_say_the_same() {
    let (golden, dir) = made();
    for (net, case) in [("union", "union"), ("inpaint", "inpaint")] {
        let mut tensors = BTreeMap::new();
        for weight in synth::weights(&golden, net) {
            let values = weight.values();
            tensors.insert(weight.name.clone(), lora::Tensor { shape: weight.shape, values });
        }
        let file = lora::write(dir.path(), &format!("{net}-alone"), &tensors, Vec::new());
        let request = Request { steps: Some(2), ..request(&golden, case) };
        let [by_folder, by_file] = [folders(&golden, dir.path(), case), vec![file]]
            .map(|controls| bits(&generate(&mut on(open(dir.path(), controls).unwrap(), "cpu"), &request)));
        assert!(by_folder == by_file, "{case}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (golden, dir) = made();
    let at = |name: &str| dir.path().join(name);
    let said = |controls: Vec<PathBuf>| open(dir.path(), controls).err().unwrap().to_string();
    assert!(said(vec![at("union"); 9]).contains("at most 8 ControlNets"));
    assert!(said(vec![at("transformer")]).contains("holds Qwen-Image transformer, and no ControlNet of Qwen-Image"));
    let wide = |architecture: Architecture| {
        let (path, file_type) = (at(architecture.name()), FileType::Q8_0);
        let options = synthetic::Options { architecture, file_type, blocks: Some(1), hollow: true, only: None };
        synthetic::write(&path, &options, |_| Ok(())).unwrap();
        said(vec![path])
    };
    let error = wide(Architecture::FLUX_CONTROLNET_UNION);
    assert!(error.contains("holds ControlNet of FLUX.1, diffusers names, and no ControlNet of Qwen-Image"), "{error}");
    let error = wide(Architecture::QWEN_IMAGE_CONTROL);
    let expected = "qwen-image-controlnet: num_attention_heads: expected 4, as the transformer has, found 24";
    assert!(error.ends_with(expected), "{error}");
    // A ControlNet is no transformer.
    let error = with(dir.path(), &[(&TRANSFORMER, "union")]).err().unwrap().to_string();
    assert!(error.contains("holds ControlNet of Qwen-Image, and no Qwen-Image transformer"), "{error}");
    let model = open(dir.path(), vec![at("inpaint")]).unwrap();
    let unmasked = Request { mask: None, ..request(&golden, "inpaint") };
    let error = pipeline::settings(&model, &unmasked).unwrap_err().to_string();
    assert_eq!(error, "--mask: expected a mask of its picture, since this ControlNet paints within one, found none");
    // The edits run none.
    make_edit(dir.path(), &Golden::load("qwen_image_edit"), "QwenImageEditPlusPipeline", false);
    let error = said(vec![at("union")]);
    assert!(
        error.starts_with("--control: expected nothing, since ControlNets go beside Qwen-Image, and not"),
        "{error}"
    );
}
