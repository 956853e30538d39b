//! The kernel in plain Rust: what the others are held to.

use super::BLOCK;
use super::format::Format;
use super::micro::Micro;
use super::panel::{Panel, turns};

/// 8 rows by 4 tokens.
pub(super) struct Portable;

impl Micro<8, 4> for Portable {
    const CODE_BYTES: usize = 1;

    unsafe fn unpack(panel: &mut Panel, format: Format, rows: &[&[u8]]) {
        panel.unpack::<8, 4, 1>(format, rows, |eight, codes| turns::<8, 4>(eight, 0, codes));
    }

    unsafe fn pack(rows: &[&[f32]], tile: &mut [u8]) {
        Self::LAYOUT.pack(rows, tile);
    }

    unsafe fn tile(format: Format, panel: &Panel, records: &[u8], _: usize, sums: &mut [[f32; 8]; 4]) {
        for (i, record) in records.chunks_exact(Self::LAYOUT.record_bytes()).enumerate() {
            let codes = &panel.codes[i * 8 * BLOCK..][..8 * BLOCK];
            let (activations, scales) = record.split_at(4 * BLOCK);
            let four = |i: usize| [0, 1, 2, 3].map(|byte| scales[4 * i + byte]);
            for (token, sums) in sums.iter_mut().enumerate() {
                let (scale, sum_of_codes) = (f32::from_ne_bytes(four(token)), i32::from_ne_bytes(four(4 + token)));
                for (row, sum) in sums.iter_mut().enumerate() {
                    let offset = i32::from(format.offset()) * sum_of_codes;
                    let dot = (dot(codes, row, activations, token) - offset) as f32;
                    let (w_scale, w_shift) = (panel.scales[i * 8 + row], panel.shifts[i * 8 + row]);
                    *sum = w_shift.mul_add(scale * sum_of_codes as f32, *sum);
                    *sum = dot.mul_add(w_scale * scale, *sum);
                }
            }
        }
    }
}

/// The sum of products of a row's codes and a token's.
fn dot(codes: &[u8], row: usize, activations: &[u8], token: usize) -> i32 {
    let codes = codes.chunks_exact(4).skip(row).step_by(8).flatten();
    let activations = activations.chunks_exact(4).skip(token).step_by(4).flatten();
    codes.zip(activations).map(|(&code, &activation)| i32::from(code) * i32::from(activation as i8)).sum()
}
