//! Asks a graph for what another machine's graph was asked for.

use std::collections::HashMap;

use pinhole_quant::DType;

use super::call::{Bits, Call, ConvolveCall, Made, Noted, Number, Place};
use super::{AttentionMode, Convolution, Graph, Normalisation, Placed, Tensor};
use crate::kernels::{Kernel, Precision};
use crate::tensor::Shape;
use crate::{Error, Result};

/// A graph that follows calls, and the tensors that have numbers in them.
pub(crate) struct Replay<'a, P> {
    graph: &'a Graph,
    /// Finds the place that a call names.
    place: P,
    tensors: HashMap<Number, Tensor>,
    /// Where leaves lie that the graph reads or writes.
    pub(crate) touched: Vec<Placed>,
    /// Where the graph writes.
    pub(crate) written: Vec<Placed>,
    /// The places of leaves, by number.
    leaves: HashMap<Number, Placed>,
}

impl<'a, P: Fn(&Place, DType, Shape) -> Result<Placed>> Replay<'a, P> {
    pub(crate) fn new(graph: &'a Graph, place: P) -> Replay<'a, P> {
        let (tensors, leaves) = (HashMap::new(), HashMap::new());
        Replay { graph, place, tensors, touched: Vec::new(), written: Vec::new(), leaves }
    }

    /// Makes what `noted` asks for.
    ///
    /// # Errors
    /// [`Error::Graph`] for operands that do not go together or do not exist, and if it makes something else here.
    pub(crate) fn follow(&mut self, noted: &Noted) -> Result<()> {
        let Noted(call, numbers) = noted;
        let made = self.make(call)?;
        if made.len() != numbers.len() {
            let message = format!("{} tensors are made here, and {} there: {call:?}", made.len(), numbers.len());
            return Err(Error::graph("replay", message));
        }
        self.tensors.extend(numbers.iter().copied().zip(made));
        if let (Call::Leaf(_), [number]) = (call, numbers.as_slice()) {
            self.leaves.extend(self.touched.last().map(|place| (*number, place.clone())));
        }
        Ok(())
    }

    fn tensor(&self, number: Number) -> Result<Tensor> {
        self.tensors.get(&number).copied().ok_or_else(|| Error::graph("replay", format!("there is no tensor {number}")))
    }

    /// What `place` names. The graph reads or writes it.
    fn placed(&mut self, place: &Place) -> Result<Placed> {
        let dtype = DType::from_id(place.dtype);
        let dtype = dtype.ok_or_else(|| Error::graph("place", format!("no number format {}", place.dtype)))?;
        let shape = Shape::new(&place.dims);
        let shape = shape.ok_or_else(|| Error::graph("place", format!("impossible extents {:?}", place.dims)))?;
        let placed = (self.place)(place, dtype, shape)?;
        self.touched.push(placed.clone());
        Ok(placed)
    }

    fn make(&mut self, call: &Call) -> Result<Vec<Tensor>> {
        let graph = self.graph;
        match *call {
            Call::Leaf(ref place) => {
                let placed = self.placed(place)?;
                return Ok(vec![graph.leaf(&placed)?]);
            }
            Call::Output(a) => graph.output(self.tensor(a)?)?,
            Call::Fill(target, dim, start, value) => {
                self.written.extend(self.leaves.get(&target).cloned());
                graph.fill(self.tensor(target)?, dim, start, self.tensor(value)?)?;
            }
            Call::Store(value, ref place) => {
                let placed = self.placed(place)?;
                graph.store(self.tensor(value)?, &placed)?;
                self.written.push(placed);
            }
            Call::StoreAlone(value, ref place) => {
                let placed = self.placed(place)?;
                graph.store_alone(self.tensor(value)?, &placed)?;
                self.written.push(placed);
            }
            Call::OwnKernels(own) => graph.set_kernel(Kernel::best().filter(|_| own)),
            Call::AutoAttention(auto) => {
                graph.set_attention(if auto { AttentionMode::Auto } else { AttentionMode::Exact });
            }
            Call::WeightsInBlocks(in_blocks) => graph.set_weights_in_blocks(in_blocks),
            Call::CodesInAttention(codes) => {
                graph.set_precision(if codes { Precision::Codes } else { Precision::Exact });
            }
            Call::GroupStatistics(x, groups, eps) => {
                let both = graph.group_statistics(self.tensor(x)?, groups, number(eps))?;
                return Ok(both.into_iter().flat_map(<[Tensor; 2]>::from).collect());
            }
            Call::Convolve(ref call) => return Ok(self.convolve(call)?.into_iter().collect()),
            _ => return Ok(vec![self.moved(call).unwrap_or_else(|| self.computed(call))?]),
        }
        Ok(Vec::new())
    }

    /// Operations that move numbers, or view them in another way.
    fn moved(&self, call: &Call) -> Option<Result<Tensor>> {
        let graph = self.graph;
        Some(match *call {
            Call::Unfilled(ref dims) => graph.unfilled(dims),
            Call::Upscale2x(a) => self.tensor(a).and_then(|a| graph.upscale_2x(a)),
            Call::Pad(a, right, bottom) => self.tensor(a).and_then(|a| graph.pad(a, right, bottom)),
            Call::Roll(a, shift) => self.tensor(a).and_then(|a| graph.roll(a, shift)),
            Call::Reshape(a, ref dims) => self.tensor(a).and_then(|a| graph.reshape(a, dims)),
            Call::Permute(a, axes) => self.tensor(a).and_then(|a| graph.permute(a, axes)),
            Call::Slice(a, dim, start, len) => self.tensor(a).and_then(|a| graph.slice(a, dim, start, len)),
            Call::SplitRows(a, parts) => self.tensor(a).and_then(|a| graph.split_rows(a, parts)),
            Call::Contiguous(a) => self.tensor(a).and_then(|a| graph.contiguous(a)),
            Call::ToF16(a) => self.tensor(a).and_then(|a| graph.to_f16(a)),
            _ => return None,
        })
    }

    /// Operations that compute one tensor.
    fn computed(&self, call: &Call) -> Result<Tensor> {
        let (graph, of) = (self.graph, |number| self.tensor(number));
        match *call {
            Call::Add(a, b) => graph.add(of(a)?, of(b)?),
            Call::Sub(a, b) => graph.sub(of(a)?, of(b)?),
            Call::Mul(a, b) => graph.mul(of(a)?, of(b)?),
            Call::ScaleBias(a, s, b) => graph.scale_bias(of(a)?, number(s), number(b)),
            Call::Silu(a) => graph.silu(of(a)?),
            Call::Tanh(a) => graph.tanh(of(a)?),
            Call::GeluTanh(a) => graph.gelu_tanh(of(a)?),
            Call::GeluErf(a) => graph.gelu_erf(of(a)?),
            Call::GeluQuick(a) => graph.gelu_quick(of(a)?),
            Call::Relu(a) => graph.relu(of(a)?),
            Call::MulMat(w, x) => graph.mul_mat(of(w)?, of(x)?),
            Call::Linear(w, x, bias) => graph.linear(of(w)?, of(x)?, of(bias)?),
            Call::Norm(a, eps) => graph.norm(of(a)?, number(eps)),
            Call::RmsNorm(a, eps) => graph.rms_norm(of(a)?, number(eps)),
            Call::GroupNorm(a, groups, eps) => graph.group_norm(of(a)?, groups, number(eps)),
            Call::SoftMax(a, mask, scale) => graph.soft_max(of(a)?, mask.map(of).transpose()?, number(scale)),
            Call::Conv2d(kernel, x, stride, padding) => graph.conv_2d_padded(of(kernel)?, of(x)?, stride, padding),
            Call::GetRows(table, indices) => graph.get_rows(of(table)?, of(indices)?),
            Call::Concat(a, b, dim) => graph.concat(of(a)?, of(b)?, dim),
            Call::FlashAttention(q, k, v, scale, mask) => {
                graph.flash_attention(of(q)?, of(k)?, of(v)?, number(scale), mask.map(of).transpose()?)
            }
            Call::RotatePairs(x, cos, sin) => graph.rotate_pairs(of(x)?, of(cos)?, of(sin)?),
            Call::RotateHalves(x, cos, sin) => graph.rotate_halves(of(x)?, of(cos)?, of(sin)?),
            Call::ChannelNormSilu(x, gamma, eps) => graph.channel_norm_silu(of(x)?, of(gamma)?, number(eps)),
            ref other => Err(Error::graph("replay", format!("{other:?} makes no tensor"))),
        }
    }

    fn convolve(&self, call: &ConvolveCall) -> Result<Option<Tensor>> {
        let &ConvolveCall { stride, beside, around, doubled, odd, .. } = call;
        let bias = call.bias.map(|bias| self.tensor(bias)).transpose()?;
        let convolution = Convolution { kernel: self.tensor(call.kernel)?, bias, stride, beside, around, doubled, odd };
        let normal = match call.normal {
            Some([mean, scale, weight, bias]) => Some(Normalisation {
                mean: self.tensor(mean)?,
                scale: self.tensor(scale)?,
                weight: self.tensor(weight)?,
                bias: self.tensor(bias)?,
            }),
            None => None,
        };
        let added = call.added.map(|added| self.tensor(added)).transpose()?;
        self.graph.convolve(&convolution, self.tensor(call.x)?, normal.as_ref(), added)
    }
}

/// The number of these bits.
fn number(bits: Bits) -> f32 {
    f32::from_bits(bits)
}

/// What a graph notes of its own operations.
impl Graph {
    /// Makes an operation, which is noted as `call` if another machine is to be told of it.
    pub(super) fn noted<R: Made>(&self, call: impl FnOnce() -> Call, make: impl FnOnce() -> Result<R>) -> Result<R> {
        match self.notes() {
            Some(notes) => notes.note(call, make),
            None => make(),
        }
    }

    /// The same of what cannot fail and makes nothing.
    pub(super) fn noted_setting(&self, call: Call, set: impl FnOnce()) {
        // Nothing that it says fails.
        let _ = self.noted(
            || call,
            || {
                set();
                Ok(())
            },
        );
    }
}

impl Made for Tensor {
    fn numbers(&self) -> Vec<Number> {
        vec![self.number()]
    }
}

impl Made for Option<Tensor> {
    fn numbers(&self) -> Vec<Number> {
        self.iter().map(Tensor::number).collect()
    }
}

impl Made for Option<(Tensor, Tensor)> {
    fn numbers(&self) -> Vec<Number> {
        self.iter().flat_map(|(first, second)| [first.number(), second.number()]).collect()
    }
}
