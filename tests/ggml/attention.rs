//! Softmax and attention.

use pinhole::ggml::{Backend, CancelFlag, Graph};
use pinhole::kernels::Kernel;
use proptest::prelude::*;

use crate::array::{Array, assert_close};
use crate::rig::{Operand, Rig, Twist};

/// Attention by ggml and by pinhole, and the squared error that each may have, relative to values without signs.
fn ways() -> [(Option<Kernel>, f64); 2] {
    [(None, 1e-8), (Some(Kernel::best().unwrap_or(Kernel::Portable)), 1e-12)]
}

fn soft_max(row: &[f64]) -> Vec<f64> {
    let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = row.iter().map(|x| (x - most).exp()).sum();
    row.iter().map(|x| (x - most).exp() / sum).collect()
}

/// `softmax(scale q k^T + mask) v` with `q [d, n, heads, batch]` and `k`, `v [d, m, groups, batch]`: `[d, heads, n, batch]`.
fn attention(q: &Array, k: &Array, v: &Array, scale: f64, mask: Option<&Array>) -> Array {
    let ([d, n, heads, batch], [_, m, groups, _]) = (q.dims, k.dims);
    let group = |head| head / (heads / groups);
    let scores = Array::from_fn([m, n, heads, batch], |[j, i, h, b]| {
        let score = (0..d).map(|l| q.at([l, i, h, b]) * k.at([l, j, group(h), b])).sum::<f64>();
        scale * score + mask.map_or(0.0, |mask| mask.at([j, i, 0, 0]))
    });
    let shares = scores.map_rows(soft_max);
    Array::from_fn([d, heads, n, batch], |[l, h, i, b]| {
        (0..m).map(|j| shares.at([j, i, h, b]) * v.at([l, j, group(h), b])).sum()
    })
}

fn squares(numbers: impl Iterator<Item = f64>) -> f64 {
    numbers.map(|number| number * number).sum()
}

/// The largest sum of what `q` and `k` multiply to, without signs. A score in f32 is off by a last digit or two of that, and the share of
/// its key by as much, relatively: in numpy, too, one query of a few hundred has more than the usual error.
fn size_of_scores(q: &Array, k: &Array) -> f64 {
    let ([d, n, heads, batch], [_, m, groups, _]) = (q.dims, k.dims);
    let sizes = Array::from_fn([m, n, heads, batch], |[j, i, h, b]| {
        (0..d).map(|l| (q.at([l, i, h, b]) * k.at([l, j, h / (heads / groups), b])).abs()).sum()
    });
    sizes.f32().into_iter().fold(0.0, |most, size| most.max(f64::from(size)))
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
        [groups, shared, batch] in [1..4usize, 1..4usize, 1..3usize],
        masked: bool,
        twists in [Twist::any(), Twist::any(), Twist::any()],
        scale in 0.05..1.0f32,
        seed: u64,
    ) {
        check_flash_attention([d, n, m], [groups * shared, groups, batch], masked, &twists, scale, seed);
    }
}

fn check_flash_attention(
    [d, n, m]: [usize; 3],
    [heads, groups, batch]: [usize; 3],
    masked: bool,
    twists: &[Twist; 3],
    scale: f32,
    seed: u64,
) {
    let mut rig = Rig::new();
    let q = Operand::new(&rig, [d, n, heads, batch], &twists[0], seed);
    let k = Operand::new(&rig, [d, m, groups, batch], &twists[1], seed ^ 1);
    let v = Operand::new(&rig, [d, m, groups, batch], &twists[2], seed ^ 2);
    // Numbers that F16 holds, and in every row one that is not forbidden.
    let mask = Array::random([m, n, 1, 1], seed ^ 3);
    let mask = Array::from_fn(mask.dims, |at @ [j, i, ..]| match mask.at(at) {
        x if x > 0.3 && j != i % m => f64::NEG_INFINITY,
        x => (16.0 * x).round() / 16.0,
    });
    let mask = masked.then_some(mask);
    let place = mask.as_ref().map(|mask| rig.f32(mask));
    let expected = attention(&q.array, &k.array, &v.array, f64::from(scale), mask.as_ref());
    // What comes out may be small because signs cancel: errors are held to what comes out without them.
    let sizes = attention(&q.array, &k.array, &v.array.map(f64::abs), f64::from(scale), mask.as_ref());
    let inevitable = (f64::from(f32::EPSILON * scale) * size_of_scores(&q.array, &k.array)).powi(2);
    for (kernel, most) in ways() {
        let found = rig
            .run(|g: &Graph| {
                g.set_kernel(kernel);
                let mask = place.as_ref().map(|place| g.to_f16(g.leaf(place)?)).transpose()?;
                g.flash_attention(q.tensor(g)?, k.tensor(g)?, v.tensor(g)?, scale, mask)
            })
            .unwrap();
        assert_eq!(expected.dims, found.dims, "{d} {n} {m} by {kernel:?}");
        let errors = expected.values.iter().zip(&found.values).map(|(expected, found)| found - expected);
        let error = squares(errors);
        let most = most.max(inevitable) * squares(sizes.values.iter().copied());
        assert!(error <= most, "{d} {n} {m} by {kernel:?}: {error:.1e} is above {most:.1e}");
    }
}

/// ggml has a path for one query and many keys, and one for many queries that works in tiles.
#[test]
fn every_path_of_flash_attention() {
    let twists = [Twist::NONE, Twist::NONE, Twist::NONE];
    for sizes in [[64, 1, 513], [33, 1, 512], [128, 200, 200], [64, 65, 7], [1, 1, 1], [5, 64, 64]] {
        for masked in [false, true] {
            check_flash_attention(sizes, [2, 2, 1], masked, &twists, 0.125, 21);
            check_flash_attention(sizes, [1, 1, 2], masked, &twists, 0.125, 22);
            check_flash_attention(sizes, [6, 2, 1], masked, &twists, 0.125, 23);
        }
    }
}

/// Any number of threads, and some queries alone, give the bits of the whole.
#[test]
fn neither_threads_nor_company_change_a_bit() {
    let mut rig = Rig::new();
    let [q, k, v] = [(8, 150), (4, 270), (4, 270)]
        .map(|(heads, tokens)| Operand::new(&rig, [40, tokens, heads, 2], &Twist::MIDDLE, (heads + tokens) as u64));
    let whole = rig.run(|g| g.flash_attention(q.tensor(g)?, k.tensor(g)?, v.tensor(g)?, 0.2, None)).unwrap();
    for threads in 1..=4 {
        rig.backend = Backend::new(rig.device, threads, CancelFlag::new()).unwrap();
        for (first, len) in [(0, 150), (0, 1), (37, 61), (149, 1)] {
            let found = rig
                .run(|g: &Graph| {
                    let q = g.slice(q.tensor(g)?, 1, first, len)?;
                    g.flash_attention(q, k.tensor(g)?, v.tensor(g)?, 0.2, None)
                })
                .unwrap();
            assert!(found == whole.slice(2, first, len), "{len} queries from {first} on {threads} threads");
        }
    }
}

/// pinhole gives the numbers that ggml gives.
#[test]
fn a_query_that_sees_no_key_gets_zeros() {
    let mut rig = Rig::new();
    let [q, k, v] = [1, 2, 3].map(|seed| Operand::new(&rig, [24, 70, 2, 1], &Twist::NONE, seed));
    let mask = Array::from_fn([70, 70, 1, 1], |[_, i, ..]| if i == 3 { f64::NEG_INFINITY } else { 0.0 });
    let mask = rig.f32(&mask);
    for (kernel, _) in ways() {
        let found = rig
            .run(|g: &Graph| {
                g.set_kernel(kernel);
                let mask = g.to_f16(g.leaf(&mask)?)?;
                g.flash_attention(q.tensor(g)?, k.tensor(g)?, v.tensor(g)?, 0.2, Some(mask))
            })
            .unwrap();
        for (row, numbers) in found.values.chunks(24).enumerate() {
            assert_eq!(numbers.iter().all(|number| *number == 0.0), row / 2 == 3, "row {row} by {kernel:?}");
        }
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
