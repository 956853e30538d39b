//! Which weights of a stage lie in the file's map, and how the others lie one after the other on the device.

use std::collections::HashSet;
use std::sync::Arc;

use pinhole_quant::DType;

use crate::bind::Bound;
use crate::ggml::{Device, DeviceKind, support};
use crate::index::Map;
use crate::stage::Model;
use crate::weights::{Role, Weight, WeightId};
use crate::{Error, Result};

/// A weight that is copied to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Which one.
    pub id: WeightId,
    /// The format that the device computes in.
    pub dtype: DType,
    /// Counted from the start of its stage.
    pub offset: usize,
    /// Without what alignment adds.
    pub bytes: usize,
}

/// The weights of one stage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StageLayout {
    /// Those that are copied, one after the other.
    pub copies: Vec<Copied>,
    /// Bytes of the copies, each rounded up to the device's alignment.
    pub bytes: usize,
    /// Those that are used where they lie in the file.
    pub mapped: Vec<WeightId>,
    /// Their bytes.
    pub mapped_bytes: usize,
    /// Whether another stage uses one of the copies too, so that they cannot be overwritten after the stage.
    pub shared: bool,
}

/// The format that `device` needs of a weight stored as `stored`.
pub fn wanted(weight: &Weight, stored: DType, device: Device) -> DType {
    match weight.role {
        Role::ConvKernel if support::convolves(device, stored) => stored,
        // ggml adds and scales in F32 only, and for a kernel in F16 it would round the activations too.
        Role::Vector | Role::ConvKernel => DType::F32,
        // Tensors that were reshaped have blocks that reach over the ends of rows.
        _ if support::matrix(stored) && weight.shape.row().is_multiple_of(stored.block_size()) => stored,
        _ => DType::F32,
    }
}

/// The map that has the weight as it is computed with, and where, on a device that computes in host memory.
pub fn in_map(bound: &Bound, id: WeightId, dtype: DType, device: Device) -> Option<(&Arc<Map>, usize)> {
    let piece = bound.in_one_piece(id)?;
    let (map, span) = piece.span();
    let address = map.bytes().as_ptr() as usize;
    let alignment = device.alignment();
    let aligned = (address + span.start).is_multiple_of(alignment) && address.is_multiple_of(alignment);
    (device.kind() == DeviceKind::Cpu && piece.is_stored_as(dtype) && aligned).then_some((map, span.start))
}

/// The layout of every stage of `model`. A weight of several stages belongs to the first.
///
/// # Errors
/// [`Error::OutOfMemory`] for weights beyond what addresses can count.
pub fn stages(model: &Model, bound: &Bound, device: Device) -> Result<Vec<StageLayout>> {
    let (manifest, alignment) = (model.manifest(), device.alignment());
    let mut layouts: Vec<StageLayout> = Vec::with_capacity(model.stages().len());
    let mut seen = HashSet::new();
    for stage in model.stages() {
        let mut layout = StageLayout::default();
        for &id in &stage.weights {
            if !seen.insert(id) {
                let first = layouts.iter_mut().find(|other| other.copies.iter().any(|copied| copied.id == id));
                first.into_iter().for_each(|first| first.shared = true);
                continue;
            }
            let weight = manifest.get(id);
            let dtype = wanted(weight, bound.dtype(id), device);
            let too_large = || Error::OutOfMemory { what: weight.name.clone(), bytes: usize::MAX, hint: None };
            let bytes = weight.shape.bytes(dtype).ok_or_else(too_large)?;
            if in_map(bound, id, dtype, device).is_some() {
                layout.mapped.push(id);
                layout.mapped_bytes += bytes;
                continue;
            }
            layout.copies.push(Copied { id, dtype, offset: layout.bytes, bytes });
            let end = bytes.checked_next_multiple_of(alignment).and_then(|bytes| layout.bytes.checked_add(bytes));
            layout.bytes = end.ok_or_else(too_large)?;
        }
        layouts.push(layout);
    }
    Ok(layouts)
}
