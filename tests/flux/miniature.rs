//! The built-in miniature against diffusers in float32: as it is, and through bundles of every plain type.
//!
//! Of the miniature there are two sets of weights. The original is a diffusers directory in BF16, too large to be
//! committed; `tests/goldens/mini` holds what diffusers draws from it. The built-in bundle was converted from it, most
//! of it to Q8_0; `tests/goldens/bundle` holds what diffusers draws from the bundle's own numbers, which
//! `tests/reference/unbundle.py` unpacks. The test of the original looks for it where `PINHOLE_MINI` says, or in
//! `../shared/mini` beside the checkout, and says so where it is not there.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::support::Golden;
use pinhole::builtin;
use pinhole::convert::{self, Types, WriteOptions};
use pinhole::ggml::{CancelFlag, Device};
use pinhole::pipeline::Pipeline;
use pinhole::pipeline::{Event, Generated, Phase, Request, Upscale};
use pinhole::sample::randn;
use pinhole::source::Network;
use pinhole::source::slot::SLOTS;
use pinhole::source::slot::VAE;
use pinhole::source::{Source, Text};
use pinhole_quant::metrics;
use pinhole_quant::recipe::FileType;
use tempfile::TempDir;

/// One: the test runner has a test for every core.
const THREADS: usize = 1;

/// What the built-in bundle was converted to.
const BUILT_IN_TYPES: &str = "q8_0,text_encoder=q8_0";

/// The types that pictures are compared in.
const TYPES: [FileType; 4] = [FileType::F32, FileType::F16, FileType::BF16, FileType::Q8_0];

/// The least PSNR, in dB, of a picture from weights of `file_type`.
fn least(file_type: FileType) -> f64 {
    match file_type {
        FileType::F32 => 50.0,
        FileType::F16 => 40.0,
        _ => 30.0,
    }
}

fn pipeline(source: &Source) -> Pipeline {
    let model = pinhole::pipeline::open(source).unwrap();
    Pipeline::with_threads(model, Device::cpu().unwrap(), THREADS, CancelFlag::new()).unwrap()
}

fn generate(pipeline: &mut Pipeline, request: &Request) -> Generated {
    pipeline.generate_watched(request, &mut |_: Event| Ok(())).unwrap()
}

/// The requests that a golden was recorded from.
fn requests(golden: &Golden) -> Vec<Request> {
    (0..golden.list("/generate").len()).map(|i| golden.request(&format!("/generate/{i}"))).collect()
}

/// What `source` draws for the requests of `golden`.
fn draw(source: &Source, golden: &Golden) -> Vec<Generated> {
    let mut pipeline = pipeline(source);
    requests(golden).iter().map(|request| generate(&mut pipeline, request)).collect()
}

/// Prints how near to `golden` the pictures are, and returns what is further away than `least` dB. The latents' error
/// over their power is held to the same ratio.
fn misses(what: &str, golden: &Golden, drawn: &[Generated], least: f64) -> Vec<String> {
    let mut missed = Vec::new();
    for (i, generated) in drawn.iter().enumerate() {
        let psnr = metrics::psnr(&golden.u8(&format!("{i}.picture")), generated.images[0].rgb()).unwrap();
        let nmse = metrics::nmse(&golden.f32(&format!("{i}.latents")), &generated.latents).unwrap();
        let snr = -10.0 * nmse.log10();
        let line = format!("{what}, prompt {i}: picture {psnr:.1} dB, latents {snr:.1} dB (at least {least})");
        println!("{line}");
        // Not `<`: what is not a number is a miss too.
        if !(psnr >= least && snr >= least) {
            missed.push(line);
        }
    }
    missed
}

#[track_caller]
fn assert_none(missed: &[String]) {
    assert!(missed.is_empty(), "too far from diffusers:\n{}", missed.join("\n"));
}

/// Writes `source` as a bundle of `types` into `dir` and opens it.
fn bundle(source: &Source, types: impl Into<Types>, dir: &TempDir, name: &str) -> Source {
    let path = dir.path().join(name);
    let model = pinhole::pipeline::open(source).unwrap();
    let plan = convert::plan(&model.source, &model.networks(), types).unwrap();
    plan.write(&path, WriteOptions::default(), &mut |_| Ok(())).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), plan.total_bytes, "{name}: not as large as planned");
    Source::open(&path).unwrap()
}

/// What `source` draws by way of a bundle of `file_type`.
fn draw_as(file_type: FileType, source: &Source, golden: &Golden) -> Vec<Generated> {
    let dir = tempfile::tempdir().unwrap();
    draw(&bundle(source, file_type, &dir, "bundle.gguf"), golden)
}

#[test]
fn the_built_in_model_draws_what_diffusers_draws() {
    let (original, bundle) = (Golden::load("mini"), Golden::load("bundle"));
    assert_eq!(original.at("/generate"), bundle.at("/generate"), "recorded from different requests");
    let drawn = draw(&builtin::mini().unwrap(), &bundle);
    let mut missed = misses("built-in against the original", &original, &drawn, 30.0);
    missed.extend(misses("built-in against its own numbers", &bundle, &drawn, 40.0));
    assert_none(&missed);
}

#[test]
fn bundles_of_the_built_in_model_draw_what_diffusers_draws() {
    let (golden, source) = (Golden::load("bundle"), builtin::mini().unwrap());
    let dir = tempfile::tempdir().unwrap();
    // To Q8_0 by way of F32: the built-in matrices are Q8_0 already, and would be copied.
    let exact = bundle(&source, FileType::F32, &dir, "exact.gguf");
    let mut missed = Vec::new();
    for file_type in TYPES {
        let from = if file_type == FileType::Q8_0 { &exact } else { &source };
        let drawn = draw_as(file_type, from, &golden);
        missed.extend(misses(&format!("built-in as {file_type}"), &golden, &drawn, least(file_type)));
    }
    assert_none(&missed);
}

/// The original's directory, where there is one.
fn original() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/mini");
    let given = std::env::var_os("PINHOLE_MINI").map(PathBuf::from);
    // A path that was given must be right; the one beside the checkout may be missing.
    given.or_else(|| Some(beside).filter(|path| path.join("model_index.json").is_file()))
}

#[test]
fn the_original_draws_what_diffusers_draws() {
    let Some(path) = original() else {
        // Not `eprintln!`, which is heard of failing tests only.
        let missing = "NOT TESTED: the original miniature is not in ../shared/mini, and PINHOLE_MINI is not set";
        return writeln!(io::stderr(), "{missing}").unwrap();
    };
    let (golden, source) = (Golden::load("mini"), Source::open(&path).unwrap());
    let straight = draw(&source, &golden);
    let mut missed = misses("original", &golden, &straight, least(FileType::BF16));
    for file_type in TYPES {
        let drawn = draw_as(file_type, &source, &golden);
        missed.extend(misses(&format!("original as {file_type}"), &golden, &drawn, least(file_type)));
        if file_type == FileType::BF16 {
            // Its own type: the same numbers in another order.
            let latents = |drawn: &[Generated]| drawn.iter().flat_map(|made| made.latents.clone()).collect::<Vec<_>>();
            assert!(latents(&drawn) == latents(&straight), "a bundle of the source's own type draws something else");
        }
    }
    assert_none(&missed);
}

/// Every text that a source carries: configurations, tokenizers, schedule, defaults.
fn texts(source: &Source) -> Vec<&str> {
    let mut texts: Vec<&Text> = source.components().filter_map(|component| component.config.as_ref()).collect();
    for files in SLOTS.into_iter().filter_map(|slot| source.tokenizer(slot)) {
        texts.push(&files.tokenizer);
        texts.extend(&files.config);
    }
    texts.extend([&source.scheduler, &source.defaults].into_iter().flatten());
    texts.into_iter().map(|text| text.text.as_str()).collect()
}

#[test]
fn a_bundle_converted_to_its_own_types_stays_the_same() {
    let (before, dir) = (builtin::mini().unwrap(), tempfile::tempdir().unwrap());
    let after = bundle(&before, BUILT_IN_TYPES.parse::<Types>().unwrap(), &dir, "again.gguf");
    assert_eq!(texts(&before).len(), 10);
    assert_eq!(texts(&before), texts(&after));
    let index = |source: &Source| source.component(&VAE).unwrap().index.clone();
    let (before, after) = (index(&before), index(&after));
    assert_eq!(before.len(), after.len());
    // Not in the same order: a bundle lists its weights as the stages that have them follow each other, which were others when it was made.
    for (name, tensor) in before.iter() {
        let tensor_after = after.get(name).unwrap_or_else(|| panic!("{name} is gone"));
        assert_eq!((tensor.storage, tensor.shape), (tensor_after.storage, tensor_after.shape), "{name}");
        assert!(tensor.bytes() == tensor_after.bytes(), "{name}: other bytes");
    }
}

/// Numbers from 0 to `n - 1`, each once, in no useful order.
fn scattered(n: usize) -> impl Iterator<Item = usize> {
    const STRIDE: usize = 7919; // a prime, so that it meets every number unless it divides `n`
    assert!(!n.is_multiple_of(STRIDE));
    (0..n).map(move |i| i * STRIDE % n)
}

#[test]
fn rows_read_in_any_order_are_those_of_the_whole() {
    let (source, dir) = (builtin::mini().unwrap(), tempfile::tempdir().unwrap());
    let exact = bundle(&source, FileType::F32, &dir, "exact.gguf");
    let (stored, exact) = (pinhole::pipeline::open(&source).unwrap(), pinhole::pipeline::open(&exact).unwrap());
    for (Network { model, bound, .. }, exact) in stored.networks().into_iter().zip(exact.networks()) {
        let exact = exact.bound;
        let weights: Vec<_> = model.manifest().iter().collect();
        for (id, weight) in scattered(weights.len()).map(|i| weights[i]) {
            let (name, row) = (&weight.name, weight.shape.row());
            let whole = bound.read_f32(id).unwrap();
            assert!(exact.read_f32(id).unwrap() == whole, "{name}: other numbers as F32");
            let [piece] = bound.pieces(id) else { panic!("{name}: a bundle has whole weights") };
            let rows: Vec<usize> = scattered(whole.len() / row).take(20).collect();
            for start in rows.iter().map(|i| i * row) {
                let mut numbers = vec![f32::NAN; row];
                piece.part(start, row).read_f32(&mut numbers).unwrap();
                assert!(numbers == whole[start..start + row], "{name}: other numbers from {start} on");
            }
            let ids: Vec<u32> = rows.iter().map(|&i| i as u32).collect();
            let wanted: Vec<f32> = rows.iter().flat_map(|i| &whole[i * row..][..row]).copied().collect();
            assert!(bound.gather(id, row, &ids).unwrap() == wanted, "{name}: other rows");
        }
    }
}

/// What `pipeline` draws, and whether the text encoders ran for it.
fn generate_and_listen(pipeline: &mut Pipeline, request: &Request) -> (Generated, bool, usize) {
    let (mut encoded, mut warnings) = (false, 0);
    let generated = pipeline
        .generate_watched(request, &mut |event: Event| {
            encoded |= matches!(event, Event::Begin { phase: Phase::Encode, .. });
            warnings += usize::from(matches!(event, Event::Warning(_)));
            Ok(())
        })
        .unwrap();
    assert_eq!(generated.timings.contains_key("encode"), encoded);
    (generated, encoded, warnings)
}

#[test]
fn prompts_are_remembered() {
    let mut pipeline = pipeline(&builtin::mini().unwrap());
    // Long enough that CLIP does not see all of it: every request is warned of that.
    let long = "a red heart ".repeat(60);
    let first = Request { prompt: long, ..small_request() };
    let (drawn, encoded, warnings) = generate_and_listen(&mut pipeline, &first);
    assert!(encoded && warnings > 0);
    let (again, encoded, warned_again) = generate_and_listen(&mut pipeline, &first);
    assert!(!encoded && again.latents == drawn.latents && again.images == drawn.images);
    assert_eq!(warnings, warned_again);
    // Size, seed and steps are the denoiser's business.
    let smaller = Request { width: Some(64), seed: 3, steps: Some(1), ..first.clone() };
    assert!(!generate_and_listen(&mut pipeline, &smaller).1);
    for other in [
        Request { prompt: "a red".into(), ..first.clone() },
        Request { negative_prompt: Some("blue".into()), ..first.clone() },
        Request { cfg_scale: Some(1.0), ..first.clone() },
        Request { max_sequence_length: Some(24), ..first.clone() },
    ] {
        assert!(generate_and_listen(&mut pipeline, &other).1, "{other:?}");
        assert!(!generate_and_listen(&mut pipeline, &other).1, "{other:?}");
    }
    assert!(!generate_and_listen(&mut pipeline, &first).1, "all of them are kept");
    // No room for any.
    pipeline.set_remembered_bytes(0);
    let (drawn_anew, encoded, _) = generate_and_listen(&mut pipeline, &first);
    assert!(encoded && drawn_anew.latents == drawn.latents);
    assert!(generate_and_listen(&mut pipeline, &first).1);
}

#[test]
fn prompts_are_kept_for_other_processes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("made/when/needed");
    // A pipeline of its own each time: it remembers nothing by itself.
    let draw = |source: &Source, request: &Request| {
        let mut pipeline = pipeline(source);
        pipeline.set_prompt_cache(Some(&folder)).unwrap();
        generate_and_listen(&mut pipeline, request)
    };
    let files = || {
        let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        files.collect::<std::collections::BTreeSet<_>>()
    };
    let mini = builtin::mini().unwrap();
    let first = Request { prompt: "a red heart ".repeat(60), ..small_request() };
    let (drawn, encoded, warnings) = draw(&mini, &first);
    assert!(encoded && warnings > 0);
    assert_eq!(files().len(), 2, "the prompt, and an empty negative one");
    let (again, encoded, warned_again) = draw(&mini, &first);
    assert!(!encoded && again.latents == drawn.latents && again.images == drawn.images);
    assert_eq!(warnings, warned_again);
    // The negative prompt is there; other words, and other lengths, are not.
    assert!(!draw(&mini, &Request { cfg_scale: Some(1.0), ..first.clone() }).1);
    assert!(draw(&mini, &Request { prompt: "a red".into(), ..first.clone() }).1);
    assert_eq!(files().len(), 3);
    assert!(draw(&mini, &Request { max_sequence_length: Some(24), ..first.clone() }).1);
    assert_eq!(files().len(), 5);

    // Whatever is wrong with a file, it is made again, and said.
    let whole = std::fs::read(files().first().unwrap()).unwrap();
    for damaged in [&b""[..], b"no safetensors", &whole[..whole.len() / 2], &whole[..whole.len() - 4]] {
        files().iter().for_each(|path| std::fs::write(path, damaged).unwrap());
        let (again, encoded, warned) = draw(&mini, &first);
        assert!(encoded && again.latents == drawn.latents);
        assert_eq!(warned, warnings + 2);
        assert!(!draw(&mini, &first).1);
    }
    // Numbers that are as good as any, and not those that were written.
    let zeroed = [&whole[..whole.len() - 64], &[0; 64]].concat();
    files().iter().for_each(|path| std::fs::write(path, &zeroed).unwrap());
    let (again, encoded, warned) = draw(&mini, &first);
    assert!(encoded && again.latents == drawn.latents && warned == warnings + 2);

    // Where nothing can be kept, only that is said.
    let key = files();
    key.iter().for_each(|path| {
        std::fs::remove_file(path).unwrap();
        std::fs::create_dir(path).unwrap();
    });
    let (again, encoded, warned) = draw(&mini, &first);
    assert!(encoded && again.latents == drawn.latents && warned > warnings);
}

/// Two models whose T5s differ in one byte, which is neither among the first nor in the middle of its tensor, share no prompts.
#[test]
fn prompts_of_other_text_encoders_are_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let one = bundle(&builtin::mini().unwrap(), FileType::F32, &dir, "one.gguf");
    let path = dir.path().join("other.gguf");
    let mut bytes = fs::read(dir.path().join("one.gguf")).unwrap();
    let gguf = pinhole::gguf::Gguf::open(&dir.path().join("one.gguf")).unwrap();
    let (_, tensor) = gguf.index.iter().find(|(name, _)| *name == "te2.enc.blk.0.attn_q.weight").unwrap();
    let place = tensor.offset() + tensor.bytes().len() / 5 / 4 * 4;
    bytes[place..place + 4].copy_from_slice(&1f32.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let other = Source::open(&path).unwrap();

    let folder = dir.path().join("cache");
    let draw = |source: &Source| {
        let mut pipeline = pipeline(source);
        pipeline.set_prompt_cache(Some(&folder)).unwrap();
        let (generated, encoded, warnings) = generate_and_listen(&mut pipeline, &small_request());
        assert_eq!(warnings, 0);
        (generated.latents, encoded)
    };
    let (drawn, encoded) = draw(&one);
    assert!(encoded && !draw(&one).1);
    let (theirs, encoded) = draw(&other);
    assert!(encoded && theirs != drawn, "{encoded}");
    assert_eq!((draw(&one), draw(&other)), ((drawn, false), (theirs, false)));
    // A copy is the same model.
    fs::copy(dir.path().join("one.gguf"), dir.path().join("copy.gguf")).unwrap();
    let copy = Source::open(&dir.path().join("copy.gguf")).unwrap();
    assert!(!draw(&copy).1);

    // Embeddings know it too.
    let ours = pipeline(&one).embed(&small_request(), &mut |_: Event| Ok(())).unwrap();
    let request = Request { embeddings: Some(ours.into()), ..small_request() };
    pipeline(&copy).settings(&request).unwrap();
    let error = pipeline(&other).settings(&request).unwrap_err();
    assert!(error.to_string().starts_with("embeddings: expected text encoders with the digest "), "{error}");
    assert_eq!(error.hint(), Some("they were made by another model, or with other LoRAs"));
}

/// A digest of a file that no one writes to any more is found again, by any process.
#[cfg(unix)]
#[test]
fn digests_are_remembered_while_files_stay_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let source = bundle(&builtin::mini().unwrap(), FileType::Q8_0, &dir, "model.gguf");
    let folder = dir.path().join("cache");
    let digests = || {
        let names = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("encoders-")).count()
    };
    let draw = || {
        let mut pipeline = pipeline(&source);
        pipeline.set_prompt_cache(Some(&folder)).unwrap();
        generate_and_listen(&mut pipeline, &small_request()).1
    };
    assert!(draw());
    assert_eq!(digests(), 0, "it was written just now");
    std::thread::sleep(std::time::Duration::from_millis(2500));
    assert!(!draw());
    assert_eq!(digests(), 1);
    // A file with another digest, and without its check, is not believed.
    let mut paths = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let path = paths.find(|path| path.file_name().unwrap().to_str().unwrap().starts_with("encoders-")).unwrap();
    fs::write(&path, [0; 64]).unwrap();
    assert!(!draw());
}

/// A request that takes a moment, with true CFG.
fn small_request() -> Request {
    Request {
        prompt: "a small red heart on a white background".into(),
        width: Some(96),
        height: Some(64),
        steps: Some(4),
        seed: 11,
        cfg_scale: Some(3.0),
        batch: 1,
        ..Request::default()
    }
}

#[test]
fn a_request_gives_the_same_picture_every_time() {
    let mut pipeline = pipeline(&builtin::mini().unwrap());
    let first = generate(&mut pipeline, &small_request());
    generate(&mut pipeline, &Request { prompt: "two blue moons".into(), width: Some(64), ..small_request() });
    let again = generate(&mut pipeline, &small_request());
    assert_eq!(first.images, again.images);
    assert_eq!(first.latents, again.latents);
}

#[test]
fn a_batch_is_its_requests_one_by_one() {
    let mut pipeline = pipeline(&builtin::mini().unwrap());
    let batch = generate(&mut pipeline, &Request { batch: 2, ..small_request() });
    let (mut images, mut latents) = (Vec::new(), Vec::new());
    for seed in [11, 12] {
        let single = generate(&mut pipeline, &Request { seed, ..small_request() });
        images.extend(single.images);
        latents.extend(single.latents);
    }
    assert_ne!(images[0], images[1]);
    assert_eq!(batch.images, images);
    assert_eq!(batch.latents, latents);
}

#[test]
fn given_noise_is_as_good_as_its_seed() {
    let mut pipeline = pipeline(&builtin::mini().unwrap());
    let drawn = generate(&mut pipeline, &Request { batch: 2, ..small_request() });
    let each = drawn.latents.len() / 2;
    let noise = [randn(11, each).unwrap(), randn(12, each).unwrap()].concat();
    // Another seed, which must not matter.
    let given = generate(&mut pipeline, &Request { seed: 5, batch: 2, noise: Some(noise), ..small_request() });
    assert_eq!(drawn.images, given.images);
    assert_eq!(drawn.latents, given.latents);
}

#[test]
fn noise_of_torch_is_the_noise_of_its_seed() {
    let golden = Golden::load("dev");
    let sizes = ["width", "height"].map(|side| Some(golden.integer(&format!("/generate/{side}")) as usize));
    let request =
        Request { width: sizes[0], height: sizes[1], seed: golden.integer("/generate/seed"), ..small_request() };
    // In 32 bits: products that round activations to 8 bits may take a last digit of the noise for a whole step.
    let dir = tempfile::tempdir().unwrap();
    let mut pipeline = pipeline(&bundle(&builtin::mini().unwrap(), FileType::F32, &dir, "exact.gguf"));
    let drawn = generate(&mut pipeline, &request);
    let given = generate(&mut pipeline, &Request { noise: Some(golden.f32("noise")), seed: 0, ..request });
    let psnr = metrics::psnr(drawn.images[0].rgb(), given.images[0].rgb()).unwrap();
    println!("torch's noise against the seed's: {psnr:.1} dB");
    assert!(psnr >= 80.0, "{psnr} dB");
}

/// With latents alone nothing is decoded, and they are those of the whole request.
#[test]
fn latents_alone_are_those_of_the_picture() {
    let request = Request { width: Some(64), height: Some(48), steps: Some(2), ..Request::new("a red heart") };
    let mut pipeline = pipeline(&builtin::mini().unwrap());
    let whole = generate(&mut pipeline, &request);
    let alone = generate(&mut pipeline, &Request { latents_only: true, ..request.clone() });
    assert_eq!(alone.latents, whole.latents);
    assert!(alone.images.is_empty() && whole.images.len() == 1);
    let decoding = |made: &Generated| made.plan.components.iter().any(|component| component.phase == Phase::Decode);
    assert!(!decoding(&alone) && decoding(&whole), "{:?}", alone.plan);
    let upscale = Some(Upscale::new(1.5));
    let refused = pipeline.generate(&Request { latents_only: true, upscale, ..request }).unwrap_err();
    assert!(refused.to_string().contains("latents_only"), "{refused}");
}
