//! Products of weights in F32, F16 or BF16 with f32 activations. Weights become f32, exactly, and activations stay what they are, where
//! ggml's products with such weights round them to the weights' type.
//!
//! A *piece* of the result is some rows of the weights, a *band*, by some tokens. It is computed over one stretch of columns after
//! the other. The tokens' numbers over the stretch are copied to where they stay in the second-level cache. Then sixteen rows of weights at
//! a time are brought into a *panel*, side by side, which stays in the first-level cache while all tokens of the piece meet it.
//!
//! | left side | right side | out |
//! |---|---|---|
//! | a few tokens, each a row of `stretch` numbers | sixteen rows of weights, side by side: `[16, stretch]` | sums `[rows, tokens]` |
//!
//! A number of the result is summed in one order, whatever piece it lies in and whatever thread computes it: every run of columns
//! begins at the same one and from zero, and no token knows of another.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod micro;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::ops::Range;

use pinhole_quant::DType;

use super::Kernel;
use super::attention::micro::LANES;
use micro::{Micro, PANEL, Portable};

/// Columns of a stretch: a panel then takes 16 KiB, half of a first-level cache.
const STRETCH: usize = 256;
/// Columns that are summed one after the other, from zero, before their sum is added: the fewer, the smaller the error, and the more
/// additions.
const RUN: usize = 64;
/// From one token's numbers over a stretch to the next: a little more, so that no two of them begin in one place of the cache.
const PITCH: usize = STRETCH + PANEL;
/// Rows of a band and tokens of a piece, at most.
const MOST_ROWS: usize = 8 * PANEL;
const MOST_TOKENS: usize = 192;
/// The same for AVX-512: processors that have it mostly have a second-level cache of 1 MiB or more, and every panel meets more tokens.
const MOST_TOKENS_512: usize = 384;
/// Pieces that there should be, so that many threads have something to do.
const PIECES: usize = 32;

/// The activations of a product: its right side.
pub trait Tokens {
    /// The numbers of token `i`, as many as the weights have columns.
    fn token(&self, i: usize) -> &[f32];
}

/// The product of weights `[k, rows]` with activations `[k, tokens]`, for one kernel.
#[derive(Clone, Copy, Debug)]
pub struct FloatProduct {
    kernel: Kernel,
    dtype: DType,
    k: usize,
    rows: usize,
    tokens: usize,
    /// Rows of a band and tokens of a piece.
    band: usize,
    share: usize,
}

/// What a thread computes pieces with: 340 KiB at most, and 630 KiB by AVX-512.
#[derive(Debug)]
pub struct FloatSpace {
    /// Rows of weights as f32, before they are brought into a panel.
    rows: Vec<f32>,
    panel: Vec<f32>,
    /// Tokens over a stretch.
    left: Vec<f32>,
    sums: Vec<f32>,
}

impl FloatProduct {
    /// The product of these sizes. `None` where the processor lacks the instructions, weights are of other types, there is nothing to
    /// multiply, or sizes overflow.
    pub fn new(kernel: Kernel, dtype: DType, k: usize, rows: usize, tokens: usize) -> Option<FloatProduct> {
        let known = matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
        if !known || !kernel.is_available() || [k, rows, tokens].contains(&0) {
            return None;
        }
        dtype.row_bytes(k)?.checked_mul(rows)?;
        rows.checked_mul(tokens)?;
        let most = if kernel == Kernel::Avx512Vnni { MOST_TOKENS_512 } else { MOST_TOKENS };
        let share = tokens.div_ceil(tokens.div_ceil(most));
        let mut band = MOST_ROWS;
        while band > PANEL && rows.div_ceil(band) * tokens.div_ceil(share) < PIECES {
            band /= 2;
        }
        Some(FloatProduct { kernel, dtype, k, rows, tokens, band, share })
    }

    /// Columns of the result.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Rows of the weights, and of the result.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes of a row of weights.
    pub fn row_bytes(&self) -> usize {
        self.k * self.dtype.block_bytes()
    }

    /// How many pieces the result has. Bands of one share of the tokens come one after the other.
    pub fn pieces(&self) -> usize {
        self.bands() * self.tokens.div_ceil(self.share)
    }

    fn bands(&self) -> usize {
        self.rows.div_ceil(self.band)
    }

    /// The rows and the tokens of piece number `i`.
    pub fn piece(&self, i: usize) -> [Range<usize>; 2] {
        let (row, token) = (i % self.bands() * self.band, i / self.bands() * self.share);
        [row..self.rows.min(row + self.band), token..self.tokens.min(token + self.share)]
    }

    /// Room to compute with.
    ///
    /// # Errors
    /// How many bytes could not be had.
    pub fn space(&self) -> Result<FloatSpace, usize> {
        Ok(FloatSpace {
            rows: zeros(LANES * STRETCH)?,
            panel: zeros(PANEL * STRETCH)?,
            left: zeros(self.share * PITCH)?,
            sums: zeros(self.band * self.share)?,
        })
    }

    /// Computes piece number `i`: `put` takes, for each of its tokens, the numbers of its rows. `row` gives the bytes of a row of the
    /// weights.
    ///
    /// # Panics
    /// Where rows or tokens are shorter than the product says.
    pub fn compute<'a>(
        &self,
        i: usize,
        row: impl Fn(usize) -> &'a [u8],
        tokens: &impl Tokens,
        space: &mut FloatSpace,
        put: impl FnMut(usize, &[f32]),
    ) {
        match self.kernel {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `new` saw that the instructions are there.
            Kernel::Avx2 | Kernel::AvxVnni => unsafe { compute_avx2(self, i, row, tokens, space, put) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Kernel::Avx512Vnni => unsafe { compute_avx512(self, i, row, tokens, space, put) },
            _ => self.compute_by::<Portable, 4>(i, row, tokens, space, put),
        }
    }

    #[inline(always)]
    fn compute_by<'a, M: Micro, const TOGETHER: usize>(
        &self,
        i: usize,
        row: impl Fn(usize) -> &'a [u8],
        tokens: &impl Tokens,
        space: &mut FloatSpace,
        mut put: impl FnMut(usize, &[f32]),
    ) {
        let [rows, share] = self.piece(i);
        let pitch = rows.len().next_multiple_of(PANEL);
        let FloatSpace { rows: wide, panel, left, sums } = space;
        sums[..pitch * share.len()].fill(0.0);
        for start in (0..self.k).step_by(STRETCH) {
            let columns = start..self.k.min(start + STRETCH);
            let len = columns.len();
            for (token, left) in share.clone().zip(left.chunks_exact_mut(PITCH)) {
                left[..len].copy_from_slice(&tokens.token(token)[columns.clone()]);
            }
            for first in rows.clone().step_by(PANEL) {
                let some = first..rows.end.min(first + PANEL);
                self.unpack::<M>(some, &row, columns.clone(), wide, &mut panel[..PANEL * len]);
                let (at, whole) = (first - rows.start, share.len() / TOGETHER * TOGETHER);
                let panel = &panel[..PANEL * len];
                for token in (0..whole).step_by(TOGETHER) {
                    meet::<M, TOGETHER>(&left[token * PITCH..], panel, &mut sums[token * pitch + at..], pitch);
                }
                // Those that are left over: the fewer there are at once, the longer each takes.
                let mut token = whole;
                while token < share.len() {
                    let (left, sums) = (&left[token * PITCH..], &mut sums[token * pitch + at..]);
                    token += match share.len() - token {
                        1 => meet::<M, 1>(left, panel, sums, pitch),
                        2 | 3 => meet::<M, 2>(left, panel, sums, pitch),
                        _ => meet::<M, 4>(left, panel, sums, pitch),
                    };
                }
            }
        }
        for (token, sums) in share.zip(space.sums.chunks_exact(pitch)) {
            put(token, &sums[..rows.len()]);
        }
    }

    /// Brings `rows`, sixteen or fewer, over `columns` into a panel. Rows beyond them repeat the last.
    #[inline(always)]
    fn unpack<'a, M: Micro>(
        &self,
        rows: Range<usize>,
        row: &impl Fn(usize) -> &'a [u8],
        columns: Range<usize>,
        numbers: &mut [f32],
        panel: &mut [f32],
    ) {
        let (len, size) = (columns.len(), self.dtype.block_bytes());
        for first in (rows.start..rows.start + PANEL).step_by(LANES) {
            let mut lanes: [*const f32; LANES] = [std::ptr::null(); LANES];
            for ((i, lane), numbers) in lanes.iter_mut().enumerate().zip(numbers.chunks_exact_mut(STRETCH)) {
                let bytes = &row((first + i).min(rows.end - 1))[columns.start * size..columns.end * size];
                // Rows lie far apart, and none is long enough for the processor to foresee what is read.
                M::fetch(&row((first + i + LANES).min(self.rows - 1))[columns.start * size..columns.end * size]);
                *lane = bytes.as_ptr().cast();
                if self.dtype != DType::F32 || !lane.is_aligned() {
                    let numbers = &mut numbers[..len];
                    self.widen::<M>(bytes, numbers);
                    *lane = numbers.as_ptr();
                }
            }
            let to = &mut panel[first - rows.start..][..(len - 1) * PANEL + LANES];
            // SAFETY: eight rows of `len` numbers; `to` ends with the last of them; the instructions are there.
            unsafe { M::transpose(lanes, len, to.as_mut_ptr(), PANEL) };
        }
    }

    /// `bytes` of weights as f32.
    #[inline(always)]
    fn widen<M: Micro>(&self, bytes: &[u8], numbers: &mut [f32]) {
        match self.dtype {
            DType::F16 => M::widen(bytes.as_chunks().0, numbers),
            DType::BF16 => {
                for (number, bytes) in numbers.iter_mut().zip(bytes.as_chunks().0) {
                    *number = f32::from_bits(u32::from(u16::from_ne_bytes(*bytes)) << 16);
                }
            }
            _ => {
                for (number, bytes) in numbers.iter_mut().zip(bytes.as_chunks().0) {
                    *number = f32::from_ne_bytes(*bytes);
                }
            }
        }
    }
}

/// Adds the products of `N` tokens, which lie [`PITCH`] apart in `left`, with a panel to sums, which lie `pitch` apart. Gives `N`.
#[inline(always)]
fn meet<M: Micro, const N: usize>(left: &[f32], panel: &[f32], sums: &mut [f32], pitch: usize) -> usize {
    let depth = panel.len() / PANEL;
    let (left, out) = (&left[..(N - 1) * PITCH + depth], &mut sums[..(N - 1) * pitch + PANEL]);
    for start in (0..depth).step_by(RUN) {
        let (left, panel, depth) = (&left[start..], &panel[start * PANEL..], RUN.min(depth - start));
        // SAFETY: `left` ends with the last of `N` rows of `depth` numbers or more, the panel has as many columns, and `out` ends with the
        // last of `N` times sixteen sums; the instructions are there.
        unsafe { M::meet::<N, PITCH>(left.as_ptr(), panel.as_ptr(), depth, out.as_mut_ptr(), pitch) };
    }
    N
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn compute_avx2<'a>(
    product: &FloatProduct,
    i: usize,
    row: impl Fn(usize) -> &'a [u8],
    tokens: &impl Tokens,
    space: &mut FloatSpace,
    put: impl FnMut(usize, &[f32]),
) {
    product.compute_by::<avx2::Avx2, 6>(i, row, tokens, space, put);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
fn compute_avx512<'a>(
    product: &FloatProduct,
    i: usize,
    row: impl Fn(usize) -> &'a [u8],
    tokens: &impl Tokens,
    space: &mut FloatSpace,
    put: impl FnMut(usize, &[f32]),
) {
    product.compute_by::<avx512::Avx512, 12>(i, row, tokens, space, put);
}

/// `len` zeros.
fn zeros(len: usize) -> Result<Vec<f32>, usize> {
    let mut numbers = Vec::new();
    numbers.try_reserve_exact(len).map_err(|_| len.saturating_mul(size_of::<f32>()))?;
    numbers.resize(len, 0.0);
    Ok(numbers)
}
