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

use super::Graph;
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
    /// What computing `graph` takes, each buffer rounded up to `granularity`.
    pub(super) fn of(self, graph: &Graph, granularity: usize) -> Result<Scratch> {
        let mut all = match self {
            Table::Nothing => return Ok(Scratch::default()),
            Table::Vulkan(_) => vulkan::always(),
            Table::Cuda(_) => Scratch::default(),
        };
        for node in nodes(graph)? {
            let each = match self {
                Table::Nothing => Scratch::default(),
                Table::Vulkan(features) => vulkan::operation(&node, features)?,
                Table::Cuda(card) => cuda::operation(&node, card)?,
            };
            all = all.join(each);
        }
        Ok(Scratch(all.0.map(|bytes| bytes.checked_next_multiple_of(granularity).unwrap_or(usize::MAX))))
    }
}

/// A tensor, as far as its extents go.
struct Extents {
    dtype: DType,
    ne: [usize; 4],
    nb: [usize; 4],
}

/// An operation and its operands.
struct Node {
    op: sys::ggml_op,
    result: Extents,
    operands: Vec<Extents>,
    /// Asked to sum in F32.
    exact: bool,
}

impl Extents {
    /// # Safety
    /// `raw` is a live tensor.
    unsafe fn of(raw: *const sys::ggml_tensor) -> Result<Extents> {
        // SAFETY: the caller's promise.
        let (ne, nb, id) = unsafe { ((*raw).ne, (*raw).nb, (*raw).type_) };
        let dtype = DType::from_id(id).ok_or_else(|| Error::graph("scratch", format!("unknown type id {id}")))?;
        Ok(Extents { dtype, ne: ne.map(|extent| usize::try_from(extent).unwrap_or(0)), nb })
    }

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

/// The operations of `graph` that compute something.
fn nodes(graph: &Graph) -> Result<Vec<Node>> {
    let cgraph = graph.cgraph();
    // SAFETY: a live graph.
    let count = unsafe { sys::ggml_graph_n_nodes(cgraph) };
    let node = |i| {
        // SAFETY: a node of a live graph, whose operands live as long; `i` is below their number.
        unsafe {
            let raw = sys::ggml_graph_node(cgraph, i);
            let operands = (*raw).src.iter().take_while(|operand| !operand.is_null());
            Ok(Node {
                op: (*raw).op,
                result: Extents::of(raw)?,
                operands: operands.map(|&operand| Extents::of(operand)).collect::<Result<_>>()?,
                exact: (*raw).op_params[precision((*raw).op)] == sys::GGML_PREC_F32 as i32,
            })
        }
    };
    (0..count).map(node).collect()
}

/// Where an operation's parameters have its precision.
fn precision(op: sys::ggml_op) -> usize {
    if op == sys::GGML_OP_FLASH_ATTN_EXT { 3 } else { 0 }
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
        Error::graph("scratch", format!("nobody has read what operation {} allocates", self.op))
    }
}
