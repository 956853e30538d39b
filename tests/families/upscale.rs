//! Networks that make pictures larger, against the same networks in PyTorch. What is expected was recorded by
//! `tests/reference/upscale.py`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::sd1::{Tensor, write_tensors};
use crate::support::{Golden, given, golden, synth};
use pinhole::convert::{self, Target, WriteOptions};
use pinhole::exec::{DeviceWeights, Session};
use pinhole::ggml::{Backend, CancelFlag, Device, Ledger};
use pinhole::image::Image;
use pinhole::pipeline::{self, Additions, Event, MemoryOptions, Pipeline, Request, UpscaleModel, Upscaled, Upscaler};
use pinhole::plan::{Offload, Way};
use pinhole::source::slot::UPSCALER;
use pinhole::source::{self, Source, networks};
use pinhole::stage::{Cadence, Dims, Symbol};
use pinhole::{Error, Result};
use pinhole_quant::metrics;
use pinhole_quant::recipe::FileType;

/// Two threads, as many as the smallest machine that runs the tests has.
const THREADS: usize = 2;

/// How far samples may be from PyTorch's: less than a weight that is a tenth too large moves them.
const MOST: f64 = 1e-11;

/// The tensors of the network `name`.
fn tensors(name: &str) -> Vec<Tensor> {
    let weights = synth::weights(&Golden::load("upscale"), name);
    weights
        .iter()
        .map(|weight| Tensor { name: weight.name.clone(), shape: weight.shape.clone(), values: weight.values() })
        .collect()
}

/// Writes the network `name`, whose tensors are called what `called` makes of their names.
fn write(dir: &Path, name: &str, called: impl Fn(&str) -> String) -> PathBuf {
    let mut tensors = tensors(name);
    for tensor in &mut tensors {
        tensor.name = called(&tensor.name);
    }
    let path = dir.join(format!("{name}.safetensors"));
    write_tensors(&path, &tensors);
    path
}

/// The networks, and the sizes of the pictures that each was given.
fn cases() -> Vec<(String, Vec<[usize; 2]>)> {
    let golden = Golden::load("upscale");
    let mut cases = Vec::new();
    for (name, sizes) in golden.at("/pictures").as_object().unwrap() {
        let side = |size: &serde_json::Value, i: usize| size[i].as_u64().unwrap() as usize;
        let sizes = sizes.as_array().unwrap().iter().map(|size| [side(size, 0), side(size, 1)]).collect();
        cases.push((name.clone(), sizes));
    }
    cases
}

fn picture([width, height]: [usize; 2]) -> Image {
    given::picture(width, height).image().clone()
}

fn on(path: &Path, device: &str) -> Upscaler {
    let device = Device::by_name(device).unwrap();
    Upscaler::with_threads(UpscaleModel::open(path).unwrap(), device, THREADS, CancelFlag::new()).unwrap()
}

/// Whether `found` are the bytes `expected`, except for one in five hundred that was near the middle of two.
fn near(found: &[u8], expected: &[u8]) -> bool {
    let apart: Vec<u8> = found.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).filter(|&by| by > 0).collect();
    found.len() == expected.len() && apart.len() <= 1 + found.len() / 500 && apart.iter().all(|&by| by == 1)
}

/// What becomes of `image`; what it took is what was planned.
fn upscaled(upscaler: &mut Upscaler, image: &Image, outscale: Option<f64>) -> Upscaled {
    let upscaled = upscaler.upscale(image, outscale).unwrap();
    for phase in &upscaled.phases {
        assert_eq!(phase.measured.peak, phase.planned, "{:?}: {:?}", phase.phase, phase.measured);
    }
    assert_eq!(upscaled.memory.peak, upscaled.plan.peak());
    upscaled
}

#[test]
fn samples_equal_those_of_pytorch() {
    let (golden, dir) = (Golden::load("upscale"), tempfile::tempdir().unwrap());
    for (name, sizes) in cases() {
        let path = write(dir.path(), &name, str::to_owned);
        let component = source::beside(&path, &UpscaleModel::place()).unwrap();
        let part = networks::upscaler(&component).unwrap();
        let (net, config) = (&part.net, part.net.config());
        let mut backend = Backend::new(Device::cpu().unwrap(), THREADS, CancelFlag::new()).unwrap();
        let ledger = Ledger::new();
        let weights = DeviceWeights::load(&net.model, &part.bound, backend.device(), &ledger).unwrap();
        for size in sizes {
            let [w, h] = config.extents(size);
            let dims = Dims::new().with(Symbol::BATCH, 1).with(Symbol::LATENT_WIDTH, w).with(Symbol::LATENT_HEIGHT, h);
            let image = picture(size);
            let mut compute = |way| {
                let mut session = Session::in_way(way, &net.model, &weights, &dims, &backend, &ledger).unwrap();
                session.set(net.pixels, &config.taken(image.rgb(), size).unwrap()).unwrap();
                session.run(&mut backend, Cadence::Request, |_, _| Ok(())).unwrap();
                session.get(net.result).unwrap()
            };
            let whole = compute(Way::Whole);
            for bytes in [16 << 10, 4 << 10, 256] {
                assert!(whole == compute(Way::Strips(bytes)), "{name}: strips of {bytes}");
            }
            let case = format!("{name}.{}x{}", size[0], size[1]);
            let bytes = config.given(&whole, image.rgb(), size).unwrap();
            assert!(near(&bytes, &golden.u8(&format!("{case}.picture"))), "{case}");
            let expected = golden.f32(&format!("{case}.samples"));
            // Only of these networks is what they give the picture as it is.
            if name.starts_with('x') && whole.len() == expected.len() {
                let nmse = metrics::nmse(&expected, &whole).unwrap();
                let worst = expected.iter().zip(&whole).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                println!("{case}: nmse {nmse:.1e}, {worst:.1e} at most");
                assert!(nmse <= MOST && worst <= 1e-5, "{case}: {nmse:e}, {worst:e}");
            }
        }
    }
}

#[test]
fn every_budget_gives_the_same_picture() {
    let (golden, dir) = (Golden::load("upscale"), tempfile::tempdir().unwrap());
    for (name, size) in [("x4", [17, 13]), ("x2", [15, 11]), ("compact_x3", [11, 16])] {
        let path = write(dir.path(), name, str::to_owned);
        let (mut upscaler, image) = (on(&path, "cpu:discrete"), picture(size));
        let expected = on(&path, "cpu").upscale(&image, None).unwrap().image;
        assert!(near(expected.rgb(), &golden.u8(&format!("{name}.{}x{}.picture", size[0], size[1]))));
        upscaler.set_memory(MemoryOptions { vram: Some(1), ..MemoryOptions::default() });
        let Error::OverBudget { needed, what, .. } = upscaler.plan(size, None).unwrap_err() else {
            panic!("no refusal")
        };
        assert_eq!(what, format!("the upscaler at {}x{}", size[0], size[1]));
        assert_eq!(upscaler.least_budget(size, None).unwrap(), needed);
        for (vram, offload) in [
            (None, Offload::None),
            (None, Offload::Sequential),
            (Some(needed), Offload::Auto),
            (Some(2 * needed), Offload::Auto),
        ] {
            upscaler.set_memory(MemoryOptions { vram, offload, host: None });
            let upscaled = upscaled(&mut upscaler, &image, None);
            assert!(upscaled.image == expected, "{name}: {vram:?}, {offload:?}");
            assert!(vram.is_none_or(|vram| upscaled.memory.peak <= vram));
        }
        let mut stages = 0;
        upscaler
            .upscale_watched(&image, None, &mut |event: Event| {
                stages += usize::from(event == Event::Stage);
                Ok(())
            })
            .unwrap();
        assert!(stages > 3);
    }
}

/// The name that ESRGAN's files have for a tensor of the network `x4`.
fn esrgan(name: &str) -> String {
    let pairs = [("conv_body", "trunk_conv"), ("conv_up", "upconv"), ("conv_hr", "HRconv"), ("body.", "RRDB_trunk.")];
    let name = pairs.iter().fold(name.to_owned(), |name, (ours, theirs)| name.replace(ours, theirs));
    name.replace(".rdb", ".RDB")
}

/// The name that the first of these files have for it, or for one of a network with so many blocks and doublings.
fn first_names(name: &str, blocks: usize, doublings: usize) -> String {
    let (path, leaf) = name.rsplit_once('.').unwrap();
    let path = match path {
        "conv_first" => "model.0".to_owned(),
        "conv_body" => format!("model.1.sub.{blocks}"),
        "conv_hr" => format!("model.{}", 3 * doublings + 2),
        "conv_last" => format!("model.{}", 3 * doublings + 4),
        _ => match path.strip_prefix("conv_up") {
            Some(number) => format!("model.{}", 3 * number.parse::<usize>().unwrap()),
            None => format!("model.1.sub.{}.0", path.strip_prefix("body.").unwrap().replace(".rdb", ".RDB")),
        },
    };
    format!("{path}.{leaf}")
}

#[test]
fn all_spellings_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let golden = Golden::load("upscale");
    let same = |path: &Path, case: &str, size: [usize; 2]| {
        let found = upscaled(&mut on(path, "cpu"), &picture(size), None).image;
        let expected = golden.u8(&format!("{case}.{}x{}.picture", size[0], size[1]));
        assert!(near(found.rgb(), &expected), "{}", path.display());
    };
    same(&write(dir.path(), "x4", esrgan), "x4", [17, 13]);
    same(&write(dir.path(), "x4", |name| first_names(name, 2, 2)), "x4", [17, 13]);
    same(&write(dir.path(), "x8", |name| first_names(name, 1, 3)), "x8", [7, 5]);
    same(&write(dir.path(), "x2", |name| format!("params.{name}")), "x2", [15, 11]);
    same(&write(dir.path(), "compact_x4", |name| format!("params_ema.{name}")), "compact_x4", [13, 9]);
    // As training leaves it: the average counts.
    same(&golden::directory().join("pickles/upscaler.pth"), "compact_x3", [11, 16]);
    let held = pinhole::safetensors::open(&write(dir.path(), "x4", esrgan)).unwrap();
    assert_eq!(source::recognise(held.names()), ["upscaler, ESRGAN names"]);
}

#[test]
fn ggufs_are_made_and_read() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["x4", "compact_x4"] {
        let path = write(dir.path(), name, str::to_owned);
        let size = if name == "x4" { [17, 13] } else { [13, 9] };
        let expected = on(&path, "cpu").upscale(&picture(size), None).unwrap().image;
        for (file_type, least) in [("f32", f64::INFINITY), ("f16", 45.0), ("q8_0", 45.0)] {
            let source = Source::open(&path).unwrap();
            let alone = pipeline::alone(&source).unwrap().unwrap();
            assert_eq!(alone.slot, &UPSCALER);
            let options = convert::Options {
                target: Target::Component(alone.slot),
                ..file_type.parse::<FileType>().unwrap().into()
            };
            let plan = convert::plan(&alone.source, &alone.networks.networks(), options).unwrap();
            let gguf = dir.path().join(format!("{name}-{file_type}.gguf"));
            plan.write(&gguf, WriteOptions::default(), &mut |_| Ok(())).unwrap();
            let mut upscaler = on(&gguf, "cpu:discrete");
            let resident = upscaled(&mut upscaler, &picture(size), None).image;
            let psnr = metrics::psnr(expected.rgb(), resident.rgb()).unwrap();
            println!("{name} {file_type}: {psnr:.1} dB");
            assert!(psnr >= least);
            upscaler.set_memory(MemoryOptions { offload: Offload::Sequential, ..MemoryOptions::default() });
            assert!(resident == upscaled(&mut upscaler, &picture(size), None).image);
        }
    }
}

#[test]
fn results_are_resized() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "compact_x4", str::to_owned);
    let mut upscaler = on(&path, "cpu");
    let size = |upscaler: &mut Upscaler, outscale| {
        let image = upscaled(upscaler, &picture([13, 9]), Some(outscale)).image;
        [image.width(), image.height()]
    };
    assert_eq!(size(&mut upscaler, 4.0), [52, 36]);
    assert_eq!(size(&mut upscaler, 2.5), [32, 22]);
    assert_eq!(size(&mut upscaler, 6.1), [79, 54]);
    assert_eq!(size(&mut upscaler, 0.2), [2, 1]);
    let said = |result: Result<Upscaled>| result.map(|_| ()).unwrap_err().to_string();
    for outscale in [0.0, -1.0, f64::NAN, 1e9, 0.1] {
        assert!(said(upscaler.upscale(&picture([13, 9]), Some(outscale))).starts_with("--outscale: expected"));
    }
    let wide = Image::new(9000, 1, vec![0; 27_000]).unwrap();
    assert!(said(upscaler.upscale(&wide, None)).contains("36000x4"));
}

#[test]
fn drawn_pictures_become_larger() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "compact_x4", str::to_owned);
    let request = Request { width: Some(32), height: Some(48), steps: Some(1), batch: 2, ..Request::new("a heart") };
    let open = |upscaler: Option<PathBuf>| {
        let additions = Additions { upscaler, ..Additions::default() };
        let model = pipeline::open_with(&pinhole::builtin::mini().unwrap(), &additions).unwrap();
        let device = Device::by_name("cpu:discrete").unwrap();
        Pipeline::with_threads(model, device, THREADS, CancelFlag::new()).unwrap()
    };
    let plain = open(None).generate(&request).unwrap();
    let mut pipeline = open(Some(path.clone()));
    for offload in [Offload::None, Offload::Sequential, Offload::Model] {
        pipeline.set_memory(MemoryOptions { offload, ..MemoryOptions::default() });
        let drawn = pipeline.generate(&request).unwrap();
        for phase in &drawn.phases {
            assert_eq!(phase.measured.peak, phase.planned, "{:?}: {:?}", phase.phase, phase.measured);
        }
        assert_eq!(drawn.memory.peak, drawn.plan.peak());
        for (small, large) in plain.images.iter().zip(&drawn.images) {
            assert!(*large == on(&path, "cpu").upscale(small, None).unwrap().image, "{offload:?}");
        }
    }
}

#[test]
fn others_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let said = |tensors: &[Tensor]| {
        let path = dir.path().join("other.safetensors");
        write_tensors(&path, tensors);
        let error = UpscaleModel::open(&path).map(|_| ()).unwrap_err();
        format!("{error}; {}", error.hint().unwrap_or_default())
    };
    let mut fewer = tensors("x4");
    fewer.retain(|tensor| tensor.name != "conv_up1.weight");
    assert!(said(&fewer).contains("conv_up1.weight"), "{}", said(&fewer));
    let mut gray = tensors("x4");
    gray.iter_mut().filter(|tensor| tensor.name == "conv_first.weight").for_each(|tensor| {
        tensor.shape[1] = 1;
        tensor.values.truncate(20 * 9);
    });
    assert!(said(&gray).contains("3, 12 or 48 channels"), "{}", said(&gray));
    let mut more = tensors("x4");
    more.push(Tensor { name: "body.0.rdb1.conv1x1.weight".into(), shape: vec![7, 20, 1, 1], values: vec![0.0; 140] });
    assert!(said(&more).contains("body.0.rdb1.conv1x1.weight"), "{}", said(&more));
    let other = [Tensor { name: "x.weight".into(), shape: vec![1], values: vec![0.0] }];
    assert!(said(&other).contains("does not recognise"), "{}", said(&other));
    fs::write(dir.path().join("none.pth"), b"nothing").unwrap();
    assert!(UpscaleModel::open(&dir.path().join("none.pth")).is_err());
}
