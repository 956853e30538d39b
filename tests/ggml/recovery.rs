//! Failures below the wrapper, each followed by proof that everything still works, and requests to stop.

use std::thread;
use std::time::{Duration, Instant};

use ggml_sys::testing::{ph_test_assert, ph_test_throw};
use pinhole::Error;
use pinhole::ggml::{Arena, Backend, Buffer, CancelFlag, Convolution, Device, Graph, Tensor};

use crate::array::Array;
use crate::rig::{Rig, read};

#[test]
fn a_failed_assertion() {
    let mut rig = Rig::new();
    let caught = ggml_sys::guard(|| ph_test_assert()).unwrap_err();
    assert!(caught.to_string().contains("GGML_ASSERT(1 + 1 == 3) failed"), "{caught}");
    rig.assert_works();
    Rig::new().assert_works();
}

#[test]
fn exceptions() {
    let mut rig = Rig::new();
    for kind in 0..3 {
        ggml_sys::guard(|| ph_test_throw(kind)).unwrap_err();
        ggml_sys::guard_compute(|| ph_test_throw(kind)).unwrap_err();
        rig.assert_works();
    }
    Rig::new().assert_works();
}

#[test]
fn failures_on_every_thread_while_others_compute() {
    let threads: Vec<_> = (0..3)
        .map(|_| {
            thread::spawn(|| {
                let mut rig = Rig::new();
                for _ in 0..20 {
                    ggml_sys::guard(|| ph_test_assert()).unwrap_err();
                    rig.assert_works();
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn a_buffer_that_no_machine_has() {
    let mut rig = Rig::new();
    for bytes in [1 << 60, usize::MAX / 2, usize::MAX - 63, usize::MAX] {
        let error = Buffer::allocate(rig.device, bytes, &rig.ledger, "weights").map(|_| ()).unwrap_err();
        assert!(matches!(&error, Error::OutOfMemory { bytes: found, .. } if *found == bytes), "{error:?}");
        assert_eq!(error.to_string(), format!("cannot allocate {bytes} bytes for weights on cpu"));
        assert!(error.hint().is_some());
    }
    assert_eq!(rig.ledger.usage().total, 0);
    rig.assert_works();
}

#[test]
fn activations_that_no_machine_has() {
    let mut rig = Rig::new();
    let place = rig.f32(&Array::random([3, 3, 1, 1], 61));
    let graph = rig.graph();
    let huge = graph.pad(graph.leaf(&place).unwrap(), 1 << 27, 1 << 27).unwrap();
    graph.output(huge).unwrap();
    assert!(Arena::measure(&graph).unwrap() > 1 << 55);
    let mut arena = Arena::new(rig.device, &rig.ledger).unwrap();
    let error = arena.assign(&[&graph]).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { bytes, .. } if bytes > 1 << 55), "{error:?}");
    assert!(rig.backend.compute(&graph, &mut arena).is_err());
    // The same arena, with a graph that fits.
    let (graph, out) = (rig.graph(), rig.f32(&Array::random([4, 4, 1, 1], 62)));
    graph.store(graph.pad(graph.leaf(&place).unwrap(), 1, 1).unwrap(), &out).unwrap();
    arena.assign(&[&graph]).unwrap();
    rig.backend.compute(&graph, &mut arena).unwrap();
    assert_eq!(read(&out)[3], 0.0);
    rig.assert_works();
}

#[test]
fn any_number_of_threads_will_do() {
    for threads in [0, 1, 3] {
        let mut rig = Rig::new();
        rig.backend = Backend::new(rig.device, threads, CancelFlag::new()).unwrap();
        rig.assert_works();
    }
}

#[test]
fn unknown_devices_are_listed() {
    let error = Device::by_name("cuda9").unwrap_err();
    assert_eq!(error.to_string(), "device cuda9: there is no such device");
    assert!(error.hint().unwrap().contains("cpu"), "{:?}", error.hint());
    assert_eq!(Device::by_name("CPU").unwrap(), Device::cpu().unwrap());
}

/// Products that take seconds: `count` of `side` numbers square.
fn long_graph(rig: &Rig, side: usize, count: usize) -> Graph {
    let graph = Graph::new(rig.device, count + 8).unwrap();
    let square = graph.leaf(&rig.f32(&Array::from_fn([side, side, 1, 1], |_| 0.001))).unwrap();
    let last = (0..count).fold(square, |last, _| graph.mul_mat(square, last).unwrap());
    graph.output(last).unwrap();
    graph
}

#[test]
fn a_raised_flag_stops_before_anything_is_computed() {
    let mut rig = Rig::new();
    rig.cancel.raise();
    let place = rig.f32(&Array::random([3, 1, 1, 1], 63));
    let error = rig.run(|g| g.silu(g.leaf(&place)?)).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error:?}");
    assert!(matches!(rig.cancel.check(), Err(Error::Cancelled)));
}

/// How long `graph` goes on after its flag was raised, a tenth of a second after it began.
fn late(rig: &mut Rig, graph: &Graph, arena: &mut Arena) -> Duration {
    let flag = rig.cancel.clone();
    let raised = thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        flag.raise();
        Instant::now()
    });
    let error = rig.backend.compute(graph, arena).unwrap_err();
    let late = raised.join().unwrap().elapsed();
    assert!(matches!(error, Error::Cancelled), "{error:?}");
    late
}

#[test]
fn a_flag_raised_meanwhile_stops_between_two_operations() {
    const COUNT: usize = 2000;
    let mut rig = Rig::new();
    let graph = long_graph(&rig, 512, COUNT);
    let mut arena = Arena::new(rig.device, &rig.ledger).unwrap();
    arena.assign(&[&graph]).unwrap();
    let late = late(&mut rig, &graph, &mut arena);
    // One product of that size takes milliseconds, all of them many seconds.
    assert!(late < Duration::from_secs(2), "{late:?}");
    // The graph and its memory are as good as before.
    let mut fresh = Backend::new(rig.device, 2, CancelFlag::new()).unwrap();
    let short = long_graph(&rig, 16, 3);
    arena.assign(&[&short]).unwrap();
    fresh.compute(&short, &mut arena).unwrap();
}

/// Computes one operation, of many seconds, and stops it in the middle.
#[track_caller]
fn assert_stops_inside(build: impl FnOnce(&Graph, &dyn Fn([usize; 4]) -> Tensor) -> Option<Tensor>) {
    let mut rig = Rig::new();
    let graph = rig.graph();
    // Where the operation is ggml's, it ends when it is done.
    let Some(result) = build(&graph, &|dims| graph.leaf(&rig.f32(&Array::from_fn(dims, |_| 0.001))).unwrap()) else {
        return;
    };
    graph.output(result).unwrap();
    let mut arena = Arena::new(rig.device, &rig.ledger).unwrap();
    arena.assign(&[&graph]).unwrap();
    let late = late(&mut rig, &graph, &mut arena);
    assert!(late < Duration::from_secs(2), "{late:?}");
}

#[test]
fn a_flag_raised_meanwhile_stops_in_the_middle_of_an_attention() {
    assert_stops_inside(|graph, leaf| {
        let x = leaf([64, 1 << 15, 8, 1]);
        graph.convolves().then(|| graph.flash_attention(x, x, x, 0.1, None).unwrap())
    });
}

#[test]
fn a_flag_raised_meanwhile_stops_in_the_middle_of_a_convolution() {
    assert_stops_inside(|graph, leaf| {
        let (kernel, bias) = (leaf([7, 7, 256, 256]), leaf([256, 1, 1, 1]));
        let around =
            Convolution { kernel, bias: Some(bias), stride: 1, beside: 3, around: [3, 3], doubled: None, odd: false };
        graph.convolve(&around, leaf([384, 384, 256, 1]), None, None).unwrap()
    });
}
