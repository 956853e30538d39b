//! FLUX.1 Redux and IP-Adapters against diffusers in float32. The expected latents were recorded by
//! `tests/reference/image_prompts.py`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::drawing::{bits, on};
use crate::support::{self, Golden, Layout, given, in_parts};
use pinhole::convert::{self, Options, Target, WriteOptions};
use pinhole::inspect::{Report, Subject};
use pinhole::pipeline::{self, Additions, Event, Generated, MemoryOptions, Opened, Phase, Pipeline, Request};
use pinhole::plan::Offload;
use pinhole::source::{Network, Networks, Slot, Source, networks, slot};
use pinhole_quant::metrics;
use pinhole_quant::recipe::FileType;
use tempfile::TempDir;

/// How far latents may be from diffusers', resized pictures included. On the processor that they were recorded beside they are up to 3e-12
/// away; others round in another order.
const MOST: f64 = 1e-10;

/// The model, and what goes beside it.
struct Files {
    dir: TempDir,
}

impl Files {
    /// Those of the golden `name`.
    fn of(golden: &Golden) -> Files {
        let dir = tempfile::tempdir().unwrap();
        support::write_model(&dir.path().join("dev"), &Golden::load("dev"), &Layout::default());
        for component in golden.at("/components").as_object().unwrap().keys() {
            support::write_component(&dir.path().join("beside").join(component), golden, component, &Layout::default());
        }
        Files { dir }
    }

    fn model(&self) -> PathBuf {
        self.dir.path().join("dev")
    }

    fn beside(&self, component: &str) -> PathBuf {
        self.dir.path().join("beside").join(component)
    }

    fn redux(&self) -> Additions {
        Additions {
            redux: Some(self.beside("image_embedder")),
            image_encoders: vec![self.beside("image_encoder")],
            ..Additions::default()
        }
    }
}

impl Files {
    fn ip(&self) -> Additions {
        Additions {
            ip_adapter: Some(self.beside("ip_adapter").join("ip_adapter.safetensors")),
            image_encoders: vec![self.beside("image_encoder")],
            ..Additions::default()
        }
    }
}

fn open(path: &Path, additions: &Additions) -> Opened {
    pipeline::open_with(&Source::open(path).unwrap(), additions).unwrap()
}

/// The request of a case.
fn request(golden: &Golden, case: &str) -> Request {
    let at = |key: &str| golden.at(&format!("/cases/{case}/{key}"));
    let whole = |key: &str| at(key).as_u64().map(|number| number as usize);
    let number = |key: &str| at(key).as_f64().map(|number| number as f32);
    let (weights, is_redux) = (at("weights").as_array().unwrap(), golden.name == "redux");
    let mut pictures = Vec::new();
    for (i, size) in at("pictures").as_array().unwrap().iter().enumerate() {
        let side = |i: usize| size[i].as_u64().unwrap() as usize;
        let weight = weights.get(i).map_or(1.0, |weight| weight.as_f64().unwrap() as f32);
        pictures.push((given::picture(side(0), side(1)), weight));
    }
    Request {
        prompt: at("prompt").as_str().unwrap_or_default().to_owned(),
        without_prompt: at("prompt").is_null(),
        negative_prompt: at("negative_prompt").as_str().map(str::to_owned),
        width: whole("width"),
        height: whole("height"),
        steps: whole("steps"),
        seed: at("seed").as_u64().unwrap(),
        guidance: number("guidance_scale"),
        cfg_scale: number("cfg_scale"),
        max_sequence_length: whole("max_sequence_length"),
        batch: whole("batch").unwrap(),
        ip_scale: if is_redux { None } else { number("ip_scale") },
        ip_images: if is_redux { Vec::new() } else { pictures.iter().map(|(picture, _)| picture.clone()).collect() },
        redux: if is_redux { pictures } else { Vec::new() },
        ..Request::default()
    }
}

fn generate(pipeline: &mut Pipeline, request: &Request) -> Generated {
    let generated = pipeline.generate_watched(request, &mut |_: Event| Ok(())).unwrap();
    for phase in &generated.phases {
        assert_eq!(phase.measured.peak, phase.planned, "{:?}: {:?}", phase.phase, phase.measured);
    }
    assert_eq!(generated.memory.peak, generated.plan.peak());
    assert!(generated.phases.iter().any(|phase| phase.phase == Phase::Encode));
    generated
}

fn equal_diffusers(golden: &Golden, additions: &Additions, files: &Files) {
    let mut pipeline = on(open(&files.model(), additions), "cpu");
    let mut wrong = Vec::new();
    for (case, described) in golden.at("/cases").as_object().unwrap() {
        let generated = generate(&mut pipeline, &request(golden, case));
        let nmse = metrics::nmse(&golden.f32(&format!("{case}.latents")), &generated.latents).unwrap();
        println!("{} {case}: nmse {nmse:.2e} (at most {MOST:.0e})", golden.name);
        if nmse > MOST {
            wrong.push(format!("{case}: {nmse:.2e}"));
        }
        if described["decoded"].as_bool().unwrap() {
            let psnr = metrics::psnr(&golden.u8(&format!("{case}.picture")), generated.images[0].rgb()).unwrap();
            assert!(psnr >= 60.0, "{case}: psnr {psnr}");
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn redux_equals_diffusers() {
    let golden = Golden::load("redux");
    let files = Files::of(&golden);
    equal_diffusers(&golden, &files.redux(), &files);
}

#[test]
fn ip_adapters_equal_diffusers() {
    for name in ["ip_adapter", "ip_adapter_instantx"] {
        let golden = Golden::load(name);
        let files = Files::of(&golden);
        equal_diffusers(&golden, &files.ip(), &files);
    }
}

/// Writes the network at `slot` in `path` as a file of `file_type`.
fn converted(path: &Path, slot: &'static Slot, file_type: &str, to: &Path) {
    let (source, networks) = pipeline::component(&Source::assemble(None, &files(slot, path)).unwrap(), slot).unwrap();
    write_component(&source, &networks.networks(), slot, file_type, to);
}

/// Writes `networks` of `source`, which are at `slot`, as a file of `file_type`.
fn write_component(source: &Source, networks: &[Network<'_>], slot: &'static Slot, file_type: &str, to: &Path) {
    let options = Options { target: Target::Component(slot), ..file_type.parse::<FileType>().unwrap().into() };
    let plan = convert::plan(source, networks, options).unwrap();
    plan.write(to, WriteOptions::default(), &mut |_| Ok(())).unwrap();
}

fn files(slot: &'static Slot, path: &Path) -> pinhole::source::Files {
    pinhole::source::Files { parts: vec![(slot, path.to_owned())], tokenizers: Vec::new() }
}

/// The model and what goes beside it, as files of `file_type` if that says one.
fn in_type(files: &Files, additions: &Additions, file_type: Option<&str>) -> Opened {
    let Some(file_type) = file_type else { return open(&files.model(), additions) };
    let (opened, mut additions) = (open(&files.model(), &Additions::default()), additions.clone());
    let model = files.dir.path().join(format!("{file_type}.gguf"));
    let types = file_type.parse::<FileType>().unwrap();
    let plan = convert::plan(&opened.source, &opened.networks(), types).unwrap();
    plan.write(&model, WriteOptions::default(), &mut |_| Ok(())).unwrap();
    let to = |slot: &'static Slot, from: &Path| {
        let to = files.dir.path().join(format!("{}-{file_type}.gguf", slot.name));
        converted(from, slot, file_type, &to);
        to
    };
    additions.image_encoders = vec![to(&slot::IMAGE_ENCODER, &additions.image_encoders[0])];
    additions.redux = additions.redux.map(|path| to(&slot::IMAGE_EMBEDDER, &path));
    if let Some(path) = &mut additions.ip_adapter {
        // By itself, an adapter is taken for one of the published transformer.
        let beside = networks::flux(opened.source.component(&slot::TRANSFORMER).unwrap()).unwrap();
        let place = pipeline::BESIDE.iter().find(|place| *place.slot == slot::IP_ADAPTER).unwrap();
        let source = Source::alone(path, "flux", place).unwrap();
        let adapter = networks::flux_ip(source.component(&slot::IP_ADAPTER).unwrap(), beside.net.config()).unwrap();
        let to = files.dir.path().join(format!("adapter-{file_type}.gguf"));
        write_component(&source, &adapter.networks(), &slot::IP_ADAPTER, file_type, &to);
        *path = to;
    }
    open(&model, &additions)
}

/// Of Redux and of both kinds of adapters: what streams draws what stays, and passes that come one after the other draw what they draw
/// side by side.
#[test]
fn streamed_equals_resident() {
    for name in ["redux", "ip_adapter", "ip_adapter_instantx"] {
        let golden = Golden::load(name);
        let files = Files::of(&golden);
        let additions = if name == "redux" { files.redux() } else { files.ip() };
        let request = Request { steps: Some(2), ..request(&golden, "cfg") };
        for file_type in [None, Some("q8_0"), Some("q4_k_s")] {
            let mut pipeline = on(in_type(&files, &additions, file_type), "cpu:discrete");
            let mut draw = |offload| {
                pipeline.set_memory(MemoryOptions { vram: None, offload, host: None });
                generate(&mut pipeline, &request)
            };
            let (resident, streamed) = (draw(Offload::None), draw(Offload::Sequential));
            assert!(resident.plan.all_resident && !streamed.plan.all_resident);
            assert!(bits(&resident) == bits(&streamed), "{name} {file_type:?}: other latents");
            assert!(resident.images == streamed.images, "{name} {file_type:?}: other pictures");
            if file_type != Some("q4_k_s") {
                in_parts::draws_the_same(&mut pipeline, &request, &format!("{name} {file_type:?}"));
            }
        }
    }
}

/// What is said of a model that is opened with `additions`.
fn refused(files: &Files, additions: &Additions) -> String {
    let error = pipeline::open_with(&Source::open(&files.model()).unwrap(), additions).err().unwrap();
    format!("{error}; {}", error.hint().unwrap_or_default()).replace(files.dir.path().to_str().unwrap(), "")
}

/// A safetensors file with a number that is called `name`.
fn one_tensor(path: &Path, name: &str) -> PathBuf {
    let header = format!(r#"{{"{name}": {{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}}}"#);
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat();
    fs::write(path, bytes).unwrap();
    path.to_owned()
}

#[test]
fn what_does_not_belong_there_is_named() {
    let golden = Golden::load("redux");
    let (files, plain) = (Files::of(&golden), Additions::default());
    let text_encoder = vec![files.model().join("text_encoder")];
    let without = Additions { image_encoders: Vec::new(), ..files.redux() };
    let said = refused(&files, &without);
    assert!(said.contains("no SigLIP vision tower in it; give one with --image-encoder"), "{said}");
    let said = refused(&files, &Additions { image_encoders: text_encoder, ..files.redux() });
    assert!(said.contains("CLIP text encoder, and no SigLIP vision tower"), "{said}");
    let said = refused(&files, &Additions { redux: Some(files.beside("image_encoder")), ..files.redux() });
    assert!(said.contains("SigLIP vision tower, and no Redux adapter of FLUX.1"), "{said}");
    let said = refused(&files, &Additions { image_encoders: vec![files.beside("image_encoder")], ..plain.clone() });
    assert!(said.starts_with("--image-encoder: ") && said.ends_with("--redux and --ip-adapter do"), "{said}");
    let vision = files.beside("image_encoder").join("model.safetensors");
    let parts = pinhole::source::Files { parts: vec![(&slot::TEXT_ENCODER, vision.clone())], tokenizers: Vec::new() };
    let source = Source::assemble(Some(Source::open(&files.model()).unwrap()), &parts).unwrap();
    let said = pipeline::open(&source).err().unwrap().to_string();
    assert!(said.contains("holds SigLIP vision tower, and no CLIP text encoder"), "{said}");
    let error = pipeline::open(&Source::open(&vision).unwrap()).err().unwrap();
    assert!(error.to_string().contains("it holds SigLIP vision tower"), "{error}");
    assert!(error.hint().unwrap().contains("--image-encoder"), "{error}");

    let tensors = one_tensor(&files.dir.path().join("sd15.safetensors"), "ip_adapter.1.to_k_ip.weight");
    let said = refused(&files, &Additions { ip_adapter: Some(tensors), ..plain });
    assert!(said.contains("holds IP-Adapter of Stable Diffusion, and no IP-Adapter of FLUX.1"), "{said}");
    let ip = Golden::load("ip_adapter");
    let ip = Files::of(&ip);
    let said = refused(&ip, &Additions { image_encoders: vec![files.beside("image_encoder")], ..ip.ip() });
    assert!(said.contains("SigLIP vision tower, and no CLIP vision tower"), "{said}");
    let narrow = Additions { image_encoders: vec![ip.beside("image_encoder")], ..files.redux() };
    assert!(refused(&files, &narrow).contains("CLIP vision tower, and no SigLIP vision tower"));
}

#[test]
fn requests_that_cannot_work() {
    let golden = Golden::load("redux");
    let files = Files::of(&golden);
    let (redux, plain) = (open(&files.model(), &files.redux()), open(&files.model(), &Additions::default()));
    let said = |model: &Opened, request: Request| pipeline::settings(model, &request).unwrap_err().to_string();
    let picture = || given::picture(8, 8);
    let with = |weight| Request { redux: vec![(picture(), weight)], ..Request::new("a ring") };
    let expected = "--redux-image: expected nothing, since the model was opened without Redux, found a picture";
    assert_eq!(said(&plain, with(1.0)), expected);
    let expected = "--redux-image: expected weights that are finite numbers, found NaN";
    assert_eq!(said(&redux, with(f32::NAN)), expected);
    let expected = "--prompt: expected a prompt, or a picture with --redux-image, found neither";
    assert_eq!(said(&redux, Request { without_prompt: true, ..Request::default() }), expected);
    let looking = Request { ip_images: vec![picture()], ..Request::new("a ring") };
    let expected = "--ip-image: expected nothing, since the model was opened without an IP-Adapter, found a picture";
    assert_eq!(said(&redux, looking.clone()), expected);
    let expected = "--ip-scale: expected a scale together with a picture to look at, found a scale alone";
    assert_eq!(said(&redux, Request { ip_scale: Some(1.0), ..Request::new("a ring") }), expected);
    let ip = Files::of(&Golden::load("ip_adapter"));
    let ip = open(&ip.model(), &ip.ip());
    let scaled = Request { ip_scale: Some(f32::INFINITY), ..looking };
    assert_eq!(said(&ip, scaled), "--ip-scale: expected a number from -100 to 100, found inf");
}

#[test]
fn what_is_there_changes_nothing_unless_it_is_asked() {
    let drawn = |files: &Files, additions: &Additions| {
        let request = Request {
            width: Some(48),
            height: Some(64),
            steps: Some(1),
            max_sequence_length: Some(9),
            ..Request::new("a ring")
        };
        bits(&generate(&mut on(open(&files.model(), additions), "cpu"), &request))
    };
    let redux = Files::of(&Golden::load("redux"));
    let plain = drawn(&redux, &Additions::default());
    assert!(plain == drawn(&redux, &redux.redux()));
    let ip = Files::of(&Golden::load("ip_adapter"));
    assert!(plain == drawn(&ip, &ip.ip()));
}

#[test]
fn layouts_that_people_have() {
    let golden = Golden::load("redux");
    let files = Files::of(&golden);
    let dir = files.dir.path().join("beside");
    let drawn = |additions: &Additions| {
        let request = Request { steps: Some(1), ..request(&golden, "without_prompt") };
        bits(&generate(&mut on(open(&files.model(), additions), "cpu"), &request))
    };
    let expected = drawn(&files.redux());
    // diffusers' directory.
    fs::write(dir.join("model_index.json"), r#"{"_class_name": "FluxPriorReduxPipeline"}"#).unwrap();
    let directory = Additions { redux: Some(dir.clone()), ..Additions::default() };
    assert!(expected == drawn(&directory));
    let report = Report::of(&dir, &Subject::open(&dir).unwrap());
    let names: Vec<&str> = report.components.iter().map(|component| component.name).collect();
    assert_eq!((names, report.faults()), (vec!["image_encoder", "image_embedder"], 0));
    // A file of the embedder alone, and a folder of the encoder with its configuration.
    let file = dir.join("image_embedder/diffusion_pytorch_model.safetensors");
    assert!(expected == drawn(&Additions { redux: Some(file.clone()), ..files.redux() }));
    let report = Report::of(&file, &Subject::open(&file).unwrap());
    assert_eq!((report.holds, report.problems.len()), (vec!["Redux adapter of FLUX.1".to_owned()], 0));
    // GGUF files of both, in which the configuration is.
    let mut both = Vec::new();
    for slot in [&slot::IMAGE_ENCODER, &slot::IMAGE_EMBEDDER] {
        let to = files.dir.path().join(format!("{}.gguf", slot.name));
        converted(&dir.join(slot.name), slot, "f32", &to);
        both.push(to);
    }
    let [encoder, embedder] = &both[..] else { unreachable!() };
    let additions =
        Additions { redux: Some(embedder.clone()), image_encoders: vec![encoder.clone()], ..Additions::default() };
    assert!(expected == drawn(&additions));
}
