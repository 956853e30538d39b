//! The norm of a pixel's channels, and SiLU, by pinhole's own [kernel](crate::kernels::channel_norm_silu).

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use ggml_sys as sys;

use super::call::Call;
use super::halt::Halt;
use super::{Graph, Tensor};
use crate::kernels::{Kernel, PIXELS, channel_norm_silu};
use crate::{Error, Result};

/// Such a norm, as its operation knows it.
pub(super) struct ChannelNorm {
    kernel: Kernel,
    eps: f32,
    halt: Arc<Halt>,
}

impl Graph {
    /// `x [w, h, c, n]`: the root mean square of each pixel's channels is brought to 1, each channel multiplied with its `gamma [c]`, and
    /// SiLU taken.
    pub fn channel_norm_silu(&self, x: Tensor, gamma: Tensor, eps: f32) -> Result<Tensor> {
        self.noted(
            || Call::ChannelNormSilu(x.number(), gamma.number(), eps.to_bits()),
            || {
                self.require_f32("channel_norm", x)?;
                self.require_f32("channel_norm", gamma)?;
                let [w, h, c, n] = self.shape(x)?.dims();
                if self.shape(gamma)? != [c] || !self.is_contiguous(gamma)? {
                    return Err(self.mismatch("channel_norm", x, gamma));
                }
                let kernel = self.products.borrow().kernel().filter(|_| self.device().runs_own_operations());
                let Some(kernel) = kernel else {
                    let across = self.contiguous(self.permute(x, [1, 2, 0, 3])?)?;
                    let activated = self.silu(self.mul(self.rms_norm(across, eps)?, gamma)?)?;
                    return self.contiguous(self.permute(activated, [2, 0, 1, 3])?);
                };
                if !eps.is_finite() || eps < 0.0 {
                    return Err(Error::graph("channel_norm", format!("epsilon {eps}")));
                }
                let x = self.contiguous(x)?;
                let plan = Box::new(ChannelNorm { kernel, eps, halt: self.products.borrow().halt() });
                let address: *const ChannelNorm = &raw const *plan;
                self.channel_norms.borrow_mut().push(plan);
                let mut operands = [self.raw(x)?, self.raw(gamma)?];
                let [n0, n1, n2, n3] = [w, h, c, n].map(|extent| extent as i64);
                self.node("channel_norm", |context| {
                    let (operands, threads) = (operands.as_mut_ptr(), sys::GGML_N_TASKS_MAX);
                    let (type_id, plan) = (sys::GGML_TYPE_F32, address.cast_mut().cast());
                    // SAFETY: live, contiguous F32 tensors, a number of `gamma` for each channel; the plan lives as long as the graph.
                    unsafe {
                        sys::ggml_custom_4d(context, type_id, n0, n1, n2, n3, operands, 2, Some(run), threads, plan)
                    }
                })
            },
        )
    }
}

/// Normalises the pixels of thread `ith` of `nth`.
unsafe extern "C-unwind" fn run(dst: *mut sys::ggml_tensor, ith: c_int, nth: c_int, plan: *mut c_void) {
    // SAFETY: ggml hands over the tensor that it computes, whose operands `channel_norm_silu` gave it, and the address of a plan that
    // the graph keeps.
    let (plan, dst, x, gamma) = unsafe {
        let dst = &*dst;
        (&*plan.cast::<ChannelNorm>(), dst, &*dst.src[0], &*dst.src[1])
    };
    let [w, h, channels, pictures] = dst.ne.map(|extent| extent.unsigned_abs() as usize);
    let (plane, chunks) = (w * h, (w * h).div_ceil(PIXELS));
    let (ith, nth) = (ith.unsigned_abs() as usize, nth.unsigned_abs() as usize);
    let (from, to) = (x.data.cast::<f32>().cast_const(), dst.data.cast::<f32>());
    // SAFETY: contiguous, and a number for each channel.
    let gamma = unsafe { std::slice::from_raw_parts(gamma.data.cast::<f32>(), channels) };
    let all = chunks * pictures;
    plan.halt.catch(|cancel| {
        for chunk in all * ith / nth..all * (ith + 1) / nth {
            if cancel.is_raised() {
                break;
            }
            let first = chunk % chunks * PIXELS;
            let start = |channel: usize| (chunk / chunks * channels + channel) * plane + first;
            let len = PIXELS.min(plane - first);
            channel_norm_silu(
                plan.kernel,
                gamma,
                plan.eps,
                // SAFETY: inside the operand, which no one writes to.
                |channel| unsafe { std::slice::from_raw_parts(from.add(start(channel)), len) },
                |channel, numbers| {
                    // SAFETY: inside the result, which shares nothing with the operand; these pixels are this thread's alone.
                    unsafe { std::slice::from_raw_parts_mut(to.add(start(channel)), len) }.copy_from_slice(numbers);
                },
            );
        }
        Ok(())
    });
}
