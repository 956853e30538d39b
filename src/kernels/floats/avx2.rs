//! AVX2 with FMA: six tokens by two vectors of rows, in twelve of the sixteen registers.

use std::arch::x86_64::*;

use super::super::attention::avx2::Avx2 as Moves;
use super::super::attention::micro::{LANES, Micro as Rows};
use super::micro::{Micro, PANEL, Portable};

pub(super) struct Avx2;

impl Micro for Avx2 {
    #[inline(always)]
    unsafe fn meet<const N: usize, const PITCH: usize>(
        tokens: *const f32,
        panel: *const f32,
        depth: usize,
        sums: *mut f32,
        stride: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe { meet::<N, PITCH>(tokens, panel, depth, sums, stride) }
    }

    #[inline(always)]
    unsafe fn transpose(rows: [*const f32; LANES], len: usize, to: *mut f32, stride: usize) {
        // SAFETY: the caller's promise.
        unsafe { Moves::transpose(rows, len, to, stride) }
    }

    #[inline(always)]
    fn widen(halves: &[[u8; 2]], numbers: &mut [f32]) {
        // SAFETY: this type is used where the processor has the instructions.
        unsafe { widen(halves, numbers) }
    }

    #[inline(always)]
    fn fetch(bytes: &[u8]) {
        for line in bytes.chunks(LINE) {
            // SAFETY: every x86-64 has the instruction, and it does nothing else.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
        }
    }
}

#[target_feature(enable = "avx,f16c")]
#[inline]
fn widen(halves: &[[u8; 2]], numbers: &mut [f32]) {
    let ((eights, rest), (into, into_rest)) = (halves.as_chunks::<LANES>(), numbers.as_chunks_mut::<LANES>());
    for (halves, numbers) in eights.iter().zip(into) {
        // SAFETY: eight numbers of two bytes, and eight of four.
        unsafe {
            let wide = _mm256_cvtph_ps(_mm_loadu_si128(halves.as_ptr().cast()));
            _mm256_storeu_ps(numbers.as_mut_ptr(), wide);
        }
    }
    Portable::widen(rest, into_rest);
}

/// Bytes of a line of the cache.
const LINE: usize = 64;

/// # Safety
/// As for [`Micro::meet`].
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn meet<const N: usize, const PITCH: usize>(
    tokens: *const f32,
    panel: *const f32,
    depth: usize,
    sums: *mut f32,
    stride: usize,
) {
    let mut all = [[_mm256_setzero_ps(); 2]; N];
    for k in 0..depth {
        // SAFETY: the caller's promise.
        let right = unsafe { [_mm256_loadu_ps(panel.add(k * PANEL)), _mm256_loadu_ps(panel.add(k * PANEL + LANES))] };
        for (i, sums) in all.iter_mut().enumerate() {
            // SAFETY: as above.
            let number = unsafe { _mm256_broadcast_ss(&*tokens.add(i * PITCH + k)) };
            for (sum, right) in sums.iter_mut().zip(right) {
                *sum = _mm256_fmadd_ps(number, right, *sum);
            }
        }
    }
    // Two loops, whose numbers of turns are known: of one over all, the compiler keeps the sums in memory.
    for (i, news) in all.into_iter().enumerate() {
        for (half, new) in news.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let sum = sums.add(i * stride + half * LANES);
                _mm256_storeu_ps(sum, _mm256_add_ps(_mm256_loadu_ps(sum), new));
            }
        }
    }
}
