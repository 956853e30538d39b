//! Convolution, enlarging and padding.

use half::f16;
use pinhole_quant::DType;
use proptest::prelude::*;

use crate::array::{Array, assert_close, assert_nmse};
use crate::rig::{Operand, Rig, Twist, bytes_of};

/// `x [w, h, c, n]` with `kernel [kw, kh, c, m]`, zeros around.
fn convolution(kernel: &Array, x: &Array, stride: usize, padding: usize) -> Array {
    let ([kw, kh, c, m], [w, h, _, n]) = (kernel.dims, x.dims);
    let size = |side: usize, kernel: usize| (side + 2 * padding - kernel) / stride + 1;
    Array::from_fn([size(w, kw), size(h, kh), m, n], |[column, row, out, item]| {
        let mut sum = 0.0;
        for (i, j, channel) in (0..kw).flat_map(|i| (0..kh).flat_map(move |j| (0..c).map(move |l| (i, j, l)))) {
            let (x0, y0) = ((column * stride + i).checked_sub(padding), (row * stride + j).checked_sub(padding));
            if let (Some(x0), Some(y0)) = (x0.filter(|x0| *x0 < w), y0.filter(|y0| *y0 < h)) {
                sum += kernel.at([i, j, channel, out]) * x.at([x0, y0, channel, item]);
            }
        }
        sum
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn convolutions(
        [kw, kh, c, m] in [1..5usize, 1..5usize, 1..5usize, 1..6usize],
        [more_w, more_h, n] in [0..7usize, 0..7usize, 1..3usize],
        [stride, padding] in [1..4usize, 0..3usize],
        twist in Twist::any(),
        seed: u64,
    ) {
        let mut rig = Rig::new();
        let side = |kernel: usize, more: usize| (kernel + more).saturating_sub(2 * padding).max(1);
        let x = Operand::new(&rig, [side(kw, more_w), side(kh, more_h), c, n], &twist, seed);
        let kernel = Array::random([kw, kh, c, m], !seed);
        let place = rig.f32(&kernel);
        let found = rig.run(|g| g.conv_2d(g.leaf(&place)?, x.tensor(g)?, stride, padding)).unwrap();
        assert_close("conv_2d", &convolution(&kernel, &x.array, stride, padding), &found, 2e-5);

        let halves: Vec<f16> = kernel.f32().into_iter().map(f16::from_f32).collect();
        let place = rig.place(DType::F16, kernel.dims, &bytes_of(&halves, f16::to_ne_bytes));
        let rounded = Array { dims: kernel.dims, values: halves.into_iter().map(f64::from).collect() };
        let found = rig.run(|g| g.conv_2d(g.leaf(&place)?, x.tensor(g)?, stride, padding)).unwrap();
        // The picture is rounded to F16 as well.
        let x = x.array.map(|x| f64::from(f16::from_f64(x)));
        assert_nmse("conv_2d in f16", &convolution(&rounded, &x, stride, padding), &found, 1e-6);
    }

    #[test]
    fn every_pixel_is_doubled(dims in [1..7usize, 1..6usize, 1..4usize, 1..3usize], twist in Twist::any(), seed: u64) {
        let mut rig = Rig::new();
        let a = Operand::new(&rig, dims, &twist, seed);
        let [w, h, c, n] = dims;
        let found = rig.run(|g| g.upscale_2x(a.tensor(g)?)).unwrap();
        prop_assert_eq!(found, Array::from_fn([2 * w, 2 * h, c, n], |[i, j, k, l]| a.array.at([i / 2, j / 2, k, l])));
    }

    #[test]
    fn zeros_are_added_right_and_below(
        dims in [1..7usize, 1..6usize, 1..4usize, 1..3usize],
        [right, bottom] in [0..3usize, 0..3usize],
        twist in Twist::any(),
        seed: u64,
    ) {
        let mut rig = Rig::new();
        let a = Operand::new(&rig, dims, &twist, seed);
        let [w, h, c, n] = dims;
        let found = rig.run(|g| g.pad(a.tensor(g)?, right, bottom)).unwrap();
        let expected = Array::from_fn([w + right, h + bottom, c, n], |[i, j, k, l]| {
            if i < w && j < h { a.array.at([i, j, k, l]) } else { 0.0 }
        });
        prop_assert_eq!(found, expected);
    }
}

/// The picture of a whole patch, larger than the work space for one batch of patches.
#[test]
fn convolutions_of_many_channels() {
    let mut rig = Rig::new();
    let x = Operand::new(&rig, [17, 13, 96, 1], &Twist::NONE, 31);
    let kernel = Array::random([3, 3, 96, 40], 32);
    let place = rig.f32(&kernel);
    let found = rig.run(|g| g.conv_2d(g.leaf(&place)?, x.tensor(g)?, 1, 1)).unwrap();
    assert_nmse("conv_2d", &convolution(&kernel, &x.array, 1, 1), &found, 1e-11);
}
