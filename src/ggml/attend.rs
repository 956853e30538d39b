//! Attention by pinhole's own [kernels](crate::kernels), as an operation of a graph on the CPU, where ggml's has a core of the
//! processor at less than half of what it can do.

use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ggml_sys as sys;
use half::f16;

use super::call::Call;
use super::halt::Halt;
use super::{CancelFlag, Graph, Tensor};
use crate::Result;
use crate::kernels::{Attended, Attention, Heads, Outputs, Precision, Rows};

/// How exact attention is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttentionMode {
    /// As exact as the model's weights make it worth: see [`Precision::Codes`] for networks with weights in blocks, and single
    /// precision for others.
    #[default]
    Auto,
    /// Single precision.
    Exact,
}

impl AttentionMode {
    /// All of them.
    pub const ALL: [AttentionMode; 2] = [AttentionMode::Auto, AttentionMode::Exact];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            AttentionMode::Auto => "auto",
            AttentionMode::Exact => "exact",
        }
    }
}

/// The attentions of a graph.
#[derive(Default)]
pub(super) struct Attentions {
    /// Boxed, since operations hold their addresses.
    #[allow(clippy::vec_box)]
    plans: Vec<Box<Plan>>,
    /// What their operations make.
    results: Vec<Tensor>,
    mode: AttentionMode,
    precision: Precision,
}

/// An attention, as its operation knows it.
struct Plan {
    attention: Attention,
    heads: Heads,
    /// The next tile that no thread has, and how many threads found none left. The last of them makes both new.
    next: AtomicUsize,
    done: AtomicUsize,
    halt: Arc<Halt>,
}

impl Graph {
    /// How exact attention is that is built from now on, where it is pinhole's. A new graph has [`AttentionMode::Exact`].
    pub fn set_attention(&self, mode: AttentionMode) {
        let call = Call::AutoAttention(mode == AttentionMode::Auto);
        self.noted_setting(call, || self.attentions.borrow_mut().mode = mode);
    }

    /// The graph is of a network whose weights are, or are not, `in_blocks`.
    pub(crate) fn set_weights_in_blocks(&self, in_blocks: bool) {
        self.noted_setting(Call::WeightsInBlocks(in_blocks), || {
            let mut attentions = self.attentions.borrow_mut();
            let codes = in_blocks && attentions.mode == AttentionMode::Auto;
            attentions.precision = if codes { Precision::Codes } else { Precision::Exact };
        });
    }

    /// What [`set_precision`](Self::set_precision) said, or the network's weights.
    pub(super) fn precision(&self) -> Precision {
        self.attentions.borrow().precision
    }

    /// What attention is computed with that is built from now on, where it is pinhole's.
    pub fn set_precision(&self, precision: Precision) {
        let call = Call::CodesInAttention(precision == Precision::Codes);
        self.noted_setting(call, || self.attentions.borrow_mut().precision = precision);
    }

    /// `softmax(scale * q k^T + mask) v`, or `None` where it is left to ggml. Operands fit each other (`flash_attention` has checked
    /// it) and are F32 with contiguous rows; the mask is contiguous F16.
    pub(super) fn own_attention(&self, qkv: [Tensor; 3], scale: f32, mask: Option<Tensor>) -> Result<Option<Tensor>> {
        let kernel = self.products.borrow().kernel().filter(|_| self.device().runs_own_operations());
        let ([width, queries, heads, batch], ks) = (self.shape(qkv[0])?.dims(), self.shape(qkv[1])?.dims());
        let sizes = Heads { width, queries, keys: ks[1], heads, groups: ks[2] };
        let precision = self.precision();
        let attention = kernel.and_then(|kernel| Attention::new(kernel, sizes, scale, precision));
        let Some(attention) = attention else { return Ok(None) };
        let plan = Box::new(Plan {
            attention,
            heads: sizes,
            next: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            halt: self.products.borrow().halt(),
        });
        let address: *const Plan = &raw const *plan;
        self.attentions.borrow_mut().plans.push(plan);
        let mut raws = qkv.iter().chain(&mask).map(|operand| self.raw(*operand)).collect::<Result<Vec<_>>>()?;
        let [n0, n1, n2, n3] = [width, heads, queries, batch].map(|extent| extent as i64);
        let result = self.node("flash_attention", |context| {
            let (raws, count, threads) = (raws.as_mut_ptr(), raws.len() as c_int, sys::GGML_N_TASKS_MAX);
            let (type_id, plan) = (sys::GGML_TYPE_F32, address.cast_mut().cast());
            // SAFETY: live tensors of the extents that the plan has (checked by the caller); the plan lives as long as the graph.
            unsafe { sys::ggml_custom_4d(context, type_id, n0, n1, n2, n3, raws, count, Some(run), threads, plan) }
        })?;
        self.attentions.borrow_mut().results.push(result);
        Ok(Some(result))
    }

    /// Whether `raw` is made by one of these operations.
    pub(super) fn is_own_attention(&self, raw: *mut sys::ggml_tensor) -> bool {
        let attentions = self.attentions.borrow();
        attentions.results.iter().any(|result| self.raw(*result).is_ok_and(|result| result == raw))
    }
}

/// Computes tile after tile that no other thread has.
unsafe extern "C-unwind" fn run(dst: *mut sys::ggml_tensor, _ith: c_int, nth: c_int, plan: *mut c_void) {
    // SAFETY: ggml hands over the tensor that it computes, and the address that `own_attention` gave it, of a plan that the graph
    // keeps.
    let (plan, dst) = unsafe { (&*plan.cast::<Plan>(), &*dst) };
    plan.halt.catch(|cancel| {
        let tiles = plan.attention.tiles();
        let all = tiles * dst.ne[3].unsigned_abs() as usize;
        let mut space = None;
        loop {
            let next = plan.next.fetch_add(1, Ordering::Relaxed);
            if next >= all || cancel.is_raised() {
                return Ok(());
            }
            let space = match &mut space {
                Some(space) => space,
                none => none.insert(plan.attention.space()?),
            };
            // SAFETY: operands are as `own_attention` describes them, and this tile is this thread's alone.
            let (attended, mut outputs) = unsafe { plan.item(dst, next / tiles, cancel) };
            plan.attention.compute(next % tiles, &attended, space, &mut outputs);
        }
    });
    if plan.done.fetch_add(1, Ordering::AcqRel) + 1 == nth.unsigned_abs() as usize {
        // Every thread has stopped claiming; ggml's barrier orders this before the next operation.
        plan.next.store(0, Ordering::Relaxed);
        plan.done.store(0, Ordering::Relaxed);
    }
}

impl Plan {
    /// The operands and the result of one item of the batch.
    ///
    /// # Safety
    /// `dst` is the result of this plan's operation, and no one else writes to the rows that the caller does.
    unsafe fn item<'a>(
        &self,
        dst: &'a sys::ggml_tensor,
        item: usize,
        cancel: &'a CancelFlag,
    ) -> (Attended<'a, RowsOf<'a>>, OutputsOf<'a>) {
        let Heads { width, queries, keys, heads, .. } = self.heads;
        // SAFETY: the operation has three operands or four.
        let operand = |i: usize| unsafe { dst.src[i].as_ref() };
        let rows = |i: usize| RowsOf { tensor: operand(i).unwrap_or(dst), item };
        let mask = operand(3).map(|mask| {
            // SAFETY: the mask is contiguous F16, and has so many numbers.
            unsafe { std::slice::from_raw_parts(mask.data.cast::<f16>(), keys * queries) }
        });
        // SAFETY: `dst` has so many numbers before those of this item.
        let start = unsafe { dst.data.cast::<f32>().add(item * width * heads * queries) };
        let attended = Attended { q: rows(0), k: rows(1), v: rows(2), mask };
        (attended, OutputsOf { start, width, heads, queries, cancel })
    }
}

/// The rows of one item of an operand's batch: F32, contiguous, in memory that no one writes to during the operation.
#[derive(Clone, Copy)]
struct RowsOf<'a> {
    tensor: &'a sys::ggml_tensor,
    item: usize,
}

impl Rows for RowsOf<'_> {
    #[inline(always)]
    fn row(&self, token: usize, head: usize) -> &[f32] {
        let [width, tokens, heads, items] = self.tensor.ne.map(|extent| extent.unsigned_abs() as usize);
        assert!(token < tokens && head < heads && self.item < items);
        let [_, nb1, nb2, nb3] = self.tensor.nb;
        let offset = token * nb1 + head * nb2 + self.item * nb3;
        // SAFETY: a row of the tensor, as just checked; ggml aligns tensors to 32 bytes, and strides of F32 are multiples of 4.
        unsafe { std::slice::from_raw_parts(self.tensor.data.cast::<u8>().add(offset).cast(), width) }
    }
}

/// The result's rows of one item of the batch.
struct OutputsOf<'a> {
    start: *mut f32,
    width: usize,
    heads: usize,
    queries: usize,
    cancel: &'a CancelFlag,
}

impl Outputs for OutputsOf<'_> {
    #[inline(always)]
    fn row(&mut self, query: usize, head: usize) -> &mut [f32] {
        assert!(query < self.queries && head < self.heads);
        let start = (query * self.heads + head) * self.width;
        // SAFETY: inside the result, as just checked, and in a tile that is this thread's alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), self.width) }
    }

    #[inline(always)]
    fn wanted(&self) -> bool {
        !self.cancel.is_raised()
    }
}
