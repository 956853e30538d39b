//! What a backend allocates on its device while it computes, beside what it is given: read off the sources of ggml 0.26.0, an
//! upper bound for each operation.
//!
//! A backend keeps a few buffers that grow to the most that any operation asked of them and shrink only when the backend
//! goes. So a bound for graphs that run one after another is the maximum of each buffer, and the sum over the buffers.
//!
//! | backend | buffers | here |
//! |---|---|---|
//! | CPU | the plan's work space | asked of ggml |
//! | Vulkan | `prealloc_x`, `prealloc_y`, `prealloc_split_k`, `prealloc_add_rms_partials` | [`vulkan`] |
//! | CUDA | the pool, a stack in virtual memory, and cuBLAS's work space | [`cuda`] |
//! | Metal | none: what a kernel needs is part of its result's size | |
//!
//! An operation that is not in the table is an error: nothing that pinhole computes is counted as nothing by accident.

mod cuda;
mod vulkan;

use ggml_sys as sys;
use ggml_sys::account::VulkanFeatures;
use pinhole_quant::DType;

use crate::{Error, Result};

pub(super) use cuda::Card;

/// Upper bounds of a backend's own buffers, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scratch([usize; BUFFERS]);

/// The most buffers that a backend has.
const BUFFERS: usize = 4;

/// How a backend goes about operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    /// Allocates nothing of its own.
    Nothing,
    /// `nvidia`: whether the device may multiply by NVIDIA's own cooperative matrices, for which more is converted.
    Vulkan(VulkanFeatures),
    Cuda(Card),
}

impl Scratch {
    /// One buffer of `bytes`.
    pub(super) fn one(bytes: usize) -> Scratch {
        Scratch([bytes, 0, 0, 0])
    }

    /// Of a backend whose buffers have so many bytes each.
    pub(super) fn of_buffers(buffers: [usize; BUFFERS]) -> Scratch {
        Scratch(buffers)
    }

    /// The bytes of each buffer.
    pub(crate) fn buffers(&self) -> [usize; BUFFERS] {
        self.0
    }

    /// What both take, one after the other.
    pub(crate) fn join(self, other: Scratch) -> Scratch {
        Scratch(std::array::from_fn(|i| self.0[i].max(other.0[i])))
    }

    /// All buffers together.
    pub fn bytes(&self) -> usize {
        self.0.iter().copied().fold(0, usize::saturating_add)
    }
}

impl Table {
    /// What computing `nodes` takes, each buffer rounded up to `granularity`.
    pub(super) fn of(self, nodes: &[Node], granularity: usize) -> Result<Scratch> {
        let mut all = match self {
            Table::Nothing => return Ok(Scratch::default()),
            Table::Vulkan(_) => vulkan::always(),
            Table::Cuda(_) => Scratch::default(),
        };
        for node in nodes {
            let each = match self {
                Table::Nothing => Scratch::default(),
                Table::Vulkan(features) => vulkan::operation(node, features)?,
                Table::Cuda(card) => cuda::operation(node, card)?,
            };
            all = all.join(each);
        }
        Ok(Scratch(all.0.map(|bytes| bytes.checked_next_multiple_of(granularity).unwrap_or(usize::MAX))))
    }
}

/// What the table needs to know of a tensor: ggml's format, extents and strides.
pub(super) struct Extents {
    pub(super) dtype: DType,
    pub(super) ne: [usize; 4],
    pub(super) nb: [usize; 4],
}

/// What the table needs to know of an operation.
pub(super) struct Node {
    pub(super) op: sys::ggml_op,
    pub(super) result: Extents,
    pub(super) operands: Vec<Extents>,
    /// Asked to sum in F32.
    pub(super) exact: bool,
}

impl Extents {
    fn elements(&self) -> usize {
        product(&self.ne)
    }

    /// How many matrices it is.
    fn matrices(&self) -> usize {
        product(&self.ne[2..])
    }
}

/// The product, or the most that can be counted.
fn product(factors: &[usize]) -> usize {
    factors.iter().copied().fold(1, usize::saturating_mul)
}

impl Node {
    fn operand(&self, i: usize) -> Result<&Extents> {
        self.operands.get(i).ok_or_else(|| Error::graph("scratch", "an operation without its operands"))
    }

    /// Whether it is one of those for which no GPU's backend allocates anything.
    fn takes_nothing(&self) -> bool {
        matches!(
            self.op,
            sys::GGML_OP_NONE
                | sys::GGML_OP_RESHAPE
                | sys::GGML_OP_VIEW
                | sys::GGML_OP_PERMUTE
                | sys::GGML_OP_TRANSPOSE
                | sys::GGML_OP_ADD
                | sys::GGML_OP_SUB
                | sys::GGML_OP_MUL
                | sys::GGML_OP_DIV
                | sys::GGML_OP_SCALE
                | sys::GGML_OP_UNARY
                | sys::GGML_OP_SQR
                | sys::GGML_OP_SQRT
                | sys::GGML_OP_NORM
                | sys::GGML_OP_RMS_NORM
                | sys::GGML_OP_GROUP_NORM
                | sys::GGML_OP_UPSCALE
                | sys::GGML_OP_PAD
                | sys::GGML_OP_GET_ROWS
                | sys::GGML_OP_CONCAT
                | sys::GGML_OP_ROLL
                | sys::GGML_OP_REPEAT
                | sys::GGML_OP_CONT
                | sys::GGML_OP_CPY
        )
    }

    fn unknown(&self) -> Error {
        Error::graph("scratch", format!("the table of scratch memory lacks operation {}", self.op))
    }
}
