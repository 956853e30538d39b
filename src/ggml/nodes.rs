//! The operations of a graph, as the [table of scratch memory](super::scratch) reads them. That table names no graph and
//! no backend.

use ggml_sys as sys;
use pinhole_quant::DType;

use super::Graph;
use super::scratch::{Extents, Node};
use crate::{Error, Result};

/// The operations of `graph` that compute something.
pub(super) fn of(graph: &Graph) -> impl Iterator<Item = Result<Node>> {
    let cgraph = graph.cgraph();
    // SAFETY: a live graph.
    let count = unsafe { sys::ggml_graph_n_nodes(cgraph) };
    (0..count).map(move |i| {
        // SAFETY: a node of a live graph, whose operands live as long; `i` is below their number.
        unsafe {
            let raw = sys::ggml_graph_node(cgraph, i);
            let operands = (*raw).src.iter().take_while(|operand| !operand.is_null());
            Ok(Node {
                op: (*raw).op,
                result: extents(raw)?,
                operands: operands.map(|&operand| extents(operand)).collect::<Result<_>>()?,
                exact: (*raw).op_params[precision((*raw).op)] == sys::GGML_PREC_F32 as i32,
            })
        }
    })
}

impl Graph {
    /// Multiplications and additions of its products, convolutions and attentions.
    ///
    /// # Errors
    /// [`Error::Graph`] for a tensor of a format that is not known.
    pub(crate) fn arithmetic(&self) -> Result<u64> {
        of(self).try_fold(0, |sum: u64, node| Ok(sum.saturating_add(arithmetic(&node?))))
    }
}

/// Those of one operation: a product, of ggml's or of pinhole's own; or attention, which has two.
fn arithmetic(node: &Node) -> u64 {
    let [first, second, ..] = &node.operands[..] else { return 0 };
    let all = |extents: &Extents| extents.ne.iter().map(|&extent| extent as u64).fold(1, u64::saturating_mul);
    let results = all(&node.result);
    let is_attention = node.operands.get(2).is_some_and(|third| third.ne == second.ne)
        && [0, 2, 1, 3].map(|dim| first.ne[dim]) == node.result.ne;
    match node.op {
        sys::GGML_OP_FLASH_ATTN_EXT => 4 * results.saturating_mul(second.ne[1] as u64),
        sys::GGML_OP_CUSTOM if is_attention => 4 * results.saturating_mul(second.ne[1] as u64),
        sys::GGML_OP_MUL_MAT => 2 * results.saturating_mul(first.ne[0] as u64),
        sys::GGML_OP_CUSTOM if first.ne[1] == node.result.ne[0] && node.result.dtype == DType::F32 => {
            2 * results.saturating_mul(first.ne[0] as u64)
        }
        // Kernels of convolutions are four-dimensional.
        sys::GGML_OP_CUSTOM if first.ne[3] > 1 && first.ne[3] == node.result.ne[2] => {
            2 * results.saturating_mul(all(first) / first.ne[3] as u64)
        }
        _ => 0,
    }
}

/// Where an operation's parameters have its precision.
fn precision(op: sys::ggml_op) -> usize {
    if op == sys::GGML_OP_FLASH_ATTN_EXT { 3 } else { 0 }
}

/// The extents of a tensor.
///
/// # Safety
/// `raw` is a live tensor.
unsafe fn extents(raw: *const sys::ggml_tensor) -> Result<Extents> {
    // SAFETY: the caller's promise.
    let (ne, nb, id) = unsafe { ((*raw).ne, (*raw).nb, (*raw).type_) };
    let dtype = DType::from_id(id).ok_or_else(|| Error::graph("scratch", format!("unknown type id {id}")))?;
    Ok(Extents { dtype, ne: ne.map(|extent| usize::try_from(extent).unwrap_or(0)), nb })
}
