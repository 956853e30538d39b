//! Weights that are packed in ways that pinhole does not read. What lies beside the weights shows it.

use std::path::Path;

use pinhole_quant::DType;
use serde_json::Value;

use super::Component;
use crate::index::{Index, Storage};
use crate::{Error, Result};

/// How names of tensors end beside packed weights, and what packs like that. The first that a file has decides.
const PACKINGS: &[(&str, &str)] = &[
    (".quant_state.bitsandbytes__nf4", "bitsandbytes NF4"),
    (".quant_state.bitsandbytes__fp4", "bitsandbytes FP4"),
    (".quant_map", "bitsandbytes 4-bit"),
    (".SCB", "bitsandbytes int8"),
    (".wscales", "SVDQuant (nunchaku)"),
    (".wcscales", "SVDQuant (nunchaku)"),
    (".wtscale", "SVDQuant (nunchaku)"),
    (".smooth_factor", "SVDQuant (nunchaku)"),
    (".weight_scale_2", "NVFP4"),
    (".g_idx", "GPTQ"),
    (".qzeros", "AWQ or GPTQ"),
    (".qweight", "packed integers"),
    (".q_weight", "EXL2"),
    (".W_q", "HQQ"),
    (".weight._data", "quanto"),
    (".weight_packed", "compressed-tensors"),
    ("._weight_qdata", "torchao"),
    (".weight_scale_inv", "8-bit floats with a scale for each block"),
];

/// What describes a matrix in ComfyUI's files: JSON, in bytes.
const DESCRIPTION: &str = ".comfy_quant";

/// No description is longer.
const MOST_BYTES: usize = 1 << 12;

/// Refuses weights of `component` that are packed in a way that pinhole does not read.
///
/// # Errors
/// [`Error::NotAModel`] naming the packing and one of its tensors.
pub(super) fn refuse(component: &Component) -> Result<()> {
    let Component { index, prefix, origin, .. } = component;
    refusal(origin, index, prefix).map_or(Ok(()), Err)
}

/// The error for the weights under `prefix` of `index`, which is that of the file at `path`, if they are packed.
pub(super) fn refusal(path: &Path, index: &Index, prefix: &str) -> Option<Error> {
    let (packing, name) = packing(index, prefix)?;
    let found = format!("its weights are packed as {packing} (`{name}`), which this version does not read");
    let hint = "take the same model in BF16, F16 or 8-bit floats, or as GGUF".to_owned();
    Some(Error::NotAModel { path: path.to_owned(), found, hint: Some(hint) })
}

/// How weights under `prefix` are packed, and a tensor that shows it.
fn packing<'a>(index: &'a Index, prefix: &str) -> Option<(String, &'a str)> {
    let own = || index.names().filter(|name| name.starts_with(prefix));
    for (end, packing) in PACKINGS {
        if let Some(name) = own().find(|name| name.ends_with(end)) {
            return Some(((*packing).to_owned(), name));
        }
    }
    if let Some(name) = own().find(|name| name.ends_with(".weight_scale") && is_power(index, name)) {
        return Some(("MXFP8 or MXFP4".to_owned(), name));
    }
    own().find_map(|name| {
        let stem = name.strip_suffix(".weight")?;
        let packing = described(index, stem).or_else(|| scaled(index, stem))?;
        Some((packing, name))
    })
}

/// Whether the scales in the tensor `name` are exponents, one for each block.
fn is_power(index: &Index, name: &str) -> bool {
    let byte = index.get(name).is_some_and(|tensor| tensor.storage == Storage::U8);
    byte || index.other(name).is_some_and(|other| other.storage == "F8_E8M0")
}

/// The format in the description of the matrix `stem`, if its numbers are no floats.
fn described(index: &Index, stem: &str) -> Option<String> {
    let weight = index.get(&format!("{stem}.weight"));
    if weight.is_some_and(|weight| matches!(weight.storage, Storage::F8E4M3 | Storage::F8E5M2)) {
        return None;
    }
    let description = index.get(&format!("{stem}{DESCRIPTION}"))?;
    let bytes = description.bytes();
    let read: Option<Value> = serde_json::from_slice(&bytes[..bytes.len().min(MOST_BYTES)]).ok();
    let format = read.and_then(|value| value["format"].as_str().map(str::to_owned));
    Some(format.map_or_else(|| "a format of ComfyUI".to_owned(), |format| shortened(&format)))
}

/// How names of scales end beside whole numbers.
const SCALES: [&str; 4] = [".scales", ".weight_scale", ".scale_weight", ".scale"];

/// The packing of the matrix `stem` if it is whole numbers with scales.
fn scaled(index: &Index, stem: &str) -> Option<String> {
    let weight = index.get(&format!("{stem}.weight"))?;
    if !SCALES.iter().any(|end| index.has(&format!("{stem}{end}"))) {
        return None;
    }
    let packing = match weight.storage {
        Storage::U32 => "MLX's integers",
        Storage::Number(DType::I8) => "8-bit integers",
        Storage::U8 => "4-bit or 8-bit integers",
        _ => return None,
    };
    Some(packing.to_owned())
}

/// The name of a format, as far as it is one.
fn shortened(format: &str) -> String {
    format.chars().filter(|c| c.is_ascii_graphic()).take(32).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use safetensors::tensor::{Dtype, TensorView, serialize};

    use super::*;
    use crate::index::Map;
    use crate::safetensors::Safetensors;

    /// The packing of a file with these tensors, all vectors.
    fn found(tensors: &[(&str, Dtype, &[u8])]) -> Option<String> {
        let views = tensors.iter().map(|(name, dtype, bytes)| {
            let extents = vec![bytes.len() * 8 / dtype.bitsize()];
            (*name, TensorView::new(*dtype, extents, bytes).unwrap())
        });
        let map = Map::from_bytes("f", &serialize(views, None).unwrap()).unwrap();
        let index = Safetensors::from_map(map).unwrap().index;
        packing(&index, "p.").map(|(packing, _)| packing)
    }

    #[test]
    fn packings_are_named() {
        let weight = ("p.a.weight", Dtype::U8, &[0; 8][..]);
        let named = |name: &str, dtype: Dtype, bytes: &[u8]| found(&[weight, (name, dtype, bytes)]);
        for (name, packing) in [
            ("p.a.weight.quant_state.bitsandbytes__nf4", "bitsandbytes NF4"),
            ("p.a.weight_scale_2", "NVFP4"),
            ("p.a.qzeros", "AWQ or GPTQ"),
            ("p.a.wscales", "SVDQuant (nunchaku)"),
            ("p.a.weight_scale", "MXFP8 or MXFP4"),
        ] {
            assert_eq!(named(name, Dtype::U8, &[0; 4]).unwrap(), packing);
        }
        let description = br#"{"format": "int8_tensorwise", "convrot": true}"#;
        assert_eq!(named("p.a.comfy_quant", Dtype::U8, description).unwrap(), "int8_tensorwise");
        assert_eq!(named("p.a.comfy_quant", Dtype::U8, b"{").unwrap(), "a format of ComfyUI");
        let scale = ("p.a.weight_scale", Dtype::F32, &[0; 4][..]);
        assert_eq!(found(&[weight, scale]).unwrap(), "4-bit or 8-bit integers");
        assert_eq!(found(&[("p.a.weight", Dtype::I8, &[0; 4]), scale]).unwrap(), "8-bit integers");
        let mlx = [("p.a.weight", Dtype::U32, &[0; 4][..]), ("p.a.scales", Dtype::F32, &[0; 4])];
        assert_eq!(found(&mlx).unwrap(), "MLX's integers");
    }

    #[test]
    fn other_weights_are_not_packed() {
        let floats = ("p.a.weight", Dtype::F8_E4M3, &[0; 8][..]);
        let description = ("p.a.comfy_quant", Dtype::U8, &br#"{"format": "float8_e4m3fn"}"#[..]);
        assert_eq!(found(&[floats, description, ("p.a.weight_scale", Dtype::F32, &[0; 4])]), None);
        // What they are is said where they are bound.
        assert_eq!(found(&[("p.a.weight", Dtype::I8, &[0; 4])]), None);
        // Another network in the same file.
        assert_eq!(found(&[floats, ("q.a.SCB", Dtype::F32, &[0; 4]), ("q.a.weight", Dtype::I8, &[0; 4])]), None);
    }
}
