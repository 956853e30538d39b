//! AVX-VNNI: VNNI with the vectors of AVX2, for processors without AVX-512. Rows and tokens are those of `avx2.rs`; one instruction
//! multiplies and adds four columns of eight rows, for codes of any size.

use std::arch::x86_64::*;

use super::BLOCK;
use super::avx2::{ROWS, Sums, TOKENS, broadcast, load, pack, scale, store, turns, two};
use super::format::Format;
use super::micro::Micro;
use super::panel::Panel;

/// Unsigned codes times signed activations, summed in 32 bits. Codes have this `OFFSET`, as those of `avx512.rs`; 0 means that weights have
/// shifts.
pub(super) struct Vnni<const OFFSET: i32>;

impl<const OFFSET: i32> Micro<ROWS, TOKENS> for Vnni<OFFSET> {
    const CODE_BYTES: usize = 1;

    unsafe fn unpack(panel: &mut Panel, format: Format, rows: &[&[u8]]) {
        // SAFETY: the caller's promise.
        unsafe { unpack::<OFFSET>(panel, format, rows) };
    }

    unsafe fn pack(rows: &[&[f32]], tile: &mut [u8]) {
        // SAFETY: the caller's promise.
        unsafe { pack::<Self>(rows, tile) };
    }

    unsafe fn tile(_: Format, panel: &Panel, records: &[u8], tokens: usize, sums: &mut [[f32; ROWS]; TOKENS]) {
        // SAFETY: the caller's promise.
        unsafe {
            match tokens {
                1 => tile::<OFFSET, 1>(panel, records, sums),
                2 => tile::<OFFSET, 2>(panel, records, sums),
                _ => tile::<OFFSET, TOKENS>(panel, records, sums),
            }
        };
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn unpack<const OFFSET: i32>(panel: &mut Panel, format: Format, rows: &[&[u8]]) {
    let more = (OFFSET as u8).wrapping_sub(format.offset()); // 0 where weights have shifts
    panel.unpack::<ROWS, 4, 1>(format, rows, |eight, codes| turns::<ROWS>(&eight.rows, more, codes));
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn tile<const OFFSET: i32, const N: usize>(panel: &Panel, records: &[u8], out: &mut [[f32; ROWS]; TOKENS]) {
    let mut sums = load(out);
    for (block, record) in records.chunks_exact(Vnni::<OFFSET>::LAYOUT.record_bytes()).enumerate() {
        let codes = &panel.codes[block * ROWS * BLOCK..][..ROWS * BLOCK];
        let mut dots: Sums<__m256i, N> = [[_mm256_setzero_si256(); 2]; N];
        for group in 0..8 {
            let weights = two(codes, group);
            for (token, dots) in dots.iter_mut().enumerate() {
                let activations = broadcast(record, group * TOKENS + token);
                for (dots, weights) in dots.iter_mut().zip(weights) {
                    *dots = _mm256_dpbusd_avx_epi32(*dots, weights, activations);
                }
            }
        }
        scale::<true, OFFSET, N>(panel, block, &record[TOKENS * BLOCK..], &dots, &mut sums);
    }
    store(&sums, out);
}
