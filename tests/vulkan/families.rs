//! The denoisers of models that read with a language model, with ControlNets beside them, and of models of films, on a device and on the
//! CPU.

use std::path::Path;
use std::time::Instant;

use pinhole::exec::{DeviceWeights, Session};
use pinhole::ggml::{Backend, CancelFlag, Device, Ledger};
use pinhole::pipeline::{self, Additions, Control, Given, Opened, Prompt, ReferenceResize, Request, Settings};
use pinhole::plan::{Batch, Limits, Offload, budget};
use pinhole::sample::randn;
use pinhole::source::slot::TRANSFORMER;
use pinhole::source::{Files, Source};
use pinhole::stage::Cadence;
use pinhole_quant::metrics;
use tempfile::TempDir;

use super::support::{Golden, flux2, flux3, given, qwen_image, qwen_image_21, wan, z_image};
use super::{NMSE_OF_A_STEP, alone, device, every_type};

/// What runs: a small model, and what is special about it.
#[derive(Clone, Copy, Debug)]
enum Subject {
    ZImage,
    /// With the union ControlNet, which refines and follows.
    ZImageControl,
    /// With numbers beyond F16's range between layers.
    ZImageLoud,
    Klein,
    Klein3,
    QwenImage,
    QwenImageControl,
    QwenImageLoud,
    /// Qwen-Image 2.1.
    QwenImage21,
    /// The same with a picture that it looks at.
    QwenImage21Looking,
    /// The first of two experts.
    Wan,
    /// With a given frame, whose tokens are at a time of their own.
    WanGiven,
}

/// What numbers between layers are multiplied with: they are some units without it.
const LOUD: f32 = (1 << 18) as f32;

impl Subject {
    const ALL: [Subject; 12] = [
        Subject::ZImage,
        Subject::ZImageControl,
        Subject::ZImageLoud,
        Subject::Klein,
        Subject::Klein3,
        Subject::QwenImage,
        Subject::QwenImageControl,
        Subject::QwenImageLoud,
        Subject::QwenImage21,
        Subject::QwenImage21Looking,
        Subject::Wan,
        Subject::WanGiven,
    ];

    /// Those that CI has time for.
    const SOME: [Subject; 4] =
        [Subject::ZImage, Subject::ZImageLoud, Subject::QwenImageLoud, Subject::QwenImage21Looking];

    /// The size of the picture that it looks at, if it does.
    fn looks_at(self) -> Option<[usize; 2]> {
        matches!(self, Subject::QwenImage21Looking).then_some([32, 64])
    }

    /// The model, as files in `dir`.
    fn open(self, dir: &Path) -> Opened {
        let golden = Golden::load(match self {
            Subject::ZImage | Subject::ZImageLoud => "z_image",
            Subject::ZImageControl => "z_image_controls",
            Subject::Klein => "flux2_klein",
            Subject::Klein3 => "flux3",
            Subject::QwenImage | Subject::QwenImageLoud => "qwen_image",
            Subject::QwenImageControl => "qwen_image_controls",
            Subject::QwenImage21 | Subject::QwenImage21Looking => "qwen_image_21",
            Subject::Wan | Subject::WanGiven => "wan",
        });
        match self {
            Subject::Klein => flux2::write_directory(dir, &golden, "Flux2KleinPipeline", "vae"),
            Subject::Klein3 => flux3::write_directory(dir, &golden, "transformer"),
            Subject::ZImage | Subject::ZImageControl | Subject::ZImageLoud => z_image::write_directory(dir, &golden),
            Subject::QwenImage21 | Subject::QwenImage21Looking => qwen_image_21::write_directory(dir, &golden),
            Subject::Wan => wan::write_directory(dir, &golden, "t2v_pair"),
            Subject::WanGiven => wan::write_directory(dir, &golden, "ti2v"),
            _ => qwen_image::write_directory(dir, &golden),
        }
        let mut parts = Vec::new();
        let (loud, mut additions) = (dir.join("loud.safetensors"), Additions::default());
        match self {
            Subject::ZImageLoud => z_image::write_loud(&loud, &golden, LOUD),
            Subject::QwenImageLoud => qwen_image::write_loud(&loud, &golden, LOUD),
            Subject::ZImageControl | Subject::QwenImageControl => additions.controls.push(dir.join("union")),
            _ => {}
        }
        if loud.exists() {
            parts.push((&TRANSFORMER, loud));
        }
        let files = Files { parts, tokenizers: Vec::new() };
        let source = Source::assemble(Some(Source::open(dir).unwrap()), &files).unwrap();
        pipeline::open_with(&source, &additions).unwrap()
    }
}

/// Numbers without a pattern.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    randn(seed, count).unwrap()
}

/// What the denoiser of `model` says of noise in the first of two steps, on `device`, streamed or not.
fn predicted((of, model): (Subject, &Opened), device: Device, offload: Offload) -> Vec<f32> {
    let begun = Instant::now();
    let controls = model.rules.controls.iter().map(|_| Control::new(given::picture(48, 32)));
    let request = Request {
        width: Some(48usize.next_multiple_of(model.rules.multiple)),
        height: Some(32),
        references: of.looks_at().map(|[width, height]| given::picture(width, height)).into_iter().collect(),
        reference_resize: ReferenceResize::None,
        steps: Some(2),
        cfg_scale: Some(model.rules.guided_above),
        controls: controls.collect(),
        frames: model.rules.frames.as_ref().map(|_| 5),
        image: model.rules.first.as_ref().map(|_| given::picture(48, 32)),
        ..Request::new("a red star")
    };
    let settings = pipeline::settings(model, &request).unwrap();
    let levels = model.scheduler.levels(&settings.sampling, settings.steps, 6).unwrap();
    let arrays = model.encoders.arrays(settings.text_tokens[0]);
    let prompt = Prompt((3..).zip(&arrays).map(|(seed, array)| numbers(seed, array.elements())).collect());
    let dims = model.autoencoder.latents(&settings);
    let (denoiser, count) = (&model.denoiser, dims.iter().product::<usize>());
    let seeds = (20..).take(model.rules.controls.len());
    let controls = seeds.map(|seed| denoiser.pack_followed(&numbers(seed, count), None, dims).unwrap());
    let subject = denoiser.subjects(&settings, dims, levels.len()).remove(0);
    let given = Given {
        settings: &settings,
        levels: &levels,
        // Of two experts, the first has not all of them.
        evaluations: 0..subject.runs.steps,
        prompts: &[&prompt],
        controls: &controls.collect::<Vec<_>>(),
        ip: &[],
        pass: 0,
        passes: 1,
        pictures: 1,
        face: &[],
    };
    let (mut backend, ledger) = (Backend::new(device, 2, CancelFlag::new()).unwrap(), Ledger::new());
    let plan = budget::plan(&[subject.measure(&backend).unwrap()], offload, &Limits::default()).unwrap();
    let placement = &plan.components[0].placement;
    // Some stages do not run at these sizes, and bring no weights.
    let order = Batch::default().order(subject.model, &subject.dims, subject.runs);
    let weights =
        DeviceWeights::place_in_order(subject.model, subject.bound, device, &ledger, placement, order).unwrap();
    let mut session = Session::new(subject.model, &weights, &subject.dims, &backend, &ledger).unwrap();
    denoiser.fill(0, &mut session, &given).unwrap();
    session.run(&mut backend, Cadence::Request, |_, _| Ok(())).unwrap();
    let ports = denoiser.ports(0);
    session.set_indices(ports.condition, &[0]).unwrap();
    let mut latents = denoiser.pack(&numbers(1, count), dims).unwrap();
    for &[width, height] in &settings.references {
        let dims = model.autoencoder.latents(&Settings { width, height, ..settings.clone() });
        latents.extend(denoiser.pack(&numbers(2, dims.iter().product()), dims).unwrap());
    }
    session.set(ports.latents, &latents).unwrap();
    session.run(&mut backend, Cadence::Step, |_, _| Ok(())).unwrap();
    let found = denoiser.unpack(&session.get(ports.prediction).unwrap(), dims).unwrap();
    println!("{} {offload:?}: {:.1?}", device.name(), begun.elapsed());
    found
}

#[test]
fn denoisers_that_read_with_a_language_model_run_there() {
    let _alone = alone();
    // Each takes a software device up to a minute.
    let all = if every_type() { &Subject::ALL[..] } else { &Subject::SOME };
    for &subject in all {
        let dir = TempDir::new().unwrap();
        let model = subject.open(dir.path());
        let cpu = predicted((subject, &model), Device::cpu().unwrap(), Offload::None);
        let streamed = predicted((subject, &model), device(), Offload::Sequential);
        if matches!(subject, Subject::ZImage) || every_type() {
            let resident = predicted((subject, &model), device(), Offload::None);
            assert!(super::bits(&resident) == super::bits(&streamed), "{subject:?}");
        }
        let nmse = metrics::nmse(&cpu, &streamed).unwrap();
        println!("{subject:?}: nmse {nmse:.1e}");
        assert!(nmse < NMSE_OF_A_STEP, "{subject:?}: {nmse:.1e}");
    }
}
