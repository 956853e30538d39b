//! Qwen-Image 2.1 with pictures that it looks at, against diffusers in float32, and Qwen3-VL with its vision tower against transformers;
//! recorded by `tests/reference/qwen_image_21_edit.py`.

use pinhole::bind::alias;
use pinhole::models::language_model::{LanguageModel, TOLD_TOKENS};
use pinhole::models::qwen_vl::Grid;
use pinhole::pipeline::ReferenceResize;
use pinhole::source::slot::IMAGE_ENCODER;
use pinhole::source::{Component, Place, beside, kinds_in};

use super::*;
use crate::support::cases::equal_the_reference;
use crate::support::qwen_image;
use crate::support::qwen_image_21::write_projector;

/// How far what comes of pictures may be from the reference's: resizing in bytes is not tested here.
const MOST_OF_PICTURES: f64 = 1e-8;

/// The golden, and its model as a directory.
fn seeing() -> (Golden, TempDir) {
    let ((_, dir), golden) = (model(), Golden::load("qwen_image_21_edit"));
    give_sight(dir.path(), &golden);
    (golden, dir)
}

/// The pictures that a case looks at.
fn references(golden: &Golden, case: &str) -> Vec<[usize; 2]> {
    let sizes = golden.list(&format!("/cases/{case}/references")).iter();
    sizes.map(|size| [0, 1].map(|i| size[i].as_u64().unwrap() as usize)).collect()
}

/// The request of a case: pictures keep their size.
fn request(golden: &Golden, case: &str) -> Request {
    let at = |key: &str| golden.at(&format!("/cases/{case}/{key}"));
    let whole = |key: &str| at(key).as_u64().map(|number| number as usize);
    let pictures = references(golden, case).into_iter().map(|[width, height]| given::picture(width, height));
    Request {
        prompt: at("prompt").as_str().unwrap().to_owned(),
        negative_prompt: at("negative_prompt").as_str().map(str::to_owned),
        width: whole("width"),
        height: whole("height"),
        steps: whole("steps"),
        seed: at("seed").as_u64().unwrap(),
        cfg_scale: at("cfg_scale").as_f64().map(|number| number as f32),
        batch: whole("batch").unwrap(),
        references: pictures.collect(),
        reference_resize: ReferenceResize::None,
        ..Request::default()
    }
}

#[test]
fn edits_equal_diffusers() {
    let (golden, dir) = seeing();
    let mut pipeline = on(open(dir.path()), "cpu");
    equal_the_reference(&golden, [MOST_OF_PICTURES, 55.0], |case| generate(&mut pipeline, &request(&golden, case)));
}

/// What the vision tower in `component` makes of a picture of so many pixels: its tokens, and what is taken behind its blocks.
fn seen(component: &Component, [width, height]: [usize; 2]) -> Vec<Vec<f32>> {
    let part = networks::qwen3_vl(component).unwrap();
    let (net, ledger, grid) = (&part.net, Ledger::new(), Grid { rows: height / 32, columns: width / 32 });
    let mut backend = Backend::new(Device::cpu().unwrap(), THREADS, CancelFlag::new()).unwrap();
    let weights = DeviceWeights::load(&net.model, &part.bound, backend.device(), &ledger).unwrap();
    let mut session = Session::new(&net.model, &weights, &net.dims(grid), &backend, &ledger).unwrap();
    let picture = given::picture(width, height);
    session.set(net.pixels, &net.patches(grid, picture.image().rgb()).unwrap()).unwrap();
    let cells: Vec<u32> = (0..net.config().num_position_embeddings as u32).collect();
    let table = part.bound.gather(net.table, net.config().hidden_size, &cells).unwrap();
    session.set(net.places, &net.places(grid, &table).unwrap()).unwrap();
    let (cos, sin) = net.rotary(grid).unwrap();
    session.set(net.positions.cos, &cos).unwrap();
    session.set(net.positions.sin, &sin).unwrap();
    session.run(&mut backend, Cadence::Request, |_, _| Ok(())).unwrap();
    std::iter::once(&net.tokens).chain(&net.deepstack).map(|&port| session.get(port).unwrap()).collect()
}

/// That of transformers' files and, alone, that of llama.cpp's in every type that these have.
#[test]
fn the_vision_tower_equals_transformers() {
    let (golden, dir) = seeing();
    let model = open(dir.path());
    let reader = model.source.component(&TEXT_ENCODER).unwrap();
    let (kind, prefix) = kinds_in(&reader.index).find(|(kind, _)| **kind == alias::QWEN3_VL_VISION).unwrap();
    assert_eq!((kind.what, prefix.as_str()), ("Qwen3-VL vision tower", "model."));
    let names = ["vision", "deepstack.0", "deepstack.1", "deepstack.2"];
    let compare = |what: &str, found: &[Vec<f32>], most: f64| {
        assert_eq!(found.len(), names.len());
        for (name, found) in names.iter().zip(found) {
            let nmse = metrics::nmse(&golden.f32(name), found).unwrap();
            println!("{what}, {name}: nmse {nmse:.2e}");
            assert!(nmse <= most, "{what}, {name}: {nmse:e}");
        }
    };
    // 7 x 5 tokens: no side is that of the square table, and their number is odd.
    let size = [5 * 32, 7 * 32];
    compare("directory", &seen(&Component { prefix, ..reader.clone() }, size), 1e-9);
    let place = Place::needed(&IMAGE_ENCODER, &alias::QWEN3_VL_VISION, |_| unreachable!());
    for (format, most) in [(Format::F32, 1e-9), (Format::F16, 1e-5), (Format::BF16, 1e-3), (Format::Q8_0, 1e-3)] {
        let path = dir.path().join("mmproj.gguf");
        write_projector(&path, &golden, format);
        compare(&format!("{format:?}"), &seen(&beside(&path, &place).unwrap(), size), most);
    }
}

/// The language model with pictures, and one forward of the transformer with those.
#[test]
fn prompts_with_pictures_equal_transformers() {
    let (golden, dir) = seeing();
    let (model, case) = (open(dir.path()), request(&golden, "two"));
    let settings = pipeline::settings(&model, &case).unwrap();
    let expected: Vec<u32> = golden.ids("/ids");
    assert_eq!(model.encoders.tokenize(&case.prompt, &settings).unwrap()[0].ids, expected);
    let nmse = metrics::nmse(&golden.f32("hidden"), &hidden(&golden, &model.source, &expected)).unwrap();
    println!("hidden states: nmse {nmse:.2e}");
    assert!(nmse <= 1e-9, "{nmse:e}");
    let part = networks::qwen_image_21(model.source.component(&TRANSFORMER).unwrap()).unwrap();
    let (net, text) = (&part.net, golden.f32("hidden"));
    let tokens = references(&golden, "two").into_iter().map(|[width, height]| [height / 16, width / 16]);
    let gaps = gaps(&golden, &expected);
    let (references, texts) = (tokens.collect(), vec![text.len() / 256]);
    let sizes = Sizes { batch: 1, image: [2, 6], references, gaps, texts };
    let (mut backend, ledger) =
        (Backend::new(Device::cpu().unwrap(), THREADS, CancelFlag::new()).unwrap(), Ledger::new());
    let weights = DeviceWeights::load(&net.model, &part.bound, backend.device(), &ledger).unwrap();
    let mut session = Session::new(&net.model, &weights, &sizes.dims(2), &backend, &ledger).unwrap();
    let (cos, sin) = net.rotary(&sizes, sizes.text_tokens()).unwrap();
    session.set(net.ports.cos, &cos).unwrap();
    session.set(net.ports.sin, &sin).unwrap();
    session.set(net.ports.text, &text).unwrap();
    session.set(net.ports.mask, &net.mask(&sizes, sizes.text_tokens()).unwrap()).unwrap();
    session.set(net.ports.time, &[sinusoid(0.8), sinusoid(0.3), sinusoid(0.0)].concat()).unwrap();
    session.run(&mut backend, Cadence::Request, |_, _| Ok(())).unwrap();
    // The reference has the picture that is drawn behind the others.
    let all = pinhole::sample::randn(1, 64 * (sizes.image_tokens() + sizes.reference_tokens())).unwrap();
    let (looked_at, drawn) = all.split_at(64 * sizes.reference_tokens());
    session.set(net.ports.latents, &[drawn, looked_at].concat()).unwrap();
    session.set_indices(net.ports.condition, &[1]).unwrap();
    session.run(&mut backend, Cadence::Step, |_, _| Ok(())).unwrap();
    let nmse = metrics::nmse(&golden.f32("forward"), &session.get(net.ports.prediction).unwrap()).unwrap();
    println!("forward: nmse {nmse:.2e}");
    assert!(nmse <= 1e-10, "{nmse:e}");
}

/// The hidden states that the language model of `source` gives of the text of case "two", which has the tokens `ids`, without those of the
/// system's turn and of the pictures.
fn hidden(golden: &Golden, source: &Source, ids: &[u32]) -> Vec<f32> {
    let reader = source.component(&TEXT_ENCODER).unwrap();
    let tower = Component { prefix: "model.".into(), ..reader.clone() };
    let sizes = references(golden, "two");
    let looked_at: Vec<Vec<Vec<f32>>> = sizes.iter().map(|&size| seen(&tower, size)).collect();
    let of_pictures = |i: usize| looked_at.iter().flat_map(|seen| &seen[i]).copied().collect::<Vec<f32>>();
    let (part, config) = networks::language_model(reader, Taps::after).unwrap();
    let net = LanguageModel::seeing(&config, &Taps::after(config.num_hidden_layers), 3).unwrap();
    let (width, mark) = (config.hidden_size, mark(golden, ids));
    // Tokens of a picture stand in rows and columns, and what comes behind it stands behind its longer side.
    let (mut positions, mut next, mut grids) = (Vec::new(), 0, sizes.iter().map(|size| size.map(|side| side / 32)));
    while let Some(&id) = ids.get(positions.len()) {
        let Some([columns, rows]) = (id == mark).then(|| grids.next().unwrap()) else {
            positions.push([next; 3]);
            next += 1;
            continue;
        };
        positions.extend((0..rows * columns).map(|i| [next, next + i / columns, next + i % columns]));
        next += rows.max(columns);
    }
    let put = |vectors: &[f32], into: &mut [f32]| {
        let places = into.chunks_exact_mut(width).zip(ids).filter(|(_, id)| **id == mark);
        places.zip(vectors.chunks_exact(width)).for_each(|((place, _), vector)| place.copy_from_slice(vector));
    };
    let (mut backend, ledger) =
        (Backend::new(Device::cpu().unwrap(), THREADS, CancelFlag::new()).unwrap(), Ledger::new());
    let weights = DeviceWeights::load(&net.model, &part.bound, backend.device(), &ledger).unwrap();
    let dims = Dims::new().with(Symbol::BATCH, 1).with(Symbol::TEXT_TOKENS, ids.len()).with(TOLD_TOKENS, ids.len());
    let mut session = Session::new(&net.model, &weights, &dims, &backend, &ledger).unwrap();
    let (cos, sin) = config.rotary_at(&positions).unwrap();
    let mut embedded = part.bound.gather(net.token_embedding, width, ids).unwrap();
    put(&of_pictures(0), &mut embedded);
    session.set(net.hidden, &embedded).unwrap();
    session.set(net.positions.mask, &causal_mask(ids.len()).unwrap()).unwrap();
    session.set(net.positions.cos, &cos).unwrap();
    session.set(net.positions.sin, &sin).unwrap();
    for (i, &port) in net.deepstack.iter().enumerate() {
        let mut added = vec![0.0; ids.len() * width];
        put(&of_pictures(i + 1), &mut added);
        session.set(port, &added).unwrap();
    }
    session.run(&mut backend, Cadence::Request, |_, _| Ok(())).unwrap();
    let states = session.get(net.hidden).unwrap();
    let of_text = states.chunks_exact(width).zip(ids).skip(dropped()).filter(|(_, id)| **id != mark);
    of_text.flat_map(|(state, _)| state).copied().collect()
}

/// How many tokens the system's turn has.
fn dropped() -> usize {
    Golden::load("qwen_image_21").at("/dropped").as_u64().unwrap() as usize
}

/// The token that stands for those of pictures in `ids`.
fn mark(golden: &Golden, ids: &[u32]) -> u32 {
    let pictures: usize = references(golden, "two").iter().map(|[width, height]| width * height / 32 / 32).sum();
    *ids.iter().find(|id| ids.iter().filter(|other| other == id).count() == pictures).unwrap()
}

/// How many tokens of `ids` without the system's turn stand before each picture.
fn gaps(golden: &Golden, ids: &[u32]) -> Vec<usize> {
    let mark = mark(golden, ids);
    let parts = ids[dropped()..].chunk_by(|one, next| (*one == mark) == (*next == mark));
    parts.filter(|part| part[0] != mark).take(2).map(<[u32]>::len).collect()
}

#[test]
fn edits_stream_as_they_are_resident() {
    let (golden, dir) = seeing();
    for file_type in ["f32", "q8_0", "q4_k_s"] {
        let path = dir.path().join("bundle.gguf");
        bundle(&open(dir.path()), &path, file_type);
        let mut pipeline = on(open(&path), "cpu:discrete");
        let request = Request { steps: Some(2), ..request(&golden, "two_cfg") };
        let mut draw = |offload| {
            pipeline.set_memory(MemoryOptions { vram: None, offload, host: None });
            generate(&mut pipeline, &request)
        };
        let (resident, streamed) = (draw(Offload::None), draw(Offload::Sequential));
        assert!(bits(&resident) == bits(&streamed), "{file_type}: other latents");
        assert!(resident.images == streamed.images, "{file_type}: other pictures");
    }
}

/// A tower in a file of its own beside the language model's, or given; and none.
#[test]
fn towers_are_found_beside_the_language_model() {
    let (golden, dir) = seeing();
    let case = Request { steps: Some(2), ..request(&golden, "one") };
    let expected = bits(&generate(&mut on(open(dir.path()), "cpu"), &case));
    write_llama(&dir.path().join("Qwen3-VL-8B-F32.gguf"), &golden, Format::F32);
    let reader = [(&TEXT_ENCODER, "Qwen3-VL-8B-F32.gguf")];
    let alone = with(dir.path(), &reader).unwrap();
    let none = pipeline::settings(&alone, &case).unwrap_err();
    assert!(none.to_string().contains("Qwen3-VL-8B-F32.gguf") && none.hint().unwrap().contains("mmproj"), "{none}");
    // A text alone needs none.
    let text = Request { references: Vec::new(), ..case.clone() };
    assert_eq!(bits(&generate(&mut on(alone, "cpu"), &text)), bits(&generate(&mut on(open(dir.path()), "cpu"), &text)));
    let projector = dir.path().join("mmproj-Qwen3-VL-8B-F32.gguf");
    write_projector(&projector, &golden, Format::F32);
    assert!(bits(&generate(&mut on(with(dir.path(), &reader).unwrap(), "cpu"), &case)) == expected);
    let elsewhere = tempfile::tempdir().unwrap();
    let moved = elsewhere.path().join("tower.gguf");
    fs::rename(&projector, &moved).unwrap();
    let additions = Additions { image_encoders: vec![moved], ..Additions::default() };
    let files = Files { parts: vec![(&TEXT_ENCODER, dir.path().join(reader[0].1))], tokenizers: Vec::new() };
    let source = Source::assemble(Some(Source::open(dir.path()).unwrap()), &files).unwrap();
    let given = pipeline::open_with(&source, &additions).unwrap();
    assert!(bits(&generate(&mut on(given, "cpu"), &case)) == expected);
}

#[test]
fn pictures_that_do_not_fit_are_refused() {
    let (golden, dir) = seeing();
    let model = open(dir.path());
    let refused = |request: Request| pipeline::settings(&model, &request).unwrap_err().to_string();
    let request = request(&golden, "one");
    let eleven = refused(Request { references: vec![given::picture(64, 64); 11], ..request.clone() });
    assert_eq!(eleven, "--reference: expected at most 10, found 11 pictures");
    let small = refused(Request { references: vec![given::picture(64, 16)], ..request.clone() });
    assert!(small.starts_with("--reference: expected sides from 32"), "{small}");
    let long = refused(Request { references: vec![given::picture(8000, 32)], ..request.clone() });
    assert!(long.contains("200 times"), "{long}");
    // Without a word, the result has the shape of the last picture, and that is given a million pixels.
    let usual = Request { width: None, height: None, reference_resize: ReferenceResize::Auto, ..request };
    let settings = pipeline::settings(&model, &usual).unwrap();
    assert_eq!(([settings.width, settings.height], settings.references), ([1248, 832], vec![[1248, 832]]));
    // The tower of another model, and one of the right kind for another language model.
    let other = Golden::load("qwen_image");
    qwen_image::write_projector(&dir.path().join("mmproj-other.gguf"), &other, Format::F32);
    let additions = Additions { image_encoders: vec![dir.path().join("mmproj-other.gguf")], ..Additions::default() };
    let error = pipeline::open_with(&Source::open(dir.path()).unwrap(), &additions).err().unwrap().to_string();
    assert!(error.contains("mmproj-other.gguf") && error.contains("Qwen2.5-VL vision tower"), "{error}");
    let config = dir.path().join("text_encoder/config.json");
    let text = fs::read_to_string(&config).unwrap();
    for (setting, wrong, part) in [
        ("\"num_position_embeddings\": 25", "\"num_position_embeddings\": 24", "num_position_embeddings"),
        ("\"hidden_act\": \"gelu_pytorch_tanh\"", "\"hidden_act\": \"gelu\"", "hidden_act"),
    ] {
        assert!(text.contains(setting), "{setting}");
        fs::write(&config, text.replace(setting, wrong)).unwrap();
        let error = pipeline::open(&Source::open(dir.path()).unwrap()).err().unwrap().to_string();
        assert!(error.contains(part), "{error}");
    }
}
