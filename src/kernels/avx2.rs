//! AVX2 with FMA: 16 rows, two vectors of eight, by a few tokens.

use std::arch::x86_64::*;

use super::BLOCK;
use super::format::{EIGHT, Format};
use super::micro::Micro;
use super::panel::{Codes, Panel};

/// Codes of 4 bits, in unsigned bytes. The products of a block fit into 16 bits: two in each, eight times, are at most
/// 8 * 2 * 15 * 127 = 30480. `OFFSET` is the format's; 0 means that weights have shifts.
pub(super) struct Bytes<const OFFSET: i32>;

/// Larger codes less their offset, widened to words. Products of 5-bit codes would fit into 16 bits for half a block, which is
/// slower.
pub(super) struct Words;

/// Rows of a panel.
pub(super) const ROWS: usize = 16;

/// Tokens of a tile. Sums of both kinds, 16 vectors, are more than there are registers; which are spilled is the
/// compiler's choice, and more tokens measure slower.
pub(super) const TOKENS: usize = 4;

impl<const OFFSET: i32> Micro<ROWS, TOKENS> for Bytes<OFFSET> {
    const CODE_BYTES: usize = 1;

    unsafe fn unpack(panel: &mut Panel, format: Format, rows: &[&[u8]]) {
        // SAFETY: the caller's promise.
        unsafe { unpack_bytes(panel, format, rows) };
    }

    unsafe fn pack(rows: &[&[f32]], tile: &mut [u8]) {
        // SAFETY: the caller's promise.
        unsafe { pack::<Self>(rows, tile) };
    }

    unsafe fn tile(_: Format, panel: &Panel, records: &[u8], tokens: usize, sums: &mut [[f32; ROWS]; TOKENS]) {
        // SAFETY: the caller's promise.
        unsafe {
            match tokens {
                1 => tile_of_bytes::<OFFSET, 1>(panel, records, sums),
                2 => tile_of_bytes::<OFFSET, 2>(panel, records, sums),
                _ => tile_of_bytes::<OFFSET, TOKENS>(panel, records, sums),
            }
        };
    }
}

impl Micro<ROWS, TOKENS> for Words {
    const CODE_BYTES: usize = 2;

    unsafe fn unpack(panel: &mut Panel, format: Format, rows: &[&[u8]]) {
        // SAFETY: the caller's promise.
        unsafe { unpack_words(panel, format, rows) };
    }

    unsafe fn pack(rows: &[&[f32]], tile: &mut [u8]) {
        // SAFETY: the caller's promise.
        unsafe { pack::<Self>(rows, tile) };
    }

    unsafe fn tile(format: Format, panel: &Panel, records: &[u8], tokens: usize, sums: &mut [[f32; ROWS]; TOKENS]) {
        // SAFETY: the caller's promise.
        unsafe {
            match (format.has_shifts(), tokens) {
                (false, 1) => tile_of_words::<false, 1>(panel, records, sums),
                (false, 2) => tile_of_words::<false, 2>(panel, records, sums),
                (false, _) => tile_of_words::<false, TOKENS>(panel, records, sums),
                (true, 1) => tile_of_words::<true, 1>(panel, records, sums),
                (true, 2) => tile_of_words::<true, 2>(panel, records, sums),
                (true, _) => tile_of_words::<true, TOKENS>(panel, records, sums),
            }
        };
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn unpack_bytes(panel: &mut Panel, format: Format, rows: &[&[u8]]) {
    panel.unpack::<ROWS, 4, 1>(format, rows, |eight, codes| turns::<ROWS>(&eight.rows, 0, codes));
}

#[target_feature(enable = "avx2,fma,f16c")]
fn unpack_words(panel: &mut Panel, format: Format, rows: &[&[u8]]) {
    match format {
        Format::Q6K => panel.unpack::<ROWS, 4, 2>(Format::Q6K, rows, |eight, codes| {
            turns_of_words::<true>(eight, Format::Q6K.offset(), codes);
        }),
        _ => panel.unpack::<ROWS, 4, 2>(format, rows, |eight, codes| {
            turns_of_words::<false>(eight, format.offset(), codes);
        }),
    }
}

/// [`panel::turns`](super::panel::turns) of 4 bytes.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn turns<const ROWS: usize>(eight: &[[u8; BLOCK]; EIGHT], more: u8, codes: &mut [u8]) {
    let more = _mm256_set1_epi8(more.cast_signed());
    // SAFETY: rows have 32 bytes.
    let rows = eight.each_ref().map(|row| unsafe { _mm256_loadu_si256(row.as_ptr().cast()) });
    put::<ROWS>(transposed(rows.map(|row| _mm256_add_epi8(row, more))), codes);
}

/// [`panel::turns_of_words`](super::panel::turns_of_words). Without `FACTORS` these are all 1.
#[inline]
#[target_feature(enable = "avx2")]
fn turns_of_words<const FACTORS: bool>(eight: &Codes, offset: u8, codes: &mut [u8]) {
    let offset = _mm_set1_epi8(offset.cast_signed());
    for (half, codes) in codes.chunks_mut(8 * ROWS * 4).enumerate() {
        let mut rows = [_mm256_setzero_si256(); EIGHT];
        for ((words, row), factors) in rows.iter_mut().zip(&eight.rows).zip(&eight.factors) {
            // SAFETY: rows have 32 bytes, in two halves.
            let row = unsafe { _mm_loadu_si128(row[16 * half..][..16].as_ptr().cast()) };
            *words = _mm256_cvtepi8_epi16(_mm_sub_epi8(row, offset));
            if FACTORS {
                *words = _mm256_mullo_epi16(*words, _mm256_set1_epi16(i16::from(factors[half])));
            }
        }
        put::<ROWS>(transposed(rows), codes);
    }
}

/// Turns of 4 bytes of eight rows, among those of `ROWS` rows.
#[inline]
#[target_feature(enable = "avx2")]
fn put<const ROWS: usize>(turns: [__m256i; 8], codes: &mut [u8]) {
    for (i, turn) in turns.into_iter().enumerate() {
        let place = &mut codes[i * ROWS * 4..][..4 * EIGHT];
        // SAFETY: the slice has 32 bytes.
        unsafe { _mm256_storeu_si256(place.as_mut_ptr().cast(), turn) };
    }
}

/// Eight rows of eight numbers of 32 bits, as columns.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn transposed(rows: [__m256i; 8]) -> [__m256i; 8] {
    let pairs = |i: usize| {
        let (a, b) = (rows[i], rows[i + 1]);
        (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b))
    };
    // Columns 0 and 4 of four rows, then 1 and 5, 2 and 6, 3 and 7.
    let fours = |i: usize| {
        let ((low, high), (next_low, next_high)) = (pairs(i), pairs(i + 2));
        [
            _mm256_unpacklo_epi64(low, next_low),
            _mm256_unpackhi_epi64(low, next_low),
            _mm256_unpacklo_epi64(high, next_high),
            _mm256_unpackhi_epi64(high, next_high),
        ]
    };
    let (a, b) = (fours(0), fours(4));
    std::array::from_fn(|i| match i {
        0..4 => _mm256_permute2x128_si256::<0x20>(a[i], b[i]),
        _ => _mm256_permute2x128_si256::<0x31>(a[i - 4], b[i - 4]),
    })
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn pack<M: Micro<ROWS, TOKENS>>(rows: &[&[f32]], tile: &mut [u8]) {
    M::LAYOUT.pack(rows, tile);
}

/// Sums of a tile's first `N` tokens: for each of them two vectors of rows.
pub(super) type Sums<T, const N: usize> = [[T; 2]; N];

#[target_feature(enable = "avx2,fma,f16c")]
fn tile_of_bytes<const OFFSET: i32, const N: usize>(panel: &Panel, records: &[u8], out: &mut [[f32; ROWS]; TOKENS]) {
    let record_bytes = <Bytes<OFFSET> as Micro<ROWS, TOKENS>>::LAYOUT.record_bytes();
    let ones = _mm256_set1_epi16(1);
    let mut sums = load(out);
    for (block, record) in records.chunks_exact(record_bytes).enumerate() {
        let codes = &panel.codes[block * ROWS * BLOCK..][..ROWS * BLOCK];
        let mut short: Sums<__m256i, N> = [[_mm256_setzero_si256(); 2]; N];
        for group in 0..8 {
            let weights = two(codes, group);
            for (token, short) in short.iter_mut().enumerate() {
                let activations = broadcast(record, group * TOKENS + token);
                for (short, weights) in short.iter_mut().zip(weights) {
                    *short = _mm256_add_epi16(*short, _mm256_maddubs_epi16(weights, activations));
                }
            }
        }
        let mut dots: Sums<__m256i, N> = [[_mm256_setzero_si256(); 2]; N];
        for (dots, short) in dots.iter_mut().flatten().zip(short.iter().flatten()) {
            *dots = _mm256_madd_epi16(*short, ones);
        }
        scale::<true, OFFSET, N>(panel, block, &record[TOKENS * BLOCK..], &dots, &mut sums);
    }
    store(&sums, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn tile_of_words<const SHIFTS: bool, const N: usize>(panel: &Panel, records: &[u8], out: &mut [[f32; ROWS]; TOKENS]) {
    let record_bytes = Words::LAYOUT.record_bytes();
    let mut sums = load(out);
    for (block, record) in records.chunks_exact(record_bytes).enumerate() {
        let codes = &panel.codes[block * ROWS * BLOCK * 2..][..ROWS * BLOCK * 2];
        let mut dots: Sums<__m256i, N> = [[_mm256_setzero_si256(); 2]; N];
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
        scale::<SHIFTS, 0, N>(panel, block, &record[TOKENS * BLOCK * 2..], &dots, &mut sums);
    }
    store(&sums, out);
}

/// Codes of a group of columns: 4 bytes of each of 16 rows.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn two(codes: &[u8], group: usize) -> [__m256i; 2] {
    let codes = &codes[group * ROWS * 4..][..ROWS * 4];
    // SAFETY: the slice has 64 bytes.
    unsafe { [_mm256_loadu_si256(codes.as_ptr().cast()), _mm256_loadu_si256(codes[32..].as_ptr().cast())] }
}

/// 4 bytes of `record` in every lane.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn broadcast(record: &[u8], at: usize) -> __m256i {
    let bytes = &record[4 * at..][..4];
    _mm256_set1_epi32(i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

/// Adds what a block's whole sums come to. `scales` holds each token's scale, then the sum of each token's codes. Weights
/// are `BIASED` where codes have an offset or, with 0 for one, a shift.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn scale<const BIASED: bool, const OFFSET: i32, const N: usize>(
    panel: &Panel,
    block: usize,
    scales: &[u8],
    dots: &Sums<__m256i, N>,
    sums: &mut Sums<__m256, N>,
) {
    let eights = |numbers: &[f32]| {
        let numbers = &numbers[block * ROWS..][..ROWS];
        // SAFETY: the slice has 16 numbers.
        unsafe { [_mm256_loadu_ps(numbers.as_ptr()), _mm256_loadu_ps(numbers[8..].as_ptr())] }
    };
    let (row_scales, shifts) = (eights(&panel.scales), eights(&panel.shifts));
    for token in 0..N {
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
pub(super) fn load<const N: usize>(sums: &[[f32; ROWS]; TOKENS]) -> Sums<__m256, N> {
    // SAFETY: 16 numbers each.
    std::array::from_fn(|i| unsafe { [_mm256_loadu_ps(sums[i].as_ptr()), _mm256_loadu_ps(sums[i][8..].as_ptr())] })
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store<const N: usize>(sums: &Sums<__m256, N>, out: &mut [[f32; ROWS]; TOKENS]) {
    for ([low, high], out) in sums.iter().zip(out) {
        // SAFETY: 16 numbers.
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), *low);
            _mm256_storeu_ps(out[8..].as_mut_ptr(), *high);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Kernel;
    use super::super::panel;
    use super::*;

    /// Codes that differ from one another, of the second eight of `ROWS` rows.
    fn turns_are_the_plain_ones<const ROWS: usize>(more: u8) {
        let eight = std::array::from_fn(|row| std::array::from_fn(|i| (row * BLOCK + i) as u8));
        let (mut plain, mut own) = (vec![0; ROWS * BLOCK], vec![0; ROWS * BLOCK]);
        panel::turns::<ROWS, 4>(&eight, more, &mut plain[4 * EIGHT..]);
        // SAFETY: the test looks for the instructions first.
        unsafe { turns::<ROWS>(&eight, more, &mut own[4 * EIGHT..]) };
        assert_eq!(plain, own);
    }

    /// The kernel with AVX-512, which few machines can run, has its rows from these.
    #[test]
    fn turns_of_any_kernel() {
        if Kernel::Avx2.is_available() {
            turns_are_the_plain_ones::<ROWS>(0);
            turns_are_the_plain_ones::<32>(120);
        }
    }
}
