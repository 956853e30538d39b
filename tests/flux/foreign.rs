//! Files of other tools give what the diffusers directory gives that they were made from: the same weights to the last
//! bit, and the same latents, to the last bit where the numbers are stored alike. What they are made of, and what
//! diffusers draws from their numbers, is `tests/reference/foreign.py`'s.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::support;
use crate::support::foreign::{Foreign, Tensor};
use crate::support::golden;
use crate::support::numbers::Format;
use pinhole::ggml::{CancelFlag, Device};
use pinhole::pipeline::Opened;
use pinhole::pipeline::Pipeline;
use pinhole::pipeline::{Event, Generated};
use pinhole::sample::Scheduler;
use pinhole::source::slot::{SLOTS, TEXT_ENCODER, TEXT_ENCODER_2};
use pinhole::source::{Files, Layout, Slot, Source, unused as unused_tensors};
use pinhole_quant::metrics;

/// Two threads, as many as the smallest machine that runs the tests has.
const THREADS: usize = 2;

/// The models that the golden describes.
const CASES: [&str; 2] = ["loose", "dev"];

fn tokenizer(name: &str) -> PathBuf {
    golden::directory().join("tokenizers").join(name)
}

/// Opens what `set` consists of, after writing it into `dir`: a whole checkpoint, or each part by itself. T5's tokenizer
/// is given unless a file carries it.
fn open(foreign: &Foreign, dir: &Path, set: &str) -> Source {
    let (mut base, mut files) = (None, Files::default());
    files.add("tokenizer", tokenizer("clip"));
    let mut carried = false;
    for file in foreign.files(set) {
        let path = foreign.write(dir, file);
        let parts = foreign.parts(file);
        let [part] = parts.as_slice() else {
            base = Some(Source::open(&path).unwrap());
            continue;
        };
        carried |= part.component == "text_encoder_2" && file.ends_with(".gguf");
        files.add(&part.component, path);
    }
    if !carried {
        files.add("tokenizer_2", tokenizer("t5"));
    }
    let source = Source::assemble(base, &files).unwrap();
    assert_eq!(source.layout, Layout::Files);
    source
}

fn generate(foreign: &Foreign, model: Opened) -> Generated {
    let mut pipeline = Pipeline::with_threads(model, Device::cpu().unwrap(), THREADS, CancelFlag::new()).unwrap();
    pipeline.generate_watched(&foreign.case.request("/generate"), &mut |_: Event| Ok(())).unwrap()
}

/// Asserts that every weight of `model` is the tensor of that name that the files of `set` hold, to the last bit, and that
/// none is left over. pinhole's own names are those of the original files, and llama.cpp's for T5.
fn assert_weights(what: &str, foreign: &Foreign, set: &str, model: &Opened) {
    let mut held: BTreeMap<String, BTreeMap<String, Tensor>> = BTreeMap::new();
    for (part, tensors) in foreign.numbers(set) {
        held.insert(part, tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect());
    }
    for network in model.networks() {
        let tensors = held.get_mut(network.slot.name).unwrap();
        for (id, weight) in network.model.manifest().iter() {
            let name = &weight.name;
            let tensor = tensors.remove(name).unwrap_or_else(|| panic!("{what}: no {name}"));
            let read = network.bound.read_f32(id).unwrap();
            let same = read.iter().map(|v| v.to_bits()).eq(tensor.values.iter().map(|v| v.to_bits()));
            assert!(same, "{what}: {name} holds other numbers than its file");
        }
    }
    for (component, tensors) in held {
        assert!(tensors.is_empty(), "{what}: no weight of {component} wants {:?}", tensors.keys());
    }
}

/// How far latents may be from what diffusers computes in single precision with the same numbers. Products with F16, BF16
/// and Q8_0 round what they multiply with, as the tests of the miniature allow.
fn tolerance(set: &str) -> f64 {
    match set {
        "original" | "checkpoint" | "checkpoint-ldm" | "city96-f32" => 1e-5,
        "original-e4m3" | "original-e5m2" | "checkpoint-fp8" => 1e-4,
        "original-bf16" | "city96-bf16" | "city96-q8_0" | "bare-bf16" | "bare-q8_0" => 1e-3,
        other => panic!("no tolerance for {other}"),
    }
}

/// Weights and latents of one set of files.
fn check(foreign: &Foreign, case: &str, set: &str) {
    let what = format!("{case}, {set}");
    let dir = tempfile::tempdir().unwrap();
    let model = pinhole::pipeline::open(&open(foreign, dir.path(), set)).unwrap();
    assert_weights(&what, foreign, set, &model);
    let drawn = generate(foreign, model);
    let nmse = metrics::nmse(&foreign.latents(set), &drawn.latents).unwrap();
    println!("{what}: latents nmse {nmse:.2e} (at most {:.0e})", tolerance(set));
    assert!(nmse <= tolerance(set), "{what}: latents are {nmse:e} from diffusers'");

    let directory = dir.path().join("diffusers");
    if foreign.write_reference(&directory, set).is_none() {
        println!("{what}: a diffusers directory cannot hold these numbers");
        return;
    }
    let model = pinhole::pipeline::open(&Source::open(&directory).unwrap()).unwrap();
    assert_weights(&format!("{what}, as a directory"), foreign, set, &model);
    let reference = generate(foreign, model);
    assert_eq!(drawn.latents, reference.latents, "{what}: latents are not those of the directory");
    // The groups of dev's autoencoder are not what files without settings are taken to have.
    if case == "loose" {
        assert_eq!(drawn.images[0].rgb(), reference.images[0].rgb(), "{what}: not the directory's picture");
    }
}

/// The sets of every case whose names begin with `kind`.
fn check_all(kind: &str) {
    for case in CASES {
        let foreign = Foreign::load(case);
        let sets = foreign.sets();
        sets.into_iter().filter(|set| set.starts_with(kind)).for_each(|set| check(&foreign, case, set));
    }
}

#[test]
fn original_files() {
    check_all("original");
}

#[test]
fn checkpoints_with_everything() {
    check_all("checkpoint");
}

#[test]
fn gguf_of_comfyui_with_t5_of_llama_cpp() {
    check_all("city96");
}

#[test]
fn gguf_without_metadata() {
    check_all("bare");
}

/// Sets are checked by the first part of their names: none is forgotten.
#[test]
fn every_set_is_checked() {
    for case in CASES {
        let foreign = Foreign::load(case);
        for set in foreign.sets() {
            assert!(["original", "checkpoint", "city96", "bare"].iter().any(|kind| set.starts_with(kind)), "{set}");
        }
    }
}

/// The same files with other usual names: norms as ComfyUI saves them, a T5 encoder that was saved by itself.
#[test]
fn layers_have_other_usual_names() {
    let (foreign, dir) = (Foreign::load("loose"), tempfile::tempdir().unwrap());
    let source = open(&foreign, dir.path(), "original");
    let known = generate(&foreign, pinhole::pipeline::open(&source).unwrap()).latents;
    rename(&dir.path().join("flux1.safetensors"), |name| name.replace("_norm.scale", "_norm.weight"));
    rename(&dir.path().join("t5xxl.safetensors"), |name| name.strip_prefix("encoder.").unwrap_or(name).to_owned());
    let mut files = Files::default();
    for (slot, file) in ["transformer", "text_encoder", "text_encoder_2", "vae"].iter().zip(foreign.files("original")) {
        files.add(slot, dir.path().join(file));
    }
    files.add("tokenizer", tokenizer("clip"));
    files.add("tokenizer_2", tokenizer("t5"));
    let model = pinhole::pipeline::open(&Source::assemble(None, &files).unwrap()).unwrap();
    assert_weights("other names", &foreign, "original", &model);
    assert_eq!(generate(&foreign, model).latents, known);
}

/// Gives the tensors of the safetensors file at `path` other names, at least one of them.
fn rename(path: &Path, name_of: impl Fn(&str) -> String) {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let renamed: Vec<_> = file.iter().map(|(name, view)| (name_of(name), view)).collect();
    assert!(renamed.iter().any(|(name, _)| !file.names().contains(&name.as_str())));
    std::fs::remove_file(path).unwrap();
    safetensors::serialize_to_file(renamed, None, path).unwrap();
}

/// Files together in a folder, with folders of tokenizers beside them, need no options.
#[test]
fn a_folder_of_files_is_a_model() {
    let (foreign, dir) = (Foreign::load("loose"), tempfile::tempdir().unwrap());
    for file in foreign.files("original") {
        foreign.write(dir.path(), file);
    }
    // Of a diffusers directory, only what belongs to no component.
    let beside = tempfile::tempdir().unwrap();
    support::write_parts(beside.path(), &foreign.case);
    for folder in ["tokenizer", "tokenizer_2"] {
        std::fs::rename(beside.path().join(folder), dir.path().join(folder)).unwrap();
    }
    let model = pinhole::pipeline::open(&Source::open(dir.path()).unwrap()).unwrap();
    assert_weights("folder", &foreign, "original", &model);
    let nmse = metrics::nmse(&foreign.latents("original"), &generate(&foreign, model).latents).unwrap();
    assert!(nmse <= tolerance("original"), "latents are {nmse:e} from diffusers'");
}

/// A part of a model takes the place of the same part of another: here a GGUF that of a diffusers directory.
#[test]
fn a_file_takes_the_place_of_a_part() {
    let (foreign, dir) = (Foreign::load("loose"), tempfile::tempdir().unwrap());
    let directory = dir.path().join("diffusers");
    foreign.write_reference(&directory, "original").unwrap();
    let mut files = Files::default();
    files.add("transformer", foreign.write(dir.path(), "bare-BF16.gguf"));
    let base = Source::open(&directory).unwrap();
    let source = Source::assemble(Some(base), &files).unwrap();
    let model = pinhole::pipeline::open(&source).unwrap();
    assert_weights("in the place of a part", &foreign, "bare-bf16", &model);
    let alone = pinhole::pipeline::open(&open(&foreign, dir.path(), "bare-bf16")).unwrap();
    assert_eq!(generate(&foreign, model).latents, generate(&foreign, alone).latents);
}

/// What shapes and published values say is what the configurations say, for the case that was made for it.
#[test]
fn settings_follow_from_shapes() {
    let (foreign, dir) = (Foreign::load("loose"), tempfile::tempdir().unwrap());
    let directory = dir.path().join("diffusers");
    foreign.write_reference(&directory, "original").unwrap();
    let told = pinhole::pipeline::open(&Source::open(&directory).unwrap()).unwrap();
    let found = pinhole::pipeline::open(&open(&foreign, dir.path(), "original")).unwrap();
    for (found, told) in found.networks().iter().zip(told.networks()) {
        assert_eq!(found.config, told.config, "{}", told.slot.name);
    }
    let (Scheduler::Flow(mut found), Scheduler::Flow(told)) = (found.scheduler, told.scheduler) else {
        panic!("no flows")
    };
    // A class is named by configurations alone.
    found.solver.class_name.clone_from(&told.solver.class_name);
    assert_eq!(found, told);
}

/// Tensors that such files have beside the weights are known for what they are, and are no others.
#[test]
fn what_no_weight_wants_is_listed() {
    let foreign = Foreign::load("loose");
    let unused = |set: &str, slot: &Slot| -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let model = pinhole::pipeline::open(&open(&foreign, dir.path(), set)).unwrap();
        let mut names: Vec<String> = unused_tensors(&model.networks(), slot).into_iter().map(str::to_owned).collect();
        names.sort();
        names
    };
    assert_eq!(unused("original", &TEXT_ENCODER_2), ["encoder.embed_tokens.weight"]);
    let prefix = "text_encoders.clip_l.transformer.";
    let names = ["text_model.embeddings.position_ids", "text_projection.weight"].map(|name| format!("{prefix}{name}"));
    assert_eq!(unused("checkpoint-ldm", &TEXT_ENCODER), names);
    for slot in SLOTS {
        assert!(unused("city96-q8_0", slot).is_empty(), "{}", slot.name);
    }
}

/// The tests' own formats: corners, since whole files are compared with Python's.
#[test]
fn numbers_round_to_even() {
    let round = |format: Format, values: &[f32]| format.round(values);
    assert_eq!(round(Format::F8E4M3, &[1.0625, 1.1875, -0.0, 448.0, 0.0009765625]), [1.0, 1.25, -0.0, 448.0, 0.0]);
    assert_eq!(round(Format::F8E5M2, &[1.125, 1.375, 57344.0]), [1.0, 1.5, 57344.0]);
}
