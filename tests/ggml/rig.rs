//! A backend to compute with, and operands that lie in memory as views do.

use std::sync::Arc;

use pinhole::Result;
use pinhole::ggml::{Arena, Backend, Buffer, CancelFlag, Device, Graph, Ledger, Placed, Tensor};
use pinhole::tensor::Shape;
use pinhole_quant::DType;
use proptest::prelude::*;

use crate::array::{Array, Dims};

/// Two threads: more than one, so that work is shared out, and no more than the smallest machine has.
pub(crate) const THREADS: usize = 2;

/// Room for the tensors of any graph here.
pub(crate) const TENSORS: usize = 64;

/// A CPU ready to compute.
pub(crate) struct Rig {
    pub(crate) device: Device,
    pub(crate) ledger: Ledger,
    pub(crate) cancel: CancelFlag,
    pub(crate) backend: Backend,
}

pub(crate) fn shape(dims: Dims) -> Shape {
    Shape::new(&dims).unwrap()
}

pub(crate) fn bytes_of<const N: usize, T: Copy>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&value| bytes(value)).collect()
}

impl Rig {
    pub(crate) fn new() -> Rig {
        Rig::on(Device::cpu().unwrap())
    }

    pub(crate) fn on(device: Device) -> Rig {
        let cancel = CancelFlag::new();
        let backend = Backend::new(device, THREADS, cancel.clone()).unwrap();
        Rig { device, ledger: Ledger::new(), cancel, backend }
    }

    pub(crate) fn graph(&self) -> Graph {
        Graph::new(self.device, TENSORS).unwrap()
    }

    pub(crate) fn buffer(&self, bytes: usize) -> Arc<Buffer> {
        Buffer::allocate(self.device, bytes, &self.ledger, "ports").unwrap()
    }

    /// A place of its own for `dims` of `dtype`, holding `bytes`.
    pub(crate) fn place(&self, dtype: DType, dims: Dims, bytes: &[u8]) -> Placed {
        let place = Placed::new(&self.buffer(bytes.len()), 0, dtype, shape(dims)).unwrap();
        place.write(bytes).unwrap();
        place
    }

    /// A place of its own for `array`, in F32.
    pub(crate) fn f32(&self, array: &Array) -> Placed {
        self.place(DType::F32, array.dims, &bytes_of(&array.f32(), f32::to_ne_bytes))
    }

    /// A place of its own for a row of I32.
    pub(crate) fn i32(&self, values: &[i32]) -> Placed {
        self.place(DType::I32, [values.len(), 1, 1, 1], &bytes_of(values, i32::to_ne_bytes))
    }

    /// What the F32 tensor that `build` makes comes to.
    pub(crate) fn run(&mut self, build: impl FnOnce(&Graph) -> Result<Tensor>) -> Result<Array> {
        let graph = self.graph();
        let result = build(&graph)?;
        let dims = graph.shape(result)?.dims();
        let out = self.f32(&Array::from_fn(dims, |_| f64::NAN));
        graph.store(result, &out)?;
        self.compute(&graph)?;
        Ok(Array::from_f32(dims, &read(&out)))
    }

    /// Gives `graph` its memory and computes it.
    pub(crate) fn compute(&mut self, graph: &Graph) -> Result<()> {
        let mut arena = Arena::new(self.device, &self.ledger)?;
        arena.assign(&[graph])?;
        self.backend.compute(graph, &mut arena)
    }

    /// Computes something simple, to see that nothing is broken.
    #[track_caller]
    pub(crate) fn assert_works(&mut self) {
        let (a, b) = (Array::random([5, 3, 2, 1], 1), Array::random([5, 3, 2, 1], 2));
        let (place_a, place_b) = (self.f32(&a), self.f32(&b));
        let sum = self.run(|g| g.add(g.leaf(&place_a)?, g.leaf(&place_b)?)).unwrap();
        let expected = Array::from_fn(a.dims, |i| f64::from(a.at(i) as f32 + b.at(i) as f32));
        assert_eq!(sum, expected);
    }
}

/// The numbers at an F32 place.
pub(crate) fn read(place: &Placed) -> Vec<f32> {
    let mut bytes = vec![0; place.bytes()];
    place.read(&mut bytes).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|&value| f32::from_ne_bytes(value)).collect()
}

/// How an operand lies in a larger tensor: a part of one dimension, with the dimensions in another order.
#[derive(Clone, Debug)]
pub(crate) struct Twist {
    axes: Dims,
    dim: usize,
    before: usize,
    after: usize,
}

impl Twist {
    /// No view: the tensor itself.
    pub(crate) const NONE: Twist = Twist { axes: [0, 1, 2, 3], dim: 0, before: 0, after: 0 };

    /// Part of the tokens of more, with gaps between the matrices of a batch.
    pub(crate) const MIDDLE: Twist = Twist { axes: [0, 1, 2, 3], dim: 1, before: 2, after: 1 };

    /// Every order of the dimensions, every dimension cut.
    pub(crate) fn any() -> impl Strategy<Value = Twist> {
        let axes = Just([0, 1, 2, 3]).prop_shuffle();
        (axes, 0..4usize, 0..3usize, 0..3usize).prop_map(|(axes, dim, before, after)| Twist {
            axes,
            dim,
            before,
            after,
        })
    }
}

/// An F32 operand that is a view of a larger tensor.
pub(crate) struct Operand {
    twist: Twist,
    place: Placed,
    /// What it holds.
    pub(crate) array: Array,
}

impl Operand {
    /// Random numbers of extents `dims`, lying as `twist` says.
    pub(crate) fn new(rig: &Rig, dims: Dims, twist: &Twist, seed: u64) -> Operand {
        let Twist { axes, dim, before, after } = *twist;
        let inner: Dims = axes.map(|axis| dims[axis]);
        let mut outer = inner;
        outer[dim] += before + after;
        let base = Array::random(outer, seed);
        let array = base.slice(dim, before, inner[dim]).permute(axes);
        Operand { twist: twist.clone(), place: rig.f32(&base), array }
    }

    /// The view of it in `graph`.
    pub(crate) fn tensor(&self, graph: &Graph) -> Result<Tensor> {
        let Twist { axes, dim, before, .. } = self.twist;
        let leaf = graph.leaf(&self.place)?;
        graph.permute(graph.slice(leaf, dim, before, self.array.dims[axes[dim]])?, axes)
    }
}
