//! ControlNets beside Z-Image, of each published kind, against diffusers in float32; recorded by `tests/reference/z_image_controls.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pinhole::pipeline::{Control, Posterior, alone};
use pinhole::plan::Phase;
use pinhole::synthetic::{self, Architecture};

use super::*;
use crate::support::lora::{Tensor, write};
use crate::support::synth;

fn made() -> (Golden, TempDir) {
    let (golden, dir) = (Golden::load("z_image_controls"), tempfile::tempdir().unwrap());
    write_directory(dir.path(), &golden);
    (golden, dir)
}

fn open(model: &Path, controls: Vec<PathBuf>) -> pinhole::Result<Opened> {
    pipeline::open_with(&Source::open(model)?, &Additions { controls, ..Additions::default() })
}

/// The folder of a case's ControlNet.
fn folder(golden: &Golden, dir: &Path, case: &str) -> PathBuf {
    dir.join(golden.at(&format!("/cases/{case}/controls/0/net")).as_str().unwrap())
}

/// The request of a case.
fn request(golden: &Golden, case: &str) -> Request {
    let at = |key: &str| golden.at(&format!("/cases/{case}/{key}"));
    let whole = |key: &str| at(key).as_u64().map(|number| number as usize);
    let (width, height) = (whole("width").unwrap(), whole("height").unwrap());
    let is_masked = at("masked").as_bool().unwrap();
    let number = |key: &str| at(&format!("controls/0/{key}")).as_f64().unwrap();
    let (scale, start, end) = (number("scale") as f32, number("start"), number("end"));
    Request {
        prompt: at("prompt").as_str().unwrap().to_owned(),
        negative_prompt: at("negative_prompt").as_str().map(str::to_owned),
        width: Some(width),
        height: Some(height),
        steps: whole("steps"),
        seed: at("seed").as_u64().unwrap(),
        cfg_scale: at("cfg_scale").as_f64().map(|number| number as f32),
        image: is_masked.then(|| given::turned(width, height)),
        mask: is_masked.then(|| given::mask(width, height)),
        batch: whole("batch").unwrap(),
        controls: vec![Control { scale, start, end, ..Control::new(given::picture(width, height)) }],
        ..Request::default()
    }
}

#[test]
fn latents_equal_diffusers() {
    let (golden, dir) = made();
    let mut wrong = Vec::new();
    for case in golden.at("/cases").as_object().unwrap().keys() {
        let mut pipeline = on(open(dir.path(), vec![folder(&golden, dir.path(), case)]).unwrap(), "cpu");
        let generated = generate(&mut pipeline, &request(&golden, case));
        let nmse = metrics::nmse(&golden.f32(&format!("{case}.latents")), &generated.latents).unwrap();
        println!("{case}: nmse {nmse:.2e}");
        if nmse.is_nan() || nmse > MOST {
            wrong.push(format!("{case}: {nmse:.2e}"));
        }
    }
    // The mean is what such a ControlNet takes, whatever the request says.
    let mut pipeline = on(open(dir.path(), vec![folder(&golden, dir.path(), "few")]).unwrap(), "cpu");
    let [drawn, mean] = [Posterior::Sample, Posterior::Mean]
        .map(|posterior| bits(&generate(&mut pipeline, &Request { posterior, ..request(&golden, "few") })));
    assert!(drawn == mean);
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
            bundled(dir.path(), file_type);
            dir.path().join("bundle.gguf")
        });
        for case in ["first_cfg", "reused_cfg", "union_mask_cfg"] {
            let folder = folder(&golden, dir.path(), case);
            let control = file_type.map_or(folder.clone(), |file_type| converted(&folder, file_type));
            let model = open(path.as_deref().unwrap_or(dir.path()), vec![control]).unwrap();
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

/// Prompts of different lengths, and pictures that are computed one after the other.
#[test]
fn passes_one_after_the_other_draw_the_same() {
    let (golden, dir) = made();
    for (case, negative) in [("reused_cfg", "blurry"), ("union_mask_cfg", &*"a red ring ".repeat(12))] {
        let model = open(dir.path(), vec![folder(&golden, dir.path(), case)]).unwrap();
        let mut pipeline = on(model, "cpu:discrete");
        let request = Request { negative_prompt: Some(negative.to_owned()), ..request(&golden, case) };
        in_parts::draws_the_same(&mut pipeline, &request, case);
    }
}

/// Outside of its part of the steps, a ControlNet is not computed, its weights do not move, and the latents are those without it.
#[test]
fn what_does_not_work_does_not_run() {
    let (golden, dir) = made();
    let case = "union_part";
    let mut pipeline = on(open(dir.path(), vec![folder(&golden, dir.path(), case)]).unwrap(), "cpu:discrete");
    pipeline.set_memory(MemoryOptions { offload: Offload::Sequential, ..MemoryOptions::default() });
    let mut draw = |(start, end, scale)| {
        let mut request = request(&golden, case);
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
    let plain = Request { controls: Vec::new(), ..request(&golden, case) };
    assert!(bits(&generate(&mut on(open(dir.path(), Vec::new()).unwrap(), "cpu:discrete"), &plain)) == none.1);
    assert!(whole.1 != part.1 && part.1 != none.1);
}

/// The tensors of the ControlNet `net`, changed, as one file without a configuration.
fn file(golden: &Golden, dir: &Path, net: &str, change: impl Fn(&mut BTreeMap<String, Tensor>)) -> PathBuf {
    let mut tensors = BTreeMap::new();
    for weight in synth::weights(golden, net) {
        let values = weight.values();
        tensors.insert(weight.name.clone(), Tensor { shape: weight.shape, values });
    }
    change(&mut tensors);
    write(dir, &format!("{net}-alone"), &tensors, Vec::new())
}

/// What other tools do: queries, keys and values become one.
fn fused(tensors: &mut BTreeMap<String, Tensor>) {
    let names: Vec<String> = tensors.keys().filter(|name| name.ends_with(".to_q.weight")).cloned().collect();
    for name in names {
        let mut whole = tensors.remove(&name).unwrap();
        for other in ["to_k", "to_v"] {
            whole.values.extend(tensors.remove(&name.replace("to_q", other)).unwrap().values);
        }
        whole.shape[0] *= 3;
        tensors.insert(name.replace("to_q", "qkv"), whole);
    }
}

/// Files of 2.0 have refiners that were never trained.
fn untrained(tensors: &mut BTreeMap<String, Tensor>) {
    let layer: Vec<(String, Tensor)> = tensors
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix("control_layers.0.")?.to_owned(), tensor.clone())))
        .collect();
    for i in 0..2 {
        for (name, tensor) in &layer {
            let mut tensor = tensor.clone();
            if name.starts_with("before_proj") || name.starts_with("after_proj") {
                tensor.values.fill(0.0);
            }
            tensors.insert(format!("control_noise_refiner.{i}.{name}"), tensor);
        }
    }
}

#[test]
fn single_files_say_the_same() {
    let (golden, dir) = made();
    let files = [
        ("first", file(&golden, dir.path(), "first", |_| {})),
        ("first", file(&golden, dir.path(), "first", fused)),
        ("reused", file(&golden, dir.path(), "reused", |_| {})),
        ("reused", file(&golden, dir.path(), "reused", untrained)),
        ("union", file(&golden, dir.path(), "union", fused)),
        ("few", file(&golden, dir.path(), "few", |_| {})),
    ];
    for (case, file) in files {
        let request = Request { steps: Some(1), ..request(&golden, case) };
        let by_folder = open(dir.path(), vec![folder(&golden, dir.path(), case)]).unwrap();
        let by_file = open(dir.path(), vec![file]).unwrap();
        let [by_folder, by_file] = [by_folder, by_file].map(|model| bits(&generate(&mut on(model, "cpu"), &request)));
        assert!(by_folder == by_file, "{case}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (golden, dir) = made();
    let at = |name: &str| dir.path().join(name);
    let said = |controls: Vec<PathBuf>| open(dir.path(), controls).err().unwrap().to_string();
    let error = said(vec![at("union"), at("first")]);
    assert_eq!(error, "--control: expected one ControlNet, since no more go beside Z-Image, found 2");
    assert!(said(vec![at("vae")]).contains("and no ControlNet of Z-Image"));
    let error = said(vec![at("transformer")]);
    assert!(error.contains("holds Z-Image transformer, diffusers names, and no ControlNet of Z-Image"), "{error}");
    // Those of real size.
    let wide = |architecture: Architecture| {
        let (path, file_type) = (at(architecture.name()), FileType::Q8_0);
        let options = synthetic::Options { architecture, file_type, blocks: Some(1), hollow: true, only: None };
        synthetic::write(&path, &options, |_| Ok(())).unwrap();
        said(vec![path])
    };
    let error = wide(Architecture::FLUX_CONTROLNET_UNION);
    assert!(error.contains("holds ControlNet of FLUX.1, diffusers names, and no ControlNet of Z-Image"), "{error}");
    let error = wide(Architecture::Z_IMAGE_CONTROL);
    assert!(error.ends_with("z-image-controlnet: dim: expected 384, as the transformer has, found 3840"), "{error}");
    // A ControlNet is no transformer.
    let error = with(dir.path(), &[(&TRANSFORMER, "union")]).err().unwrap().to_string();
    assert!(error.contains("holds ControlNet of Z-Image, and no Z-Image transformer"), "{error}");
    let config = at("union/config.json");
    let original = fs::read_to_string(&config).unwrap();
    for (was, is, expected) in [
        ("[0, 2]", "[2, 0]", "control_layers_places: expected places that begin with 0 and ascend, found [2, 0]"),
        (
            "[0, 2]",
            "[0, 4]",
            "control_layers_places: expected places below 4, the layers of the transformer, found [0, 4]",
        ),
        (
            "[0, 1]",
            "[0, 1, 2]",
            "control_refiner_layers_places: expected at most 2 places that ascend, found [0, 1, 2]",
        ),
    ] {
        let text = original.split_whitespace().collect::<Vec<_>>().join(" ").replace("[ ", "[").replace(" ]", "]");
        assert!(text.contains(was), "{text}");
        fs::write(&config, text.replace(was, is)).unwrap();
        let error = said(vec![at("union")]);
        assert!(error.ends_with(expected), "{error}");
    }
    fs::write(&config, original).unwrap();
    let mut model = open(dir.path(), vec![at("union")]).unwrap();
    let none = Request { controls: Vec::new(), ..request(&golden, "union") };
    let error = pipeline::settings(&model, &none).unwrap_err().to_string();
    assert_eq!(error, "--control-image: expected a picture for the ControlNet to follow, found none");
    let alone = Request { image: None, ..request(&golden, "union_mask") };
    let error = pipeline::settings(&model, &alone).unwrap_err().to_string();
    assert_eq!(error, "--mask: expected a mask together with its picture, found a mask alone");
    model = open(dir.path(), Vec::new()).unwrap();
    let error = pipeline::settings(&model, &request(&golden, "union")).unwrap_err().to_string();
    assert!(error.contains("the model was opened without a ControlNet"), "{error}");
}
