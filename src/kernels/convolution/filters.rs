//! Kernels, transformed.

use std::ops::Range;

use pinhole_quant::DType;

use super::formulas::{CHANNELS, POSITIONS, WINDOW, kernel_column, kernel_row};
use super::geometry::{Geometry, OUTPUTS, PIXELS, Weights};
use super::input::fit;
use super::lanes::Lanes;
use super::micro::Micro;
use super::weights::read;

/// The taps of a kernel: three by three.
const TAPS: usize = 9;

/// Numbers of one position of a set: of [`CHANNELS`] channels, and a few between positions, so that these do not all fall into the same lines
/// of the first-level cache. The vector that is written for the last channel reaches into them.
const POSITION: usize = CHANNELS * OUTPUTS + 16;

/// Channels that are transformed together: as many as make whole vectors of taps.
const TOGETHER: usize = PIXELS;

/// Kernels for one set of outputs: for each position `[OUTPUTS, channels]`.
type Set = [[f32; POSITION]; POSITIONS];

/// Weights of some channels, by channel and tap: of one output in each lane.
type Taps = [[f32; PIXELS]; TOGETHER * TAPS];

/// Kernels of at most [`CHANNELS`] channels for some outputs.
pub(super) struct Filters {
    /// One [`Set`] after the other.
    numbers: Vec<f32>,
    taps: Taps,
    channels: usize,
}

impl Default for Filters {
    fn default() -> Filters {
        Filters { numbers: Vec::new(), taps: [[0.0; PIXELS]; TOGETHER * TAPS], channels: 0 }
    }
}

impl Filters {
    /// Makes room for the kernels for so many outputs.
    ///
    /// # Errors
    /// How many bytes could not be had.
    pub(super) fn fit(&mut self, outputs: usize) -> Result<(), usize> {
        fit(&mut self.numbers, outputs.div_ceil(OUTPUTS) * POSITIONS * POSITION)
    }

    /// Holds the kernels of `channels` for `outputs` from now on.
    #[inline(always)]
    pub(super) fn fill<M: Micro>(
        &mut self,
        geometry: &Geometry,
        weights: Weights<'_>,
        channels: Range<usize>,
        outputs: Range<usize>,
    ) {
        self.channels = channels.len();
        let sets: &mut [Set] = self.numbers.as_chunks_mut().0.as_chunks_mut().0;
        for (set, first) in sets.iter_mut().zip(outputs.clone().step_by(OUTPUTS)) {
            for start in channels.clone().step_by(TOGETHER) {
                let count = TOGETHER.min(channels.end - start);
                // Missing outputs are computed as the last one is, and not written.
                let mut rows = [0; OUTPUTS];
                for (i, row) in rows.iter_mut().enumerate() {
                    *row = ((first + i).min(outputs.end - 1) * geometry.inputs + start) * TAPS;
                    // What the next set reads, which the processor does not foresee: rows lie far apart.
                    let next = (*row + OUTPUTS * geometry.inputs * TAPS) * weights.dtype.block_bytes();
                    M::expect(weights.bytes, next..next + count * TAPS * weights.dtype.block_bytes());
                }
                let taps = &mut self.taps;
                match weights.dtype {
                    _ if count < TOGETHER => spread_some(weights, rows, count, taps),
                    DType::F32 => spread::<M::Lanes, F32>(weights.bytes, rows, taps),
                    DType::F16 => spread::<M::Lanes, F16>(weights.bytes, rows, taps),
                    _ => spread::<M::Lanes, Bf16>(weights.bytes, rows, taps),
                }
                for (channel, taps) in (start - channels.start..).zip(&taps.as_chunks().0[..count]) {
                    transform::<M::Lanes>(taps, set, channel);
                }
            }
        }
    }

    /// Position number `position` of set number `set`, `[OUTPUTS, channels]`.
    #[inline(always)]
    pub(super) fn of(&self, set: usize, position: usize) -> &[[f32; OUTPUTS]] {
        &self.numbers[(set * POSITIONS + position) * POSITION..].as_chunks().0[..self.channels]
    }
}

/// Transforms the kernels of channel number `channel`. Whole vectors are written: what is behind their outputs is written afterwards.
#[inline(always)]
fn transform<L: Lanes>(taps: &[[f32; PIXELS]; TAPS], set: &mut Set, channel: usize) {
    let [a, b, c, d, e, f, g, h, i] = taps;
    let upper = kernel_row::<L>([L::load(a), L::load(b), L::load(c)]);
    let middle = kernel_row::<L>([L::load(d), L::load(e), L::load(f)]);
    let lower = kernel_row::<L>([L::load(g), L::load(h), L::load(i)]);
    for column in 0..WINDOW[0] {
        let column_of = kernel_column([upper[column], middle[column], lower[column]]);
        for (row, kernels) in column_of.into_iter().enumerate() {
            if let Some(to) = set[row * WINDOW[0] + column][channel * OUTPUTS..].first_chunk_mut() {
                kernels.store(to);
            }
        }
    }
}

/// How a weight is stored.
trait Stored {
    /// Bytes of a vector of them.
    const BYTES: usize;
    /// The first numbers of `bytes`, which has as many.
    fn load<L: Lanes>(bytes: &[u8]) -> L;
}

struct F32;
struct F16;
struct Bf16;

impl Stored for F32 {
    const BYTES: usize = 4 * PIXELS;

    #[inline(always)]
    fn load<L: Lanes>(bytes: &[u8]) -> L {
        match bytes.first_chunk() {
            Some(bytes) => L::from_f32(bytes),
            None => L::load(&[0.0; PIXELS]),
        }
    }
}

impl Stored for F16 {
    const BYTES: usize = 2 * PIXELS;

    #[inline(always)]
    fn load<L: Lanes>(bytes: &[u8]) -> L {
        match bytes.first_chunk() {
            Some(bytes) => L::from_f16(bytes),
            None => L::load(&[0.0; PIXELS]),
        }
    }
}

impl Stored for Bf16 {
    const BYTES: usize = 2 * PIXELS;

    #[inline(always)]
    fn load<L: Lanes>(bytes: &[u8]) -> L {
        match bytes.first_chunk() {
            Some(bytes) => L::from_bf16(bytes),
            None => L::load(&[0.0; PIXELS]),
        }
    }
}

/// Fills `taps` with the weights from each number of `rows` on, of one output each.
#[inline(always)]
fn spread<L: Lanes, S: Stored>(bytes: &[u8], rows: [usize; OUTPUTS], taps: &mut Taps) {
    for (i, taps) in taps.as_chunks_mut::<PIXELS>().0.iter_mut().enumerate() {
        let mut all = [L::load(&[0.0; PIXELS]); PIXELS];
        for (numbers, row) in all.iter_mut().zip(rows) {
            *numbers = S::load(&bytes[row * (S::BYTES / PIXELS) + i * S::BYTES..]);
        }
        for (numbers, to) in L::transpose(all).into_iter().zip(taps) {
            numbers.store(to);
        }
    }
}

/// The same of fewer channels.
#[inline(always)]
fn spread_some(weights: Weights<'_>, rows: [usize; OUTPUTS], channels: usize, taps: &mut Taps) {
    for (output, row) in rows.into_iter().enumerate() {
        let mut numbers = [0.0; TOGETHER * TAPS];
        let numbers = &mut numbers[..channels * TAPS];
        read(weights, row, numbers);
        for (number, taps) in numbers.iter().zip(taps.iter_mut()) {
            taps[output] = *number;
        }
    }
}
