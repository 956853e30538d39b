//! Convolutions and group norms by pinhole's own [kernels](crate::kernels), as operations of a graph on the CPU.
//!
//! ggml's own convolution there copies every patch of pixels into a matrix, and norms and SiLU pass over a picture four times
//! more. Here a norm is only measured by an operation of its own, and applied where a convolution reads its pixels.

use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ggml_sys as sys;
use pinhole_quant::DType;

use super::call::{Call, ConvolveCall};
use super::halt::Halt;
use super::{Graph, Tensor};
use crate::kernels::{self, Added, ConvolutionSpace, Geometry, MOST_SIDE, Moments, Pieces, Planes, Source, Weights};
use crate::{Error, Result};

/// How many pieces of work each thread should have, so that none waits long for the last.
const TURNS: usize = 3;

/// A convolution, as a graph is asked for it.
#[derive(Clone, Copy, Debug)]
pub struct Convolution {
    /// `[kw, kh, inputs, outputs]`
    pub kernel: Tensor,
    /// `[outputs]`
    pub bias: Option<Tensor>,
    /// 1 or 2.
    pub stride: usize,
    /// Columns of zeros on either side.
    pub beside: usize,
    /// Rows of zeros above and below.
    pub around: [usize; 2],
    /// Whether every pixel counts twice, both ways; of the rows then, the first that counts, and how many.
    pub doubled: Option<[usize; 2]>,
    /// Whether the result is a strip of a larger one and begins with an odd row of it: rows are computed in pairs, and a strip that knows
    /// it has the bits of the whole.
    pub odd: bool,
}

/// A group norm whose mean and scale are known, `[.., channels, n]`, with its weight and bias, `[channels]`.
#[derive(Clone, Copy, Debug)]
pub struct Normalisation {
    /// The mean of each channel's group.
    pub mean: Tensor,
    /// One over its standard deviation.
    pub scale: Tensor,
    /// The norm's weight.
    pub weight: Tensor,
    /// The norm's bias.
    pub bias: Tensor,
}

/// The convolutions and norms of a graph.
#[derive(Default)]
pub(super) struct Convolutions {
    /// Boxed, since operations hold their addresses.
    #[allow(clippy::vec_box)]
    plans: Vec<Box<Plan>>,
    #[allow(clippy::vec_box)]
    norms: Vec<Box<Norm>>,
    /// What their operations make, and what these are called.
    results: Vec<(Tensor, &'static str)>,
}

/// What another machine is told of a convolution.
fn called(convolution: &Convolution, x: Tensor, normal: Option<&Normalisation>, added: Option<Tensor>) -> ConvolveCall {
    let &Convolution { kernel, bias, stride, beside, around, doubled, odd } = convolution;
    let number = |tensor: Tensor| tensor.number();
    ConvolveCall {
        kernel: number(kernel),
        bias: bias.map(number),
        stride,
        beside,
        around,
        doubled,
        odd,
        x: number(x),
        normal: normal.map(|normal| [normal.mean, normal.scale, normal.weight, normal.bias].map(number)),
        added: added.map(number),
    }
}

/// A convolution, as its operation knows it.
struct Plan {
    convolution: kernels::Convolution,
    geometry: Geometry,
    dtype: DType,
    /// Which of the operation's operands are there.
    normal: bool,
    added: bool,
    bias: bool,
    /// The next piece that no thread has, and how many threads found none left. The last of them makes both new.
    next: AtomicUsize,
    done: AtomicUsize,
    halt: Arc<Halt>,
}

/// A group norm, as its operation knows it.
struct Norm {
    groups: usize,
    eps: f32,
    halt: Arc<Halt>,
}

impl Graph {
    /// Whether convolutions are pinhole's own here.
    pub fn convolves(&self) -> bool {
        self.device().runs_own_operations() && self.products.borrow().kernel().is_some()
    }

    /// The mean of each channel's group of `x [w, h, c, n]`, and one over its standard deviation, `[1, 1, c, n]` each, where
    /// convolutions are pinhole's own.
    pub fn group_statistics(&self, x: Tensor, groups: usize, eps: f32) -> Result<Option<(Tensor, Tensor)>> {
        self.noted(
            || Call::GroupStatistics(x.number(), groups, eps.to_bits()),
            || {
                self.require_f32("group_norm", x)?;
                let [.., c, n] = self.shape(x)?.dims();
                if !self.convolves() {
                    return Ok(None);
                }
                if groups == 0 || !c.is_multiple_of(groups) || !eps.is_finite() || eps < 0.0 {
                    return Err(Error::graph("group_norm", format!("{groups} groups of {c} channels, epsilon {eps}")));
                }
                let norm = Box::new(Norm { groups, eps, halt: self.products.borrow().halt() });
                let address: *const Norm = &raw const *norm;
                self.convolutions.borrow_mut().norms.push(norm);
                let mut operand = self.raw(self.contiguous(x)?)?;
                let [channels, pictures] = [c, n].map(|extent| extent as i64);
                let both = self.node("group_norm", |context| {
                    let (operand, threads) = (&raw mut operand, sys::GGML_N_TASKS_MAX);
                    let (type_id, norm) = (sys::GGML_TYPE_F32, address.cast_mut().cast());
                    // SAFETY: a live, contiguous F32 tensor; the norm lives as long as the graph.
                    unsafe {
                        sys::ggml_custom_4d(
                            context,
                            type_id,
                            channels,
                            pictures,
                            2,
                            1,
                            operand,
                            1,
                            Some(measure),
                            threads,
                            norm,
                        )
                    }
                })?;
                self.convolutions.borrow_mut().results.push((both, "group statistics"));
                let half = |i| self.reshape(self.slice(both, 2, i, 1)?, &[1, 1, c, n]);
                Ok(Some((half(0)?, half(1)?)))
            },
        )
    }

    /// The convolution of `x [w, h, inputs, n]`, normalised by `normal` and through SiLU before where that is given, with `added
    /// [w', h', outputs, n]` added; `None` where pinhole has no kernel for it.
    pub fn convolve(
        &self,
        convolution: &Convolution,
        x: Tensor,
        normal: Option<&Normalisation>,
        added: Option<Tensor>,
    ) -> Result<Option<Tensor>> {
        self.noted(
            || Call::Convolve(Box::new(called(convolution, x, normal, added))),
            || {
                self.require_f32("conv_2d", x)?;
                let kernel = self.products.borrow().kernel().filter(|_| self.device().runs_own_operations());
                let (Some(kernel), dtype) = (kernel, self.dtype(convolution.kernel)?) else { return Ok(None) };
                let geometry = self.geometry(convolution, x)?;
                let Some(own) = kernels::Convolution::new(kernel, geometry, dtype) else { return Ok(None) };
                let [.., n] = self.shape(x)?.dims();
                let dims = [geometry.result[0], geometry.result[1], geometry.outputs, n];
                let x = self.contiguous(x)?;
                let mut operands = vec![x, convolution.kernel];
                if let Some(normal) = normal {
                    self.expect_numbers(normal.mean, geometry.inputs * n)?;
                    self.expect_numbers(normal.scale, geometry.inputs * n)?;
                    self.expect_numbers(normal.weight, geometry.inputs)?;
                    self.expect_numbers(normal.bias, geometry.inputs)?;
                    operands.extend([normal.mean, normal.scale, normal.weight, normal.bias]);
                }
                if let Some(added) = added {
                    if self.shape(added)? != dims || self.dtype(added)? != DType::F32 {
                        return Err(self.mismatch("conv_2d", x, added));
                    }
                    operands.push(self.contiguous(added)?);
                }
                if let Some(bias) = convolution.bias {
                    self.expect_numbers(bias, geometry.outputs)?;
                    operands.push(bias);
                }
                let plan = Box::new(Plan {
                    convolution: own,
                    geometry,
                    dtype,
                    normal: normal.is_some(),
                    added: added.is_some(),
                    bias: convolution.bias.is_some(),
                    next: AtomicUsize::new(0),
                    done: AtomicUsize::new(0),
                    halt: self.products.borrow().halt(),
                });
                let address: *const Plan = &raw const *plan;
                self.convolutions.borrow_mut().plans.push(plan);
                let mut raws = operands.iter().map(|operand| self.raw(*operand)).collect::<Result<Vec<_>>>()?;
                let [w, h, outputs, n] = dims.map(|extent| extent as i64);
                let result = self.node("conv_2d", |context| {
                    let (raws, count, threads) = (raws.as_mut_ptr(), raws.len() as c_int, sys::GGML_N_TASKS_MAX);
                    let (type_id, plan) = (sys::GGML_TYPE_F32, address.cast_mut().cast());
                    // SAFETY: live, contiguous tensors with as many numbers as the geometry says (checked above); the plan lives as
                    // long as the graph.
                    unsafe {
                        sys::ggml_custom_4d(context, type_id, w, h, outputs, n, raws, count, Some(run), threads, plan)
                    }
                })?;
                self.convolutions.borrow_mut().results.push((result, "convolution"));
                Ok(Some(result))
            },
        )
    }

    /// The name of the operation that makes `raw`, if it is one of these.
    pub(super) fn convolution_name(&self, raw: *mut sys::ggml_tensor) -> Option<&'static str> {
        let convolutions = self.convolutions.borrow();
        let own = convolutions.results.iter().find(|(result, _)| self.raw(*result).is_ok_and(|result| result == raw));
        own.map(|(_, name)| *name)
    }

    /// What `convolution` does with `x`, once it is known that both fit.
    fn geometry(&self, convolution: &Convolution, x: Tensor) -> Result<Geometry> {
        let Convolution { kernel, stride, beside, around: [above, below], doubled, odd, .. } = *convolution;
        let ([kw, kh, inputs, outputs], [w, h, channels, pictures]) =
            (self.shape(kernel)?.dims(), self.shape(x)?.dims());
        let wrong = |what: String| Error::graph("conv_2d", what);
        if inputs != channels {
            return Err(wrong(format!("a kernel for {inputs} channels and a picture of {channels}")));
        }
        if !self.is_contiguous(kernel)? || !(1..=2).contains(&stride) {
            return Err(wrong(format!("a stride of {stride}, or a kernel with gaps")));
        }
        if beside.max(above).max(below) >= MOST_SIDE || kw.max(kh) > MOST_SIDE {
            return Err(wrong(format!("a kernel of {kw} x {kh} with {beside} columns of zeros")));
        }
        let (first_row, input) = match doubled {
            None => (0, [w, h]),
            Some([first, rows]) if first.checked_add(rows).is_some_and(|end| end <= 2 * h) => (first, [2 * w, rows]),
            Some(rows) => return Err(wrong(format!("rows {rows:?} of {h} doubled ones"))),
        };
        let padded = [input[0] + 2 * beside, input[1] + above + below];
        if padded[0] < kw || padded[1] < kh {
            return Err(self.mismatch("conv_2d", kernel, x));
        }
        let result = [(padded[0] - kw) / stride + 1, (padded[1] - kh) / stride + 1];
        let (side, padding) = ([kw, kh], [beside, above]);
        let doubled = doubled.is_some();
        Ok(Geometry { inputs, outputs, side, stride, padding, input, result, doubled, first_row, odd, pictures })
    }

    /// Refuses a tensor that is not `count` contiguous F32.
    fn expect_numbers(&self, tensor: Tensor, count: usize) -> Result<()> {
        let shape = self.shape(tensor)?;
        if self.dtype(tensor)? != DType::F32 || !self.is_contiguous(tensor)? || shape.elements() != count {
            let message = format!("{count} numbers were expected, and found {:?}", shape.dims());
            return Err(Error::graph("conv_2d", message));
        }
        Ok(())
    }
}

/// All numbers of a contiguous F32 tensor.
///
/// # Safety
/// It is one, in memory that no one writes to.
unsafe fn numbers<'a>(tensor: *const sys::ggml_tensor) -> &'a [f32] {
    // SAFETY: the caller's promise; ggml aligns tensors to 32 bytes.
    unsafe {
        let count = (*tensor).ne.iter().map(|extent| extent.unsigned_abs() as usize).product();
        std::slice::from_raw_parts((*tensor).data.cast(), count)
    }
}

/// Measures the groups of thread `ith` of `nth`: means, then scales, `[channels, pictures]` each.
unsafe extern "C-unwind" fn measure(dst: *mut sys::ggml_tensor, ith: c_int, nth: c_int, norm: *mut c_void) {
    // SAFETY: ggml hands over the tensor that it computes, and the address that `group_statistics` gave it, of a norm that the
    // graph keeps; the operand is contiguous F32.
    let (norm, dst, x, shape) = unsafe {
        let (dst, x) = (&*dst, (*dst).src[0]);
        (&*norm.cast::<Norm>(), dst, numbers(x), (*x).ne)
    };
    let [w, h, c, n] = shape.map(|extent| extent.unsigned_abs() as usize);
    norm.halt.catch(|cancel| {
        let each = c / norm.groups;
        let groups = norm.groups * n;
        let (ith, nth) = (ith.unsigned_abs() as usize, nth.unsigned_abs() as usize);
        for group in groups * ith / nth..groups * (ith + 1) / nth {
            if cancel.is_raised() {
                break;
            }
            let planes = x[group * each * w * h..][..each * w * h].chunks_exact(w * h);
            // By channel first, as strips are counted.
            let channels = planes.map(|plane| Moments::default().with_rows(plane, w, |number| *number));
            let (mean, scale) = channels.fold(Moments::default(), Moments::with).mean_and_scale(norm.eps);
            for channel in group * each..(group + 1) * each {
                // SAFETY: `dst` has `2 c n` numbers, and these of them are this thread's.
                unsafe {
                    dst.data.cast::<f32>().add(channel).write(mean);
                    dst.data.cast::<f32>().add(c * n + channel).write(scale);
                }
            }
        }
        Ok(())
    });
}

/// Computes piece after piece that no other thread has.
unsafe extern "C-unwind" fn run(dst: *mut sys::ggml_tensor, _ith: c_int, nth: c_int, plan: *mut c_void) {
    // SAFETY: ggml hands over the tensor that it computes, and the address that `convolve` gave it, of a plan that the graph
    // keeps.
    let (plan, dst) = unsafe { (&*plan.cast::<Plan>(), &*dst) };
    plan.halt.catch(|cancel| {
        // Which bits come out does not depend on how many threads there are.
        let pieces = plan.convolution.pieces(TURNS * nth.unsigned_abs() as usize);
        let mut space = ConvolutionSpace::default();
        loop {
            let piece = plan.next.fetch_add(1, Ordering::Relaxed);
            if piece >= pieces.count() || cancel.is_raised() {
                return Ok(());
            }
            // SAFETY: operands are as `convolve` checked them, and this piece is this thread's alone.
            unsafe { plan.compute(dst, &pieces, piece, &mut space) }?;
        }
    });
    if plan.done.fetch_add(1, Ordering::AcqRel) + 1 == nth.unsigned_abs() as usize {
        // Every thread has stopped claiming; ggml's barrier orders this before the next operation.
        plan.next.store(0, Ordering::Relaxed);
        plan.done.store(0, Ordering::Relaxed);
    }
}

impl Plan {
    /// Computes piece number `piece` of the convolution in `space`.
    ///
    /// # Safety
    /// `dst` and its operands are those of this plan, and no other thread has this piece.
    unsafe fn compute(
        &self,
        dst: &sys::ggml_tensor,
        pieces: &Pieces,
        piece: usize,
        space: &mut ConvolutionSpace,
    ) -> std::result::Result<(), usize> {
        let Geometry { inputs, outputs, side, result: [width, height], pictures, .. } = self.geometry;
        // SAFETY: the caller's promise, for all operands.
        let operand = |i: usize| unsafe { numbers(dst.src[i]) };
        // SAFETY: as above.
        let (stored, kernel) = unsafe { ((*dst.src[0]).ne, &*dst.src[1]) };
        let stored = [stored[0], stored[1]].map(|extent| extent.unsigned_abs() as usize);
        let normal = self.normal.then(|| kernels::Normal {
            mean: operand(2),
            scale: operand(3),
            weight: operand(4),
            bias: operand(5),
        });
        let source = Source { pixels: operand(0), stored, normal };
        let map = self.added.then(|| operand(if self.normal { 6 } else { 2 }));
        let bias = self.bias.then(|| operand(2 + if self.normal { 4 } else { 0 } + usize::from(self.added)));
        let count = inputs * outputs * side[0] * side[1];
        // SAFETY: the kernel is contiguous and has as many weights.
        let bytes = unsafe { std::slice::from_raw_parts(kernel.data.cast::<u8>(), count * self.dtype.block_bytes()) };
        let mut planes = PlanesOf { start: dst.data.cast(), width, height, planes: outputs * pictures };
        let weights = Weights { dtype: self.dtype, bytes };
        pieces.compute(piece, &source, weights, Added { bias, map }, space, &mut planes)
    }
}

/// The planes of the result.
struct PlanesOf {
    start: *mut f32,
    width: usize,
    height: usize,
    planes: usize,
}

impl Planes for PlanesOf {
    #[inline(always)]
    fn row(&mut self, plane: usize, y: usize, x: usize, len: usize) -> &mut [f32] {
        assert!(plane < self.planes && y < self.height && x + len <= self.width);
        // SAFETY: inside the result, as just checked, and in a tile that is this thread's alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.add((plane * self.height + y) * self.width + x), len) }
    }
}
