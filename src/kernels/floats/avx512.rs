//! AVX-512: twelve tokens by one vector of rows, which keep the processor busy.

use std::arch::x86_64::*;

use super::super::attention::avx2::Avx2 as Moves;
use super::super::attention::micro::{LANES, Micro as Rows};
use super::avx2::Avx2;
use super::micro::{Micro, PANEL};

pub(super) struct Avx512;

impl Micro for Avx512 {
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
        Avx2::widen(halves, numbers);
    }

    #[inline(always)]
    fn fetch(bytes: &[u8]) {
        Avx2::fetch(bytes);
    }
}

/// # Safety
/// As for [`Micro::meet`].
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn meet<const N: usize, const PITCH: usize>(
    tokens: *const f32,
    panel: *const f32,
    depth: usize,
    sums: *mut f32,
    stride: usize,
) {
    let mut all = [_mm512_setzero_ps(); N];
    for k in 0..depth {
        // SAFETY: the caller's promise.
        let right = unsafe { _mm512_loadu_ps(panel.add(k * PANEL)) };
        for (i, sum) in all.iter_mut().enumerate() {
            // SAFETY: as above.
            let number = unsafe { *tokens.add(i * PITCH + k) };
            *sum = _mm512_fmadd_ps(_mm512_set1_ps(number), right, *sum);
        }
    }
    for (i, new) in all.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let sum = sums.add(i * stride);
            _mm512_storeu_ps(sum, _mm512_add_ps(_mm512_loadu_ps(sum), new));
        }
    }
}
