//! Operations asked for what they cannot do: an error each time, and never one that ggml had to find.

use pinhole::ggml::{Arena, Graph, Placed, Tensor};
use pinhole::{Error, Result};
use pinhole_quant::DType;
use proptest::prelude::*;

use crate::array::{Array, Dims};
use crate::rig::{Rig, TENSORS, bytes_of, shape};

/// Tensors of many kinds.
struct Zoo {
    rig: Rig,
    /// F32 `[6, 4, 2]`.
    a: Placed,
    /// F32 `[5, 4, 2]`.
    b: Placed,
    /// F32 `[4]`.
    short: Placed,
    bf16: Placed,
    f16: Placed,
    /// Q8_0 `[64, 32]`.
    q8_0: Placed,
    i32: Placed,
    i64: Placed,
    /// F32 `[3, 3, 2, 4]`.
    kernel: Placed,
    kernel_bf16: Placed,
    kernel_q8_0: Placed,
}

impl Zoo {
    fn new() -> Zoo {
        let rig = Rig::new();
        let f32 = |dims| rig.f32(&Array::random(dims, 41));
        let zeros = |dtype: DType, dims: Dims| rig.place(dtype, dims, &vec![0; shape(dims).bytes(dtype).unwrap()]);
        Zoo {
            a: f32([6, 4, 2, 1]),
            b: f32([5, 4, 2, 1]),
            short: f32([4, 1, 1, 1]),
            bf16: zeros(DType::BF16, [6, 1, 1, 1]),
            f16: zeros(DType::F16, [6, 4, 1, 1]),
            q8_0: zeros(DType::Q8_0, [64, 32, 1, 1]),
            i32: rig.i32(&[1, 0, 3]),
            i64: zeros(DType::I64, [6, 4, 1, 1]),
            kernel: f32([3, 3, 2, 4]),
            kernel_bf16: zeros(DType::BF16, [3, 3, 2, 4]),
            kernel_q8_0: zeros(DType::Q8_0, [32, 1, 2, 4]),
            rig,
        }
    }

    /// Fails unless `build` is refused by pinhole itself, with `part` in what it says; the graph takes operations afterwards.
    #[track_caller]
    fn refused(&mut self, part: &str, build: impl FnOnce(&Zoo, &Graph) -> Result<Tensor>) {
        let graph = self.rig.graph();
        let message = match build(self, &graph) {
            Err(error @ Error::Graph { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        };
        assert!(!message.contains("in ggml"), "ggml had to find it: {message}");
        assert!(message.contains(part), "`{part}` is not in: {message}");
        let a = graph.leaf(&self.a).unwrap();
        graph.output(graph.add(a, a).unwrap()).unwrap();
        self.rig.compute(&graph).unwrap();
    }
}

#[test]
fn elementwise() {
    let mut zoo = Zoo::new();
    for pair in [Graph::add, Graph::sub, Graph::mul] {
        zoo.refused("[6, 4, 2] and [5, 4, 2]", |z, g| pair(g, g.leaf(&z.a)?, g.leaf(&z.b)?));
        // The second operand is repeated, not the first.
        zoo.refused("[4] and [6, 4, 2]", |z, g| pair(g, g.leaf(&z.short)?, g.leaf(&z.a)?));
        // ggml claims that it can, and aborts.
        zoo.refused("bf16", |z, g| pair(g, g.leaf(&z.a)?, g.leaf(&z.bf16)?));
        zoo.refused("q8_0", |z, g| pair(g, g.leaf(&z.q8_0)?, g.leaf(&z.q8_0)?));
        zoo.refused("i32", |z, g| pair(g, g.leaf(&z.i32)?, g.leaf(&z.i32)?));
    }
    let functions = [Graph::silu, Graph::gelu_tanh, Graph::gelu_erf, Graph::gelu_quick, Graph::upscale_2x];
    for function in functions {
        zoo.refused("f16", |z, g| function(g, g.leaf(&z.f16)?));
        zoo.refused("i64", |z, g| function(g, g.leaf(&z.i64)?));
    }
    zoo.refused("q8_0", |z, g| g.scale(g.leaf(&z.q8_0)?, 2.0));
}

#[test]
fn products() {
    let mut zoo = Zoo::new();
    zoo.refused("[6, 4, 2] and [5, 4, 2]", |z, g| g.mul_mat(g.leaf(&z.a)?, g.leaf(&z.b)?));
    // Rows fit, but two matrices are not shared out among one.
    zoo.refused("[6, 4, 2] and [6, 4]", |z, g| g.mul_mat(g.leaf(&z.a)?, g.slice(g.leaf(&z.a)?, 2, 0, 1)?));
    zoo.refused("i64", |z, g| g.mul_mat(g.leaf(&z.i64)?, g.leaf(&z.a)?));
    zoo.refused("i32", |z, g| g.mul_mat(g.leaf(&z.i32)?, g.leaf(&z.a)?));
    zoo.refused("f16", |z, g| g.mul_mat(g.leaf(&z.a)?, g.leaf(&z.f16)?));
    zoo.refused("transposed", |z, g| g.mul_mat(g.permute(g.leaf(&z.kernel)?, [1, 0, 2, 3])?, g.leaf(&z.kernel)?));
}

#[test]
fn norms() {
    let mut zoo = Zoo::new();
    type Norm = fn(&Graph, Tensor, f32) -> Result<Tensor>;
    let norms: [Norm; 3] = [Graph::norm, Graph::rms_norm, |g, a, eps| g.group_norm(a, 2, eps)];
    for norm in norms {
        zoo.refused("f16", |z, g| norm(g, g.leaf(&z.f16)?, 1e-6));
        // ggml asserts that while it computes.
        for eps in [-1e-6, f32::NAN, f32::INFINITY] {
            zoo.refused("epsilon", |z, g| norm(g, g.leaf(&z.a)?, eps));
        }
    }
    zoo.refused("3 groups", |z, g| g.group_norm(g.leaf(&z.a)?, 3, 1e-6));
    zoo.refused("0 groups", |z, g| g.group_norm(g.leaf(&z.a)?, 0, 1e-6));
    zoo.refused("groups", |z, g| g.group_norm(g.leaf(&z.a)?, usize::MAX, 1e-6));
}

#[test]
fn attention() {
    let mut zoo = Zoo::new();
    let mask = |z: &Zoo, g: &Graph, dim, len| g.slice(g.leaf(&z.a)?, dim, 0, len);
    zoo.refused("[5, 4, 2] and [6, 4, 2]", |z, g| g.soft_max(g.leaf(&z.b)?, Some(g.leaf(&z.a)?), 1.0));
    zoo.refused("and [6, 3, 2]", |z, g| g.soft_max(g.leaf(&z.a)?, Some(mask(z, g, 1, 3)?), 1.0));
    zoo.refused("[6, 4] and [6, 4, 2]", |z, g| g.soft_max(mask(z, g, 2, 1)?, Some(g.leaf(&z.a)?), 1.0));
    zoo.refused("i64", |z, g| g.soft_max(g.leaf(&z.a)?, Some(g.leaf(&z.i64)?), 1.0));
    zoo.refused("i64", |z, g| g.soft_max(g.leaf(&z.i64)?, None, 1.0));
    let attend = |g: &Graph, q, k, v| g.flash_attention(q, k, v, 1.0, None);
    zoo.refused("go together", |z, g| attend(g, g.leaf(&z.a)?, g.leaf(&z.b)?, g.leaf(&z.b)?));
    zoo.refused("go together", |z, g| attend(g, g.leaf(&z.a)?, g.leaf(&z.a)?, g.leaf(&z.b)?));
    zoo.refused("f16", |z, g| attend(g, g.leaf(&z.a)?, g.leaf(&z.f16)?, g.leaf(&z.f16)?));
    // Two heads, that three pairs of keys and values cannot be shared out to.
    zoo.refused("go together", |z, g| {
        let three = g.reshape(g.leaf(&z.a)?, &[6, 2, 4])?;
        attend(g, g.slice(three, 2, 0, 2)?, g.slice(three, 2, 0, 3)?, g.slice(three, 2, 0, 3)?)
    });
    let masked = |z: &Zoo, g: &Graph, mask| {
        let a = g.leaf(&z.a)?;
        g.flash_attention(a, a, a, 1.0, Some(mask))
    };
    zoo.refused("a mask of f32 [4, 4]", |z, g| masked(z, g, mask(z, g, 0, 4).and_then(|a| g.slice(a, 2, 0, 1))?));
    zoo.refused("f16 [4, 4] is needed", |z, g| masked(z, g, g.leaf(&z.f16)?));
    zoo.refused("f16", |z, g| g.to_f16(g.leaf(&z.f16)?));
}

#[test]
fn pictures() {
    let mut zoo = Zoo::new();
    let convolve = |kernel: fn(&Zoo) -> &Placed, stride, padding| {
        move |z: &Zoo, g: &Graph| g.conv_2d(g.leaf(kernel(z))?, g.leaf(&z.a)?, stride, padding)
    };
    // ggml claims that it can, and aborts.
    zoo.refused("bf16", convolve(|z| &z.kernel_bf16, 1, 1));
    zoo.refused("q8_0", convolve(|z| &z.kernel_q8_0, 1, 1));
    zoo.refused("stride", convolve(|z| &z.kernel, 0, 1));
    zoo.refused("", convolve(|z| &z.kernel, usize::MAX, 1));
    for padding in [1 << 31, usize::MAX / 2, usize::MAX] {
        zoo.refused("", convolve(|z| &z.kernel, 1, padding));
    }
    // Paddings that are an `int`, and not when they are doubled; and a result of 2^64 numbers.
    for padding in [(1 << 31) - 1, 1 << 30, (1 << 30) - 1] {
        zoo.refused("", convolve(|z| &z.kernel, 1, padding));
    }
    zoo.refused("[3, 3, 2, 4] and [2, 4, 2]", |z, g| {
        g.conv_2d(g.leaf(&z.kernel)?, g.slice(g.leaf(&z.a)?, 0, 0, 2)?, 1, 0)
    });
    zoo.refused("channels", |z, g| g.conv_2d(g.leaf(&z.kernel)?, g.slice(g.leaf(&z.a)?, 2, 0, 1)?, 1, 1));
    zoo.refused("f16", |z, g| g.pad(g.leaf(&z.f16)?, 1, 1));
    for (right, bottom) in [(usize::MAX, 0), (0, 1 << 31), (i32::MAX as usize, i32::MAX as usize)] {
        zoo.refused("", |z, g| g.pad(g.leaf(&z.a)?, right, bottom));
    }
}

/// ggml's convolution copies patches into a work space of 16 MiB, and asserts while it computes that one fits.
#[test]
fn convolutions_of_more_channels_than_fit_the_work_space() {
    let rig = Rig::new();
    let channels = (16 << 20) / 4;
    let kernel = rig.f32(&Array::from_fn([1, 1, channels, 1], |_| 0.0));
    let graph = rig.graph();
    let kernel = graph.leaf(&kernel).unwrap();
    let error = graph.conv_2d(kernel, kernel, 1, 0).unwrap_err().to_string();
    assert!(error.contains("channels") && !error.contains("in ggml"), "{error}");
}

#[test]
fn views() {
    let mut zoo = Zoo::new();
    zoo.refused("dimension 4", |z, g| g.slice(g.leaf(&z.a)?, 4, 0, 1));
    zoo.refused("dimension 9", |z, g| g.slice(g.leaf(&z.a)?, 9, 0, 1));
    for (start, len) in [(0, 0), (5, 2), (0, 7), (usize::MAX, 2), (1, usize::MAX)] {
        zoo.refused("of dimension 0 of f32 [6, 4, 2]", |z, g| g.slice(g.leaf(&z.a)?, 0, start, len));
    }
    zoo.refused("q8_0", |z, g| g.slice(g.leaf(&z.q8_0)?, 0, 0, 32));
    // A row of blocks is no row of numbers: turned round, copying it would write outside of the copy.
    zoo.refused("q8_0", |z, g| g.contiguous(g.permute(g.leaf(&z.q8_0)?, [1, 0, 2, 3])?));
    for axes in [[0, 0, 1, 2], [0, 1, 2, 4], [1, 2, 3, usize::MAX]] {
        zoo.refused("order", |z, g| g.permute(g.leaf(&z.a)?, axes));
    }
    for dims in [&[47][..], &[0], &[], &[1, 1, 1, 1, 48], &[usize::MAX, 2], &[1 << 32, 1 << 32]] {
        zoo.refused("", |z, g| g.reshape(g.leaf(&z.a)?, dims));
    }
    zoo.refused("q8_0", |z, g| g.reshape(g.leaf(&z.q8_0)?, &[16, 128]));
    zoo.refused("4 parts", |z, g| g.split_rows(g.leaf(&z.a)?, 4));
    zoo.refused("0 parts", |z, g| g.split_rows(g.leaf(&z.a)?, 0));
    zoo.refused("2 parts", |z, g| g.split_rows(g.permute(g.leaf(&z.a)?, [0, 3, 2, 1])?, 2));
    zoo.refused("f16", |z, g| g.split_rows(g.leaf(&z.f16)?, 2));
    for shift in [6, -6, i32::MAX, i32::MIN] {
        zoo.refused("rows of 6", |z, g| g.roll(g.leaf(&z.a)?, shift));
    }
    zoo.refused("f16", |z, g| g.roll(g.leaf(&z.f16)?, 1));
    zoo.refused("[6, 4, 2] and [5, 4, 2]", |z, g| g.concat(g.leaf(&z.a)?, g.leaf(&z.b)?, 1));
    zoo.refused("[6, 4, 2] and [6, 4, 2]", |z, g| g.concat(g.leaf(&z.a)?, g.leaf(&z.a)?, 4));
    zoo.refused("f16", |z, g| g.concat(g.leaf(&z.f16)?, g.leaf(&z.f16)?, 0));
}

#[test]
fn gathering() {
    let mut zoo = Zoo::new();
    zoo.refused("[6, 4] and [4]", |z, g| g.get_rows(g.leaf(&z.f16)?, g.leaf(&z.short)?));
    zoo.refused("[6, 4, 2] and [3]", |z, g| g.get_rows(g.leaf(&z.a)?, g.leaf(&z.i32)?));
    zoo.refused("i64", |z, g| g.get_rows(g.leaf(&z.i64)?, g.leaf(&z.i32)?));
    zoo.refused("", |z, g| g.get_rows(g.leaf(&z.i32)?, g.leaf(&z.i64)?));
    zoo.refused("i32", |z, g| g.get_rows(g.leaf(&z.i32)?, g.leaf(&z.i32)?));
}

/// ggml's CPU backend asserts that on a worker thread, and other backends read what lies there.
#[test]
fn rows_that_a_table_does_not_have() {
    let mut rig = Rig::new();
    let table = rig.f32(&Array::random([5, 4, 1, 1], 42));
    for index in [4, -1, i32::MAX, i32::MIN] {
        let indices = rig.i32(&[0, index, 3]);
        let error = rig.run(|g| g.get_rows(g.leaf(&table)?, g.leaf(&indices)?)).unwrap_err();
        assert_eq!(error.to_string(), format!("get_rows: row {index} of a table of 4"));
        // What counts is what the place holds when the graph runs.
        indices.write(&bytes_of(&[0i32, 2, 3], i32::to_ne_bytes)).unwrap();
        rig.run(|g| g.get_rows(g.leaf(&table)?, g.leaf(&indices)?)).unwrap();
    }
}

#[test]
fn tensors_of_another_graph() {
    let mut zoo = Zoo::new();
    let other = zoo.rig.graph();
    let stranger = other.leaf(&zoo.a).unwrap();
    zoo.refused("another graph", |_, g| g.silu(stranger));
    zoo.refused("another graph", |z, g| g.add(g.leaf(&z.a)?, stranger));
    zoo.refused("another graph", |z, g| g.mul_mat(g.leaf(&z.a)?, stranger));
    zoo.refused("another graph", |_, g| g.reshape(stranger, &[48]));
    zoo.refused("another graph", |_, g| g.output(stranger).map(|()| stranger));
    let place = zoo.a.clone();
    zoo.refused("another graph", |_, g| g.store(stranger, &place).map(|()| stranger));
    assert!(zoo.rig.graph().shape(stranger).is_err() && zoo.rig.graph().dtype(stranger).is_err());
}

#[test]
fn storing() {
    let mut zoo = Zoo::new();
    let store = |value: fn(&Zoo) -> &Placed, to: fn(&Zoo) -> &Placed| {
        move |z: &Zoo, g: &Graph| {
            let value = g.leaf(value(z))?;
            g.store(value, to(z)).map(|()| value)
        }
    };
    zoo.refused("[6, 4, 2] into [5, 4, 2]", store(|z| &z.a, |z| &z.b));
    // Between formats ggml copies some pairs, and aborts while it computes on others.
    zoo.refused("f16, not f32", store(|z| &z.f16, |z| &z.i64));
    zoo.refused("i64, not f32", store(|z| &z.i64, |z| &z.f16));
    zoo.refused("q8_0, not f32", store(|z| &z.q8_0, |z| &z.q8_0));
    zoo.refused("i32, not f32", store(|z| &z.i32, |z| &z.i32));
}

#[test]
fn a_full_graph() {
    let rig = Rig::new();
    let place = rig.f32(&Array::random([3, 1, 1, 1], 43));
    for capacity in [0, 1, 3] {
        let graph = Graph::new(rig.device, capacity).unwrap();
        for _ in 0..capacity {
            graph.leaf(&place).unwrap();
        }
        let error = graph.leaf(&place).unwrap_err().to_string();
        assert_eq!(error, format!("leaf: the graph is full at {capacity} tensors"));
    }
    let graph = Graph::new(rig.device, 2).unwrap();
    let a = graph.leaf(&place).unwrap();
    graph.silu(a).unwrap();
    assert!(graph.silu(a).unwrap_err().to_string().contains("full at 2 tensors"));
    // A store needs two: the place, and the copy.
    assert!(graph.store(a, &place).unwrap_err().to_string().contains("full"));
}

#[test]
fn a_graph_that_has_its_memory_is_finished() {
    let mut rig = Rig::new();
    let (place, out) = (rig.f32(&Array::random([3, 1, 1, 1], 44)), rig.f32(&Array::random([3, 1, 1, 1], 45)));
    let graph = rig.graph();
    let a = graph.leaf(&place).unwrap();
    let (used, unused) = (graph.silu(a).unwrap(), graph.gelu_erf(a).unwrap());
    graph.store(used, &out).unwrap();
    let mut arena = Arena::new(rig.device, &rig.ledger).unwrap();
    arena.assign(&[&graph]).unwrap();
    assert!(graph.leaf(&place).is_err() && graph.silu(a).is_err() && graph.permute(a, [1, 0, 2, 3]).is_err());
    assert!(graph.store(used, &place).is_err());
    // Its memory was never planned.
    assert!(graph.output(unused).is_err());
    assert!(arena.assign(&[&graph]).is_err());
    rig.backend.compute(&graph, &mut arena).unwrap();
    rig.backend.compute(&graph, &mut arena).unwrap();
}

#[test]
fn long_graphs_are_refused_before_they_overflow_the_stack() {
    let rig = Rig::new();
    for capacity in [1 << 20, 1 << 40, usize::MAX / 1000, usize::MAX] {
        let error = Graph::new(rig.device, capacity).map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Graph { .. } | Error::OutOfMemory { .. }), "{error}");
    }
    // The longest that is taken: ggml walks it recursively. Tests have stacks of 2 MiB.
    let place = rig.f32(&Array::random([3, 1, 1, 1], 46));
    let capacity = 8192;
    let graph = Graph::new(rig.device, capacity).unwrap();
    let mut last = graph.leaf(&place).unwrap();
    for _ in 1..capacity {
        last = graph.reshape(last, &[3]).unwrap();
    }
    graph.output(last).unwrap();
    assert_eq!(graph.nodes(), capacity - 1);
}

/// One operation with random operands and arguments.
#[derive(Clone, Debug)]
struct Step {
    op: usize,
    operands: [usize; 3],
    args: [usize; 4],
    axes: Dims,
    number: f32,
}

fn step() -> impl Strategy<Value = Step> {
    // Recent tensors more often than old ones; small arguments, and now and then an absurd one.
    let operand = prop_oneof![3 => 0..4usize, 1 => 0..TENSORS];
    let arg =
        prop_oneof![12 => 0..4usize, 4 => 4..9usize, 1 => prop::sample::select(vec![1 << 31, 1 << 62, usize::MAX])];
    let number = prop_oneof![4 => -2.0..2.0f32, 1 => prop::sample::select(vec![0.0, f32::NAN, f32::INFINITY])];
    let axes = Just([0, 1, 2, 3]).prop_shuffle();
    (0..OPS, prop::array::uniform3(operand), prop::array::uniform4(arg), axes, number)
        .prop_map(|(op, operands, args, axes, number)| Step { op, operands, args, axes, number })
}

const OPS: usize = 26;

impl Step {
    fn apply(&self, g: &Graph, tensors: &[Tensor]) -> Result<Tensor> {
        // Operand 0 is the youngest tensor.
        let [a, b, c] = self.operands.map(|back| tensors[tensors.len() - 1 - back % tensors.len()]);
        let [i, j, k, l] = self.args;
        match self.op {
            0 => g.add(a, b),
            1 => g.sub(a, b),
            2 => g.mul(a, b),
            3 => g.scale_bias(a, self.number, self.number),
            4 => g.silu(a),
            5 => g.gelu_tanh(a),
            6 => g.gelu_erf(a),
            7 => g.gelu_quick(a),
            8 => g.mul_mat(a, b),
            9 => g.norm(a, self.number),
            10 => g.rms_norm(a, self.number),
            11 => g.group_norm(a, i, self.number),
            12 => g.soft_max(a, (i % 2 == 0).then_some(b), self.number),
            13 => g.flash_attention(a, b, c, self.number, (i % 2 == 0).then(|| g.to_f16(a)).transpose()?),
            14 => g.conv_2d(a, b, i, j),
            15 => g.upscale_2x(a),
            16 => g.pad(a, i, j),
            17 => g.get_rows(a, b),
            18 => g.concat(a, b, i),
            19 => g.roll(a, (i as i32).wrapping_sub(2)),
            20 => g.reshape(a, &[i, j, k, l]),
            21 => {
                g.reshape(a, &[g.shape(a)?.row() * g.shape(a)?.dims()[1], g.shape(a)?.dims()[2], g.shape(a)?.dims()[3]])
            }
            22 => g.permute(a, self.axes),
            23 => g.slice(a, i, j % 2, k),
            24 => g.to_f16(a),
            _ => g.split_rows(a, i),
        }
    }
}

/// Leaves of small extents, ones among them, in formats that are used and in some that are not.
fn leaves(rig: &Rig) -> Vec<Placed> {
    let zeros = |dtype: DType, dims: Dims| rig.place(dtype, dims, &vec![0; shape(dims).bytes(dtype).unwrap()]);
    let mut places = vec![rig.i32(&[0, 1, 0]), rig.i32(&[2]), zeros(DType::I64, [2, 3, 1, 1])];
    for dims in [[3, 1, 1, 1], [1, 3, 1, 1], [2, 3, 1, 2], [4, 2, 3, 1], [1, 1, 2, 2], [2, 2, 2, 2], [32, 4, 1, 1]] {
        places.push(rig.f32(&Array::random(dims, 47)));
    }
    for dtype in [DType::F16, DType::BF16, DType::Q8_0] {
        places.push(zeros(dtype, [32, 32, 1, 1]));
        places.push(zeros(dtype, [32, 2, 2, 1]));
    }
    places
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever operations are asked for, each is refused or can be computed.
    #[test]
    fn nothing_aborts(
        steps in prop::collection::vec(step(), 1..24),
        picked in prop::collection::vec(0..100usize, 6),
    ) {
        let mut rig = Rig::new();
        let places = leaves(&rig);
        let graph = rig.graph();
        let mut tensors: Vec<Tensor> =
            picked.iter().map(|&pick| graph.leaf(&places[pick % places.len()]).unwrap()).collect();
        for step in &steps {
            if let Ok(tensor) = step.apply(&graph, &tensors)
                && graph.shape(tensor).unwrap().elements() <= 1 << 14
            {
                graph.output(tensor).unwrap();
                tensors.push(tensor);
            }
        }
        match rig.compute(&graph) {
            Ok(()) => {}
            // The rows that are asked for are known only now.
            Err(Error::Graph { op: "get_rows", .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}
