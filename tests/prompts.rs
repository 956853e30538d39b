//! Prompts of Stable Diffusion with taught words and with weights against diffusers and transformers in float32. The expected latents were
//! recorded by `tests/reference/prompts.py`.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pinhole::convert::{self, WriteOptions};
use pinhole::ggml::{CancelFlag, Device};
use pinhole::image::parameters_text;
use pinhole::pipeline::{
    self, Additions, Event, Generated, MemoryOptions, Opened, Phase, Pipeline, PromptSyntax, Request,
};
use pinhole::plan::Offload;
use pinhole::sample::Sampler;
use pinhole::source::Source;
use pinhole_quant::metrics;
use pinhole_quant::recipe::FileType;
use support::{Golden, golden, sd1};
use tempfile::TempDir;

/// Two threads, as many as the smallest machine that runs the tests has.
const THREADS: usize = 2;

/// The models, and how far their latents may be: on the processor that they were recorded beside, they are up to 1e-10 away.
const MODELS: [(&str, f64); 2] = [("sd1_prompts", 1e-9), ("sdxl_prompts", 1e-9)];

fn directory(golden: &Golden) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    sd1::write_directory(dir.path(), golden, golden.at("/scheduler"));
    dir
}

fn embedding(name: &str) -> PathBuf {
    golden::directory().join("embeddings").join(name)
}

/// The files that a golden's model was taught, each with its word.
fn taught(golden: &Golden) -> Additions {
    let names = golden.list("/taught").iter().map(|name| name.as_str().unwrap());
    // What names its word needs none.
    Additions { embeddings: names.map(|name| (embedding(name), None)).collect(), ..Additions::default() }
}

fn request(golden: &Golden, case: &str) -> Request {
    let at = |key: &str| golden.at(&format!("/cases/{case}/{key}"));
    let whole = |key: &str| at(key).as_u64().map(|number| number as usize);
    Request {
        prompt: at("prompt").as_str().unwrap().to_owned(),
        negative_prompt: at("negative_prompt").as_str().map(str::to_owned),
        width: whole("width"),
        height: whole("height"),
        steps: whole("steps"),
        seed: at("seed").as_u64().unwrap(),
        cfg_scale: at("cfg_scale").as_f64().map(|scale| scale as f32),
        sampler: golden.name.starts_with("sd1").then_some(Sampler::Ddim),
        prompt_syntax: if at("pieces").is_null() { PromptSyntax::Plain } else { PromptSyntax::A1111 },
        batch: whole("batch").unwrap(),
        ..Request::default()
    }
}

fn on(model: Opened, device: &str) -> Pipeline {
    let device = Device::by_name(device).unwrap();
    let mut pipeline = Pipeline::with_threads(model, device, THREADS, CancelFlag::new()).unwrap();
    pipeline.set_remembered_bytes(0);
    pipeline
}

fn generate(pipeline: &mut Pipeline, request: &Request) -> Generated {
    let generated = pipeline.generate_watched(request, &mut |_: Event| Ok(())).unwrap();
    for phase in &generated.phases {
        assert_eq!(phase.measured.peak, phase.planned, "{:?}: {:?}", phase.phase, phase.measured);
    }
    assert_eq!(generated.memory.peak, generated.plan.peak());
    generated
}

fn bits(generated: &Generated) -> Vec<u32> {
    generated.latents.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn latents_equal_diffusers() {
    let mut wrong = Vec::new();
    for (name, most) in MODELS {
        let golden = Golden::load(name);
        let dir = directory(&golden);
        let source = Source::open(dir.path()).unwrap();
        for (case, described) in golden.at("/cases").as_object().unwrap() {
            let clip_skip = described["clip_skip"].as_u64().map(|skipped| skipped as usize);
            let model = pipeline::open_with(&source, &Additions { clip_skip, ..taught(&golden) }).unwrap();
            let generated = generate(&mut on(model, "cpu"), &request(&golden, case));
            let nmse = metrics::nmse(&golden.f32(&format!("{case}.latents")), &generated.latents).unwrap();
            println!("{name} {case}: nmse {nmse:.2e} (at most {most:.0e})");
            if nmse > most {
                wrong.push(format!("{name} {case}: {nmse:.2e}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// In files of quantized text encoders, too, and in a plan to the byte.
#[test]
fn streamed_equals_resident() {
    for (name, _) in MODELS {
        let golden = Golden::load(name);
        let dir = directory(&golden);
        let model = pipeline::open(&Source::open(dir.path()).unwrap()).unwrap();
        for file_type in ["f32", "q8_0", "q4_k_s"] {
            let path = dir.path().join(format!("{file_type}.gguf"));
            let file_type: FileType = file_type.parse().unwrap();
            let plan = convert::plan(&model.source, &model.networks(), file_type).unwrap();
            plan.write(&path, WriteOptions::default(), &mut |_| Ok(())).unwrap();
            let model = pipeline::open_with(&Source::open(&path).unwrap(), &taught(&golden)).unwrap();
            let mut pipeline = on(model, "cpu:discrete");
            let request = Request { steps: Some(1), ..request(&golden, "taught") };
            let mut draw = |offload| {
                pipeline.set_memory(MemoryOptions { vram: None, offload, host: None });
                generate(&mut pipeline, &request)
            };
            let (resident, streamed) = (draw(Offload::None), draw(Offload::Sequential));
            assert!(resident.plan.all_resident && !streamed.plan.all_resident);
            assert!(bits(&resident) == bits(&streamed) && resident.images == streamed.images, "{file_type}");
        }
    }
}

/// What is kept of a prompt is kept for its words and weights alone.
#[test]
fn caches_know_words_and_weights() {
    let golden = Golden::load("sd1_prompts");
    let (dir, cache) = (directory(&golden), tempfile::tempdir().unwrap());
    let source = Source::open(dir.path()).unwrap();
    let draw = |file: &str, request: &Request| {
        let embeddings = vec![(embedding(file), Some("word".to_owned()))];
        let model = pipeline::open_with(&source, &Additions { embeddings, ..Additions::default() }).unwrap();
        let mut pipeline = on(model, "cpu");
        pipeline.set_prompt_cache(Some(&cache.path().join("kept"))).unwrap();
        generate(&mut pipeline, request)
    };
    let encoded = |generated: &Generated| generated.phases.iter().any(|phase| phase.phase == Phase::Encode);
    let plain = Request { prompt: "a Word".into(), steps: Some(1), ..request(&golden, "word") };
    let (toy, hands) = (draw("toy.bin", &plain), draw("bad-hands.pt", &plain));
    assert!(encoded(&toy) && encoded(&hands) && bits(&toy) != bits(&hands));
    let again = draw("toy.bin", &plain);
    assert!(!encoded(&again) && bits(&again) == bits(&toy));
    let weighted = |prompt: &str| {
        let request = Request { prompt: prompt.into(), prompt_syntax: PromptSyntax::A1111, ..plain.clone() };
        draw("toy.bin", &request)
    };
    let (light, heavy) = (weighted("a (word:0.5)"), weighted("a (word:1.5)"));
    assert!(encoded(&heavy) && bits(&light) != bits(&heavy) && bits(&heavy) != bits(&toy));
    // Without weights, a short prompt is the same in both.
    assert_eq!(bits(&weighted("a word")), bits(&toy));

    // A pipeline that remembers prompts keeps the two syntaxes apart; so do prompts that were encoded before.
    let model = pipeline::open(&source).unwrap();
    let mut pipeline = Pipeline::with_threads(model, Device::cpu().unwrap(), THREADS, CancelFlag::new()).unwrap();
    let brackets = Request { prompt: "a (star:1.5)".into(), ..plain.clone() };
    let long = Request { prompt: "a (star:1.5) ".repeat(40), prompt_syntax: PromptSyntax::A1111, ..brackets.clone() };
    let weighted = Request { prompt_syntax: PromptSyntax::A1111, ..brackets.clone() };
    let [first, second, third] =
        [&brackets, &weighted, &brackets].map(|request| bits(&generate(&mut pipeline, request)));
    assert!(first != second && first == third);
    let made = Arc::new(pipeline.embed(&long, &mut |_: Event| Ok(())).unwrap());
    let (drawn, embedded) = (generate(&mut pipeline, &long), Request { embeddings: Some(made), ..long });
    assert!(drawn.settings.text_tokens[0] > 77 && drawn.settings.text_tokens[0] == drawn.settings.text_tokens[1]);
    assert_eq!(bits(&generate(&mut pipeline, &embedded)), bits(&drawn));
}

#[test]
fn words_are_found_in_a_folder() {
    let golden = Golden::load("sd1_prompts");
    let (dir, folder) = (directory(&golden), tempfile::tempdir().unwrap());
    let source = Source::open(dir.path()).unwrap();
    fs::copy(embedding("bad-hands.pt"), folder.path().join("Bad Hands-5.PT")).unwrap();
    fs::copy(embedding("style.safetensors"), folder.path().join("style.safetensors")).unwrap();
    fs::write(folder.path().join("notes.txt"), "none").unwrap();
    let from_folder = Additions { embeddings_folder: Some(folder.path().to_owned()), ..Additions::default() };
    let mut pipeline = on(pipeline::open_with(&source, &from_folder).unwrap(), "cpu");
    let found = Request {
        prompt: "a star, bad hands-5".into(),
        negative_prompt: Some("a fox".into()),
        steps: Some(1),
        ..request(&golden, "word")
    };
    let generated = generate(&mut pipeline, &found);
    assert_eq!(generated.settings.taught, ["Bad Hands-5"]);
    let text = generated.settings.named(5, None);
    let pairs: Vec<(&str, &str)> = text.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert!(parameters_text("", None, &pairs).contains("TI: Bad Hands-5"));
    let given = Request { prompt: "a star, bad-hands".into(), ..found.clone() };
    let mut told = on(pipeline::open_with(&source, &taught(&golden)).unwrap(), "cpu");
    assert_eq!(bits(&generate(&mut told, &given)), bits(&generated));

    // Files of other models may lie there, as long as no prompt has their word.
    let error = pipeline.settings(&Request { negative_prompt: Some("Style".into()), ..found }).unwrap_err();
    let path = folder.path().join("style.safetensors");
    let expected = "embedding: expected vectors for one text encoder, found `clip_g`, `clip_l`";
    assert_eq!(error.to_string(), format!("{}: {expected}", path.display()));
}

/// Writes tensors of these extents.
fn write(path: &Path, tensors: &[(&str, Vec<usize>)]) {
    let mut all = Vec::new();
    for (name, shape) in tensors {
        let values = vec![0.5; shape.iter().product()];
        all.push(sd1::Tensor { name: (*name).to_owned(), shape: shape.clone(), values });
    }
    sd1::write_tensors(path, &all);
}

fn refused(source: &Source, path: &Path) -> String {
    let embeddings = vec![(path.to_owned(), Some("word".to_owned()))];
    let error = pipeline::open_with(source, &Additions { embeddings, ..Additions::default() }).err().unwrap();
    error.to_string().replace(&path.display().to_string(), "FILE")
}

#[test]
fn what_is_no_embedding_of_the_model_is_refused() {
    let [one, xl] = ["sd1_prompts", "sdxl_prompts"].map(Golden::load);
    let [one, xl] = [&one, &xl].map(directory);
    let [one, xl] = [&one, &xl].map(|dir| Source::open(dir.path()).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let wide = dir.path().join("wide.safetensors");
    write(&wide, &[("emb_params", vec![2, 96])]);
    assert_eq!(
        refused(&one, &wide),
        "FILE: tensor `emb_params`: expected 1 to 512 vectors of 128 numbers, as the text encoder reads, found [96, 2]"
    );
    assert_eq!(
        refused(&xl, &embedding("easy.safetensors")),
        "FILE: tensor `clip_l`: expected vectors for the first text encoder, as files for Stable Diffusion XL have, found `emb_params`"
    );
    let both = dir.path().join("both.safetensors");
    write(&both, &[("clip_l", vec![2, 128]), ("clip_g", vec![3, 192])]);
    assert_eq!(refused(&xl, &both), "FILE: tensor `clip_g`: expected 2 vectors, as clip_l, found 3");
    let many = dir.path().join("many.safetensors");
    write(&many, &[("a", vec![128]), ("b", vec![128])]);
    assert!(
        refused(&one, &many).contains("expected one tensor, or `string_to_param.*` or `emb_params`, found `a`, `b`")
    );
    let mini = pinhole::builtin::mini().unwrap();
    assert!(
        refused(&mini, &embedding("toy.bin")).starts_with("--embedding: expected nothing, since this kind of model")
    );
    let model = pinhole::open("mini").unwrap();
    let weighted = Request { prompt_syntax: PromptSyntax::A1111, ..Request::new("a (star)") };
    let error = pipeline::settings(&model, &weighted).unwrap_err().to_string();
    assert!(error.starts_with("--prompt-syntax: expected plain, since weights are for models"), "{error}");
    let model = pipeline::open(&one).unwrap();
    let negative = Some("[a|b]".to_owned());
    let error = pipeline::settings(&model, &Request { negative_prompt: negative, ..weighted }).unwrap_err().to_string();
    assert!(error.starts_with("--negative-prompt: expected words that are the same in all steps"), "{error}");
    let deep = format!("{}star{}", "(".repeat(64), ")".repeat(64));
    let deep = Request { prompt_syntax: PromptSyntax::A1111, ..Request::new(deep) };
    assert!(pipeline::settings(&model, &deep).is_ok());
}
