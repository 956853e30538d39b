//! Weights from a formula: bit for bit what `tests/reference/synth.py` makes, so that no weights need to be stored.
//!
//! The number at flat index `i` (PyTorch's row-major order) of the tensor `name` of `component` is
//! `(2 u - 1) * scale + offset`, where `u` holds the upper 24 bits of the `i`-th output of splitmix64
//! (<https://prng.di.unimi.it/splitmix64.c>) seeded with the FNV-1a hash of `component/name`.

use serde_json::Value;

use super::Golden;

/// One weight of a synthetic model, as a golden's header describes it.
pub(crate) struct Weight {
    /// The component it belongs to: `transformer`, `vae`, ...
    pub(crate) component: String,
    /// Its name in the component's file.
    pub(crate) name: String,
    /// Extents in PyTorch's order, slowest first.
    pub(crate) shape: Vec<usize>,
    /// The numbers are uniform within `scale` of `offset`.
    pub(crate) scale: f32,
    /// The middle of the numbers.
    pub(crate) offset: f32,
    /// What its first numbers are.
    pub(crate) first: Vec<f32>,
    /// What [`checksum`] makes of all of them.
    pub(crate) checksum: u64,
}

impl Weight {
    /// All numbers, in PyTorch's row-major order.
    pub(crate) fn values(&self) -> Vec<f32> {
        let seed = fnv1a(&format!("{}/{}", self.component, self.name));
        (0..self.shape.iter().product())
            .map(|i| {
                let u = (splitmix64(seed, i as u64) >> 40) as f32 * (1.0 / (1u32 << 24) as f32);
                (2.0 * u - 1.0) * self.scale + self.offset
            })
            .collect()
    }
}

/// The weights of one component of a synthetic golden, in the order of its header.
pub(crate) fn weights(golden: &Golden, component: &str) -> Vec<Weight> {
    let described = golden.list(&format!("/components/{component}/tensors"));
    described.iter().map(|tensor| weight(component, tensor)).collect()
}

/// A weight as an object describes it, or as a list of name, shape, scale and offset does, where one checksum stands for the
/// whole component.
fn weight(component: &str, tensor: &Value) -> Weight {
    let at = |place: usize, key: &str| if tensor.is_array() { &tensor[place] } else { &tensor[key] };
    let first = tensor["first"].as_array().into_iter().flatten();
    Weight {
        component: component.to_owned(),
        name: at(0, "name").as_str().unwrap().to_owned(),
        shape: at(1, "shape").as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect(),
        scale: at(2, "scale").as_f64().unwrap() as f32,
        offset: at(3, "offset").as_f64().unwrap() as f32,
        first: first.map(|v| v.as_f64().unwrap() as f32).collect(),
        checksum: tensor["checksum"].as_str().map_or(0, |sum| u64::from_str_radix(sum, 16).unwrap()),
    }
}

/// The sum over `i` of the bits of value `i` times `2 i + 1`, modulo 2^64: sees every bit and the order.
pub(crate) fn checksum(values: &[f32]) -> u64 {
    values
        .iter()
        .enumerate()
        .fold(0, |sum, (i, value)| sum.wrapping_add(u64::from(value.to_bits()).wrapping_mul(2 * i as u64 + 1)))
}

fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |state, byte| (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3))
}

fn splitmix64(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add((index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
