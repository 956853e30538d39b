//! Softmax and attention.

use proptest::prelude::*;

use crate::array::{Array, assert_close, assert_nmse};
use crate::rig::{Operand, Rig, Twist};

fn soft_max(row: &[f64]) -> Vec<f64> {
    let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = row.iter().map(|x| (x - most).exp()).sum();
    row.iter().map(|x| (x - most).exp() / sum).collect()
}

/// `softmax(scale q k^T) v` with `q [d, n, heads, batch]` and `k`, `v [d, m, heads, batch]`: `[d, heads, n, batch]`.
fn attention(q: &Array, k: &Array, v: &Array, scale: f64) -> Array {
    let ([d, n, heads, batch], m) = (q.dims, k.dims[1]);
    let scores = Array::from_fn([m, n, heads, batch], |[j, i, h, b]| {
        scale * (0..d).map(|l| q.at([l, i, h, b]) * k.at([l, j, h, b])).sum::<f64>()
    });
    let shares = scores.map_rows(soft_max);
    Array::from_fn([d, heads, n, batch], |[l, h, i, b]| {
        (0..m).map(|j| shares.at([j, i, h, b]) * v.at([l, j, h, b])).sum()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn soft_max_with_and_without_a_mask(
        dims in [1..12usize, 1..6usize, 1..4usize, 1..3usize],
        more in 0..3usize,
        [per_head, per_item] in [any::<bool>(), any::<bool>()],
        twists in [Twist::any(), Twist::any()],
        scale in -2.0..2.0f32,
        seed: u64,
    ) {
        let mut rig = Rig::new();
        let a = Operand::new(&rig, dims, &twists[0], seed);
        let scaled = a.array.map(|x| x * f64::from(scale));
        let found = rig.run(|g| g.soft_max(a.tensor(g)?, None, scale)).unwrap();
        assert_close("soft_max", &scaled.map_rows(soft_max), &found, 1e-6);

        let [n, m, heads, batch] = dims;
        let mask_dims = [n, m + more, if per_head { heads } else { 1 }, if per_item { batch } else { 1 }];
        let mask = Operand::new(&rig, mask_dims, &twists[1], !seed);
        let found = rig.run(|g| g.soft_max(a.tensor(g)?, Some(mask.tensor(g)?), scale)).unwrap();
        let masked = Array::from_fn(dims, |[i, j, h, b]| {
            // Rows of the mask beyond those of `a` are not looked at.
            scaled.at([i, j, h, b]) + mask.array.at([i, j, h % mask_dims[2], b % mask_dims[3]])
        });
        assert_close("soft_max with a mask", &masked.map_rows(soft_max), &found, 1e-6);
    }

    #[test]
    fn flash_attention_is_attention(
        [d, n, m] in [1..40usize, 1..100usize, 1..150usize],
        [heads, batch] in [1..4usize, 1..3usize],
        twists in [Twist::any(), Twist::any(), Twist::any()],
        scale in 0.05..1.0f32,
        seed: u64,
    ) {
        check_flash_attention([d, n, m], [heads, batch], &twists, scale, seed);
    }
}

fn check_flash_attention(
    [d, n, m]: [usize; 3],
    [heads, batch]: [usize; 2],
    twists: &[Twist; 3],
    scale: f32,
    seed: u64,
) {
    let mut rig = Rig::new();
    let q = Operand::new(&rig, [d, n, heads, batch], &twists[0], seed);
    let k = Operand::new(&rig, [d, m, heads, batch], &twists[1], seed ^ 1);
    let v = Operand::new(&rig, [d, m, heads, batch], &twists[2], seed ^ 2);
    let found = rig.run(|g| g.flash_attention(q.tensor(g)?, k.tensor(g)?, v.tensor(g)?, scale)).unwrap();
    let expected = attention(&q.array, &k.array, &v.array, f64::from(scale));
    assert_nmse(&format!("{d} {n} {m}"), &expected, &found, 1e-8);
}

/// ggml has a path for one query and many keys, and one for many queries that works in tiles.
#[test]
fn every_path_of_flash_attention() {
    let twists = [Twist::NONE, Twist::NONE, Twist::NONE];
    for sizes in [[64, 1, 513], [33, 1, 512], [128, 200, 200], [64, 65, 7], [1, 1, 1], [5, 64, 64]] {
        check_flash_attention(sizes, [2, 1], &twists, 0.125, 21);
        check_flash_attention(sizes, [1, 2], &twists, 0.125, 22);
    }
}

#[test]
fn a_mask_may_forbid_all_but_one() {
    let mut rig = Rig::new();
    let a = Operand::new(&rig, [5, 5, 1, 1], &Twist::NONE, 23);
    let causal =
        Array::from_fn([5, 5, 1, 1], |[seen, seeing, ..]| if seen <= seeing { 0.0 } else { f64::NEG_INFINITY });
    let mask = rig.f32(&causal);
    let found = rig.run(|g| g.soft_max(a.tensor(g)?, Some(g.leaf(&mask)?), 1.0)).unwrap();
    let expected = Array::from_fn([5, 5, 1, 1], |i| a.array.at(i) + causal.at(i)).map_rows(soft_max);
    assert_close("causal", &expected, &found, 1e-6);
    assert_eq!(found.values[..5], [1.0, 0.0, 0.0, 0.0, 0.0]);
}
