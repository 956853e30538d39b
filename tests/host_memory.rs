//! Host memory that is smaller than the model: pages of the file are given back behind the computation, and the picture is
//! the same. Alone in its file, since it looks at the whole process.
#![cfg(target_os = "linux")]
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::cell::{Cell, RefCell};
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use pinhole::builtin;
use pinhole::convert::{self, WriteOptions};
use pinhole::error::Error;
use pinhole::ggml::{CancelFlag, Device};
use pinhole::pipeline::Pipeline;
use pinhole::pipeline::{Event, Generated, MemoryOptions, Request};
use pinhole::source::Source;
use pinhole_quant::metrics;
use pinhole_quant::recipe::FileType;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

/// Held by each test: they look at the whole process.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn what_does_not_fit_is_read_again_and_draws_the_same() {
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mini.gguf");
    let mini = builtin::mini().unwrap();
    let networks = pinhole::pipeline::open(&mini).unwrap();
    let plan = convert::plan(&networks.source, &networks.networks(), FileType::Q8_0).unwrap();
    plan.write(&path, WriteOptions::default(), &mut |_| Ok(())).unwrap();
    // Pages that wait to be written cannot be given back.
    fs::File::open(&path).unwrap().sync_all().unwrap();

    let request = Request { prompt: "a red ring".into(), steps: Some(3), batch: 1, ..Request::default() };
    for device in ["cpu", "cpu:discrete"] {
        let device = Device::by_name(device).unwrap();
        let model = pinhole::pipeline::open(&Source::open(&path).unwrap()).unwrap();
        let mut pipeline = Pipeline::with_threads(model, device, 1, CancelFlag::new()).unwrap();
        let all = draw(&mut pipeline, &request, None);
        let before = resident_pages(&path);
        // What the process holds moves by a little between two looks.
        let some = 4 << 20;
        let least = least(&mut pipeline, &request);
        draw(&mut pipeline, &request, Some(least + some));
        // Enough for some of the pages, and not for all. The process holds more by now than before it drew, so it is asked again.
        let least = self::least(&mut pipeline, &request);
        let enough = (least + least.max(all.plan.host.unwrap().peak)) / 2 + some / 4;
        println!("at least {least} bytes, then {enough}, and {:?} for everything", all.plan.host);
        let short = draw(&mut pipeline, &request, Some(enough));
        let after = resident_pages(&path);

        assert!(short.plan.components.iter().any(|component| component.placement.dropped.contains(&true)));
        // The decoder needs most, so that the denoiser's stages would stay: here none may.
        let mut plan = short.plan.clone();
        for component in &mut plan.components {
            component.placement.dropped = vec![true; component.placement.slot_of.len()];
        }
        let nothing = pipeline.generate_as(plan, &request, &mut |_: Event| Ok(())).unwrap();
        let at_the_end = resident_pages(&path);

        println!("{}: resident {before} bytes of the file, then {after} and {at_the_end}", device.name());
        for other in [&short, &nothing] {
            assert!(all.latents == other.latents && all.images == other.images, "other pictures");
        }
        let size = fs::metadata(&path).unwrap().len();
        assert!(before > size / 2, "{before} of {size}");
        assert!(after < size / 4 && at_the_end < size / 4, "{after} and {at_the_end} of {size}");
    }
}

#[test]
fn a_small_host_computes_passes_one_after_the_other() {
    let _alone = ALONE.lock();
    let model = pinhole::pipeline::open(&builtin::mini().unwrap()).unwrap();
    let mut pipeline = Pipeline::with_threads(model, Device::cpu().unwrap(), 1, CancelFlag::new()).unwrap();
    // Of all phases, that of the denoiser takes most.
    let request = Request {
        prompt: "a red ring".into(),
        negative_prompt: Some("blue".into()),
        cfg_scale: Some(2.0),
        width: Some(64),
        height: Some(64),
        steps: Some(1),
        batch: 24,
        ..Request::default()
    };
    let all = draw(&mut pipeline, &request, None);
    let least = least(&mut pipeline, &request);
    let parts = draw(&mut pipeline, &request, Some(least + (4 << 20)));
    let batch = parts.plan.component("transformer").unwrap().batch;
    println!("at least {least} bytes: {batch}");
    assert!(batch.parts_each_step() > 1, "{batch:?}");
    assert!(parts.plan.peak() < all.plan.peak());
    assert!(metrics::nmse(&all.latents, &parts.latents).unwrap() < 1e-6);
}

/// Sides from 16 to 16384, as many small as large ones.
fn side() -> impl Strategy<Value = usize> {
    prop_oneof![4 => (0.0f64..10.0).prop_map(|power| 16 * power.exp2() as usize), 1 => Just(16384), 1 => Just(16)]
}

/// Any size within any budget: a plan that keeps to it, or a refusal with what would do, and not less.
#[test]
fn random_sizes_fit_or_the_least_is_named() {
    let _alone = ALONE.lock();
    let model = pinhole::pipeline::open(&builtin::mini().unwrap()).unwrap();
    let pipeline = Pipeline::with_threads(model, Device::cpu().unwrap(), 2, CancelFlag::new()).unwrap();
    let pipeline = RefCell::new(pipeline);
    let machine = pinhole::memory::room().most.unwrap() as usize;
    // What is needed counts what the process holds as the plan begins, which differs by megabytes from one plan to the next: the
    // heap keeps some of the graphs that were measured. So budgets move along with what is held just before. What is left is the
    // inaccuracy of Linux at either look, which counts pages on each core by itself and adds up 32 of them at a time, or two for each core
    // if that is more, and what is allocated between this look and the plan's.
    let cores = std::thread::available_parallelism().unwrap().get();
    let some = (2 << 20) + 2 * cores * (2 * cores).max(32) * 4096;
    let held = || pinhole::memory::resident().unwrap().anonymous as usize;
    let cases = ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() };
    let (planned, refused) = (Cell::new(0), Cell::new(0));
    let plan = |width: usize, height: usize, batch: usize, budget: Option<usize>| {
        let mut pipeline = pipeline.borrow_mut();
        pipeline.set_memory(MemoryOptions { host: budget, ..MemoryOptions::default() });
        let (width, height, steps) = (Some(width), Some(height), Some(1));
        pipeline.plan(&Request { prompt: "x".into(), width, height, steps, batch, ..Request::default() })
    };
    let sizes = (side(), side(), 1usize..4, (25.0f64..34.0).prop_map(|power| power.exp2() as usize));
    let result = TestRunner::new(cases).run(&sizes, |(width, height, batch, budget)| {
        let before = held();
        match plan(width, height, batch, Some(budget)) {
            Ok(plan) => {
                planned.set(planned.get() + 1);
                let host = plan.host.unwrap();
                prop_assert!(host.limit <= budget && host.peak <= host.limit, "{host:?} of {budget}");
            }
            Err(error @ Error::OverBudget { .. }) => {
                refused.set(refused.get() + 1);
                let Error::OverBudget { needed, given, .. } = &error else { unreachable!() };
                prop_assert!(*given <= budget && needed > given, "{error}");
                prop_assert!(error.hint().is_some_and(|hint| hint.starts_with("try ")), "{error}");
                let needed_now = || needed + held() - before;
                if needed_now() < machine - some {
                    prop_assert!(plan(width, height, batch, Some(needed_now() + some)).is_ok(), "{error}: not enough");
                }
                prop_assert!(plan(width, height, batch, Some(needed_now() - some)).is_err(), "{error}: not the least");
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
        // Without a budget, what is free bounds it.
        match plan(width, height, batch, None) {
            Ok(plan) => prop_assert!(plan.host.is_some_and(|host| host.peak <= machine)),
            Err(error) => prop_assert!(matches!(error, Error::OverBudget { .. }), "{error}"),
        }
        Ok(())
    });
    let (planned, refused) = (planned.get(), refused.get());
    println!("{planned} planned, {refused} refused");
    result.unwrap();
    assert!(planned > 10 && refused > 10, "{planned} planned, {refused} refused");
}

fn draw(pipeline: &mut Pipeline, request: &Request, host: Option<usize>) -> Generated {
    pipeline.set_memory(MemoryOptions { host, ..MemoryOptions::default() });
    pipeline.generate_watched(request, &mut |_: Event| Ok(())).unwrap()
}

/// What the refusal names.
fn least(pipeline: &mut Pipeline, request: &Request) -> usize {
    pipeline.set_memory(MemoryOptions { host: Some(1 << 20), ..MemoryOptions::default() });
    match pipeline.plan(request).unwrap_err() {
        error @ Error::OverBudget { needed, .. } => {
            println!("{error}\nhint: {}", error.hint().unwrap());
            needed
        }
        other => panic!("{other}"),
    }
}

/// Bytes of the file's map that are in memory for this process.
fn resident_pages(path: &Path) -> u64 {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    let mut lines = maps.lines();
    let mut bytes = 0;
    while let Some(line) = lines.next() {
        if line.ends_with(name) {
            let resident = lines.by_ref().find_map(|line| line.strip_prefix("Rss:")).unwrap();
            bytes += resident.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024;
        }
    }
    bytes
}
