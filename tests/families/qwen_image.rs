//! Qwen-Image against diffusers in float32, and its language model against transformers; recorded by `tests/reference/qwen_image.py`.
mod controls;

use std::path::Path;

use crate::support::cases::equal_the_reference;
use crate::support::drawing::{THREADS, bits, bundle, generate, on, open, with};
use crate::support::lora::{A_B, DOWN_UP, Module, RANK, merge, numbers, write_lora};
use crate::support::numbers::Format;
use crate::support::qwen_image::{
    make_edit, write_directory, write_gguf, write_llama, write_loud, write_original_vae, write_projector, write_single,
};
use crate::support::sd1::{Tensor, write_tensors};
use crate::support::z_image::tensors;
use crate::support::{Golden, given};
use pinhole::bind::alias;
use pinhole::convert::{self, WriteOptions};
use pinhole::exec::{DeviceWeights, Session};
use pinhole::ggml::{Backend, CancelFlag, Device, Ledger};
use pinhole::models::language_model::{Taps, causal_mask};
use pinhole::models::qwen_image::{Sizes, sinusoid};
use pinhole::models::qwen_vl::Grid;
use pinhole::pipeline::{self, Additions, Event, MemoryOptions, Opened, ReferenceResize, Request};
use pinhole::plan::Offload;
use pinhole::source::slot::{IMAGE_ENCODER, TEXT_ENCODER, TRANSFORMER, VAE};
use pinhole::source::{Source, kinds_in, networks};
use pinhole::stage::{Cadence, Dims, Symbol};
use pinhole_quant::metrics;
use pinhole_quant::recipe::FileType;
use tempfile::TempDir;

/// How far latents may be from the reference's.
const MOST: f64 = 1e-8;

/// The golden, and its model as a directory.
fn model() -> (Golden, TempDir) {
    let (golden, dir) = (Golden::load("qwen_image"), tempfile::tempdir().unwrap());
    write_directory(dir.path(), &golden);
    (golden, dir)
}

/// The request of a case.
fn request(golden: &Golden, case: &str) -> Request {
    let at = |key: &str| golden.at(&format!("/cases/{case}/{key}"));
    let whole = |key: &str| at(key).as_u64().map(|number| number as usize);
    let number = |key: &str| at(key).as_f64().map(|number| number as f32);
    let (width, height) = (whole("width").unwrap(), whole("height").unwrap());
    Request {
        prompt: at("prompt").as_str().unwrap().to_owned(),
        negative_prompt: at("negative_prompt").as_str().map(str::to_owned),
        width: Some(width),
        height: Some(height),
        steps: whole("steps"),
        seed: at("seed").as_u64().unwrap(),
        cfg_scale: number("cfg_scale"),
        strength: number("strength"),
        max_sequence_length: whole("max_sequence_length"),
        image: at("image").as_bool().unwrap().then(|| given::picture(width, height)),
        mask: at("masked").as_bool().unwrap().then(|| given::mask(width, height)),
        batch: whole("batch").unwrap(),
        ..Request::default()
    }
}

#[test]
fn latents_equal_diffusers() {
    let (golden, dir) = model();
    let mut pipeline = on(open(dir.path()), "cpu");
    equal_the_reference(&golden, [MOST, 60.0], |case| generate(&mut pipeline, &request(&golden, case)));
    // Without a word, the model's card says what not to draw.
    let silent = Request { negative_prompt: None, cfg_scale: None, ..request(&golden, "cfg") };
    assert!(bits(&generate(&mut pipeline, &silent)) == bits(&generate(&mut pipeline, &request(&golden, "cfg"))));
}

/// Texts are read with the template around them, and are as long as they are.
#[test]
fn tokens_equal_transformers() {
    let (golden, dir) = model();
    let model = open(dir.path());
    let settings = pipeline::settings(&model, &Request::new("")).unwrap();
    for text in golden.list("/texts") {
        let wanted: Vec<u32> = text["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        let encoded = &model.encoders.tokenize(text["text"].as_str().unwrap(), &settings).unwrap()[0];
        assert_eq!((&encoded.ids, encoded.used, &encoded.cut), (&wanted, wanted.len(), &None), "{text}");
    }
    let long = Request { cfg_scale: Some(1.0), ..Request::new("star ".repeat(600)) };
    let long = pipeline::settings(&model, &long).unwrap();
    assert_eq!(long.text_tokens, [512]);
    let cut = model.encoders.tokenize(&"star ".repeat(600), &long).unwrap().remove(0).cut.unwrap();
    assert!(cut.ends_with("star ") && !cut.contains("assistant"), "{cut}");
}

/// The ids of text number `text`.
fn ids(golden: &Golden, text: usize) -> Vec<u32> {
    golden.ids(&format!("/texts/{text}/ids"))
}

/// What the language model in `source` gives the denoiser of these tokens.
fn hidden(source: &Source, ids: &[u32]) -> Vec<f32> {
    let component = source.component(&TEXT_ENCODER).unwrap();
    let opened = networks::language_model(component, |layers| Taps { after: vec![layers], normalised: true });
    let (part, config) = opened.unwrap();
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
    states.drain(..34 * config.hidden_size);
    states
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
        compare("hidden states", &golden.f32(&format!("hidden.{text}")), &hidden(&source, &ids(&golden, text)));
    }
    let mut backend = Backend::new(Device::cpu().unwrap(), THREADS, CancelFlag::new()).unwrap();
    let ledger = Ledger::new();
    // One forward of the transformer, at one time of two, for the second of two prompts.
    let part = networks::qwen_image(source.component(&TRANSFORMER).unwrap()).unwrap();
    let (net, text) = (&part.net, golden.f32("hidden.1"));
    let sizes = Sizes { batch: 1, pictures: vec![[5, 7]], texts: vec![text.len() / 256] };
    let weights = DeviceWeights::load(&net.model, &part.bound, backend.device(), &ledger).unwrap();
    let mut session = Session::new(&net.model, &weights, &sizes.dims(2), &backend, &ledger).unwrap();
    let (cos, sin) = net.rotary(&sizes).unwrap();
    session.set(net.ports.cos, &cos).unwrap();
    session.set(net.ports.sin, &sin).unwrap();
    session.set(net.ports.text, &text).unwrap();
    session.set(net.ports.time, &[sinusoid(0.8), sinusoid(0.3)].concat()).unwrap();
    session.run(&mut backend, Cadence::Request, |_, _| Ok(())).unwrap();
    session.set(net.ports.latents, &pinhole::sample::randn(1, 35 * 64).unwrap()).unwrap();
    session.set_indices(net.ports.condition, &[1]).unwrap();
    session.run(&mut backend, Cadence::Step, |_, _| Ok(())).unwrap();
    compare("forward", &golden.f32("forward"), &session.get(net.ports.prediction).unwrap());
    // The autoencoder, both ways.
    let vae = networks::autoencoder_causal(source.component(&VAE).unwrap()).unwrap();
    let dims = Dims::new().with(Symbol::BATCH, 1).with(Symbol::LATENT_WIDTH, 10).with(Symbol::LATENT_HEIGHT, 6);
    let net = &vae.decoder.net;
    let weights = DeviceWeights::load(&net.model, &vae.decoder.bound, backend.device(), &ledger).unwrap();
    let mut session = Session::new(&net.model, &weights, &dims, &backend, &ledger).unwrap();
    session.set(net.latents, &pinhole::sample::randn(1, 10 * 6 * 16).unwrap()).unwrap();
    session.run(&mut backend, Cadence::Request, |_, _| Ok(())).unwrap();
    let picture: Vec<f32> = session.get(net.picture).unwrap().iter().map(|x| x.clamp(-1.0, 1.0)).collect();
    compare("decoded", &golden.f32("decoded"), &picture);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn files_of_other_tools_draw_the_same() {
    let (golden, dir) = model();
    write_single(&dir.path().join("qwen_image_bf16.safetensors"), &golden, "model.diffusion_model.");
    write_gguf(&dir.path().join("qwen-image-F32.gguf"), &golden, Format::F32);
    write_original_vae(&dir.path().join("qwen_image_vae.safetensors"), &golden, false);
    write_original_vae(&dir.path().join("qwen_2d_vae.safetensors"), &golden, true);
    for (name, format) in [("F32.gguf", Format::F32), ("F16.gguf", Format::F16), ("Q8_0.gguf", Format::Q8_0)] {
        write_llama(&dir.path().join(name), &golden, format);
    }
    let case = Request { steps: Some(2), ..request(&golden, "img2img") };
    let expected = generate(&mut on(open(dir.path()), "cpu"), &case);
    for parts in [
        &[(&TRANSFORMER, "qwen_image_bf16.safetensors"), (&VAE, "qwen_image_vae.safetensors")][..],
        &[(&TRANSFORMER, "qwen-image-F32.gguf"), (&TEXT_ENCODER, "F32.gguf"), (&VAE, "qwen_2d_vae.safetensors")],
    ] {
        let model = with(dir.path(), parts).unwrap();
        let found = generate(&mut on(model, "cpu"), &case);
        assert!(bits(&expected) == bits(&found), "{parts:?}");
        assert!(expected.images == found.images, "{parts:?}");
    }
    let text = golden.list("/texts").len() - 1;
    for (name, most) in [("F16.gguf", 1e-6), ("Q8_0.gguf", 1e-3)] {
        let model = with(dir.path(), &[(&TEXT_ENCODER, name)]).unwrap();
        let settings = pipeline::settings(&model, &Request::new("")).unwrap();
        let encoded = model.encoders.tokenize(golden.text("/cases/plain/prompt"), &settings).unwrap();
        assert_eq!(encoded[0].ids, ids(&golden, text));
        let found = hidden(&model.source, &encoded[0].ids);
        let nmse = metrics::nmse(&golden.f32(&format!("hidden.{text}")), &found).unwrap();
        println!("{name}: nmse {nmse:.2e}");
        assert!(nmse <= most && nmse > 0.0, "{name}: {nmse:e}");
    }
}

#[test]
fn streamed_equals_resident() {
    let (golden, dir) = model();
    for file_type in [None, Some("f32"), Some("q8_0"), Some("q4_k_s")] {
        let path = dir.path().join("bundle.gguf");
        let model = match file_type {
            None => open(dir.path()),
            Some(file_type) => {
                bundle(&open(dir.path()), &path, file_type);
                open(&path)
            }
        };
        assert_eq!(model.family.name, "qwen_image");
        let mut pipeline = on(model, "cpu:discrete");
        for case in ["cfg_batch", "img2img_cfg"] {
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
        // As little as goes: strips, and pieces of tokens.
        let request = Request { steps: Some(2), ..request(&golden, "plain") };
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

/// Numbers beyond F16's range between the blocks draw what others do, in every type.
#[test]
fn loud_streams_stay_finite() {
    let (golden, dir) = model();
    write_loud(&dir.path().join("loud.safetensors"), &golden, 2f32.powi(18));
    let case = request(&golden, "cfg_longer");
    let expected = golden.f32("cfg_longer.latents");
    for (file_type, most) in [("f32", 1e-8), ("f16", 1e-5), ("bf16", 1e-3), ("q8_0", 1e-3), ("q4_k_s", 5e-2)] {
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

/// The golden of the edits, and the model as one of them.
fn edits(class: &str, zero_cond_t: bool) -> (Golden, TempDir) {
    let (_, dir) = model();
    let golden = Golden::load("qwen_image_edit");
    make_edit(dir.path(), &golden, class, zero_cond_t);
    (golden, dir)
}

const CLASSES: [&str; 2] = ["QwenImageEditPipeline", "QwenImageEditPlusPipeline"];

/// The request of a case of an edit: pictures keep their size for the autoencoder.
fn edit_request(golden: &Golden, case: &str) -> Request {
    let at = |key: &str| golden.at(&format!("/cases/{case}/{key}"));
    let whole = |key: &str| at(key).as_u64().map(|number| number as usize);
    let sizes = at("references").as_array().unwrap().iter();
    let references = sizes.map(|size| {
        let [width, height] = [0, 1].map(|i| size[i].as_u64().unwrap() as usize);
        given::picture(width, height)
    });
    Request {
        prompt: at("prompt").as_str().unwrap().to_owned(),
        negative_prompt: at("negative_prompt").as_str().map(str::to_owned),
        width: whole("width"),
        height: whole("height"),
        steps: whole("steps"),
        seed: at("seed").as_u64().unwrap(),
        cfg_scale: at("cfg_scale").as_f64().map(|number| number as f32),
        batch: whole("batch").unwrap(),
        references: references.collect(),
        reference_resize: ReferenceResize::None,
        ..Request::default()
    }
}

#[test]
fn edits_equal_diffusers() {
    let golden = Golden::load("qwen_image_edit");
    let mut wrong = Vec::new();
    for (class, zero_cond_t) in [(CLASSES[0], false), (CLASSES[1], false), (CLASSES[1], true)] {
        let (_, dir) = edits(class, zero_cond_t);
        let mut pipeline = on(open(dir.path()), "cpu");
        for (case, described) in golden.at("/cases").as_object().unwrap() {
            let is_plus = described["plus"].as_bool().unwrap();
            if (is_plus, &described["zero_cond_t"]) != (class == CLASSES[1], &zero_cond_t.into()) {
                continue;
            }
            let generated = generate(&mut pipeline, &edit_request(&golden, case));
            let nmse = metrics::nmse(&golden.f32(&format!("{case}.latents")), &generated.latents).unwrap();
            println!("{case}: nmse {nmse:.2e}");
            // Pictures are resized in bytes.
            if nmse.is_nan() || nmse > 1e-6 {
                wrong.push(format!("{case}: {nmse:.2e}"));
            }
            if described["decoded"].as_bool().unwrap() {
                let psnr = metrics::psnr(&golden.u8(&format!("{case}.picture")), generated.images[0].rgb()).unwrap();
                assert!(psnr >= 50.0, "{case}: psnr {psnr}");
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Files that do not say how the pictures that are changed are modulated: an option does, or a mark, or a name.
#[test]
fn edits_are_told_how_pictures_are_modulated() {
    let golden = Golden::load("qwen_image_edit");
    let case = "plus_zero";
    assert!(golden.at(&format!("/cases/{case}/zero_cond_t")).as_bool().unwrap());
    let request = edit_request(&golden, case);
    let opened = |path: &Path, zero_cond_t| {
        let additions = Additions { zero_cond_t, ..Additions::default() };
        pipeline::open_with(&Source::open(path).unwrap(), &additions)
    };
    let [(_, without), (_, with_it)] = [false, true].map(|zero_cond_t| edits(CLASSES[1], zero_cond_t));
    let draw = |path: &Path, told| bits(&generate(&mut on(opened(path, told).unwrap(), "cpu"), &request));
    let [plain, zero] = [draw(without.path(), None), draw(with_it.path(), None)];
    assert!(plain != zero && draw(without.path(), Some(true)) == zero && draw(with_it.path(), Some(false)) == plain);
    let told = pipeline::settings(&opened(with_it.path(), Some(false)).unwrap(), &request).unwrap();
    assert!(told.named(0, None).contains(&("Zero cond t", "false".to_owned())), "{:?}", told.named(0, None));
    let of = |name: &str| with(without.path(), &[(&TRANSFORMER, name)]).unwrap();
    let says = |model: &Opened| {
        networks::qwen_image(model.source.component(&TRANSFORMER).unwrap()).unwrap().net.config().zero_cond_t
    };
    let base = Golden::load("qwen_image");
    for name in ["edit-plus.safetensors", "Qwen-Image-Edit-2511.safetensors"] {
        write_single(&without.path().join(name), &base, "");
    }
    assert_eq!([says(&of("edit-plus.safetensors")), says(&of("Qwen-Image-Edit-2511.safetensors"))], [false, true]);
    let mut marked = tensors(&base, "transformer");
    marked.push(Tensor { name: "__index_timestep_zero__".into(), shape: vec![0], values: Vec::new() });
    write_tensors(&without.path().join("marked.safetensors"), &marked);
    assert!(says(&of("marked.safetensors")));
    // Others have no such pictures.
    let (_, dir) = model();
    let error = opened(dir.path(), Some(true)).err().unwrap().to_string();
    assert_eq!(error, "--zero-cond-t: expected a model that edits pictures and may be told so, found another");
}

/// Lightning's, with names of its first version and of the second, and the schedule that they were trained with.
#[test]
fn loras_for_few_steps() {
    let (golden, dir) = model();
    let (width, inner) = (256, 1024);
    let names = [
        ("attn.to_q", width, width),
        ("attn.add_k_proj", width, width),
        ("attn.to_out.0", width, width),
        ("attn.to_add_out", width, width),
        ("img_mlp.net.0.proj", width, inner),
        ("txt_mlp.net.2", inner, width),
        ("img_mod.1", width, 6 * width),
    ];
    let modules: Vec<Module> = names
        .into_iter()
        .enumerate()
        .map(|(i, (name, inputs, outputs))| Module {
            name: format!("transformer_blocks.1.{name}"),
            down: numbers(i, RANK * inputs, 0.1),
            up: numbers(i + 9, RANK * outputs, 0.1),
            inputs,
            outputs,
        })
        .collect();
    let mut merged = tensors(&golden, "transformer");
    merge(&mut merged, &modules, 1.0);
    write_tensors(&dir.path().join("merged.safetensors"), &merged);
    let case = Request { shift: Some(3.0), steps: Some(4), cfg_scale: Some(1.0), ..request(&golden, "plain") };
    let model = with(dir.path(), &[(&TRANSFORMER, "merged.safetensors")]).unwrap();
    let expected = generate(&mut on(model, "cpu"), &case);
    for (name, prefix, ends) in [
        ("Qwen-Image-Lightning-4steps-V1.0", "", DOWN_UP),
        ("Qwen-Image-Lightning-8steps-V2.0", "transformer.", A_B),
        ("Qwen-Image-Edit-2511-Lightning-4steps", "diffusion_model.", DOWN_UP),
    ] {
        let file = write_lora(dir.path(), name, prefix, modules.clone(), ends);
        let outline = pinhole::bind::lora::Lora::open(&file).unwrap().outline().unwrap();
        assert_eq!(outline.family, Some("Qwen-Image"));
        let purpose = outline.purpose.join("; ");
        assert!(purpose.starts_with("draws in ") && purpose.ends_with("--cfg-scale 1 --shift 3"), "{purpose}");
        let additions = Additions { loras: vec![(file, 1.0)], ..Additions::default() };
        let model = pipeline::open_with(&Source::open(dir.path()).unwrap(), &additions).unwrap();
        assert_eq!(model.loras[0].warning(), None, "{name}");
        let found = generate(&mut on(model, "cpu"), &case);
        let nmse = metrics::nmse(&expected.latents, &found.latents).unwrap();
        println!("{name}: nmse {nmse:.2e}");
        assert!(nmse <= 1e-9, "{name}: {nmse:e}");
    }
}

/// What the vision tower of `component` makes of the golden's picture.
fn seen(component: &pinhole::source::Component) -> Vec<f32> {
    let part = networks::qwen_vl(component).unwrap();
    let (net, ledger, grid) = (&part.net, Ledger::new(), Grid { rows: 13, columns: 9 });
    let mut backend = Backend::new(Device::cpu().unwrap(), THREADS, CancelFlag::new()).unwrap();
    let weights = DeviceWeights::load(&net.model, &part.bound, backend.device(), &ledger).unwrap();
    let dims = grid.dims(net.config());
    let mut session = Session::new(&net.model, &weights, &dims, &backend, &ledger).unwrap();
    let picture = given::picture(9 * 28, 13 * 28);
    session.set(net.pixels, &net.patches(grid, picture.image().rgb()).unwrap()).unwrap();
    let (cos, sin) = net.rotary(grid).unwrap();
    session.set(net.positions.cos, &cos).unwrap();
    session.set(net.positions.sin, &sin).unwrap();
    session.run(&mut backend, Cadence::Request, |_, _| Ok(())).unwrap();
    net.in_rows(grid, &session.get(net.tokens).unwrap()).unwrap()
}

#[test]
fn the_vision_tower_equals_transformers() {
    let (golden, dir) = edits(CLASSES[1], false);
    let model = open(dir.path());
    let reader = model.source.component(&TEXT_ENCODER).unwrap();
    let (kind, prefix) = kinds_in(&reader.index).find(|(kind, _)| **kind == alias::QWEN_VL_VISION).unwrap();
    assert_eq!((kind.what, prefix.as_str()), ("Qwen2.5-VL vision tower", "model."));
    let nmse = |found: &[f32]| metrics::nmse(&golden.f32("vision"), found).unwrap();
    let found = nmse(&seen(&pinhole::source::Component { prefix, ..reader.clone() }));
    println!("vision tower: nmse {found:.2e}");
    assert!(found <= 1e-10, "{found:e}");
    // In a file of its own beside that of the language model.
    let base = Golden::load("qwen_image");
    write_llama(&dir.path().join("Qwen2.5-VL-7B-F32.gguf"), &base, Format::F32);
    let alone = with(dir.path(), &[(&TEXT_ENCODER, "Qwen2.5-VL-7B-F32.gguf")]).err().unwrap();
    assert!(alone.hint().unwrap().contains("mmproj"), "{alone}");
    for (name, format, most) in [("mmproj-F32.gguf", Format::F32, 1e-10), ("mmproj-F16.gguf", Format::F16, 4e-6)] {
        let path = dir.path().join(name);
        write_projector(&path, &base, format);
        let place = pinhole::source::Place::needed(&IMAGE_ENCODER, &alias::QWEN_VL_VISION, |_| unreachable!());
        let mut component = pinhole::source::beside(&path, &place).unwrap();
        // Neither the heads nor which blocks see the whole picture can be read off the tensors of so small a tower.
        let text = base.at("/components/text_encoder/config").to_string();
        component.config = Some(pinhole::source::Text { text, origin: "config.json".into() });
        let found = nmse(&seen(&component));
        println!("{name}: nmse {found:.2e}");
        assert!(found <= most, "{name}: {found:e}");
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn edits_stream_as_they_are_resident() {
    let (golden, dir) = edits(CLASSES[1], true);
    for file_type in ["f32", "q8_0", "q4_k_s"] {
        let path = dir.path().join("bundle.gguf");
        bundle(&open(dir.path()), &path, file_type);
        let model = open(&path);
        assert_eq!(model.rules.references.unwrap().most, 10);
        let mut pipeline = on(model, "cpu:discrete");
        let request = Request { steps: Some(2), ..edit_request(&golden, "plus_zero") };
        let mut draw = |offload| {
            pipeline.set_memory(MemoryOptions { vram: None, offload, host: None });
            generate(&mut pipeline, &request)
        };
        let (resident, streamed) = (draw(Offload::None), draw(Offload::Sequential));
        assert!(bits(&resident) == bits(&streamed), "{file_type}: other latents");
        assert!(resident.images == streamed.images, "{file_type}: other pictures");
    }
}

#[test]
fn edits_ask_for_pictures() {
    let (golden, dir) = edits(CLASSES[1], false);
    let model = open(dir.path());
    let refused = |request: Request| pipeline::settings(&model, &request).unwrap_err();
    let request = edit_request(&golden, "plus");
    let none = refused(Request { references: Vec::new(), ..request.clone() });
    assert_eq!(none.to_string(), "--reference: expected a picture, since this model changes one, found none");
    let eleven = refused(Request { references: vec![given::picture(64, 64); 11], ..request.clone() });
    assert_eq!(eleven.to_string(), "--reference: expected at most 10, found 11 pictures");
    let long = refused(Request { references: vec![given::picture(8000, 16)], ..request.clone() });
    assert!(long.to_string().contains("200 times"), "{long}");
    // Without a word, the result has the shape of the last picture, and that is given a million pixels.
    let usual = Request { width: None, height: None, reference_resize: ReferenceResize::Auto, ..request };
    let settings = pipeline::settings(&model, &usual).unwrap();
    assert_eq!(([settings.width, settings.height], settings.references), ([1248, 832], vec![[1248, 832]]));
}

#[test]
fn what_does_not_fit_is_refused() {
    let (golden, dir) = model();
    let said = |result: pinhole::Result<Opened>| result.err().unwrap().to_string();
    let swapped = said(with(dir.path(), &[(&TEXT_ENCODER, "transformer")]));
    assert!(swapped.contains("Qwen-Image transformer") && swapped.contains("no language model"), "{swapped}");
    // A vision tower's file in its place.
    write_projector(&dir.path().join("mmproj-F32.gguf"), &golden, Format::F32);
    let seeing = said(with(dir.path(), &[(&TEXT_ENCODER, "mmproj-F32.gguf")]));
    assert!(seeing.contains("vision tower") && seeing.contains("no language model"), "{seeing}");
    std::fs::remove_file(dir.path().join("mmproj-F32.gguf")).unwrap();
    // A tokenizer whose words are split in an unknown way.
    write_llama(&dir.path().join("other.gguf"), &golden, Format::F32);
    let mut bytes = std::fs::read(dir.path().join("other.gguf")).unwrap();
    let key = b"tokenizer.ggml.pre";
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap() + key.len() + 12;
    bytes[at..at + 5].copy_from_slice(b"other");
    std::fs::write(dir.path().join("other.gguf"), bytes).unwrap();
    let split = with(dir.path(), &[(&TEXT_ENCODER, "other.gguf")]).err().unwrap();
    assert!(split.to_string().ends_with("tokenizer.ggml.pre`: expected `qwen2` or `tekken`, found `other`"), "{split}");
    assert!(split.hint().unwrap().contains("tokenizer.json"), "{split:?}");
    let model = open(dir.path());
    // A text of 20,000 tokens is read as far as it goes, and one of more bytes than anybody writes is refused.
    let long = Request { cfg_scale: Some(1.0), max_sequence_length: Some(1024), ..Request::new("a ".repeat(20_000)) };
    assert_eq!(pipeline::settings(&model, &long).unwrap().text_tokens, [1024]);
    let refused = |request: Request| pipeline::settings(&model, &request).unwrap_err().to_string();
    let tokens = refused(Request { max_sequence_length: Some(1025), ..request(&golden, "plain") });
    assert_eq!(tokens, "--max-sequence-length: expected 1 to 1024, found 1025");
    let text = refused(Request::new("star ".repeat(20_000)));
    assert_eq!(text, "--prompt: expected at most 65536 bytes of text, found 100000 bytes");
    let steps = refused(Request { steps: Some(1), ..request(&golden, "plain") });
    assert!(steps.starts_with("--steps: expected 2 to"), "{steps}");
    let path = dir.path().join("text_encoder/config.json");
    let original = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, original.replace("\"hidden_size\": 256", "\"hidden_size\": 128")).unwrap();
    let wide = said(Source::open(dir.path()).and_then(|source| pipeline::open(&source)));
    assert!(wide.contains("embed_tokens.weight"), "{wide}");
}
