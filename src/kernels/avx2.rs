//! AVX2 with FMA: 16 rows, two vectors of eight, by a few tokens.

use std::arch::x86_64::*;

use super::BLOCK;
use super::format::Format;
use super::panel::Panel;
use super::product::Micro;

/// Codes of 4 and 5 bits, in unsigned bytes. `RUN` groups of four columns fit into 16 bits: 8 of 4-bit codes (at most
/// 8 * 2 * 15 * 127 = 30480) and 4 of 5-bit codes (4 * 2 * 31 * 127 = 31496). `OFFSET` is the format's; 0 means that
/// weights have shifts.
pub(super) struct Bytes<const RUN: usize, const OFFSET: i32>;

/// Codes of 8 bits: pairs of their products would not fit into 16 bits, so they are widened to words.
pub(super) struct Words;

/// Rows of a panel.
pub(super) const ROWS: usize = 16;

/// Tokens of a tile. Sums of both kinds, 16 vectors, are more than there are registers; which are spilled is the
/// compiler's choice, and more tokens measure slower.
pub(super) const TOKENS: usize = 4;

impl<const RUN: usize, const OFFSET: i32> Micro<ROWS, TOKENS> for Bytes<RUN, OFFSET> {
    const CODE_BYTES: usize = 1;

    unsafe fn unpack<'a>(panel: &mut Panel, format: Format, rows: impl Iterator<Item = &'a [u8]>) {
        // SAFETY: the caller's promise.
        unsafe { unpack::<false>(panel, format, rows) };
    }

    unsafe fn pack(rows: &[&[f32]], tile: &mut [u8]) {
        // SAFETY: the caller's promise.
        unsafe { pack::<Self>(rows, tile) };
    }

    unsafe fn tile(_: Format, panel: &Panel, records: &[u8], sums: &mut [[f32; ROWS]; TOKENS]) {
        // SAFETY: the caller's promise.
        unsafe { tile_of_bytes::<RUN, OFFSET>(panel, records, sums) };
    }
}

impl Micro<ROWS, TOKENS> for Words {
    const CODE_BYTES: usize = 2;

    unsafe fn unpack<'a>(panel: &mut Panel, format: Format, rows: impl Iterator<Item = &'a [u8]>) {
        // SAFETY: the caller's promise.
        unsafe { unpack::<true>(panel, format, rows) };
    }

    unsafe fn pack(rows: &[&[f32]], tile: &mut [u8]) {
        // SAFETY: the caller's promise.
        unsafe { pack::<Self>(rows, tile) };
    }

    unsafe fn tile(_: Format, panel: &Panel, records: &[u8], sums: &mut [[f32; ROWS]; TOKENS]) {
        // SAFETY: the caller's promise.
        unsafe { tile_of_words(panel, records, sums) };
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn unpack<'a, const WIDE: bool>(panel: &mut Panel, format: Format, rows: impl Iterator<Item = &'a [u8]>) {
    panel.unpack::<ROWS, 4, WIDE>(format, 0, rows);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn pack<M: Micro<ROWS, TOKENS>>(rows: &[&[f32]], tile: &mut [u8]) {
    M::LAYOUT.pack(rows, tile);
}

/// Sums of a tile: for each token two vectors of rows.
type Sums<T> = [[T; 2]; TOKENS];

#[target_feature(enable = "avx2,fma,f16c")]
fn tile_of_bytes<const RUN: usize, const OFFSET: i32>(panel: &Panel, records: &[u8], out: &mut [[f32; ROWS]; TOKENS]) {
    let record_bytes = <Bytes<RUN, OFFSET> as Micro<ROWS, TOKENS>>::LAYOUT.record_bytes();
    let ones = _mm256_set1_epi16(1);
    let mut sums = load(out);
    for (block, record) in records.chunks_exact(record_bytes).enumerate() {
        let codes = &panel.codes[block * ROWS * BLOCK..][..ROWS * BLOCK];
        let mut dots: Sums<__m256i> = [[_mm256_setzero_si256(); 2]; TOKENS];
        for run in 0..8 / RUN {
            let mut short: Sums<__m256i> = [[_mm256_setzero_si256(); 2]; TOKENS];
            for group in run * RUN..(run + 1) * RUN {
                let weights = two(codes, group);
                for (token, short) in short.iter_mut().enumerate() {
                    let activations = broadcast(record, group * TOKENS + token);
                    for (short, weights) in short.iter_mut().zip(weights) {
                        *short = _mm256_add_epi16(*short, _mm256_maddubs_epi16(weights, activations));
                    }
                }
            }
            for (dots, short) in dots.iter_mut().flatten().zip(short.iter().flatten()) {
                *dots = _mm256_add_epi32(*dots, _mm256_madd_epi16(*short, ones));
            }
        }
        scale::<true, OFFSET>(panel, block, &record[TOKENS * BLOCK..], &dots, &mut sums);
    }
    store(&sums, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn tile_of_words(panel: &Panel, records: &[u8], out: &mut [[f32; ROWS]; TOKENS]) {
    let record_bytes = Words::LAYOUT.record_bytes();
    let mut sums = load(out);
    for (block, record) in records.chunks_exact(record_bytes).enumerate() {
        let codes = &panel.codes[block * ROWS * BLOCK * 2..][..ROWS * BLOCK * 2];
        let mut dots: Sums<__m256i> = [[_mm256_setzero_si256(); 2]; TOKENS];
        // Four groups at a time are what the compiler unrolls well: a loop of one spends a slot of every cycle on counting,
        // and all sixteen, unrolled, spill.
        for first in (0..16).step_by(4) {
            for group in first..first + 4 {
                let weights = two(codes, group);
                for (token, dots) in dots.iter_mut().enumerate() {
                    let activations = broadcast(record, group * TOKENS + token);
                    for (dots, weights) in dots.iter_mut().zip(weights) {
                        *dots = _mm256_add_epi32(*dots, _mm256_madd_epi16(weights, activations));
                    }
                }
            }
        }
        scale::<false, 0>(panel, block, &record[TOKENS * BLOCK * 2..], &dots, &mut sums);
    }
    store(&sums, out);
}

/// Codes of a group of columns: 4 bytes of each of 16 rows.
#[inline]
#[target_feature(enable = "avx2")]
fn two(codes: &[u8], group: usize) -> [__m256i; 2] {
    let codes = &codes[group * ROWS * 4..][..ROWS * 4];
    // SAFETY: the slice has 64 bytes.
    unsafe { [_mm256_loadu_si256(codes.as_ptr().cast()), _mm256_loadu_si256(codes[32..].as_ptr().cast())] }
}

/// 4 bytes of `record` in every lane.
#[inline]
#[target_feature(enable = "avx2")]
fn broadcast(record: &[u8], at: usize) -> __m256i {
    let bytes = &record[4 * at..][..4];
    _mm256_set1_epi32(i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

/// Adds what a block's whole sums come to. `scales` holds each token's scale, then the sum of each token's codes. Weights
/// are `BIASED` where codes have an offset or, with 0 for one, a shift.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn scale<const BIASED: bool, const OFFSET: i32>(
    panel: &Panel,
    block: usize,
    scales: &[u8],
    dots: &Sums<__m256i>,
    sums: &mut Sums<__m256>,
) {
    let eights = |numbers: &[f32]| {
        let numbers = &numbers[block * ROWS..][..ROWS];
        // SAFETY: the slice has 16 numbers.
        unsafe { [_mm256_loadu_ps(numbers.as_ptr()), _mm256_loadu_ps(numbers[8..].as_ptr())] }
    };
    let (row_scales, shifts) = (eights(&panel.scales), eights(&panel.shifts));
    for token in 0..TOKENS {
        let token_scale = _mm256_castsi256_ps(broadcast(scales, token));
        let sum_of_codes = broadcast(scales, TOKENS + token);
        let offset = _mm256_mullo_epi32(sum_of_codes, _mm256_set1_epi32(OFFSET));
        let token_sum = _mm256_mul_ps(_mm256_cvtepi32_ps(sum_of_codes), token_scale);
        for half in 0..2 {
            let (mut dots, sum) = (dots[token][half], &mut sums[token][half]);
            if BIASED && OFFSET == 0 {
                *sum = _mm256_fmadd_ps(shifts[half], token_sum, *sum);
            } else if BIASED {
                dots = _mm256_sub_epi32(dots, offset);
            }
            let both = _mm256_mul_ps(row_scales[half], token_scale);
            *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), both, *sum);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(sums: &[[f32; ROWS]; TOKENS]) -> Sums<__m256> {
    // SAFETY: 16 numbers each.
    sums.each_ref().map(|sums| unsafe { [_mm256_loadu_ps(sums.as_ptr()), _mm256_loadu_ps(sums[8..].as_ptr())] })
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(sums: &Sums<__m256>, out: &mut [[f32; ROWS]; TOKENS]) {
    for ([low, high], out) in sums.iter().zip(out) {
        // SAFETY: 16 numbers.
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), *low);
            _mm256_storeu_ps(out[8..].as_mut_ptr(), *high);
        }
    }
}
