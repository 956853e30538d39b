//! pinhole's kernels for matrix products and nonlinear functions: right numbers at any size, the same bits however the work is
//! shared, and errors no larger than ggml's.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use pinhole::ggml::{Arena, Backend, Buffer, CancelFlag, Device, Graph, Ledger, Placed};
use pinhole::kernels::{Columns, Kernel, Nonlinearity, Product, Workspace};
use pinhole::tensor::Shape;
use pinhole_quant::{DType, rows};
use proptest::prelude::*;

/// Formats with a kernel.
fn formats() -> impl Iterator<Item = DType> {
    DType::all().filter(|dtype| Kernel::Portable.multiplies(*dtype))
}

/// Kernels for weights of `dtype`.
fn kernels(dtype: DType) -> impl Iterator<Item = Kernel> {
    Kernel::available().filter(move |kernel| kernel.multiplies(dtype))
}

/// Formats with each of their kernels.
fn pairs() -> impl Iterator<Item = (DType, Kernel)> {
    formats().flat_map(|dtype| kernels(dtype).map(move |kernel| (dtype, kernel)))
}

/// Numbers of a splitmix64 sequence, uniform in -1 to 1.
fn numbers(seed: u64) -> impl Iterator<Item = f32> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    })
}

/// Weights, as bytes and as the numbers that these stand for, and activations.
struct Operands {
    dtype: DType,
    k: usize,
    bytes: Vec<u8>,
    weights: Vec<f32>,
    activations: Vec<f32>,
}

impl Operands {
    /// Activations have a few numbers that are far larger than the others, as a transformer's have.
    fn new(dtype: DType, [k, rows, tokens]: [usize; 3], seed: u64) -> Operands {
        let weights: Vec<f32> = numbers(seed).take(k * rows).collect();
        let mut bytes = vec![0; dtype.row_bytes(k).unwrap() * rows];
        rows::quantize(dtype, &weights, k, &mut bytes).unwrap();
        let activations = numbers(!seed).take(k * tokens).map(|x| if x > 0.98 { 40.0 * x } else { x }).collect();
        Operands::of(dtype, k, bytes, activations)
    }

    fn of(dtype: DType, k: usize, bytes: Vec<u8>, activations: Vec<f32>) -> Operands {
        let mut weights = vec![f32::NAN; bytes.len() / dtype.row_bytes(k).unwrap() * k];
        rows::dequantize(dtype, &bytes, &mut weights).unwrap();
        Operands { dtype, k, bytes, weights, activations }
    }

    fn rows(&self) -> usize {
        self.weights.len() / self.k
    }

    fn tokens(&self) -> usize {
        self.activations.len() / self.k
    }

    /// The product in f64, token by token.
    fn exact(&self) -> Vec<f64> {
        self.activations
            .chunks(self.k)
            .flat_map(|x| self.weights.chunks(self.k).map(|w| sum(w, x, |w, x| w * x)).collect::<Vec<_>>())
            .collect()
    }

    /// How far numbers of the product may be from the exact ones: activations are rounded to 1/127 of the largest of 32, so
    /// by half of that at most; sums of f32 lose some of their last bits.
    fn tolerance(&self) -> Vec<f64> {
        self.activations
            .chunks(self.k)
            .flat_map(|x| {
                let steps: Vec<f32> = x
                    .chunks(32)
                    .flat_map(|x| [x.iter().fold(0.0, |most: f32, x| most.max(x.abs())) / 127.0; 32])
                    .collect();
                self.weights
                    .chunks(self.k)
                    .map(|w| {
                        let rounding = sum(w, &steps, |w, step| w.abs() * step * 0.501);
                        rounding + sum(w, x, |w, x| (w * x).abs()) * 2e-5 + 1e-30
                    })
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    /// The product by `kernel`, a panel after another.
    fn by(&self, kernel: Kernel) -> Vec<f32> {
        let product = Product::new(kernel, self.dtype, self.k, self.rows(), self.tokens()).unwrap();
        let mut packed = vec![0; product.packed_bytes()];
        let tokens: Vec<&[f32]> = self.activations.chunks(self.k).collect();
        for tile in (0..product.tiles()).map(|i| product.tile(i)) {
            let rows: Vec<&[f32]> = tokens[tile.tokens].iter().map(|token| &token[tile.columns.clone()]).collect();
            product.pack(&rows, &mut packed[tile.bytes]);
        }
        let weights: Vec<&[u8]> = self.bytes.chunks(product.row_bytes()).collect();
        let mut out = Matrix { numbers: vec![f32::NAN; self.rows() * self.tokens()], rows: self.rows(), panel: 0..0 };
        let mut workspace = Workspace::new();
        for (i, panel) in weights.chunks(product.panel_rows()).enumerate() {
            let first = i * product.panel_rows();
            out.panel = first..first + panel.len();
            product.multiply(panel, &packed, &mut workspace, &mut out);
        }
        out.numbers
    }

    /// The product in a graph, on `threads` threads; by ggml where `kernel` is none.
    fn in_graph(&self, kernel: Option<Kernel>, threads: usize) -> Vec<f32> {
        let (device, ledger) = (Device::cpu().unwrap(), Ledger::new());
        let mut backend = Backend::new(device, threads, CancelFlag::new()).unwrap();
        let place = |dtype, dims: [usize; 2], bytes: &[u8]| {
            let buffer = Buffer::allocate(device, bytes.len(), &ledger, "ports").unwrap();
            let place = Placed::new(&buffer, 0, dtype, Shape::new(&dims).unwrap()).unwrap();
            place.write(bytes).unwrap();
            place
        };
        let bytes = |numbers: &[f32]| numbers.iter().flat_map(|x| x.to_ne_bytes()).collect::<Vec<u8>>();
        let weights = place(self.dtype, [self.k, self.rows()], &self.bytes);
        let activations = place(DType::F32, [self.k, self.tokens()], &bytes(&self.activations));
        let dims = [self.rows(), self.tokens()];
        let out = place(DType::F32, dims, &bytes(&vec![f32::NAN; dims[0] * dims[1]]));
        let graph = Graph::new(device, 8).unwrap();
        graph.set_kernel(kernel);
        let product = graph.mul_mat(graph.leaf(&weights).unwrap(), graph.leaf(&activations).unwrap()).unwrap();
        graph.store(product, &out).unwrap();
        let mut arena = Arena::new(device, &ledger).unwrap();
        arena.assign(&[&graph]).unwrap();
        // Twice: what shares out the work has to be as new after the first time.
        backend.compute(&graph, &mut arena).unwrap();
        backend.compute(&graph, &mut arena).unwrap();
        let mut result = vec![0; out.bytes()];
        out.read(&mut result).unwrap();
        result.as_chunks::<4>().0.iter().map(|&x| f32::from_ne_bytes(x)).collect()
    }

    #[track_caller]
    fn assert_close(&self, what: &str, found: &[f32]) {
        let (exact, tolerance) = (self.exact(), self.tolerance());
        assert_eq!(found.len(), exact.len());
        for (i, ((found, exact), tolerance)) in found.iter().zip(exact).zip(tolerance).enumerate() {
            let error = (f64::from(*found) - exact).abs();
            assert!(error <= tolerance, "{what} {}: {found} at {i}, not {exact}, give or take {tolerance}", self.dtype);
        }
    }

    /// Mean square error over mean square.
    fn error(&self, found: &[f32]) -> f64 {
        let exact = self.exact();
        let squares: f64 = exact.iter().map(|x| x * x).sum();
        found.iter().zip(exact).map(|(found, exact)| (f64::from(*found) - exact).powi(2)).sum::<f64>() / squares
    }
}

fn sum(w: &[f32], x: &[f32], term: impl Fn(f64, f64) -> f64) -> f64 {
    w.iter().zip(x).map(|(w, x)| term(f64::from(*w), f64::from(*x))).sum()
}

/// A result, and the rows of it that are being computed.
struct Matrix {
    numbers: Vec<f32>,
    rows: usize,
    panel: std::ops::Range<usize>,
}

impl Columns for Matrix {
    fn put(&mut self, token: usize, numbers: &[f32]) {
        let start = token * self.rows;
        self.numbers[start + self.panel.start..start + self.panel.end].copy_from_slice(numbers);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_size_is_near_the_exact_product(
        format in 0..formats().count(),
        blocks in 1..60usize,
        rows in 1..70usize,
        tokens in 1..20usize,
        seed: u64,
    ) {
        let dtype = formats().nth(format).unwrap();
        // Some are longer than a panel, and rarely a multiple of one.
        let k = if dtype.block_size() == 32 { 32 * blocks } else { 256 * (blocks % 8 + 1) };
        let operands = Operands::new(dtype, [k, rows, tokens], seed);
        let portable = operands.by(Kernel::Portable);
        operands.assert_close("portable", &portable);
        for kernel in kernels(dtype) {
            prop_assert_eq!(&portable, &operands.by(kernel), "{} {}", kernel.name(), dtype);
        }
    }

    #[test]
    fn a_token_does_not_depend_on_its_company(rows in 1..40usize, tokens in 2..30usize, seed: u64) {
        for (dtype, kernel) in pairs() {
            let all = Operands::new(dtype, [768, rows, tokens], seed);
            let together = all.by(kernel);
            let alone = Operands::of(dtype, 768, all.bytes.clone(), all.activations[(tokens - 1) * 768..].to_vec());
            prop_assert_eq!(&together[(tokens - 1) * rows..], alone.by(kernel), "{} {}", kernel.name(), dtype);
        }
    }
}

/// Columns of a result that is wanted until the first of them comes.
struct Unwanted(usize);

impl Columns for Unwanted {
    fn put(&mut self, _: usize, _: &[f32]) {
        self.0 += 1;
    }

    fn wanted(&self) -> bool {
        self.0 == 0
    }
}

#[test]
fn a_product_that_is_not_wanted_any_more_ends_early() {
    let tokens = 100_000;
    for kernel in Kernel::available() {
        let product = Product::new(kernel, DType::Q8_0, 32, 1, tokens).unwrap();
        let (row, packed) = (vec![0; product.row_bytes()], vec![0; product.packed_bytes()]);
        let mut columns = Unwanted(0);
        product.multiply(&[&row], &packed, &mut Workspace::new(), &mut columns);
        assert!(columns.0 > 0 && columns.0 < tokens / 10, "{}: {} of {tokens}", kernel.name(), columns.0);
    }
}

/// More tokens than there are sums kept at a time, and a last tile that is not whole: every token is what it is alone.
#[test]
fn many_tokens_are_what_few_are() {
    let (tokens, part) = (2601, 700);
    for (dtype, kernel) in pairs() {
        let all = Operands::new(dtype, [768, 40, tokens], 9);
        let together = all.by(kernel);
        for first in (0..tokens).step_by(part) {
            let some = first..tokens.min(first + part);
            let activations = all.activations[some.start * 768..some.end * 768].to_vec();
            let few = Operands::of(dtype, 768, all.bytes.clone(), activations);
            assert!(together[some.start * 40..some.end * 40] == few.by(kernel), "{} {dtype}", kernel.name());
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    for (dtype, kernel) in pairs() {
        let operands = Operands::new(dtype, [1280, 117, 70], 3);
        let one = operands.in_graph(Some(kernel), 1);
        assert_eq!(one, operands.by(kernel), "{} {dtype}", kernel.name());
        assert_eq!(one, operands.in_graph(Some(kernel), 2), "{} {dtype}", kernel.name());
    }
}

#[test]
fn no_less_exact_than_ggml() {
    for dtype in formats() {
        let operands = Operands::new(dtype, [1024, 96, 64], 5);
        let ggml = operands.error(&operands.in_graph(None, 2));
        for kernel in kernels(dtype) {
            let own = operands.error(&operands.by(kernel));
            // Both round the same numbers; here and there a rounded scale of ggml's happens to be lucky.
            assert!(own <= 1.01 * ggml, "{} {dtype}: {own:.3e}, and ggml {ggml:.3e}", kernel.name());
        }
    }
}

/// `PINHOLE_KERNELS=portable,avx2` says which kernels these tests have to be about.
#[test]
fn kernels_that_are_expected_are_there() {
    let available: Vec<_> = Kernel::available().map(Kernel::name).collect();
    if let Ok(expected) = std::env::var("PINHOLE_KERNELS") {
        assert_eq!(available.join(","), expected);
    }
    assert_eq!(available[0], "portable");
    assert_eq!(Kernel::best().map(Kernel::name), available[1..].last().copied());
}

/// The largest codes on both sides, with every pairing of signs: sums of products of 8 bits must not leave the numbers that
/// they are kept in.
#[test]
fn nothing_overflows() {
    let one = half::f16::ONE.to_le_bytes();
    let block = |dtype, fill: u8| -> Vec<u8> {
        let mut block = vec![fill; DType::block_bytes(dtype)];
        if dtype == DType::Q6_K {
            block[208..].copy_from_slice(&one);
            return block;
        }
        block[..2].copy_from_slice(&one);
        // A shift, or the scale of the minima.
        if matches!(dtype, DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K) {
            block[2..4].copy_from_slice(&one);
        }
        block
    };
    for dtype in formats() {
        for (fill, sign) in [(0xFF, 1.0), (0xFF, -1.0), (0x80, 1.0), (0x80, -1.0), (0x7F, 1.0), (0x00, -1.0)] {
            let k = 8192;
            let bytes = block(dtype, fill).repeat(3 * k / dtype.block_size());
            // So few that no panel is made for them, and more.
            for tokens in [2, 14] {
                let operands = Operands::of(dtype, k, bytes.clone(), vec![sign * 2.5; tokens * k]);
                for kernel in kernels(dtype) {
                    operands.assert_close(kernel.name(), &operands.by(kernel));
                }
            }
        }
    }
}

#[test]
fn what_is_not_finite_shows_in_its_token_alone() {
    for (dtype, kernel) in pairs() {
        let mut operands = Operands::new(dtype, [512, 5, 9], 7);
        operands.activations[3 * 512 + 100] = f32::NAN;
        for (i, number) in operands.by(kernel).into_iter().enumerate() {
            assert_eq!(number.is_nan(), i / 5 == 3, "{} {dtype} {i}", kernel.name());
        }
    }
}

#[test]
fn products_that_do_not_exist() {
    let k = Kernel::Portable;
    assert!(Product::new(k, DType::Q8_0, 48, 1, 1).is_none(), "blocks do not divide it");
    assert!(Product::new(k, DType::Q3_K, 256, 1, 1).is_none(), "no kernel for the format");
    assert!(Product::new(k, DType::Q8_0, 1 << 62, 1 << 10, 1).is_none(), "too large");
    assert!(Product::new(k, DType::Q8_0, 1 << 40, 1, 1 << 40).is_none(), "too large");
}

/// `exp(z^2)` times the complementary error function of `z >= 0`.
fn scaled_erfc(z: f64) -> f64 {
    if z > 2.0 {
        // The continued fraction, from its end.
        let fraction = (1..200).rev().fold(z, |below, n| z + f64::from(n) / 2.0 / below);
        return 1.0 / (fraction * std::f64::consts::PI.sqrt());
    }
    let (mut term, mut sum) = (z, z);
    for n in 1..80 {
        term *= -z * z / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    (z * z).exp() * (1.0 - sum * std::f64::consts::FRAC_2_SQRT_PI)
}

fn exact(function: Nonlinearity, x: f64) -> f64 {
    let by_sigmoid = |z: f64| x / (1.0 + (-z).exp());
    match function {
        Nonlinearity::Silu => by_sigmoid(x),
        Nonlinearity::Relu => x.max(0.0),
        Nonlinearity::GeluQuick => by_sigmoid(1.702 * x),
        Nonlinearity::GeluTanh => by_sigmoid(2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))),
        Nonlinearity::GeluErf => {
            let tail = 0.5 * (-0.5 * x * x).exp() * scaled_erfc(x.abs() * std::f64::consts::FRAC_1_SQRT_2);
            x * if x < 0.0 { tail } else { 1.0 - tail }
        }
    }
}

/// The smooth ones.
const FUNCTIONS: [Nonlinearity; 4] =
    [Nonlinearity::Silu, Nonlinearity::GeluTanh, Nonlinearity::GeluErf, Nonlinearity::GeluQuick];

/// Numbers of every size, and more of those between -128 and 128.
fn arguments() -> Vec<f32> {
    let of_every_size = (0..=u32::MAX).step_by(65_521).map(f32::from_bits);
    let middle = (-1_280_000..=1_280_000).step_by(7).map(|i| i as f32 / 10_000.0);
    of_every_size.chain(middle).filter(|x| x.is_finite()).collect()
}

#[test]
fn functions_are_exact_to_the_last_bits() {
    for function in FUNCTIONS {
        let arguments = arguments();
        let mut found = arguments.clone();
        function.apply(Kernel::best().unwrap_or(Kernel::Portable), &mut found);
        let (mut most, mut relative): (f64, f64) = (0.0, 0.0);
        for (x, found) in arguments.into_iter().zip(found) {
            let exact = exact(function, f64::from(x));
            // The distance from the nearest single-precision number to the next.
            let nearest = (exact as f32).abs();
            let unit = f64::from(nearest.next_up()) - f64::from(nearest);
            let error = (f64::from(found) - exact).abs() / unit;
            let limit = if function == Nonlinearity::Silu { 2.5 } else { 0.6 };
            assert!(error < limit, "{function:?} of {x:e}: {found:e}, not {exact:e}, {error} units off");
            most = most.max(error);
            if nearest >= f32::MIN_POSITIVE {
                relative = relative.max(error * unit / exact.abs());
            }
        }
        println!("{function:?}: within {most:.3} units in the last place, {relative:.2e} of normal numbers");
        assert!(relative < 3e-7, "{function:?}: {relative:e}");
    }
}

#[test]
fn relu_keeps_what_is_not_negative() {
    for kernel in Kernel::available() {
        let mut numbers = [f32::NAN, f32::NEG_INFINITY, f32::MIN, -1e-40, 0.0, 1e-40, f32::MAX, f32::INFINITY, -2.0];
        Nonlinearity::Relu.apply(kernel, &mut numbers);
        assert!(numbers[0].is_nan(), "{}", kernel.name());
        assert_eq!(numbers[1..], [0.0, 0.0, 0.0, 0.0, 1e-40, f32::MAX, f32::INFINITY, 0.0], "{}", kernel.name());
    }
}

#[test]
fn functions_of_what_is_not_finite() {
    for (function, kernel) in FUNCTIONS.into_iter().flat_map(|f| Kernel::available().map(move |kernel| (f, kernel))) {
        // Eight of each, so that vectors and single numbers meet them.
        let mut numbers = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 0.0, -0.0].map(|x| [x; 9]);
        for numbers in &mut numbers {
            function.apply(kernel, numbers);
        }
        let [nan, infinity, minus_infinity, most, least, zero, minus_zero] = numbers;
        assert!(nan.iter().chain(&minus_infinity).all(|x| x.is_nan()), "{function:?} {}", kernel.name());
        assert_eq!((infinity, most), ([f32::INFINITY; 9], [f32::MAX; 9]), "{function:?} {}", kernel.name());
        assert_eq!(least.map(f32::to_bits), [(-0f32).to_bits(); 9], "{function:?} {}", kernel.name());
        assert_eq!((zero.map(f32::to_bits), minus_zero.map(f32::to_bits)), ([0; 9], [(-0f32).to_bits(); 9]));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    /// Kernels, and places in a vector, give the same bits.
    #[test]
    fn functions_are_the_same_however_they_are_split(count in 1..200usize, split in 0..200usize, seed: u64) {
        let numbers: Vec<f32> = numbers(seed).take(count).map(|x| 12.0 * x).collect();
        for function in FUNCTIONS {
            let mut one_by_one = numbers.clone();
            for number in &mut one_by_one {
                function.apply(Kernel::Portable, std::slice::from_mut(number));
            }
            for kernel in Kernel::available() {
                let mut split_up = numbers.clone();
                let (left, right) = split_up.split_at_mut(split.min(count));
                function.apply(kernel, left);
                function.apply_to(kernel, &numbers[split.min(count)..], right);
                prop_assert_eq!(&one_by_one, &split_up, "{:?} {}", function, kernel.name());
            }
        }
    }
}

/// Own functions and ggml's, as many numbers as FLUX's GELU takes in 256 tokens, on one thread. Times are of the fastest of
/// many rounds: `cargo test --release --test kernels how_fast -- --ignored --nocapture`.
#[test]
#[ignore = "measures"]
fn how_fast_functions_are() {
    let (device, ledger) = (Device::cpu().unwrap(), Ledger::new());
    let mut backend = Backend::new(device, 1, CancelFlag::new()).unwrap();
    let (shape, functions) = (Shape::new(&[12_288, 256]).unwrap(), ["silu", "gelu_tanh", "gelu_erf", "gelu_quick"]);
    let places = [(); 2].map(|()| {
        let buffer = Buffer::allocate(device, shape.bytes(DType::F32).unwrap(), &ledger, "ports").unwrap();
        Placed::new(&buffer, 0, DType::F32, shape).unwrap()
    });
    let bytes: Vec<u8> = numbers(4).take(shape.elements()).flat_map(|x| (4.0 * x).to_ne_bytes()).collect();
    places[0].write(&bytes).unwrap();
    let build = [Graph::silu, Graph::gelu_tanh, Graph::gelu_erf, Graph::gelu_quick];
    for (name, build) in functions.into_iter().zip(build) {
        let [own, ggml] = [Kernel::best(), None].map(|kernel| {
            let graph = Graph::new(device, 8).unwrap();
            graph.set_kernel(kernel);
            graph.store_alone(build(&graph, graph.leaf(&places[0]).unwrap()).unwrap(), &places[1]).unwrap();
            let mut arena = Arena::new(device, &ledger).unwrap();
            arena.assign(&[&graph]).unwrap();
            let times = [(); 40].map(|()| {
                let started = std::time::Instant::now();
                backend.compute(&graph, &mut arena).unwrap();
                started.elapsed().as_secs_f64()
            });
            times.into_iter().fold(f64::INFINITY, f64::min) * 1e9 / shape.elements() as f64
        });
        println!("{name}: {own:.2} ns a number, ggml {ggml:.2} ns");
    }
}
