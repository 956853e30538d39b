//! What ggml's Vulkan backend preallocates (`ggml-vulkan.cpp`: every place that compares with `prealloc_size_*`).
//!
//! Buffers that grow are destroyed before larger ones are made, so that the final sizes bound the peak. Staging
//! buffers (`sync_staging`) are host memory where the device's own is not visible to the host, and not used where it is.

use ggml_sys as sys;
use ggml_sys::account::VulkanFeatures as Features;
use pinhole_quant::DType;

use super::{Extents, Node, Scratch, product};
use crate::Result;

/// Products with so many columns go through kernels for vectors: `mul_mat_vec_max_cols`.
const VECTOR_COLUMNS: usize = 8;

/// Columns of the largest tile; converted activations are padded to it. With NVIDIA's cooperative matrices, and otherwise.
const NVIDIA_TILE: usize = 256;
const TILE: usize = 128;

/// The most cores of a card, and the most numbers of a tile: together they bound what splitting a product takes.
const CORES: usize = 256;
const TILE_AREA: usize = 256 * 128;

/// Sums are split where they have so many terms, eightfold at most.
const LONG_SUM: usize = 2048;
const MOST_PARTS: usize = 8;

/// Rows of a workgroup of flash attention at most, with NVIDIA's cooperative matrices and otherwise; columns that a part has at
/// least: `block_rows` and `block_cols` of `get_fa_tuning_params`.
const NVIDIA_ATTENTION_ROWS: usize = 64;
const ATTENTION_ROWS: usize = 16;
const ATTENTION_COLUMNS: usize = 16;

/// What the backend takes for the number of cores where it does not know it.
const UNKNOWN_CORES: usize = 16;

/// Softmax over longer rows goes in parts of so many numbers.
const LONG_ROW: usize = 16384;
const PART_OF_ROW: usize = 512;

/// `prealloc_size_add_rms_partials`, which is there from the beginning.
const RMS_PARTIALS: usize = 1024;

/// What is there whatever is computed.
pub(super) fn always() -> Scratch {
    Scratch([0, 0, 0, RMS_PARTIALS])
}

pub(super) fn operation(node: &Node, features: Features) -> Result<Scratch> {
    match node.op {
        sys::GGML_OP_MUL_MAT => Ok(mul_mat(node.operand(0)?, node.operand(1)?, &node.result, features)),
        sys::GGML_OP_FLASH_ATTN_EXT => Ok(attention(node.operand(1)?, node.operands.get(3), &node.result, features)),
        sys::GGML_OP_SOFT_MAX => Ok(soft_max(node.operand(0)?)),
        // The direct convolution is one kernel that reads patches where they lie.
        sys::GGML_OP_CONV_2D => Ok(Scratch::default()),
        _ if node.takes_nothing() => Ok(Scratch::default()),
        _ => Err(node.unknown()),
    }
}

/// Q8_1, in blocks of four: `ggml_vk_align_size(y_ne, 128)`.
fn q8_1(elements: usize) -> usize {
    elements.div_ceil(128).saturating_mul(144)
}

/// `ggml_vk_mul_mat_vec_q_f16` and `ggml_vk_mul_mat_q_f16`.
fn mul_mat(w: &Extents, x: &Extents, result: &Extents, features: Features) -> Scratch {
    let (nvidia, quantized) = (features.nvidia_matrices, w.dtype.is_quantized());
    let columns = result.ne[1];
    let batch = x.matrices();
    if columns == 1 || (columns <= VECTOR_COLUMNS && batch == 1) {
        let weights = if is_dense(w) { 0 } else { product(&[4, w.elements()]) };
        let activations = match is_dense(x) {
            true if quantized && features.byte_products => q8_1(x.elements()),
            true => 0,
            false => product(&[4, x.elements()]),
        };
        return Scratch([weights, activations, 0, 0]);
    }
    // Weights are copied where they are not dense, where NVIDIA's matrices want F16, and where there is no kernel for them
    // with converted activations.
    let copied = !is_dense(w) || (nvidia && w.dtype == DType::F32) || (quantized && !is_dense(x));
    let weights = if copied { product(&[2, w.elements()]) } else { 0 };
    let converted = !is_dense(x) || nvidia || w.dtype == DType::BF16 || (quantized && features.matrices);
    let padded = columns.next_multiple_of(if nvidia { NVIDIA_TILE } else { TILE });
    let activations = if converted { product(&[2, padded, x.ne[0], batch]) } else { 0 };
    let in_bytes = quantized && (features.byte_products || features.matrices);
    let activations = if in_bytes { activations.max(q8_1(x.elements())) } else { activations };
    let split = if features.known_cores { split_sum(x.ne[0], result.elements()) } else { 0 };
    Scratch([weights, activations, split, 0])
}

/// `ggml_vk_guess_split_k`: up to eight parts where the tiles fill less than half of the cores, three below two thirds.
fn split_sum(terms: usize, results: usize) -> usize {
    if terms < LONG_SUM || results > CORES * 2 / 3 * TILE_AREA {
        return 0;
    }
    let parts = product(&[MOST_PARTS, results]).min((CORES * TILE_AREA).max(product(&[3, results])));
    product(&[4, parts])
}

/// Partial sums of flash attention where rows alone would not fill the cores twice: for each part a row of results and two
/// numbers. Parts begin at multiples of the tile, so that there can be a few more than the cores ask for. Of a mask, two bits
/// for each tile, 16 tiles to a number.
fn attention(k: &Extents, mask: Option<&Extents>, result: &Extents, features: Features) -> Scratch {
    let cores = if features.known_cores { CORES } else { UNKNOWN_CORES };
    let group = if features.nvidia_matrices { NVIDIA_ATTENTION_ROWS } else { ATTENTION_ROWS };
    let [width, heads, rows, batch] = result.ne;
    let groups = product(&[rows.div_ceil(group), heads, batch]);
    let asked = 2 * cores / groups.max(1);
    let parts = (asked + asked / 16 + 1).min(k.ne[1].div_ceil(ATTENTION_COLUMNS));
    let tiles = mask.map_or(0, |mask| product(&[4, mask.ne[0].div_ceil(16 * ATTENTION_COLUMNS), mask.ne[1]]));
    let sums = if asked < 2 || parts < 2 { 0 } else { product(&[4, parts, rows, heads, batch, width + 2]) };
    Scratch([0, tiles, sums, 0])
}

fn soft_max(x: &Extents) -> Scratch {
    if x.ne[0] <= LONG_ROW {
        return Scratch::default();
    }
    let bytes = product(&[4, x.ne[0].div_ceil(PART_OF_ROW), product(&x.ne[1..])]);
    Scratch([bytes, bytes, 0, 0])
}

/// `ggml_vk_dim01_contiguous`: rows follow one another, and so do matrices.
fn is_dense(tensor: &Extents) -> bool {
    let Extents { dtype, ne, nb } = tensor;
    nb[0] == dtype.block_bytes()
        && Some(nb[1]) == dtype.row_bytes(ne[0])
        && (ne[3] == 1 || nb[3] == nb[2].saturating_mul(ne[2]))
}
