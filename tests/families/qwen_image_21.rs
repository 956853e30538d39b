//! Qwen-Image 2.1 against diffusers in float32, and its language model against transformers; recorded by
//! `tests/reference/qwen_image_21.py`.

mod edits;

use std::fs;

use crate::support::drawing::{THREADS, bits, bundle, generate, on, open, with};
use crate::support::lora::{A_B, Module, RANK, merge, numbers, write_lora};
use crate::support::numbers::Format;
use crate::support::qwen_image_21::{
    give_sight, make_turbo, write_directory, write_gguf, write_llama, write_loud, write_original_vae, write_reader,
    write_single,
};
use crate::support::sd1::write_tensors;
use crate::support::z_image::tensors;
use crate::support::{Golden, given};
use pinhole::exec::{DeviceWeights, Session};
use pinhole::ggml::{Backend, CancelFlag, Device, Ledger};
use pinhole::models::language_model::{Taps, causal_mask};
use pinhole::models::qwen_image::single::{Sizes, sinusoid};
use pinhole::pipeline::{self, Additions, Event, MemoryOptions, Opened, Request};
use pinhole::plan::{Limits, Offload, budget};
use pinhole::source::slot::{TEXT_ENCODER, TRANSFORMER, VAE};
use pinhole::source::{Files, Source, networks};
use pinhole::stage::{Cadence, Dims, Symbol};
use pinhole::synthetic::{self, Architecture};
use pinhole_quant::metrics;
use serde_json::json;
use tempfile::TempDir;

/// How far latents may be from the reference's.
const MOST: f64 = 1e-8;

/// The golden, and its model as a directory.
fn model() -> (Golden, TempDir) {
    let (golden, dir) = (Golden::load("qwen_image_21"), tempfile::tempdir().unwrap());
    write_directory(dir.path(), &golden);
    (golden, dir)
}

/// The request of a case. Turbo brings its own steps.
fn request(golden: &Golden, case: &str) -> Request {
    let at = |key: &str| golden.at(&format!("/cases/{case}/{key}"));
    let whole = |key: &str| at(key).as_u64().map(|number| number as usize);
    Request {
        prompt: at("prompt").as_str().unwrap().to_owned(),
        negative_prompt: at("negative_prompt").as_str().map(str::to_owned),
        width: whole("width"),
        height: whole("height"),
        steps: if at("turbo").as_bool().unwrap() { None } else { whole("steps") },
        seed: at("seed").as_u64().unwrap(),
        cfg_scale: at("cfg_scale").as_f64().map(|number| number as f32),
        batch: whole("batch").unwrap(),
        ..Request::default()
    }
}

#[test]
fn latents_equal_diffusers() {
    let (golden, dir) = model();
    let turbo = tempfile::tempdir().unwrap();
    write_directory(turbo.path(), &golden);
    make_turbo(turbo.path(), &golden, golden.at("/sample_sigmas"));
    let (mut pipeline, mut of_turbo) = (on(open(dir.path()), "cpu"), on(open(turbo.path()), "cpu"));
    let mut wrong = Vec::new();
    for (case, described) in golden.at("/cases").as_object().unwrap() {
        let is_turbo = described["turbo"].as_bool().unwrap();
        let generated = generate(if is_turbo { &mut of_turbo } else { &mut pipeline }, &request(&golden, case));
        let nmse = metrics::nmse(&golden.f32(&format!("{case}.latents")), &generated.latents).unwrap();
        println!("{case}: nmse {nmse:.2e}");
        if nmse.is_nan() || nmse > MOST {
            wrong.push(format!("{case}: {nmse:.2e}"));
        }
        if described["decoded"].as_bool().unwrap() {
            let psnr = metrics::psnr(&golden.u8(&format!("{case}.picture")), generated.images[0].rgb()).unwrap();
            println!("{case}: psnr {psnr:.1} dB");
            assert!(psnr >= 55.0, "{case}: psnr {psnr}");
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // Without a word there is no guidance, and with guidance alone the reference's empty text is what not to draw.
    let silent = Request { cfg_scale: None, ..request(&golden, "plain") };
    assert_eq!(pipeline.settings(&silent).unwrap().passes(), 1);
    let silent = Request { negative_prompt: None, ..request(&golden, "cfg") };
    assert!(bits(&generate(&mut pipeline, &silent)) == bits(&generate(&mut pipeline, &request(&golden, "cfg"))));
}

/// Turbo's noise levels hold unless a request says otherwise, and a bundle keeps them.
#[test]
fn a_model_brings_its_noise_levels() {
    let (golden, dir) = model();
    make_turbo(dir.path(), &golden, golden.at("/sample_sigmas"));
    let path = dir.path().join("bundle.gguf");
    bundle(&open(dir.path()), &path, "f32");
    for model in [open(dir.path()), open(&path)] {
        let settings = |request: Request| pipeline::settings(&model, &request).unwrap();
        let own = settings(Request::new("a"));
        assert_eq!((own.steps, own.sampling.sigmas), (4, Some(vec![1.0, 0.95418, 0.845148, 0.414568])));
        let other = settings(Request { steps: Some(7), ..Request::new("a") });
        assert_eq!((other.steps, other.sampling.sigmas), (7, None));
        let told = settings(Request { sigmas: Some(vec![1.0, 0.5]), ..Request::new("a") });
        assert_eq!((told.steps, told.sampling.sigmas), (2, Some(vec![1.0, 0.5])));
    }
    for wrong in [json!([]), json!([0.5, 1.0]), json!([2.0, 1.0]), json!("1.0"), json!([1.0, -0.5])] {
        make_turbo(dir.path(), &golden, &wrong);
        let error = pipeline::open(&Source::open(dir.path()).unwrap()).err().unwrap().to_string();
        assert!(error.contains("model_index.json") && error.contains("sample_sigmas"), "{wrong}: {error}");
    }
    // A file alone says it by its name.
    let loose = tempfile::tempdir().unwrap();
    write_single(&loose.path().join("qwen_image_2.1_turbo_bf16.safetensors"), &golden, "");
    write_llama(&loose.path().join("qwen3vl.gguf"), &golden, Format::F32);
    write_original_vae(&loose.path().join("qwen_image_2.1_vae.safetensors"), &golden);
    let path = dir.path().join("of_files.gguf");
    bundle(&open(loose.path()), &path, "f32");
    for model in [open(loose.path()), open(&path)] {
        let settings = pipeline::settings(&model, &Request::new("a")).unwrap();
        assert_eq!((settings.steps, settings.cfg_scale), (8, 1.0));
        let levels = model.scheduler.levels(&settings.sampling, settings.steps, 4096).unwrap();
        assert_eq!((levels.sigmas[1], levels.sigmas[7], levels.sigmas[8]), (0.978453, 0.414568, 0.0));
    }
}

/// Texts are read with the template around them, and are as long as they are.
#[test]
fn tokens_equal_transformers() {
    let (golden, dir) = model();
    let model = open(dir.path());
    let settings = pipeline::settings(&model, &Request::new("")).unwrap();
    let dropped = golden.at("/dropped").as_u64().unwrap() as usize;
    for text in golden.list("/texts") {
        let wanted: Vec<u32> = text["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        let words = text["text"].as_str().unwrap();
        let encoded = &model.encoders.tokenize(words, &settings).unwrap()[0];
        assert_eq!((&encoded.ids, encoded.used, &encoded.cut), (&wanted, wanted.len(), &None), "{text}");
        assert_eq!(model.encoders.tokens(&[words], &settings).unwrap(), [wanted.len() - dropped], "{text}");
    }
    let long = pipeline::settings(&model, &Request::new("star ".repeat(1200))).unwrap();
    assert_eq!(long.text_tokens, [1024]);
    let cut = model.encoders.tokenize(&"star ".repeat(1200), &long).unwrap().remove(0).cut.unwrap();
    assert!(cut.ends_with("star ") && !cut.contains("assistant"), "{cut}");
}

/// What the language model in `source` gives the denoiser of these tokens.
fn hidden(golden: &Golden, source: &Source, ids: &[u32]) -> Vec<f32> {
    let (part, config) = networks::language_model(source.component(&TEXT_ENCODER).unwrap(), Taps::after).unwrap();
    assert_eq!(config.rope_theta, 5e6);
    let (net, ledger) = (&part.net, Ledger::new());
    let mut backend = Backend::new(Device::cpu().unwrap(), THREADS, CancelFlag::new()).unwrap();
    let weights = DeviceWeights::load(&net.model, &part.bound, backend.device(), &ledger).unwrap();
    let dims = Dims::new().with(Symbol::BATCH, 1).with(Symbol::TEXT_TOKENS, ids.len());
    let mut session = Session::new(&net.model, &weights, &dims, &backend, &ledger).unwrap();
    let (cos, sin) = config.rotary(ids.len()).unwrap();
    session.set(net.hidden, &part.bound.gather(net.token_embedding, config.hidden_size, ids).unwrap()).unwrap();
    session.set(net.positions.mask, &causal_mask(ids.len()).unwrap()).unwrap();
    session.set(net.positions.cos, &cos).unwrap();
    session.set(net.positions.sin, &sin).unwrap();
    session.run(&mut backend, Cadence::Request, |_, _| Ok(())).unwrap();
    let mut states = session.get(net.hidden).unwrap();
    states.drain(..golden.at("/dropped").as_u64().unwrap() as usize * config.hidden_size);
    states
}

/// The ids of text number `text`.
fn ids(golden: &Golden, text: usize) -> Vec<u32> {
    golden.ids(&format!("/texts/{text}/ids"))
}

#[test]
fn networks_alone_equal_their_references() {
    let (golden, dir) = model();
    let source = open(dir.path()).source;
    let mut wrong = Vec::new();
    let mut compare = |what: &str, expected: &[f32], found: &[f32]| {
        let nmse = metrics::nmse(expected, found).unwrap();
        println!("{what}: nmse {nmse:.2e}");
        if nmse.is_nan() || nmse > 1e-10 {
            wrong.push(format!("{what}: {nmse:.2e}"));
        }
    };
    for text in [1, golden.list("/texts").len() - 1] {
        let found = hidden(&golden, &source, &ids(&golden, text));
        compare("hidden states", &golden.f32(&format!("hidden.{text}")), &found);
    }
    let mut backend = Backend::new(Device::cpu().unwrap(), THREADS, CancelFlag::new()).unwrap();
    let ledger = Ledger::new();
    // One forward of the transformer, at one time of two. One side of the picture is odd.
    let part = networks::qwen_image_21(source.component(&TRANSFORMER).unwrap()).unwrap();
    let (net, text) = (&part.net, golden.f32("hidden.1"));
    let sizes =
        Sizes { batch: 1, image: [3, 8], references: Vec::new(), gaps: Vec::new(), texts: vec![text.len() / 256] };
    let weights = DeviceWeights::load(&net.model, &part.bound, backend.device(), &ledger).unwrap();
    let mut session = Session::new(&net.model, &weights, &sizes.dims(2), &backend, &ledger).unwrap();
    let (cos, sin) = net.rotary(&sizes, sizes.text_tokens()).unwrap();
    session.set(net.ports.cos, &cos).unwrap();
    session.set(net.ports.sin, &sin).unwrap();
    session.set(net.ports.text, &text).unwrap();
    session.set(net.ports.mask, &causal_mask(sizes.text_tokens()).unwrap()).unwrap();
    session.set(net.ports.time, &[sinusoid(0.8), sinusoid(0.3), sinusoid(0.0)].concat()).unwrap();
    session.run(&mut backend, Cadence::Request, |_, _| Ok(())).unwrap();
    session.set(net.ports.latents, &pinhole::sample::randn(1, 24 * 64).unwrap()).unwrap();
    session.set_indices(net.ports.condition, &[1]).unwrap();
    session.run(&mut backend, Cadence::Step, |_, _| Ok(())).unwrap();
    compare("forward", &golden.f32("forward"), &session.get(net.ports.prediction).unwrap());
    // The autoencoder, both ways.
    let vae = networks::autoencoder_causal(source.component(&VAE).unwrap()).unwrap();
    let dims = |w, h| Dims::new().with(Symbol::BATCH, 1).with(Symbol::LATENT_WIDTH, w).with(Symbol::LATENT_HEIGHT, h);
    let net = &vae.decoder.net;
    let weights = DeviceWeights::load(&net.model, &vae.decoder.bound, backend.device(), &ledger).unwrap();
    let mut session = Session::new(&net.model, &weights, &dims(5, 3), &backend, &ledger).unwrap();
    session.set(net.latents, &pinhole::sample::randn(1, 5 * 3 * 64).unwrap()).unwrap();
    session.run(&mut backend, Cadence::Request, |_, _| Ok(())).unwrap();
    let picture: Vec<f32> = session.get(net.picture).unwrap().iter().map(|x| x.clamp(-1.0, 1.0)).collect();
    compare("decoded", &golden.f32("decoded"), &picture);
    let encoder = vae.encoder.as_ref().unwrap();
    let weights = DeviceWeights::load(&encoder.net.model, &encoder.bound, backend.device(), &ledger).unwrap();
    let mut session = Session::new(&encoder.net.model, &weights, &dims(3, 2), &backend, &ledger).unwrap();
    let picture = pinhole::sample::randn(1, 4 * 32 * 48).unwrap();
    session.set(encoder.net.picture, &picture.iter().map(|x| x.clamp(-1.0, 1.0)).collect::<Vec<f32>>()).unwrap();
    session.run(&mut backend, Cadence::Request, |_, _| Ok(())).unwrap();
    compare("moments", &golden.f32("moments"), &session.get(encoder.net.moments).unwrap());
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn files_of_other_tools_draw_the_same() {
    let (golden, dir) = model();
    write_single(&dir.path().join("qwen_image_2.1_bf16.safetensors"), &golden, "model.diffusion_model.");
    write_gguf(&dir.path().join("qwen-image-2.1-F32.gguf"), &golden, Format::F32);
    write_original_vae(&dir.path().join("qwen_image_2.1_vae.safetensors"), &golden);
    write_llama(&dir.path().join("Qwen3-VL-F32.gguf"), &golden, Format::F32);
    let case = Request { steps: Some(2), ..request(&golden, "cfg_longer") };
    let expected = generate(&mut on(open(dir.path()), "cpu"), &case);
    for parts in [
        &[(&TRANSFORMER, "qwen_image_2.1_bf16.safetensors"), (&VAE, "qwen_image_2.1_vae.safetensors")][..],
        &[(&TRANSFORMER, "qwen-image-2.1-F32.gguf"), (&TEXT_ENCODER, "Qwen3-VL-F32.gguf")],
    ] {
        let found = generate(&mut on(with(dir.path(), parts).unwrap(), "cpu"), &case);
        assert!(bits(&expected) == bits(&found), "{parts:?}");
        assert!(expected.images == found.images, "{parts:?}");
    }
    // Where nothing else says which language model a file has, a vision tower beside it does, or the family that reads with it.
    for seeing in [false, true] {
        let loose = tempfile::tempdir().unwrap();
        write_single(&loose.path().join("qwen_image_2.1.safetensors"), &golden, "");
        // What sees is of the published shape where files say nothing of it.
        let reader = if seeing { &Golden::load("qwen_image_21_edit") } else { &golden };
        write_reader(&loose.path().join("qwen3vl_8b.safetensors"), reader, seeing);
        write_original_vae(&loose.path().join("qwen_image_2.1_vae.safetensors"), &golden);
        let tokenizer = loose.path().join("tokenizer");
        fs::create_dir(&tokenizer).unwrap();
        for file in fs::read_dir(dir.path().join("processor")).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), tokenizer.join(file.file_name())).unwrap();
        }
        let model = open(loose.path());
        assert_eq!(model.family.name, "qwen_image_21");
        let config = &model.networks()[1].config;
        assert_eq!((&config["model_type"], &config["rope_theta"]), (&json!("qwen3_vl_text"), &json!(5e6)));
        if seeing {
            let reader = model.source.component(&TEXT_ENCODER).unwrap();
            let (_, alone) = networks::language_model(reader, Taps::after).unwrap();
            assert!(alone.is_like("qwen3vl") && !alone.is_like("qwen3"));
        }
        let found = generate(&mut on(model, "cpu"), &case);
        if seeing {
            give_sight(dir.path(), reader);
        }
        let expected = generate(&mut on(open(dir.path()), "cpu"), &case);
        assert!(bits(&expected) == bits(&found), "seeing: {seeing}");
    }
}

#[test]
fn streamed_equals_resident() {
    let (golden, dir) = model();
    for file_type in [None, Some("q8_0"), Some("q4_k_s")] {
        let path = dir.path().join("bundle.gguf");
        let model = match file_type {
            None => open(dir.path()),
            Some(file_type) => {
                bundle(&open(dir.path()), &path, file_type);
                open(&path)
            }
        };
        assert_eq!(model.family.name, "qwen_image_21");
        let mut pipeline = on(model, "cpu:discrete");
        for case in ["plain", "cfg_batch"] {
            let request = Request { steps: Some(2), ..request(&golden, case) };
            let mut draw = |offload| {
                pipeline.set_memory(MemoryOptions { vram: None, offload, host: None });
                generate(&mut pipeline, &request)
            };
            let (resident, streamed) = (draw(Offload::None), draw(Offload::Sequential));
            assert!(resident.plan.all_resident && !streamed.plan.all_resident);
            assert!(bits(&resident) == bits(&streamed), "{case} {file_type:?}: other latents");
            assert!(resident.images == streamed.images, "{case} {file_type:?}: other pictures");
        }
        // As little as goes: strips, and pieces of tokens, one pass after the other.
        let request = Request { steps: Some(2), ..request(&golden, "cfg_longer") };
        pipeline.set_memory(MemoryOptions::default());
        let largest = pipeline.generate(&request).unwrap();
        pipeline.set_memory(MemoryOptions { vram: Some(1), offload: Offload::Auto, host: None });
        let least = match pipeline.plan(&request) {
            Err(pinhole::Error::OverBudget { needed, .. }) => needed,
            other => panic!("{:?}", other.map(|plan| plan.peak())),
        };
        pipeline.set_memory(MemoryOptions { vram: Some(least), offload: Offload::Auto, host: None });
        let smallest = generate(&mut pipeline, &request);
        println!("{file_type:?}: {} bytes, and {least} at least", largest.plan.peak());
        // All that is multiplied in pieces goes through pinhole's kernels, which round alike for any number of tokens.
        assert!(bits(&largest) == bits(&smallest), "{file_type:?}: other latents in pieces");
    }
}

/// Numbers beyond F16's range between the blocks draw what others do.
#[test]
fn loud_streams_stay_finite() {
    let (golden, dir) = model();
    write_loud(&dir.path().join("loud.safetensors"), &golden, 2f32.powi(18));
    let case = request(&golden, "cfg_longer");
    let expected = golden.f32("cfg_longer.latents");
    for (file_type, most) in [("f32", 1e-8), ("f16", 1e-5), ("q8_0", 1e-3), ("q4_k_s", 5e-2)] {
        let model = with(dir.path(), &[(&TRANSFORMER, "loud.safetensors")]).unwrap();
        let path = dir.path().join("loud.gguf");
        bundle(&model, &path, file_type);
        let generated = generate(&mut on(open(&path), "cpu"), &case);
        let nmse = metrics::nmse(&expected, &generated.latents).unwrap();
        println!("{file_type}: nmse {nmse:.2e}");
        assert!(nmse <= most, "{file_type}: {nmse:e}");
    }
}

/// A picture of a batch is what it is alone, and encoded prompts keep their lengths.
#[test]
fn pictures_do_not_depend_on_company() {
    let (golden, dir) = model();
    let mut pipeline = on(open(dir.path()), "cpu");
    let case = Request { steps: Some(2), ..request(&golden, "cfg_batch") };
    let both = generate(&mut pipeline, &case);
    let alone = pipeline.generate(&Request { batch: 1, seed: case.seed + 1, ..case.clone() }).unwrap();
    let nmse = metrics::nmse(&alone.latents, &both.latents[both.latents.len() / 2..]).unwrap();
    assert!(nmse < 1e-10, "{nmse:e}");
    let embedded = pipeline.embed(&case, &mut |_: Event| Ok(())).unwrap();
    let given = Request { embeddings: Some(std::sync::Arc::new(embedded)), ..case };
    assert!(bits(&both) == bits(&pipeline.generate(&given).unwrap()));
}

/// LoRAs change what they name, in one file for both halves of what ComfyUI's files have in one matrix, too.
#[test]
fn loras_draw_what_merged_weights_do() {
    let (golden, dir) = model();
    let (width, inner) = (256, 768);
    let names = [
        ("transformer_blocks.1.attn.to_q", width, width),
        ("transformer_blocks.2.attn.to_out.0", width, width),
        ("transformer_blocks.0.img_mlp.gate_layer", width, inner),
        ("transformer_blocks.1.img_mlp.out", inner, width),
        ("modulation.1", width, 4 * width),
        ("txt_in.in_layer", width, width),
    ];
    let modules: Vec<Module> = names
        .into_iter()
        .enumerate()
        .map(|(i, (name, inputs, outputs))| Module {
            name: name.to_owned(),
            down: numbers(i, RANK * inputs, 0.1),
            up: numbers(i + 9, RANK * outputs, 0.1),
            inputs,
            outputs,
        })
        .collect();
    let mut merged = tensors(&golden, "transformer");
    merge(&mut merged, &modules, 1.0);
    write_tensors(&dir.path().join("merged.safetensors"), &merged);
    let case = Request { steps: Some(2), ..request(&golden, "plain") };
    let model = with(dir.path(), &[(&TRANSFORMER, "merged.safetensors")]).unwrap();
    let expected = generate(&mut on(model, "cpu"), &case);
    for prefix in ["transformer.", "diffusion_model."] {
        let file = write_lora(dir.path(), "lora", prefix, modules.clone(), A_B);
        let additions = Additions { loras: vec![(file, 1.0)], ..Additions::default() };
        let model = pipeline::open_with(&Source::open(dir.path()).unwrap(), &additions).unwrap();
        assert_eq!(model.loras[0].warning(), None, "{prefix}");
        let found = generate(&mut on(model, "cpu"), &case);
        let nmse = metrics::nmse(&expected.latents, &found.latents).unwrap();
        println!("{prefix}: nmse {nmse:.2e}");
        assert!(nmse <= 1e-9, "{prefix}: {nmse:e}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (golden, dir) = model();
    let said = |result: pinhole::Result<Opened>| result.err().unwrap().to_string();
    let swapped = said(with(dir.path(), &[(&TEXT_ENCODER, "transformer")]));
    assert!(swapped.contains("Qwen-Image 2.1 transformer") && swapped.contains("no language model"), "{swapped}");
    let additions = Additions { controls: vec!["control.safetensors".into()], ..Additions::default() };
    let control = pipeline::open_with(&Source::open(dir.path()).unwrap(), &additions).err().unwrap().to_string();
    assert!(control.starts_with("--control: "), "{control}");
    let model = open(dir.path());
    let refused = |request: Request| pipeline::settings(&model, &request).unwrap_err().to_string();
    let side = refused(Request { width: Some(112), ..request(&golden, "plain") });
    assert!(side.starts_with("--width: expected a multiple of 32"), "{side}");
    let tokens = refused(Request { max_sequence_length: Some(1025), ..request(&golden, "plain") });
    assert_eq!(tokens, "--max-sequence-length: expected 1 to 1024, found 1025");
    let start = refused(Request { image: Some(given::picture(96, 160)), ..request(&golden, "plain") });
    assert!(start.starts_with("--image: "), "{start}");
    // Qwen3 has the same shapes as what reads for it, and turns tokens otherwise.
    let path = dir.path().join("text_encoder/config.json");
    let original = fs::read_to_string(&path).unwrap();
    fs::write(&path, original.replace("qwen3_vl_text", "qwen3")).unwrap();
    let other = pipeline::open(&Source::open(dir.path()).unwrap()).err().unwrap();
    assert!(other.to_string().contains("model_type") && other.hint().unwrap().contains("Qwen3-VL-8B"), "{other}");
    fs::write(&path, original).unwrap();
    let path = dir.path().join("transformer/config.json");
    let original = fs::read_to_string(&path).unwrap();
    fs::write(&path, original.replace("\"causal_condition\": true", "\"causal_condition\": false")).unwrap();
    let timed = said(Source::open(dir.path()).and_then(|source| pipeline::open(&source)));
    assert!(timed.contains("causal_condition"), "{timed}");
}

/// The published sizes at a megapixel, encoding and decoding included.
#[test]
fn published_sizes_fit_a_small_card() {
    let dir = tempfile::tempdir().unwrap();
    let architecture = Architecture::QWEN_IMAGE_21;
    for (file_type, most) in [("q4_k_s", 1 << 30), ("q8_0", 1 << 30)] {
        let path = dir.path().join(file_type);
        let file_type = file_type.parse().unwrap();
        let options = synthetic::Options { architecture, file_type, blocks: None, hollow: true, only: None };
        synthetic::write(&path, &options, |_| Ok(())).unwrap();
        let pipeline = on(open(&path), "cpu:discrete");
        let request = Request { width: Some(1024), height: Some(1024), ..Request::default() };
        let components = pipeline.measure(&pipeline.settings(&request).unwrap()).unwrap();
        let refusal =
            budget::plan(&components, Offload::Auto, &Limits { bytes: Some(1), ..Limits::default() }).unwrap_err();
        println!("{file_type}: least {} bytes, for the {}", refusal.least, refusal.component);
        assert!(refusal.least <= most, "{file_type}: {}", refusal.least);
    }
}
