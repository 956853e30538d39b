//! Stable Diffusion against diffusers and transformers in float32: prompts with taught words and with weights, a refiner, and a second pass
//! over what was made larger. The expected latents were recorded by `tests/reference/prompts.py` and `two_passes.py`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::support::drawing::{THREADS, bits, generate, on};
use crate::support::{self, Golden, Layout, given, golden, sd1};
use pinhole::convert::{self, WriteOptions};
use pinhole::ggml::{CancelFlag, Device};
use pinhole::image::parameters_text;
use pinhole::pipeline::{
    self, Additions, Event, Generated, MemoryOptions, Opened, Phase, Pipeline, PromptSyntax, Request, Upscale,
    UpscaleSpace,
};
use pinhole::plan::Offload;
use pinhole::sample::Sampler;
use pinhole::source::{Files, Source};
use pinhole_quant::metrics;
use pinhole_quant::recipe::FileType;
use serde_json::Value;
use tempfile::TempDir;

/// The models, and how far their latents may be: on the processor that they were recorded beside, they are up to 4e-11 away, and in one case
/// 3.5e-9, in which the mean that is kept is far smaller than the numbers.
const MODELS: [(&str, f64); 2] = [("sd1_prompts", 1e-9), ("sdxl_prompts", 1e-8)];

fn directory(golden: &Golden) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    match golden.name.starts_with("flux") {
        true => support::write_model(dir.path(), golden, &Layout::default()),
        false => sd1::write_directory(dir.path(), golden, golden.at("/scheduler")),
    }
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

/// The goldens of two passes.
const TWO_PASSES: [(&str, f64); 4] =
    [("sdxl_refiner", 2e-9), ("sdxl_upscale", 2e-9), ("sd1_upscale", 2e-9), ("flux_upscale", 2e-9)];

/// The same through pixels, where some round to the next byte: one that does moves the latents by up to 5e-8.
const THROUGH_PIXELS: f64 = 1e-7;

/// The refiner as a directory, which says that it is one.
fn refiner(golden: &Golden) -> TempDir {
    let dir = directory(golden);
    let path = dir.path().join("model_index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    index["requires_aesthetics_score"] = true.into();
    index["force_zeros_for_empty_prompt"] = false.into();
    fs::write(path, index.to_string()).unwrap();
    dir
}

/// A request of two passes.
fn of_two(golden: &Golden, case: &str) -> Request {
    let at = |key: &str| golden.at(&format!("/cases/{case}/{key}"));
    let whole = |key: &str| at(key).as_u64().map(|number| number as usize);
    let number = |key: &str| at(key).as_f64().map(|number| number as f32);
    let pair = |key: &str| Some([at(key)[0].as_u64()? as usize, at(key)[1].as_u64()? as usize]);
    let (width, height) = (whole("width").unwrap(), whole("height").unwrap());
    let (sampler, schedule) = Sampler::with_schedule(at("sampler").as_str().unwrap()).unwrap();
    let space = UpscaleSpace::ALL.into_iter().find(|space| at("upscale_space").as_str() == Some(space.name()));
    let upscale = number("upscale").map(|factor| Upscale {
        factor,
        strength: number("upscale_strength").unwrap(),
        space: space.unwrap(),
        steps: whole("upscale_steps"),
    });
    Request {
        prompt: at("prompt").as_str().unwrap().to_owned(),
        negative_prompt: at("negative_prompt").as_str().map(str::to_owned),
        width: Some(width),
        height: Some(height),
        steps: whole("steps"),
        seed: at("seed").as_u64().unwrap(),
        cfg_scale: number("cfg_scale"),
        sampler: Some(sampler),
        schedule,
        image: number("strength").map(|_| given::picture(width, height)),
        strength: number("strength"),
        original_size: pair("original_size"),
        crop: pair("crop"),
        refiner_start: number("refiner_start"),
        aesthetic_score: number("aesthetic_score"),
        negative_aesthetic_score: number("negative_aesthetic_score"),
        upscale,
        max_sequence_length: whole("max_sequence_length"),
        batch: whole("batch").unwrap(),
        ..Request::default()
    }
}

/// Models of a golden of two passes, on disk.
struct Two {
    base: TempDir,
    refiner: Option<TempDir>,
}

impl Two {
    fn new(golden: &Golden) -> Two {
        match golden.name.as_str() {
            "sdxl_refiner" => Two { base: directory(&Golden::load("sdxl")), refiner: Some(refiner(golden)) },
            _ => Two { base: directory(golden), refiner: None },
        }
    }

    /// The base model, with the refiner if there is one.
    fn open(&self) -> Opened {
        let refiner = self.refiner.as_ref().map(|dir| dir.path().to_owned());
        let source = Source::open(self.base.path()).unwrap();
        pipeline::open_with(&source, &Additions { refiner, ..Additions::default() }).unwrap()
    }
}

#[test]
fn two_passes_equal_diffusers() {
    let mut wrong = Vec::new();
    for (name, most) in TWO_PASSES {
        let golden = Golden::load(name);
        let models = Two::new(&golden);
        for case in golden.at("/cases").as_object().unwrap().keys() {
            let request = of_two(&golden, case);
            let is_alone = name == "sdxl_refiner" && request.refiner_start.is_none();
            let model = match &models.refiner {
                Some(dir) if is_alone => pipeline::open(&Source::open(dir.path()).unwrap()).unwrap(),
                _ => models.open(),
            };
            let generated = generate(&mut on(model, "cpu"), &request);
            let nmse = metrics::nmse(&golden.f32(&format!("{case}.latents")), &generated.latents).unwrap();
            let most = if case == "pixel" { THROUGH_PIXELS } else { most };
            println!("{name} {case}: nmse {nmse:.2e} (at most {most:.0e})");
            if nmse > most {
                wrong.push(format!("{name} {case}: {nmse:.2e}"));
            }
            let last = generated.settings.last();
            assert_eq!((generated.images[0].width(), generated.images[0].height()), (last.width, last.height));
            assert_eq!(generated.phases.iter().any(|phase| phase.second), !is_alone);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What was planned for each pass is what is there, and the two models of a refiner are never on the device at once.
#[test]
fn both_passes_stream_as_they_stay() {
    for (name, case) in [("sdxl_refiner", "scores"), ("sd1_upscale", "pixel"), ("sd1_upscale", "latent")] {
        let golden = Golden::load(name);
        let models = Two::new(&golden);
        let mut pipeline = on(models.open(), "cpu:discrete");
        let request = Request { preview: Some(2), ..of_two(&golden, case) };
        let mut draw = |offload| {
            pipeline.set_memory(MemoryOptions { vram: None, offload, host: None });
            generate(&mut pipeline, &request)
        };
        let (resident, streamed) = (draw(Offload::None), draw(Offload::Sequential));
        assert!(resident.plan.all_resident && resident.plan.second.as_ref().unwrap().all_resident);
        assert!(streamed.memory.peak < resident.memory.peak);
        assert!(bits(&resident) == bits(&streamed) && resident.images == streamed.images, "{name} {case}");
        let least = pipeline.least_budget(&request).unwrap();
        pipeline.set_memory(MemoryOptions { vram: Some(least), offload: Offload::Auto, host: None });
        let tight = generate(&mut pipeline, &request);
        assert!(tight.memory.peak <= least && bits(&tight) == bits(&resident), "{name} {case}");
        pipeline.set_memory(MemoryOptions { vram: Some(least - 1), offload: Offload::Auto, host: None });
        assert!(pipeline.plan(&request).unwrap_err().to_string().starts_with("needs "));
        if name == "sdxl_refiner" {
            let alone =
                Request { refiner_start: None, aesthetic_score: None, negative_aesthetic_score: None, ..request };
            let mut base = on(pipeline::open(&Source::open(models.base.path()).unwrap()).unwrap(), "cpu:discrete");
            base.set_memory(MemoryOptions { vram: None, offload: Offload::None, host: None });
            let base = generate(&mut base, &alone);
            let peak = |generated: &Generated, phase| {
                let found = generated.phases.iter().find(|other| other.phase == phase && !other.second);
                found.unwrap().measured.peak
            };
            assert!(peak(&resident, Phase::Denoise) <= peak(&base, Phase::Denoise));
        }
    }
}

#[test]
fn bundles_know_a_refiner() {
    let golden = Golden::load("sdxl_refiner");
    let models = Two::new(&golden);
    let source = Source::open(models.refiner.as_ref().unwrap().path()).unwrap();
    let model = pipeline::open(&source).unwrap();
    assert_eq!(model.family.name, "sdxl-refiner");
    let bundle = models.base.path().join("refiner.gguf");
    let plan = convert::plan(&model.source, &model.networks(), FileType::F32).unwrap();
    plan.write(&bundle, WriteOptions::default(), &mut |_| Ok(())).unwrap();
    let request = Request { steps: Some(2), ..of_two(&golden, "alone") };
    let drawn = generate(&mut on(model, "cpu"), &request);
    let again = generate(&mut on(pipeline::open(&Source::open(&bundle).unwrap()).unwrap(), "cpu"), &request);
    assert_eq!(bits(&drawn), bits(&again));
    let refined = Additions { refiner: Some(bundle), ..Additions::default() };
    let base = pipeline::open_with(&Source::open(models.base.path()).unwrap(), &refined).unwrap();
    let request = of_two(&golden, "batch");
    assert_eq!(
        bits(&generate(&mut on(base, "cpu"), &request)),
        bits(&generate(&mut on(models.open(), "cpu"), &request))
    );
}

/// Converts `model` to `file_type`, as `name` in `dir`.
fn bundle(model: &Opened, file_type: &str, dir: &TempDir, name: &str) -> PathBuf {
    let path = dir.path().join(format!("{name}-{file_type}.gguf"));
    let plan = convert::plan(&model.source, &model.networks(), file_type.parse::<FileType>().unwrap()).unwrap();
    plan.write(&path, WriteOptions::default(), &mut |_| Ok(())).unwrap();
    path
}

/// The refiner with a pooled prompt that is as wide as the prompt: a file is told by that.
fn as_published(mut golden: Golden) -> Golden {
    let width = golden.integer("/components/unet/config/cross_attention_dim");
    let added = width + 5 * golden.integer("/components/unet/config/addition_time_embed_dim");
    *golden.at_mut("/components/text_encoder_2/config/projection_dim") = width.into();
    *golden.at_mut("/components/unet/config/projection_class_embeddings_input_dim") = added.into();
    for (component, name, at, extent) in
        [("text_encoder_2", "text_projection.weight", 0, width), ("unet", "add_embedding.linear_1.weight", 1, added)]
    {
        let tensors = golden.at_mut(&format!("/components/{component}/tensors")).as_array_mut().unwrap();
        for tensor in tensors {
            let [key, shape] =
                if tensor.is_array() { [&tensor[0], &tensor[1]] } else { [&tensor["name"], &tensor["shape"]] };
            if key == name {
                let mut shape = shape.clone();
                shape[at] = extent.into();
                match tensor.as_array_mut() {
                    Some(listed) => listed[1] = shape,
                    None => tensor["shape"] = shape,
                }
            }
        }
    }
    golden
}

/// The refiner as its publisher's one file, in which OpenCLIP's text encoder is the only one, is the refiner of a directory; and both
/// passes stream as they stay in every type.
#[test]
fn one_file_is_the_same_refiner() {
    let golden = as_published(Golden::load("sdxl_refiner"));
    let (models, dir) = (Two::new(&golden), tempfile::tempdir().unwrap());
    let path = dir.path().join("refiner.safetensors");
    sd1::write_checkpoint(&path, &golden);
    // The published schedule does not say how timesteps are spaced.
    let schedule = models.refiner.as_ref().unwrap().path().join("scheduler/scheduler_config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&schedule).unwrap()).unwrap();
    config.as_object_mut().unwrap().remove("timestep_spacing");
    fs::write(schedule, config.to_string()).unwrap();
    sd1::write_tokenizer(&dir.path().join("tokenizer_2"), golden.get("/pad_2"));
    let mut files = Files::default();
    files.add("tokenizer_2", dir.path().join("tokenizer_2"));
    let source = Source::assemble(Some(Source::open(&path).unwrap()), &files).unwrap();
    let model = pipeline::open(&source).unwrap();
    assert_eq!(model.family.name, "sdxl-refiner");
    // A file does not say that no zeros stand for an empty prompt; a refiner was trained so.
    let request = Request { steps: Some(2), ..of_two(&golden, "alone") };
    let directory = pipeline::open(&Source::open(models.refiner.as_ref().unwrap().path()).unwrap()).unwrap();
    let base = pipeline::open(&Source::open(models.base.path()).unwrap()).unwrap();
    let as_refiner = |base: &Path, refiner: PathBuf| {
        let additions = Additions { refiner: Some(refiner), ..Additions::default() };
        pipeline::open_with(&Source::open(base).unwrap(), &additions).unwrap()
    };
    for file_type in ["f32", "q8_0", "q4_k_s"] {
        let refiner = bundle(&model, file_type, &dir, "refiner");
        if file_type == "f32" {
            let whole =
                generate(&mut on(as_refiner(models.base.path(), refiner.clone()), "cpu"), &of_two(&golden, "batch"));
            let expected = generate(&mut on(models.open(), "cpu"), &of_two(&golden, "batch"));
            assert_eq!(bits(&whole), bits(&expected));
        }
        let both = as_refiner(&bundle(&base, file_type, &dir, "base"), refiner);
        streams_as_it_stays(both, &Request { steps: Some(3), ..of_two(&golden, "batch") }, file_type);
    }
    let [file, directory] = [model, directory].map(|model| bits(&generate(&mut on(model, "cpu"), &request)));
    assert_eq!(file, directory);
}

fn streams_as_it_stays(model: Opened, request: &Request, what: &str) {
    let mut pipeline = on(model, "cpu:discrete");
    let mut draw = |offload| {
        pipeline.set_memory(MemoryOptions { vram: None, offload, host: None });
        generate(&mut pipeline, request)
    };
    let (resident, streamed) = (draw(Offload::None), draw(Offload::Sequential));
    assert!(resident.plan.all_resident && streamed.memory.peak < resident.memory.peak, "{what}");
    assert!(bits(&resident) == bits(&streamed) && resident.images == streamed.images, "{what}");
}

#[test]
fn larger_pictures_stream_as_they_stay_in_other_types() {
    let golden = Golden::load("sd1_upscale");
    let (dir, model) = (tempfile::tempdir().unwrap(), Two::new(&golden).open());
    for file_type in ["q8_0", "q4_k_s"] {
        let bundle = pipeline::open(&Source::open(&bundle(&model, file_type, &dir, "sd1")).unwrap()).unwrap();
        streams_as_it_stays(bundle, &of_two(&golden, "latent"), file_type);
    }
}

fn larger(factor: f32, strength: f32) -> Request {
    Request { upscale: Some(Upscale { strength, ..Upscale::new(factor) }), ..Request::new("a") }
}

#[test]
fn second_passes_that_cannot_be_are_refused() {
    let golden = Golden::load("sdxl_refiner");
    let models = Two::new(&golden);
    let base = Source::open(models.base.path()).unwrap();
    let (plain, refined) = (pipeline::open(&base).unwrap(), models.open());
    let start = |refiner_start| Request { refiner_start: Some(refiner_start), steps: Some(4), ..Request::new("a") };
    let masked = Request { image: Some(given::picture(64, 64)), mask: Some(given::mask(64, 64)), ..larger(2.0, 0.5) };
    let scores = Request { aesthetic_score: Some(6.0), ..Request::new("a") };
    let below = Request { negative_aesthetic_score: Some(-1.0), ..Request::new("a") };
    for (model, request, expected) in [
        (&plain, start(0.5), "--refiner-start: expected a model that was opened with a refiner, found one without"),
        (&refined, start(0.0), "--refiner-start: expected a number between 0 and 1, found 0"),
        (&refined, start(f32::NAN), "--refiner-start: expected a number between 0 and 1, found NaN"),
        (&refined, start(0.001), "--refiner-start: expected a part of the steps with at least one of them before"),
        (&refined, start(0.999), "--refiner-start: expected a part of the steps with at least one of them behind"),
        (&refined, larger(2.0, 0.5), "--upscale: expected nothing beside a refiner, found 2"),
        (&plain, scores, "--aesthetic-score: expected a model that is told scores"),
        (&refined, below, "--negative-aesthetic-score: expected a number from 0 to 100, found -1"),
        (&plain, larger(0.5, 0.5), "--upscale: expected a number from 1 to 8, found 0.5"),
        (&plain, larger(f32::INFINITY, 0.5), "--upscale: expected a number from 1 to 8, found inf"),
        (&plain, larger(2.0, 0.01), "--upscale-strength: expected at least 1 of 50 steps, 0.02, found 0.01"),
        (&plain, larger(2.0, 1.5), "--upscale-strength: expected 0 to 1, found 1.5"),
        (&plain, masked, "--upscale: expected nothing beside a mask, found a mask"),
    ] {
        let request = Request { width: Some(64), height: Some(64), ..request };
        let error = pipeline::settings(model, &request).err().unwrap_or_else(|| panic!("not refused: {expected}"));
        assert!(error.to_string().starts_with(expected), "{error}, not {expected}");
    }
    let sd1 = directory(&Golden::load("sd1"));
    let open = |source: &Path, refiner: &Path| {
        let additions = Additions { refiner: Some(refiner.to_owned()), ..Additions::default() };
        pipeline::open_with(&Source::open(source).unwrap(), &additions).err().unwrap().to_string()
    };
    let dir = models.refiner.as_ref().unwrap().path();
    let error = open(sd1.path(), dir);
    assert!(error.starts_with("--refiner: expected nothing, since refiners are for Stable Diffusion XL"), "{error}");
    for other in [sd1.path(), models.base.path()] {
        let error = open(models.base.path(), other);
        assert!(error.contains("expected the refiner of Stable Diffusion XL"), "{error}");
    }
}

/// The settings of another schedule are used in the place of the model's own, and stay in a bundle.
#[test]
fn a_schedule_may_be_given() {
    let golden = Golden::load("sd1");
    let (dir, given) = (directory(&golden), tempfile::tempdir().unwrap());
    let other = golden.at("/cases/v_prediction/scheduler");
    let path = given.path().join("scheduler_config.json");
    fs::write(&path, other.to_string()).unwrap();
    let mut source = Source::open(dir.path()).unwrap();
    source.set_scheduler(&path).unwrap();
    let model = pipeline::open(&source).unwrap();
    let request =
        Request { prompt: "a star".into(), width: Some(40), height: Some(56), steps: Some(2), ..Request::default() };
    let plan = convert::plan(&model.source, &model.networks(), FileType::F32).unwrap();
    let bundle = given.path().join("f32.gguf");
    plan.write(&bundle, WriteOptions::default(), &mut |_| Ok(())).unwrap();
    let drawn = generate(&mut on(model, "cpu"), &request);
    let again = generate(&mut on(pipeline::open(&Source::open(&bundle).unwrap()).unwrap(), "cpu"), &request);
    sd1::write_directory(dir.path(), &golden, other);
    let own = generate(&mut on(pipeline::open(&Source::open(dir.path()).unwrap()).unwrap(), "cpu"), &request);
    assert!(bits(&drawn) == bits(&own) && bits(&again) == bits(&own));
    fs::write(&path, r#"{"_class_name": "FlowMatchEulerDiscreteScheduler"}"#).unwrap();
    let mut flow = source.clone();
    flow.set_scheduler(&path).unwrap();
    let error = pipeline::open(&flow).err().unwrap().to_string();
    assert!(error.contains("_class_name: expected a schedule of noise for a UNet"), "{error}");
    fs::write(&path, "{}").unwrap();
    assert!(source.set_scheduler(&path).unwrap_err().to_string().contains("scheduler_config.json: _class_name"));
    assert!(source.set_scheduler(&given.path().join("none.json")).is_err());
}
