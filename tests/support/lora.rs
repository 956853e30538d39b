//! LoRA files by formula: those that `tests/reference/lora.py` describes, number by number the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::Value;

use super::Golden;
use super::numbers::Format;
use super::synth::Weight;

/// A tensor of a LoRA.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

/// The tensors of the file `file` of the golden's set `set`, and its metadata.
pub(crate) fn file(golden: &Golden, set: &str, file: &str) -> (BTreeMap<String, Tensor>, Vec<(String, String)>) {
    let described = golden.at(&format!("/sets/{set}/{file}"));
    let mut tensors = BTreeMap::new();
    for tensor in described["tensors"].as_array().unwrap() {
        tensors.insert(tensor["name"].as_str().unwrap().to_owned(), made_of(tensor));
    }
    let metadata = described["metadata"].as_object().into_iter().flatten();
    (tensors, metadata.map(|(key, text)| (key.clone(), text.as_str().unwrap().to_owned())).collect())
}

fn made_of(described: &Value) -> Tensor {
    if let Some(parts) = described["joined"].as_array() {
        let parts: Vec<Tensor> = parts.iter().map(made_of).collect();
        let rows = parts.iter().map(|part| part.shape[0]).sum();
        let shape = [&[rows], &parts[0].shape[1..]].concat();
        return Tensor { shape, values: parts.into_iter().flat_map(|part| part.values).collect() };
    }
    let numbers = |key: &str| -> Vec<usize> {
        described[key].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect()
    };
    let (mut shape, rows) = (numbers("shape"), numbers("rows"));
    let number = |key: &str| described[key].as_f64().unwrap() as f32;
    let whole = Weight {
        component: "lora".into(),
        name: described["of"].as_str().unwrap().into(),
        shape: shape.clone(),
        scale: number("scale"),
        offset: number("offset"),
        first: Vec::new(),
        checksum: 0,
    };
    let each: usize = shape.iter().skip(1).product();
    let values = whole.values()[rows[0] * each..rows[1] * each].to_vec();
    if let Some(first) = shape.first_mut() {
        *first = rows[1] - rows[0];
    }
    Tensor { shape, values }
}

/// Writes tensors in F32 to `dir`.
pub(crate) fn write(
    dir: &Path,
    name: &str,
    tensors: &BTreeMap<String, Tensor>,
    metadata: Vec<(String, String)>,
) -> PathBuf {
    let path = dir.join(format!("{name}.safetensors"));
    let bytes: Vec<Vec<u8>> = tensors.values().map(|tensor| Format::F32.encode(&tensor.values)).collect();
    let views = tensors.iter().zip(&bytes);
    let views = views.map(|((name, tensor), bytes)| {
        (name.clone(), TensorView::new(Dtype::F32, tensor.shape.clone(), bytes).unwrap())
    });
    serialize_to_file(views, Some(metadata.into_iter().collect()), &path).unwrap();
    path
}
