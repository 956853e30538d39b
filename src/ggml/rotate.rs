//! Rotary positions in one pass on the CPU, where ggml's operations take four over as many intermediate results.

use std::ffi::{c_int, c_void};

use ggml_sys as sys;

use super::call::Call;
use super::{Graph, Tensor};
use crate::Result;

/// Which two numbers of a head are turned together.
#[derive(Clone, Copy)]
enum Pairs {
    /// Neighbours.
    Beside,
    /// One of each half.
    Halves,
}

impl Graph {
    /// Neighbouring pairs of `x [d, heads, tokens, batch]`, turned: `x cos + swap(x) sin`, where `swap` exchanges the two of
    /// each pair. `cos` and `sin` are `[d, 1, tokens]`, or with a table for each item of the batch, with the sign of the rotation in
    /// `sin`.
    pub fn rotate_pairs(&self, x: Tensor, cos: Tensor, sin: Tensor) -> Result<Tensor> {
        self.noted(
            || Call::RotatePairs(x.number(), cos.number(), sin.number()),
            || self.rotate("rotate_pairs", Pairs::Beside, [x, cos, sin]),
        )
    }

    /// The same where the two of each pair stand at the same place of both halves of a head.
    pub fn rotate_halves(&self, x: Tensor, cos: Tensor, sin: Tensor) -> Result<Tensor> {
        self.noted(
            || Call::RotateHalves(x.number(), cos.number(), sin.number()),
            || self.rotate("rotate_halves", Pairs::Halves, [x, cos, sin]),
        )
    }

    fn rotate(&self, op: &'static str, pairs: Pairs, [x, cos, sin]: [Tensor; 3]) -> Result<Tensor> {
        let dims @ [d, heads, tokens, batch] = self.shape(x)?.dims();
        for tensor in [x, cos, sin] {
            self.require_f32(op, tensor)?;
        }
        let table = self.shape(cos)?;
        let fits = [1, batch].iter().any(|&items| table == [d, 1, tokens, items]);
        if !d.is_multiple_of(2) || !fits || self.shape(sin)? != table {
            return Err(self.mismatch(op, x, cos));
        }
        if !self.device().runs_own_operations() {
            let swapped = match pairs {
                Pairs::Beside => {
                    let pairs = self.reshape(x, &[2, d / 2 * heads, tokens, batch])?;
                    self.reshape(self.roll(pairs, 1)?, &dims)?
                }
                Pairs::Halves => self.roll(x, (d / 2) as i32)?,
            };
            return self.add(self.mul(x, cos)?, self.mul(swapped, sin)?);
        }
        let operands = [self.rows_contiguous(x)?, self.rows_contiguous(cos)?, self.rows_contiguous(sin)?];
        let mut raws = [self.raw(operands[0])?, self.raw(operands[1])?, self.raw(operands[2])?];
        let [n0, n1, n2, n3] = dims.map(|extent| extent as i64);
        let run = match pairs {
            Pairs::Beside => rotate_pairs,
            Pairs::Halves => rotate_halves,
        };
        self.node(op, |context| {
            let (raws, count, threads) = (raws.as_mut_ptr(), raws.len() as c_int, sys::GGML_N_TASKS_MAX);
            let (type_id, none) = (sys::GGML_TYPE_F32, std::ptr::null_mut());
            // SAFETY: live F32 tensors with contiguous rows, of shapes that `rotate` expects (checked above).
            unsafe { sys::ggml_custom_4d(context, type_id, n0, n1, n2, n3, raws, count, Some(run), threads, none) }
        })
    }
}

unsafe extern "C-unwind" fn rotate_pairs(dst: *mut sys::ggml_tensor, ith: c_int, nth: c_int, _: *mut c_void) {
    // SAFETY: ggml hands over the tensor that it computes, made by `Graph::rotate`.
    unsafe { rotate(dst, ith, nth, turn_pairs) }
}

unsafe extern "C-unwind" fn rotate_halves(dst: *mut sys::ggml_tensor, ith: c_int, nth: c_int, _: *mut c_void) {
    // SAFETY: as above.
    unsafe { rotate(dst, ith, nth, turn_halves) }
}

/// Turns the tokens of thread `ith` of `nth`.
///
/// # Safety
/// `dst` is a tensor that is being computed, made by `Graph::rotate`.
unsafe fn rotate(
    dst: *mut sys::ggml_tensor,
    ith: c_int,
    nth: c_int,
    turn: impl Fn(&[f32], &[f32], &[f32], &mut [f32]),
) {
    // SAFETY: a live tensor, whose three operands `Graph::rotate` gave it.
    let (dst, x, cos, sin) = unsafe {
        let dst = &*dst;
        (dst, &*dst.src[0], &*dst.src[1], &*dst.src[2])
    };
    let [d, heads, tokens, batch] = dst.ne.map(|extent| extent.unsigned_abs() as usize);
    let tables = cos.ne[3].unsigned_abs() as usize;
    let (ith, nth) = (ith.unsigned_abs() as usize, nth.unsigned_abs() as usize);
    let all = tokens * batch;
    for position in all * ith / nth..all * (ith + 1) / nth {
        let (token, item) = (position % tokens, position / tokens);
        let row = |of: &sys::ggml_tensor, at: [usize; 3]| {
            let offset = at[0] * of.nb[1] + at[1] * of.nb[2] + at[2] * of.nb[3];
            // SAFETY: rows are contiguous, `at` lies inside the extents, and ggml aligns what is F32 for it.
            unsafe { of.data.cast::<u8>().add(offset).cast::<f32>() }
        };
        // SAFETY: `d` numbers of operands that no one writes to meanwhile; there is one table, or one for each item.
        let table = |of| unsafe { std::slice::from_raw_parts(row(of, [0, token, item % tables]), d) };
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
fn turn_pairs(x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
    let pairs = x.as_chunks::<2>().0.iter().zip(cos.as_chunks::<2>().0).zip(sin.as_chunks::<2>().0);
    for (([a, b], [cos_a, cos_b], [sin_a, sin_b]), out) in
        pairs.map(|((x, cos), sin)| (x, cos, sin)).zip(out.as_chunks_mut::<2>().0)
    {
        *out = [a * cos_a + b * sin_a, b * cos_b + a * sin_b];
    }
}

/// The same with the two of a pair in different halves.
fn turn_halves(x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
    let half = x.len() / 2;
    let (first, second) = out.split_at_mut(half);
    for (i, (a, b)) in first.iter_mut().zip(second).enumerate() {
        let (x, y) = (x[i], x[half + i]);
        *a = x * cos[i] + y * sin[i];
        *b = y * cos[half + i] + x * sin[half + i];
    }
}
