//! AVX-512 with VNNI: 32 rows, two vectors of 16, by 6 tokens. One instruction multiplies and adds four columns of 16 rows,
//! for codes of any size.

use std::arch::x86_64::*;

use super::BLOCK;
use super::avx2::turns;
use super::format::Format;
use super::micro::Micro;
use super::panel::Panel;

/// Unsigned codes times signed activations, summed in 32 bits. Codes have this `OFFSET`; 0 means that weights have shifts.
pub(super) struct Vnni<const OFFSET: i32>;

/// The offset of q8_0. Codes of other formats without shifts are brought to it: any byte will do for a code here.
pub(super) const OFFSET: i32 = 128;

/// Rows of a panel.
pub(super) const ROWS: usize = 32;

/// Tokens of a tile: 24 of the 32 registers hold sums, whole ones and scaled ones.
pub(super) const TOKENS: usize = 6;

impl<const OFFSET: i32> Micro<ROWS, TOKENS> for Vnni<OFFSET> {
    const CODE_BYTES: usize = 1;

    unsafe fn unpack(panel: &mut Panel, format: Format, rows: &[&[u8]]) {
        // SAFETY: the caller's promise.
        unsafe { unpack::<OFFSET>(panel, format, rows) };
    }

    unsafe fn pack(rows: &[&[f32]], tile: &mut [u8]) {
        // SAFETY: the caller's promise.
        unsafe { pack(rows, tile) };
    }

    unsafe fn tile(_: Format, panel: &Panel, records: &[u8], _: usize, sums: &mut [[f32; ROWS]; TOKENS]) {
        // SAFETY: the caller's promise.
        unsafe { tile::<OFFSET>(panel, records, sums) };
    }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw")]
fn unpack<const OFFSET: i32>(panel: &mut Panel, format: Format, rows: &[&[u8]]) {
    let more = (OFFSET as u8).wrapping_sub(format.offset()); // 0 where weights have shifts
    panel.unpack::<ROWS, 4, 1>(format, rows, |eight, codes| turns::<ROWS>(&eight.rows, more, codes));
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw")]
fn pack(rows: &[&[f32]], tile: &mut [u8]) {
    Vnni::<0>::LAYOUT.pack(rows, tile);
}

/// Sums of a tile: for each token two vectors of rows.
type Sums<T> = [[T; 2]; TOKENS];

#[target_feature(enable = "avx512f,avx512vnni")]
fn tile<const OFFSET: i32>(panel: &Panel, records: &[u8], out: &mut [[f32; ROWS]; TOKENS]) {
    let mut sums = load(out);
    for (block, record) in records.chunks_exact(Vnni::<OFFSET>::LAYOUT.record_bytes()).enumerate() {
        let codes = &panel.codes[block * ROWS * BLOCK..][..ROWS * BLOCK];
        let mut dots: Sums<__m512i> = [[_mm512_setzero_si512(); 2]; TOKENS];
        for group in 0..8 {
            let weights = two(codes, group);
            for (token, dots) in dots.iter_mut().enumerate() {
                let activations = broadcast(record, group * TOKENS + token);
                for (dots, weights) in dots.iter_mut().zip(weights) {
                    *dots = _mm512_dpbusd_epi32(*dots, weights, activations);
                }
            }
        }
        scale::<OFFSET>(panel, block, &record[TOKENS * BLOCK..], &dots, &mut sums);
    }
    store(&sums, out);
}

/// Codes of a group of columns: 4 bytes of each of 32 rows.
#[inline]
#[target_feature(enable = "avx512f")]
fn two(codes: &[u8], group: usize) -> [__m512i; 2] {
    let codes = &codes[group * ROWS * 4..][..ROWS * 4];
    // SAFETY: the slice has 128 bytes.
    unsafe { [_mm512_loadu_si512(codes.as_ptr().cast()), _mm512_loadu_si512(codes[64..].as_ptr().cast())] }
}

/// 4 bytes of `record` in every lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn broadcast(record: &[u8], at: usize) -> __m512i {
    let bytes = &record[4 * at..][..4];
    _mm512_set1_epi32(i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

/// Adds what a block's whole sums come to. `scales` holds each token's scale, then the sum of each token's codes.
#[inline]
#[target_feature(enable = "avx512f")]
fn scale<const OFFSET: i32>(panel: &Panel, block: usize, scales: &[u8], dots: &Sums<__m512i>, sums: &mut Sums<__m512>) {
    let sixteens = |numbers: &[f32]| {
        let numbers = &numbers[block * ROWS..][..ROWS];
        // SAFETY: the slice has 32 numbers.
        unsafe { [_mm512_loadu_ps(numbers.as_ptr()), _mm512_loadu_ps(numbers[16..].as_ptr())] }
    };
    let (row_scales, shifts) = (sixteens(&panel.scales), sixteens(&panel.shifts));
    for token in 0..TOKENS {
        let token_scale = _mm512_castsi512_ps(broadcast(scales, token));
        let sum_of_codes = broadcast(scales, TOKENS + token);
        let offset = _mm512_mullo_epi32(sum_of_codes, _mm512_set1_epi32(OFFSET));
        let token_sum = _mm512_mul_ps(_mm512_cvtepi32_ps(sum_of_codes), token_scale);
        for half in 0..2 {
            let (mut dots, sum) = (dots[token][half], &mut sums[token][half]);
            if OFFSET == 0 {
                *sum = _mm512_fmadd_ps(shifts[half], token_sum, *sum);
            } else {
                dots = _mm512_sub_epi32(dots, offset);
            }
            let both = _mm512_mul_ps(row_scales[half], token_scale);
            *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), both, *sum);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(sums: &[[f32; ROWS]; TOKENS]) -> Sums<__m512> {
    // SAFETY: 32 numbers each.
    sums.each_ref().map(|sums| unsafe { [_mm512_loadu_ps(sums.as_ptr()), _mm512_loadu_ps(sums[16..].as_ptr())] })
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(sums: &Sums<__m512>, out: &mut [[f32; ROWS]; TOKENS]) {
    for ([low, high], out) in sums.iter().zip(out) {
        // SAFETY: 32 numbers.
        unsafe {
            _mm512_storeu_ps(out.as_mut_ptr(), *low);
            _mm512_storeu_ps(out[16..].as_mut_ptr(), *high);
        }
    }
}
