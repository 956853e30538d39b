//! What ggml's CUDA backend takes from its pool (`ggml_cuda_pool_alloc` in `ggml-cuda/*.cu`), and cuBLAS's work space.
//!
//! The pool is a stack in virtual memory (`ggml_cuda_pool_vmm`): requests of one operation lie one after another, each rounded
//! up to 128 bytes, and the whole grows by the device's granularity. Where a device has no virtual memory management the
//! pool keeps blocks of various sizes and these bounds do not hold.
//!
//! Read, and compiled, and never run: there was no card.

use ggml_sys as sys;
use pinhole_quant::DType;

use super::{Extents, Node, Scratch, product};
use crate::Result;

/// A card, as far as ggml's choice of kernels goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ggml) struct Card {
    /// Its compute capability, as ggml has it: 890 for 8.9.
    pub(in crate::ggml) capability: u32,
    /// How many multiprocessors it has.
    pub(in crate::ggml) multiprocessors: usize,
}

/// The first card with matrix instructions for whole numbers: quantized weights are multiplied as they are.
const TURING: u32 = 750;
const HOPPER: u32 = 900;

/// Products with so many columns go through kernels for vectors: `MMVQ_MAX_BATCH_SIZE`, `MMVF_MAX_BATCH_SIZE`.
const VECTOR_COLUMNS: usize = 8;

/// Rows of quantized activations are padded to so many numbers: `MATRIX_ROW_PADDING`.
const ROW_PADDING: usize = 512;

/// `block_q8_1_mmq`: 128 numbers in 144 bytes. The largest tile reads so many blocks beyond the end.
const BLOCK: (usize, usize) = (128, 144);
const LARGEST_TILE: usize = 128;

/// The registers of a multiprocessor, in bytes. Sums of flash attention are kept there, so they bound how many rows are under
/// way at once.
const REGISTERS: usize = 256 << 10;

/// The most blocks of attention on a multiprocessor, on cards without matrix instructions.
const BLOCKS: usize = 8;

pub(super) fn operation(node: &Node, card: Card) -> Result<Scratch> {
    match node.op {
        sys::GGML_OP_MUL_MAT => Ok(mul_mat(node, node.operand(0)?, node.operand(1)?, card)),
        sys::GGML_OP_FLASH_ATTN_EXT => Ok(attention(node, card)),
        sys::GGML_OP_CONV_2D => Ok(convolution(node.operand(0)?, node.operand(1)?, &node.result, card)),
        // Two numbers for each multiprocessor, for rows that no block holds.
        sys::GGML_OP_SOFT_MAX => Ok(stack(&[16 * card.multiprocessors, 16 * card.multiprocessors])),
        _ if node.takes_nothing() => Ok(Scratch::default()),
        _ => Err(node.unknown()),
    }
}

/// Requests of the pool that are held together.
fn stack(requests: &[usize]) -> Scratch {
    let aligned = requests.iter().map(|bytes| bytes.checked_next_multiple_of(128).unwrap_or(usize::MAX));
    Scratch([aligned.fold(0, usize::saturating_add), 0, 0, 0])
}

/// The same, by an operation that calls cuBLAS: its handle has a work space from then on.
fn with_blas(requests: &[usize], card: Card) -> Scratch {
    let workspace = if card.capability >= HOPPER { 32 << 20 } else { 4 << 20 };
    stack(requests).join(Scratch([0, workspace, 0, 0]))
}

/// `ggml_cuda_mul_mat`.
fn mul_mat(node: &Node, w: &Extents, x: &Extents, card: Card) -> Scratch {
    let columns = x.ne[1];
    if !w.dtype.is_quantized() {
        let vector = columns <= VECTOR_COLUMNS;
        return if vector { Scratch::default() } else { with_blas(&blas(node, w, x), card) };
    }
    // By integer instructions before tensor cores and with tensor cores for whole numbers; those of Volta are for F16 only.
    let integers = card.capability >= TURING || card.capability < 700;
    let quantized = quantized(x);
    let fixup = product(&[4, card.multiprocessors, LARGEST_TILE, LARGEST_TILE]);
    let own = stack(&[quantized, fixup]);
    if integers && has_integer_kernel(w.dtype) { own } else { own.join(with_blas(&blas(node, w, x), card)) }
}

/// Activations in Q8_1, as `ggml_cuda_mul_mat_q` lays them out; those of `ggml_cuda_mul_mat_vec_q` are the same less the tile.
fn quantized(x: &Extents) -> usize {
    let row = x.ne[0].next_multiple_of(ROW_PADDING) / BLOCK.0 * BLOCK.1;
    product(&[row, x.ne[1], x.matrices()]).saturating_add(LARGEST_TILE * BLOCK.1)
}

/// `ggml_cuda_should_use_mmq`: the ternary formats have no kernel, and neither has IQ1_M.
fn has_integer_kernel(dtype: DType) -> bool {
    !matches!(dtype, DType::TQ1_0 | DType::TQ2_0 | DType::IQ1_M)
}

/// `ggml_cuda_mul_mat_cublas_impl`: operands of other formats than the one computed in are converted, which is F32 where
/// sums are to be exact; results that are not F32 are converted back; several matrices have lists of addresses.
fn blas(node: &Node, w: &Extents, x: &Extents) -> [usize; 5] {
    let lists = [product(&[16, x.matrices()]), product(&[8, x.matrices()])];
    let (size, others) = if node.exact { (4, 0) } else { (2, 2) };
    let weights = if node.exact && w.dtype == DType::F32 { 0 } else { product(&[size, w.elements()]) };
    [weights, product(&[others, x.elements()]), product(&[others, node.result.elements()]), lists[0], lists[1]]
}

/// `launch_fattn`: rows that are cut between blocks, with two sums each; keys and values in F16 are part of the result's size.
/// With a mask, for each few queries where its last number is that counts.
fn attention(node: &Node, card: Card) -> Scratch {
    let result = &node.result;
    let [width, _, queries, batch] = result.ne;
    let ends = if node.operands.len() > 3 { product(&[4, queries, batch]) } else { 0 };
    if card.capability < TURING {
        let rows = product(&result.ne[1..]);
        return stack(&[ends, product(&[4 * BLOCKS, result.elements()]), product(&[8 * BLOCKS, rows])]);
    }
    let rows = product(&[card.multiprocessors, REGISTERS / (4 * width.max(1))]);
    stack(&[ends, product(&[8, rows, 2 + width.div_ceil(2)])])
}

/// `ggml_cuda_op_conv2d` with an F16 kernel: the padded input in F16, and partial sums where the result has few tiles.
fn convolution(kernel: &Extents, x: &Extents, result: &Extents, card: Card) -> Scratch {
    if kernel.dtype != DType::F16 {
        return Scratch::default();
    }
    // No more padding than keeps the size.
    let [w, h] = [0, 1].map(|i| x.ne[i].saturating_add(kernel.ne[i]));
    let input = product(&[2, w, h, x.ne[2], x.ne[3]]);
    let tiles =
        product(&[result.ne[0].saturating_mul(result.ne[1]).div_ceil(64), result.ne[2].div_ceil(64), result.ne[3]]);
    let terms = product(&[kernel.ne[0], kernel.ne[1], kernel.ne[2]]).div_ceil(64);
    let parts = (8 * card.multiprocessors).div_ceil(tiles.max(1)).min(32).min(terms);
    let partial = if parts > 1 { product(&[4, parts, result.elements()]) } else { 0 };
    with_blas(&[input, partial], card)
}
