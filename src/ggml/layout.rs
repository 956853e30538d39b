//! Rows taken, joined and turned round, views and copies: what moves numbers and computes none.
//!
//! Shapes are in ggml order, fastest first.

use ggml_sys as sys;
use pinhole_quant::DType;

use super::call::Call;
use super::ops::small;
use super::{Graph, Tensor, support};
use crate::tensor::Shape;
use crate::{Error, Result};

/// Moving and viewing.
impl Graph {
    /// Rows `indices [n]` (I32, a leaf) of `table [k, rows]`, of any matrix format: `[k, n]` in F32. Whether the table has
    /// these rows is seen when the graph runs.
    pub fn get_rows(&self, table: Tensor, indices: Tensor) -> Result<Tensor> {
        self.noted(
            || Call::GetRows(table.number(), indices.number()),
            || {
                let (dtype, shape) = (self.dtype(table)?, self.shape(table)?);
                if !support::matrix(dtype) {
                    return Err(Error::graph("get_rows", format!("no rows of {dtype}")));
                }
                if self.dtype(indices)? != DType::I32 || self.shape(indices)?.rank() > 1 || shape.rank() > 2 {
                    return Err(self.mismatch("get_rows", table, indices));
                }
                self.expect_rows(indices, shape.dims()[1])?;
                let (table, indices) = (self.raw(self.rows_contiguous(table)?)?, self.raw(indices)?);
                // SAFETY: live tensors, a matrix with contiguous rows and a vector of I32, whose numbers
                // `Backend::compute` looks at.
                self.node("get_rows", |context| unsafe { sys::ggml_get_rows(context, table, indices) })
            },
        )
    }

    /// `a` and `b` one after the other along dimension `dim`; all other extents are equal.
    pub fn concat(&self, a: Tensor, b: Tensor, dim: usize) -> Result<Tensor> {
        self.noted(
            || Call::Concat(a.number(), b.number(), dim),
            || {
                self.require_f32("concat", a)?;
                self.require_f32("concat", b)?;
                let (a_dims, b_dims) = (self.shape(a)?.dims(), self.shape(b)?.dims());
                if dim >= 4 || (0..4).any(|i| i != dim && a_dims[i] != b_dims[i]) {
                    return Err(self.mismatch("concat", a, b));
                }
                let (raw_a, raw_b, raw_dim) = (self.raw(a)?, self.raw(b)?, small(dim)?);
                // SAFETY: live F32 tensors that differ along `dim` only.
                let both =
                    self.node("concat", |context| unsafe { sys::ggml_concat(context, raw_a, raw_b, raw_dim) })?;
                if dim == 0 {
                    self.products.borrow_mut().note_concat(both, [a, b]);
                }
                Ok(both)
            },
        )
    }

    /// Every row of `a` moved round by `shift` places: element `i` goes to `(i + shift) mod k`.
    pub fn roll(&self, a: Tensor, shift: i32) -> Result<Tensor> {
        self.noted(
            || Call::Roll(a.number(), shift),
            || {
                self.require_f32("roll", a)?;
                if shift.unsigned_abs() as usize >= self.shape(a)?.row() {
                    return Err(Error::graph("roll", format!("{shift} places in rows of {}", self.shape(a)?.row())));
                }
                let raw = self.raw(self.rows_contiguous(a)?)?;
                // SAFETY: a live F32 tensor with contiguous rows; the shift is shorter than a row.
                self.node("roll", |context| unsafe { sys::ggml_roll(context, raw, shift, 0, 0, 0) })
            },
        )
    }

    /// The same numbers under another shape. `a` is copied first where it is not contiguous.
    pub fn reshape(&self, a: Tensor, dims: &[usize]) -> Result<Tensor> {
        self.noted(
            || Call::Reshape(a.number(), dims.to_vec()),
            || {
                let shape =
                    Shape::new(dims).ok_or_else(|| Error::graph("reshape", format!("impossible shape {dims:?}")))?;
                let dtype = self.dtype(a)?;
                if shape.elements() != self.shape(a)?.elements() || shape.bytes(dtype).is_none() {
                    return Err(Error::graph("reshape", format!("{dtype} {} as {shape}", self.shape(a)?)));
                }
                let [n0, n1, n2, n3] = shape.dims().map(|extent| extent as i64);
                let raw = self.raw(self.contiguous(a)?)?;
                // SAFETY: a live, contiguous tensor of as many elements.
                self.register("reshape", |context| unsafe { sys::ggml_reshape_4d(context, raw, n0, n1, n2, n3) })
            },
        )
    }

    /// `a` with dimension `i` moved to place `axes[i]`: a view.
    pub fn permute(&self, a: Tensor, axes: [usize; 4]) -> Result<Tensor> {
        self.noted(
            || Call::Permute(a.number(), axes),
            || {
                let mut seen = axes;
                seen.sort_unstable();
                if seen != [0, 1, 2, 3] {
                    return Err(Error::graph("permute", format!("{axes:?} is no order of four dimensions")));
                }
                // Rows of blocks cannot be cut into numbers, and ggml would copy them as if they could.
                if axes[0] != 0 && self.dtype(a)?.is_quantized() {
                    return Err(Error::graph(
                        "permute",
                        format!("the rows of {} cannot be turned round", self.dtype(a)?),
                    ));
                }
                let [x0, x1, x2, x3] = axes.map(|axis| axis as i32);
                let raw = self.raw(a)?;
                // SAFETY: a live tensor and a permutation.
                self.register("permute", |context| unsafe { sys::ggml_permute(context, raw, x0, x1, x2, x3) })
            },
        )
    }

    /// Part of `a`: `len` of the extent of dimension `dim`, from `start` on. A view.
    pub fn slice(&self, a: Tensor, dim: usize, start: usize, len: usize) -> Result<Tensor> {
        self.noted(
            || Call::Slice(a.number(), dim, start, len),
            || {
                let mut dims = self.shape(a)?.dims();
                let fits = dim < 4 && len > 0 && start.checked_add(len).is_some_and(|end| end <= dims[dim]);
                let dtype = self.dtype(a)?;
                if !fits || (dim == 0 && dtype.is_quantized()) {
                    let found = self.shape(a)?;
                    return Err(Error::graph(
                        "slice",
                        format!("{len} from {start} on of dimension {dim} of {dtype} {found}"),
                    ));
                }
                // ggml's views have rows whose neighbours lie side by side, whatever those of `a` do.
                let a = self.rows_contiguous(a)?;
                dims[dim] = len;
                let [n0, n1, n2, n3] = dims.map(|extent| extent as i64);
                let strides @ [_, nb1, nb2, nb3] = self.strides(a)?;
                let raw = self.raw(a)?;
                let offset = start * strides[dim]; // inside `a`, whose size in bytes fits
                self.register("slice", |context| {
                    // SAFETY: the extents shrink along one dimension within `a`, and the strides are `a`'s own.
                    unsafe { sys::ggml_view_4d(context, raw, n0, n1, n2, n3, nb1, nb2, nb3, offset) }
                })
            },
        )
    }

    /// Rows split into `parts` equal parts: `[parts * k, n, m]` becomes `[k, parts, n, m]`. A view; rows may be apart.
    pub fn split_rows(&self, a: Tensor, parts: usize) -> Result<Tensor> {
        self.noted(
            || Call::SplitRows(a.number(), parts),
            || {
                self.require_f32("split_rows", a)?;
                let [row, n, m, batch] = self.shape(a)?.dims();
                if parts == 0 || !row.is_multiple_of(parts) || batch != 1 {
                    return Err(Error::graph("split_rows", format!("{} into {parts} parts a row", self.shape(a)?)));
                }
                let a = self.rows_contiguous(a)?;
                let [nb0, nb1, nb2, _] = self.strides(a)?;
                let part_bytes = nb0 * (row / parts);
                let [k, parts, n, m] = [row / parts, parts, n, m].map(|extent| extent as i64);
                let raw = self.raw(a)?;
                self.register("split_rows", |context| {
                    // SAFETY: every row is contiguous, so its parts are `k` numbers apart; nothing lies outside `a`.
                    unsafe { sys::ggml_view_4d(context, raw, k, parts, n, m, part_bytes, nb1, nb2, 0) }
                })
            },
        )
    }

    /// `a` itself where its numbers lie in order, else a copy in which they do.
    pub fn contiguous(&self, a: Tensor) -> Result<Tensor> {
        self.noted(
            || Call::Contiguous(a.number()),
            || {
                let raw = self.raw(a)?;
                if self.is_contiguous(a)? {
                    if self.strides(a)? == self.usual_strides(a)? {
                        return Ok(a);
                    }
                    // Where an extent is 1, ggml takes any stride for contiguous, and then some operations assert that it is the
                    // usual one. The same shape again has it.
                    let [n0, n1, n2, n3] = self.shape(a)?.dims().map(|extent| extent as i64);
                    // SAFETY: a live, contiguous tensor, and its own extents.
                    return self
                        .register("cont", |context| unsafe { sys::ggml_reshape_4d(context, raw, n0, n1, n2, n3) });
                }
                // SAFETY: a live tensor.
                self.node("cont", |context| unsafe { sys::ggml_cont(context, raw) })
            },
        )
    }

    /// The strides of a tensor that is no view and has the format and shape of `a`.
    fn usual_strides(&self, a: Tensor) -> Result<[usize; 4]> {
        let (dtype, [n0, n1, n2, _]) = (self.dtype(a)?, self.shape(a)?.dims());
        let row = n0 / dtype.block_size() * dtype.block_bytes();
        Ok([dtype.block_bytes(), row, row * n1, row * n1 * n2])
    }

    /// `from` written over `to`, which has the same shape. Both are F32: ggml aborts on many other pairs of formats, some of
    /// which it claims to support.
    pub(super) fn copy(&self, from: Tensor, to: Tensor) -> Result<Tensor> {
        self.require_f32("store", from)?;
        self.require_f32("store", to)?;
        if self.shape(from)? != self.shape(to)? {
            return Err(self.mismatch("copy", from, to));
        }
        let (from, to) = (self.raw(from)?, self.raw(to)?);
        // SAFETY: live F32 tensors of one shape.
        self.node("copy", |context| unsafe { sys::ggml_cpy(context, from, to) })
    }

    /// `a`, or a copy in order where neighbours within a row are apart.
    pub(super) fn rows_contiguous(&self, a: Tensor) -> Result<Tensor> {
        let [nb0, nb1, ..] = self.strides(a)?;
        let dtype = self.dtype(a)?;
        if nb0 == dtype.block_bytes() && (nb1 >= nb0 || self.shape(a)?.dims()[1] == 1) {
            return Ok(a);
        }
        self.contiguous(a)
    }
}
