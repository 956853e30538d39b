//! Control LoRAs: with one, a plain model follows a picture. The expected latents were recorded by
//! `tests/reference/control_lora.py`.

use std::path::{Path, PathBuf};

use pinhole::convert::{self, WriteOptions};
use pinhole::error::Error;
use pinhole::ggml::{CancelFlag, Device};
use pinhole::image::Thresholds;
use pinhole::inspect::{Report, Subject};
use pinhole::pipeline::{self, Additions, Generated, MemoryOptions, Opened, Pipeline, Preprocess, Request};
use pinhole::plan::Offload;
use pinhole::source::Source;
use pinhole_quant::metrics;
use pinhole_quant::recipe::FileType;

use super::MOST;
use crate::support::lora::{Tensor, file, write};
use crate::support::{Golden, Layout, given, write_model};

struct Case {
    golden: Golden,
    dir: tempfile::TempDir,
    lora: PathBuf,
}

impl Case {
    fn new() -> Case {
        let dir = tempfile::tempdir().unwrap();
        write_model(&dir.path().join("dev"), &Golden::load("dev"), &Layout::default());
        let golden = Golden::load("control_lora");
        let (tensors, metadata) = file(&golden, "control", "bfl");
        let lora = write(dir.path(), "canny-lora", &tensors, metadata);
        Case { golden, dir, lora }
    }

    fn model(&self) -> PathBuf {
        self.dir.path().join("dev")
    }

    fn opened(&self, path: &Path, strength: f32) -> Opened {
        open(path, &self.lora, strength).unwrap()
    }

    fn request(&self) -> Request {
        let at = |key: &str| self.golden.integer(&format!("/generate/{key}")) as usize;
        let (width, height) = (at("width"), at("height"));
        Request {
            prompt: self.golden.text("/generate/prompt").to_owned(),
            width: Some(width),
            height: Some(height),
            steps: Some(at("steps")),
            seed: self.golden.integer("/generate/seed"),
            guidance: Some(self.golden.number("/generate/guidance_scale")),
            max_sequence_length: Some(at("max_sequence_length")),
            control_image: Some(given::picture(width, height)),
            ..Request::default()
        }
    }
}

fn open(path: &Path, lora: &Path, strength: f32) -> Result<Opened, Error> {
    let additions = Additions { loras: vec![(lora.to_owned(), strength)], ..Additions::default() };
    pipeline::open_with(&Source::open(path)?, &additions)
}

fn on(model: Opened, device: &str) -> Pipeline {
    let mut pipeline = Pipeline::with_threads(model, Device::by_name(device).unwrap(), 2, CancelFlag::new()).unwrap();
    pipeline.set_remembered_bytes(0);
    pipeline
}

fn draw(pipeline: &mut Pipeline, request: &Request) -> Generated {
    let generated = pipeline.generate(request).unwrap();
    for phase in &generated.phases {
        assert_eq!(phase.measured.peak, phase.planned, "{:?}", phase.phase);
    }
    generated
}

#[test]
fn a_plain_model_follows_a_picture() {
    let case = Case::new();
    for name in ["whole", "most"] {
        let model = case.opened(&case.model(), case.golden.number(&format!("/strengths/{name}")));
        assert_eq!(model.loras[0].unused, [""; 0]);
        let generated = draw(&mut on(model, "cpu"), &case.request());
        let nmse = metrics::nmse(&case.golden.f32(&format!("{name}.latents")), &generated.latents).unwrap();
        println!("{name}: nmse {nmse:.2e} (at most {MOST:.0e})");
        assert!(nmse <= MOST, "{name}: {nmse:e}");
    }
}

#[test]
fn every_type_streams_as_it_stays() {
    let case = Case::new();
    let plain = pipeline::open(&Source::open(&case.model()).unwrap()).unwrap();
    let request = Request { steps: Some(2), batch: 2, cfg_scale: Some(2.0), ..case.request() };
    for file_type in [None, Some("q8_0"), Some("q4_k_s")] {
        let path = case.dir.path().join("bundle.gguf");
        if let Some(file_type) = file_type {
            let plan = convert::plan(&plain.source, &plain.networks(), file_type.parse::<FileType>().unwrap()).unwrap();
            plan.write(&path, WriteOptions { overwrite: true, ..WriteOptions::default() }, &mut |_| Ok(())).unwrap();
        }
        let model = if file_type.is_some() { path } else { case.model() };
        let mut card = on(case.opened(&model, 1.0), "cpu:discrete");
        let mut drawn = Vec::new();
        for offload in [Offload::None, Offload::Sequential] {
            card.set_memory(MemoryOptions { vram: None, offload, host: None });
            drawn.push(draw(&mut card, &request).latents);
        }
        assert!(drawn[0] == drawn[1], "{file_type:?}: streamed is not resident");
    }
}

#[test]
fn edges_are_made_from_a_plain_picture() {
    let case = Case::new();
    let model = case.opened(&case.model(), 1.0);
    let canny = |low, high| Preprocess::Canny(Thresholds { low, high });
    let picture = case.request().control_image.unwrap();
    let edges = picture.image().canny(Thresholds::default()).unwrap();
    let edges = pinhole::image::Picture::from_rgb8(edges.width(), edges.height(), edges.rgb()).unwrap();
    let refused = |request: Request| pipeline::settings(&model, &request).unwrap_err().to_string();
    let with = |control_preprocess| Request { control_preprocess, ..case.request() };
    for (low, high) in [(-1.0, 200.0), (100.0, -0.5), (200.0, 100.0), (f32::NAN, 1.0), (1.0, f32::NAN)] {
        let message = refused(with(canny(low, high)));
        assert!(
            message.starts_with("--canny-thresholds: expected two numbers from 0 on, the lower first"),
            "{message}"
        );
    }
    let alone = Request { control_image: None, ..with(canny(100.0, 200.0)) };
    assert!(refused(alone).contains("--control-"), "no picture");
    let mut pipeline = on(model, "cpu");
    let made = draw(&mut pipeline, &with(canny(100.0, 200.0)));
    let given = draw(&mut pipeline, &Request { control_image: Some(edges.into()), ..case.request() });
    assert!(made.latents == given.latents && made.latents != draw(&mut pipeline, &case.request()).latents);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let case = Case::new();
    let error = pipeline::settings(&case.opened(&case.model(), 1.0), &Request::new("a ring")).unwrap_err().to_string();
    assert!(error.starts_with("--control-image: expected a picture"), "{error}");
    let changed = |change: &dyn Fn(&mut std::collections::BTreeMap<String, Tensor>)| {
        let (mut tensors, metadata) = file(&case.golden, "control", "bfl");
        change(&mut tensors);
        let path = write(case.dir.path(), "changed", &tensors, metadata);
        open(&case.model(), &path, 1.0).err().unwrap().to_string()
    };
    for (name, shape, expected) in [
        ("img_in.lora_A.weight", &[4, 384][..], "expected 64 columns, as img_in.weight has, found 384"),
        ("img_in.lora_A.weight", &[4, 127], "expected 64 columns"),
        ("img_in.lora_B.bias", &[255], "expected 256 numbers, found 255"),
        ("double_blocks.0.img_attn.norm.key_norm.scale", &[127], "128"),
        ("double_blocks.9.img_attn.norm.key_norm.scale", &[128], "blocks that this model has"),
    ] {
        let error = changed(&|tensors| {
            let values = vec![0.5; shape.iter().product()];
            tensors.insert(name.into(), Tensor { shape: shape.to_vec(), values });
        });
        println!("{error}");
        assert!(error.contains("changed.safetensors") && error.contains(name) && error.contains(expected), "{error}");
    }
}

#[test]
fn inspect_says_what_it_is_for() {
    let case = Case::new();
    let report = Report::of(&case.lora, &Subject::open(&case.lora).unwrap());
    let lora = report.lora.unwrap();
    assert_eq!(lora.family, Some("FLUX.1"));
    assert_eq!(lora.purpose, ["makes a plain model follow a picture, as FLUX.1 Canny and Depth do"]);
    let (tensors, _) = file(&case.golden, "control", "bfl");
    let told = [("modelspec.usage_hint", "strength 0.125"), ("steps", "8"), ("ss_steps", "900")];
    let told = told.map(|(key, text)| (key.to_owned(), text.to_owned())).to_vec();
    let path = write(case.dir.path(), "Hyper-8steps", &tensors, told);
    let lora = Report::of(&path, &Subject::open(&path).unwrap()).lora.unwrap();
    assert_eq!(lora.purpose[1], "draws in 8 steps, as its name says");
    let settings: Vec<(&str, &String)> = lora.settings.iter().collect();
    assert_eq!(settings, [("modelspec.usage_hint", &"strength 0.125".to_owned()), ("steps", &"8".to_owned())]);
}
