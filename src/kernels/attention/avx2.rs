//! AVX2 with FMA: twelve of the sixteen registers hold sums.

use std::arch::x86_64::*;

use super::micro::{LANES, Micro, Portable};

pub(in crate::kernels) struct Avx2;

impl Micro for Avx2 {
    #[inline(always)]
    unsafe fn multiply<const ROWS: usize, const VECTORS: usize, const STEP: usize, const ROW: usize>(
        left: *const f32,
        right: *const f32,
        depth: usize,
        out: *mut f32,
        stride: usize,
        factors: Option<&[f32]>,
    ) {
        // SAFETY: the caller's promise.
        unsafe { multiply::<ROWS, VECTORS, STEP, ROW>(left, right, depth, out, stride, factors) }
    }

    #[inline(always)]
    fn fetch(row: &[f32]) {
        for line in row.chunks(LINE) {
            // SAFETY: every x86-64 has the instruction, and it does nothing else.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
        }
    }

    #[inline(always)]
    unsafe fn transpose(rows: [*const f32; LANES], len: usize, to: *mut f32, stride: usize) {
        let whole = len / LANES * LANES;
        for i in (0..whole).step_by(LANES) {
            // SAFETY: the caller's promise: all these numbers lie before number `len`.
            unsafe { transpose_eight(rows, i, to.add(i * stride), stride) };
        }
        if whole < len {
            let rest = rows.map(|row| row.wrapping_add(whole));
            // SAFETY: as above.
            unsafe { Portable::transpose(rest, len - whole, to.add(whole * stride), stride) };
        }
    }
}

/// Numbers of a line of the cache.
const LINE: usize = 16;

/// # Safety
/// As for [`Micro::multiply`].
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn multiply<const ROWS: usize, const VECTORS: usize, const STEP: usize, const ROW: usize>(
    mut left: *const f32,
    mut right: *const f32,
    depth: usize,
    out: *mut f32,
    stride: usize,
    factors: Option<&[f32]>,
) {
    let mut all = [[_mm256_setzero_ps(); VECTORS]; ROWS];
    for _ in 0..depth {
        let mut vectors = [_mm256_setzero_ps(); VECTORS];
        for (i, vector) in vectors.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *vector = unsafe { _mm256_loadu_ps(right.add(i * LANES)) };
        }
        for (row, sums) in all.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            let number = unsafe { _mm256_broadcast_ss(&*left.add(row * ROW)) };
            for (sum, vector) in sums.iter_mut().zip(vectors) {
                *sum = _mm256_fmadd_ps(number, vector, *sum);
            }
        }
        (left, right) = (left.wrapping_add(STEP), right.wrapping_add(VECTORS * LANES));
    }
    for (row, sums) in all.into_iter().enumerate() {
        for (i, sum) in sums.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let out = out.add(row * stride + i * LANES);
                let sum = match factors {
                    Some(factors) => {
                        let factor = _mm256_broadcast_ss(factors.get_unchecked(row));
                        _mm256_fmadd_ps(_mm256_loadu_ps(out), factor, sum)
                    }
                    None => sum,
                };
                _mm256_storeu_ps(out, sum);
            }
        }
    }
}

/// Eight numbers of each row, from number `first` on.
///
/// # Safety
/// The rows have so many, and `to` has room for eight rows of eight, `stride` apart. The processor has AVX2.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn transpose_eight(rows: [*const f32; LANES], first: usize, to: *mut f32, stride: usize) {
    let mut r = [_mm256_setzero_ps(); LANES];
    for (vector, row) in r.iter_mut().zip(rows) {
        // SAFETY: the caller's promise.
        *vector = unsafe { _mm256_loadu_ps(row.add(first)) };
    }
    // Pairs, then fours, then the halves of vectors change places.
    let mut pairs = r;
    for i in (0..LANES).step_by(2) {
        pairs[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    let mut fours = r;
    for i in [0, 4] {
        fours[i] = _mm256_shuffle_ps::<0b01_00_01_00>(pairs[i], pairs[i + 2]);
        fours[i + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(pairs[i + 1], pairs[i + 3]);
    }
    let mut columns = r;
    for i in 0..LANES / 2 {
        columns[i] = _mm256_permute2f128_ps::<0x20>(fours[i], fours[i + 4]);
        columns[i + 4] = _mm256_permute2f128_ps::<0x31>(fours[i], fours[i + 4]);
    }
    // In order: with a small stride the next column overwrites the end of the one before.
    for (i, column) in columns.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_ps(to.add(i * stride), column) };
    }
}
