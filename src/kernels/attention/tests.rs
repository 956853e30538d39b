//! Against plain loops in double precision, and bits against bits.

use super::super::clock::processor_seconds;
use super::*;

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

/// Rows as a transformer has them: `[width, heads, tokens]`.
#[derive(Clone)]
pub(super) struct Tokens {
    pub(super) numbers: Vec<f32>,
    width: usize,
    heads: usize,
}

impl Tokens {
    fn new(width: usize, heads: usize, tokens: usize, seed: u64) -> Tokens {
        Tokens { numbers: numbers(seed).take(width * heads * tokens).collect(), width, heads }
    }
}

impl Rows for &Tokens {
    fn row(&self, token: usize, head: usize) -> &[f32] {
        assert!(head < self.heads);
        &self.numbers[(token * self.heads + head) * self.width..][..self.width]
    }
}

impl Outputs for Tokens {
    fn row(&mut self, query: usize, head: usize) -> &mut [f32] {
        assert!(head < self.heads);
        &mut self.numbers[(query * self.heads + head) * self.width..][..self.width]
    }
}

pub(super) struct Case {
    heads: Heads,
    pub(super) scale: f32,
    pub(super) q: Tokens,
    pub(super) k: Tokens,
    pub(super) v: Tokens,
    mask: Option<Vec<f16>>,
}

impl Case {
    pub(super) fn new(heads: Heads, masked: bool, seed: u64) -> Case {
        let Heads { width, queries, keys, heads: count, groups } = heads;
        let mask = numbers(seed ^ 4).take(queries * keys).enumerate().map(|(i, number)| match number {
            // One key of every query is not forbidden.
            x if x > 0.5 && i % keys != i / keys % keys => f16::NEG_INFINITY,
            x => f16::from_f32(x),
        });
        Case {
            heads,
            scale: (width as f32).sqrt().recip() * (2.0 + numbers(seed ^ 5).next().unwrap()),
            q: Tokens::new(width, count, queries, seed ^ 1),
            k: Tokens::new(width, groups, keys, seed ^ 2),
            v: Tokens::new(width, groups, keys, seed ^ 3),
            mask: masked.then(|| mask.collect()),
        }
    }

    pub(super) fn by(&self, kernel: Kernel) -> Vec<f32> {
        self.with(kernel, Precision::Exact)
    }

    pub(super) fn with(&self, kernel: Kernel, precision: Precision) -> Vec<f32> {
        let Heads { width, queries, heads, .. } = self.heads;
        let mut result = Tokens { numbers: vec![f32::NAN; width * queries * heads], width, heads };
        let attention = Attention::new(kernel, self.heads, self.scale, precision).unwrap();
        let attended = Attended { q: &self.q, k: &self.k, v: &self.v, mask: self.mask.as_deref() };
        let mut space = attention.space().unwrap();
        for tile in 0..attention.tiles() {
            attention.compute(tile, &attended, &mut space, &mut result);
        }
        result.numbers
    }

    /// The largest error, in double precision, relative to the largest value.
    pub(super) fn error(&self, found: &[f32]) -> f64 {
        let Heads { width, queries, keys, heads, groups } = self.heads;
        let (q, k, v) = (&self.q, &self.k, &self.v);
        let mut worst: f64 = 0.0;
        for (row, found) in found.chunks(width).enumerate() {
            let (query, head) = (row / heads, row % heads);
            let group = head / (heads / groups);
            let score = |key| {
                let pairs = Rows::row(&q, query, head).iter().zip(Rows::row(&k, key, group));
                let product: f64 = pairs.map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                let mask = self.mask.as_ref().map_or(0.0, |mask| mask[query * keys + key].to_f64());
                product * f64::from(self.scale) + mask
            };
            let scores: Vec<f64> = (0..keys).map(score).collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let mut expected = vec![0.0; width];
            for (key, weight) in weights.iter().enumerate() {
                let values = expected.iter_mut().zip(Rows::row(&v, key, group));
                values.for_each(|(expected, value)| *expected += weight / sum * f64::from(*value));
            }
            for (found, expected) in found.iter().zip(expected) {
                worst = worst.max((f64::from(*found) - expected).abs());
            }
        }
        assert_eq!(found.len(), width * queries * heads);
        worst / f64::from(v.numbers.iter().fold(0f32, |most, value| most.max(value.abs())))
    }
}

/// Shapes by chance: `[width, queries, keys]` below these, and up to three times three heads.
pub(super) fn shapes(most: [usize; 3], count: usize, seed: u64) -> impl Iterator<Item = Heads> {
    let mut chance = numbers(seed).map(|number| f64::from(number + 1.0) / 2.0);
    let mut below = move |most: usize| 1 + (chance.next().unwrap() * most as f64) as usize;
    std::iter::repeat_with(move || {
        let (width, groups) = (below(most[0]), below(3));
        Heads { width, queries: below(most[1]), keys: below(most[2]), heads: groups * below(3), groups }
    })
    .take(count)
}

const PRECISIONS: [Precision; 2] = [Precision::Exact, Precision::Codes];

pub(super) fn best() -> Kernel {
    Kernel::best().unwrap_or(Kernel::Portable)
}

#[test]
fn any_shape_is_near_the_exact_attention() {
    let chosen = [[40, 100, 77], [64, 1, 600], [128, 50, 513], [512, 13, 65], [8, 49, 257], [1, 1, 1], [24, 12, 16]];
    let chosen = chosen.map(|[width, queries, keys]| Heads { width, queries, keys, heads: 2, groups: 1 });
    let narrow = shapes([48, 200, 200], 24, 1);
    for (i, heads) in chosen.into_iter().chain(narrow).chain(shapes([512, 60, 200], 12, 2)).enumerate() {
        let case = Case::new(heads, i % 2 == 1, i as u64);
        let error = case.error(&case.by(best()));
        assert!(error <= 1e-6, "{heads:?}: {error:e}");
    }
}

/// Also where there are several blocks of keys, and several tiles.
#[test]
fn every_kernel_gives_the_same_bits() {
    let long = Heads { width: 9, queries: 101, keys: 530, heads: 1, groups: 1 };
    let wide = Heads { width: 700, queries: 13, keys: 33, heads: 1, groups: 1 };
    for (i, heads) in shapes([80, 30, 40], 24, 3).chain([long, wide]).enumerate() {
        let case = Case::new(heads, i % 2 == 1, i as u64);
        for precision in PRECISIONS {
            let expected = case.with(Kernel::Portable, precision);
            for kernel in Kernel::available() {
                assert!(case.with(kernel, precision) == expected, "{heads:?} by {}, {precision:?}", kernel.name());
            }
        }
    }
}

#[test]
fn a_query_does_not_depend_on_its_company() {
    for (i, heads) in shapes([80, 150, 300], 8, 4).enumerate() {
        let whole = Case::new(heads, false, i as u64);
        let each = heads.width * heads.heads;
        for precision in PRECISIONS {
            let expected = whole.with(best(), precision);
            for first in [0, heads.queries / 3, heads.queries - 1] {
                let mut part = Case::new(heads, false, i as u64);
                part.q.numbers.drain(..first * each);
                part.heads.queries -= first;
                assert!(part.with(best(), precision) == expected[first * each..], "{heads:?} from {first}");
            }
        }
    }
}

#[test]
fn large_scores_do_not_overflow() {
    let heads = Heads { width: 40, queries: 30, keys: 300, heads: 1, groups: 1 };
    let mut case = Case::new(heads, false, 6);
    case.scale = 1e4;
    // The largest score of a query takes everything, as far as single precision tells scores apart.
    for precision in PRECISIONS {
        for scale in [1e4, -1e4] {
            case.scale = scale;
            assert!(case.with(best(), precision).iter().all(|number| number.abs() <= 1.0));
        }
    }
    // One key has the score 1e4 and the others 0.
    case.scale = 1.0;
    case.q.numbers.fill(1.0);
    case.k.numbers.fill(0.0);
    case.k.numbers[280 * 40..281 * 40].fill(250.0);
    for found in case.by(best()).chunks(40) {
        assert_eq!(found, &case.v.numbers[280 * 40..281 * 40]);
    }
}

#[test]
fn a_query_without_keys_gets_nothing() {
    let heads = Heads { width: 24, queries: 20, keys: 290, heads: 1, groups: 1 };
    let mut case = Case::new(heads, true, 7);
    let mask = case.mask.as_mut().unwrap();
    mask[3 * 290..4 * 290].fill(f16::NEG_INFINITY);
    // The first block of keys alone is forbidden.
    mask[5 * 290..6 * 290 - 10].fill(f16::NEG_INFINITY);
    for precision in PRECISIONS {
        let found = case.with(best(), precision);
        assert!(found[3 * 24..4 * 24].iter().all(|number| number.to_bits() == 0));
        assert!(found.iter().all(|number| number.is_finite()));
    }
    let found = case.by(best());
    // Every other query is as exact as ever.
    let mut error = 0f64;
    case.heads.queries = 1;
    for query in [4, 5, 6] {
        let mut alone = Case::new(heads, false, 7);
        alone.heads.queries = 1;
        alone.q.numbers = case.q.numbers[query * 24..][..24].to_vec();
        alone.mask = Some(case.mask.as_ref().unwrap()[query * 290..][..290].to_vec());
        error = error.max(alone.error(&found[query * 24..][..24]));
    }
    assert!(error <= 1e-6, "{error:e}");
}

#[test]
fn what_is_not_finite_shows_in_its_query_alone() {
    let heads = Heads { width: 16, queries: 14, keys: 270, heads: 1, groups: 1 };
    for bad in [f32::NAN, f32::INFINITY] {
        let mut case = Case::new(heads, false, 8);
        case.q.numbers[3 * 16 + 5] = bad;
        for precision in PRECISIONS {
            for (query, row) in case.with(best(), precision).chunks(16).enumerate() {
                assert_eq!(row.iter().all(|number| number.is_finite()), query != 3, "{query}");
            }
        }
    }
}

#[test]
fn attentions_that_do_not_exist() {
    let heads = Heads { width: 8, queries: 2, keys: 2, heads: 4, groups: 2 };
    assert!(Attention::new(best(), heads, 1.0, Precision::Exact).is_some());
    for none in [
        Heads { width: 0, ..heads },
        Heads { queries: 0, ..heads },
        Heads { keys: 0, ..heads },
        Heads { heads: 0, ..heads },
        Heads { groups: 0, ..heads },
        Heads { groups: 3, ..heads },
    ] {
        assert!(Attention::new(best(), none, 1.0, Precision::Exact).is_none(), "{none:?}");
    }
}

#[test]
fn work_space_that_no_machine_has() {
    let heads = Heads { width: 1 << 60, queries: 1, keys: 1, heads: 1, groups: 1 };
    let bytes = Attention::new(best(), heads, 1.0, Precision::Exact).unwrap().space().unwrap_err();
    assert!(bytes > 1 << 60, "{bytes}");
}

/// For models as they are, a thread's work space is at most a mebibyte.
#[test]
fn work_space_is_bounded() {
    for width in (8..=512).step_by(8) {
        for (queries, keys) in [(1, 1), (4608, 4608), (4096, 77), (100_000, 100_000)] {
            let heads = Heads { width, queries, keys, heads: 24, groups: 24 };
            let [exact, codes] = PRECISIONS.map(|precision| Attention::new(best(), heads, 1.0, precision).unwrap());
            let Space { queries, keys, values, scores, sums, rows, .. } = &exact.space().unwrap();
            let numbers: usize = [queries, keys, values, scores, sums].map(Vec::len).iter().sum();
            let bytes = size_of_val(rows.as_slice()) + 4 * numbers;
            assert!(bytes <= 1 << 20, "{heads:?}: {bytes}");
            assert!(
                codes.space().unwrap().codes.bytes() <= 1 << 20,
                "{heads:?}: {}",
                codes.space().unwrap().codes.bytes()
            );
        }
    }
}

/// Both precisions in turn on one thread: medians over rounds, in GFLOP/s of processor time.
/// `cargo test --release --lib how_fast_attentions -- --ignored --nocapture`.
#[test]
#[ignore = "measures"]
#[allow(clippy::print_stdout)]
fn how_fast_attentions_are() {
    println!("| width, queries, keys, heads | exact | codes |");
    for [width, queries, keys, heads] in [[128, 4608, 4608, 4], [64, 4096, 4096, 10], [40, 4096, 4096, 8]] {
        let case = Case::new(Heads { width, queries, keys, heads, groups: heads }, false, 1);
        let attended = Attended { q: &case.q, k: &case.k, v: &case.v, mask: None };
        let mut result = Tokens { numbers: vec![0.0; width * queries * heads], width, heads };
        let mut speeds = [Vec::new(), Vec::new()];
        for _ in 0..7 {
            for (precision, speeds) in PRECISIONS.into_iter().zip(&mut speeds) {
                let attention = Attention::new(best(), case.heads, case.scale, precision).unwrap();
                let mut space = attention.space().unwrap();
                let started = processor_seconds();
                // The first head's.
                for tile in 0..attention.tiling.tiles_of_group() {
                    attention.compute(tile, &attended, &mut space, &mut result);
                }
                speeds.push((4 * width * queries * keys) as f64 / (processor_seconds() - started) * 1e-9);
            }
        }
        speeds.iter_mut().for_each(|speeds| speeds.sort_by(f64::total_cmp));
        let [exact, codes] = speeds.map(|speeds| speeds[speeds.len() / 2]);
        println!("| {width}x{queries}x{keys}x{heads} | {exact:.1} | {codes:.1} |");
    }
}
