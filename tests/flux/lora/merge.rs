//! `convert --merge`: a file with LoRAs in its weights draws what the model draws with the LoRAs beside them.

use std::path::{Path, PathBuf};

use pinhole::convert::{self, Options, Plan, Target, WriteOptions};
use pinhole::gguf::Gguf;
use pinhole::source::slot::TRANSFORMER;
use pinhole::source::{Source, keys};
use pinhole::{Result, pipeline};
use pinhole_quant::metrics;
use pinhole_quant::recipe::FileType;

use super::{Case, MOST};

/// What the order of sums makes of latents at most.
const ORDER: f64 = 1e-9;

fn options(file_type: FileType, loras: &[(PathBuf, f32)]) -> Options {
    Options { merge: loras.to_vec(), ..file_type.into() }
}

impl Case {
    /// Converts `source` to the file `name` with `loras` merged.
    fn merge(&self, source: &Source, name: &str, file_type: FileType, loras: &[(PathBuf, f32)]) -> Result<PathBuf> {
        let path = self.dir.path().join(name);
        let model = pipeline::open(source)?;
        let plan = convert::plan(&model.source, &model.networks(), options(file_type, loras))?;
        write(&plan, &path);
        Ok(path)
    }

    fn draw_file(&self, path: &Path) -> Vec<f32> {
        self.draw(&mut self.pipeline(&Source::open(path).unwrap(), &[], "cpu")).latents
    }

    fn nmse(&self, expected: &str, latents: &[f32]) -> f64 {
        metrics::nmse(&self.golden.f32(expected), latents).unwrap()
    }
}

fn write(plan: &Plan<'_>, path: &Path) {
    let options = WriteOptions { overwrite: true, ..WriteOptions::default() };
    plan.write(path, options, &mut |_| Ok(())).unwrap();
}

#[test]
fn merged_files_draw_what_branches_draw() {
    let case = Case::new();
    let one = |set: &str, file: &str| vec![(case.file(set, file), 1.0)];
    for (recorded, loras) in [
        ("plain", one("plain", "diffusers")),
        ("dora", one("dora", "dora-kohya")),
        ("dora.half", vec![(case.file("dora", "dora-kohya"), 0.5)]),
        ("loha", one("loha", "loha")),
        ("diffs", one("diffs", "diffs")),
        ("text", one("text", "text-kohya")),
        ("two", vec![(case.file("plain", "kohya"), 0.6), (case.file("lokr", "lokr"), -0.8)]),
    ] {
        let file = case.merge(&case.source(), "merged.gguf", FileType::F32, &loras).unwrap();
        let latents = case.draw_file(&file);
        let from_branches = metrics::nmse(&case.latents(&loras), &latents).unwrap();
        let from_recorded = case.nmse(recorded, &latents);
        println!("{recorded}: nmse {from_branches:.1e} from branches, {from_recorded:.1e} from diffusers");
        assert!(from_branches <= ORDER, "{recorded}: {from_branches:e} from branches");
        assert!(from_recorded <= MOST, "{recorded}: {from_recorded:e} from diffusers");
    }
}

#[test]
fn quantized_files_differ_by_their_own_error_alone() {
    let case = Case::new();
    let loras = [(case.file("plain", "kohya"), 1.0)];
    for file_type in [FileType::F16, FileType::Q8_0, FileType::Q4_K_S] {
        let merge = |loras: &[(PathBuf, f32)]| case.merge(&case.source(), "merged.gguf", file_type, loras).unwrap();
        let own = case.nmse("base", &case.draw_file(&merge(&[])));
        let nmse = case.nmse("plain", &case.draw_file(&merge(&loras)));
        println!("{file_type}: nmse {nmse:.2e} with a LoRA, {own:.2e} without");
        assert!(nmse < 3.0 * own, "{file_type}: {nmse:e} with a LoRA, {own:e} without");
    }
}

/// Bytes of quantized weights pass through where no LoRA changes them; where one does, they are quantized again.
#[test]
fn quantized_sources_are_changed_only_if_that_is_allowed() {
    let case = Case::new();
    let loras = [(case.file("plain", "kohya"), 0.5)];
    let small = case.merge(&case.source(), "small.gguf", FileType::Q4_K_S, &[]).unwrap();
    let source = Source::open(&small).unwrap();
    let error = case.merge(&source, "no.gguf", FileType::Q4_K_S, &loras).unwrap_err();
    assert!(error.to_string().contains("expected f32, f16, bf16, q8_0 or 8-bit floats"), "{error}");
    let model = pipeline::open(&source).unwrap();
    let options = Options { allow_requantize: true, ..options(FileType::Q4_K_S, &loras) };
    let plan = convert::plan(&model.source, &model.networks(), options).unwrap();
    let path = case.dir.path().join("twice.gguf");
    write(&plan, &path);
    let (before, after) = (Gguf::open(&small).unwrap(), Gguf::open(&path).unwrap());
    for tensor in &plan.tensors {
        let bytes = |file: &Gguf| file.index.get(&tensor.name).unwrap().bytes().to_vec();
        assert_eq!(bytes(&before) != bytes(&after), tensor.merged, "{}", tensor.name);
    }
    assert!(plan.tensors.iter().any(|tensor| tensor.merged) && plan.tensors.iter().any(|tensor| !tensor.merged));
}

#[test]
fn a_component_by_itself_is_merged_as_in_a_bundle() {
    let case = Case::new();
    let loras = [(case.file("plain", "kohya"), 0.7), (case.file("text", "text-kohya"), 1.0)];
    let bundle = case.merge(&case.source(), "merged.gguf", FileType::F32, &loras[..1]).unwrap();
    let (source, networks) = pipeline::component(&case.source(), &TRANSFORMER).unwrap();
    let target = Target::Component(&TRANSFORMER);
    // The LoRA of text encoders alone fits nothing here.
    let lone = Options { target, ..options(FileType::F32, &loras) };
    let error = convert::plan(&source, &networks.networks(), lone).err().unwrap();
    assert_eq!(error.hint(), Some("it seems to be a LoRA for text encoders alone"), "{error}");
    let lone = Options { target, ..options(FileType::F32, &loras[..1]) };
    let plan = convert::plan(&source, &networks.networks(), lone).unwrap();
    let path = case.dir.path().join("lone.gguf");
    write(&plan, &path);
    let (whole, lone) = (Gguf::open(&bundle).unwrap(), Gguf::open(&path).unwrap());
    for (name, tensor) in lone.index.iter() {
        let same = whole.index.get(&format!("{}{name}", TRANSFORMER.prefix)).unwrap();
        assert_eq!(tensor.bytes(), same.bytes(), "{name}");
    }
}

#[test]
fn a_file_says_which_loras_it_has() {
    let case = Case::new();
    let names = |path: &Path| -> Vec<String> {
        let metadata = Gguf::open(path).unwrap().metadata;
        metadata.strings(keys::MERGED).unwrap().into_iter().flat_map(|names| names.iter()).map(str::to_owned).collect()
    };
    let plain = case.merge(&case.source(), "plain.gguf", FileType::F32, &[]).unwrap();
    assert_eq!(names(&plain), [""; 0]);
    let first = case.merge(&case.source(), "one.gguf", FileType::F32, &[(case.file("plain", "kohya"), 0.5)]).unwrap();
    assert_eq!(names(&first), ["kohya:0.5"]);
    let one = Source::open(&first).unwrap();
    let second = case.merge(&one, "two.gguf", FileType::Q8_0, &[(case.file("lokr", "lokr"), 1.0)]).unwrap();
    assert_eq!(names(&second), ["kohya:0.5", "lokr:1"]);
}
