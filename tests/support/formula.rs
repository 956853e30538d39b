//! Models whose weights a golden's header describes in short: `[name, shape, scale, offset]` each.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

use super::Golden;
use super::synth::{Weight, checksum};

/// `len` numbers of the formula.
pub(crate) fn values(component: &str, name: &str, len: usize, scale: f32) -> Vec<f32> {
    let (component, name, shape) = (component.to_owned(), name.to_owned(), vec![len]);
    Weight { component, name, shape, scale, offset: 0.0, first: Vec::new(), checksum: 0 }.values()
}

/// Writes the weights of `component` to `path`, in float32 under the names of the header.
pub(crate) fn write(path: &Path, golden: &Golden, component: &str) {
    let described = golden.list(&format!("/{component}/tensors")).iter();
    let weights = described.map(|tensor| Weight {
        component: component.to_owned(),
        name: tensor[0].as_str().unwrap().to_owned(),
        shape: tensor[1].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect(),
        scale: tensor[2].as_f64().unwrap() as f32,
        offset: tensor[3].as_f64().unwrap() as f32,
        first: Vec::new(),
        checksum: 0,
    });
    let weights: Vec<Weight> = weights.collect();
    let numbers: Vec<Vec<f32>> = weights.iter().map(Weight::values).collect();
    let sum = numbers.iter().fold(0u64, |sum, numbers| sum.wrapping_add(checksum(numbers)));
    assert_eq!(format!("{sum:016x}"), golden.text(&format!("/{component}/checksum")));
    let bytes: Vec<Vec<u8>> =
        numbers.iter().map(|numbers| numbers.iter().flat_map(|n| n.to_le_bytes()).collect()).collect();
    let views = weights.iter().zip(&bytes).map(|(weight, bytes)| {
        (weight.name.as_str(), TensorView::new(Dtype::F32, weight.shape.clone(), bytes).unwrap())
    });
    serialize_to_file(views.collect::<BTreeMap<_, _>>(), None, path).unwrap();
}
