//! The operations that models are written in, each checked before ggml sees it.
//!
//! Shapes are in ggml order, fastest first. Unless said otherwise operands are F32 and so is the result.

use ggml_sys as sys;
use pinhole_quant::DType;

use super::call::Call;
use super::{Graph, Tensor, support};
use crate::kernels::Nonlinearity;
use crate::tensor::Shape;
use crate::{Error, Result};

/// A one-operand operation of ggml's.
type Unary = unsafe extern "C-unwind" fn(*mut sys::ggml_context, *mut sys::ggml_tensor) -> *mut sys::ggml_tensor;

/// A two-operand operation of ggml's.
type Binary = unsafe extern "C-unwind" fn(
    *mut sys::ggml_context,
    *mut sys::ggml_tensor,
    *mut sys::ggml_tensor,
) -> *mut sys::ggml_tensor;

/// Elementwise functions, and the matrix product.
impl Graph {
    /// `a + b`, with `b` repeated where its extents divide `a`'s.
    pub fn add(&self, a: Tensor, b: Tensor) -> Result<Tensor> {
        self.noted(|| Call::Add(a.number(), b.number()), || self.broadcast("add", sys::ggml_add, a, b))
    }

    /// `a - b`, with `b` repeated where its extents divide `a`'s.
    pub fn sub(&self, a: Tensor, b: Tensor) -> Result<Tensor> {
        self.noted(|| Call::Sub(a.number(), b.number()), || self.broadcast("sub", sys::ggml_sub, a, b))
    }

    /// `a * b` element by element, with `b` repeated where its extents divide `a`'s.
    pub fn mul(&self, a: Tensor, b: Tensor) -> Result<Tensor> {
        self.noted(|| Call::Mul(a.number(), b.number()), || self.broadcast("mul", sys::ggml_mul, a, b))
    }

    /// `s * a`.
    pub fn scale(&self, a: Tensor, s: f32) -> Result<Tensor> {
        self.scale_bias(a, s, 0.0)
    }

    /// `s * a + b`.
    pub fn scale_bias(&self, a: Tensor, s: f32, b: f32) -> Result<Tensor> {
        self.noted(
            || Call::ScaleBias(a.number(), s.to_bits(), b.to_bits()),
            || {
                self.require_f32("scale", a)?;
                let a = self.contiguous(a)?;
                let raw = self.raw(a)?;
                // SAFETY: a live F32 tensor, contiguous.
                self.node("scale", |context| unsafe { sys::ggml_scale_bias(context, raw, s, b) })
            },
        )
    }

    /// `a * sigmoid(a)`.
    pub fn silu(&self, a: Tensor) -> Result<Tensor> {
        self.noted(|| Call::Silu(a.number()), || self.unary("silu", Nonlinearity::Silu, sys::ggml_silu, a))
    }

    /// The hyperbolic tangent.
    pub fn tanh(&self, a: Tensor) -> Result<Tensor> {
        self.noted(
            || Call::Tanh(a.number()),
            || {
                self.require_f32("tanh", a)?;
                let raw = self.raw(self.contiguous(a)?)?;
                // SAFETY: a live, contiguous F32 tensor.
                self.node("tanh", |context| unsafe { sys::ggml_tanh(context, raw) })
            },
        )
    }

    /// The tanh approximation of GELU.
    pub fn gelu_tanh(&self, a: Tensor) -> Result<Tensor> {
        self.noted(|| Call::GeluTanh(a.number()), || self.unary("gelu", Nonlinearity::GeluTanh, sys::ggml_gelu, a))
    }

    /// GELU by the error function.
    pub fn gelu_erf(&self, a: Tensor) -> Result<Tensor> {
        self.noted(
            || Call::GeluErf(a.number()),
            || self.unary("gelu_erf", Nonlinearity::GeluErf, sys::ggml_gelu_erf, a),
        )
    }

    /// `a * sigmoid(1.702 a)`.
    pub fn gelu_quick(&self, a: Tensor) -> Result<Tensor> {
        self.noted(
            || Call::GeluQuick(a.number()),
            || self.unary("gelu_quick", Nonlinearity::GeluQuick, sys::ggml_gelu_quick, a),
        )
    }

    /// `a`, or 0 where it is negative.
    pub fn relu(&self, a: Tensor) -> Result<Tensor> {
        self.noted(|| Call::Relu(a.number()), || self.unary("relu", Nonlinearity::Relu, sys::ggml_relu, a))
    }

    /// `w [k, m]` times `x [k, n, ..]` gives `[m, n, ..]`: PyTorch's `x @ w.T`. `w` may have any matrix format of
    /// the [table](support::matrix); its third and fourth extents are repeated over those of `x`.
    pub fn mul_mat(&self, w: Tensor, x: Tensor) -> Result<Tensor> {
        self.noted(
            || Call::MulMat(w.number(), x.number()),
            || {
                self.require_f32("mul_mat", x)?;
                let dtype = self.dtype(w)?;
                if !support::matrix(dtype) {
                    return Err(Error::graph("mul_mat", format!("no matrix product for {dtype}")));
                }
                let ([k, _, w2, w3], [kx, _, x2, x3]) = (self.shape(w)?.dims(), self.shape(x)?.dims());
                if k != kx || !x2.is_multiple_of(w2) || !x3.is_multiple_of(w3) {
                    return Err(self.mismatch("mul_mat", w, x));
                }
                let [w_nb0, w_nb1, ..] = self.strides(w)?;
                if w_nb0 != dtype.block_bytes() || w_nb0 > w_nb1 {
                    return Err(Error::graph("mul_mat", "the left matrix is transposed"));
                }
                let x = self.rows_contiguous(x)?;
                if let Some(product) = self.own_product(w, x, None)? {
                    return Ok(product);
                }
                self.ggml_product(w, x)
            },
        )
    }

    /// `w x + bias`, `bias [m]`: as [`mul_mat`](Self::mul_mat) and [`add`](Self::add), in one pass where pinhole's kernels multiply.
    pub fn linear(&self, w: Tensor, x: Tensor, bias: Tensor) -> Result<Tensor> {
        self.noted(
            || Call::Linear(w.number(), x.number(), bias.number()),
            || {
                let rows = self.shape(w)?.dims()[1];
                let fits =
                    self.shape(bias)? == [rows] && self.dtype(bias)? == DType::F32 && self.is_contiguous(bias)?;
                let multiplies = self.dtype(x)? == DType::F32 && self.shape(w)?.dims()[0] == self.shape(x)?.dims()[0];
                if fits
                    && multiplies
                    && self.is_contiguous_in_rows(w)?
                    && let Some(product) = self.own_product(w, self.rows_contiguous(x)?, Some(bias))?
                {
                    return Ok(product);
                }
                self.add(self.mul_mat(w, x)?, bias)
            },
        )
    }

    /// Whether rows are whole blocks side by side, and rows follow each other.
    fn is_contiguous_in_rows(&self, w: Tensor) -> Result<bool> {
        let [nb0, nb1, ..] = self.strides(w)?;
        Ok(nb0 == self.dtype(w)?.block_bytes() && nb0 <= nb1)
    }

    fn ggml_product(&self, w: Tensor, x: Tensor) -> Result<Tensor> {
        let (w, x) = (self.raw(w)?, self.raw(x)?);
        // SAFETY: live tensors whose formats, extents and strides ggml accepts (checked above).
        let product = self.node("mul_mat", |context| unsafe { sys::ggml_mul_mat(context, w, x) })?;
        let raw = self.raw(product)?;
        // Sums in F16 overflow in some models, T5 among them.
        // SAFETY: a live matrix product.
        unsafe { sys::ggml_prec_set_acc(raw, sys::GGML_PREC_F32) };
        Ok(product)
    }

    /// `function` of each number, by a kernel of pinhole's if the graph has one, or by `ggml`'s operation.
    fn unary(&self, op: &'static str, function: Nonlinearity, ggml: Unary, a: Tensor) -> Result<Tensor> {
        self.require_f32(op, a)?;
        let a = self.contiguous(a)?;
        if let Some(own) = self.own_function(op, function, a)? {
            return Ok(own);
        }
        let raw = self.raw(a)?;
        // SAFETY: a live, contiguous F32 tensor.
        self.node(op, |context| unsafe { ggml(context, raw) })
    }

    fn broadcast(&self, op: &'static str, function: Binary, a: Tensor, b: Tensor) -> Result<Tensor> {
        self.require_f32(op, a)?;
        self.require_f32(op, b)?;
        let divides = self.shape(a)?.dims().iter().zip(self.shape(b)?.dims()).all(|(a, b)| a.is_multiple_of(b));
        if !divides {
            return Err(self.mismatch(op, a, b));
        }
        let (a, b) = (self.rows_contiguous(a)?, self.rows_contiguous(b)?);
        let (a, b) = (self.raw(a)?, self.raw(b)?);
        // SAFETY: live F32 tensors; `b` repeats into `a`; rows of both are contiguous.
        self.node(op, |context| unsafe { function(context, a, b) })
    }
}

/// Normalisation.
impl Graph {
    /// Rows of mean 0 and variance 1.
    pub fn norm(&self, a: Tensor, eps: f32) -> Result<Tensor> {
        self.noted(
            || Call::Norm(a.number(), eps.to_bits()),
            || {
                self.require_f32("norm", a)?;
                require_epsilon("norm", eps)?;
                let raw = self.raw(self.rows_contiguous(a)?)?;
                // SAFETY: a live F32 tensor with contiguous rows.
                self.node("norm", |context| unsafe { sys::ggml_norm(context, raw, eps) })
            },
        )
    }

    /// Rows of mean square 1.
    pub fn rms_norm(&self, a: Tensor, eps: f32) -> Result<Tensor> {
        self.noted(
            || Call::RmsNorm(a.number(), eps.to_bits()),
            || {
                self.require_f32("rms_norm", a)?;
                require_epsilon("rms_norm", eps)?;
                let raw = self.raw(self.rows_contiguous(a)?)?;
                // SAFETY: a live F32 tensor with contiguous rows.
                self.node("rms_norm", |context| unsafe { sys::ggml_rms_norm(context, raw, eps) })
            },
        )
    }

    /// `a [w, h, c, n]` with each of `groups` groups of channels brought to mean 0 and variance 1.
    pub fn group_norm(&self, a: Tensor, groups: usize, eps: f32) -> Result<Tensor> {
        self.noted(
            || Call::GroupNorm(a.number(), groups, eps.to_bits()),
            || {
                self.require_f32("group_norm", a)?;
                require_epsilon("group_norm", eps)?;
                let channels = self.shape(a)?.dims()[2];
                if groups == 0 || !channels.is_multiple_of(groups) {
                    return Err(Error::graph(
                        "group_norm",
                        format!("{groups} groups do not divide {channels} channels"),
                    ));
                }
                let raw = self.raw(self.contiguous(a)?)?;
                let groups = small(groups)?;
                // SAFETY: a live, contiguous F32 tensor; the groups divide its channels.
                self.node("group_norm", |context| unsafe { sys::ggml_group_norm(context, raw, groups, eps) })
            },
        )
    }

    /// Rows of `softmax(scale * a + mask)`; `mask [n, >= m, ..]`, of F32 or F16, is repeated over `a [n, m, ..]`'s third and fourth
    /// extents.
    pub fn soft_max(&self, a: Tensor, mask: Option<Tensor>, scale: f32) -> Result<Tensor> {
        self.noted(
            || Call::SoftMax(a.number(), mask.map(|mask| mask.number()), scale.to_bits()),
            || {
                self.require_f32("soft_max", a)?;
                if let Some(mask) = mask {
                    if self.dtype(mask)? != DType::F16 {
                        self.require_f32("soft_max", mask)?;
                    }
                    let ([n, m, a2, a3], [mn, mm, m2, m3]) = (self.shape(a)?.dims(), self.shape(mask)?.dims());
                    if mn != n || mm < m || !a2.is_multiple_of(m2) || !a3.is_multiple_of(m3) {
                        return Err(self.mismatch("soft_max", a, mask));
                    }
                }
                let raw = self.raw(self.contiguous(a)?)?;
                let mask = match mask {
                    Some(mask) => self.raw(self.contiguous(mask)?)?,
                    None => std::ptr::null_mut(),
                };
                // SAFETY: live, contiguous tensors, of F32 except that the mask may be F16; it covers `a` (checked above) or is absent.
                self.node("soft_max", |context| unsafe { sys::ggml_soft_max_ext(context, raw, mask, scale, 0.0) })
            },
        )
    }
}

/// What ggml's CPU backend takes to copy patches into (`GGML_IM2COL_WORK_SIZE`). It asserts while it computes that a patch
/// and its result fit.
const CONV_WORK_BYTES: usize = 16 << 20;

/// Pictures.
impl Graph {
    /// The convolution of `x [w, h, c, n]` with `kernel [kw, kh, c, m]`, zeros around: `[w', h', m, n]`.
    pub fn conv_2d(&self, kernel: Tensor, x: Tensor, stride: usize, padding: usize) -> Result<Tensor> {
        self.conv_2d_padded(kernel, x, stride, [padding, padding])
    }

    /// As [`conv_2d`](Self::conv_2d), with zeros beside, and above and below: columns and rows of `padding`.
    pub fn conv_2d_padded(&self, kernel: Tensor, x: Tensor, stride: usize, padding: [usize; 2]) -> Result<Tensor> {
        self.noted(
            || Call::Conv2d(kernel.number(), x.number(), stride, padding),
            || {
                self.require_f32("conv_2d", x)?;
                let dtype = self.dtype(kernel)?;
                if !support::kernel(dtype) {
                    return Err(Error::graph("conv_2d", format!("no convolution for {dtype} kernels")));
                }
                let ([kw, kh, c, m], [w, h, cx, n]) = (self.shape(kernel)?.dims(), self.shape(x)?.dims());
                if c != cx {
                    return Err(Error::graph("conv_2d", format!("a kernel for {c} channels and a picture of {cx}")));
                }
                if stride == 0 {
                    return Err(Error::graph("conv_2d", "a stride of 0"));
                }
                // ggml doubles the padding as an `int`.
                let ([beside, above], stride) = (padding.map(|padding| padding.saturating_mul(2)), small(stride)?);
                small(beside.max(above))?;
                let padded = possible("conv_2d", [w.saturating_add(beside), h.saturating_add(above), m, n])?;
                let [columns, rows] = [small(padding[0])?, small(padding[1])?];
                if padded.dims()[0] < kw || padded.dims()[1] < kh || !self.is_contiguous(kernel)? {
                    return Err(self.mismatch("conv_2d", kernel, x));
                }
                let patch = (kw * kh * c).saturating_mul(dtype.block_bytes());
                if patch.saturating_add(m.saturating_mul(size_of::<f32>())) > CONV_WORK_BYTES {
                    let message = format!("{c} channels by {kw} x {kh} are more than fit ggml's work space");
                    return Err(Error::graph("conv_2d", message));
                }
                let (kernel, x) = (self.raw(kernel)?, self.raw(self.contiguous(x)?)?);
                self.node("conv_2d", |context| {
                    // SAFETY: live tensors of accepted formats with equal channel counts; the kernel fits the padded picture.
                    unsafe { sys::ggml_conv_2d_direct(context, kernel, x, stride, stride, columns, rows, 1, 1) }
                })
            },
        )
    }

    /// `a [w, h, ..]` with every pixel doubled both ways.
    pub fn upscale_2x(&self, a: Tensor) -> Result<Tensor> {
        self.noted(
            || Call::Upscale2x(a.number()),
            || {
                self.require_f32("upscale", a)?;
                let raw = self.raw(self.contiguous(a)?)?;
                // SAFETY: a live, contiguous F32 tensor.
                self.node("upscale", |context| unsafe {
                    sys::ggml_upscale(context, raw, 2, sys::GGML_SCALE_MODE_NEAREST)
                })
            },
        )
    }

    /// `a [w, h, ..]` with `right` columns and `bottom` rows of zeros added.
    pub fn pad(&self, a: Tensor, right: usize, bottom: usize) -> Result<Tensor> {
        self.noted(
            || Call::Pad(a.number(), right, bottom),
            || {
                self.require_f32("pad", a)?;
                let [w, h, c, n] = self.shape(a)?.dims();
                possible("pad", [w.saturating_add(right), h.saturating_add(bottom), c, n])?;
                let (right, bottom) = (small(right)?, small(bottom)?);
                let raw = self.raw(self.contiguous(a)?)?;
                // SAFETY: a live, contiguous F32 tensor.
                self.node("pad", |context| unsafe { sys::ggml_pad(context, raw, right, bottom, 0, 0) })
            },
        )
    }
}

/// What operations ask of their operands.
impl Graph {
    pub(super) fn require_f32(&self, op: &'static str, a: Tensor) -> Result<()> {
        match self.dtype(a)? {
            DType::F32 => Ok(()),
            other => Err(Error::graph(op, format!("operand is {other}, not f32"))),
        }
    }

    pub(super) fn mismatch(&self, op: &'static str, a: Tensor, b: Tensor) -> Error {
        match (self.shape(a), self.shape(b)) {
            (Ok(a), Ok(b)) => Error::graph(op, format!("{a} and {b} do not go together")),
            (Err(error), _) | (_, Err(error)) => error,
        }
    }
}

/// ggml asserts while it computes that what is added to a variance is not negative.
fn require_epsilon(op: &'static str, eps: f32) -> Result<()> {
    if eps.is_finite() && eps >= 0.0 {
        return Ok(());
    }
    Err(Error::graph(op, format!("an epsilon of {eps}")))
}

/// The shape of these extents, which a result has or is smaller than.
fn possible(op: &'static str, dims: [usize; 4]) -> Result<Shape> {
    Shape::new(&dims).ok_or_else(|| Error::graph(op, format!("a result of impossible extents {dims:?}")))
}

/// A number that ggml takes as `int`.
pub(super) fn small(n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| Error::graph("argument", format!("{n} is too large")))
}
