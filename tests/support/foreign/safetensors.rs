//! Safetensors of other tools: some components, each behind its prefix, and what else such files hold.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::Value;

use super::{Foreign, Part};
use crate::support::numbers::Format;

/// A tensor as the file holds it.
#[derive(Clone)]
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

pub(super) fn write(foreign: &Foreign, parts: &[Part], extra: &Value, path: &Path) {
    let mut stored = BTreeMap::new();
    for part in parts {
        let component = &part.component;
        let own = part.as_in_transformers;
        let tensors = if own { foreign.own_tensors(component) } else { foreign.tensors(component) };
        for tensor in tensors {
            let (dtype, bytes) = (part.format.dtype(), part.format.encode(&tensor.values));
            stored.insert(format!("{}{}", part.prefix, tensor.name), Stored { dtype, shape: tensor.shape, bytes });
        }
    }
    for tensor in extra.as_array().into_iter().flatten() {
        let made = match tensor["same_as"].as_str() {
            Some(other) => stored[other].clone(),
            None => filler(tensor),
        };
        stored.insert(tensor["name"].as_str().unwrap().to_owned(), made);
    }
    let views = stored.iter().map(|(name, s)| (name, TensorView::new(s.dtype, s.shape.clone(), &s.bytes).unwrap()));
    serialize_to_file(views, Some([("format".to_owned(), "pt".to_owned())].into()), path).unwrap();
}

/// A tensor that no model wants: whole numbers from 0, or ones.
fn filler(described: &Value) -> Stored {
    let shape: Vec<usize> =
        described["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
    let count = shape.iter().product::<usize>();
    let (dtype, bytes) = match described["dtype"].as_str().unwrap() {
        "I64" => (Dtype::I64, (0..count as i64).flat_map(i64::to_le_bytes).collect()),
        "F32" => (Dtype::F32, Format::F32.encode(&vec![1.0; count])),
        other => panic!("no filler of {other}"),
    };
    Stored { dtype, shape, bytes }
}
