//! Kernels for the CPU where ggml's are slow or inexact: matrix products of block-quantized weights with f32 activations, products of
//! weights in floating point (`floats`), convolutions (`convolution`), attention (`attention`), GELU and SiLU (`nonlinearity.rs`).
//!
//! # Products
//!
//! Every format here stores blocks of 32 weights as `w = scale * (code - offset) + shift` with whole codes, an offset that is
//! the format's and a shift that is the block's (no format has both). Codes of q6_k, less the offset, are multiplied by a factor of their
//! half of the block first, which is whole, too. Activations are quantized once per product, as ggml
//! does it: 32 numbers share a scale `d`, codes `q` are -127 to 127; the scale stays f32 where ggml rounds it to f16. A
//! product of two blocks is then
//!
//! ```text
//! sum w x = scale * d * (sum(code * q) - offset * sum q) + shift * (d * sum q)
//! ```
//!
//! with exact sums of whole numbers. What makes it fast: codes are unpacked once for all tokens, and what meets in the innermost
//! loop is in the first-level cache.
//!
//! | term | what it is |
//! |---|---|
//! | code | a whole number that stands for a weight or an activation |
//! | block | 32 neighbouring columns of one row or one token: their codes share a scale |
//! | panel | some rows of the weights over one stretch, unpacked: 16 KiB of codes (`Panel`) |
//! | group | the tokens that a kernel multiplies at once |
//! | tile | one group over one stretch, quantized (`Tile`) |
//! | stretch | the columns of one panel, whole blocks |
//! | record | one block of a tile: codes of all its tokens, their scales, the sums of their codes |
//! | turn | 4 or 8 neighbouring bytes of one row of a panel, or token of a record; those of the next follow |
//! | eight | eight rows, which are read and unpacked side by side |
//! | share | the groups whose sums fit the buffer together, if not all do |
//!
//! One panel meets one tile:
//!
//! ```text
//!            a tile: one record for each block of the stretch
//!            +-----------------+-----------------+---
//!            | t0 t1 t2 t3     | t0 t1 t2 t3     |        tokens of one group,
//!            | t0 t1 t2 t3 ..  | t0 t1 t2 t3 ..  | ..     in turns of 4 codes;
//!            | scales, sums    | scales, sums    |        one turn is broadcast
//!            +-----------------+-----------------+---
//!                     |                 |
//!            +-----------------+-----------------+---
//!            | r0 r1 r2 .. r15 | r0 r1 r2 .. r15 |        rows of one panel,
//!            | r0 r1 r2 .. r15 | r0 r1 r2 .. r15 | ..     in turns of 4 codes;
//!            | scales, shifts  | scales, shifts  |        a vector holds turns of
//!            +-----------------+-----------------+---     eight rows, or more
//!                     |                 |
//!                     v                 v
//!            sums [tokens][rows] += block 0, then block 1, ..
//! ```
//!
//! Few tokens meet no panel: `few.rs` multiplies weights as it reads them.
//!
//! Weights are read where they lie; nothing is repacked beyond the panel. Sums stay in a buffer of their own until they are
//! whole. The panel and the buffer are on the stack of their thread.
//!
//! A number of the result is summed in one order, whatever thread computes it and whatever stands next to it: one thread and
//! many, tokens alone or in company, and one kernel or another, give the same bits.
//!
//! # Convolutions
//!
//! Their formulas are in `convolution/mod.rs`. Their terms:
//!
//! | term | what it is |
//! |---|---|
//! | tile | a part of the result that is computed together, for all outputs or a part of them |
//! | piece | a part of a tile, which one thread computes |
//! | stretch | eight neighbouring pixels of one row, where every product is computed |
//! | cell | 4x2 pixels of the result, where a third of the products is computed |
//! | window | the 6x4 pixels that a cell is computed from |
//! | position | one of the 24 numbers of a transformed window or kernel |
//! | span | 16 cells, one after the other through rows and pictures: two vectors |
//! | run | the cells of one row in one span |
//! | set | the outputs that are computed together |
//!
//! This module knows no ggml: slices in, numbers out. `src/ggml/product.rs`, `floats.rs`, `convolve.rs`, `attend.rs`, `elementwise.rs`
//! and `channel_norm.rs` make operations of a graph of it.

// Vector instructions are reached through `unsafe`; every block names what it rests on.
#![allow(unsafe_code)]

mod activations;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used)]
mod bounds;
mod channel_norm;
#[cfg(test)]
mod clock;
mod convolution;
#[cfg(target_arch = "aarch64")]
mod dotprod;
#[cfg(target_arch = "x86_64")]
mod few;
mod floats;
mod format;
#[cfg(target_arch = "aarch64")]
mod i8mm;
mod micro;
mod nonlinearity;
mod panel;
mod portable;
mod product;

pub use activations::Layout;
pub use attention::{Attended, Attention, Heads, Outputs, Precision, Rows, Space};
pub use channel_norm::{PIXELS, channel_norm_silu};
pub use convolution::{
    Added, Convolution, ConvolutionSpace, Geometry, MOST_SIDE, Moments, Normal, Pieces, Planes, Source, Weights,
};
pub use floats::{FloatProduct, FloatSpace, Tokens};
pub use format::BLOCK;
pub use nonlinearity::Nonlinearity;
pub use product::{Columns, Product, Tile, Workspace};

use pinhole_quant::DType;

/// What a processor offers for these products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Plain Rust: what the others are held to. No faster than ggml.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-VNNI, and the instructions of [`Kernel::Avx2`]. Not yet run on such a processor: only with its
    /// instruction emulated, where it agrees with [`Kernel::Portable`] to the bit.
    AvxVnni,
    /// x86-64 with AVX-512 F, BW, VL and VNNI, and the instructions of [`Kernel::Avx2`].
    Avx512Vnni,
    /// Arm64 with the dot products of Armv8.2 (`sdot`). Run under emulation, and on no such processor.
    Dotprod,
    /// Arm64 with matrix multiplication of bytes (`smmla`). Run under emulation, and on no such processor.
    I8mm,
}

impl Kernel {
    /// Every kernel that this processor can run, the fastest last.
    pub fn available() -> impl Iterator<Item = Kernel> {
        let all = [Kernel::Portable, Kernel::Avx2, Kernel::AvxVnni, Kernel::Avx512Vnni, Kernel::Dotprod, Kernel::I8mm];
        all.into_iter().filter(|kernel| kernel.is_available())
    }

    /// The fastest kernel here, or `None` where ggml's own are better.
    pub fn best() -> Option<Kernel> {
        Kernel::available().last().filter(|kernel| *kernel != Kernel::Portable)
    }

    /// Whether it multiplies weights of `dtype`. Where it does not, ggml's own kernels are as fast, or were not compared.
    pub fn multiplies(self, dtype: DType) -> bool {
        match dtype {
            DType::Q5_K | DType::Q6_K => {
                matches!(self, Kernel::Portable | Kernel::Avx2 | Kernel::AvxVnni | Kernel::Avx512Vnni)
            }
            _ => format::Format::of(dtype).is_some(),
        }
    }

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Kernel::Portable => "portable",
            Kernel::Avx2 => "avx2",
            Kernel::AvxVnni => "avx-vnni",
            Kernel::Avx512Vnni => "avx512-vnni",
            Kernel::Dotprod => "neon-dotprod",
            Kernel::I8mm => "neon-i8mm",
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn is_available(self) -> bool {
        let avx2 =
            || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        match self {
            Kernel::Portable => true,
            Kernel::Avx2 => avx2(),
            Kernel::AvxVnni => avx2() && is_x86_feature_detected!("avxvnni"),
            Kernel::Avx512Vnni => {
                avx2()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            Kernel::Dotprod | Kernel::I8mm => false,
        }
    }

    #[cfg(target_arch = "aarch64")]
    fn is_available(self) -> bool {
        match self {
            Kernel::Portable => true,
            Kernel::Dotprod => std::arch::is_aarch64_feature_detected!("dotprod"),
            Kernel::I8mm => std::arch::is_aarch64_feature_detected!("i8mm"),
            Kernel::Avx2 | Kernel::AvxVnni | Kernel::Avx512Vnni => false,
        }
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn is_available(self) -> bool {
        self == Kernel::Portable
    }
}
