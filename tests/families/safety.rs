//! The safety checker against diffusers in float32. What is expected was recorded by `tests/reference/safety.py`.

use std::fs;
use std::path::Path;

use crate::support::drawing::{THREADS, on};
use crate::support::sd1::{Tensor, write_tensors};
use crate::support::{Golden, given, sd1, synth};
use pinhole::convert::{self, WriteOptions};
use pinhole::exec::{DeviceWeights, Session};
use pinhole::ggml::{Backend, CancelFlag, Device, Ledger};
use pinhole::image::View;
use pinhole::models::safety_checker::{Concepts, Verdict};
use pinhole::pipeline::{self, Event, Generated, MemoryOptions, Opened, Phase, Pipeline, Request, SafetyMode};
use pinhole::plan::Offload;
use pinhole::sample::Sampler;
use pinhole::source::slot::SAFETY_CHECKER;
use pinhole::source::{self, Component, Files, Source, networks};
use pinhole::stage::{Cadence, Dims};
use pinhole::{Error, Result};
use pinhole_quant::metrics;
use pinhole_quant::recipe::FileType;
use serde_json::{Value, json};
use tempfile::TempDir;

/// How far cosines may be from diffusers'.
const MOST: f32 = 1e-6;

/// Its file in a folder of a diffusers directory.
const FILE: &str = "model.safetensors";

/// The checker's tensors, with the thresholds that were recorded.
fn tensors(golden: &Golden) -> Vec<Tensor> {
    let mut tensors = Vec::new();
    for weight in synth::weights(golden, "safety_checker") {
        tensors.push(Tensor { name: weight.name.clone(), shape: weight.shape.clone(), values: weight.values() });
    }
    for name in ["concept_embeds_weights", "special_care_embeds_weights"] {
        tensors.push(Tensor { name: name.into(), shape: golden.shape(name), values: golden.f32(name) });
    }
    tensors
}

/// Writes the checker as a folder of a diffusers directory, and how pictures are prepared for it as another.
fn write_checker(dir: &Path, golden: &Golden) {
    for folder in ["safety_checker", "feature_extractor"] {
        fs::create_dir_all(dir.join(folder)).unwrap();
    }
    let config = golden.at("/components/safety_checker/config").to_string();
    fs::write(dir.join("safety_checker/config.json"), config).unwrap();
    write_tensors(&dir.join("safety_checker").join(FILE), &tensors(golden));
    let prepared = golden.at("/feature_extractor").to_string();
    fs::write(dir.join("feature_extractor/preprocessor_config.json"), prepared).unwrap();
}

/// Says in `model_index.json` what the model's safety checker is.
fn name_checker(dir: &Path, checker: &Value) {
    let path = dir.join("model_index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    index["safety_checker"] = checker.clone();
    fs::write(path, index.to_string()).unwrap();
}

/// The model with its checker.
fn directory(golden: &Golden) -> TempDir {
    let (model, dir) = (Golden::load("sd1"), tempfile::tempdir().unwrap());
    sd1::write_directory(dir.path(), &model, model.at("/scheduler"));
    write_checker(dir.path(), golden);
    name_checker(dir.path(), &json!(["stable_diffusion", "StableDiffusionSafetyChecker"]));
    dir
}

fn open(dir: &Path) -> Opened {
    pipeline::open(&Source::open(dir).unwrap()).unwrap()
}

/// The model at `dir` with the checker at `checker`.
fn with_checker(dir: &Path, checker: &Path) -> Result<Opened> {
    let mut files = Files::default();
    files.add("safety_checker", checker.to_owned());
    pipeline::open(&Source::assemble(Some(Source::open(dir)?), &files)?)
}

fn request(golden: &Golden) -> Request {
    let whole = |key: &str| golden.integer(&format!("/request/{key}")) as usize;
    Request {
        prompt: golden.text("/request/prompt").to_owned(),
        width: Some(whole("width")),
        height: Some(whole("height")),
        steps: Some(whole("steps")),
        seed: golden.integer("/request/seed"),
        batch: whole("batch"),
        cfg_scale: Some(1.0),
        sampler: Some(Sampler::Euler),
        ..Request::default()
    }
}

/// What `pipeline` draws, with its warnings; what each phase took is what was planned.
fn draw(pipeline: &mut Pipeline, request: &Request) -> (Generated, Vec<String>) {
    let mut warnings = Vec::new();
    let generated = pipeline.generate_watched(request, &mut |event: Event| {
        if let Event::Warning(text) = event {
            warnings.push(text);
        }
        Ok(())
    });
    let generated = generated.unwrap();
    for phase in &generated.phases {
        assert_eq!(phase.measured.peak, phase.planned, "{:?}: {:?}", phase.phase, phase.measured);
    }
    assert_eq!(generated.memory.peak, generated.plan.peak());
    (generated, warnings)
}

fn flags(golden: &Golden, tensor: &str) -> Vec<bool> {
    golden.u8(tensor).iter().map(|&flag| flag != 0).collect()
}

/// How far two lists are apart at most.
fn apart(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(found, expected)| (found - expected).abs()).fold(0.0, f32::max)
}

#[test]
fn decisions_are_those_of_diffusers() {
    let golden = Golden::load("safety");
    let tensors = tensors(&golden);
    let values = |name: &str| tensors.iter().find(|tensor| tensor.name == name).unwrap().values.clone();
    let concepts = Concepts { embeddings: values("concept_embeds"), thresholds: golden.f32("vectors.concept_weights") };
    let special =
        Concepts { embeddings: values("special_care_embeds"), thresholds: golden.f32("vectors.special_weights") };
    let (vectors, flagged) = (golden.f32("vectors"), flags(&golden, "vectors.flagged"));
    let width = golden.shape("vectors")[1];
    let (mut cosines, mut cares, mut found) = (Vec::new(), Vec::new(), Vec::new());
    for vector in vectors.chunks_exact(width) {
        cosines.extend(concepts.cosines(vector));
        cares.extend(special.cosines(vector));
        found.push(Verdict::of(vector, &concepts, &special).flagged);
    }
    let worst = apart(&cosines, &golden.f32("vectors.concept")).max(apart(&cares, &golden.f32("vectors.special")));
    println!("cosines are {worst:.1e} away; {} of {} are flagged", found.iter().filter(|f| **f).count(), found.len());
    assert!(worst <= MOST && found == flagged && found.contains(&true) && found.contains(&false));
}

#[test]
fn pictures_are_judged_as_diffusers_does() {
    let golden = Golden::load("safety");
    let dir = tempfile::tempdir().unwrap();
    write_checker(dir.path(), &golden);
    let component = Component::open(&dir.path().join("safety_checker"), &SAFETY_CHECKER).unwrap();
    let part = networks::safety_checker(&component).unwrap();
    let net = &part.net;
    let tower = &net.config().vision;
    let text = golden.at("/feature_extractor").to_string();
    let view = View::from_json(&text, Path::new("f"), tower.image_size, tower.patch_size).unwrap();
    let device = Device::by_name("cpu").unwrap();
    let (mut backend, ledger) = (Backend::new(device, THREADS, CancelFlag::new()).unwrap(), Ledger::new());
    let weights = DeviceWeights::load(&net.model, &part.bound, device, &ledger).unwrap();
    let mut session = Session::new(&net.model, &weights, &Dims::new(), &backend, &ledger).unwrap();
    let read = |id| part.bound.read_f32(id).unwrap();
    let concepts = Concepts { embeddings: read(net.concepts.embeddings), thresholds: read(net.concepts.thresholds) };
    let special = Concepts { embeddings: read(net.special.embeddings), thresholds: read(net.special.thresholds) };
    let (mut cosines, mut cares, mut found) = (Vec::new(), Vec::new(), Vec::new());
    for size in golden.list("/given") {
        let side = |i: usize| size[i].as_u64().unwrap() as usize;
        let picture = given::picture(side(0), side(1));
        session.set(net.pixels, &picture.image().patches(&view).unwrap()).unwrap();
        session.run(&mut backend, Cadence::Request, |_, _| Ok(())).unwrap();
        let seen = session.get(net.seen).unwrap();
        cosines.extend(concepts.cosines(&seen));
        cares.extend(special.cosines(&seen));
        found.push(Verdict::of(&seen, &concepts, &special).flagged);
    }
    let worst = apart(&cosines, &golden.f32("concept")).max(apart(&cares, &golden.f32("special")));
    println!("cosines are {worst:.1e} away; flagged: {found:?}");
    assert!(worst <= MOST, "{worst:e}");
    assert_eq!(found, flags(&golden, "flagged"));
    // One by a concept, and one by the adjustment alone.
    assert_eq!(found.iter().filter(|flagged| **flagged).count(), 2);
}

#[test]
fn flagged_pictures_become_black_or_are_reported() {
    let golden = Golden::load("safety");
    let (dir, request) = (directory(&golden), request(&golden));
    let expected = flags(&golden, "drawn.flagged");
    let pictures = golden.u8("drawn.pictures");
    let mut pipeline = on(open(dir.path()), "cpu:discrete");
    let mut drawn = |offload, vram, safety| {
        pipeline.set_memory(MemoryOptions { offload, vram, host: None });
        let request = Request { safety, ..request.clone() };
        let drawn = draw(&mut pipeline, &request);
        (drawn, pipeline.plan(&request).unwrap())
    };
    let ((resident, warnings), plan) = drawn(Offload::None, None, None);
    assert_eq!((resident.settings.safety, resident.flagged()), (SafetyMode::On, expected.clone()));
    assert!(resident.phases.iter().any(|phase| phase.phase == Phase::Safety));
    assert!(plan.component("safety_checker").is_some());
    let said: Vec<&String> = warnings.iter().filter(|text| text.contains("the safety checker flagged")).collect();
    assert_eq!(said, ["the safety checker flagged picture 4: it became black (--safety report keeps it)"]);
    for ((image, flagged), theirs) in resident.images.iter().zip(&expected).zip(pictures.chunks(pictures.len() / 4)) {
        assert_eq!(image.rgb().iter().all(|&byte| byte == 0), *flagged);
        assert!(*flagged == theirs.iter().all(|&byte| byte == 0));
        assert!(*flagged || metrics::psnr(theirs, image.rgb()).unwrap() >= 50.0);
    }
    let ((streamed, _), _) = drawn(Offload::Sequential, None, None);
    assert!(streamed.images == resident.images && streamed.verdicts == resident.verdicts);
    assert!(streamed.plan.component("safety_checker").unwrap().streamed() > 0);

    let ((reported, warnings), _) = drawn(Offload::Model, None, Some(SafetyMode::Report));
    assert_eq!(reported.verdicts, resident.verdicts);
    assert!(warnings.iter().any(|text| text == "the safety checker flagged picture 4: it is kept"), "{warnings:?}");
    let ((off, warnings), plan) = drawn(Offload::None, None, Some(SafetyMode::Off));
    assert!(off.verdicts.is_empty() && plan.component("safety_checker").is_none());
    assert!(!warnings.iter().any(|text| text.contains("safety")));
    assert!(off.images == reported.images && off.images[..3] == resident.images[..3]);
    assert!(off.images[3] != resident.images[3]);

    // Under the least budget.
    pipeline.set_memory(MemoryOptions { vram: Some(1), ..MemoryOptions::default() });
    let Error::OverBudget { needed, .. } = pipeline.plan(&request).unwrap_err() else { panic!("no refusal") };
    pipeline.set_memory(MemoryOptions { vram: Some(needed), ..MemoryOptions::default() });
    let (least, _) = draw(&mut pipeline, &request);
    assert!(least.memory.peak <= needed && least.images == resident.images);
}

#[test]
fn every_picture_is_judged_alone() {
    let golden = Golden::load("safety");
    let (dir, batch) = (directory(&golden), request(&golden));
    let mut pipeline = on(open(dir.path()), "cpu");
    let all = pipeline.generate(&batch).unwrap();
    for i in [2, 3] {
        let alone = Request { seed: batch.seed + i, batch: 1, ..batch.clone() };
        let (one, warnings) = draw(&mut pipeline, &alone);
        let (one_verdict, its) = (&one.verdicts[0], &all.verdicts[i as usize]);
        assert!(apart(&one_verdict.concepts, &its.concepts) < 1e-4 && one_verdict.flagged == its.flagged);
        let says_so = warnings.iter().any(|text| text.starts_with("the safety checker flagged the picture:"));
        assert_eq!(says_so, its.flagged);
    }
}

#[test]
fn files_of_all_kinds_hold_it() {
    let golden = Golden::load("safety");
    let dir = directory(&golden);
    let request = Request { steps: Some(2), batch: 1, safety: Some(SafetyMode::Report), ..request(&golden) };
    let expected = on(open(dir.path()), "cpu").generate(&request).unwrap().verdicts;
    let plain = tempfile::tempdir().unwrap();
    let model = Golden::load("sd1");
    sd1::write_directory(plain.path(), &model, model.at("/scheduler"));
    let said = on(open(plain.path()), "cpu").plan(&request).unwrap_err().to_string();
    assert_eq!(said, "--safety: expected a model with a safety checker, found `report` and none");
    let same = |checker: &Path| {
        let model = with_checker(plain.path(), checker).unwrap();
        assert!(on(model, "cpu").generate(&request).unwrap().verdicts == expected, "{}", checker.display());
    };
    same(&dir.path().join("safety_checker"));
    same(dir.path());
    // Names as published, and as transformers 5 has them.
    let published = fs::read_to_string(dir.path().join("safety_checker/config.json")).unwrap();
    for (folder, prefix) in [("beside", "vision_model.vision_model."), ("shorter", "vision_model.")] {
        let folder = plain.path().join(folder);
        fs::create_dir_all(&folder).unwrap();
        let mut renamed = tensors(&golden);
        for tensor in &mut renamed {
            if let Some(own) = tensor.name.clone().strip_prefix("vision_model.") {
                tensor.name = format!("{prefix}{own}");
            }
        }
        fs::write(folder.join("config.json"), &published).unwrap();
        fs::write(folder.join("preprocessor_config.json"), golden.at("/feature_extractor").to_string()).unwrap();
        write_tensors(&folder.join(FILE), &renamed);
        same(&folder);
        let held = pinhole::safetensors::open(&folder.join(FILE)).unwrap();
        assert_eq!(source::recognise(held.names()), ["safety checker"]);
    }
    for file_type in ["q8_0", "q4_k_s"] {
        let model = open(dir.path());
        let path = plain.path().join(format!("{file_type}.gguf"));
        let plan = convert::plan(&model.source, &model.networks(), file_type.parse::<FileType>().unwrap()).unwrap();
        plan.write(&path, WriteOptions::default(), &mut |_| Ok(())).unwrap();
        let bundle = open(&path);
        assert!(bundle.source.feature_extractor.is_some());
        let found = draw(&mut on(bundle, "cpu:discrete"), &request).0.verdicts;
        // Its matrices are of 16 bits, and the picture is another.
        let away = apart(&found[0].concepts, &expected[0].concepts);
        println!("{file_type}: {away:.1e}");
        assert!(away < 0.05);
    }
}

#[test]
fn a_model_without_weights_of_one_brings_none() {
    let golden = Golden::load("safety");
    let (dir, request) = (directory(&golden), Request { steps: Some(2), batch: 1, ..request(&golden) });
    let folder = dir.path().join("safety_checker");
    // Named as none, it is not there.
    name_checker(dir.path(), &json!([null, null]));
    let model = open(dir.path());
    assert!(model.safety.is_none() && model.source.passed_over().is_empty());
    name_checker(dir.path(), &json!(["stable_diffusion", "StableDiffusionSafetyChecker"]));
    let extractor = dir.path().join("feature_extractor/preprocessor_config.json");
    fs::write(&extractor, r#"{"size": 224, "crop_size": 224}"#).unwrap();
    let said = pipeline::open(&Source::open(dir.path()).unwrap()).map(drop).unwrap_err().to_string();
    assert!(said.ends_with("crop_size: expected 58, as the tower sees, and at most the size, found 224"), "{said}");
    fs::remove_file(&extractor).unwrap();
    let mut fewer = tensors(&golden);
    fewer.retain(|tensor| tensor.name != "visual_projection.weight");
    write_tensors(&folder.join(FILE), &fewer);
    let said = pipeline::open(&Source::open(dir.path()).unwrap()).map(drop).unwrap_err().to_string();
    assert!(said.ends_with("safety_checker: weights: expected 44 tensors, found 43 of them"), "{said}");
    fs::remove_file(folder.join(FILE)).unwrap();
    let model = open(dir.path());
    let passed_over = model.source.passed_over();
    assert!(matches!(passed_over, [only] if only.ends_with("nothing is read from it")), "{passed_over:?}");
    let mut pipeline = on(model, "cpu");
    assert_eq!(pipeline.settings(&request).unwrap().safety, SafetyMode::Off);
    let on = Request { safety: Some(SafetyMode::On), ..request.clone() };
    let said = pipeline.plan(&on).unwrap_err();
    assert_eq!(said.hint(), Some("give one with --safety-checker FILE"));
    assert!(pipeline.generate(&request).unwrap().verdicts.is_empty());
}
