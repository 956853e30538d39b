//! Z-Image against diffusers in float32, and its language model against transformers; recorded by `tests/reference/z_image.py`.
mod controls;

use std::fs;
use std::path::Path;

use crate::support::cases::equal_the_reference;
use crate::support::drawing::{THREADS, bits, generate, on, open};
use crate::support::flux2::write_vae;
use crate::support::lora::{A_B, DOWN_UP, Module, RANK, flat, merge, numbers, write_lora};
use crate::support::numbers::Format;
use crate::support::sd1::write_tensors;
use crate::support::z_image::{tensors, write_directory, write_gguf, write_llama, write_loud, write_original};
use crate::support::{self, Golden, given, in_parts};
use pinhole::convert::{self, WriteOptions};
use pinhole::exec::{DeviceWeights, Session};
use pinhole::ggml::{Backend, CancelFlag, Device, Ledger};
use pinhole::models::language_model::{Taps, causal_mask};
use pinhole::pipeline::{self, Additions, Event, MemoryOptions, Opened, Request};
use pinhole::plan::Offload;
use pinhole::source::slot::{TEXT_ENCODER, TRANSFORMER, VAE};
use pinhole::source::{Files, Source, networks};
use pinhole::stage::{Cadence, Dims, Symbol};
use pinhole_quant::metrics;
use pinhole_quant::recipe::FileType;
use tempfile::TempDir;

/// How far latents and hidden states may be from the reference's.
const MOST: f64 = 1e-9;

/// The golden, and its model as a directory.
pub(super) fn model() -> (Golden, TempDir) {
    let (golden, dir) = (Golden::load("z_image"), tempfile::tempdir().unwrap());
    write_directory(dir.path(), &golden);
    (golden, dir)
}

/// The request of a case.
pub(super) fn request(golden: &Golden, case: &str) -> Request {
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
    let long = Request { cfg_scale: Some(0.0), ..Request::new("star ".repeat(600)) };
    let long = pipeline::settings(&model, &long).unwrap();
    assert_eq!(long.text_tokens, [512]);
    let cut = model.encoders.tokenize(&"star ".repeat(600), &long).unwrap().remove(0).cut.unwrap();
    assert!(cut.ends_with("star ") && !cut.contains("assistant"), "{cut}");
}

/// The hidden states that the language model in `source` has of the golden's text number `text`.
fn hidden(source: &Source, ids: &[u32], taps: fn(usize) -> Taps) -> Vec<Vec<f32>> {
    let (part, config) = networks::language_model(source.component(&TEXT_ENCODER).unwrap(), taps).unwrap();
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
    net.states.iter().map(|&port| session.get(port).unwrap()).collect()
}

/// The ids of text number `text`.
fn ids(golden: &Golden, text: usize) -> Vec<u32> {
    golden.ids(&format!("/texts/{text}/ids"))
}

#[test]
fn hidden_states_equal_transformers() {
    let (golden, dir) = model();
    let source = open(dir.path()).source;
    for text in [1, golden.list("/texts").len() - 1] {
        let found = hidden(&source, &ids(&golden, text), |layers| Taps::after(layers - 1)).remove(0);
        let nmse = metrics::nmse(&golden.f32(&format!("hidden.{text}")), &found).unwrap();
        println!("text {text}: nmse {nmse:.2e}");
        assert!(nmse <= 1e-10, "text {text}: {nmse:e}");
    }
    // What is tapped on the way is what stopping there gives.
    let several = hidden(&source, &ids(&golden, 1), |layers| Taps { after: vec![1, 2, layers], normalised: true });
    assert_eq!(several.len(), 3);
    assert_eq!(several[1], hidden(&source, &ids(&golden, 1), |_| Taps::after(2))[0]);
}

/// The model in `dir` with other files in the places of some of its components.
fn with(dir: &Path, parts: &[(&'static pinhole::source::Slot, &str)]) -> pinhole::Result<Opened> {
    let parts = parts.iter().map(|(slot, name)| (*slot, dir.join(name))).collect();
    let source = Source::assemble(Some(Source::open(dir)?), &Files { parts, tokenizers: Vec::new() })?;
    pipeline::open(&source)
}

#[test]
fn files_of_other_tools_draw_the_same() {
    let (golden, dir) = model();
    write_original(&dir.path().join("z_image_turbo_bf16.safetensors"), &golden, "model.diffusion_model.");
    write_gguf(&dir.path().join("z-image-F32.gguf"), &golden, Format::F32);
    for (name, format) in
        [("qwen-F32.gguf", Format::F32), ("qwen-F16.gguf", Format::F16), ("qwen-Q8_0.gguf", Format::Q8_0)]
    {
        write_llama(&dir.path().join(name), &golden, format);
    }
    let case = Request { steps: Some(1), ..request(&golden, "base") };
    let expected = generate(&mut on(open(dir.path()), "cpu"), &case);
    let original = with(dir.path(), &[(&TRANSFORMER, "z_image_turbo_bf16.safetensors")]).unwrap();
    assert_eq!((original.rules.defaults.steps, original.rules.defaults.cfg_scale), (8, 0.0));
    assert_eq!(open(dir.path()).rules.defaults.steps, 50);
    assert!(bits(&expected) == bits(&generate(&mut on(original, "cpu"), &case)));
    let both = [(&TRANSFORMER, "z-image-F32.gguf"), (&TEXT_ENCODER, "qwen-F32.gguf")];
    assert!(bits(&expected) == bits(&generate(&mut on(with(dir.path(), &both).unwrap(), "cpu"), &case)));
    // The tokenizer is that of the file.
    let text = golden.list("/texts").len() - 1;
    for (name, most) in [("qwen-F16.gguf", 1e-6), ("qwen-Q8_0.gguf", 1e-3)] {
        let model = with(dir.path(), &[(&TEXT_ENCODER, name)]).unwrap();
        let settings = pipeline::settings(&model, &Request::new("")).unwrap();
        let encoded = model.encoders.tokenize(golden.at("/cases/turbo/prompt").as_str().unwrap(), &settings).unwrap();
        assert_eq!(encoded[0].ids, ids(&golden, text));
        let found = hidden(&model.source, &encoded[0].ids, |layers| Taps::after(layers - 1)).remove(0);
        let nmse = metrics::nmse(&golden.f32(&format!("hidden.{text}")), &found).unwrap();
        println!("{name}: nmse {nmse:.2e}");
        assert!(nmse <= most && nmse > 0.0, "{name}: {nmse:e}");
    }
}

/// The model in `dir` as a bundle.
fn bundled(dir: &Path, file_type: &str) -> Opened {
    let (model, path) = (open(dir), dir.join("bundle.gguf"));
    let plan = convert::plan(&model.source, &model.networks(), file_type.parse::<FileType>().unwrap()).unwrap();
    plan.write(&path, WriteOptions { overwrite: true, ..WriteOptions::default() }, &mut |_| Ok(())).unwrap();
    open(&path)
}

#[test]
fn streamed_equals_resident() {
    let (golden, dir) = model();
    for file_type in [None, Some("q8_0"), Some("q4_k_s")] {
        let model = match file_type {
            None => open(dir.path()),
            Some(file_type) => bundled(dir.path(), file_type),
        };
        assert_eq!(model.family.name, "z_image");
        let mut pipeline = on(model, "cpu:discrete");
        for case in ["base_batch", "img2img_cfg"] {
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
    }
}

/// Prompts of different lengths, the longer one first and last, and of the same.
#[test]
fn passes_one_after_the_other_draw_the_same() {
    let (golden, dir) = model();
    for (file_type, negative) in
        [(None, "blue"), (Some("q8_0"), "blue"), (None, ""), (None, &*"a red ring ".repeat(12))]
    {
        let model = match file_type {
            None => open(dir.path()),
            Some(file_type) => bundled(dir.path(), file_type),
        };
        let mut pipeline = on(model, "cpu:discrete");
        let negative_prompt = Some(negative.to_owned());
        let request = Request { steps: Some(2), batch: 2, negative_prompt, ..request(&golden, "base_batch") };
        in_parts::draws_the_same(&mut pipeline, &request, &format!("{file_type:?}, `{negative}`"));
    }
}

/// Numbers beyond F16's range between the layers draw what others do, in every type.
#[test]
fn loud_layers_stay_finite() {
    let (golden, dir) = model();
    write_loud(&dir.path().join("loud.safetensors"), &golden, 2f32.powi(18));
    let case = request(&golden, "one_step");
    let expected = golden.f32("one_step.latents");
    for (file_type, most) in [("f32", 1e-9), ("f16", 1e-5), ("bf16", 1e-3), ("q8_0", 1e-3), ("q4_k_s", 5e-2)] {
        let model = with(dir.path(), &[(&TRANSFORMER, "loud.safetensors")]).unwrap();
        let path = dir.path().join("loud.gguf");
        let plan = convert::plan(&model.source, &model.networks(), file_type.parse::<FileType>().unwrap()).unwrap();
        plan.write(&path, WriteOptions { overwrite: true, ..WriteOptions::default() }, &mut |_| Ok(())).unwrap();
        let generated = generate(&mut on(open(&path), "cpu"), &case);
        let nmse = metrics::nmse(&expected, &generated.latents).unwrap();
        println!("{file_type}: nmse {nmse:.2e}");
        assert!(nmse <= most, "{file_type}: {nmse:e}");
    }
}

/// A picture of a batch is what it is alone, and remembered prompts of other lengths are the same.
#[test]
fn pictures_do_not_depend_on_company() {
    let (golden, dir) = model();
    let mut pipeline = on(open(dir.path()), "cpu");
    pipeline.set_remembered_bytes(1 << 20);
    let case = Request { steps: Some(1), ..request(&golden, "base_batch") };
    let both = generate(&mut pipeline, &case);
    let again = pipeline.generate(&case).unwrap();
    assert!(bits(&both) == bits(&again));
    let alone = pipeline.generate(&Request { batch: 1, seed: case.seed + 1, ..case.clone() }).unwrap();
    let second = &both.latents[both.latents.len() / 2..];
    let nmse = metrics::nmse(&alone.latents, second).unwrap();
    assert!(nmse < 1e-10, "{nmse:e}");
    // Encoded ahead, both prompts keep their lengths.
    let embedded = pipeline.embed(&case, &mut |_: Event| Ok(())).unwrap();
    let given = Request { embeddings: Some(std::sync::Arc::new(embedded)), ..case };
    assert!(bits(&both) == bits(&pipeline.generate(&given).unwrap()));
}

#[test]
fn what_does_not_fit_is_refused() {
    let (golden, dir) = model();
    let said = |result: pinhole::Result<Opened>| result.err().unwrap().to_string();
    // An encoder of the right family and another size, and one that is too short.
    let change = |edit: &dyn Fn(&mut serde_json::Value)| {
        let path = dir.path().join("text_encoder/config.json");
        let original = fs::read(&path).unwrap();
        let mut config: serde_json::Value = serde_json::from_slice(&original).unwrap();
        edit(&mut config);
        fs::write(&path, config.to_string()).unwrap();
        let message = said(Source::open(dir.path()).and_then(|source| pipeline::open(&source)));
        fs::write(&path, original).unwrap();
        message
    };
    let short = change(&|config| config["num_hidden_layers"] = 1.into());
    assert!(short.contains("num_hidden_layers: expected at least 2 layers"), "{short}");
    let wide = change(&|config| config["hidden_size"] = 128.into());
    assert!(wide.contains("embed_tokens.weight"), "{wide}");
    let long = change(&|config| config["num_hidden_layers"] = 5.into());
    assert!(long.contains("expected 45 tensors, found 34 of them"), "{long}");
    let path = dir.path().join("transformer/config.json");
    let original = fs::read_to_string(&path).unwrap();
    fs::write(&path, original.replace("\"cap_feat_dim\": 256", "\"cap_feat_dim\": 512")).unwrap();
    let message = said(Source::open(dir.path()).and_then(|source| pipeline::open(&source)));
    assert!(message.contains("cap_embedder"), "{message}");
    fs::write(&path, original).unwrap();
    // A transformer in the place of the text encoder, and a text encoder without its tokenizer's kind.
    let swapped = said(with(dir.path(), &[(&TEXT_ENCODER, "transformer")]));
    assert!(swapped.contains("Z-Image transformer") && swapped.contains("no language model"), "{swapped}");
    let model = open(dir.path());
    let refused = |request: Request| pipeline::settings(&model, &request).unwrap_err().to_string();
    let tokens = refused(Request { max_sequence_length: Some(513), ..request(&golden, "turbo") });
    assert_eq!(tokens, "--max-sequence-length: expected 1 to 512, found 513");
    let side = refused(Request { width: Some(1040), ..request(&golden, "turbo") });
    assert!(side.contains("a multiple of 16 from 16 to 1024"), "{side}");
}

/// ComfyUI's files in one folder, with the tokenizer beside them, are a model without a word on what is what.
#[test]
fn a_folder_of_loose_files_is_a_model() {
    let (golden, dir) = model();
    let loose = tempfile::tempdir().unwrap();
    write_original(&loose.path().join("z_image_turbo_bf16.safetensors"), &golden, "");
    write_tensors(&loose.path().join("qwen_3_4b.safetensors"), &tensors(&golden, "text_encoder"));
    write_vae(&loose.path().join("ae.safetensors"), &golden, "vae");
    let said = Source::open(loose.path()).and_then(|source| pipeline::open(&source)).err().unwrap();
    assert!(said.hint().unwrap().contains("--tokenizer"), "{said}");
    fs::copy(dir.path().join("tokenizer/tokenizer.json"), loose.path().join("tokenizer.json")).unwrap();
    let case = Request { steps: Some(1), ..request(&golden, "base") };
    let expected = generate(&mut on(open(dir.path()), "cpu"), &case);
    let folder = open(loose.path());
    assert_eq!((folder.family.name, folder.rules.defaults.steps), ("z_image", 8));
    assert!(bits(&expected) == bits(&generate(&mut on(folder, "cpu"), &case)));
    // Given one by one, without a model below them.
    let of = |name: &str| loose.path().join(name);
    let parts = vec![
        (&TRANSFORMER, of("z_image_turbo_bf16.safetensors")),
        (&TEXT_ENCODER, of("qwen_3_4b.safetensors")),
        (&VAE, of("ae.safetensors")),
    ];
    let alone = pipeline::open(&Source::assemble(None, &Files { parts, tokenizers: Vec::new() }).unwrap()).unwrap();
    assert!(bits(&expected) == bits(&generate(&mut on(alone, "cpu"), &case)));
}

#[test]
fn loras_in_every_spelling_draw_what_merged_weights_draw() {
    let (golden, dir) = model();
    let case = Request { steps: Some(1), ..request(&golden, "base") };
    let (down, up) = (numbers(1, RANK * 384, 0.1), numbers(2, RANK * 1152, 0.1));
    let module = |name: &str, up: &[f32], outputs| Module {
        name: name.to_owned(),
        down: down.clone(),
        up: up.to_vec(),
        inputs: 384,
        outputs,
    };
    let original = vec![
        module("layers.1.attention.qkv", &up, 1152),
        module("layers.0.feed_forward.w1", &up[..RANK * 1024], 1024),
        module("noise_refiner.0.attention.out", &up[..RANK * 384], 384),
    ];
    let mut theirs: Vec<Module> = original.iter().skip(1).cloned().collect();
    theirs[1].name = "noise_refiner.0.attention.to_out.0".into();
    for (part, up) in ["to_q", "to_k", "to_v"].iter().zip(up.chunks(RANK * 384)) {
        theirs.push(module(&format!("layers.1.attention.{part}"), up, 384));
    }
    let mut merged = support::z_image::original(&golden, "");
    merge(&mut merged, &original, 0.5);
    write_tensors(&dir.path().join("merged.safetensors"), &merged);
    let expected = generate(&mut on(with(dir.path(), &[(&TRANSFORMER, "merged.safetensors")]).unwrap(), "cpu"), &case);
    let files = [
        write_lora(dir.path(), "diffusers", "transformer.", theirs.clone(), A_B),
        write_lora(dir.path(), "toolkit", "diffusion_model.", original.clone(), A_B),
        write_lora(dir.path(), "comfy", "diffusion_model.", theirs.clone(), DOWN_UP),
        write_lora(dir.path(), "kohya", "lora_unet_", flat(theirs), DOWN_UP),
        write_lora(dir.path(), "musubi", "lora_unet_", flat(original), DOWN_UP),
    ];
    for file in files {
        let additions = Additions { loras: vec![(file.clone(), 0.5)], ..Additions::default() };
        let model = pipeline::open_with(&Source::open(dir.path()).unwrap(), &additions).unwrap();
        assert_eq!(model.loras[0].warning(), None, "{}", file.display());
        let nmse = metrics::nmse(&expected.latents, &generate(&mut on(model, "cpu"), &case).latents).unwrap();
        println!("{}: nmse {nmse:.2e}", file.display());
        assert!(nmse <= 1e-9, "{}: {nmse:e}", file.display());
    }
}
