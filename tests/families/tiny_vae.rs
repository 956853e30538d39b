//! Tiny autoencoders against diffusers in float32, in the autoencoder's stead and for previews. What is expected was recorded by
//! `tests/reference/tiny_vae.py`.

use std::fs;
use std::path::Path;

use crate::support::drawing::{THREADS, on};
use crate::support::sd1::{Tensor, write_tensors};
use crate::support::{self, Golden, Layout, given, sd1, synth};
use pinhole::convert::{self, WriteOptions};
use pinhole::exec::{DeviceWeights, Session};
use pinhole::ggml::{Backend, CancelFlag, Device, Ledger};
use pinhole::models::autoencoder_tiny::softened;
use pinhole::pipeline::{self, Event, Generated, MemoryOptions, Opened, Phase, Pipeline, Request, TinyUse};
use pinhole::plan::{Offload, Way};
use pinhole::safetensors::Safetensors;
use pinhole::sample::Sampler;
use pinhole::source::slot::TINY_VAE;
use pinhole::source::{self, Component, Files, Source, networks};
use pinhole::stage::{Cadence, Dims, Symbol};
use pinhole::{Error, Result};
use pinhole_quant::metrics;
use pinhole_quant::recipe::FileType;
use serde_json::Value;
use tempfile::TempDir;

/// The goldens whose models have one.
const MODELS: [&str; 3] = ["sd1", "sdxl", "flux_control"];

/// The tiny autoencoder for the model `name`, as a folder of a diffusers directory.
fn write_tiny(dir: &Path, name: &str) {
    let component = format!("tiny_vae of {name}");
    support::write_component(dir, &Golden::load("tiny_vae"), &component, &Layout::default());
}

/// The model `name` as a directory.
fn directory(name: &str) -> TempDir {
    let (golden, dir) = (Golden::load(name), tempfile::tempdir().unwrap());
    if name.starts_with("sd") {
        sd1::write_directory(dir.path(), &golden, golden.at("/scheduler"));
        return dir;
    }
    support::write_model(dir.path(), &golden, &Layout::default());
    let path = dir.path().join("model_index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    if let Some(class) = golden.get("/class") {
        index["_class_name"] = class.clone();
    }
    fs::write(path, index.to_string()).unwrap();
    dir
}

/// The request whose latents the golden of the model `name` has.
fn request(name: &str) -> Request {
    let prompt = "a large purple ring above a ##2 cross".into();
    match name {
        "sd1" | "sdxl" => Request {
            prompt,
            negative_prompt: Some("a black cross, the quick brown fox".into()),
            width: Some(104),
            height: Some(72),
            steps: Some(7),
            seed: 5,
            cfg_scale: Some(if name == "sd1" { 7.5 } else { 5.0 }),
            sampler: Some(Sampler::Euler),
            ..Request::default()
        },
        _ => Request {
            prompt,
            width: Some(112),
            height: Some(80),
            steps: Some(4),
            seed: 11,
            guidance: Some(30.0),
            max_sequence_length: Some(24),
            control_image: Some(given::picture(112, 80)),
            ..Request::default()
        },
    }
}

/// The model at `dir` with the tiny autoencoder at `tiny`.
fn open(dir: &Path, tiny: &Path) -> Result<Opened> {
    let mut files = Files::default();
    files.add("tiny_vae", tiny.to_owned());
    pipeline::open(&Source::assemble(Some(Source::open(dir)?), &files)?)
}

/// What `pipeline` draws, with its previews: extents and step of each.
fn draw(pipeline: &mut Pipeline, request: &Request) -> (Generated, Vec<([usize; 2], usize)>) {
    let mut previews = Vec::new();
    let generated = pipeline.generate_watched(request, &mut |event: Event| {
        if let Event::Preview { image, done, .. } = event {
            previews.push(([image.width(), image.height()], done));
        }
        Ok(())
    });
    let generated = generated.unwrap();
    for phase in &generated.phases {
        assert_eq!(phase.measured.peak, phase.planned, "{:?}: {:?}", phase.phase, phase.measured);
    }
    assert_eq!(generated.memory.peak, generated.plan.peak());
    (generated, previews)
}

#[test]
fn samples_equal_diffusers() {
    let golden = Golden::load("tiny_vae");
    for name in MODELS {
        let dir = tempfile::tempdir().unwrap();
        write_tiny(dir.path(), name);
        let tiny = networks::autoencoder_tiny(&Component::open(dir.path(), &TINY_VAE).unwrap()).unwrap();
        let (net, config) = (&tiny.decoder.net, &tiny.config);
        let latents = golden.f32(&format!("{name}.latents"));
        let latents: Vec<f32> =
            latents.iter().map(|x| softened(x / config.scaling_factor + config.shift_factor)).collect();
        let [w, h] = match name {
            "sd1" => [13, 9],
            "sdxl" => [11, 6],
            _ => [7, 5],
        };
        let dims = Dims::new().with(Symbol::BATCH, 1).with(Symbol::LATENT_WIDTH, w).with(Symbol::LATENT_HEIGHT, h);
        let mut backend = Backend::new(Device::cpu().unwrap(), THREADS, CancelFlag::new()).unwrap();
        let ledger = Ledger::new();
        let weights = DeviceWeights::load(&net.model, &tiny.decoder.bound, backend.device(), &ledger).unwrap();
        let mut decode = |way| {
            let mut session = Session::in_way(way, &net.model, &weights, &dims, &backend, &ledger).unwrap();
            session.set(net.latents, &latents).unwrap();
            session.run(&mut backend, Cadence::Request, |_, _| Ok(())).unwrap();
            let samples = session.get(net.picture).unwrap();
            samples.iter().map(|x| 2.0 * x - 1.0).collect::<Vec<f32>>()
        };
        let whole = decode(Way::Whole);
        let nmse = metrics::nmse(&golden.f32(&format!("{name}.samples")), &whole).unwrap();
        println!("{name}: nmse {nmse:.2e}");
        assert!(nmse <= 1e-10, "{name}: nmse {nmse:e}");
        for bytes in [64 << 10, 16 << 10, 1 << 10] {
            assert!(whole == decode(Way::Strips(bytes)), "{name}: strips of {bytes}");
        }
    }
}

#[test]
fn encoded_pictures_equal_diffusers() {
    let golden = Golden::load("tiny_vae");
    for (name, [w, h]) in [("sd1", [13, 9]), ("sdxl", [11, 6]), ("flux_control", [7, 5])] {
        let dir = tempfile::tempdir().unwrap();
        write_tiny(dir.path(), name);
        let tiny = networks::autoencoder_tiny(&Component::open(dir.path(), &TINY_VAE).unwrap()).unwrap();
        let part = tiny.encoder.as_ref().unwrap();
        let samples = given::picture(8 * w, 8 * h).samples(8 * w, 8 * h).unwrap();
        let levels: Vec<f32> = samples.iter().map(|sample| (sample + 1.0) / 2.0).collect();
        let dims = Dims::new().with(Symbol::BATCH, 1).with(Symbol::LATENT_WIDTH, w).with(Symbol::LATENT_HEIGHT, h);
        let mut backend = Backend::new(Device::cpu().unwrap(), THREADS, CancelFlag::new()).unwrap();
        let ledger = Ledger::new();
        let weights = DeviceWeights::load(&part.net.model, &part.bound, backend.device(), &ledger).unwrap();
        let mut encode = |way| {
            let mut session = Session::in_way(way, &part.net.model, &weights, &dims, &backend, &ledger).unwrap();
            session.set(part.net.picture, &levels).unwrap();
            session.run(&mut backend, Cadence::Request, |_, _| Ok(())).unwrap();
            session.get(part.net.latents).unwrap()
        };
        let whole = encode(Way::Whole);
        let nmse = metrics::nmse(&golden.f32(&format!("{name}.encoded")), &whole).unwrap();
        println!("{name}: nmse {nmse:.2e}");
        assert!(nmse <= 1e-10, "{name}: nmse {nmse:e}");
        for bytes in [64 << 10, 16 << 10, 1 << 10] {
            assert!(whole == encode(Way::Strips(bytes)), "{name}: strips of {bytes}");
        }
    }
}

/// The golden whose model `name` begins with pictures, and the request `case` of it.
fn begun(golden: &Golden, name: &str, case: &str) -> (&'static str, Request) {
    let at = |key: &str| golden.get(&format!("/begun/{name}/{case}/{key}"));
    let (number, float) = (|key: &str| at(key).unwrap().as_u64().unwrap(), |key: &str| Some(at(key)?.as_f64()? as f32));
    let (width, height) = (number("width") as usize, number("height") as usize);
    let text = |key: &str| at(key).and_then(Value::as_str).map(str::to_owned);
    let request = Request {
        prompt: text("prompt").unwrap(),
        negative_prompt: text("negative_prompt"),
        width: Some(width),
        height: Some(height),
        steps: Some(number("steps") as usize),
        seed: number("seed"),
        batch: number("batch") as usize,
        strength: float("strength"),
        image: Some(given::picture(width, height)),
        mask: at("masked").unwrap().as_bool().unwrap().then(|| given::mask(width, height)),
        ..Request::default()
    };
    match name {
        "flux_control" => {
            let (guidance, tokens) = (float("guidance_scale"), Some(number("max_sequence_length") as usize));
            ("dev", Request { guidance, max_sequence_length: tokens, ..request })
        }
        _ => {
            let sampler = Some(text("sampler").unwrap().parse().unwrap());
            let known = if name == "sd1" { "sd1" } else { "sdxl" };
            (known, Request { cfg_scale: float("cfg_scale"), sampler, ..request })
        }
    }
}

#[test]
fn requests_begin_with_what_it_encodes() {
    let golden = Golden::load("tiny_vae");
    for name in MODELS {
        let tiny = tempfile::tempdir().unwrap();
        write_tiny(tiny.path(), name);
        for case in golden.at(&format!("/begun/{name}")).as_object().unwrap().keys() {
            let (model, request) = begun(&golden, name, case);
            let dir = directory(model);
            let mut pipeline = on(open(dir.path(), tiny.path()).unwrap(), "cpu:discrete");
            pipeline.set_memory(MemoryOptions { offload: Offload::None, ..MemoryOptions::default() });
            let (resident, _) = draw(&mut pipeline, &request);
            let nmse = metrics::nmse(&golden.f32(&format!("{name}.{case}.latents")), &resident.latents).unwrap();
            println!("{name} {case}: latents {nmse:.1e}");
            assert!(nmse < 1e-7, "{name} {case}: {nmse:e}");
            assert!(resident.plan.component("tiny_encoder").is_some() && resident.plan.component("encoder").is_none());
            let said = pipeline.settings(&request).unwrap().named(request.seed, None);
            for option in ["VAE Encoder", "VAE Decoder"] {
                assert!(said.contains(&(option, "TAESD".to_owned())), "{said:?}");
            }
            let needed = least(&mut pipeline, &request);
            for (vram, offload) in [(None, Offload::Sequential), (Some(needed), Offload::Auto)] {
                pipeline.set_memory(MemoryOptions { vram, offload, host: None });
                let (streamed, _) = draw(&mut pipeline, &request);
                assert!(resident.latents == streamed.latents && resident.images == streamed.images, "{name} {case}");
            }
            // For previews alone, the model's own autoencoder encodes.
            let own = Request { tiny_vae: Some(TinyUse::Preview), ..request };
            let plan = pipeline.plan(&own).unwrap();
            assert!(plan.component("tiny_encoder").is_none() && plan.component("encoder").is_some());
        }
    }
}

#[test]
fn it_stands_in_for_the_autoencoder() {
    let golden = Golden::load("tiny_vae");
    for name in MODELS {
        let (dir, tiny) = (directory(name), tempfile::tempdir().unwrap());
        write_tiny(tiny.path(), name);
        // Without an encoder, the model's own autoencoder encodes the control picture.
        let decoder = synth::weights(&golden, &format!("tiny_vae of {name}")).into_iter().filter_map(|weight| {
            let name = weight.name.strip_prefix("decoder.").map(|_| weight.name.clone())?;
            Some(Tensor { name, shape: weight.shape.clone(), values: weight.values() })
        });
        write_tensors(&tiny.path().join("diffusion_pytorch_model.safetensors"), &decoder.collect::<Vec<_>>());
        let request = request(name);
        let mut pipeline = on(open(dir.path(), tiny.path()).unwrap(), "cpu:discrete");
        pipeline.set_memory(MemoryOptions { offload: Offload::None, ..MemoryOptions::default() });
        let (resident, previews) = draw(&mut pipeline, &request);
        assert!(previews.is_empty() && resident.plan.component("decoder").is_none());
        let latents = Golden::load(name).f32(&format!("{}.latents", golden.text(&format!("/cases/{name}"))));
        let nmse = metrics::nmse(&latents, &resident.latents).unwrap();
        let psnr = metrics::psnr(&golden.u8(&format!("{name}.picture")), resident.images[0].rgb()).unwrap();
        println!("{name}: latents {nmse:.1e}, picture {psnr:.1} dB");
        assert!(nmse < 1e-7 && psnr >= 50.0, "{name}: {nmse:e}, {psnr} dB");
        pipeline.set_memory(MemoryOptions { offload: Offload::Sequential, ..MemoryOptions::default() });
        let (streamed, _) = draw(&mut pipeline, &request);
        assert!(resident.images == streamed.images, "{name}: streamed");
        let needed = least(&mut pipeline, &request);
        pipeline.set_memory(MemoryOptions { vram: Some(needed), ..MemoryOptions::default() });
        assert!(resident.images == draw(&mut pipeline, &request).0.images, "{name}: in {needed}");
    }
}

#[test]
fn bundles_hold_it() {
    let (dir, tiny) = (directory("sd1"), tempfile::tempdir().unwrap());
    write_tiny(tiny.path(), "sd1");
    let request = Request { steps: Some(2), preview: Some(1), ..request("sd1") };
    for file_type in ["q8_0", "q4_k_s"] {
        let model = open(dir.path(), tiny.path()).unwrap();
        let path = tiny.path().join(format!("{file_type}.gguf"));
        let plan = convert::plan(&model.source, &model.networks(), file_type.parse::<FileType>().unwrap()).unwrap();
        plan.write(&path, WriteOptions::default(), &mut |_| Ok(())).unwrap();
        let mut pipeline = on(pipeline::open(&Source::open(&path).unwrap()).unwrap(), "cpu:discrete");
        let mut drawn = |offload| {
            pipeline.set_memory(MemoryOptions { offload, ..MemoryOptions::default() });
            draw(&mut pipeline, &request)
        };
        let (resident, streamed) = (drawn(Offload::None), drawn(Offload::Sequential));
        assert!(resident.0.plan.component("tiny_decoder").is_some() && resident.1.len() == 2);
        assert!(resident.0.images == streamed.0.images && resident.1 == streamed.1, "{file_type}");
        let begun = Request { image: Some(given::picture(104, 72)), ..request.clone() };
        let mut drawn = |offload| {
            pipeline.set_memory(MemoryOptions { offload, ..MemoryOptions::default() });
            draw(&mut pipeline, &begun).0
        };
        let (resident, streamed) = (drawn(Offload::None), drawn(Offload::Sequential));
        assert!(resident.plan.component("tiny_encoder").is_some());
        assert!(resident.images == streamed.images, "{file_type}");
    }
}

/// The least budget.
fn least(pipeline: &mut Pipeline, request: &Request) -> usize {
    pipeline.set_memory(MemoryOptions { vram: Some(1), ..MemoryOptions::default() });
    match pipeline.plan(request).unwrap_err() {
        Error::OverBudget { needed, .. } => needed,
        other => panic!("{other}"),
    }
}

#[test]
fn a_model_needs_no_other_to_decode() {
    let (dir, tiny) = (directory("sd1"), tempfile::tempdir().unwrap());
    write_tiny(&tiny.path().join("folder"), "sd1");
    let request = request("sd1");
    let with_both = on(open(dir.path(), &tiny.path().join("folder")).unwrap(), "cpu").generate(&request).unwrap();
    fs::remove_dir_all(dir.path().join("vae")).unwrap();
    // The first publisher's names, with its numbers, and none of the settings.
    let file = tiny.path().join("taesd_decoder.safetensors");
    let weights = synth::weights(&Golden::load("tiny_vae"), "tiny_vae of sd1");
    let mut numbered = Vec::new();
    for weight in &weights {
        let layer = weight.name.strip_prefix("decoder.layers.").and_then(|layer| layer.split_once('.'));
        let Some((number, leaf)) = layer else { continue };
        let name = format!("{}.{leaf}", number.parse::<usize>().unwrap() + 1);
        numbered.push(Tensor { name, shape: weight.shape.clone(), values: weight.values() });
    }
    write_tensors(&file, &numbered);
    let mut alone = on(open(dir.path(), &file).unwrap(), "cpu");
    assert!(alone.generate(&request).unwrap().images == with_both.images);
    let held = Safetensors::open(&file).unwrap().index;
    assert_eq!(source::recognise(held.names()), ["tiny autoencoder, original names"]);

    // Its encoder lies beside it under the same name.
    let begun = Request { image: Some(given::picture(104, 72)), ..request.clone() };
    let encoder: Vec<Tensor> = weights
        .iter()
        .filter_map(|weight| {
            let name = weight.name.strip_prefix("encoder.layers.")?.to_owned();
            Some(Tensor { name, shape: weight.shape.clone(), values: weight.values() })
        })
        .collect();
    let beside = tiny.path().join("taesd_encoder.safetensors");
    write_tensors(&beside, &encoder);
    let of_folder = on(open(dir.path(), &tiny.path().join("folder")).unwrap(), "cpu").generate(&begun).unwrap();
    let of_files = on(open(dir.path(), &file).unwrap(), "cpu").generate(&begun).unwrap();
    assert!(of_files.images == of_folder.images);
    let said = open(dir.path(), &beside).map(|_| ()).unwrap_err().to_string();
    assert!(said.contains("holds the encoder of a tiny autoencoder alone, and no tiny autoencoder"), "{said}");
    write_tensors(&beside, &encoder[..encoder.len() - 1]);
    let said = open(dir.path(), &file).map(|_| ()).unwrap_err().to_string();
    assert!(said.contains("taesd_encoder.safetensors: weights: expected 67 tensors, found 66"), "{said}");
    fs::remove_file(&beside).unwrap();

    let preview = Request { tiny_vae: Some(TinyUse::Preview), preview: Some(1), ..request.clone() };
    let said = alone.plan(&preview).unwrap_err().to_string();
    assert_eq!(said, "--tiny-vae-for: expected `all`, since the model has no other autoencoder, found `preview`");
    let image = Request { image: Some(given::picture(104, 72)), ..request.clone() };
    let said = alone.plan(&image).unwrap_err().to_string();
    assert_eq!(said, "--image: expected a model whose autoencoder can encode, found a decoder alone");
    let said = pipeline::open(&Source::open(dir.path()).unwrap()).map(|_| ()).unwrap_err().to_string();
    assert!(said.ends_with("it has unet, text_encoder and no vae"), "{said}");
}

#[test]
fn previews_have_room() {
    for name in MODELS {
        let (dir, tiny) = (directory(name), tempfile::tempdir().unwrap());
        write_tiny(tiny.path(), name);
        let plain = Request { steps: Some(3), batch: 2, ..request(name) };
        let watched = Request { preview: Some(2), tiny_vae: Some(TinyUse::Preview), ..plain.clone() };
        let mut pipeline = on(open(dir.path(), tiny.path()).unwrap(), "cpu:discrete");
        let full = Request { tiny_vae: Some(TinyUse::Preview), ..plain.clone() };
        let (expected, none) = draw(&mut pipeline, &full);
        assert!(none.is_empty() && expected.plan.component("preview").is_none());
        let size = [plain.width.unwrap(), plain.height.unwrap()];
        let needed = least(&mut pipeline, &watched);
        assert!(needed >= least(&mut pipeline, &full), "{name}");
        for (vram, offload) in [(None, Offload::None), (None, Offload::Sequential), (Some(needed), Offload::Auto)] {
            pipeline.set_memory(MemoryOptions { vram, offload, host: None });
            let (generated, previews) = draw(&mut pipeline, &watched);
            assert_eq!(previews, [(size, 2), (size, 2)], "{name}");
            assert!(generated.images == expected.images, "{name}: {offload:?}");
            let plan = generated.plan.component("preview").unwrap();
            assert_eq!(plan.phase, Phase::Denoise);
            assert!(vram.is_none_or(|vram| generated.memory.peak <= vram));
        }
        // The picture and the previews by the same network: the last preview is the picture.
        let both = Request { preview: Some(1), ..plain };
        pipeline.set_memory(MemoryOptions::default());
        let mut last = Vec::new();
        let generated = pipeline.generate_watched(&both, &mut |event: Event| {
            if let Event::Preview { image, done: 3, .. } = event {
                last.push(image);
            }
            Ok(())
        });
        assert_eq!(last.len(), 2);
        assert!(generated.unwrap().images.len() == 2);
    }
}

#[test]
fn others_are_refused() {
    let (dir, tiny) = (directory("sd1"), tempfile::tempdir().unwrap());
    let said = |tiny: &Path| open(dir.path(), tiny).map(|_| ()).unwrap_err().to_string();
    write_tiny(tiny.path(), "flux_control");
    assert!(
        said(tiny.path())
            .contains("latent channels of the tiny autoencoder: expected 4, as the latent channels of the autoencoder")
    );
    let golden = Golden::load("tiny_vae");
    let mut tensors: Vec<Tensor> = synth::weights(&golden, "tiny_vae of sd1")
        .into_iter()
        .map(|weight| Tensor { name: weight.name.clone(), shape: weight.shape.clone(), values: weight.values() })
        .collect();
    tensors.push(Tensor { name: "decoder.layers.2.pool.0.weight".into(), shape: vec![1], values: vec![0.0] });
    let file = tiny.path().join("taef2.safetensors");
    write_tensors(&file, &tensors);
    let refused = said(&file);
    assert!(refused.contains("it holds tiny autoencoder of FLUX.2, which this version does not run"), "{refused}");
    tensors.retain(|tensor| !tensor.name.contains("pool") && tensor.name != "decoder.layers.11.weight");
    write_tensors(&file, &tensors);
    let refused = said(&file);
    assert!(refused.contains("tensor `decoder.layers.11.weight`: expected a tensor, found none"), "{refused}");
    let request = Request { tiny_vae: Some(TinyUse::Preview), ..request("sd1") };
    let model = pipeline::open(&Source::open(dir.path()).unwrap()).unwrap();
    let said = pipeline::settings(&model, &request).unwrap_err().to_string();
    assert_eq!(said, "--tiny-vae-for: expected a tiny autoencoder, found `preview` and none");
}
