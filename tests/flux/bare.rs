//! The file of a transformer by itself has the names, shapes, formats and metadata that the rules of ComfyUI-GGUF give,
//! and holds the numbers that the Python package `gguf` reads from it: `tests/reference/bare.py` recorded both.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::support::golden;
use pinhole::convert::{self, Options, Plan, Target, Types, WriteOptions};
use pinhole::gguf::{Gguf, Value as Metadata};
use pinhole::index::Storage;
use pinhole::pipeline;
use pinhole::source::Source;
use pinhole::source::slot::TRANSFORMER;
use pinhole_quant::rows;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Name to extents (ggml order) and format.
type Tensors = BTreeMap<String, (Vec<u64>, String)>;

fn recorded() -> Value {
    let text = fs::read_to_string(golden::directory().join("bare.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(golden["format"], 1);
    golden
}

fn types(golden: &Value) -> Vec<String> {
    golden["types"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

/// What the rules give for `model` in the type at `column`.
fn expected(golden: &Value, model: &str, column: usize) -> Tensors {
    golden["models"][model]["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            let extents = row[1].as_array().unwrap().iter().map(|extent| extent.as_u64().unwrap()).collect();
            (row[0].as_str().unwrap().to_owned(), (extents, row[2 + column].as_str().unwrap().to_owned()))
        })
        .collect()
}

fn planned(plan: &Plan<'_>) -> Tensors {
    plan.tensors
        .iter()
        .map(|tensor| {
            let extents = tensor.shape.dims()[..tensor.shape.rank()].iter().map(|extent| *extent as u64).collect();
            (tensor.name.clone(), (extents, tensor.to.name().to_owned()))
        })
        .collect()
}

fn options(name: &str) -> Options {
    let target = Target::Component(&TRANSFORMER);
    Options { target, ..name.parse::<Types>().unwrap().into() }
}

/// A bf16 safetensors file with these tensors and no numbers: a hole, which takes no room on the disk.
fn hollow(path: &Path, tensors: &Tensors) {
    let (mut header, mut offset) = (serde_json::Map::new(), 0);
    for (name, (extents, _)) in tensors {
        let shape: Vec<u64> = extents.iter().rev().copied().collect();
        let end = offset + 2 * shape.iter().product::<u64>();
        header
            .insert(name.clone(), serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}));
        offset = end;
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = fs::File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    file.set_len(8 + header.len() as u64 + offset).unwrap();
}

#[test]
fn flux_dev_at_its_real_size_follows_the_rules() {
    let golden = recorded();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("flux1-dev.safetensors");
    hollow(&path, &expected(&golden, "dev", 0));
    let source = Source::open(&path).unwrap();
    let (source, lone) = pipeline::component(&source, &TRANSFORMER).unwrap();
    for (column, name) in types(&golden).iter().enumerate() {
        let plan = convert::plan(&source, &lone.networks(), options(name)).unwrap();
        assert_eq!((plan.tensors.len(), &plan.left_out), (780, &vec![]));
        assert_eq!(planned(&plan), expected(&golden, "dev", column), "{name}");
        let parameters: usize = plan.tensors.iter().map(|tensor| tensor.shape.elements()).sum();
        assert_eq!(golden["models"]["dev"]["parameters"], parameters);
    }
}

/// The miniature's original weights, where they are.
fn original() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/mini");
    let given = std::env::var_os("PINHOLE_MINI").map(PathBuf::from);
    given.or_else(|| Some(beside).filter(|path| path.join("model_index.json").is_file()))
}

#[test]
fn a_written_file_follows_the_rules_and_is_what_gguf_reads() {
    let Some(mini) = original() else {
        // Not `eprintln!`, which is heard of failing tests only.
        let missing = "NOT TESTED: the original miniature is not in ../shared/mini, and PINHOLE_MINI is not set";
        return writeln!(io::stderr(), "{missing}").unwrap();
    };
    let golden = recorded();
    let directory = tempfile::tempdir().unwrap();
    let source = Source::open(&mini).unwrap();
    let (source, lone) = pipeline::component(&source, &TRANSFORMER).unwrap();
    for (column, name) in types(&golden).iter().enumerate() {
        let path = directory.path().join(format!("{name}.gguf"));
        let plan = convert::plan(&source, &lone.networks(), options(name)).unwrap();
        plan.write(&path, WriteOptions::default(), &mut |_| Ok(())).unwrap();
        let gguf = Gguf::open(&path).unwrap();
        assert_eq!((gguf.version, gguf.alignment), (3, 32));
        assert_eq!(metadata(&gguf), *golden["metadata"][name].as_object().unwrap());
        let tensors: Tensors = gguf
            .index
            .iter()
            .map(|(name, tensor)| {
                let extents = tensor.file_shape.iter().map(|extent| *extent as u64).collect();
                (name.to_owned(), (extents, tensor.storage.name().to_owned()))
            })
            .collect();
        assert_eq!(tensors, expected(&golden, "mini", column), "{name}");
        for (tensor, digest) in golden["decoded"][name].as_object().unwrap() {
            assert_eq!(decoded(&gguf, tensor), digest.as_str().unwrap(), "{name}: {tensor}");
        }
    }
}

fn metadata(gguf: &Gguf) -> serde_json::Map<String, Value> {
    let mut metadata = serde_json::Map::new();
    for (key, found) in gguf.metadata.iter() {
        let value = match found {
            Metadata::String(text) => text.as_str().into(),
            Metadata::U32(number) => (*number).into(),
            other => panic!("{}", other.describe()),
        };
        metadata.insert(key.to_owned(), value);
    }
    metadata
}

/// The digest of the tensor's numbers.
fn decoded(gguf: &Gguf, name: &str) -> String {
    let tensor = gguf.index.get(name).unwrap();
    let Storage::Number(dtype) = tensor.storage else { panic!("{name}: {}", tensor.storage) };
    let mut numbers = vec![f32::NAN; tensor.shape.elements()];
    rows::dequantize_parallel(dtype, tensor.bytes(), &mut numbers).unwrap();
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
