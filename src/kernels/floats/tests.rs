//! Against sums in double precision, and bits against bits.

use half::{bf16, f16};
use proptest::prelude::*;

use super::super::clock::processor_seconds;
use super::*;

/// Rows of numbers that look random, in -1 to 1.
struct Matrix {
    numbers: Vec<f32>,
    width: usize,
}

impl Matrix {
    fn new(width: usize, rows: usize, seed: u64) -> Matrix {
        let mut numbers = vec![0.0; width * rows];
        for (i, number) in numbers.iter_mut().enumerate() {
            let mixed = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ seed.wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let mixed = (mixed ^ mixed >> 29).wrapping_mul(0x94D0_49BB_1331_11EB);
            *number = (mixed >> 40) as f32 / (1 << 23) as f32 - 1.0;
        }
        Matrix { numbers, width }
    }

    fn row(&self, i: usize) -> &[f32] {
        &self.numbers[i * self.width..][..self.width]
    }
}

impl Tokens for Matrix {
    fn token(&self, i: usize) -> &[f32] {
        self.row(i)
    }
}

/// Weights in bytes of `dtype`, and what these stand for.
fn stored(weights: &Matrix, dtype: DType) -> (Vec<u8>, Matrix) {
    let (mut bytes, mut numbers) = (Vec::new(), Vec::new());
    for &number in &weights.numbers {
        match dtype {
            DType::F16 => {
                let half = f16::from_f32(number);
                bytes.extend(half.to_ne_bytes());
                numbers.push(half.to_f32());
            }
            DType::BF16 => {
                let half = bf16::from_f32(number);
                bytes.extend(half.to_ne_bytes());
                numbers.push(half.to_f32());
            }
            _ => {
                bytes.extend(number.to_ne_bytes());
                numbers.push(number);
            }
        }
    }
    (bytes, Matrix { numbers, width: weights.width })
}

/// The product in the order of its pieces, `[rows, tokens]`.
fn product(kernel: Kernel, dtype: DType, bytes: &[u8], [k, rows]: [usize; 2], tokens: &Matrix) -> Vec<f32> {
    let count = tokens.numbers.len() / k;
    let product = FloatProduct::new(kernel, dtype, k, rows, count).unwrap();
    let mut space = product.space().unwrap();
    let mut result = vec![f32::NAN; rows * count];
    for i in 0..product.pieces() {
        let [of, _] = product.piece(i);
        product.compute(
            i,
            |row| &bytes[row * product.row_bytes()..][..product.row_bytes()],
            tokens,
            &mut space,
            |token, numbers| {
                result[token * rows + of.start..][..of.len()].copy_from_slice(numbers);
            },
        );
    }
    result
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_kernel_gives_the_sums_of_double_precision(
        k in 1usize..600, rows in 1usize..90, tokens in prop_oneof![1usize..30, 380usize..400], seed: u64,
        dtype in prop_oneof![Just(DType::F32), Just(DType::F16), Just(DType::BF16)],
    ) {
        let (bytes, weights) = stored(&Matrix::new(k, rows, seed), dtype);
        let activations = Matrix::new(k, tokens, seed ^ 1);
        let plain = product(Kernel::Portable, dtype, &bytes, [k, rows], &activations);
        for token in 0..tokens {
            for row in 0..rows {
                let pairs = weights.row(row).iter().zip(activations.row(token));
                let (mut sum, mut most) = (0.0, 0.0);
                for (&w, &x) in pairs {
                    sum += f64::from(w) * f64::from(x);
                    most += (f64::from(w) * f64::from(x)).abs();
                }
                let found = f64::from(plain[token * rows + row]);
                prop_assert!((found - sum).abs() <= 1e-6 * most, "{found} {sum}");
            }
        }
        for kernel in Kernel::available() {
            let own = product(kernel, dtype, &bytes, [k, rows], &activations);
            prop_assert!(own.iter().zip(&plain).all(|(a, b)| a.to_bits() == b.to_bits()), "{kernel:?}");
        }
    }

    #[test]
    fn some_tokens_and_some_rows_are_those_of_the_whole(
        k in 1usize..300, rows in 2usize..200, tokens in 2usize..60, seed: u64, cut: prop::sample::Index,
    ) {
        let weights = Matrix::new(k, rows, seed);
        let (bytes, _) = stored(&weights, DType::F32);
        let activations = Matrix::new(k, tokens, seed ^ 1);
        for kernel in Kernel::available() {
            let whole = product(kernel, DType::F32, &bytes, [k, rows], &activations);
            let first = cut.index(tokens - 1) + 1;
            let part = Matrix { numbers: activations.numbers[..first * k].to_vec(), width: k };
            prop_assert_eq!(&whole[..first * rows], &product(kernel, DType::F32, &bytes, [k, rows], &part));
            let one = cut.index(rows);
            let row = product(kernel, DType::F32, &bytes[one * 4 * k..][..4 * k], [k, 1], &activations);
            let column: Vec<f32> = (0..tokens).map(|token| whole[token * rows + one]).collect();
            prop_assert_eq!(column, row);
        }
    }
}

/// Sizes that proptest does not reach: several panels in a band, several shares of the tokens, whole groups and others.
#[test]
fn wide_bands_give_the_same_bits() {
    for [k, rows, tokens] in [[40, 1024, 12], [40, 1100, 24], [300, 2053, 193], [17, 4096, 6], [8, 512, 385]] {
        let (bytes, weights) = stored(&Matrix::new(k, rows, 3), DType::F32);
        let activations = Matrix::new(k, tokens, 4);
        assert!(FloatProduct::new(Kernel::Portable, DType::F32, k, rows, tokens).unwrap().band > PANEL);
        let plain = product(Kernel::Portable, DType::F32, &bytes, [k, rows], &activations);
        for (i, found) in plain.iter().enumerate() {
            let pairs = weights.row(i % rows).iter().zip(activations.row(i / rows));
            let sum: f64 = pairs.map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
            assert!((f64::from(*found) - sum).abs() < 1e-4, "{rows} by {tokens}: {found} {sum}");
        }
        for kernel in Kernel::available() {
            assert_eq!(plain, product(kernel, DType::F32, &bytes, [k, rows], &activations), "{kernel:?}");
        }
    }
}

#[test]
fn what_is_not_there_is_not_made() {
    let sizes = [[0, 1, 1], [1, 0, 1], [1, 1, 0], [usize::MAX, 2, 1], [1, usize::MAX, 2]];
    for [k, rows, tokens] in sizes {
        assert!(FloatProduct::new(Kernel::Portable, DType::F32, k, rows, tokens).is_none());
    }
    assert!(FloatProduct::new(Kernel::Portable, DType::Q8_0, 32, 1, 1).is_none());
}

#[test]
fn pieces_cover_the_result_once() {
    for (rows, tokens) in [(1, 1), (16, 24), (17, 25), (3072, 4608), (320, 4096), (65, 385)] {
        let product = FloatProduct::new(Kernel::Portable, DType::F32, 8, rows, tokens).unwrap();
        let covered: usize = (0..product.pieces()).map(|i| product.piece(i)).map(|[r, t]| r.len() * t.len()).sum();
        assert_eq!(covered, rows * tokens);
        assert!(product.pieces() >= PIECES || product.band == PANEL);
    }
}

/// On one thread: medians over rounds, in GFLOP/s of processor time.
/// `cargo test --release --lib how_fast_float_products -- --ignored --nocapture`.
#[test]
#[ignore = "measures"]
#[allow(clippy::print_stdout)]
fn how_fast_float_products_are() {
    println!("| weights | tokens | f32 | f16 | bf16 |");
    for [k, rows, tokens] in [[3072, 6144, 768], [3072, 6144, 50], [3072, 6144, 4]] {
        let (weights, activations) = (Matrix::new(k, rows, 1), Matrix::new(k, tokens, 2));
        let stored = [DType::F32, DType::F16, DType::BF16].map(|dtype| (dtype, stored(&weights, dtype).0));
        let mut speeds = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..5 {
            for ((dtype, bytes), speeds) in stored.iter().zip(&mut speeds) {
                let started = processor_seconds();
                // As many as take a moment.
                let times = 1536 / tokens;
                for _ in 0..times {
                    product(Kernel::best().unwrap_or(Kernel::Portable), *dtype, bytes, [k, rows], &activations);
                }
                let operations = 2 * k * rows * tokens * times;
                speeds.push(operations as f64 / (processor_seconds() - started) * 1e-9);
            }
        }
        speeds.iter_mut().for_each(|speeds| speeds.sort_by(f64::total_cmp));
        let [f32s, f16s, bf16s] = speeds.map(|speeds| speeds[speeds.len() / 2]);
        println!("| {k}x{rows} | {tokens} | {f32s:.1} | {f16s:.1} | {bf16s:.1} |");
    }
}
