//! What is the codes' own; what they share with exact attention is in `attention/tests.rs`.

use super::super::tests::{Case, best, shapes};
use super::super::{Heads, Precision};

fn errors(case: &Case) -> [f64; 2] {
    [Precision::Exact, Precision::Codes].map(|precision| case.error(&case.with(best(), precision)))
}

/// The bound that the documentation states: a thousandth of the largest value.
#[test]
fn any_shape_is_near_the_exact_attention() {
    let chosen = [[40, 100, 77], [64, 1, 600], [128, 50, 513], [512, 13, 65], [8, 49, 257], [1, 1, 1], [24, 12, 16]];
    let chosen = chosen.map(|[width, queries, keys]| Heads { width, queries, keys, heads: 2, groups: 1 });
    let by_chance = shapes([48, 200, 200], 24, 1).chain(shapes([512, 60, 200], 12, 2));
    for (i, heads) in chosen.into_iter().chain(by_chance).enumerate() {
        let [exact, codes] = errors(&Case::new(heads, i % 2 == 1, i as u64));
        assert!(codes <= 1e-3, "{heads:?}: {codes:e}");
        assert!(exact <= 1e-6, "{heads:?}: {exact:e}");
    }
}

/// Every width that the table of sums in `codes/mod.rs` allows, with the largest codes everywhere.
#[test]
fn the_largest_codes_do_not_overflow() {
    for width in (40..=512).step_by(8) {
        let heads = Heads { width, queries: 3, keys: 300, heads: 1, groups: 1 };
        let mut case = Case::new(heads, false, 1);
        for numbers in [&mut case.q.numbers, &mut case.k.numbers, &mut case.v.numbers] {
            numbers.fill(-1.0);
        }
        assert!(case.with(best(), Precision::Codes).iter().all(|number| (number + 1.0).abs() < 1e-6), "{width}");
    }
}

/// What a denoiser's weights in q8_0 do to it is more: rounding queries, keys and values as q8_0 rounds numbers.
#[test]
fn errors_are_below_those_of_eight_bits() {
    for (i, width) in [40, 64, 128, 512].into_iter().enumerate() {
        let heads = Heads { width, queries: 24, keys: 500, heads: 1, groups: 1 };
        let case = Case::new(heads, false, i as u64);
        let exact = case.by(best());
        let rms = |found: &[f32]| {
            let squares = found.iter().zip(&exact).map(|(found, exact)| f64::from(found - exact).powi(2));
            squares.sum::<f64>().sqrt()
        };
        let codes = rms(&case.with(best(), Precision::Codes));
        let mut rounded = case;
        for numbers in [&mut rounded.q.numbers, &mut rounded.k.numbers, &mut rounded.v.numbers] {
            for block in numbers.chunks_mut(32) {
                let unit = block.iter().fold(0f32, |most, number| most.max(number.abs())) / 127.0;
                block.iter_mut().for_each(|number| *number = (*number / unit).round() * unit);
            }
        }
        let eight_bits = rms(&rounded.by(best()));
        assert!(codes < eight_bits / 3.0, "{width}: {codes:e} of {eight_bits:e}");
    }
}

/// Keys that have much in common, which SageAttention takes out, and a channel that is far larger than the others.
#[test]
fn keys_with_a_mean_and_a_large_channel() {
    let heads = Heads { width: 128, queries: 24, keys: 600, heads: 1, groups: 1 };
    let mut case = Case::new(heads, false, 3);
    case.scale = (128f32).sqrt().recip();
    case.k.numbers.iter_mut().for_each(|number| *number += 5.0);
    let [_, codes] = errors(&case);
    assert!(codes <= 1e-3, "a mean: {codes:e}");
    let mut case = Case::new(heads, false, 4);
    case.scale = (128f32).sqrt().recip();
    case.k.numbers.iter_mut().step_by(128).for_each(|number| *number *= 20.0);
    let [_, codes] = errors(&case);
    assert!(codes <= 1e-3, "a large channel: {codes:e}");
}

#[test]
fn what_is_not_finite_in_values_stays_in_its_channel() {
    let heads = Heads { width: 24, queries: 14, keys: 300, heads: 1, groups: 1 };
    for bad in [f32::NAN, f32::INFINITY] {
        let mut case = Case::new(heads, false, 8);
        case.v.numbers[280 * 24 + 5] = bad;
        for (i, number) in case.with(best(), Precision::Codes).iter().enumerate() {
            assert_eq!(number.is_finite(), i % 24 != 5, "{i}");
        }
    }
}

#[test]
fn wider_heads_are_exact() {
    let heads = Heads { width: 513, queries: 5, keys: 40, heads: 1, groups: 1 };
    let case = Case::new(heads, false, 5);
    assert_eq!(case.with(best(), Precision::Codes), case.by(best()));
}
