//! Drawing with a model: opened, put on a device, and held to its plan.

use std::fs;
use std::path::Path;

use pinhole::convert::{self, WriteOptions};
use pinhole::ggml::{CancelFlag, Device};
use pinhole::pipeline::{self, Event, Generated, Opened, Pipeline, Request};
use pinhole::source::{Files, Slot, Source};
use pinhole_quant::recipe::FileType;

/// Two threads, as many as the smallest machine that runs the tests has.
pub(crate) const THREADS: usize = 2;

/// The model at `path`.
pub(crate) fn open(path: &Path) -> Opened {
    pipeline::open(&Source::open(path).unwrap()).unwrap()
}

/// The model in `dir` with other files in the places of some of its components.
pub(crate) fn with(dir: &Path, parts: &[(&'static Slot, &str)]) -> pinhole::Result<Opened> {
    let parts = parts.iter().map(|(slot, name)| (*slot, dir.join(name))).collect();
    let source = Source::assemble(Some(Source::open(dir)?), &Files { parts, tokenizers: Vec::new() })?;
    pipeline::open(&source)
}

/// What is said of `dir` after `edit` of the configuration of `component`.
pub(crate) fn said(dir: &Path, component: &str, edit: &dyn Fn(&mut serde_json::Value)) -> pinhole::Error {
    let path = dir.join(component).join("config.json");
    let original = fs::read(&path).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&original).unwrap();
    edit(&mut config);
    fs::write(&path, config.to_string()).unwrap();
    let error = Source::open(dir).and_then(|source| pipeline::open(&source)).err().unwrap();
    fs::write(&path, original).unwrap();
    error
}

/// Writes a model as a bundle in a type, over what is there.
pub(crate) fn bundle(model: &Opened, path: &Path, file_type: &str) {
    let plan = convert::plan(&model.source, &model.networks(), file_type.parse::<FileType>().unwrap()).unwrap();
    plan.write(path, WriteOptions { overwrite: true, ..WriteOptions::default() }, &mut |_| Ok(())).unwrap();
}

/// The model on a device. Its text encoder is part of what is measured, for every picture.
pub(crate) fn on(model: Opened, device: &str) -> Pipeline {
    let device = Device::by_name(device).unwrap();
    let mut pipeline = Pipeline::with_threads(model, device, THREADS, CancelFlag::new()).unwrap();
    pipeline.set_remembered_bytes(0);
    pipeline
}

/// Draws what is asked for, in as much memory as was planned.
pub(crate) fn generate(pipeline: &mut Pipeline, request: &Request) -> Generated {
    let generated = pipeline.generate_watched(request, &mut |_: Event| Ok(())).unwrap();
    kept_to_plan(&generated);
    generated
}

/// Asserts that every phase took what was planned for it, to the byte.
pub(crate) fn kept_to_plan(generated: &Generated) {
    for phase in &generated.phases {
        assert_eq!(phase.measured.peak, phase.planned, "{:?}: {:?}", phase.phase, phase.measured);
    }
    assert_eq!(generated.memory.peak, generated.plan.peak());
}

/// The bits of the last latents.
pub(crate) fn bits(generated: &Generated) -> Vec<u32> {
    generated.latents.iter().map(|x| x.to_bits()).collect()
}
