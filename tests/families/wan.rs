//! Wan against diffusers in float32, and its text encoder against transformers; recorded by `tests/reference/wan.py`, and the model of TI2V
//! 5B's kind by `tests/reference/wan_ti2v.py`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::support::cases::films_equal_the_reference;
pub(super) use crate::support::drawing::{bits, generate, open};
use crate::support::numbers::Format;
use crate::support::qwen_image::write_original_vae;
use crate::support::sd1::{Tensor, write_tensors};
use crate::support::wan::{Kernel, write_directory, write_gguf, write_umt5};
use crate::support::{Golden, given};
use pinhole::convert::{self, WriteOptions};
use pinhole::exec::{DeviceWeights, Session};
use pinhole::ggml::{Backend, CancelFlag, Device, Ledger};
use pinhole::image::Picture;
use pinhole::models::layers::sinusoid;
use pinhole::models::wan::Sizes;
use pinhole::pipeline::{self, Additions, MemoryOptions, Opened, Pipeline, Request};
use pinhole::plan::{Limits, Offload, Way, budget};
use pinhole::sample::Sampler;
use pinhole::size::Size;
use pinhole::source::slot::{IMAGE_ENCODER, TEXT_ENCODER, TRANSFORMER, TRANSFORMER_2, VAE};
use pinhole::source::{Files, Slot, Source, networks};
use pinhole::stage::{Cadence, Dims, Symbol};
use pinhole::synthetic::{self, Architecture};
use pinhole_quant::metrics;
use pinhole_quant::recipe::FileType;
use tempfile::TempDir;

/// Two threads, as many as the smallest machine that runs the tests has.
const THREADS: usize = 2;

/// How far latents may be from the reference's.
const MOST: f64 = 1e-7;

/// The golden `name`, and its `model` as a directory.
pub(super) fn directory_of(name: &str, model: &str) -> (Golden, TempDir) {
    let (golden, dir) = (Golden::load(name), tempfile::tempdir().unwrap());
    write_directory(dir.path(), &golden, model);
    (golden, dir)
}

/// The golden of most models, and its `model` as a directory.
pub(super) fn directory(model: &str) -> (Golden, TempDir) {
    directory_of("wan", model)
}

pub(super) fn on(model: Opened, device: &str) -> Pipeline {
    let device = Device::by_name(device).unwrap();
    let mut pipeline = Pipeline::with_threads(model, device, THREADS, CancelFlag::new()).unwrap();
    // The text encoder is part of what is measured, for every video.
    pipeline.set_remembered_bytes(0);
    pipeline
}

/// The last frame of a video: the picture upside down.
pub(super) fn last_picture(width: usize, height: usize) -> Arc<Picture> {
    let picture = given::picture(width, height);
    let rows: Vec<&[u8]> = picture.image().rgb().chunks_exact(3 * width).rev().collect();
    Arc::new(Picture::from_rgb8(width, height, &rows.concat()).unwrap())
}

/// The request of a case.
pub(super) fn request(golden: &Golden, case: &str) -> Request {
    let at = |key: &str| golden.at(&format!("/cases/{case}/{key}"));
    let whole = |key: &str| at(key).as_u64().map(|number| number as usize);
    let number = |key: &str| at(key).as_f64().map(|number| number as f32);
    let (width, height) = (whole("width").unwrap(), whole("height").unwrap());
    let sampler: Sampler = at("sampler").as_str().unwrap().parse().unwrap();
    Request {
        prompt: at("prompt").as_str().unwrap().to_owned(),
        negative_prompt: at("negative_prompt").as_str().map(str::to_owned),
        width: Some(width),
        height: Some(height),
        frames: whole("frames"),
        steps: whole("steps"),
        seed: at("seed").as_u64().unwrap(),
        cfg_scale: number("cfg_scale"),
        cfg_scale_2: number("cfg_scale_2"),
        sampler: Some(sampler),
        shift: number("shift"),
        max_sequence_length: whole("max_sequence_length"),
        image: at("image").as_bool().unwrap().then(|| given::picture(width + 16, height)),
        last_image: at("last_image").as_bool().unwrap().then(|| last_picture(width, height + 8)),
        batch: whole("batch").unwrap(),
        ..Request::default()
    }
}

/// Draws all cases of `models` in the golden `name` and compares them.
fn compare_cases(name: &str, models: &[&str]) {
    for model in models {
        let (golden, dir) = directory_of(name, model);
        let mut pipeline = on(open(dir.path()), "cpu");
        films_equal_the_reference(&golden, model, [MOST, 60.0], |case| {
            generate(&mut pipeline, &request(&golden, case))
        });
    }
}

#[test]
fn videos_from_texts_equal_diffusers() {
    compare_cases("wan", &["t2v", "narrow"]);
}

#[test]
fn videos_by_two_experts_equal_diffusers() {
    compare_cases("wan", &["t2v_pair", "i2v_pair"]);
}

#[test]
fn videos_from_pictures_equal_diffusers() {
    compare_cases("wan", &["ti2v", "i2v", "flf2v"]);
}

/// With latents of 48 channels and the autoencoder of Wan 2.2, through to frames.
#[test]
fn videos_of_ti2v_5b_equal_diffusers() {
    compare_cases("wan_ti2v", &["ti2v"]);
}

#[test]
fn tokens_and_networks_alone_equal_their_references() {
    let (golden, dir) = directory("t2v");
    let model = open(dir.path());
    let settings = pipeline::settings(&model, &Request::new("")).unwrap();
    let (part, config) = networks::umt5(model.source.component(&TEXT_ENCODER).unwrap()).unwrap();
    let (ledger, mut wrong) = (Ledger::new(), Vec::new());
    let mut backend = Backend::new(Device::cpu().unwrap(), THREADS, CancelFlag::new()).unwrap();
    let mut compare = |what: &str, expected: &[f32], found: &[f32]| {
        let nmse = metrics::nmse(expected, found).unwrap();
        println!("{what}: nmse {nmse:.2e}");
        if nmse.is_nan() || nmse > 1e-10 {
            wrong.push(format!("{what}: {nmse:.2e}"));
        }
    };
    let weights = DeviceWeights::load(&part.net.model, &part.bound, backend.device(), &ledger).unwrap();
    // One more than there are, so that padding is there and not seen.
    for (i, text) in golden.list("/texts").iter().enumerate() {
        let ids: Vec<u32> = golden.ids(&format!("/texts/{i}/ids"));
        let encoded = &model.encoders.tokenize(text["text"].as_str().unwrap(), &settings).unwrap()[0];
        assert_eq!((&encoded.ids[..encoded.used], encoded.ids.len(), &encoded.cut), (&ids[..], 512, &None), "{text}");
        let tokens = ids.len() + 1;
        let dims = Dims::new().with(Symbol::BATCH, 1).with(Symbol::TEXT_TOKENS, tokens);
        let dims = dims.with(Symbol::TEXT_PAIRS, tokens * tokens);
        let mut session = Session::new(&part.net.model, &weights, &dims, &backend, &ledger).unwrap();
        session.set_indices(part.net.buckets, &config.buckets(tokens).unwrap()).unwrap();
        let embedded = part.bound.gather(part.net.token_embedding, config.d_model, &encoded.ids[..tokens]).unwrap();
        session.set(part.net.hidden, &embedded).unwrap();
        let mut mask = vec![0.0; ids.len()];
        mask.push(f32::NEG_INFINITY);
        session.set(part.net.mask.unwrap(), &mask).unwrap();
        session.run(&mut backend, Cadence::Request, |_, _| Ok(())).unwrap();
        let mut hidden = session.get(part.net.hidden).unwrap();
        hidden.truncate(ids.len() * config.d_model);
        compare(&format!("hidden states {i}"), &golden.f32(&format!("hidden.{i}")), &hidden);
    }
    // One forward of the transformer, at one time of two.
    let part = networks::wan(model.source.component(&TRANSFORMER).unwrap()).unwrap();
    let net = &part.net;
    let grid = [3, 5, 7];
    let sizes =
        Sizes { batch: 1, passes: 1, grid, text_tokens: 512, seen_tokens: 0, refers: false, gives_first: false };
    let weights = DeviceWeights::load(&net.model, &part.bound, backend.device(), &ledger).unwrap();
    let (cos, sin) = net.rotary(grid).unwrap();
    let mut text = golden.f32("hidden.1");
    text.resize(512 * net.config().text_dim, 0.0);
    let dims = [14, 10, 3, 16];
    let latents = pinhole::sample::randn(1, dims.iter().product()).unwrap();
    for way in [Way::Whole, Way::Tokens(32), Way::Heads { parts: 4, tokens: 32 }] {
        let mut session = Session::in_way(way, &net.model, &weights, &sizes.dims(2), &backend, &ledger).unwrap();
        session.set(net.ports.cos, &cos).unwrap();
        session.set(net.ports.sin, &sin).unwrap();
        session.set(net.ports.text, &text).unwrap();
        session.set(net.ports.time, &[sinusoid(800.0, 64), sinusoid(300.0, 64)].concat()).unwrap();
        session.run(&mut backend, Cadence::Request, |_, _| Ok(())).unwrap();
        session.set(net.ports.latents, &pinhole::models::wan::pack_latents(&latents, dims).unwrap()).unwrap();
        session.set_indices(net.ports.condition, &[1]).unwrap();
        session.run(&mut backend, Cadence::Step, |_, _| Ok(())).unwrap();
        let prediction = session.get(net.ports.prediction).unwrap();
        let velocity = pinhole::models::wan::unpack_prediction(&prediction, dims).unwrap();
        compare(&format!("forward, {way}"), &golden.f32("forward"), &velocity);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The model in `dir` with other files in the places of some of its components, and with `additions`.
pub(super) fn with(dir: &Path, parts: &[(&'static Slot, &str)], additions: &Additions) -> pinhole::Result<Opened> {
    let parts = parts.iter().map(|(slot, name)| (*slot, dir.join(name))).collect();
    let source = Source::assemble(Some(Source::open(dir)?), &Files { parts, tokenizers: Vec::new() })?;
    pipeline::open_with(&source, additions)
}

/// A folder with files of other tools: the experts by their names.
fn pair_of_files(golden: &Golden, names: [&str; 2]) -> TempDir {
    let (_, dir) = directory("t2v_pair");
    let folder = tempfile::tempdir().unwrap();
    for (component, name) in ["transformer", "transformer_2"].into_iter().zip(names) {
        write_gguf(&folder.path().join(name), golden, component, (Format::F32, Kernel::Whole));
    }
    write_umt5(&folder.path().join("umt5_xxl.safetensors"), golden, false);
    write_original_vae(&folder.path().join("vae.safetensors"), golden, false);
    fs::copy(dir.path().join("tokenizer/tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    folder
}

#[test]
fn experts_are_told_apart_or_asked_for() {
    let golden = Golden::load("wan");
    let (high, low) = ("Wan2.2-T2V-A14B-HighNoise-Q4.gguf", "wan2.2_t2v_low_noise_14B.gguf");
    let folder = pair_of_files(&golden, [high, low]);
    let model = open(folder.path());
    let slots: Vec<&str> = model.source.components().map(|component| component.slot.name).collect();
    assert_eq!(slots, ["transformer", "transformer_2", "text_encoder", "vae"]);
    let origin = |slot| model.source.component(slot).unwrap().origin.clone();
    assert_eq!((origin(&TRANSFORMER), origin(&TRANSFORMER_2)), (folder.path().join(high), folder.path().join(low)));
    let fails = |parts: &[(&'static Slot, &str)]| match with(folder.path(), parts, &Additions::default()) {
        Ok(_) => panic!("{parts:?}"),
        Err(error) => format!("{error}; {}", error.hint().unwrap_or_default()),
    };
    let swapped = fails(&[(&TRANSFORMER, low), (&TRANSFORMER_2, high)]);
    assert!(swapped.contains("the expert for high noise") && swapped.contains("--transformer-2"), "{swapped}");
    let twice = fails(&[(&TRANSFORMER, high), (&TRANSFORMER_2, high)]);
    assert!(twice.contains("another expert than --transformer"), "{twice}");
    fs::remove_file(folder.path().join(low)).unwrap();
    let alone = fails(&[]);
    assert!(alone.contains("the first of two experts") && alone.contains("--transformer-2"), "{alone}");
    // Names that say nothing.
    let unnamed = pair_of_files(&golden, ["one.gguf", "two.gguf"]);
    let asked = pipeline::open(&Source::open(unnamed.path()).unwrap()).err().unwrap();
    assert!(asked.hint().unwrap().contains("--transformer FILE"), "{asked}");
    let told = with(unnamed.path(), &[(&TRANSFORMER, "two.gguf"), (&TRANSFORMER_2, "one.gguf")], &Additions::default());
    assert!(told.unwrap().source.component(&TRANSFORMER_2).unwrap().origin.ends_with("one.gguf"));
}

#[test]
fn what_cannot_be_is_refused() {
    let (golden, dir) = directory("t2v");
    let model = open(dir.path());
    let refused = |model: &Opened, request: Request| {
        let error = pipeline::settings(model, &request).unwrap_err();
        format!("{error}; {}", error.hint().unwrap_or_default())
    };
    let plain = request(&golden, "plain");
    for (frames, nearest) in
        [(8, "are 5 and 9"), (0, "is 1"), (10, "are 9 and 13"), (11, "are 9 and 13"), (1 << 40, "is 4093")]
    {
        let said = refused(&model, Request { frames: Some(frames), ..plain.clone() });
        let expected = format!(
            "--frames: expected 1 to 4093, one more than a multiple of 4, found {frames}; the nearest {nearest}"
        );
        assert_eq!(said, expected);
    }
    for fps in [0.0, -1.0, f32::NAN, 1000.0] {
        let said = refused(&model, Request { fps: Some(fps), ..plain.clone() });
        assert!(said.starts_with("--fps: expected more than 0"), "{said}");
    }
    let said = refused(&model, Request { image: Some(given::picture(64, 64)), ..plain.clone() });
    assert!(said.starts_with("--image: expected nothing"), "{said}");
    let said = refused(&model, Request { boundary: Some(0.5), ..plain.clone() });
    assert!(said.starts_with("--boundary: expected nothing, since this model has one expert"), "{said}");
    let said = refused(&model, Request { width: Some(100), ..plain });
    assert!(said.contains("a multiple of 16"), "{said}");
    let additions = Additions { loras_high: vec![(PathBuf::from("x.safetensors"), 1.0)], ..Additions::default() };
    let error = with(dir.path(), &[], &additions).err().unwrap().to_string();
    assert!(error.starts_with("--lora-high: expected a model of two experts"), "{error}");
    let (golden, dir) = directory("flf2v");
    let model = open(dir.path());
    let both = request(&golden, "flf2v");
    let said = refused(&model, Request { image: None, ..both.clone() });
    assert!(said.starts_with("--image: expected a picture"), "{said}");
    let said = refused(&model, Request { last_image: None, ..both.clone() });
    assert!(said.starts_with("--last-image: expected a picture"), "{said}");
    let said = refused(&model, Request { max_sequence_length: Some(64), ..both });
    assert!(said.starts_with("--max-sequence-length: expected 512"), "{said}");
    fs::remove_dir_all(dir.path().join("image_encoder")).unwrap();
    let error = pipeline::open(&Source::open(dir.path()).unwrap()).err().unwrap();
    assert!(error.to_string().contains("image_encoder"), "{error}");
    let _ = (&IMAGE_ENCODER, &VAE);
}

/// A bundle of the model in that type.
pub(super) fn bundle(model: &Opened, path: &Path, file_type: &str) {
    let plan = convert::plan(&model.source, &model.networks(), file_type.parse::<FileType>().unwrap()).unwrap();
    // Parts of one matrix in other files are one matrix here, too.
    let of_time = plan.tensors.iter().find(|tensor| tensor.name.ends_with(".time_projection.1.weight"));
    let [inputs, outputs, ..] = of_time.unwrap().shape.dims();
    assert_eq!(outputs, 6 * inputs);
    plan.write(path, WriteOptions { overwrite: true, ..WriteOptions::default() }, &mut |_| Ok(())).unwrap();
}

#[test]
fn streamed_equals_resident() {
    for (name, case) in [("t2v_pair", "pair"), ("ti2v", "ti2v_batch")] {
        let (golden, dir) = directory(name);
        for file_type in [None, Some("f32"), Some("q8_0"), Some("q4_k_s")] {
            let path = dir.path().join("bundle.gguf");
            let model = match file_type {
                None => open(dir.path()),
                Some(file_type) => {
                    bundle(&open(dir.path()), &path, file_type);
                    open(&path)
                }
            };
            assert_eq!(model.family.name, "wan");
            assert_eq!(model.rules.experts.is_some(), name == "t2v_pair");
            let mut pipeline = on(model, "cpu:discrete");
            let request = request(&golden, case);
            let mut draw = |offload| {
                pipeline.set_memory(MemoryOptions { vram: None, offload, host: None });
                generate(&mut pipeline, &request)
            };
            let (resident, streamed) = (draw(Offload::None), draw(Offload::Sequential));
            assert!(resident.plan.all_resident && !streamed.plan.all_resident);
            assert!(bits(&resident) == bits(&streamed), "{case} {file_type:?}: other latents");
            assert!(resident.images == streamed.images, "{case} {file_type:?}: other frames");
            let auto = draw(Offload::Auto);
            assert!(!auto.plan.all_resident || name != "t2v_pair", "both experts at once");
            if file_type.is_none_or(|file_type| file_type == "f32") {
                let nmse = metrics::nmse(&golden.f32(&format!("{case}.latents")), &resident.latents).unwrap();
                assert!(nmse <= MOST, "{case} {file_type:?}: {nmse:e}");
            }
            // As little as goes: pieces of tokens.
            pipeline.set_memory(MemoryOptions { vram: Some(1), offload: Offload::Auto, host: None });
            let least = match pipeline.plan(&request) {
                Err(pinhole::Error::OverBudget { needed, .. }) => needed,
                other => panic!("{:?}", other.map(|plan| plan.peak())),
            };
            pipeline.set_memory(MemoryOptions { vram: Some(least), offload: Offload::Auto, host: None });
            let smallest = generate(&mut pipeline, &request);
            println!("{case} {file_type:?}: {} bytes, and {least} at least", resident.plan.peak());
            // All that is multiplied in pieces goes through pinhole's kernels, which round alike for any number of tokens.
            assert!(bits(&resident) == bits(&smallest), "{case} {file_type:?}: other latents in pieces");
        }
    }
}

/// A LoRA of two layers, of modulation and of a norm, in the `spelling` of one of three kinds of trainers.
fn write_lora(path: &Path, spelling: usize, width: usize) {
    let numbers = |seed: u64, shape: &[usize]| {
        let values = pinhole::sample::randn(seed, shape.iter().product()).unwrap();
        values.into_iter().map(|value| 0.1 * value).collect::<Vec<f32>>()
    };
    let layers = [
        ["diffusion_model.blocks.0.self_attn.q", "transformer.blocks.0.attn1.to_q", "lora_unet_blocks_0_self_attn_q"],
        ["diffusion_model.blocks.1.cross_attn.v", "transformer.blocks.1.attn2.to_v", "lora_unet_blocks_1_cross_attn_v"],
    ];
    let ends = [["lora_down", "lora_up"], ["lora_A", "lora_B"], ["lora_down", "lora_up"]][spelling];
    let mut all = Vec::new();
    for (i, names) in layers.iter().enumerate() {
        for (j, (end, shape)) in ends.into_iter().zip([[4, width], [width, 4]]).enumerate() {
            let (name, values) = (format!("{}.{end}.weight", names[spelling]), numbers((2 * i + j) as u64, &shape));
            all.push(Tensor { name, shape: shape.to_vec(), values });
        }
    }
    if spelling == 0 {
        for (name, shape) in [("blocks.0.diff_m", vec![1, 6, width]), ("blocks.0.norm3.diff_b", vec![width])] {
            let values = numbers(9, &shape);
            all.push(Tensor { name: format!("diffusion_model.{name}"), shape, values });
        }
    }
    write_tensors(path, &all);
}

#[test]
fn loras_are_for_both_experts_or_for_one() {
    let (golden, dir) = directory("t2v_pair");
    let path = dir.path().join("lora.safetensors");
    let case = request(&golden, "pair_plain");
    let draw = |additions: &Additions| {
        let model = with(dir.path(), &[], additions).unwrap();
        assert!(model.loras.iter().all(|report| report.unused.is_empty()), "{:?}", model.loras);
        bits(&generate(&mut on(model, "cpu"), &case))
    };
    let plain = draw(&Additions::default());
    let given = || vec![(path.clone(), 0.8)];
    for spelling in 0..3 {
        write_lora(&path, spelling, 256);
        let both = draw(&Additions { loras: given(), ..Additions::default() });
        let pair = Additions { loras_high: given(), loras_low: given(), ..Additions::default() };
        assert!(both == draw(&pair) && both != plain, "{spelling}");
        let [high, low] = [
            Additions { loras_high: given(), ..Additions::default() },
            Additions { loras_low: given(), ..Additions::default() },
        ]
        .map(|additions| draw(&additions));
        assert!(high != low && high != both && high != plain && low != plain, "{spelling}");
    }
    // One of a narrower model.
    write_lora(&path, 0, 128);
    let error = with(dir.path(), &[], &Additions { loras: given(), ..Additions::default() }).err().unwrap();
    assert!(error.hint().unwrap().contains("a LoRA works with models of the family and size"), "{error}");
}

/// The published sizes at 832x480 and 81 frames, with the text encoder, guidance and the decoder.
#[test]
fn videos_of_published_size_fit_a_small_card() {
    let dir = tempfile::tempdir().unwrap();
    for (architecture, file_type, most) in [
        (Architecture::WAN_1_3B, "q4_k_s", 1 << 30),
        (Architecture::WAN_1_3B, "q8_0", 3 << 29),
        (Architecture::WAN_A14B, "q4_k_s", 2 << 30),
        (Architecture::WAN_TI2V_5B, "q4_k_s", 3 << 30),
    ] {
        let name = format!("{} {file_type}", architecture.name());
        let path = dir.path().join(&name);
        let file_type = file_type.parse().unwrap();
        let options = synthetic::Options { architecture, file_type, blocks: None, hollow: true, only: None };
        synthetic::write(&path, &options, |_| Ok(())).unwrap();
        let pipeline = on(open(&path), "cpu:discrete");
        let request = Request { width: Some(832), height: Some(480), frames: Some(81), ..Request::new("a boat") };
        let components = pipeline.measure(&pipeline.settings(&request).unwrap()).unwrap();
        let limits = Limits { bytes: Some(1), ..Limits::default() };
        let refusal = budget::plan(&components, Offload::Auto, &limits).unwrap_err();
        println!("{name}: least {}, for the {}", Size(refusal.least as u64), refusal.component);
        assert!(refusal.least <= most, "{name}: {}", refusal.least);
    }
}
