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
        if let Some(tensor) = index.get(&name) {
            scale.factor = number(tensor).ok_or_else(|| {
                let found = format!("{} {}", tensor.storage, tensor.shape);
                Error::mismatch(origin, format!("tensor {name}"), "one finite number, the scale of a matrix", found)
            })?;
            scale.beside.push(name);
        }
    }
    let beside = BESIDE.map(|end| format!("{stem}{end}"));
    scale.beside.extend(beside.into_iter().filter(|name| index.get(name).is_some()));
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
