//! Host memory that is smaller than the model: pages of the file are given back behind the computation, and the picture is
//! the same. Alone in its file, since it looks at the whole process.
#![cfg(target_os = "linux")]
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use pinhole::builtin;
use pinhole::convert::{self, WriteOptions};
use pinhole::error::Error;
use pinhole::ggml::{CancelFlag, Device};
use pinhole::pipeline::Pipeline;
use pinhole::pipeline::{Event, Generated, MemoryOptions, Request};
use pinhole::source::Source;
use pinhole_quant::recipe::FileType;

#[test]
fn what_does_not_fit_is_read_again_and_draws_the_same() {
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
