//! FLUX.2 against diffusers in float32, and its language model against transformers; recorded by `tests/reference/flux2.py`.

mod files;

use std::fs;
use std::ops::Range;
use std::sync::Arc;

use crate::support::drawing::{THREADS, bits, bundle, generate, on, open, said, with};
use crate::support::flux2::{set_distilled, write_directory, write_gguf, write_original, write_vae};
use crate::support::lora::{A_B, DOWN_UP, Module, RANK, flat, merge, numbers, write_lora};
use crate::support::numbers::Format;
use crate::support::z_image::write_llama;
use crate::support::{self, Golden, given};
use pinhole::exec::{DeviceWeights, Session};
use pinhole::ggml::{Backend, CancelFlag, Device, Ledger};
use pinhole::image::Picture;
use pinhole::models::language_model::{Taps, mask_of};
use pinhole::pipeline::{
    self, Additions, CacheRequest, Event, FAMILIES, Generated, MemoryOptions, Opened, Pipeline, ReferenceResize,
    Request,
};
use pinhole::plan::{Limits, Offload, budget};
use pinhole::size::Size;
use pinhole::source::slot::{TEXT_ENCODER, TRANSFORMER, VAE};
use pinhole::source::{Files, Source, networks};
use pinhole::stage::{Cadence, Dims, Symbol};
use pinhole::synthetic::{self, Architecture};
use pinhole_quant::metrics;
use tempfile::TempDir;

/// How far latents may be from the reference's.
const MOST: f64 = 1e-9;

/// The same where a picture is resized: bytes round the other way.
const MOST_RESIZED: f64 = 1e-6;

const KLEIN: &str = "Flux2KleinPipeline";

/// The golden of klein, and its model as a directory.
fn model() -> (Golden, TempDir) {
    let (golden, dir) = (Golden::load("flux2_klein"), tempfile::tempdir().unwrap());
    write_directory(dir.path(), &golden, KLEIN, "vae");
    (golden, dir)
}

/// The same of dev.
fn dev() -> (Golden, TempDir) {
    let (golden, dir) = (Golden::load("flux2_dev"), tempfile::tempdir().unwrap());
    write_directory(dir.path(), &golden, "Flux2Pipeline", "vae");
    (golden, dir)
}

/// The request of a case.
fn request(golden: &Golden, case: &str) -> Request {
    let at = |key: &str| golden.at(&format!("/cases/{case}/{key}"));
    let whole = |key: &str| at(key).as_u64().map(|number| number as usize);
    let number = |key: &str| at(key).as_f64().map(|number| number as f32);
    let (width, height) = (whole("width"), whole("height"));
    let is_dev = golden.get("/tokenizer").is_some();
    let own = || given::picture(width.unwrap(), height.unwrap());
    let image = at("image").as_bool().unwrap().then(own);
    let mask = at("masked").as_bool().unwrap().then(|| given::mask(width.unwrap(), height.unwrap()));
    // diffusers lets the model look at the picture that it begins with.
    let mut references: Vec<Arc<Picture>> = image.iter().map(|_| own()).collect();
    for size in at("references").as_array().unwrap() {
        let side = |i: usize| size[i].as_u64().unwrap() as usize;
        references.push(given::picture(side(0), side(1)));
    }
    Request {
        prompt: at("prompt").as_str().unwrap().to_owned(),
        width,
        height,
        steps: whole("steps"),
        seed: at("seed").as_u64().unwrap(),
        // What the pipeline calls guidance_scale is an input of dev.
        cfg_scale: number("cfg_scale").filter(|_| !is_dev),
        guidance: number("cfg_scale").filter(|_| is_dev),
        strength: number("strength"),
        max_sequence_length: whole("max_sequence_length"),
        image,
        mask,
        references,
        batch: whole("batch").unwrap(),
        ..Request::default()
    }
}

fn psnr(golden: &Golden, tensor: &str, generated: &Generated) -> f64 {
    let psnr = metrics::psnr(&golden.u8(tensor), generated.images[0].rgb()).unwrap();
    println!("{tensor}: psnr {psnr:.1} dB");
    psnr
}

#[test]
fn latents_equal_diffusers() {
    for (golden, dir) in [model(), dev()] {
        check_latents(&golden, &mut on(open(dir.path()), "cpu"));
    }
}

fn check_latents(golden: &Golden, pipeline: &mut Pipeline) {
    let mut wrong = Vec::new();
    for (case, described) in golden.at("/cases").as_object().unwrap() {
        let generated = generate(pipeline, &request(golden, case));
        let nmse = metrics::nmse(&golden.f32(&format!("{case}.latents")), &generated.latents).unwrap();
        println!("{case}: nmse {nmse:.2e}");
        if nmse.is_nan() || nmse > if case == "sizes" { MOST_RESIZED } else { MOST } {
            wrong.push(format!("{case}: {nmse:.2e}"));
        }
        if described["decoded"].as_bool().unwrap() {
            assert!(psnr(golden, &format!("{case}.picture"), &generated) >= 60.0);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A decoder with other channels than the encoder, and an epsilon of its own.
#[test]
fn small_decoders_draw_as_in_diffusers() {
    let golden = Golden::load("flux2_klein");
    let dir = tempfile::tempdir().unwrap();
    write_directory(dir.path(), &golden, KLEIN, "vae_small");
    let case = request(&golden, "cut");
    let expected = generate(&mut on(open(dir.path()), "cpu"), &case);
    assert!(psnr(&golden, "small_decoder.picture", &expected) >= 60.0);
    // Its sizes are read off the shapes, except for the epsilon.
    write_vae(&dir.path().join("small_decoder.safetensors"), &golden, "vae_small");
    let small = with(dir.path(), &[(&VAE, "small_decoder.safetensors")]).unwrap();
    assert!(generate(&mut on(small, "cpu"), &case).images[0].rgb() != expected.images[0].rgb());
    let path = dir.path().join("vae/config.json");
    fs::write(&path, fs::read_to_string(&path).unwrap().replace("0.01", "0.0001")).unwrap();
    let (whole, small) = (open(dir.path()), with(dir.path(), &[(&VAE, "small_decoder.safetensors")]).unwrap());
    let [whole, small] = [whole, small].map(|model| generate(&mut on(model, "cpu"), &case).images);
    assert!(whole == small);
}

/// The hidden states that the language model in `source` has of `ids`, where those in `words` are seen.
fn hidden(source: &Source, ids: &[u32], words: Range<usize>, taps: fn(usize) -> Taps) -> Vec<f32> {
    let (part, config) = networks::language_model(source.component(&TEXT_ENCODER).unwrap(), taps).unwrap();
    let (net, ledger) = (&part.net, Ledger::new());
    let mut backend = Backend::new(Device::cpu().unwrap(), THREADS, CancelFlag::new()).unwrap();
    let weights = DeviceWeights::load(&net.model, &part.bound, backend.device(), &ledger).unwrap();
    let dims = Dims::new().with(Symbol::BATCH, 1).with(Symbol::TEXT_TOKENS, ids.len());
    let mut session = Session::new(&net.model, &weights, &dims, &backend, &ledger).unwrap();
    let (cos, sin) = config.rotary(ids.len()).unwrap();
    session.set(net.hidden, &part.bound.gather(net.token_embedding, config.hidden_size, ids).unwrap()).unwrap();
    session.set(net.positions.mask, &mask_of(ids.len(), &words).unwrap()).unwrap();
    if let Some(port) = net.positions.kept {
        let kept: Vec<f32> = (0..ids.len()).map(|token| f32::from(token >= words.start)).collect();
        session.set(port, &kept).unwrap();
    }
    session.set(net.positions.cos, &cos).unwrap();
    session.set(net.positions.sin, &sin).unwrap();
    session.run(&mut backend, Cadence::Request, |_, _| Ok(())).unwrap();
    let states: Vec<Vec<f32>> = net.states.iter().map(|&port| session.get(port).unwrap()).collect();
    let mut hidden = Vec::new();
    for i in 0..ids.len() {
        for state in &states {
            hidden.extend(&state[i * config.hidden_size..][..config.hidden_size]);
        }
    }
    hidden
}

/// Texts are read with the template around them, and filled up.
#[test]
fn prompts_are_read_as_in_transformers() {
    let (golden, dir) = dev();
    let pipeline = on(open(dir.path()), "cpu");
    check_texts(&golden, &pipeline, 120, |_| Taps { after: vec![10, 20, 30], normalised: false });
    let (golden, dir) = model();
    let pipeline = on(open(dir.path()), "cpu");
    check_texts(&golden, &pipeline, 77, |_| Taps { after: vec![9, 18, 27], normalised: false });
    let long = Request { max_sequence_length: Some(77), ..Request::new("star ".repeat(600)) };
    let settings = pipeline.settings(&long).unwrap();
    let encoded = pipeline.model().encoders.tokenize(&long.prompt, &settings).unwrap().remove(0);
    assert_eq!((encoded.ids.len(), encoded.used), (77, 77));
    let cut = encoded.cut.unwrap();
    assert!(cut.ends_with("star ") && !cut.contains("assistant"), "{cut}");
}

fn check_texts(golden: &Golden, pipeline: &Pipeline, tokens: usize, taps: fn(usize) -> Taps) {
    for (i, text) in golden.list("/texts").iter().enumerate() {
        let words = text["text"].as_str().unwrap();
        let request = Request { max_sequence_length: Some(tokens), ..Request::new(words) };
        let settings = pipeline.settings(&request).unwrap();
        let encoded = &pipeline.model().encoders.tokenize(words, &settings).unwrap()[0];
        assert_eq!(encoded.ids, golden.ids(&format!("/texts/{i}/ids")));
        if i == 0 {
            continue;
        }
        let words = match golden.get("/tokenizer") {
            Some(_) => tokens - encoded.used..tokens,
            None => 0..encoded.used,
        };
        let found = hidden(&pipeline.model().source, &encoded.ids, words, taps);
        let nmse = metrics::nmse(&golden.f32(&format!("hidden.{i}")), &found).unwrap();
        println!("text {i}: nmse {nmse:.2e}");
        assert!(nmse <= 1e-10, "text {i}: {nmse:e}");
    }
}

#[test]
fn streamed_equals_resident() {
    check_streaming(&model(), &["f32", "q8_0", "q4_k_s"], &["base_batch", "references_cfg", "inpaint_cfg"]);
    check_streaming(&dev(), &["q8_0"], &["dev_references"]);
}

fn check_streaming((golden, dir): &(Golden, TempDir), file_types: &[&str], cases: &[&str]) {
    for file_type in file_types {
        let path = dir.path().join("bundle.gguf");
        bundle(&open(dir.path()), &path, file_type);
        let model = open(&path);
        assert_eq!(model.family.name, "flux2");
        let mut pipeline = on(model, "cpu:discrete");
        for case in cases {
            let request = Request { steps: Some(2), ..request(golden, case) };
            let mut draw = |offload| {
                pipeline.set_memory(MemoryOptions { vram: None, offload, host: None });
                generate(&mut pipeline, &request)
            };
            let (resident, streamed) = (draw(Offload::None), draw(Offload::Sequential));
            assert!(resident.plan.all_resident && !streamed.plan.all_resident);
            assert!(bits(&resident) == bits(&streamed), "{case} {file_type}: other latents");
            assert!(resident.images == streamed.images, "{case} {file_type}: other pictures");
        }
    }
}

/// The same evaluations are skipped as in diffusers, and the same latents come of it; and what streams skips what stays skips.
#[test]
fn step_caches_skip_what_diffusers_skips() {
    let (_, dir) = model();
    let golden = Golden::load("flux2_cache");
    let mut pipeline = on(open(dir.path()), "cpu");
    let mut wrong = Vec::new();
    for case in golden.at("/cases").as_object().unwrap().keys() {
        let (request, computed) = cached(&golden, case);
        let generated = generate(&mut pipeline, &request);
        let nmse = metrics::nmse(&golden.f32(&format!("{case}.latents")), &generated.latents).unwrap();
        println!("{case}: nmse {nmse:.2e}, {} skipped", pipeline::skipped(&generated.computed));
        if generated.computed != computed || nmse.is_nan() || nmse > MOST {
            wrong.push(format!("{case}: {nmse:.2e}, {:?}", generated.computed));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let path = dir.path().join("bundle.gguf");
    bundle(&open(dir.path()), &path, "q8_0");
    let mut pipeline = on(open(&path), "cpu:discrete");
    for case in ["first_block_cfg", "taylorseer"] {
        let request = cached(&golden, case).0;
        let mut draw = |offload| {
            pipeline.set_memory(MemoryOptions { vram: None, offload, host: None });
            generate(&mut pipeline, &request)
        };
        let (resident, streamed) = (draw(Offload::None), draw(Offload::Sequential));
        assert!(pipeline::skipped(&resident.computed) > 0 && resident.computed == streamed.computed, "{case}");
        assert!(bits(&resident) == bits(&streamed), "{case}");
    }
    let refused = Request { cache: Some("teacache".parse().unwrap()), ..cached(&golden, "taylorseer").0 };
    let error = pipeline::settings(pipeline.model(), &refused).unwrap_err().to_string();
    let defined = "none, or one that is defined for this model: first-block, taylorseer";
    assert_eq!(error, format!("--cache: expected {defined}, found teacache"));
}

/// The request of a case with a cache, and which evaluations it computes in each pass.
fn cached(golden: &Golden, case: &str) -> (Request, Vec<Vec<bool>>) {
    let at = |key: &str| golden.at(&format!("/cases/{case}/{key}"));
    let whole = |key: &str| at(key).as_u64().map(|number| number as usize);
    let cache: CacheRequest = at("cache").as_str().unwrap().parse().unwrap();
    let mut references = Vec::new();
    for size in at("references").as_array().unwrap() {
        let side = |i: usize| size[i].as_u64().unwrap() as usize;
        references.push(given::picture(side(0), side(1)));
    }
    let request = Request {
        prompt: at("prompt").as_str().unwrap().to_owned(),
        width: whole("width"),
        height: whole("height"),
        steps: whole("steps"),
        seed: at("seed").as_u64().unwrap(),
        cfg_scale: at("cfg_scale").as_f64().map(|number| number as f32),
        max_sequence_length: whole("max_sequence_length"),
        references,
        batch: whole("batch").unwrap(),
        cache: Some(CacheRequest { threshold: at("threshold").as_f64().map(|number| number as f32), ..cache }),
        ..Request::default()
    };
    let mut computed = Vec::new();
    for pass in at("computed").as_array().unwrap() {
        computed.push(pass.as_array().unwrap().iter().map(|mark| mark.as_bool().unwrap()).collect());
    }
    (request, computed)
}

/// A picture of a batch is what it is alone, and encoded prompts draw the same.
#[test]
fn pictures_do_not_depend_on_company() {
    let (golden, dir) = model();
    let mut pipeline = on(open(dir.path()), "cpu");
    pipeline.set_remembered_bytes(1 << 20);
    let case = Request { steps: Some(1), ..request(&golden, "references_batch") };
    let both = generate(&mut pipeline, &case);
    assert!(bits(&both) == bits(&pipeline.generate(&case).unwrap()));
    let alone = pipeline.generate(&Request { batch: 1, seed: case.seed + 1, ..case.clone() }).unwrap();
    let nmse = metrics::nmse(&alone.latents, &both.latents[both.latents.len() / 2..]).unwrap();
    assert!(nmse < 1e-10, "{nmse:e}");
    let embedded = pipeline.embed(&case, &mut |_: Event| Ok(())).unwrap();
    let given = Request { embeddings: Some(Arc::new(embedded)), ..case };
    assert!(bits(&both) == bits(&pipeline.generate(&given).unwrap()));
}

#[test]
fn what_does_not_fit_is_refused() {
    let (golden, dir) = model();
    let model = open(dir.path());
    let refused = |request: Request| pipeline::settings(&model, &request).unwrap_err().to_string();
    let looking = |sizes: &[[usize; 2]]| Request {
        references: sizes.iter().map(|&[width, height]| given::picture(width, height)).collect(),
        ..request(&golden, "distilled")
    };
    assert_eq!(refused(looking(&[[64, 64]; 11])), "--reference: expected at most 10, found 11 pictures");
    for size in [[63, 200], [64, 513]] {
        let message = refused(looking(&[[64, 64], size]));
        let expected = "--reference: expected sides of at least 64 pixels, one at most 8 times the other, found ";
        assert_eq!(message, format!("{expected}{}x{}", size[0], size[1]));
    }
    let settings = |request: Request| pipeline::settings(&model, &request).unwrap();
    let whole = Request { reference_resize: ReferenceResize::None, ..looking(&[[1200, 903]]) };
    assert_eq!(
        (settings(looking(&[[1200, 903]])).references, settings(whole).references),
        (vec![[1168, 880]], vec![[1200, 896]])
    );
    let unsaid = settings(Request { width: None, ..looking(&[[70, 90], [64, 64]]) });
    assert_eq!((unsaid.width, unsaid.height), (64, 80));
    let tokens = refused(Request { max_sequence_length: Some(513), ..request(&golden, "distilled") });
    assert_eq!(tokens, "--max-sequence-length: expected 1 to 512, found 513");
    let side = refused(Request { width: Some(1032), ..request(&golden, "distilled") });
    assert!(side.contains("a multiple of 16"), "{side}");
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let (golden, dir) = model();
    let short = said(dir.path(), "text_encoder", &|config| config["num_hidden_layers"] = 26.into()).to_string();
    assert!(short.contains("num_hidden_layers: expected at least 27 layers"), "{short}");
    // An encoder of another width, and one of another family.
    let other = Golden::load("z_image");
    support::write_component(&dir.path().join("other"), &other, "text_encoder", &support::Layout::default());
    let wide = with(dir.path(), &[(&TEXT_ENCODER, "other")]).err().unwrap().to_string();
    assert!(wide.contains("expected at least 27 layers"), "{wide}");
    let config = |config: &mut serde_json::Value| config["joint_attention_dim"] = 7680.into();
    let narrow = said(dir.path(), "transformer", &config).to_string();
    assert!(narrow.contains("context_embedder"), "{narrow}");
    let dev = said(dir.path(), "transformer", &|config| config["guidance_embeds"] = true.into()).to_string();
    assert!(dev.contains("expected 47 tensors, found 45 of them"), "{dev}");
    // The autoencoder of another model, and its own without statistics.
    support::write_component(&dir.path().join("kl"), &Golden::load("dev"), "vae", &support::Layout::default());
    let plain = with(dir.path(), &[(&VAE, "kl")]).err().unwrap().to_string();
    assert!(plain.contains("channels of a patch of the autoencoder's latents: expected 128"), "{plain}");
    // A transformer in the place of the text encoder.
    let swapped = with(dir.path(), &[(&TEXT_ENCODER, "transformer")]).err().unwrap().to_string();
    assert!(swapped.contains("FLUX.2 transformer") && swapped.contains("no language model"), "{swapped}");
    // Files of this model in another's places.
    write_original(&dir.path().join("flux2.safetensors"), &golden, "");
    let flux = tempfile::tempdir().unwrap();
    support::write_model(flux.path(), &Golden::load("schnell"), &support::Layout::default());
    let parts = vec![(&TRANSFORMER, dir.path().join("flux2.safetensors"))];
    let source = Source::assemble(Some(Source::open(flux.path()).unwrap()), &Files { parts, tokenizers: Vec::new() });
    let other = pipeline::open(&source.unwrap()).err().unwrap().to_string();
    assert!(other.contains("FLUX.2 transformer"), "{other}");
}

/// A change of one matrix of rank 3: its name in the original, that in diffusers, inputs, outputs.
const CHANGED: [(&str, &[&str], usize, usize); 8] = [
    ("double_blocks.0.img_attn.qkv", &["attn.to_q", "attn.to_k", "attn.to_v"], 256, 768),
    ("double_blocks.1.txt_attn.qkv", &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"], 256, 768),
    ("double_blocks.0.txt_mlp.0", &["ff_context.linear_in"], 256, 1536),
    ("single_blocks.1.linear1", &["attn.to_qkv_mlp_proj"], 256, 2304),
    ("single_blocks.2.linear2", &["attn.to_out"], 1024, 256),
    ("single_stream_modulation.lin", &["single_stream_modulation.linear"], 256, 768),
    ("final_layer.adaLN_modulation.1", &["norm_out.linear"], 256, 512),
    ("img_in", &["x_embedder"], 128, 256),
];

/// Both matrices of change number `i`.
fn change(i: usize) -> (Vec<f32>, Vec<f32>) {
    let (_, _, inputs, outputs) = CHANGED[i];
    (numbers(2 * i, RANK * inputs, 0.1), numbers(2 * i + 1, RANK * outputs, 0.1))
}

/// The changes by their original names.
fn in_original() -> Vec<Module> {
    CHANGED
        .iter()
        .enumerate()
        .map(|(i, &(name, _, inputs, outputs))| {
            let (down, up) = change(i);
            Module { name: name.to_owned(), down, up, inputs, outputs }
        })
        .collect()
}

/// The same by diffusers' names: queries, keys and values apart, and scale before shift.
fn in_diffusers() -> Vec<Module> {
    let mut modules = Vec::new();
    for (i, &(name, theirs, inputs, outputs)) in CHANGED.iter().enumerate() {
        let (down, mut up) = change(i);
        if name.starts_with("final_layer") {
            let half = up.len() / 2;
            up.rotate_left(half);
        }
        let block =
            name.replace("double_blocks", "transformer_blocks").replace("single_blocks", "single_transformer_blocks");
        let block: Vec<&str> = block.split('.').take(2).collect();
        let block = if name.contains("_blocks.") { format!("{}.", block.join(".")) } else { String::new() };
        let rows = outputs / theirs.len();
        for (part, up) in theirs.iter().zip(up.chunks(RANK * rows)) {
            let (name, down, up) = (format!("{block}{part}"), down.clone(), up.to_vec());
            modules.push(Module { name, down, up, inputs, outputs: rows });
        }
    }
    modules
}

#[test]
fn loras_in_every_spelling_draw_what_merged_weights_draw() {
    let (golden, dir) = model();
    let case = Request { steps: Some(2), ..request(&golden, "references_batch") };
    let strength = 0.75f32;
    let mut merged = support::flux2::original(&golden, "");
    merge(&mut merged, &in_original(), strength);
    support::sd1::write_tensors(&dir.path().join("merged.safetensors"), &merged);
    let expected = generate(&mut on(with(dir.path(), &[(&TRANSFORMER, "merged.safetensors")]).unwrap(), "cpu"), &case);
    let plain = generate(&mut on(open(dir.path()), "cpu"), &case);
    assert!(metrics::nmse(&plain.latents, &expected.latents).unwrap() > 1e-3);
    let files = [
        write_lora(dir.path(), "diffusers", "transformer.", in_diffusers(), A_B),
        write_lora(dir.path(), "peft", "base_model.model.", in_diffusers(), A_B),
        write_lora(dir.path(), "comfy", "diffusion_model.", in_original(), A_B),
        write_lora(dir.path(), "toolkit", "diffusion_model.", in_original(), DOWN_UP),
        write_lora(dir.path(), "bare", "", in_original(), A_B),
        write_lora(dir.path(), "kohya", "lora_unet_", flat(in_original()), DOWN_UP),
        write_lora(dir.path(), "onetrainer", "lora_transformer_", flat(in_diffusers()), DOWN_UP),
    ];
    for file in files {
        let additions = Additions { loras: vec![(file.clone(), strength)], ..Additions::default() };
        let model = pipeline::open_with(&Source::open(dir.path()).unwrap(), &additions).unwrap();
        assert_eq!(model.loras[0].warning(), None, "{}", file.display());
        let generated = generate(&mut on(model, "cpu"), &case);
        let nmse = metrics::nmse(&expected.latents, &generated.latents).unwrap();
        println!("{}: nmse {nmse:.2e}", file.display());
        assert!(nmse <= 1e-9, "{}: {nmse:e}", file.display());
    }
}

/// The published sizes at a megapixel, encoding and decoding included, with and without a picture to look at.
#[test]
fn klein_fits_a_small_card() {
    let dir = tempfile::tempdir().unwrap();
    for (architecture, file_type, most) in [
        (Architecture::FLUX2_KLEIN_4B, "q4_k_s", 1 << 30),
        (Architecture::FLUX2_KLEIN_4B, "q8_0", 1 << 30),
        (Architecture::FLUX2_KLEIN_9B, "q4_k_s", 2 << 30),
        (Architecture::FLUX2_KLEIN_9B, "q8_0", 2 << 30),
    ] {
        let name = format!("{} {file_type}", architecture.name());
        let path = dir.path().join(&name);
        let file_type = file_type.parse().unwrap();
        let options = synthetic::Options { architecture, file_type, blocks: None, hollow: true, only: None };
        synthetic::write(&path, &options, |_| Ok(())).unwrap();
        let pipeline = on(open(&path), "cpu:discrete");
        for references in [Vec::new(), vec![given::picture(1024, 1024)]] {
            let looks = if references.is_empty() { "" } else { ", with a reference" };
            let request = Request { width: Some(1024), height: Some(1024), references, ..Request::default() };
            let components = pipeline.measure(&pipeline.settings(&request).unwrap()).unwrap();
            let limits = Limits { bytes: Some(1), ..Limits::default() };
            let refusal = budget::plan(&components, Offload::Auto, &limits).unwrap_err();
            println!("{name}{looks}: least {}, for the {}", Size(refusal.least as u64), refusal.component);
            assert!(refusal.least <= most, "{name}{looks}: {}", refusal.least);
        }
    }
}

/// The language model of the other klein is refused, with the name of the one that is needed.
#[test]
fn the_other_kleins_encoder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let sizes = [Architecture::FLUX2_KLEIN_4B, Architecture::FLUX2_KLEIN_9B];
    let paths = sizes.map(|architecture| {
        let path = dir.path().join(architecture.name());
        let file_type = "q4_k_s".parse().unwrap();
        let options = synthetic::Options { architecture, file_type, blocks: None, hollow: true, only: None };
        synthetic::write(&path, &options, |_| Ok(())).unwrap();
        path
    });
    for (own, other, needed) in [(0, 1, "Qwen3-4B"), (1, 0, "Qwen3-8B")] {
        let parts = vec![(&TEXT_ENCODER, paths[other].clone())];
        let base = Source::open(&paths[own]).unwrap();
        let source = Source::assemble(Some(base), &Files { parts, tokenizers: Vec::new() }).unwrap();
        let error = pipeline::open(&source).err().unwrap();
        let (hint, message) = (error.hint().unwrap(), error.to_string());
        assert!(hint.contains(needed) && hint.contains("--text-encoder"), "{hint}");
        assert!(message.contains("the width of the three layers of the language model"), "{message}");
    }
}
