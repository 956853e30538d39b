//! What moves numbers and does not change them: exact.

use proptest::prelude::*;

use crate::array::Array;
use crate::rig::{Operand, Rig, Twist};

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn views_are_copied_in_order(dims in [1..7usize, 1..6usize, 1..4usize, 1..4usize], twist in Twist::any(), seed: u64) {
        let mut rig = Rig::new();
        let a = Operand::new(&rig, dims, &twist, seed);
        // Stored as it lies, and put in order first.
        prop_assert_eq!(&rig.run(|g| a.tensor(g)).unwrap(), &a.array);
        prop_assert_eq!(&rig.run(|g| g.contiguous(a.tensor(g)?)).unwrap(), &a.array);
    }

    #[test]
    fn views_of_views(
        dims in [2..7usize, 2..6usize, 2..4usize, 2..4usize],
        twists in [Twist::any(), Twist::any()],
        axes in Just([0, 1, 2, 3]).prop_shuffle(),
        dim in 0..4usize,
        seed: u64,
    ) {
        let mut rig = Rig::new();
        let a = Operand::new(&rig, dims, &twists[0], seed);
        let found = rig.run(|g| g.slice(g.permute(a.tensor(g)?, axes)?, dim, 1, 1)).unwrap();
        prop_assert_eq!(found, a.array.permute(axes).slice(dim, 1, 1));
    }

    #[test]
    fn reshape_keeps_the_order(
        [a, b, c, d] in [1..6usize, 1..5usize, 1..4usize, 1..4usize],
        twist in Twist::any(),
        seed: u64,
    ) {
        let mut rig = Rig::new();
        let operand = Operand::new(&rig, [a * b, c, d, 1], &twist, seed);
        for dims in [[a, b, c, d], [a * b * c * d, 1, 1, 1], [a, b * c, 1, d], [1, a, b, c * d]] {
            let found = rig.run(|g| g.reshape(operand.tensor(g)?, &dims)).unwrap();
            prop_assert_eq!(found, operand.array.reshape(dims));
        }
    }

    #[test]
    fn rows_are_split(
        [k, parts, n, m] in [1..6usize, 1..5usize, 1..5usize, 1..4usize],
        twist in Twist::any(),
        seed: u64,
    ) {
        let mut rig = Rig::new();
        let a = Operand::new(&rig, [k * parts, n, m, 1], &twist, seed);
        prop_assert_eq!(&rig.run(|g| g.split_rows(a.tensor(g)?, parts)).unwrap(), &a.array.reshape([k, parts, n, m]));
        // As attention uses it: heads before tokens.
        let heads = rig.run(|g| g.permute(g.split_rows(a.tensor(g)?, parts)?, [0, 2, 1, 3])).unwrap();
        prop_assert_eq!(heads, a.array.reshape([k, parts, n, m]).permute([0, 2, 1, 3]));
    }

    #[test]
    fn concat_on_every_dimension(
        dims in [1..6usize, 1..5usize, 1..4usize, 1..4usize],
        more in 1..4usize,
        dim in 0..4usize,
        twists in [Twist::any(), Twist::any()],
        seed: u64,
    ) {
        let mut rig = Rig::new();
        let mut longer = dims;
        longer[dim] = more;
        let (a, b) = (Operand::new(&rig, dims, &twists[0], seed), Operand::new(&rig, longer, &twists[1], !seed));
        let found = rig.run(|g| g.concat(a.tensor(g)?, b.tensor(g)?, dim)).unwrap();
        let mut whole = dims;
        whole[dim] += more;
        let expected = Array::from_fn(whole, |mut i| {
            if i[dim] < dims[dim] {
                return a.array.at(i);
            }
            i[dim] -= dims[dim];
            b.array.at(i)
        });
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn roll_moves_rows_round(
        dims in [1..9usize, 1..5usize, 1..4usize, 1..3usize],
        places in 0..9i32,
        forward: bool,
        twist in Twist::any(),
        seed: u64,
    ) {
        let mut rig = Rig::new();
        let row = dims[0] as i32;
        let shift = if forward { places % row } else { -(places % row) };
        let a = Operand::new(&rig, dims, &twist, seed);
        let found = rig.run(|g| g.roll(a.tensor(g)?, shift)).unwrap();
        let rolled = Array::from_fn(dims, |[i, j, k, l]| {
            let from = (i as i32 - shift).rem_euclid(row) as usize;
            a.array.at([from, j, k, l])
        });
        prop_assert_eq!(found, rolled);
    }

    #[test]
    fn rows_are_gathered(
        [k, rows] in [1..9usize, 1..9usize],
        wanted in prop::collection::vec(0..1000usize, 1..12),
        twist in Twist::any(),
        seed: u64,
    ) {
        let mut rig = Rig::new();
        let table = Operand::new(&rig, [k, rows, 1, 1], &twist, seed);
        let wanted: Vec<usize> = wanted.iter().map(|row| row % rows).collect();
        let indices = rig.i32(&wanted.iter().map(|&row| row as i32).collect::<Vec<_>>());
        let found = rig.run(|g| g.get_rows(table.tensor(g)?, g.leaf(&indices)?)).unwrap();
        prop_assert_eq!(found, Array::from_fn([k, wanted.len(), 1, 1], |[i, j, ..]| table.array.at([i, wanted[j], 0, 0])));
    }
}

#[test]
fn parts_fill_a_tensor() {
    let mut rig = Rig::new();
    let a = Array::random([4, 9, 2, 1], 21);
    let place = rig.f32(&a);
    let found = rig.run(|g| {
        let (a, whole) = (g.leaf(&place)?, g.unfilled(&[4, 9, 2])?);
        for (start, len) in [(5, 4), (0, 2), (2, 3)] {
            // What is computed with meanwhile must not take the memory of what was filled.
            let part = g.slice(a, 1, start, len)?;
            g.fill(whole, 1, start, g.scale(g.scale(part, 4.0)?, 0.25)?)?;
        }
        g.scale(whole, 2.0)
    });
    let expected = Array::from_fn(a.dims, |i| 2.0 * f64::from(a.at(i) as f32));
    assert_eq!(found.unwrap(), expected);
}

#[test]
fn parts_of_other_shapes_and_other_targets_are_refused() {
    let rig = Rig::new();
    let place = rig.f32(&Array::random([4, 9, 1, 1], 22));
    let g = rig.graph();
    let (a, whole) = (g.leaf(&place).unwrap(), g.unfilled(&[4, 8]).unwrap());
    assert!(g.fill(whole, 1, 0, a).is_err()); // too long
    let part = g.slice(a, 1, 0, 2).unwrap();
    assert!(g.fill(whole, 1, 7, part).is_err()); // beyond the end
    assert!(g.fill(whole, 0, 0, part).is_err()); // another shape
    assert!(g.fill(whole, 4, 0, part).is_err()); // no such dimension
    let view = g.slice(whole, 1, 0, 4).unwrap();
    assert!(g.fill(view, 1, 0, part).is_err());
    let computed = g.scale(a, 2.0).unwrap();
    assert!(g.fill(computed, 1, 0, part).is_err());
    assert!(g.unfilled(&[0]).is_err());
    assert!(g.unfilled(&[usize::MAX, 2]).is_err());
    assert!(g.fill(whole, 1, 6, part).is_ok());
}

/// Pairs turn as by the operations that say so one by one, to the bit.
#[test]
fn pairs_turn() {
    let mut rig = Rig::new();
    for (dims, twist) in [([8, 3, 5, 2], Twist::NONE), ([6, 4, 7, 1], Twist::MIDDLE), ([2, 1, 1, 3], Twist::NONE)] {
        let [d, heads, tokens, batch] = dims;
        let x = Operand::new(&rig, dims, &twist, 91);
        let [cos, sin] = [92, 93].map(|seed| Operand::new(&rig, [d, 1, tokens, 1], &Twist::NONE, seed));
        let found = rig.run(|g| g.rotate_pairs(x.tensor(g)?, cos.tensor(g)?, sin.tensor(g)?)).unwrap();
        let expected = rig.run(|g| {
            let pairs = g.reshape(x.tensor(g)?, &[2, d / 2 * heads, tokens, batch])?;
            let swapped = g.reshape(g.roll(pairs, 1)?, &dims)?;
            g.add(g.mul(x.tensor(g)?, cos.tensor(g)?)?, g.mul(swapped, sin.tensor(g)?)?)
        });
        assert_eq!(found, expected.unwrap(), "{dims:?}");
    }
    let [odd, even] = [[3, 1, 2, 1], [4, 1, 2, 1]].map(|dims| Operand::new(&rig, dims, &Twist::NONE, 94));
    let turn = |rig: &mut Rig, x: &Operand, table: &Operand| {
        rig.run(|g| g.rotate_pairs(x.tensor(g)?, table.tensor(g)?, table.tensor(g)?))
    };
    assert!(turn(&mut rig, &odd, &odd).is_err() && turn(&mut rig, &even, &odd).is_err());
    assert!(turn(&mut rig, &even, &even).is_ok());
}
