//! Arm64 with the dot products of Armv8.2: 16 rows, four vectors of four, by 4 tokens. One instruction multiplies and adds four
//! columns of 4 rows, for signed codes of any size, with those of a token that is one lane of another register.

use std::arch::aarch64::*;
use std::arch::asm;

use super::BLOCK;
use super::format::Format;
use super::micro::Micro;
use super::panel::{Panel, turns};

/// Signed codes, whose offsets are already taken off, times signed activations, summed in 32 bits. Weights may be `SHIFTED`.
pub(super) struct Dotprod<const SHIFTED: bool>;

/// Rows of a panel.
pub(super) const ROWS: usize = 16;

/// Tokens of a tile, as many as a register has lanes: 16 of the 32 registers hold whole sums.
pub(super) const TOKENS: usize = 4;

impl<const SHIFTED: bool> Micro<ROWS, TOKENS> for Dotprod<SHIFTED> {
    const CODE_BYTES: usize = 1;

    unsafe fn unpack(panel: &mut Panel, format: Format, rows: &[&[u8]]) {
        // SAFETY: the caller's promise.
        unsafe { unpack(panel, format, rows) };
    }

    unsafe fn pack(rows: &[&[f32]], tile: &mut [u8]) {
        // SAFETY: the caller's promise.
        unsafe { pack(rows, tile) };
    }

    unsafe fn tile(_: Format, panel: &Panel, records: &[u8], _: usize, sums: &mut [[f32; ROWS]; TOKENS]) {
        // SAFETY: the caller's promise.
        unsafe { tile::<SHIFTED>(panel, records, sums) };
    }
}

#[target_feature(enable = "neon,dotprod")]
fn unpack(panel: &mut Panel, format: Format, rows: &[&[u8]]) {
    // What is taken off leaves signed bytes.
    let more = format.offset().wrapping_neg();
    panel.unpack::<ROWS, 4, 1>(format, rows, |eight, codes| turns::<ROWS, 4>(&eight.rows, more, codes));
}

#[target_feature(enable = "neon,dotprod")]
fn pack(rows: &[&[f32]], tile: &mut [u8]) {
    Dotprod::<false>::LAYOUT.pack(rows, tile);
}

/// Sums of a tile: for each token four vectors of rows.
type Sums<T> = [[T; 4]; TOKENS];

#[target_feature(enable = "neon,dotprod")]
fn tile<const SHIFTED: bool>(panel: &Panel, records: &[u8], out: &mut [[f32; ROWS]; TOKENS]) {
    let mut sums = load(out);
    for (block, record) in records.chunks_exact(Dotprod::<SHIFTED>::LAYOUT.record_bytes()).enumerate() {
        let codes = &panel.codes[block * ROWS * BLOCK..][..ROWS * BLOCK];
        let mut dots: Sums<int32x4_t> = [[vdupq_n_s32(0); 4]; TOKENS];
        for group in 0..8 {
            let activations = sixteen(record, group);
            let weights = [0, 1, 2, 3].map(|quarter| sixteen(codes, group * 4 + quarter));
            dot::<0>(&mut dots[0], weights, activations);
            dot::<1>(&mut dots[1], weights, activations);
            dot::<2>(&mut dots[2], weights, activations);
            dot::<3>(&mut dots[3], weights, activations);
        }
        scale::<SHIFTED>(panel, block, &record[TOKENS * BLOCK..], &dots, &mut sums);
    }
    store(&sums, out);
}

/// Adds to a token's sums, one for each row, the products of 4 bytes of `weights` with those of `activations` that are number
/// `TOKEN`. What `vdotq_laneq_s32` does, which is unstable.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot<const TOKEN: i32>(sums: &mut [int32x4_t; 4], weights: [int8x16_t; 4], activations: int8x16_t) {
    for (sums, weights) in sums.iter_mut().zip(weights) {
        // SAFETY: the function's feature has the instruction, which changes the one register.
        unsafe {
            asm!(
                "sdot {sums:v}.4s, {weights:v}.16b, {activations:v}.4b[{token}]",
                sums = inout(vreg) *sums,
                weights = in(vreg) weights,
                activations = in(vreg) activations,
                token = const TOKEN,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
    }
}

/// 16 bytes: codes of a group of columns, 4 of each of four rows or tokens.
#[inline]
#[target_feature(enable = "neon")]
fn sixteen(codes: &[u8], at: usize) -> int8x16_t {
    let codes = &codes[16 * at..][..16];
    // SAFETY: the slice has 16 bytes.
    unsafe { vld1q_s8(codes.as_ptr().cast()) }
}

/// Adds what a block's whole sums come to. `scales` holds each token's scale, then the sum of each token's codes.
#[inline]
#[target_feature(enable = "neon")]
fn scale<const SHIFTED: bool>(
    panel: &Panel,
    block: usize,
    scales: &[u8],
    dots: &Sums<int32x4_t>,
    sums: &mut Sums<float32x4_t>,
) {
    let row_scales = fours(&panel.scales[block * ROWS..][..ROWS]);
    let shifts = fours(&panel.shifts[block * ROWS..][..ROWS]);
    let scales = scales.as_chunks::<4>().0;
    for token in 0..TOKENS {
        let token_scale = f32::from_ne_bytes(scales[token]);
        let token_sum = vdupq_n_f32(i32::from_ne_bytes(scales[TOKENS + token]) as f32 * token_scale);
        for quarter in 0..4 {
            let (dots, sum) = (dots[token][quarter], &mut sums[token][quarter]);
            if SHIFTED {
                *sum = vfmaq_f32(*sum, shifts[quarter], token_sum);
            }
            let both = vmulq_f32(row_scales[quarter], vdupq_n_f32(token_scale));
            *sum = vfmaq_f32(*sum, vcvtq_f32_s32(dots), both);
        }
    }
}

/// Numbers of 16 rows.
#[inline]
#[target_feature(enable = "neon")]
fn fours(numbers: &[f32]) -> [float32x4_t; 4] {
    let numbers = &numbers[..ROWS];
    // SAFETY: the slice has 16 numbers.
    [0, 4, 8, 12].map(|at| unsafe { vld1q_f32(numbers[at..].as_ptr()) })
}

#[inline]
#[target_feature(enable = "neon")]
fn load(sums: &[[f32; ROWS]; TOKENS]) -> Sums<float32x4_t> {
    sums.each_ref().map(|sums| fours(sums))
}

#[inline]
#[target_feature(enable = "neon")]
fn store(sums: &Sums<float32x4_t>, out: &mut [[f32; ROWS]; TOKENS]) {
    for (sums, out) in sums.iter().zip(out) {
        for (sums, out) in sums.iter().zip(out.as_chunks_mut::<4>().0) {
            // SAFETY: 4 numbers.
            unsafe { vst1q_f32(out.as_mut_ptr(), *sums) };
        }
    }
}
