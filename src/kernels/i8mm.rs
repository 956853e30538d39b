//! Arm64 with matrix multiplication of bytes (FEAT_I8MM): 16 rows by 4 tokens, in squares of two by two. One instruction
//! multiplies and adds eight columns of 2 tokens and 2 rows, for signed codes of any size.

use std::arch::aarch64::*;
use std::arch::asm;

use super::BLOCK;
use super::format::Format;
use super::micro::Micro;
use super::panel::{Panel, turns};

/// Signed codes, whose offsets are already taken off, times signed activations, summed in 32 bits. Weights may be `SHIFTED`.
pub(super) struct I8mm<const SHIFTED: bool>;

/// Rows of a panel.
pub(super) const ROWS: usize = 16;

/// Tokens of a tile: 16 of the 32 registers hold whole sums.
pub(super) const TOKENS: usize = 4;

impl<const SHIFTED: bool> Micro<ROWS, TOKENS> for I8mm<SHIFTED> {
    const CODE_BYTES: usize = 1;
    const TURN: usize = 8;

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

#[target_feature(enable = "neon,i8mm")]
fn unpack(panel: &mut Panel, format: Format, rows: &[&[u8]]) {
    // What is taken off leaves signed bytes.
    let more = format.offset().wrapping_neg();
    panel.unpack::<ROWS, 8, 1>(format, rows, |eight, codes| turns::<ROWS, 8>(&eight.rows, more, codes));
}

#[target_feature(enable = "neon,i8mm")]
fn pack(rows: &[&[f32]], tile: &mut [u8]) {
    I8mm::<false>::LAYOUT.pack(rows, tile);
}

/// Sums of a tile: for each two tokens eight squares, each of the first token with two rows, then the second with them.
type Sums<T> = [[T; ROWS / 2]; TOKENS / 2];

#[target_feature(enable = "neon,i8mm")]
fn tile<const SHIFTED: bool>(panel: &Panel, records: &[u8], out: &mut [[f32; ROWS]; TOKENS]) {
    let mut sums = load(out);
    for (block, record) in records.chunks_exact(I8mm::<SHIFTED>::LAYOUT.record_bytes()).enumerate() {
        let codes = &panel.codes[block * ROWS * BLOCK..][..ROWS * BLOCK];
        let mut dots: Sums<int32x4_t> = [[vdupq_n_s32(0); ROWS / 2]; TOKENS / 2];
        for group in 0..4 {
            let activations = [sixteen(record, 2 * group), sixteen(record, 2 * group + 1)];
            for rows in 0..ROWS / 2 {
                let weights = sixteen(codes, group * (ROWS / 2) + rows);
                for (dots, activations) in dots.iter_mut().zip(activations) {
                    dots[rows] = multiply(dots[rows], activations, weights);
                }
            }
        }
        scale::<SHIFTED>(panel, block, &record[TOKENS * BLOCK..], &dots, &mut sums);
    }
    store(&sums, out);
}

/// Adds to a square the products of 8 bytes of each token with 8 of each row. What `vmmlaq_s32` does, which is unstable.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn multiply(mut square: int32x4_t, activations: int8x16_t, weights: int8x16_t) -> int32x4_t {
    // SAFETY: the function's feature has the instruction, which changes the one register.
    unsafe {
        asm!(
            "smmla {square:v}.4s, {activations:v}.16b, {weights:v}.16b",
            square = inout(vreg) square,
            activations = in(vreg) activations,
            weights = in(vreg) weights,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    square
}

/// 16 bytes: codes of a group of columns, 8 of each of two rows or tokens.
#[inline]
#[target_feature(enable = "neon")]
fn sixteen(codes: &[u8], at: usize) -> int8x16_t {
    let codes = &codes[16 * at..][..16];
    // SAFETY: the slice has 16 bytes.
    unsafe { vld1q_s8(codes.as_ptr().cast()) }
}

/// Four numbers.
#[inline]
#[target_feature(enable = "neon")]
fn four(numbers: &[f32], at: usize) -> float32x4_t {
    let numbers = &numbers[at..][..4];
    // SAFETY: the slice has 4 numbers.
    unsafe { vld1q_f32(numbers.as_ptr()) }
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
    let token_scales = vreinterpretq_f32_s8(sixteen(scales, 0));
    let token_sums = vmulq_f32(vcvtq_f32_s32(vreinterpretq_s32_s8(sixteen(scales, 1))), token_scales);
    let (token_scales, token_sums) = (each_twice(token_scales), each_twice(token_sums));
    for rows in (0..ROWS).step_by(4) {
        let row_scales = four(&panel.scales, block * ROWS + rows);
        let shifts = four(&panel.shifts, block * ROWS + rows);
        let (row_scales, shifts) = (halves(row_scales, row_scales), halves(shifts, shifts));
        for tokens in 0..TOKENS / 2 {
            for half in 0..2 {
                let (dots, sum) = (dots[tokens][rows / 2 + half], &mut sums[tokens][rows / 2 + half]);
                if SHIFTED {
                    *sum = vfmaq_f32(*sum, shifts[half], token_sums[tokens]);
                }
                let both = vmulq_f32(row_scales[half], token_scales[tokens]);
                *sum = vfmaq_f32(*sum, vcvtq_f32_s32(dots), both);
            }
        }
    }
}

/// Numbers of four tokens as squares have them.
#[inline]
#[target_feature(enable = "neon")]
fn each_twice(numbers: float32x4_t) -> [float32x4_t; 2] {
    [vzip1q_f32(numbers, numbers), vzip2q_f32(numbers, numbers)]
}

/// The first halves of both, and the second ones: two tokens with four rows as squares, and squares as tokens.
#[inline]
#[target_feature(enable = "neon")]
fn halves(a: float32x4_t, b: float32x4_t) -> [float32x4_t; 2] {
    let (a, b) = (vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b));
    [vreinterpretq_f32_f64(vzip1q_f64(a, b)), vreinterpretq_f32_f64(vzip2q_f64(a, b))]
}

#[inline]
#[target_feature(enable = "neon")]
fn load(sums: &[[f32; ROWS]; TOKENS]) -> Sums<float32x4_t> {
    let mut squares = [[vdupq_n_f32(0.0); ROWS / 2]; TOKENS / 2];
    for ([a, b], squares) in sums.as_chunks::<2>().0.iter().zip(&mut squares) {
        for (i, squares) in squares.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            *squares = halves(four(a, 4 * i), four(b, 4 * i));
        }
    }
    squares
}

#[inline]
#[target_feature(enable = "neon")]
fn store(sums: &Sums<float32x4_t>, out: &mut [[f32; ROWS]; TOKENS]) {
    for (squares, [a, b]) in sums.iter().zip(out.as_chunks_mut::<2>().0) {
        let fours = a.as_chunks_mut::<4>().0.iter_mut().zip(b.as_chunks_mut::<4>().0);
        for ([first, second], (a, b)) in squares.as_chunks::<2>().0.iter().zip(fours) {
            let [first, second] = halves(*first, *second);
            // SAFETY: 4 numbers each.
            unsafe {
                vst1q_f32(a.as_mut_ptr(), first);
                vst1q_f32(b.as_mut_ptr(), second);
            }
        }
    }
}
