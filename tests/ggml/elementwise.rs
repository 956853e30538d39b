//! Elementwise functions and norms against plain loops.

use pinhole::Result;
use pinhole::ggml::{Arena, Device, Graph, Tensor};
use pinhole::kernels::Kernel;
use proptest::prelude::*;

use crate::array::{Array, Dims, assert_close};
use crate::rig::{Operand, Rig, TENSORS, Twist};

/// Single precision, a few operations long.
const F32: f64 = 2e-6;

/// Single precision, to the last bits.
const LAST_BITS: f64 = 2.5e-7;

/// ggml rounds the argument and the result of most of these functions to F16 on the CPU.
const F16_TABLE: f64 = 1e-3;

fn extents() -> impl Strategy<Value = Dims> {
    [1..8usize, 1..6usize, 1..4usize, 1..4usize]
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The error function by its Maclaurin series, which converges fast enough for the numbers here.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..60 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

fn mean(row: &[f64]) -> f64 {
    row.iter().sum::<f64>() / row.len() as f64
}

fn normal(row: &[f64], eps: f32) -> Vec<f64> {
    let mean = mean(row);
    mean_square_one(&row.iter().map(|x| x - mean).collect::<Vec<_>>(), eps)
}

fn mean_square_one(row: &[f64], eps: f32) -> Vec<f64> {
    let squares: Vec<f64> = row.iter().map(|x| x * x).collect();
    let scale = (mean(&squares) + f64::from(eps)).sqrt();
    row.iter().map(|x| x / scale).collect()
}

type Function = (&'static str, fn(&Graph, Tensor) -> Result<Tensor>, fn(f64) -> f64, f64);

const FUNCTIONS: [Function; 6] = [
    ("scale_bias", |g, a| g.scale_bias(a, -1.75, 0.5), |x| -1.75 * x + 0.5, F32),
    ("relu", Graph::relu, |x| x.max(0.0), LAST_BITS),
    ("silu", Graph::silu, |x| x * sigmoid(x), LAST_BITS),
    (
        "gelu_tanh",
        Graph::gelu_tanh,
        |x| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()),
        LAST_BITS,
    ),
    ("gelu_erf", Graph::gelu_erf, |x| 0.5 * x * (1.0 + erf(x / 2f64.sqrt())), LAST_BITS),
    ("gelu_quick", Graph::gelu_quick, |x| x * sigmoid(1.702 * x), LAST_BITS),
];

type Pair = (&'static str, fn(&Graph, Tensor, Tensor) -> Result<Tensor>, fn(f64, f64) -> f64);

const PAIRS: [Pair; 3] =
    [("add", Graph::add, |a, b| a + b), ("sub", Graph::sub, |a, b| a - b), ("mul", Graph::mul, |a, b| a * b)];

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn functions_of_one_number(dims in extents(), twist in Twist::any(), seed: u64) {
        let mut rig = Rig::new();
        let a = Operand::new(&rig, dims, &twist, seed);
        for (name, function, expected, tolerance) in FUNCTIONS {
            for (kernel, most) in [(Kernel::best().or(Some(Kernel::Portable)), tolerance), (None, tolerance.max(F16_TABLE))] {
                let found = rig.run(|g| {
                    g.set_kernel(kernel);
                    function(g, a.tensor(g)?)
                });
                assert_close(name, &a.array.map(expected), &found.unwrap(), most);
            }
        }
    }

    #[test]
    fn functions_of_two_numbers_repeat_the_second(
        small in extents(),
        times in [1..4usize, 1..4usize, 1..3usize, 1..3usize],
        twists in [Twist::any(), Twist::any()],
        seed: u64,
    ) {
        let mut rig = Rig::new();
        let large = std::array::from_fn(|i| small[i] * times[i]);
        let a = Operand::new(&rig, large, &twists[0], seed);
        let b = Operand::new(&rig, small, &twists[1], !seed);
        for (name, function, expected) in PAIRS {
            let found = rig.run(|g| function(g, a.tensor(g)?, b.tensor(g)?)).unwrap();
            let expected = Array::from_fn(large, |i| expected(a.array.at(i), b.array.repeated(i)));
            assert_close(name, &expected, &found, F32);
        }
    }

    #[test]
    fn norms_of_rows(dims in extents(), twist in Twist::any(), seed: u64) {
        const EPS: f32 = 1e-3;
        let mut rig = Rig::new();
        let a = Operand::new(&rig, dims, &twist, seed);
        let found = rig.run(|g| g.norm(a.tensor(g)?, EPS)).unwrap();
        assert_close("norm", &a.array.map_rows(|row| normal(row, EPS)), &found, 1e-5);
        let found = rig.run(|g| g.rms_norm(a.tensor(g)?, EPS)).unwrap();
        assert_close("rms_norm", &a.array.map_rows(|row| mean_square_one(row, EPS)), &found, 1e-5);
    }

    #[test]
    fn norms_of_groups(
        [w, h, n] in [1..8usize, 1..6usize, 1..3usize],
        [each, groups] in [1..4usize, 1..4usize],
        twist in Twist::any(),
        seed: u64,
    ) {
        const EPS: f32 = 1e-3;
        let mut rig = Rig::new();
        let dims = [w, h, each * groups, n];
        let a = Operand::new(&rig, dims, &twist, seed);
        let found = rig.run(|g| g.group_norm(a.tensor(g)?, groups, EPS)).unwrap();
        // The channels of a group lie one after the other, so that a group is a row of another shape.
        let rows = a.array.reshape([w * h * each, groups, n, 1]).map_rows(|row| normal(row, EPS));
        assert_close("group_norm", &rows.reshape(dims), &found, 1e-5);
    }
}

#[test]
fn an_epsilon_of_nothing_is_fine() {
    let mut rig = Rig::new();
    let a = Operand::new(&rig, [7, 3, 1, 1], &Twist::NONE, 5);
    let found = rig.run(|g| g.norm(a.tensor(g)?, 0.0)).unwrap();
    assert_close("norm", &a.array.map_rows(|row| normal(row, 0.0)), &found, 1e-5);
}

/// Results take the place of operands that are not needed any more, as ggml's do, and of no others.
#[test]
fn functions_work_in_place() {
    let mut rig = Rig::new();
    let a = Operand::new(&rig, [700, 9, 1, 1], &Twist::NONE, 3);
    let expected = a.array.map(|x| {
        let scaled = f64::from(0.5 * x as f32);
        let silu = |x: f64| f64::from((x * sigmoid(x)) as f32);
        silu(silu(scaled)) + scaled
    });
    let found = rig.run(|g| {
        let scaled = g.scale(a.tensor(g)?, 0.5)?;
        g.add(g.silu(g.silu(scaled)?)?, scaled)
    });
    assert_close("silu(silu(x)) + x", &expected, &found.unwrap(), 5e-7);
}

#[test]
fn functions_take_no_more_memory_than_ggmls() {
    let rig = Rig::new();
    let a = Operand::new(&rig, [700, 9, 1, 1], &Twist::NONE, 3);
    for device in [Device::cpu().unwrap(), Device::by_name("cpu:discrete").unwrap()] {
        for (name, function, ..) in FUNCTIONS {
            let bytes = |own: bool| {
                let graph = Graph::new(device, TENSORS).unwrap();
                if !own {
                    graph.set_kernel(None);
                }
                let scaled = graph.scale(a.tensor(&graph).unwrap(), 0.5).unwrap();
                let result = function(&graph, function(&graph, scaled).unwrap()).unwrap();
                graph.output(graph.add(result, a.tensor(&graph).unwrap()).unwrap()).unwrap();
                Arena::measure(&graph).unwrap()
            };
            assert_eq!(bytes(true), bytes(false), "{name}");
        }
    }
}
