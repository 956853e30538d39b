//! Weights that were quantized before.
//!
//! 8 bits keep nearly everything, so q8_0 is a source like any other. Less does not: quantizing that again adds a second
//! error to the first, and the result is worse than the same type made from the original.

use std::collections::BTreeMap;

use pinhole_quant::DType;

use super::{Planned, PlannedTensor};
use crate::bind::Piece;
use crate::index::Storage;
use crate::{Error, Result};

/// Weights that are quantized a second time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requantized {
    /// Their format in the source.
    pub from: DType,
    /// Their format in the output.
    pub to: DType,
    /// How many there are.
    pub tensors: usize,
}

/// What is quantized from less than 8 bits.
///
/// # Errors
/// [`Error::Mismatch`] where something is, and may not be.
pub(super) fn check(tensors: &[PlannedTensor], weights: &[Planned<'_>], allowed: bool) -> Result<Vec<Requantized>> {
    let mut counts = BTreeMap::new();
    let mut first = None;
    let mut last = None;
    for Planned { tensor: at, bound, id, merged, .. } in weights {
        let tensor = &tensors[*at];
        let from = bound.pieces(*id).iter().find_map(|piece| lossy(piece, tensor.to, merged.is_some()));
        // A tensor of several weights is one.
        if let Some(from) = from.filter(|_| last.replace(at) != Some(at)) {
            *counts.entry((from, tensor.to)).or_insert(0) += 1;
            first.get_or_insert((tensor, from, bound.origin()));
        }
    }
    if let (Some((tensor, from, origin)), false) = (first, allowed) {
        let count: usize = counts.values().sum();
        let more = if count > 1 { format!(" (and {} more)", count - 1) } else { String::new() };
        let expected = format!("f32, f16, bf16, q8_0 or 8-bit floats to make {} of", tensor.to);
        let error = Error::mismatch(origin, format!("tensor {}", tensor.name), expected, format!("{from}{more}"));
        return Err(error.with_hint(format!(
            "--allow-requantize does it all the same: what {from} lost does not come back, and {} loses more",
            tensor.to
        )));
    }
    Ok(counts.into_iter().map(|((from, to), tensors)| Requantized { from, to, tensors }).collect())
}

/// The format of `piece` where making `to` of it loses something a second time. As F32 it loses nothing, nor as it is, except if
/// it is `changed` before.
fn lossy(piece: &Piece, to: DType, changed: bool) -> Option<DType> {
    match piece.storage() {
        Storage::Number(from) if from.is_quantized() && from != DType::Q8_0 && to != DType::F32 => {
            (changed || to != from).then_some(from)
        }
        _ => None,
    }
}
