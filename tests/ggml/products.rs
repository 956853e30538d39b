//! Matrix products, in every format that a matrix may have.

use pinhole::ggml::{Arena, Heavy, Operands, support};
use pinhole::kernels::Kernel;
use pinhole_quant::{DType, rows};
use proptest::prelude::*;

use crate::array::{Array, Dims, assert_close, assert_nmse};
use crate::rig::{Operand, Rig, Twist};

/// `w [k, m, ..]` times `x [k, n, ..]`, with `w` repeated: ggml shares each of its matrices among neighbours.
fn product(w: &Array, x: &Array) -> Array {
    let [k, m, w2, w3] = w.dims;
    let [_, n, x2, x3] = x.dims;
    Array::from_fn([m, n, x2, x3], |[row, column, i, j]| {
        let (wi, wj) = (i / (x2 / w2), j / (x3 / w3));
        (0..k).map(|l| w.at([l, row, wi, wj]) * x.at([l, column, i, j])).sum()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn in_single_precision(
        [k, m, n] in [1..20usize, 1..20usize, 1..20usize],
        [w2, w3] in [1..4usize, 1..3usize],
        [more2, more3] in [1..3usize, 1..3usize],
        before in 0..3usize,
        x_twist in Twist::any(),
        seed: u64,
    ) {
        let mut rig = Rig::new();
        // The left matrix may be cut, and its matrices may be in another order; its rows are as they are.
        let w = Array::random([k, m + before, w3, w2], seed);
        let w_place = rig.f32(&w);
        let x = Operand::new(&rig, [k, n, w2 * more2, w3 * more3], &x_twist, !seed);
        let found = rig.run(|g| {
            let w = g.permute(g.slice(g.leaf(&w_place)?, 1, before, m)?, [0, 1, 3, 2])?;
            g.mul_mat(w, x.tensor(g)?)
        }).unwrap();
        let w = w.slice(1, before, m).permute([0, 1, 3, 2]);
        assert_close("mul_mat", &product(&w, &x.array), &found, 1e-5);
    }
}

/// Bytes of `dims` in `dtype`, and the numbers that they stand for.
fn matrix(dtype: DType, dims: Dims, seed: u64) -> (Vec<u8>, Array) {
    let numbers = Array::random(dims, seed).f32();
    let mut bytes = vec![0; dtype.row_bytes(numbers.len()).unwrap()];
    if has_grids(dtype) {
        random_blocks(dtype, &numbers, &mut bytes);
    } else {
        rows::quantize(dtype, &numbers, dims[0], &mut bytes).unwrap();
    }
    let mut numbers = vec![f32::NAN; numbers.len()];
    rows::dequantize(dtype, &bytes, &mut numbers).unwrap();
    (bytes, Array::from_f32(dims, &numbers))
}

/// The formats that ggml writes only with an importance matrix, or after a quarter of a minute of preparation. What it
/// reads may be any bytes.
fn has_grids(dtype: DType) -> bool {
    use DType::*;
    matches!(dtype, IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S | IQ1_S | IQ1_M)
}

/// Fills `bytes` with blocks whose scale is 1/16, and everything else as it comes.
fn random_blocks(dtype: DType, numbers: &[f32], bytes: &mut [u8]) {
    const SCALE: u16 = 0x2C00; // 1/16 in F16
    let mut random = numbers.iter().cycle();
    bytes.fill_with(|| random.next().map_or(0, |number| (number.to_bits() >> 10) as u8));
    for block in bytes.chunks_mut(dtype.block_bytes()) {
        if dtype == DType::IQ1_M {
            // Its scale is spread over the upper quarters of its last four halves, lowest first.
            let scales = block.len() - 8;
            for (i, byte) in block[scales..].iter_mut().skip(1).step_by(2).enumerate() {
                *byte = *byte & 0x0F | ((SCALE >> (4 * i) & 0xF) << 4) as u8;
            }
        } else {
            block[..2].copy_from_slice(&SCALE.to_le_bytes());
        }
    }
}

#[test]
fn in_every_format() {
    let mut rig = Rig::new();
    for dtype in DType::all().filter(|dtype| support::matrix(*dtype)) {
        // Odd numbers of rows and columns; even ones take other paths on some processors.
        for (dims, x_dims) in [
            ([512, 7, 1, 1], [512, 5, 2, 1]),
            ([256, 16, 2, 1], [256, 8, 2, 3]),
            ([256, 33, 1, 1], [256, 1, 1, 1]),
            ([256, 1, 1, 1], [256, 34, 1, 1]),
        ] {
            let (bytes, w) = matrix(dtype, dims, 11);
            let place = rig.place(dtype, dims, &bytes);
            let x = Operand::new(&rig, x_dims, &Twist::NONE, 12);
            let found = rig.run(|g| g.mul_mat(g.leaf(&place)?, x.tensor(g)?)).unwrap();
            assert_nmse(&format!("{dtype} {dims:?}"), &product(&w, &x.array), &found, most(dtype));
        }
    }
}

#[test]
fn parts_are_those_of_the_whole_to_the_bit() {
    let mut rig = Rig::new();
    for dtype in DType::all().filter(|dtype| support::matrix(*dtype)) {
        let (bytes, _) = matrix(dtype, [256, 48, 1, 1], 14);
        let place = rig.place(dtype, [256, 48, 1, 1], &bytes);
        let x = Operand::new(&rig, [256, 80, 1, 1], &Twist::NONE, 15);
        let whole = rig.run(|g| g.mul_mat(g.leaf(&place)?, x.tensor(g)?)).unwrap();
        // Columns come in multiples of 32, except for the last; rows are the parts of fused matrices.
        for (column, columns) in [(0, 32), (32, 32), (64, 16), (0, 64)] {
            for (row, rows) in [(0, 16), (16, 32)] {
                let part = rig.run(|g| {
                    let w = g.slice(g.leaf(&place)?, 1, row, rows)?;
                    g.mul_mat(w, g.slice(x.tensor(g)?, 1, column, columns)?)
                });
                let expected = whole.slice(1, column, columns).slice(0, row, rows);
                assert_eq!(part.unwrap(), expected, "{dtype}: rows from {row}, columns from {column}");
            }
        }
    }
}

/// How far a product may be from that of the numbers which the matrix stands for: ggml rounds the right operand to the
/// format that goes with the left one.
fn most(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 1e-12,
        DType::F16 => 1e-6,
        // 8 bits each, with a scale for every block.
        _ => 5e-4,
    }
}

#[test]
fn rows_of_every_format_are_gathered() {
    let mut rig = Rig::new();
    let indices = rig.i32(&[2, 0, 2]);
    for dtype in DType::all().filter(|dtype| support::matrix(*dtype)) {
        let (bytes, table) = matrix(dtype, [256, 3, 1, 1], 13);
        let place = rig.place(dtype, table.dims, &bytes);
        let found = rig.run(|g| g.get_rows(g.leaf(&place)?, g.leaf(&indices)?)).unwrap();
        let expected = Array::from_fn(table.dims, |[i, j, ..]| table.at([i, [2, 0, 2][j], 0, 0]));
        assert_eq!(found, expected, "{dtype}");
    }
}

/// Products by pinhole's kernels: weights that are some rows of a matrix, activations that are a view with batches, and
/// one quantization of them for two products.
#[test]
fn by_own_kernels() {
    let mut rig = Rig::new();
    for kernel in Kernel::available() {
        for (dtype, seed) in [(DType::Q8_0, 31), (DType::Q4_1, 32), (DType::Q5_0, 33), (DType::Q4_K, 34)] {
            let (bytes, w) = matrix(dtype, [512, 41, 1, 1], seed);
            let place = rig.place(dtype, w.dims, &bytes);
            let x = Operand::new(&rig, [512, 17, 2, 2], &Twist::MIDDLE, seed + 10);
            let found = rig.run(|g| {
                g.set_kernel(Some(kernel));
                let (w, x) = (g.leaf(&place)?, x.tensor(g)?);
                g.concat(g.mul_mat(g.slice(w, 1, 5, 30)?, x)?, g.mul_mat(w, x)?, 0)
            });
            let (all, found) = (product(&w, &x.array), found.unwrap());
            let expected = Array::from_fn([71, 17, 2, 2], |[row, i, j, l]| {
                all.at([if row < 30 { row + 5 } else { row - 30 }, i, j, l])
            });
            assert_nmse(&format!("{dtype} {}", kernel.name()), &expected, &found, most(dtype));
        }
    }
}

/// A bias is added to the same sums, and halves that a product joins are quantized as the joined whole: to the bit.
#[test]
fn with_biases_and_of_halves() {
    let mut rig = Rig::new();
    for kernel in [None].into_iter().chain(Kernel::available().map(Some)) {
        for (dtype, first) in [(DType::Q8_0, 96), (DType::Q4_1, 64), (DType::F32, 33), (DType::Q8_0, 40)] {
            let (bytes, w) = matrix(dtype, [256, 41, 1, 1], 61);
            let (place, bias) = (rig.place(dtype, w.dims, &bytes), Operand::new(&rig, [30, 1, 1, 1], &Twist::NONE, 62));
            let a = Operand::new(&rig, [first, 40, 2, 1], &Twist::MIDDLE, 63);
            let b = Operand::new(&rig, [256 - first, 40, 2, 1], &Twist::NONE, 64);
            let mut run = |apart: bool| {
                let made = rig.run(|g| {
                    g.set_kernel(kernel);
                    let w = g.slice(g.leaf(&place)?, 1, 5, 30)?;
                    let joined = g.concat(a.tensor(g)?, b.tensor(g)?, 0)?;
                    match apart {
                        // Another tensor, of the same numbers, which no one knows to be joined.
                        true => g.add(g.mul_mat(w, g.scale(joined, 1.0)?)?, bias.tensor(g)?),
                        false => g.linear(w, joined, bias.tensor(g)?),
                    }
                });
                made.unwrap()
            };
            assert_eq!(run(true), run(false), "{dtype} {first} {kernel:?}");
        }
    }
}

#[test]
fn biases_that_do_not_fit_are_refused() {
    let mut rig = Rig::new();
    let (bytes, w) = matrix(DType::Q8_0, [64, 8, 1, 1], 71);
    let (place, x) = (rig.place(DType::Q8_0, w.dims, &bytes), Operand::new(&rig, [64, 70, 1, 1], &Twist::NONE, 72));
    for dims in [[7, 1, 1, 1], [16, 1, 1, 1], [8, 3, 1, 1]] {
        let bias = Operand::new(&rig, dims, &Twist::NONE, 73);
        assert!(rig.run(|g| g.linear(g.leaf(&place)?, x.tensor(g)?, bias.tensor(g)?)).is_err(), "{dims:?}");
    }
    let (bias, short) = (Operand::new(&rig, [8, 1, 1, 1], &Twist::NONE, 74), [32, 70, 1, 1]);
    let short = Operand::new(&rig, short, &Twist::NONE, 75);
    assert!(rig.run(|g| g.linear(g.leaf(&place)?, short.tensor(g)?, bias.tensor(g)?)).is_err());
}

/// Products and attentions of a graph by themselves: as many operations, on the same weights.
#[test]
fn alone() {
    let mut rig = Rig::new();
    let (bytes, w) = matrix(DType::Q8_0, [256, 64, 1, 1], 81);
    let place = rig.place(DType::Q8_0, w.dims, &bytes);
    let x = Operand::new(&rig, [128, 70, 1, 1], &Twist::NONE, 82);
    let graph = rig.graph();
    let (leaf, half) = (graph.leaf(&place).unwrap(), x.tensor(&graph).unwrap());
    let joined = graph.concat(half, half, 0).unwrap();
    let y = graph.mul_mat(graph.slice(leaf, 1, 0, 32).unwrap(), joined).unwrap(); // [32, 70]
    let heads = graph.permute(graph.split_rows(y, 2).unwrap(), [0, 2, 1, 3]).unwrap(); // [16, 70, 2]
    let attended = graph.flash_attention(heads, heads, heads, 0.25, None).unwrap();
    // Scores: a product without weights.
    let scores = graph.mul_mat(y, y).unwrap(); // [70, 70]
    graph.output(attended).unwrap();
    graph.output(scores).unwrap();
    let mut operands = Operands::new(&rig.ledger, |i| (i % 7) as f32 - 3.0);
    let products = graph.alone(Heavy::Products, &mut operands).unwrap().unwrap();
    assert_eq!(products.operations, 2 * 256 * 32 * 70 + 2 * 32 * 70 * 70);
    assert_eq!(products.weight_bytes, 32 * 256 / 32 * 34);
    let attentions = graph.alone(Heavy::Attentions, &mut operands).unwrap().unwrap();
    assert_eq!((attentions.operations, attentions.weight_bytes), (4 * 16 * 70 * 70 * 2, 0));
    for alone in [&products, &attentions] {
        rig.compute(&alone.graph).unwrap();
    }
    let nothing = rig.graph();
    nothing.output(nothing.silu(x.tensor(&nothing).unwrap()).unwrap()).unwrap();
    assert!(nothing.alone(Heavy::Products, &mut operands).unwrap().is_none());
    // And by operation: every one of them, with a name.
    let mut arena = Arena::new(rig.device, &rig.ledger).unwrap();
    arena.assign(&[&graph]).unwrap();
    let times = rig.backend.compute_timed(&graph, &mut arena).unwrap();
    let count = |name: &str| times.iter().filter(|operation| operation.name.contains(name)).count();
    assert_eq!((count("matrix product"), count("attention")), (2, 1), "{times:?}");
}
