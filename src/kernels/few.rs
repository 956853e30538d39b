//! Products of few tokens, with AVX2 and FMA. A panel pays off if many tokens meet it; here codes go from the rows of the weights into
//! registers and meet a token at once. Eight rows are summed side by side.
//!
//! Every number is computed as with panels: the whole sum of a block is exact, and what it comes to is added in the same order with
//! the same roundings. So the bits are those of the other kernels.

use std::arch::x86_64::*;

use super::BLOCK;
use super::activations::Layout;
use super::avx2::transposed;
use super::format::{EIGHT, Format, q6k_places, q6k_shifts, scales_and_mins};

/// With more tokens than this, panels are faster.
pub(super) const TOKENS: usize = 12;

/// A tile is one token's whole row.
pub(super) const LAYOUT: Layout = Layout { tokens: 1, code_bytes: 1, turn: 4, stretch: 1 << 30 };

/// Bytes of a record: 32 codes of one token, their scale, and the sum of the codes.
const RECORD: usize = BLOCK + 8;

/// Bytes of a cache line.
const LINE: usize = 64;

/// How many bytes ahead of what is read memory is asked for. Eight rows are read at once, each too short for the processor to foresee it:
/// from memory, q6_k takes half the time with one token.
const AHEAD: usize = 512;

/// The same 32 columns of eight rows.
struct Blocks {
    codes: [__m256i; EIGHT],
    /// The factors of q6_k, each twice: of the first halves of rows 0 to 3, then of their last halves; and of rows 4 to 7.
    factors: [__m256i; 2],
    scales: __m256,
    /// Zeros if the format has none.
    shifts: __m256,
}

/// What codes are, and so how their products are added.
enum Kind {
    FourBits,
    FiveBits,
    /// 8 bits.
    Signed,
    /// 6 bits, and 32 more than the weights.
    WithFactors,
}

/// How a format's bytes are read, `BYTES` of them for `BLOCKS` blocks. The layouts are in `format.rs`.
trait Reading<const BYTES: usize> {
    const BLOCKS: usize = 1;
    const KIND: Kind;
    /// What a product with all codes is too large by, for each unit of the token's codes.
    const OFFSET: i32 = 0;
    const HAS_SHIFTS: bool = false;
    /// What is worked out once for all these blocks.
    type Head;

    /// # Safety
    /// The processor has AVX2, FMA and F16C.
    unsafe fn head(rows: &[&[u8; BYTES]; EIGHT]) -> Self::Head;

    /// Block number `i` of those in the rows' bytes.
    ///
    /// # Safety
    /// As for `head`.
    unsafe fn blocks(head: &Self::Head, rows: &[&[u8; BYTES]; EIGHT], i: usize) -> Blocks;
}

/// [`Layout::pack`], compiled for the instructions.
///
/// # Safety
/// The processor has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn pack(rows: &[&[f32]], tile: &mut [u8]) {
    LAYOUT.pack(rows, tile);
}

/// The products of `weights`, at most eight rows of `format`, with each of `tokens` in `packed`, which has a record for each block of a
/// token's row. Beyond the rows and the tokens, numbers have no meaning.
///
/// # Safety
/// The processor has AVX2, FMA and F16C.
pub(super) unsafe fn products(
    format: Format,
    weights: &[&[u8]],
    packed: &[u8],
    tokens: usize,
) -> [[f32; EIGHT]; TOKENS] {
    let mut products = [[0.0; EIGHT]; TOKENS];
    let sums = &mut products[..tokens];
    // SAFETY: the caller's promise.
    unsafe {
        match format {
            Format::Q4_0 => add::<Q4_0, 18>(weights, packed, sums),
            Format::Q4_1 => add::<Q4_1, 20>(weights, packed, sums),
            Format::Q5_0 => add::<Q5_0, 22>(weights, packed, sums),
            Format::Q5_1 => add::<Q5_1, 24>(weights, packed, sums),
            Format::Q8_0 => add::<Q8_0, 34>(weights, packed, sums),
            Format::Q4K => add::<Q4K, 144>(weights, packed, sums),
            Format::Q5K => add::<Q5K, 176>(weights, packed, sums),
            Format::Q6K => add::<Q6K, 210>(weights, packed, sums),
        }
    }
    products
}

#[target_feature(enable = "avx2,fma,f16c")]
fn add<R: Reading<BYTES>, const BYTES: usize>(weights: &[&[u8]], packed: &[u8], out: &mut [[f32; EIGHT]]) {
    // If fewer than eight are left, the first stands in for them.
    let mut rows: [&[[u8; BYTES]]; EIGHT] = [weights[0].as_chunks().0; EIGHT];
    for (row, weights) in rows.iter_mut().zip(weights) {
        *row = weights.as_chunks().0;
    }
    let records_of_a_token = packed.len() / RECORD / out.len();
    let (records, _) = packed.as_chunks::<RECORD>();
    let mut sums = [_mm256_setzero_ps(); TOKENS];
    let in_a_line = (LINE / BYTES).max(1);
    for all in 0..rows[0].len() {
        if all.is_multiple_of(in_a_line) {
            fetch_ahead(&rows, all);
        }
        let rows = rows.map(|row| &row[all]);
        // SAFETY: this function has the instructions.
        let head = unsafe { R::head(&rows) };
        for part in 0..R::BLOCKS {
            // SAFETY: as above.
            let blocks = unsafe { R::blocks(&head, &rows, part) };
            let block = all * R::BLOCKS + part;
            for (token, sum) in sums[..out.len()].iter_mut().enumerate() {
                *sum = add_blocks::<R, BYTES>(&blocks, &records[token * records_of_a_token + block], *sum);
            }
        }
    }
    for (sum, out) in sums.iter().zip(out) {
        // SAFETY: eight numbers.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), *sum) };
    }
}

/// Has the processor fetch what is [`AHEAD`] of the place `at` in each row: beyond their ends, of the eight rows that follow them.
#[inline]
#[target_feature(enable = "avx2")]
fn fetch_ahead<const BYTES: usize>(rows: &[&[[u8; BYTES]]; EIGHT], at: usize) {
    let (row_bytes, ahead) = (BYTES * rows[0].len(), BYTES * at + AHEAD);
    let ahead = if ahead < row_bytes { ahead } else { ahead + row_bytes * (EIGHT - 1) };
    for row in rows {
        for line in (0..BYTES).step_by(LINE) {
            // A hint, which does nothing where there is no memory.
            _mm_prefetch::<_MM_HINT_T0>(row.as_ptr().cast::<i8>().wrapping_add(ahead + line));
        }
    }
}

/// `sum` and what one block of each row comes to with one token.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add_blocks<R: Reading<BYTES>, const BYTES: usize>(
    blocks: &Blocks,
    record: &[u8; RECORD],
    mut sum: __m256,
) -> __m256 {
    let word = |at: usize| i32::from_ne_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]]);
    let scale = _mm256_castsi256_ps(_mm256_set1_epi32(word(BLOCK)));
    let sum_of_codes = _mm256_set1_epi32(word(BLOCK + 4));
    // SAFETY: a record has 32 codes.
    let codes = unsafe { _mm256_loadu_si256(record.as_ptr().cast()) };
    let mut dots = match R::KIND {
        Kind::FourBits => dots_of_16(&blocks.codes, codes),
        Kind::FiveBits => dots_of_8(&blocks.codes, codes),
        Kind::Signed => dots_of_signed(&blocks.codes, codes),
        Kind::WithFactors => dots_with_factors(blocks, codes),
    };
    if R::OFFSET != 0 {
        dots = _mm256_sub_epi32(dots, _mm256_mullo_epi32(sum_of_codes, _mm256_set1_epi32(R::OFFSET)));
    } else if R::HAS_SHIFTS {
        sum = _mm256_fmadd_ps(blocks.shifts, _mm256_mul_ps(_mm256_cvtepi32_ps(sum_of_codes), scale), sum);
    }
    _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), _mm256_mul_ps(blocks.scales, scale), sum)
}

/// Sums of products of unsigned `weights` and signed `codes`. The sum of 16 products fits into 16 bits: 16 * 15 * 127 = 30480.
#[inline]
#[target_feature(enable = "avx2")]
fn dots_of_16(weights: &[__m256i; EIGHT], codes: __m256i) -> __m256i {
    let pairs = weights.map(|weights| _mm256_maddubs_epi16(weights, codes));
    let [low, high] = fours_of_16(&pairs);
    // Two numbers of each row, of 16 products each.
    let sums =
        _mm256_add_epi16(_mm256_permute2x128_si256::<0x20>(low, high), _mm256_permute2x128_si256::<0x31>(low, high));
    _mm256_madd_epi16(sums, _mm256_set1_epi16(1))
}

/// As [`dots_of_16`], if 8 products fit: 8 * 31 * 127 = 31496.
#[inline]
#[target_feature(enable = "avx2")]
fn dots_of_8(weights: &[__m256i; EIGHT], codes: __m256i) -> __m256i {
    let pairs = weights.map(|weights| _mm256_maddubs_epi16(weights, codes));
    let ones = _mm256_set1_epi16(1);
    let [low, high] = fours_of_16(&pairs).map(|sums| _mm256_madd_epi16(sums, ones));
    _mm256_add_epi32(_mm256_permute2x128_si256::<0x20>(low, high), _mm256_permute2x128_si256::<0x31>(low, high))
}

/// As [`dots_of_16`], of signed weights, if 2 products fit: 2 * 128 * 127 = 32512.
#[inline]
#[target_feature(enable = "avx2")]
fn dots_of_signed(weights: &[__m256i; EIGHT], codes: __m256i) -> __m256i {
    let ones = _mm256_set1_epi16(1);
    let mut quads = [_mm256_setzero_si256(); EIGHT];
    for (quads, weights) in quads.iter_mut().zip(weights) {
        let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(*weights), _mm256_sign_epi8(codes, *weights));
        *quads = _mm256_madd_epi16(pairs, ones);
    }
    let [low, high] = fours_of_32(&quads);
    _mm256_add_epi32(_mm256_permute2x128_si256::<0x20>(low, high), _mm256_permute2x128_si256::<0x31>(low, high))
}

/// As [`dots_of_16`], of weights that are 32 less than their codes, and whose blocks have factors. 8 fit: 8 * 32 * 127 = 32512.
#[inline]
#[target_feature(enable = "avx2")]
fn dots_with_factors(Blocks { codes: weights, factors, .. }: &Blocks, codes: __m256i) -> __m256i {
    let offsets = _mm256_maddubs_epi16(_mm256_set1_epi8(32), codes);
    let pairs = weights.map(|weights| _mm256_sub_epi16(_mm256_maddubs_epi16(weights, codes), offsets));
    let [low, high] = fours_of_16(&pairs);
    let (low, high) = (_mm256_madd_epi16(low, factors[0]), _mm256_madd_epi16(high, factors[1]));
    _mm256_add_epi32(_mm256_permute2x128_si256::<0x20>(low, high), _mm256_permute2x128_si256::<0x31>(low, high))
}

/// Factors of formats that have none.
#[inline]
#[target_feature(enable = "avx2")]
fn none() -> [__m256i; 2] {
    [_mm256_setzero_si256(); 2]
}

/// Neighbours of 16 bits added twice: those of rows 0 to 3, and of rows 4 to 7, in each half.
#[inline]
#[target_feature(enable = "avx2")]
fn fours_of_16(rows: &[__m256i; EIGHT]) -> [__m256i; 2] {
    let pairs: [__m256i; 4] = std::array::from_fn(|i| _mm256_hadd_epi16(rows[2 * i], rows[2 * i + 1]));
    [_mm256_hadd_epi16(pairs[0], pairs[1]), _mm256_hadd_epi16(pairs[2], pairs[3])]
}

/// As [`fours_of_16`], of 32 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn fours_of_32(rows: &[__m256i; EIGHT]) -> [__m256i; 2] {
    let pairs: [__m256i; 4] = std::array::from_fn(|i| _mm256_hadd_epi32(rows[2 * i], rows[2 * i + 1]));
    [_mm256_hadd_epi32(pairs[0], pairs[1]), _mm256_hadd_epi32(pairs[2], pairs[3])]
}

/// The two bytes at `at` of each of eight rows.
#[inline]
#[target_feature(enable = "avx2")]
fn words<const BYTES: usize>(rows: &[&[u8; BYTES]; EIGHT], at: usize) -> __m128i {
    let word = |row: usize| i16::from_le_bytes([rows[row][at], rows[row][at + 1]]);
    _mm_setr_epi16(word(0), word(1), word(2), word(3), word(4), word(5), word(6), word(7))
}

/// Numbers in half precision at `at` of each of eight rows.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn halves<const BYTES: usize>(rows: &[&[u8; BYTES]; EIGHT], at: usize) -> __m256 {
    _mm256_cvtph_ps(words(rows, at))
}

/// Numbers 0 to 15 in the low halves of 16 bytes from `at` on, 16 to 31 in the high ones.
#[inline]
#[target_feature(enable = "avx2")]
fn nibbles<const BYTES: usize>(row: &[u8; BYTES], at: usize) -> __m256i {
    // SAFETY: the slice has 16 bytes.
    let bytes = unsafe { _mm_loadu_si128(row[at..][..16].as_ptr().cast()) };
    let both = _mm256_set_m128i(_mm_srli_epi16::<4>(bytes), bytes);
    _mm256_and_si256(both, _mm256_set1_epi8(15))
}

/// 32 bytes from `at` on.
#[inline]
#[target_feature(enable = "avx2")]
fn bytes<const BYTES: usize>(row: &[u8; BYTES], at: usize) -> __m256i {
    // SAFETY: the slice has 32 bytes.
    unsafe { _mm256_loadu_si256(row[at..][..BLOCK].as_ptr().cast()) }
}

/// As [`nibbles`], with a fifth bit of each from the 32 bits at `high`.
#[inline]
#[target_feature(enable = "avx2")]
fn five_bits<const BYTES: usize>(row: &[u8; BYTES], high: usize, at: usize) -> __m256i {
    let bits = _mm256_set1_epi32(i32::from_le_bytes([row[high], row[high + 1], row[high + 2], row[high + 3]]));
    // Each number gets the byte that holds its bit, and looks at that bit.
    let byte = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
    let own = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
    let bits = _mm256_and_si256(_mm256_shuffle_epi8(bits, byte), own);
    let fifth = _mm256_and_si256(_mm256_cmpeq_epi8(bits, own), _mm256_set1_epi8(16));
    _mm256_or_si256(nibbles(row, at), fifth)
}

/// Scales and shifts of the eight blocks of a K-quant, each by row.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn scales_and_shifts<const BYTES: usize>(rows: &[&[u8; BYTES]; EIGHT]) -> [[__m256; 8]; 2] {
    let (mut scales, mut mins) = ([_mm256_setzero_si256(); EIGHT], [_mm256_setzero_si256(); EIGHT]);
    for ((row, scales), mins) in rows.iter().zip(&mut scales).zip(&mut mins) {
        let [own_scales, own_mins] = scales_and_mins(&row[4..16]);
        *scales = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(own_scales)));
        *mins = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(own_mins)));
    }
    let (scale, min) = (halves(rows, 0), _mm256_sub_ps(_mm256_set1_ps(-0.0), halves(rows, 2)));
    [
        transposed(scales).map(|own| _mm256_mul_ps(scale, _mm256_cvtepi32_ps(own))),
        transposed(mins).map(|own| _mm256_mul_ps(min, _mm256_cvtepi32_ps(own))),
    ]
}

/// Low halves of 32 bytes for even blocks, high halves for odd ones: those of a row whose nibbles begin at `at`.
#[inline]
#[target_feature(enable = "avx2")]
fn k_nibbles<const BYTES: usize>(row: &[u8; BYTES], at: usize, block: usize) -> __m256i {
    let shift = _mm_cvtsi32_si128(if block.is_multiple_of(2) { 0 } else { 4 });
    _mm256_and_si256(_mm256_srl_epi16(bytes(row, at + block / 2 * BLOCK), shift), _mm256_set1_epi8(15))
}

struct Q4_0;

impl Reading<18> for Q4_0 {
    const KIND: Kind = Kind::FourBits;
    const OFFSET: i32 = 8;
    type Head = ();

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn head(_: &[&[u8; 18]; EIGHT]) {}

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn blocks((): &(), rows: &[&[u8; 18]; EIGHT], _: usize) -> Blocks {
        Blocks {
            codes: rows.map(|row| nibbles(row, 2)),
            factors: none(),
            scales: halves(rows, 0),
            shifts: _mm256_setzero_ps(),
        }
    }
}

struct Q4_1;

impl Reading<20> for Q4_1 {
    const KIND: Kind = Kind::FourBits;
    const HAS_SHIFTS: bool = true;
    type Head = ();

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn head(_: &[&[u8; 20]; EIGHT]) {}

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn blocks((): &(), rows: &[&[u8; 20]; EIGHT], _: usize) -> Blocks {
        Blocks {
            codes: rows.map(|row| nibbles(row, 4)),
            factors: none(),
            scales: halves(rows, 0),
            shifts: halves(rows, 2),
        }
    }
}

struct Q5_0;

impl Reading<22> for Q5_0 {
    const KIND: Kind = Kind::FiveBits;
    const OFFSET: i32 = 16;
    type Head = ();

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn head(_: &[&[u8; 22]; EIGHT]) {}

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn blocks((): &(), rows: &[&[u8; 22]; EIGHT], _: usize) -> Blocks {
        Blocks {
            codes: rows.map(|row| five_bits(row, 2, 6)),
            factors: none(),
            scales: halves(rows, 0),
            shifts: _mm256_setzero_ps(),
        }
    }
}

struct Q5_1;

impl Reading<24> for Q5_1 {
    const KIND: Kind = Kind::FiveBits;
    const HAS_SHIFTS: bool = true;
    type Head = ();

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn head(_: &[&[u8; 24]; EIGHT]) {}

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn blocks((): &(), rows: &[&[u8; 24]; EIGHT], _: usize) -> Blocks {
        Blocks {
            codes: rows.map(|row| five_bits(row, 4, 8)),
            factors: none(),
            scales: halves(rows, 0),
            shifts: halves(rows, 2),
        }
    }
}

struct Q8_0;

impl Reading<34> for Q8_0 {
    const KIND: Kind = Kind::Signed;
    type Head = ();

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn head(_: &[&[u8; 34]; EIGHT]) {}

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn blocks((): &(), rows: &[&[u8; 34]; EIGHT], _: usize) -> Blocks {
        Blocks {
            codes: rows.map(|row| bytes(row, 2)),
            factors: none(),
            scales: halves(rows, 0),
            shifts: _mm256_setzero_ps(),
        }
    }
}

struct Q4K;

impl Reading<144> for Q4K {
    const KIND: Kind = Kind::FourBits;
    const BLOCKS: usize = 8;
    const HAS_SHIFTS: bool = true;
    /// Scales and shifts of each block, by row.
    type Head = [[__m256; 8]; 2];

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn head(rows: &[&[u8; 144]; EIGHT]) -> Self::Head {
        scales_and_shifts(rows)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn blocks([scales, shifts]: &Self::Head, rows: &[&[u8; 144]; EIGHT], i: usize) -> Blocks {
        let mut codes = [_mm256_setzero_si256(); EIGHT];
        for (codes, row) in codes.iter_mut().zip(rows) {
            *codes = k_nibbles(row, 16, i);
        }
        Blocks { codes, factors: none(), scales: scales[i], shifts: shifts[i] }
    }
}

struct Q5K;

impl Reading<176> for Q5K {
    const KIND: Kind = Kind::FiveBits;
    const BLOCKS: usize = 8;
    const HAS_SHIFTS: bool = true;
    /// Scales and shifts of each block, by row.
    type Head = [[__m256; 8]; 2];

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn head(rows: &[&[u8; 176]; EIGHT]) -> Self::Head {
        scales_and_shifts(rows)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn blocks([scales, shifts]: &Self::Head, rows: &[&[u8; 176]; EIGHT], i: usize) -> Blocks {
        let bit = _mm256_set1_epi8((1_u8 << i).cast_signed());
        let mut codes = [_mm256_setzero_si256(); EIGHT];
        for (codes, row) in codes.iter_mut().zip(rows) {
            let is_set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes(row, 16), bit), bit);
            let fifth = _mm256_and_si256(is_set, _mm256_set1_epi8(16));
            *codes = _mm256_or_si256(k_nibbles(row, 48, i), fifth);
        }
        Blocks { codes, factors: none(), scales: scales[i], shifts: shifts[i] }
    }
}

struct Q6K;

impl Reading<210> for Q6K {
    const KIND: Kind = Kind::WithFactors;
    const BLOCKS: usize = 8;
    /// The scale of all blocks, by row.
    type Head = __m256;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn head(rows: &[&[u8; 210]; EIGHT]) -> __m256 {
        halves(rows, 208)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn blocks(scales: &__m256, rows: &[&[u8; 210]; EIGHT], i: usize) -> Blocks {
        let [low, high, factors_at] = q6k_places(i);
        let shifts = q6k_shifts(i).map(|bits| _mm_cvtsi32_si128(bits as i32));
        let mut codes = [_mm256_setzero_si256(); EIGHT];
        for (codes, row) in codes.iter_mut().zip(rows) {
            let low = _mm256_and_si256(_mm256_srl_epi16(bytes(row, low), shifts[0]), _mm256_set1_epi8(15));
            let high = _mm256_and_si256(_mm256_srl_epi16(bytes(row, high), shifts[1]), _mm256_set1_epi8(3));
            *codes = _mm256_or_si256(low, _mm256_slli_epi16::<4>(high));
        }
        let both = words(rows, factors_at);
        let low = _mm_setr_epi8(0, 0, 2, 2, 4, 4, 6, 6, 1, 1, 3, 3, 5, 5, 7, 7);
        let high = _mm_setr_epi8(8, 8, 10, 10, 12, 12, 14, 14, 9, 9, 11, 11, 13, 13, 15, 15);
        let factors = [low, high].map(|order| _mm256_cvtepi8_epi16(_mm_shuffle_epi8(both, order)));
        Blocks { codes, factors, scales: *scales, shifts: _mm256_setzero_ps() }
    }
}
