//! Matrix products of block-quantized weights with f32 activations, where ggml has no fast kernel.
//!
//! Every format here stores blocks of 32 weights as `w = scale * (code - offset) + shift` with whole codes, an offset that is
//! the format's and a shift that is the block's (no format has both). Activations are quantized once per product, as ggml
//! does it: 32 numbers share a scale `d`, codes `q` are -127 to 127; the scale stays f32 where ggml rounds it to f16. A
//! product of two blocks is then
//!
//! ```text
//! sum w x = scale * d * (sum(code * q) - offset * sum q) + shift * (d * sum q)
//! ```
//!
//! with exact sums of whole numbers. What makes it fast is that codes are unpacked once for all tokens, into a *panel* (a few rows,
//! a stretch of the columns, 16 KiB) that stays in the first-level cache while every *tile* of tokens passes over it.
//! Weights are read where they lie, eight rows side by side; nothing is repacked beyond the panel. Sums stay in a buffer beside
//! it until they are whole; both are on the stack of their thread.
//!
//! A number of the result is summed in one order, whatever thread computes it and whatever stands beside it: one thread and
//! many, tokens alone or in company, and one kernel or another, give the same bits.
//!
//! This module knows no ggml: slices in, numbers out. `src/ggml/product.rs` makes operations of a graph of it.

// Vector instructions are reached through `unsafe`; every block names what it rests on.
#![allow(unsafe_code)]

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod convolution;
#[cfg(target_arch = "aarch64")]
mod dotprod;
mod format;
#[cfg(target_arch = "aarch64")]
mod i8mm;
mod nonlinearity;
mod panel;
mod portable;
mod product;

pub use activations::Layout;
pub use convolution::{Added, Convolution, Geometry, MOST_SIDE, Moments, Normal, Planes, Source, Weights};
pub use nonlinearity::Nonlinearity;
pub use product::{Columns, Product, Tile, Workspace};

use pinhole_quant::DType;

/// Numbers that share a scale, in weights and in activations.
pub const BLOCK: usize = 32;

/// What a processor offers for these products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Plain Rust: what the others are held to. No faster than ggml.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW and VNNI, and the instructions of [`Kernel::Avx2`]. Not yet run on such a processor: only with
    /// its instructions written out in plain Rust, where it agrees with [`Kernel::Portable`] to the bit.
    Avx512Vnni,
    /// Arm64 with the dot products of Armv8.2 (`sdot`). Run under emulation, and on no such processor.
    Dotprod,
    /// Arm64 with matrix multiplication of bytes (`smmla`). Run under emulation, and on no such processor.
    I8mm,
}

impl Kernel {
    /// Every kernel that this processor can run, the fastest last.
    pub fn available() -> impl Iterator<Item = Kernel> {
        [Kernel::Portable, Kernel::Avx2, Kernel::Avx512Vnni, Kernel::Dotprod, Kernel::I8mm]
            .into_iter()
            .filter(|kernel| kernel.is_available())
    }

    /// The fastest kernel here, or `None` where ggml's own are better.
    pub fn best() -> Option<Kernel> {
        Kernel::available().last().filter(|kernel| *kernel != Kernel::Portable)
    }

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Kernel::Portable => "portable",
            Kernel::Avx2 => "avx2",
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
            Kernel::Avx512Vnni => {
                avx2()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
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
            Kernel::Avx2 | Kernel::Avx512Vnni => false,
        }
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn is_available(self) -> bool {
        self == Kernel::Portable
    }
}

/// Whether products with weights of `dtype` exist.
pub fn supports(dtype: DType) -> bool {
    format::Format::of(dtype).is_some()
}
