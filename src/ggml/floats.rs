//! Matrix products with weights in floating point by pinhole's own [kernels](crate::kernels), each one operation of a graph.

use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ggml_sys as sys;

use super::halt::Halt;
use super::product::row_of;
use super::{Graph, Tensor};
use crate::Result;
use crate::kernels::{FloatProduct, Kernel, Tokens};

/// The products of a graph.
#[derive(Default)]
pub(super) struct FloatProducts {
    /// Boxed, since operations hold their addresses.
    #[allow(clippy::vec_box)]
    plans: Vec<Box<Plan>>,
    /// What their operations make.
    results: Vec<Tensor>,
}

/// A product, as its operation knows it.
struct Plan {
    product: FloatProduct,
    /// The next piece that no thread has, and how many threads found none left. The last of them makes both new.
    next: AtomicUsize,
    done: AtomicUsize,
    halt: Arc<Halt>,
}

impl Graph {
    /// `w x`, and `bias` added, by `kernel`, or `None` where there is none for such weights. Operands are as for
    /// [`own_product`](Self::own_product), and `w` has two dimensions.
    pub(super) fn float_product(
        &self,
        kernel: Kernel,
        w: Tensor,
        x: Tensor,
        bias: Option<Tensor>,
    ) -> Result<Option<Tensor>> {
        let ([k, rows, ..], x_dims) = (self.shape(w)?.dims(), self.shape(x)?.dims());
        let tokens = x_dims[1..].iter().product(); // of a tensor that exists
        let product = FloatProduct::new(kernel, self.dtype(w)?, k, rows, tokens);
        let Some(product) = product else { return Ok(None) };
        let halt = self.products.borrow().halt();
        let plan = Box::new(Plan { product, next: AtomicUsize::new(0), done: AtomicUsize::new(0), halt });
        let address: *const Plan = &raw const *plan;
        self.floats.borrow_mut().plans.push(plan);
        let operands = [w, x].into_iter().chain(bias);
        let mut raws = operands.map(|operand| self.raw(operand)).collect::<Result<Vec<_>>>()?;
        let [m, n1, n2, n3] = [rows, x_dims[1], x_dims[2], x_dims[3]].map(|extent| extent as i64);
        let result = self.node("mul_mat", |context| {
            let (raws, count, threads) = (raws.as_mut_ptr(), raws.len() as c_int, sys::GGML_N_TASKS_MAX);
            let (type_id, plan) = (sys::GGML_TYPE_F32, address.cast_mut().cast());
            // SAFETY: live tensors of the extents that the plan has; the plan lives as long as the graph.
            unsafe { sys::ggml_custom_4d(context, type_id, m, n1, n2, n3, raws, count, Some(run), threads, plan) }
        })?;
        self.floats.borrow_mut().results.push(result);
        Ok(Some(result))
    }

    /// Whether `raw` is made by one of these operations.
    pub(super) fn is_float_product(&self, raw: *mut sys::ggml_tensor) -> bool {
        let floats = self.floats.borrow();
        floats.results.iter().any(|result| self.raw(*result).is_ok_and(|result| result == raw))
    }
}

/// Computes piece after piece that no other thread has.
unsafe extern "C-unwind" fn run(dst: *mut sys::ggml_tensor, _ith: c_int, nth: c_int, plan: *mut c_void) {
    // SAFETY: ggml hands over the tensor that it computes, and the address that `float_product` gave it, of a plan that the graph
    // keeps; the operation has two operands or three.
    let (plan, dst, w, x) = unsafe {
        let dst = &*dst;
        (&*plan.cast::<Plan>(), dst, &*dst.src[0], &*dst.src[1])
    };
    plan.halt.catch(|cancel| {
        let product = &plan.product;
        let mut space = None;
        loop {
            let piece = plan.next.fetch_add(1, Ordering::Relaxed);
            if piece >= product.pieces() || cancel.is_raised() {
                return Ok(());
            }
            let space = match &mut space {
                Some(space) => space,
                none => none.insert(product.space()?),
            };
            // SAFETY: `w` has the product's rows and `dst` its rows and tokens, a third operand as many numbers as there are rows;
            // the piece is this thread's alone.
            unsafe {
                let weights = |row: usize| {
                    std::slice::from_raw_parts(w.data.cast::<u8>().add(row * w.nb[1]), product.row_bytes())
                };
                let [rows, _] = product.piece(piece);
                let bias = dst.src[2].as_ref();
                let bias = bias.map(|bias| std::slice::from_raw_parts(bias.data.cast::<f32>(), product.rows()));
                product.compute(piece, weights, &TokensOf(x), space, |token, numbers| {
                    let start = dst.data.cast::<f32>().add(token * product.rows() + rows.start);
                    let out = std::slice::from_raw_parts_mut(start, numbers.len());
                    match bias {
                        Some(bias) => {
                            let sums = numbers.iter().zip(&bias[rows.clone()]);
                            out.iter_mut().zip(sums).for_each(|(out, (sum, bias))| *out = sum + bias);
                        }
                        None => out.copy_from_slice(numbers),
                    }
                });
            }
        }
    });
    if plan.done.fetch_add(1, Ordering::AcqRel) + 1 == nth.unsigned_abs() as usize {
        // Every thread has stopped claiming; ggml's barrier orders this before the next operation.
        plan.next.store(0, Ordering::Relaxed);
        plan.done.store(0, Ordering::Relaxed);
    }
}

/// The activations: F32 with contiguous rows, in memory that no one writes to during the operation.
struct TokensOf<'a>(&'a sys::ggml_tensor);

impl Tokens for TokensOf<'_> {
    #[inline(always)]
    fn token(&self, i: usize) -> &[f32] {
        let [_, n1, n2, n3] = self.0.ne.map(|extent| extent.unsigned_abs() as usize);
        assert!(i < n1 * n2 * n3);
        // SAFETY: a row of the tensor, as just checked.
        unsafe { row_of(self.0, i) }
    }
}
