//! ControlNets beside a model, against diffusers in float32: InstantX's and Shakker's with and without modes, alimama's for inpainting,
//! XLabs', and two at once. The expected latents were recorded by `tests/reference/controls.py`.

mod face;

use std::path::{Path, PathBuf};

use crate::support::drawing::{bits, generate};
use crate::support::{self, Golden, Layout, given, in_parts};
use pinhole::convert::{self, WriteOptions};
use pinhole::ggml::{CancelFlag, Device};
use pinhole::pipeline::{
    self, Additions, CacheRequest, Control, Event, MemoryOptions, Opened, Pipeline, Posterior, Request,
};
use pinhole::plan::{Offload, Phase};
use pinhole::source::Source;
use pinhole::synthetic::{self, Architecture};
use pinhole_quant::metrics;
use pinhole_quant::recipe::FileType;
use serde_json::Value;
use tempfile::TempDir;

/// Two threads, as many as the smallest machine that runs the tests has.
const THREADS: usize = 2;

/// How far latents may be from diffusers'. On the processor that they were recorded beside they are up to 3e-12 away; others round in
/// another order.
const MOST: f64 = 1e-9;

/// The golden, and its model and ControlNets as directories.
struct Made {
    golden: Golden,
    dir: TempDir,
}

impl Made {
    fn new() -> Made {
        let (golden, dir) = (Golden::load("flux_controls"), tempfile::tempdir().unwrap());
        support::write_model(dir.path(), &golden, &Layout::default());
        Made { golden, dir }
    }

    /// What a case has for each ControlNet, by the key.
    fn controls(&self, case: &str) -> &[Value] {
        self.golden.list(&format!("/cases/{case}/controls"))
    }

    /// The folders of a case's ControlNets.
    fn folders(&self, case: &str) -> Vec<PathBuf> {
        let nets = self.controls(case).iter().map(|control| control["net"].as_str().unwrap());
        nets.map(|net| self.dir.path().join(net)).collect()
    }

    fn open(&self, controls: Vec<PathBuf>) -> pinhole::Result<Opened> {
        open(self.dir.path(), controls)
    }

    /// The request of a case.
    fn request(&self, case: &str) -> Request {
        let at = |key: &str| self.golden.at(&format!("/cases/{case}/{key}"));
        let whole = |key: &str| at(key).as_u64().map(|number| number as usize);
        let number = |key: &str| at(key).as_f64().map(|number| number as f32);
        let (width, height) = (whole("width").unwrap(), whole("height").unwrap());
        let is_masked = at("masked").as_bool().unwrap();
        Request {
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
            image: number("strength").map(|_| given::picture(width, height)),
            mask: is_masked.then(|| given::mask(width, height)),
            batch: whole("batch").unwrap(),
            controls: self.controls(case).iter().map(|control| followed(control, width, height)).collect(),
            cache: at("cache").as_str().map(|name| {
                let cache: CacheRequest = name.parse().unwrap();
                CacheRequest { threshold: number("threshold"), ..cache }
            }),
            ..Request::default()
        }
    }

    /// Which evaluations a case computes in each pass, if it has a step cache.
    fn computed(&self, case: &str) -> Vec<Vec<bool>> {
        self.golden
            .list(&format!("/cases/{case}/computed"))
            .iter()
            .map(|pass| pass.as_array().unwrap().iter().map(|mark| mark.as_bool().unwrap()).collect())
            .collect()
    }
}

fn open(model: &Path, controls: Vec<PathBuf>) -> pinhole::Result<Opened> {
    pipeline::open_with(&Source::open(model)?, &Additions { controls, ..Additions::default() })
}

/// What a ControlNet follows, as the golden has it.
fn followed(control: &Value, width: usize, height: usize) -> Control {
    let picture =
        if control["turned"].as_bool().unwrap() { given::turned(width, height) } else { given::picture(width, height) };
    let number = |key: &str| control[key].as_f64().unwrap();
    let (scale, start, end) = (number("scale") as f32, number("start"), number("end"));
    Control { scale, start, end, mode: control["mode"].as_u64().map(|mode| mode.to_string()), ..Control::new(picture) }
}

fn on(model: Opened, device: &str) -> Pipeline {
    let device = Device::by_name(device).unwrap();
    Pipeline::with_threads(model, device, THREADS, CancelFlag::new()).unwrap()
}

#[test]
fn latents_equal_diffusers() {
    let made = Made::new();
    let mut wrong = Vec::new();
    for case in made.golden.at("/cases").as_object().unwrap().keys() {
        let mut pipeline = on(made.open(made.folders(case)).unwrap(), "cpu");
        let generated = generate(&mut pipeline, &made.request(case));
        let nmse = metrics::nmse(&made.golden.f32(&format!("{case}.latents")), &generated.latents).unwrap();
        println!("{case}: nmse {nmse:.2e}");
        assert_eq!(generated.computed, made.computed(case), "{case}");
        if nmse > MOST {
            wrong.push(format!("{case}: {nmse:.2e}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn streamed_equals_resident() {
    let made = Made::new();
    for case in ["plain_cfg", "two", "inpaint", "pixels_batch", "first_block_cfg", "magcache"] {
        let request = made.request(case);
        let steps = if request.cache.is_some() { request.steps } else { Some(2) };
        let request = Request { steps, ..request };
        for file_type in [None, Some("q8_0"), Some("q4_k_s")] {
            let (mut model, mut files) = (made.dir.path().to_owned(), made.folders(case));
            if let Some(file_type) = file_type {
                model = bundled(made.dir.path(), file_type);
                files = files.iter().map(|folder| converted(folder, file_type)).collect();
            }
            let mut pipeline = on(open(&model, files).unwrap(), "cpu:discrete");
            let mut draw = |offload| {
                pipeline.set_memory(MemoryOptions { vram: None, offload, host: None });
                generate(&mut pipeline, &request)
            };
            let (resident, streamed) = (draw(Offload::None), draw(Offload::Sequential));
            assert!(resident.plan.all_resident && !streamed.plan.all_resident);
            assert!(bits(&resident) == bits(&streamed), "{case} {file_type:?}: other latents");
            assert_eq!(resident.computed, streamed.computed, "{case} {file_type:?}");
        }
    }
}

#[test]
fn passes_one_after_the_other_draw_the_same() {
    let made = Made::new();
    let guided = |case: &str, batch| Request {
        negative_prompt: Some("a black cross".into()),
        cfg_scale: Some(2.0),
        steps: Some(2),
        batch,
        ..made.request(case)
    };
    for (case, request) in [
        ("plain_cfg", guided("plain_cfg", 3)),
        ("two", Request { steps: Some(4), ..guided("two", 2) }),
        ("inpaint", Request { width: Some(48), height: Some(64), ..guided("inpaint", 2) }),
        ("pixels_batch", guided("pixels_batch", 2)),
        ("first_block_cfg", Request { steps: Some(8), ..guided("first_block_cfg", 2) }),
    ] {
        in_parts::draws_the_same(&mut on(made.open(made.folders(case)).unwrap(), "cpu:discrete"), &request, case);
    }
}

/// Outside of the part of the steps in which a ControlNet works, it is not computed, and its weights do not move.
#[test]
fn what_does_not_work_does_not_run() {
    let made = Made::new();
    let mut pipeline = on(made.open(made.folders("two")).unwrap(), "cpu:discrete");
    pipeline.set_memory(MemoryOptions { offload: Offload::Sequential, ..MemoryOptions::default() });
    let mut draw = |spans: [(f64, f64, f32); 2]| {
        let mut request = Request { posterior: Posterior::Mean, ..made.request("two") };
        for (control, (start, end, scale)) in request.controls.iter_mut().zip(spans) {
            (control.start, control.end, control.scale) = (start, end, scale);
        }
        let mut stages = (0, 0);
        let generated = pipeline
            .generate_watched(&request, &mut |event: Event| {
                match event {
                    Event::Begin { phase: Phase::Denoise, stages: all, .. } => stages = (0, all),
                    Event::Stage => stages.0 += 1,
                    Event::End { phase: Phase::Denoise } => assert_eq!(stages.0, stages.1),
                    _ => {}
                }
                Ok(())
            })
            .unwrap();
        in_parts::kept_to_plan(&generated);
        let moved = generated.phases.iter().find(|phase| phase.phase == Phase::Denoise).unwrap().moved as usize;
        let planned = generated.plan.component("transformer").unwrap().moved();
        // What is planned counts alignment.
        assert!(moved <= planned && moved > planned * 9 / 10, "{moved} of {planned}");
        (moved, stages.1, bits(&generated))
    };
    let (whole, half) = ((0.0, 1.0, 0.7), (0.0, 0.5, 0.7));
    let always = draw([whole, whole]);
    let (first, second) = (draw([half, whole]), draw([whole, half]));
    let (neither, none) = (draw([half, half]), draw([(0.0, 1.0, 0.0), (0.0, 1.0, 0.0)]));
    println!("bytes that move: {}, {}, {}, {}, {}", always.0, first.0, second.0, neither.0, none.0);
    let saved = |of: &(usize, usize, Vec<u32>)| (always.0 - of.0, always.1 - of.1);
    let sum = (saved(&first).0 + saved(&second).0, saved(&first).1 + saved(&second).1);
    assert!(saved(&first).0 > 0 && saved(&second).0 > 0 && saved(&neither).0 > sum.0 * 9 / 10);
    // Where none works, what adds them up does not run, either.
    assert_eq!(saved(&neither).1, sum.1 + 2);
    assert!(saved(&none).0 > saved(&neither).0);
    assert!(first.2 != always.2 && second.2 != always.2 && neither.2 != none.2);
    // As without any.
    let plain = open(made.dir.path(), Vec::new()).unwrap();
    let request = Request { controls: Vec::new(), posterior: Posterior::Mean, ..made.request("two") };
    assert!(bits(&generate(&mut on(plain, "cpu:discrete"), &request)) == none.2);
}

/// What is said of `change` to the request of a case.
fn refused(made: &Made, case: &str, change: impl Fn(&mut Request)) -> String {
    let mut request = made.request(case);
    change(&mut request);
    pipeline::settings(&made.open(made.folders(case)).unwrap(), &request).unwrap_err().to_string()
}

/// A case, what is changed in its request, and what is said of that.
type Wrong = (&'static str, fn(&mut Request), &'static str);

#[test]
fn requests_that_cannot_work() {
    let made = Made::new();
    let cases: &[Wrong] = &[
        (
            "plain",
            |r| r.controls.clear(),
            "--control-image: expected a picture for the ControlNet to follow, found none",
        ),
        (
            "two",
            |r| r.controls.truncate(1),
            "--control-image: expected a picture for each of the 2 ControlNets, found 1",
        ),
        (
            "union",
            |r| r.controls[0].mode = None,
            "--control-mode: expected one of canny, tile, depth, blur, pose, gray, lq, or a \
            number from 0 to 9, found none",
        ),
        (
            "union",
            |r| r.controls[0].mode = Some("10".into()),
            "--control-mode: expected one of canny, tile, depth, blur, pose, \
            gray, lq, or a number from 0 to 9, found `10`",
        ),
        (
            "plain",
            |r| r.controls[0].mode = Some("canny".into()),
            "--control-mode: expected nothing, since this ControlNet has no \
            modes, found `canny`",
        ),
        ("plain", |r| r.controls[0].end = 1.5, "--control-end: expected a number from the start, 0, to 1, found 1.5"),
        ("plain", |r| r.controls[0].start = f64::NAN, "--control-start: expected a number from 0 to 1, found NaN"),
        (
            "plain",
            |r| r.controls[0].scale = f32::INFINITY,
            "--control-scale: expected a number from -100 to 100, found inf",
        ),
        (
            "inpaint",
            |r| r.mask = None,
            "--mask: expected a mask of its picture, since this ControlNet paints within one, found none",
        ),
        (
            "plain",
            |r| r.mask = Some(given::mask(112, 80)),
            "--mask: expected a mask together with its picture, found a mask alone",
        ),
        (
            "plain",
            |r| r.references.push(given::picture(64, 64)),
            "--reference: expected nothing, since this model looks at no \
            pictures, found a picture",
        ),
    ];
    for (case, change, expected) in cases {
        assert_eq!(refused(&made, case, change), *expected, "{case}");
    }
    // Without a ControlNet, there is nothing to follow.
    let request = Request { controls: made.request("plain").controls, ..Request::new("a") };
    let error = pipeline::settings(&made.open(Vec::new()).unwrap(), &request).unwrap_err().to_string();
    assert!(
        error.starts_with("--control-image: expected nothing, since the model was opened without a ControlNet"),
        "{error}"
    );
    // One alone may be given its picture as models are that take one.
    let controls = made.request("pixels").controls;
    let request =
        Request { control_image: Some(controls[0].image.clone()), controls: Vec::new(), ..made.request("pixels") };
    let settings = pipeline::settings(&made.open(made.folders("pixels")).unwrap(), &request).unwrap();
    assert_eq!(settings.controls[0].scale, 1.0);
}

/// What is said of the ControlNet at `path` beside the model.
fn not_opened(made: &Made, path: &Path) -> String {
    made.open(vec![path.to_owned()]).err().unwrap().to_string()
}

#[test]
fn networks_that_do_not_fit() {
    let made = Made::new();
    let at = |name: &str| made.dir.path().join(name);
    let error = not_opened(&made, &at("transformer"));
    assert!(error.contains("holds FLUX transformer, diffusers names, and no ControlNet of FLUX.1"), "{error}");
    let error = not_opened(&made, &at("vae"));
    assert!(error.contains("and no ControlNet of FLUX.1"), "{error}");
    // A ControlNet is no transformer.
    let files = pinhole::source::Files {
        parts: vec![(&pinhole::source::slot::TRANSFORMER, at("union"))],
        ..pinhole::source::Files::default()
    };
    let source = Source::assemble(Some(Source::open(made.dir.path()).unwrap()), &files).unwrap();
    let error = pipeline::open(&source).err().unwrap().to_string();
    assert!(error.contains("holds ControlNet of FLUX.1, diffusers names, and no transformer"), "{error}");
    // MistoLine's, which has other layers before its blocks.
    let theirs = renamed(&made, "pixels", |name: &str| match name.strip_prefix("input_hint_block.") {
        Some(own) => format!("input_cond_block.encoder.{own}"),
        None => name.replace("controlnet_x_embedder", "pos_embed_input"),
    });
    let error = not_opened(&made, &theirs);
    assert!(error.contains("it holds MistoLine's ControlNet of FLUX.1, which this version does not run"), "{error}");
    // One of a model with another width.
    let config = at("plain").join("config.json");
    let narrow = std::fs::read_to_string(&config)
        .unwrap()
        .replace("\"pooled_projection_dim\": 256", "\"pooled_projection_dim\": 512");
    std::fs::write(&config, narrow).unwrap();
    let error = not_opened(&made, &at("plain"));
    assert!(error.contains("text_embedder.linear_1.weight"), "{error}");
    assert!(made.open(vec![at("union"); 9]).is_err());
    let options = synthetic::Options {
        architecture: Architecture::FLUX_CONTROLNET_UNION,
        file_type: FileType::Q8_0,
        blocks: None,
        hollow: true,
        only: None,
    };
    synthetic::write(&at("wide.gguf"), &options, |_| Ok(())).unwrap();
    let error = not_opened(&made, &at("wide.gguf"));
    assert!(error.ends_with("wide.gguf: num_attention_heads: expected 2, as the transformer has, found 24"), "{error}");
}

/// The tensors of the ControlNet `net`, with other names, as one file without a configuration.
fn renamed(made: &Made, net: &str, name: impl Fn(&str) -> String) -> PathBuf {
    let mut tensors = std::collections::BTreeMap::new();
    for weight in support::synth::weights(&made.golden, net) {
        let values = weight.values();
        tensors.insert(name(&weight.name), support::lora::Tensor { shape: weight.shape, values });
    }
    support::lora::write(made.dir.path(), &format!("{net}-alone"), &tensors, Vec::new())
}

#[test]
fn single_files_say_the_same() {
    let made = Made::new();
    // What XLabs calls some of its tensors; a whole file of theirs has original names throughout.
    let hint = ["conv_in", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "blocks.4", "blocks.5", "conv_out"];
    let theirs = |name: &str| {
        for (i, convolution) in hint.iter().enumerate() {
            if let Some(kind) = name.strip_prefix(&format!("input_hint_block.{convolution}.")) {
                return format!("input_hint_block.{}.{kind}", 2 * i);
            }
        }
        name.replace("controlnet_x_embedder", "pos_embed_input")
    };
    let plain = |name: &str| name.to_owned();
    let files = [
        ("union", renamed(&made, "union", plain)),
        ("inpaint", renamed(&made, "inpaint", plain)),
        ("pixels", renamed(&made, "pixels", theirs)),
    ];
    for (case, file) in files {
        let request = Request { steps: Some(1), ..made.request(case) };
        let by_folder = generate(&mut on(made.open(made.folders(case)).unwrap(), "cpu"), &request);
        let by_file = generate(&mut on(made.open(vec![file]).unwrap(), "cpu"), &request);
        assert!(bits(&by_folder) == bits(&by_file), "{case}");
    }
}

/// The model in `dir` as a bundle, beside it.
fn bundled(dir: &Path, file_type: &str) -> PathBuf {
    let path = dir.join(format!("{file_type}.gguf"));
    let model = open(dir, Vec::new()).unwrap();
    let plan = convert::plan(&model.source, &model.networks(), file_type.parse::<FileType>().unwrap()).unwrap();
    plan.write(&path, WriteOptions { overwrite: true, ..WriteOptions::default() }, &mut |_| Ok(())).unwrap();
    path
}

/// The ControlNet in `folder` as a GGUF of its own, beside it.
fn converted(folder: &Path, file_type: &str) -> PathBuf {
    let path = folder.with_extension(format!("{file_type}.gguf"));
    let alone = pipeline::alone(&Source::open(folder).unwrap()).unwrap().unwrap();
    let options = convert::Options {
        target: convert::Target::Component(alone.slot),
        ..convert::Options::from(file_type.parse::<FileType>().unwrap())
    };
    let plan = convert::plan(&alone.source, &alone.networks.networks(), options).unwrap();
    plan.write(&path, WriteOptions { overwrite: true, ..WriteOptions::default() }, &mut |_| Ok(())).unwrap();
    path
}
