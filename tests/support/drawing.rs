//! Drawing with a model: opened, put on a device, and held to its plan.

use std::path::Path;

use pinhole::ggml::{CancelFlag, Device};
use pinhole::pipeline::{self, Event, Generated, Opened, Pipeline, Request};
use pinhole::source::Source;

/// Two threads, as many as the smallest machine that runs the tests has.
pub(crate) const THREADS: usize = 2;

/// The model at `path`.
pub(crate) fn open(path: &Path) -> Opened {
    pipeline::open(&Source::open(path).unwrap()).unwrap()
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
