//! Rotary positions in one pass on the CPU, where ggml's operations take four over as many intermediate results.

use std::ffi::{c_int, c_void};

use ggml_sys as sys;

use super::{Graph, Tensor};
use crate::Result;

impl Graph {
    /// Neighbouring pairs of `x [d, heads, tokens, batch]`, turned: `x cos + swap(x) sin`, where `swap` exchanges the two of
    /// each pair. `cos` and `sin` are `[d, 1, tokens]`, with the sign of the rotation in `sin`.
    pub fn rotate_pairs(&self, x: Tensor, cos: Tensor, sin: Tensor) -> Result<Tensor> {
        let dims @ [d, heads, tokens, batch] = self.shape(x)?.dims();
        let table = [d, 1, tokens, 1];
        for tensor in [x, cos, sin] {
            self.require_f32("rotate_pairs", tensor)?;
        }
        if !d.is_multiple_of(2) || self.shape(cos)? != table || self.shape(sin)? != table {
            return Err(self.mismatch("rotate_pairs", x, cos));
        }
        if !self.device().is_cpu() {
            let pairs = self.reshape(x, &[2, d / 2 * heads, tokens, batch])?;
            let swapped = self.reshape(self.roll(pairs, 1)?, &dims)?;
            return self.add(self.mul(x, cos)?, self.mul(swapped, sin)?);
        }
        let operands = [self.rows_contiguous(x)?, self.rows_contiguous(cos)?, self.rows_contiguous(sin)?];
        let mut raws = [self.raw(operands[0])?, self.raw(operands[1])?, self.raw(operands[2])?];
        let [n0, n1, n2, n3] = dims.map(|extent| extent as i64);
        self.node("rotate_pairs", |context| {
            let (raws, count, threads) = (raws.as_mut_ptr(), raws.len() as c_int, sys::GGML_N_TASKS_MAX);
            let (type_id, none) = (sys::GGML_TYPE_F32, std::ptr::null_mut());
            // SAFETY: live F32 tensors with contiguous rows, of shapes that `rotate` expects (checked above).
            unsafe { sys::ggml_custom_4d(context, type_id, n0, n1, n2, n3, raws, count, Some(rotate), threads, none) }
        })
    }
}

/// Turns the tokens of thread `ith` of `nth`.
unsafe extern "C-unwind" fn rotate(dst: *mut sys::ggml_tensor, ith: c_int, nth: c_int, _: *mut c_void) {
    // SAFETY: ggml hands over the tensor that it computes, whose three operands `rotate_pairs` gave it.
    let (dst, x, cos, sin) = unsafe {
        let dst = &*dst;
        (dst, &*dst.src[0], &*dst.src[1], &*dst.src[2])
    };
    let [d, heads, tokens, batch] = dst.ne.map(|extent| extent.unsigned_abs() as usize);
    let (ith, nth) = (ith.unsigned_abs() as usize, nth.unsigned_abs() as usize);
    let all = tokens * batch;
    for position in all * ith / nth..all * (ith + 1) / nth {
        let (token, item) = (position % tokens, position / tokens);
        let row = |of: &sys::ggml_tensor, at: [usize; 3]| {
            let offset = at[0] * of.nb[1] + at[1] * of.nb[2] + at[2] * of.nb[3];
            // SAFETY: rows are contiguous, `at` lies inside the extents, and ggml aligns what is F32 for it.
            unsafe { of.data.cast::<u8>().add(offset).cast::<f32>() }
        };
        // SAFETY: `d` numbers of operands that nobody writes to meanwhile.
        let table = |of| unsafe { std::slice::from_raw_parts(row(of, [0, token, 0]), d) };
        let (cos, sin) = (table(cos), table(sin));
        for head in 0..heads {
            let at = [head, token, item];
            // SAFETY: as above; the rows of `dst` for this token are this thread's alone, and no operand's: the allocator
            // overwrites none for an operation that it does not know.
            let (x, out) =
                unsafe { (std::slice::from_raw_parts(row(x, at), d), std::slice::from_raw_parts_mut(row(dst, at), d)) };
            turn(x, cos, sin, out);
        }
    }
}

/// Rounded as two products and a sum are.
fn turn(x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
    let pairs = x.as_chunks::<2>().0.iter().zip(cos.as_chunks::<2>().0).zip(sin.as_chunks::<2>().0);
    for (([a, b], [cos_a, cos_b], [sin_a, sin_b]), out) in
        pairs.map(|((x, cos), sin)| (x, cos, sin)).zip(out.as_chunks_mut::<2>().0)
    {
        *out = [a * cos_a + b * sin_a, b * cos_b + a * sin_b];
    }
}
