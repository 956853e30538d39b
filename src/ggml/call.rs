//! What a graph is asked for, as another machine is told it: every operation of [`Graph`](super::Graph), in order. The other machine asks
//! a graph of its own for the same, with all of its checks.

use std::cell::{Cell, RefCell};

use serde::{Deserialize, Serialize};

/// A tensor's number in the graph that was asked first.
pub(crate) type Number = u32;

/// The bits of an `f32`, which texts of numbers do not keep.
pub(crate) type Bits = u32;

/// Where a leaf lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// The buffer's number; `None` for a place without memory.
    pub(crate) buffer: Option<u64>,
    pub(crate) offset: usize,
    /// ggml's number of the format.
    pub(crate) dtype: u32,
    pub(crate) dims: [usize; 4],
}

/// A convolution: see [`Convolution`](super::Convolution).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConvolveCall {
    pub(crate) kernel: Number,
    pub(crate) bias: Option<Number>,
    pub(crate) stride: usize,
    pub(crate) beside: usize,
    pub(crate) around: [usize; 2],
    pub(crate) doubled: Option<[usize; 2]>,
    pub(crate) odd: bool,
    pub(crate) x: Number,
    /// Mean, scale, weight and bias of the norm before it.
    pub(crate) normal: Option<[Number; 4]>,
    pub(crate) added: Option<Number>,
}

/// One operation, named as the method that is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Call {
    Leaf(Place),
    Output(Number),
    Unfilled(Vec<usize>),
    Fill(Number, usize, usize, Number),
    Store(Number, Place),
    StoreAlone(Number, Place),
    /// Whether products and the like are pinhole's own.
    OwnKernels(bool),
    /// Whether attention is as exact as weights make it worth.
    AutoAttention(bool),
    WeightsInBlocks(bool),
    /// Whether attention is computed with whole numbers.
    CodesInAttention(bool),
    Add(Number, Number),
    Sub(Number, Number),
    Mul(Number, Number),
    ScaleBias(Number, Bits, Bits),
    Silu(Number),
    Tanh(Number),
    GeluTanh(Number),
    GeluErf(Number),
    GeluQuick(Number),
    Relu(Number),
    MulMat(Number, Number),
    Linear(Number, Number, Number),
    Norm(Number, Bits),
    RmsNorm(Number, Bits),
    GroupNorm(Number, usize, Bits),
    SoftMax(Number, Option<Number>, Bits),
    Conv2d(Number, Number, usize, [usize; 2]),
    Upscale2x(Number),
    Pad(Number, usize, usize),
    GetRows(Number, Number),
    Concat(Number, Number, usize),
    Roll(Number, i32),
    Reshape(Number, Vec<usize>),
    Permute(Number, [usize; 4]),
    Slice(Number, usize, usize, usize),
    SplitRows(Number, usize),
    Contiguous(Number),
    FlashAttention(Number, Number, Number, Bits, Option<Number>),
    ToF16(Number),
    GroupStatistics(Number, usize, Bits),
    Convolve(Box<ConvolveCall>),
    RotatePairs(Number, Number, Number),
    RotateHalves(Number, Number, Number),
    ChannelNormSilu(Number, Number, Bits),
}

/// An operation, and the numbers of the tensors that it made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Noted(pub(crate) Call, pub(crate) Vec<Number>);

/// What a graph for another machine was asked for so far.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// How many operations are being made, each by the one before it: only the first is noted.
    depth: Cell<usize>,
    noted: RefCell<Vec<Noted>>,
}

impl Notes {
    /// Calls `make`, and notes what it made as what `call` asks for, unless another call makes it.
    pub(super) fn note<R: Made, E>(
        &self,
        call: impl FnOnce() -> Call,
        make: impl FnOnce() -> Result<R, E>,
    ) -> Result<R, E> {
        let depth = self.depth.replace(self.depth.get() + 1);
        let made = make();
        self.depth.set(depth);
        if let (Ok(made), 0) = (&made, depth) {
            self.noted.borrow_mut().push(Noted(call(), made.numbers()));
        }
        made
    }

    /// All of it, in order.
    pub(super) fn all(&self) -> Vec<Noted> {
        self.noted.borrow().clone()
    }
}

/// What an operation makes.
pub(crate) trait Made {
    /// The numbers of its tensors, in order.
    fn numbers(&self) -> Vec<Number>;
}

impl Made for () {
    fn numbers(&self) -> Vec<Number> {
        Vec::new()
    }
}
