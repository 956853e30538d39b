//! Scales beside 8-bit floats: ComfyUI's "scaled" checkpoints divide each matrix by a number so that it fills the range of
//! the format, and keep that number in a tensor beside it.

use std::path::Path;

use pinhole_quant::DType;

use crate::index::{FileTensor, Index, Storage};
use crate::{Error, Result};

/// How such a tensor's name ends, in older and newer files, where the matrix's ends in `.weight`.
const SCALES: [&str; 2] = [".scale_weight", ".weight_scale"];

/// What such files hold besides for each matrix: scales of activations, for products in 8 bits, and a description.
const BESIDE: [&str; 3] = [".scale_input", ".input_scale", ".comfy_quant"];

/// What the numbers of a tensor are multiplied by, and the tensors that say so.
pub(super) struct Scale {
    pub(super) factor: f32,
    pub(super) beside: Vec<String>,
}

/// The scale of the tensor `name`; 1 for one without.
///
/// # Errors
/// [`Error::Mismatch`] for scales that are no single finite number.
pub(super) fn of(index: &Index, name: &str, tensor: &FileTensor, origin: &Path) -> Result<Scale> {
    let mut scale = Scale { factor: 1.0, beside: Vec::new() };
    let (true, Some(stem)) = (is_fp8(tensor.storage), name.strip_suffix(".weight")) else { return Ok(scale) };
    for name in SCALES.map(|end| format!("{stem}{end}")) {
        if let Some(other) = index.other(&name) {
            return Err(other.refusal());
        }
        if let Some(tensor) = index.get(&name) {
            scale.factor = number(tensor).ok_or_else(|| {
                let found = format!("{} {}", tensor.storage, tensor.shape);
                Error::mismatch(origin, format!("tensor {name}"), "one finite number, the scale of a matrix", found)
            })?;
            scale.beside.push(name);
        }
    }
    let beside = BESIDE.map(|end| format!("{stem}{end}"));
    scale.beside.extend(beside.into_iter().filter(|name| index.has(name)));
    Ok(scale)
}

fn is_fp8(storage: Storage) -> bool {
    matches!(storage, Storage::F8E4M3 | Storage::F8E5M2)
}

fn number(tensor: &FileTensor) -> Option<f32> {
    let single = tensor.shape.elements() == 1;
    let Storage::Number(dtype @ (DType::F32 | DType::F16 | DType::BF16)) = tensor.storage else { return None };
    let mut out = [f32::NAN];
    let read = single && pinhole_quant::rows::dequantize(dtype, tensor.bytes(), &mut out).is_ok();
    (read && out[0].is_finite()).then_some(out[0])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use pinhole_quant::fp8::Fp8;
    use safetensors::tensor::{Dtype, TensorView, serialize};

    use super::*;
    use crate::bind::Bound;
    use crate::bind::alias::Part;
    use crate::index::Map;
    use crate::safetensors::Safetensors;
    use crate::weights::{Manifest, Role, Scope};

    /// A checkpoint with one matrix of 8 bits and, beside it, `scale`.
    fn index(scale: &[f32]) -> Index {
        let matrix: Vec<u8> = (0..8).map(|i| 0x30 + i).collect();
        let scale: Vec<u8> = scale.iter().flat_map(|number| number.to_le_bytes()).collect();
        let extents = if scale.len() == 4 { vec![] } else { vec![scale.len() / 4] };
        let tensors = [
            ("a.weight", TensorView::new(Dtype::F8_E4M3, vec![2, 4], &matrix).unwrap()),
            ("a.scale_weight", TensorView::new(Dtype::F32, extents, &scale).unwrap()),
            ("a.scale_input", TensorView::new(Dtype::F32, vec![], &[0; 4]).unwrap()),
            ("scaled_fp8", TensorView::new(Dtype::F8_E4M3, vec![0], &[]).unwrap()),
        ];
        let map = Map::from_bytes("scaled.safetensors", &serialize(tensors, None).unwrap()).unwrap();
        Safetensors::from_map(map).unwrap().index
    }

    fn bound(index: &Index) -> Result<Bound> {
        let (mut manifest, mut declared) = (Manifest::default(), Vec::new());
        Scope::root(&mut manifest, &mut declared).weight("a.weight", &[4, 2], Role::MatMul)?;
        Bound::new(&manifest, index, "", &|name: &str| vec![vec![Part::all(name)]], Path::new("scaled.safetensors"))
    }

    #[test]
    fn numbers_are_multiplied_by_the_scale_beside_them() {
        let index = index(&[0.25]);
        let bound = bound(&index).unwrap();
        let id = bound_id();
        let expected: Vec<f32> = (0..8).map(|i| 0.25 * Fp8::E4M3Fn.to_f32(0x30 + i)).collect();
        assert_eq!(bound.read_f32(id).unwrap(), expected);
        assert_eq!(bound.pieces(id)[0].part(3, 2).len(), 2);
        assert_eq!(bound.gather(id, 4, &[1]).unwrap(), expected[4..]);
        // What belongs to the matrix is used; the mark on the file is no one's.
        assert_eq!(bound.unused(), ["scaled_fp8"]);
    }

    #[test]
    fn a_scale_is_one_finite_number() {
        for scale in [&[f32::NAN][..], &[f32::INFINITY], &[1.0, 2.0]] {
            let error = bound(&index(scale)).unwrap_err().to_string();
            assert!(
                error.starts_with("scaled.safetensors: tensor a.scale_weight: expected one finite number"),
                "{error}"
            );
        }
    }

    /// The only weight.
    fn bound_id() -> crate::weights::WeightId {
        let (mut manifest, mut declared) = (Manifest::default(), Vec::new());
        Scope::root(&mut manifest, &mut declared).weight("a.weight", &[4, 2], Role::MatMul).unwrap()
    }
}
