//! The largest codes.

/// The widest heads whose scores fit 32 bits.
pub(in crate::kernels::attention) const WIDEST: usize = 512;
/// The largest codes of queries and keys, and of values.
pub(super) const MOST_CODE: f32 = 2047.0;
pub(super) const MOST_VALUE: f32 = 1023.0;
/// The largest weight is 2 to this power.
pub(super) const WEIGHT_BITS: u32 = 13;
/// Added to a number, it leaves the nearest whole one in the last bits.
pub(super) const ROUNDER: f32 = (3 << 22) as f32;
