//! The kernels in plain Rust: what the others are held to.

use super::BLOCK;
use super::format::Format;
use super::micro::Micro;
use super::panel::{Panel, turns, turns_of_words};

/// Rows of a panel.
const ROWS: usize = 8;

/// Tokens of a tile.
const TOKENS: usize = 4;

/// Codes of 8 bits.
pub(super) struct Portable;

/// Codes of 16 bits, signed: those that have a factor.
pub(super) struct PortableWords;

impl Micro<ROWS, TOKENS> for Portable {
    const CODE_BYTES: usize = 1;

    unsafe fn unpack(panel: &mut Panel, format: Format, rows: &[&[u8]]) {
        panel.unpack::<ROWS, 4, 1>(format, rows, |eight, codes| turns::<ROWS, 4>(&eight.rows, 0, codes));
    }

    unsafe fn pack(rows: &[&[f32]], tile: &mut [u8]) {
        Self::LAYOUT.pack(rows, tile);
    }

    unsafe fn tile(format: Format, panel: &Panel, records: &[u8], _: usize, sums: &mut [[f32; ROWS]; TOKENS]) {
        add::<Portable>(panel, records, sums, |[codes, activations], sum_of_codes| {
            let products = codes.zip(activations).flat_map(|(codes, activations)| codes.into_iter().zip(activations));
            let dot: i32 =
                products.map(|(code, activation)| i32::from(code) * i32::from(activation.cast_signed())).sum();
            dot - i32::from(format.offset()) * sum_of_codes
        });
    }
}

impl Micro<ROWS, TOKENS> for PortableWords {
    const CODE_BYTES: usize = 2;

    unsafe fn unpack(panel: &mut Panel, format: Format, rows: &[&[u8]]) {
        let offset = format.offset();
        panel.unpack::<ROWS, 4, 2>(format, rows, |eight, codes| turns_of_words::<ROWS>(eight, offset, codes));
    }

    unsafe fn pack(rows: &[&[f32]], tile: &mut [u8]) {
        Self::LAYOUT.pack(rows, tile);
    }

    unsafe fn tile(_: Format, panel: &Panel, records: &[u8], _: usize, sums: &mut [[f32; ROWS]; TOKENS]) {
        add::<PortableWords>(panel, records, sums, |[codes, activations], _| {
            let words = |[a, b, c, d]: [u8; 4]| [i16::from_ne_bytes([a, b]), i16::from_ne_bytes([c, d])].map(i32::from);
            let products = codes.zip(activations).map(|(codes, activations)| (words(codes), words(activations)));
            products.map(|([w0, w1], [x0, x1])| w0 * x0 + w1 * x1).sum()
        });
    }
}

/// Adds to `sums` what the panel's blocks come to with a tile's `records`. `dot` is the sum of the products of one row's codes and one
/// token's, in turns of 4 bytes, given the sum of the token's codes too.
fn add<M: Micro<ROWS, TOKENS>>(
    panel: &Panel,
    records: &[u8],
    sums: &mut [[f32; ROWS]; TOKENS],
    dot: impl Fn([Turns<'_>; 2], i32) -> i32,
) {
    let block_bytes = BLOCK * M::CODE_BYTES;
    for (i, record) in records.chunks_exact(M::LAYOUT.record_bytes()).enumerate() {
        let codes = &panel.codes[i * ROWS * block_bytes..][..ROWS * block_bytes];
        let (activations, scales) = record.split_at(TOKENS * block_bytes);
        let scales = scales.as_chunks::<4>().0;
        for (token, sums) in sums.iter_mut().enumerate() {
            let (scale, sum_of_codes) = (f32::from_ne_bytes(scales[token]), i32::from_ne_bytes(scales[TOKENS + token]));
            for (row, sum) in sums.iter_mut().enumerate() {
                let turns = [turns_of(codes, row, ROWS), turns_of(activations, token, TOKENS)];
                let (w_scale, w_shift) = (panel.scales[i * ROWS + row], panel.shifts[i * ROWS + row]);
                *sum = w_shift.mul_add(scale * sum_of_codes as f32, *sum);
                *sum = (dot(turns, sum_of_codes) as f32).mul_add(w_scale * scale, *sum);
            }
        }
    }
}

/// Turns of 4 bytes.
type Turns<'a> = std::iter::Copied<std::iter::StepBy<std::iter::Skip<std::slice::Iter<'a, [u8; 4]>>>>;

/// The turns of number `own` among those of `all` that take turns.
fn turns_of(bytes: &[u8], own: usize, all: usize) -> Turns<'_> {
    bytes.as_chunks().0.iter().skip(own).step_by(all).copied()
}
