//! FLUX.3 against diffusers' modular blocks in float32, and its language model against transformers; recorded by
//! `tests/reference/flux3.py`.

use std::sync::Arc;

use crate::support::drawing::{THREADS, bits, bundle, generate, on, open, said, with};
use crate::support::flux3::{original, write_directory, write_gguf, write_original};
use crate::support::lora::{A_B, DOWN_UP, Module, RANK, flat, merge, numbers, write_lora};
use crate::support::{self, Golden, given};
use pinhole::exec::{DeviceWeights, Session};
use pinhole::ggml::{Backend, CancelFlag, Device, Ledger};
use pinhole::image::Picture;
use pinhole::models::language_model::{Taps, mask_of};
use pinhole::pipeline::{self, Additions, Event, MemoryOptions, ReferenceResize, Request};
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

/// The golden, and the model as a directory: distilled and base.
fn models() -> (Golden, [TempDir; 2]) {
    let golden = Golden::load("flux3");
    let dirs = ["transformer", "transformer_base"].map(|transformer| {
        let dir = tempfile::tempdir().unwrap();
        write_directory(dir.path(), &golden, transformer);
        dir
    });
    (golden, dirs)
}

fn is_base(golden: &Golden, case: &str) -> bool {
    golden.at(&format!("/cases/{case}/base")).as_bool().unwrap()
}

/// The request of a case.
fn request(golden: &Golden, case: &str) -> Request {
    let at = |key: &str| golden.at(&format!("/cases/{case}/{key}"));
    let whole = |key: &str| at(key).as_u64().map(|number| number as usize);
    let mut references: Vec<Arc<Picture>> = Vec::new();
    for size in at("references").as_array().unwrap() {
        let side = |i: usize| size[i].as_u64().unwrap() as usize;
        references.push(given::picture(side(0), side(1)));
    }
    Request {
        prompt: at("prompt").as_str().unwrap().to_owned(),
        negative_prompt: at("negative_prompt").as_str().map(str::to_owned),
        width: whole("width"),
        height: whole("height"),
        steps: whole("steps"),
        seed: at("seed").as_u64().unwrap(),
        cfg_scale: at("cfg_scale").as_f64().map(|number| number as f32),
        max_sequence_length: whole("max_sequence_length"),
        references,
        batch: whole("batch").unwrap(),
        ..Request::default()
    }
}

#[test]
fn latents_equal_diffusers() {
    let (golden, dirs) = models();
    let mut pipelines = dirs.each_ref().map(|dir| on(open(dir.path()), "cpu"));
    let mut wrong = Vec::new();
    for (case, described) in golden.at("/cases").as_object().unwrap() {
        let pipeline = &mut pipelines[usize::from(is_base(&golden, case))];
        let generated = generate(pipeline, &request(&golden, case));
        let nmse = metrics::nmse(&golden.f32(&format!("{case}.latents")), &generated.latents).unwrap();
        println!("{case}: nmse {nmse:.2e}");
        if nmse.is_nan() || nmse > MOST {
            wrong.push(format!("{case}: {nmse:.2e}"));
        }
        if described["decoded"].as_bool().unwrap() {
            let psnr = metrics::psnr(&golden.u8(&format!("{case}.picture")), generated.images[0].rgb()).unwrap();
            println!("{case}: psnr {psnr:.1} dB");
            assert!(psnr >= 60.0);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The layers whose hidden states the transformer is given.
fn taps(_: usize) -> Taps {
    Taps { after: vec![4, 8, 12, 16, 20, 24, 28, 32], normalised: false }
}

/// The hidden states that the language model in `source` has of `ids`: those behind the first `used` fill up, all at position 1.
fn hidden(source: &Source, ids: &[u32], used: usize) -> Vec<f32> {
    let component = source.component(&TEXT_ENCODER).unwrap();
    let (part, config) = networks::language_model(component, taps).unwrap();
    let (net, ledger) = (&part.net, Ledger::new());
    let mut backend = Backend::new(Device::cpu().unwrap(), THREADS, CancelFlag::new()).unwrap();
    let weights = DeviceWeights::load(&net.model, &part.bound, backend.device(), &ledger).unwrap();
    let dims = Dims::new().with(Symbol::BATCH, 1).with(Symbol::TEXT_TOKENS, ids.len());
    let mut session = Session::new(&net.model, &weights, &dims, &backend, &ledger).unwrap();
    let positions: Vec<[usize; 3]> = (0..ids.len()).map(|at| [if at < used { at } else { 1 }; 3]).collect();
    let (cos, sin) = config.rotary_at(&positions).unwrap();
    session.set(net.hidden, &part.bound.gather(net.token_embedding, config.hidden_size, ids).unwrap()).unwrap();
    session.set(net.positions.mask, &mask_of(ids.len(), &(0..used)).unwrap()).unwrap();
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

/// Texts are read with the template around them, and filled up to multiples of 80 tokens, which the denoiser sees.
#[test]
fn prompts_are_read_as_in_transformers() {
    let (golden, [dir, _]) = models();
    let pipeline = on(open(dir.path()), "cpu");
    for (i, text) in golden.list("/texts").iter().enumerate() {
        let request = Request::new(text["text"].as_str().unwrap());
        let settings = pipeline.settings(&request).unwrap();
        let encoded = &pipeline.model().encoders.tokenize(&request.prompt, &settings).unwrap()[0];
        let ids = golden.ids(&format!("/texts/{i}/ids"));
        assert_eq!((encoded.used, &encoded.ids[..encoded.used]), (ids.len(), &ids[..]));
        assert_eq!(encoded.ids.len(), ids.len().next_multiple_of(80));
        assert_eq!(settings.text_tokens, [encoded.ids.len()]);
        let found = hidden(&pipeline.model().source, &encoded.ids, encoded.used);
        let nmse = metrics::nmse(&golden.f32(&format!("hidden.{i}")), &found).unwrap();
        println!("text {i}: nmse {nmse:.2e}");
        assert!(nmse <= 1e-10, "text {i}: {nmse:e}");
    }
    let long = Request { max_sequence_length: Some(90), ..Request::new("star ".repeat(600)) };
    let settings = pipeline.settings(&long).unwrap();
    let encoded = pipeline.model().encoders.tokenize(&long.prompt, &settings).unwrap().remove(0);
    assert_eq!((encoded.ids.len(), encoded.used), (90, 90));
    let cut = encoded.cut.unwrap();
    assert!(cut.ends_with("star ") && !cut.contains("assistant"), "{cut}");
}

#[test]
fn files_of_other_tools_draw_the_same() {
    let (golden, [dir, _]) = models();
    let case = Request { steps: Some(1), ..request(&golden, "references") };
    let expected = generate(&mut on(open(dir.path()), "cpu"), &case);
    write_original(&dir.path().join("flux3.safetensors"), &golden, "transformer", "model.diffusion_model.");
    write_gguf(&dir.path().join("flux3.gguf"), &golden, "transformer", "flux");
    for name in ["flux3.safetensors", "flux3.gguf"] {
        let model = with(dir.path(), &[(&TRANSFORMER, name)]).unwrap();
        assert_eq!((model.family.name, model.rules.defaults.steps), ("flux3", 16));
        let drawn = generate(&mut on(model, "cpu"), &case);
        assert!(bits(&expected) == bits(&drawn) && expected.images == drawn.images, "{name}");
    }
    write_original(&dir.path().join("base.safetensors"), &golden, "transformer_base", "");
    let base = with(dir.path(), &[(&TRANSFORMER, "base.safetensors")]).unwrap();
    assert_eq!((base.rules.defaults.steps, base.rules.defaults.cfg_scale), (50, 4.0));
}

#[test]
fn streamed_equals_resident() {
    let (golden, dirs) = models();
    let cases = ["references", "references_base"].map(|case| Request { batch: 2, ..request(&golden, case) });
    for file_type in ["q8_0", "q4_k_s"] {
        for (dir, request) in dirs.iter().zip(&cases) {
            let path = dir.path().join("bundle.gguf");
            bundle(&open(dir.path()), &path, file_type);
            let model = open(&path);
            assert_eq!(model.family.name, "flux3");
            let mut pipeline = on(model, "cpu:discrete");
            let mut draw = |offload| {
                pipeline.set_memory(MemoryOptions { vram: None, offload, host: None });
                generate(&mut pipeline, request)
            };
            let (resident, streamed) = (draw(Offload::None), draw(Offload::Sequential));
            assert!(resident.plan.all_resident && !streamed.plan.all_resident);
            assert!(bits(&resident) == bits(&streamed), "{file_type}: other latents");
            assert!(resident.images == streamed.images, "{file_type}: other pictures");
        }
    }
}

/// A picture of a batch is what it is alone, and encoded prompts draw the same.
#[test]
fn pictures_do_not_depend_on_company() {
    let (golden, [_, dir]) = models();
    let mut pipeline = on(open(dir.path()), "cpu");
    pipeline.set_remembered_bytes(1 << 20);
    let case = Request { steps: Some(1), ..request(&golden, "references_base") };
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
    let (golden, [dir, _]) = models();
    let model = open(dir.path());
    let refused = |request: Request| pipeline::settings(&model, &request).unwrap_err().to_string();
    let looking = |sizes: &[[usize; 2]]| Request {
        references: sizes.iter().map(|&[width, height]| given::picture(width, height)).collect(),
        ..request(&golden, "distilled")
    };
    assert_eq!(refused(looking(&[[64, 64]; 11])), "--reference: expected at most 10, found 11 pictures");
    let unsaid = |request: Request| Request { width: None, height: None, ..request };
    let settings = pipeline::settings(&model, &unsaid(looking(&[[151, 84]]))).unwrap();
    assert_eq!((settings.references[0], settings.last_size()), ([160, 96], [151, 84]));
    let several = pipeline::settings(&model, &unsaid(looking(&[[151, 84], [20, 40]]))).unwrap();
    assert_eq!((several.references, several.kept), (vec![[144, 80], [16, 32]], None));
    let large = Request { reference_resize: ReferenceResize::None, ..looking(&[[4097, 20]]) };
    let expected = "--reference: expected sides of at most 4096 pixels, if it is not resized, found 4097x20";
    assert_eq!(refused(large), expected);
    let tokens = refused(Request { max_sequence_length: Some(8193), ..request(&golden, "distilled") });
    assert_eq!(tokens, "--max-sequence-length: expected 1 to 8192, found 8193");
    let side = refused(Request { width: Some(1032), ..request(&golden, "distilled") });
    assert!(side.contains("a multiple of 16"), "{side}");
    let guidance = Additions { clip_skip: Some(1), ..Additions::default() };
    let skipped = pipeline::open_with(&Source::open(dir.path()).unwrap(), &guidance).err().unwrap().to_string();
    assert!(skipped.starts_with("--clip-skip: "), "{skipped}");
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let (golden, [dir, base]) = models();
    let short = said(dir.path(), "text_encoder", &|config| config["num_hidden_layers"] = 31.into()).to_string();
    assert!(short.contains("num_hidden_layers: expected at least 32 layers"), "{short}");
    let plain = said(dir.path(), "text_encoder", &|config| config["model_type"] = "qwen3".into());
    assert!(plain.to_string().contains("model_type: expected qwen3_vl_text, found qwen3"), "{plain}");
    assert!(plain.hint().unwrap().contains("--text-encoder"));
    // Both kinds by the configuration of the other.
    let told = said(base.path(), "transformer", &|config| config["flow_map"] = true.into());
    assert!(told.to_string().contains("expected 71 tensors, found 69 of them"), "{told}");
    assert!(told.hint().unwrap().contains("target_timestep_embedder"), "{:?}", told.hint());
    let narrow = said(dir.path(), "transformer", &|config| config["joint_attention_dim"] = 20480.into()).to_string();
    assert!(narrow.contains("context_embedder"), "{narrow}");
    // The autoencoder of another model.
    support::write_component(&dir.path().join("kl"), &Golden::load("dev"), "vae", &support::Layout::default());
    let plain = with(dir.path(), &[(&VAE, "kl")]).err().unwrap().to_string();
    assert!(plain.contains("channels of a patch of the autoencoder's latents: expected 128"), "{plain}");
    // A transformer in the place of the text encoder, and in another model.
    let swapped = with(dir.path(), &[(&TEXT_ENCODER, "transformer")]).err().unwrap().to_string();
    assert!(swapped.contains("FLUX.3 transformer") && swapped.contains("no language model"), "{swapped}");
    write_original(&dir.path().join("flux3.safetensors"), &golden, "transformer", "");
    let flux = tempfile::tempdir().unwrap();
    support::write_model(flux.path(), &Golden::load("schnell"), &support::Layout::default());
    let parts = vec![(&TRANSFORMER, dir.path().join("flux3.safetensors"))];
    let source = Source::assemble(Some(Source::open(flux.path()).unwrap()), &Files { parts, tokenizers: Vec::new() });
    let other = source.and_then(|source| pipeline::open(&source)).err().unwrap().to_string();
    assert!(other.contains("FLUX.3 transformer"), "{other}");
}

/// A change of one matrix of rank 3: its name in the original, that in diffusers, inputs, outputs.
const CHANGED: [(&str, &str, usize, usize); 7] = [
    ("content_mode_blocks.image.0.q_proj", "mode_blocks.image.0.attn.to_q", 256, 256),
    ("content_mode_blocks.image_cond.1.mlp_in", "mode_blocks.image_cond.1.ff.linear_in", 256, 1280),
    ("txt_mode_blocks.0.attn_out", "txt_mode_blocks.0.attn.to_out.0", 256, 256),
    ("single_blocks.1.v_proj", "single_transformer_blocks.1.attn.to_v", 256, 256),
    ("single_blocks.0.mlp_out", "single_transformer_blocks.0.ff.linear_out", 640, 256),
    ("single_stream_modulations.txt.lin", "single_stream_modulations.txt.linear", 256, 768),
    ("emb_in.image", "x_embedders.image", 128, 256),
];

/// The changes, by their original names or by diffusers'.
fn changes(original: bool) -> Vec<Module> {
    CHANGED
        .iter()
        .enumerate()
        .map(|(i, &(ours, theirs, inputs, outputs))| Module {
            name: if original { ours } else { theirs }.to_owned(),
            down: numbers(2 * i, RANK * inputs, 0.1),
            up: numbers(2 * i + 1, RANK * outputs, 0.1),
            inputs,
            outputs,
        })
        .collect()
}

#[test]
fn loras_in_every_spelling_draw_what_merged_weights_draw() {
    let (golden, [dir, _]) = models();
    let case = request(&golden, "references");
    let strength = 0.75f32;
    let mut merged = original(&golden, "transformer", "");
    merge(&mut merged, &changes(true), strength);
    support::sd1::write_tensors(&dir.path().join("merged.safetensors"), &merged);
    let expected = generate(&mut on(with(dir.path(), &[(&TRANSFORMER, "merged.safetensors")]).unwrap(), "cpu"), &case);
    let plain = generate(&mut on(open(dir.path()), "cpu"), &case);
    assert!(metrics::nmse(&plain.latents, &expected.latents).unwrap() > 1e-3);
    let files = [
        write_lora(dir.path(), "diffusers", "transformer.", changes(false), A_B),
        write_lora(dir.path(), "comfy", "diffusion_model.", changes(true), A_B),
        write_lora(dir.path(), "bare", "", changes(true), DOWN_UP),
        write_lora(dir.path(), "kohya", "lora_unet_", flat(changes(true)), DOWN_UP),
        write_lora(dir.path(), "onetrainer", "lora_transformer_", flat(changes(false)), DOWN_UP),
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
    for architecture in [Architecture::FLUX3_KLEIN, Architecture::FLUX3_KLEIN_BASE] {
        for file_type in ["q4_k_s", "q8_0"] {
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
                assert!(refusal.least <= 1 << 30, "{name}{looks}: {}", refusal.least);
            }
        }
    }
}
