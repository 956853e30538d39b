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

/// The rank of the changes of [`Module`]s.
pub(crate) const RANK: usize = 3;

/// How names of both matrices end, in PEFT's words and in kohya's.
pub(crate) const A_B: [&str; 2] = [".lora_A.weight", ".lora_B.weight"];
pub(crate) const DOWN_UP: [&str; 2] = [".lora_down.weight", ".lora_up.weight"];

/// A change of one matrix: `up [outputs, RANK]` times `down [RANK, inputs]`.
#[derive(Clone)]
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) down: Vec<f32>,
    pub(crate) up: Vec<f32>,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
}

/// Numbers without a pattern, within `scale` of 0.
pub(crate) fn numbers(seed: usize, count: usize, scale: f32) -> Vec<f32> {
    let wholes = (1..=count).map(|i| (i * 7919 * (seed + 3) + 12345) % 2003);
    wholes.map(|whole| (whole as f32 / 1001.5 - 1.0) * scale).collect()
}

/// `modules` with underscores for the dots of their names.
pub(crate) fn flat(modules: Vec<Module>) -> Vec<Module> {
    modules.into_iter().map(|module| Module { name: module.name.replace('.', "_"), ..module }).collect()
}

/// Writes a LoRA of `modules` behind `prefix`. Kohya's names have an alpha of twice the rank, and half of the change.
pub(crate) fn write_lora(dir: &Path, name: &str, prefix: &str, modules: Vec<Module>, ends: [&str; 2]) -> PathBuf {
    let mut tensors = BTreeMap::new();
    for Module { name, down, up, inputs, outputs } in modules {
        let has_alpha = ends == DOWN_UP;
        let up = up.into_iter().map(|x| if has_alpha { x / 2.0 } else { x }).collect();
        let of = |end: &str| format!("{prefix}{name}{end}");
        tensors.insert(of(ends[0]), Tensor { shape: vec![RANK, inputs], values: down });
        tensors.insert(of(ends[1]), Tensor { shape: vec![outputs, RANK], values: up });
        if has_alpha {
            tensors.insert(of(".alpha"), Tensor { shape: Vec::new(), values: vec![2.0 * RANK as f32] });
        }
    }
    write(dir, name, &tensors, Vec::new())
}

/// Adds `modules`, `strength` times, to the weights of these names.
pub(crate) fn merge(weights: &mut [super::sd1::Tensor], modules: &[Module], strength: f32) {
    for Module { name, down, up, inputs, .. } in modules {
        let weight = weights.iter_mut().find(|tensor| tensor.name == format!("{name}.weight")).unwrap();
        for (row, up) in weight.values.chunks_mut(*inputs).zip(up.chunks(RANK)) {
            for (column, value) in row.iter_mut().enumerate() {
                let change: f64 = (0..RANK).map(|r| f64::from(up[r]) * f64::from(down[r * inputs + column])).sum();
                *value = (f64::from(*value) + change * f64::from(strength)) as f32;
            }
        }
    }
}
