//! GELU and SiLU by pinhole's own [kernels](crate::kernels) on the CPU, where ggml's go through tables of F16 numbers or
//! round more often.

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use ggml_sys as sys;

use super::halt::Halt;
use super::{Graph, Tensor};
use crate::Result;
use crate::kernels::{Kernel, Nonlinearity};

/// Threads share out the numbers in whole chunks, so that no two of them write to the same line of a cache.
const CHUNK: usize = 256;

/// Numbers between two looks at whether they are still wanted: a millisecond's.
const STRETCH: usize = 1024 * CHUNK;

/// An operation of a graph that applies a [`Nonlinearity`].
pub(super) struct Elementwise {
    result: Tensor,
    name: &'static str,
    /// Boxed, since the operation holds its address.
    _plan: Box<Plan>,
}

/// What the operation is told.
struct Plan {
    function: Nonlinearity,
    kernel: Kernel,
    halt: Arc<Halt>,
}

impl Graph {
    /// `function` of each number of `a`, contiguous F32, or `None` where it is left to ggml. The operation is called `name`.
    pub(super) fn own_function(&self, name: &'static str, function: Nonlinearity, a: Tensor) -> Result<Option<Tensor>> {
        let kernel = self.products.borrow().kernel().filter(|_| self.device().runs_own_operations());
        let Some(kernel) = kernel else { return Ok(None) };
        let plan = Box::new(Plan { function, kernel, halt: self.products.borrow().halt() });
        let address: *const Plan = &raw const *plan;
        let mut operand = self.raw(a)?;
        let [n0, n1, n2, n3] = self.shape(a)?.dims().map(|extent| extent as i64);
        let result = self.node(name, |context| {
            let (operand, threads) = (&raw mut operand, sys::GGML_N_TASKS_MAX);
            let (type_id, plan) = (sys::GGML_TYPE_F32, address.cast_mut().cast());
            // SAFETY: a live, contiguous F32 tensor, and its own extents; the plan lives as long as the graph.
            unsafe { sys::ggml_custom_4d(context, type_id, n0, n1, n2, n3, operand, 1, Some(apply), threads, plan) }
        })?;
        self.elementwise.borrow_mut().push(Elementwise { result, name, _plan: plan });
        Ok(Some(result))
    }

    /// Calls `allocate`, which has ggml's allocator look at the graph. Meanwhile these operations pass for ggml's own
    /// elementwise ones: then a result takes the place of its operand if that is not needed any more.
    pub(super) fn while_in_place<R>(&self, allocate: impl FnOnce() -> R) -> R {
        self.name_elementwise(sys::GGML_OP_UNARY);
        let allocated = allocate();
        self.name_elementwise(sys::GGML_OP_CUSTOM);
        allocated
    }

    fn name_elementwise(&self, op: sys::ggml_op) {
        for own in self.elementwise.borrow().iter() {
            if let Ok(raw) = self.raw(own.result) {
                // SAFETY: a live tensor of this context. The allocator asks of an operation only whether it may work in place.
                unsafe { (*raw).op = op };
            }
        }
    }

    /// The name of the operation that makes `raw`, if it is one of these.
    pub(super) fn elementwise_name(&self, raw: *mut sys::ggml_tensor) -> Option<&'static str> {
        let all = self.elementwise.borrow();
        let own = all.iter().find(|own| self.raw(own.result).is_ok_and(|result| result == raw));
        own.map(|own| own.name)
    }
}

/// Applies the function to the numbers of thread `ith` of `nth`.
unsafe extern "C-unwind" fn apply(dst: *mut sys::ggml_tensor, ith: c_int, nth: c_int, plan: *mut c_void) {
    // SAFETY: ggml hands over the tensor that it computes, whose operand `own_function` gave it, and the address of a plan that
    // the graph keeps.
    let (plan, dst, x) = unsafe { (&*plan.cast::<Plan>(), &*dst, &*(*dst).src[0]) };
    let (ith, nth) = (ith.unsigned_abs() as usize, nth.unsigned_abs() as usize);
    let count: usize = dst.ne.iter().map(|extent| extent.unsigned_abs() as usize).product();
    let (from, to) = (x.data.cast::<f32>().cast_const(), dst.data.cast::<f32>());
    let chunks = count.div_ceil(CHUNK);
    let (start, end) = (chunks * ith / nth * CHUNK, count.min(chunks * (ith + 1) / nth * CHUNK));
    plan.halt.catch(|cancel| {
        for first in (start..end).step_by(STRETCH) {
            if cancel.is_raised() {
                break;
            }
            let len = STRETCH.min(end - first);
            // SAFETY: both tensors are contiguous and have `count` numbers, and this part of the result is this thread's alone. ggml's
            // allocator has put the result in the operand's place, and then no slice of the operand is made, or in memory that shares
            // nothing with it.
            let (operand, numbers) = unsafe {
                let operand = (from != to.cast_const()).then(|| std::slice::from_raw_parts(from.add(first), len));
                (operand, std::slice::from_raw_parts_mut(to.add(first), len))
            };
            match operand {
                Some(operand) => plan.function.apply_to(plan.kernel, operand, numbers),
                None => plan.function.apply(plan.kernel, numbers),
            }
        }
        Ok(())
    });
}
