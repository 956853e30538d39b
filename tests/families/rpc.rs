//! Requests that another machine computes, alone or beside this one, over loopback: the pictures of a local device of the server's kind, to
//! the bit, and on the server what was planned for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;

use crate::devices::{assert_same, draw, generate, mini, of_phase, z_image_with_a_lora};
use crate::support::{Golden, sd1};
use crate::{sd_controls, stable_diffusion, wan, z_image};
use pinhole::ggml::{CancelFlag, Device};
use pinhole::pipeline::{self, Event, Generated, MemoryOptions, Opened, Pipeline, Request};
use pinhole::plan::{Offload, Phase};
use pinhole::rpc::{Heard, Lending, Server};
use pinhole::source::Source;
use pinhole::{Error, Result};

const VRAM: usize = 1 << 30;

/// A server on a card that the CPU plays, with one thread.
fn server(address: &str, vram: usize) -> Server {
    let device = Device::by_name("cpu:discrete").unwrap();
    Server::bind(address, false, Lending { device, threads: 1, vram }).unwrap()
}

/// Runs `server` while `with` is given its address.
fn run<R>(server: &Server, with: impl FnOnce(SocketAddr) -> R) -> R {
    struct Stop<'a>(&'a CancelFlag);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.raise();
        }
    }
    let stop = CancelFlag::new();
    thread::scope(|scope| {
        scope.spawn(|| server.run(&stop, &|_: Heard| ()).unwrap());
        let _stop = Stop(&stop);
        with(server.address())
    })
}

/// A pipeline on `names`, with one thread on each.
fn on(model: &Arc<Opened>, names: &str) -> Pipeline {
    let devices = names.split(',').map(Device::by_name).collect::<Result<Vec<_>>>().unwrap();
    let mut pipeline = Pipeline::on_devices(Arc::clone(model), &devices, 1, CancelFlag::new()).unwrap();
    pipeline.set_remembered_bytes(0);
    pipeline
}

const LOCAL: &str = "cpu:discrete";

/// Draws on a server, with weights that stay and that stream, and alone and beside this machine.
fn far(name: &str, (model, request): (Arc<Opened>, Request)) {
    let expected = draw(&mut on(&model, LOCAL), &request, Offload::Sequential);
    let server = server("127.0.0.1:0", VRAM);
    run(&server, |address| {
        let there = format!("rpc:{address}");
        for offload in [Offload::None, Offload::Sequential] {
            let mut pipeline = on(&model, &there);
            let found = draw(&mut pipeline, &request, offload);
            assert_same(&expected, &found, &format!("{name}, {}", offload.name()));
            // What the server allows is the most that a plan has.
            assert!(found.devices[0].limit.is_some_and(|limit| limit <= VRAM), "{name}");
            drop(pipeline);
            let (free, total) = Device::by_name(&there).unwrap().memory().unwrap();
            assert_eq!((free, total, server.usage().total), (VRAM, VRAM, 0), "{name}");
            // What was planned here is what the server had.
            if offload == Offload::None {
                assert_eq!(server.usage().peak, found.devices[0].measured.peak, "{name}");
            }
        }
        let passes = draw(&mut on(&model, &format!("{LOCAL},{there}")), &request, Offload::Sequential);
        assert_same(&expected, &passes, &format!("{name}, side by side"));
        let denoising = of_phase(&passes.plan, Phase::Denoise);
        assert!(!denoising[0].is_empty() && denoising[0] == denoising[1], "{name}: {denoising:?}");
    });
}

#[test]
fn another_machine_draws_what_this_one_draws() {
    let guided = Request { negative_prompt: Some("blue".into()), cfg_scale: Some(2.0), ..Request::new("a red heart") };
    far("mini", mini(Request { batch: 2, ..guided }));
    let (golden, dir) = (Golden::load("sdxl"), tempfile::tempdir().unwrap());
    sd1::write_directory(dir.path(), &golden, golden.at("/scheduler"));
    let model = Arc::new(pipeline::open(&Source::open(dir.path()).unwrap()).unwrap());
    far("sdxl", (model, Request { steps: Some(2), ..stable_diffusion::request(&golden, "batch") }));
    let (golden, dir) = wan::directory("t2v_pair");
    far("wan", (Arc::new(wan::open(dir.path())), Request { steps: Some(2), ..wan::request(&golden, "pair") }));
}

#[test]
fn another_machine_has_loras_and_controlnets() {
    let (golden, _dir, model) = z_image_with_a_lora();
    far("z-image with a LoRA", (model, Request { steps: Some(2), ..z_image::request(&golden, "base_batch") }));
    let (model, request) = sd_controls::opened("sdxl_controls", "guess");
    far("sdxl with a ControlNet", (model, Request { steps: Some(2), ..request }));
}

/// A server allows no more than it has, and stages go to both where neither has room for all.
#[test]
fn stages_are_divided_between_machines() {
    let (model, request) = mini(Request { cfg_scale: Some(1.0), ..Request::new("a red heart") });
    let expected = draw(&mut on(&model, LOCAL), &request, Offload::Model);
    let whole = expected.plan.components.iter().find(|own| own.phase == Phase::Denoise).unwrap();
    let vram = whole.parts.total() - whole.parts.weights / 3;
    let server = server("127.0.0.1:0", vram);
    run(&server, |address| {
        let mut pipeline = on(&model, &format!("{LOCAL},rpc:{address}"));
        pipeline.set_memory(MemoryOptions { offload: Offload::Model, ..MemoryOptions::default() });
        pipeline.set_budgets(&[Some(vram), Some(VRAM)]).unwrap();
        assert!(pipeline.budget_notes().unwrap().iter().any(|note| note.contains("rpc:")));
        let found = generate(&mut pipeline, &request);
        assert_eq!(found.plan.shares(whole.name).len(), 2, "{:?}", found.plan);
        let bits = |generated: &Generated| generated.latents.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(bits(&expected) == bits(&found));
        assert_eq!(found.devices[1].limit, Some(vram));
        assert!(server.usage().peak <= vram);
    });
}

/// A server that goes in the middle of a request ends it; the next goes on without it, and uses it when it is back.
#[test]
fn a_machine_that_is_gone_is_done_without() {
    let guided = Request { negative_prompt: Some("blue".into()), cfg_scale: Some(2.0), ..Request::new("a red heart") };
    let (model, request) = mini(guided);
    let expected = draw(&mut on(&model, LOCAL), &request, Offload::None);
    let first = server("127.0.0.1:0", VRAM);
    let (mut pipeline, address) = run(&first, |address| (on(&model, &format!("{LOCAL},rpc:{address}")), address));
    // Its server stopped: no one answers there.
    drop(first);
    let again = server(&address.to_string(), VRAM);
    let stop = CancelFlag::new();
    thread::scope(|scope| {
        let serving = scope.spawn(|| again.run(&stop, &|_: Heard| ()).unwrap());
        let mut steps = 0;
        let refused = pipeline.generate_watched(&request, &mut |event: Event| {
            steps += usize::from(matches!(event, Event::Step { .. }));
            if steps == 1 {
                stop.raise();
                // It is gone when this returns: one that is told to stop lets its client go.
                while !serving.is_finished() {
                    thread::yield_now();
                }
            }
            Ok(())
        });
        match refused.map(|generated| generated.timings).unwrap_err() {
            Error::Device { device, message, hint } => {
                assert_eq!(device, format!("rpc:{address}"));
                assert!(message.contains("closed the connection") && message.contains("in step 2 of 2"), "{message}");
                assert!(hint.unwrap().contains("connects anew"));
            }
            other => panic!("{other:?}"),
        }
    });
    drop(again);
    let without = draw(&mut pipeline, &request, Offload::None);
    assert_same(&expected, &without, "without it");
    assert!(of_phase(&without.plan, Phase::Denoise)[1..].iter().all(Vec::is_empty), "{:?}", without.plan);
    let back = server(&address.to_string(), VRAM);
    run(&back, |_| {
        let with = draw(&mut pipeline, &request, Offload::None);
        assert_same(&expected, &with, "with it");
        assert!(!of_phase(&with.plan, Phase::Denoise)[1].is_empty(), "{:?}", with.plan);
    });
    // Alone it cannot be done without.
    let alone = server("127.0.0.1:0", VRAM);
    let mut pipeline = run(&alone, |address| on(&model, &format!("rpc:{address}")));
    drop(alone);
    let refused = pipeline.generate(&request).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("rpc:") && refused.contains("cannot be reached"), "{refused}");
}
