//! What a request costs in memory, by the process's own accounting. Alone in its file, since it looks at the whole
//! process.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use pinhole::builtin;
use pinhole::ggml::{CancelFlag, Device};
use pinhole::memory::{PeakMemory, Peaks};
use pinhole::pipeline::Opened;
use pinhole::pipeline::Pipeline;
use pinhole::pipeline::{Event, Request};
use pinhole::source::Network;
use pinhole::weights::Role;

/// The limit for the miniature.
const MOST_ANONYMOUS: u64 = 300 << 20;

#[test]
fn the_miniature_stays_small_and_its_matrices_in_the_file() {
    let watch = PeakMemory::watch();
    let model = pinhole::pipeline::open(&builtin::mini().unwrap()).unwrap();
    let matrices = matrix_bytes(&model);
    let mut pipeline = Pipeline::with_threads(model, Device::cpu().unwrap(), 2, CancelFlag::new()).unwrap();
    let request = Request { prompt: "a red ring".into(), steps: Some(4), batch: 1, ..Request::default() };
    let generated = pipeline.generate_watched(&request, &mut |_: Event| Ok(())).unwrap();

    assert!(generated.mapped_bytes >= matrices, "{} of {matrices} bytes are mapped", generated.mapped_bytes);
    if cfg!(target_os = "linux") {
        let Peaks { anonymous, file, .. } = watch.peaks().unwrap();
        println!("anonymous {anonymous}, file {file}, matrices {matrices}, mapped {}", generated.mapped_bytes);
        assert!(anonymous > 0 && anonymous < MOST_ANONYMOUS, "{anonymous} bytes of anonymous memory");
        // All matrices were read, so they are resident; were they copied, they would be anonymous.
        assert!(file as usize > matrices, "{file} resident bytes of files");
    }
}

/// Bytes in the file of the matrices that stages use, the picture encoder's aside.
fn matrix_bytes(model: &Opened) -> usize {
    let mut bytes = 0;
    for Network { model: net, bound, .. } in model.networks().into_iter().take(4) {
        for &id in net.stages().iter().flat_map(|stage| &stage.weights) {
            let weight = net.manifest().get(id);
            if matches!(weight.role, Role::MatMul | Role::WideMatMul | Role::SensitiveMatMul) {
                bytes += weight.shape.bytes(bound.dtype(id)).unwrap();
            }
        }
    }
    bytes
}
