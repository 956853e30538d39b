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

/// Codes of q6_k, whose halves of a block have a factor each: every half is summed by itself. The factors are multiplied in floating
/// point, which is exact: a half comes to at most 16 * 32 * 127, times 128, and two of these are below 2^24.
pub(super) struct VnniOfHalves;

impl Micro<ROWS, TOKENS> for VnniOfHalves {
    const CODE_BYTES: usize = 1;

    unsafe fn unpack(panel: &mut Panel, format: Format, rows: &[&[u8]]) {
        // SAFETY: the caller's promise.
        unsafe { unpack_as_stored(panel, format, rows) };
    }

    unsafe fn pack(rows: &[&[f32]], tile: &mut [u8]) {
        // SAFETY: the caller's promise.
        unsafe { pack(rows, tile) };
    }

    unsafe fn tile(format: Format, panel: &Panel, records: &[u8], _: usize, sums: &mut [[f32; ROWS]; TOKENS]) {
        // SAFETY: the caller's promise.
        unsafe { tile_of_halves(i16::from(format.offset()), panel, records, sums) };
    }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw")]
fn unpack_as_stored(panel: &mut Panel, format: Format, rows: &[&[u8]]) {
    panel.unpack::<ROWS, 4, 1>(format, rows, |eight, codes| turns::<ROWS>(&eight.rows, 0, codes));
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
        let scales = &record[TOKENS * BLOCK..];
        let mut dots: Sums<__m512i> = [[_mm512_setzero_si512(); 2]; TOKENS];
        if OFFSET != 0 {
            // What the offset makes them too large by is taken from them before they begin.
            for (token, dots) in dots.iter_mut().enumerate() {
                let offset = _mm512_mullo_epi32(broadcast(scales, TOKENS + token), _mm512_set1_epi32(OFFSET));
                *dots = [_mm512_sub_epi32(_mm512_setzero_si512(), offset); 2];
            }
        }
        for group in 0..8 {
            let weights = two(codes, group);
            for (token, dots) in dots.iter_mut().enumerate() {
                let activations = broadcast(record, group * TOKENS + token);
                for (dots, weights) in dots.iter_mut().zip(weights) {
                    *dots = _mm512_dpbusd_epi32(*dots, weights, activations);
                }
            }
        }
        scale::<OFFSET>(panel, block, scales, &dots, &mut sums);
    }
    store(&sums, out);
}

/// Tokens whose sums of halves are in registers together: those of six would not fit beside what they are added to.
const THREE: usize = TOKENS / 2;

#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vnni")]
fn tile_of_halves(offset: i16, panel: &Panel, records: &[u8], out: &mut [[f32; ROWS]; TOKENS]) {
    let mut sums = load(out);
    for (block, record) in records.chunks_exact(VnniOfHalves::LAYOUT.record_bytes()).enumerate() {
        let codes = &panel.codes[block * ROWS * BLOCK..][..ROWS * BLOCK];
        let offsets = offsets_of_halves(offset, record);
        let (row_scales, factors) = (sixteens(&panel.scales, block), factors(&panel.factors[block * ROWS..][..ROWS]));
        let block = BlockOfHalves { codes, row_scales, factors, offsets, record };
        three::<0>(&block, &mut sums);
        three::<THREE>(&block, &mut sums);
    }
    store(&sums, out);
}

/// What a block's products are computed from.
struct BlockOfHalves<'a> {
    codes: &'a [u8],
    row_scales: [__m512; 2],
    factors: [[__m512; 2]; 2],
    offsets: [[i32; 8]; 2],
    record: &'a [u8],
}

/// Adds what a block comes to for three tokens from `FIRST` on.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn three<const FIRST: usize>(block: &BlockOfHalves<'_>, sums: &mut Sums<__m512>) {
    let record = &block.record[..VnniOfHalves::LAYOUT.record_bytes()];
    let mut totals = [[_mm512_setzero_ps(); 2]; THREE];
    for half in 0..2 {
        let mut dots = [[_mm512_setzero_si512(); 2]; THREE];
        for (dots, offset) in dots.iter_mut().zip(&block.offsets[half][FIRST..]) {
            *dots = [_mm512_set1_epi32(*offset); 2];
        }
        for group in 4 * half..4 * half + 4 {
            let weights = two(block.codes, group);
            for (token, dots) in dots.iter_mut().enumerate() {
                let activations = broadcast(record, group * TOKENS + FIRST + token);
                for (dots, weights) in dots.iter_mut().zip(weights) {
                    *dots = _mm512_dpbusd_epi32(*dots, weights, activations);
                }
            }
        }
        for (totals, dots) in totals.iter_mut().zip(dots) {
            for vector in 0..2 {
                let dots = _mm512_cvtepi32_ps(dots[vector]);
                totals[vector] = _mm512_fmadd_ps(dots, block.factors[half][vector], totals[vector]);
            }
        }
    }
    for (token, totals) in (FIRST..).zip(totals) {
        let token_scale = _mm512_castsi512_ps(broadcast(&record[TOKENS * BLOCK..], token));
        for vector in 0..2 {
            let both = _mm512_mul_ps(block.row_scales[vector], token_scale);
            sums[token][vector] = _mm512_fmadd_ps(totals[vector], both, sums[token][vector]);
        }
    }
}

/// For each half of the columns of `record`, what a token's sum begins with where weights' codes are larger by `offset`; what follows the
/// tokens has no meaning.
#[inline]
#[target_feature(enable = "avx2")]
fn offsets_of_halves(offset: i16, record: &[u8]) -> [[i32; 8]; 2] {
    let mut halves = [[0; 8]; 2];
    for (half, numbers) in halves.iter_mut().enumerate() {
        let mut sums = _mm256_setzero_si256();
        for group in 4 * half..4 * half + 4 {
            let codes = &record[group * TOKENS * 4..][..32];
            // SAFETY: 32 bytes: the turns of six tokens, and the next two or scales.
            let codes = unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) };
            let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
            sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(-offset)));
        }
        // SAFETY: 8 numbers.
        unsafe { _mm256_storeu_si256(numbers.as_mut_ptr().cast(), sums) };
    }
    halves
}

/// The factors of 32 rows: those of the first halves, then those of the last ones.
#[inline]
#[target_feature(enable = "avx2,avx512f")]
fn factors(rows: &[[i8; 2]]) -> [[__m512; 2]; 2] {
    let mut factors = [[_mm512_setzero_ps(); 2]; 2];
    for (vector, rows) in rows.as_chunks::<16>().0.iter().enumerate().take(2) {
        // SAFETY: 16 times two bytes.
        let both = _mm512_cvtepi16_epi32(unsafe { _mm256_loadu_si256(rows.as_ptr().cast()) });
        // The first is the low byte.
        factors[0][vector] = _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(both)));
        factors[1][vector] = _mm512_cvtepi32_ps(_mm512_srai_epi32::<8>(both));
    }
    factors
}

/// The numbers of 32 rows for a block.
#[inline]
#[target_feature(enable = "avx512f")]
fn sixteens(numbers: &[f32], block: usize) -> [__m512; 2] {
    let numbers = &numbers[block * ROWS..][..ROWS];
    // SAFETY: the slice has 32 numbers.
    unsafe { [_mm512_loadu_ps(numbers.as_ptr()), _mm512_loadu_ps(numbers[16..].as_ptr())] }
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
    let (row_scales, shifts) = (sixteens(&panel.scales, block), sixteens(&panel.shifts, block));
    for token in 0..TOKENS {
        let token_scale = _mm512_castsi512_ps(broadcast(scales, token));
        let token_sum = _mm512_mul_ps(_mm512_cvtepi32_ps(broadcast(scales, TOKENS + token)), token_scale);
        for half in 0..2 {
            let sum = &mut sums[token][half];
            if OFFSET == 0 {
                *sum = _mm512_fmadd_ps(shifts[half], token_sum, *sum);
            }
            let both = _mm512_mul_ps(row_scales[half], token_scale);
            *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[token][half]), both, *sum);
        }
    }
}

// Loops in place of closures: those do not have the instructions of the function around them.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(numbers: &[[f32; ROWS]; TOKENS]) -> Sums<__m512> {
    let mut sums = [[_mm512_setzero_ps(); 2]; TOKENS];
    for (sums, numbers) in sums.iter_mut().zip(numbers) {
        for (sum, numbers) in sums.iter_mut().zip(numbers.as_chunks::<16>().0) {
            // SAFETY: 16 numbers.
            *sum = unsafe { _mm512_loadu_ps(numbers.as_ptr()) };
        }
    }
    sums
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(sums: &Sums<__m512>, numbers: &mut [[f32; ROWS]; TOKENS]) {
    for (sums, numbers) in sums.iter().zip(numbers) {
        for (sum, numbers) in sums.iter().zip(numbers.as_chunks_mut::<16>().0) {
            // SAFETY: 16 numbers.
            unsafe { _mm512_storeu_ps(numbers.as_mut_ptr(), *sum) };
        }
    }
}
