//! Whether a device's own attention sums in F16: found by asking it for a mean.
//!
//! ggml's Vulkan backend has an attention for devices without matrix cores that adds values up in F16, whatever precision it is asked
//! for; the error grows with the number of tokens. No feature of a device tells which attention it gets, so each is tried.

use std::sync::{Mutex, PoisonError};

use pinhole_quant::DType;

use super::{Arena, Backend, Buffer, CancelFlag, Device, Graph, Ledger, Placed};
use crate::tensor::Shape;
use crate::{Error, Result, reserve};

/// How many keys have the same score, and how many queries see them.
const KEYS: usize = 2048;
const QUERIES: usize = 32;

/// The width of most heads: every device is tried with it. A device may compute wider heads in another way, and is tried with these, too.
const WIDTH: usize = 128;

/// How far a mean may be from the value that all keys have. Sums in F32 are exact here, and only the division rounds: 1e-7. Those in F16
/// are multiples of a 2048th of themselves: 2e-4 in the middle.
const MOST_ERROR: f32 = 1e-5;

/// What is known of devices and widths of heads.
static KNOWN: Mutex<Vec<(Device, usize, bool)>> = Mutex::new(Vec::new());

impl Device {
    /// Whether its own attention sums values in F16, so that pinhole multiplies and normalises instead.
    ///
    /// # Errors
    /// [`Error::Device`], [`Error::Graph`] or [`Error::OutOfMemory`] where the device does not compute.
    pub fn sums_attention_in_f16(&self) -> Result<bool> {
        self.sums_heads_in_f16(WIDTH)
    }

    /// The same for heads of `width`. The first time it takes about a megabyte of the device, for as long as that lasts.
    pub(super) fn sums_heads_in_f16(&self, width: usize) -> Result<bool> {
        if !self.is_vulkan() {
            return Ok(false);
        }
        let width = width.max(WIDTH);
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((.., sums)) = known.iter().find(|(device, of, _)| device == self && *of == width) {
            return Ok(*sums);
        }
        let sums = worst_mean(*self, width)? > MOST_ERROR;
        known.push((*self, width, sums));
        Ok(sums)
    }
}

/// The value of all keys in `column` of a head. F16 has it, with its last digit, so that its multiples are not there; a few thousand of
/// them F32 adds up without rounding.
fn value(column: usize) -> f32 {
    (1025 + 2 * column % 1024) as f32 / 1024.0
}

/// By how much of itself the mean of equal values is off at most, as `device` computes it for heads of `width`.
fn worst_mean(device: Device, width: usize) -> Result<f32> {
    let ledger = Ledger::new();
    let place = |tokens: usize| {
        let impossible = || Error::graph("attention", format!("heads of {width} numbers"));
        let shape = Shape::new(&[width, tokens]).ok_or_else(impossible)?;
        let bytes = shape.bytes(DType::F32).ok_or_else(impossible)?;
        Placed::new(&Buffer::allocate(device, bytes, &ledger, "trial")?, 0, DType::F32, shape)
    };
    let (keys, queries, means) = (place(KEYS)?, place(QUERIES)?, place(QUERIES)?);
    let mut bytes = reserve::room("a trial", keys.bytes())?;
    (0..KEYS).flat_map(|_| 0..width).for_each(|column| bytes.extend(value(column).to_ne_bytes()));
    keys.write(&bytes)?;
    // With queries of zeros all scores are equal, whatever the keys are: they are the values as well.
    queries.write(&reserve::zeros::<u8>("a trial", queries.bytes())?)?;

    let graph = Graph::new(device, 32)?;
    let (k, q) = (graph.leaf(&keys)?, graph.leaf(&queries)?);
    let attended = graph.attend([q, k, k], 1.0, None)?;
    graph.store(graph.reshape(attended, &[width, QUERIES])?, &means)?;
    let mut arena = Arena::new(device, &ledger)?;
    arena.assign(&[&graph])?;
    Backend::untried(device, 1, CancelFlag::new())?.compute(&graph, &mut arena)?;

    bytes.truncate(means.bytes());
    means.read(&mut bytes)?;
    let found = bytes.as_chunks::<4>().0.iter().map(|&mean| f32::from_ne_bytes(mean));
    let off = found.enumerate().map(|(at, mean)| (mean / value(at % width) - 1.0).abs());
    // A mean that is no number is as wrong as can be.
    Ok(off.fold(0.0, |most: f32, off| if off.is_nan() { f32::INFINITY } else { most.max(off) }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use half::f16;

    use super::*;

    #[test]
    fn the_cpu_finds_the_mean() {
        assert!(worst_mean(Device::cpu().unwrap(), 128).unwrap() <= MOST_ERROR);
        assert!(!Device::cpu().unwrap().sums_attention_in_f16().unwrap());
    }

    #[test]
    fn sums_in_f16_show_where_16_are_added_at_a_time_or_more() {
        for (column, added) in (0..256).flat_map(|column| [16, 64, 2048].map(|added| (column, added))) {
            let value = value(column);
            assert_eq!(f16::from_f32(value).to_f32(), value);
            let sum = (0..added).fold(0.0, |sum: f32, _| sum + value);
            assert_eq!(f64::from(sum), added as f64 * f64::from(value));
        }
        for added in [16, 64, 2048] {
            let off = (0..128).map(|column| {
                let sum = (0..added).fold(f16::ZERO, |sum, _| f16::from_f32(sum.to_f32() + value(column)));
                (sum.to_f32() / added as f32 / value(column) - 1.0).abs()
            });
            assert!(off.fold(0.0, f32::max) > 10.0 * MOST_ERROR, "{added} at a time");
        }
    }
}
