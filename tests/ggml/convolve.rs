//! Pinhole's own convolutions and group norms: against plain loops, and some rows against all.

use std::ops::Range;

use half::{bf16, f16};
use pinhole::ggml::{Convolution, Normalisation};
use pinhole::kernels::Kernel;
use pinhole_quant::DType;
use proptest::prelude::*;

use crate::array::{Array, Dims, assert_close};
use crate::rig::{Operand, Rig, Twist, bytes_of};

/// A convolution and all that it may come with.
#[derive(Clone, Debug)]
struct Case {
    input: Dims,
    outputs: usize,
    side: [usize; 2],
    stride: usize,
    beside: usize,
    around: [usize; 2],
    doubled: Option<[usize; 2]>,
    dtype: DType,
    groups: Option<usize>,
    added: bool,
    seed: u64,
}

const EPS: f32 = 1e-6;

/// Mean and scale of each channel's group, `[1, 1, c, n]`, in double precision.
fn statistics(x: &Array, groups: usize) -> [Array; 2] {
    let [w, h, c, n] = x.dims;
    let each = w * h * c / groups;
    let of = |f: fn(f64, f64) -> f64| {
        Array::from_fn([1, 1, c, n], |[_, _, channel, item]| {
            let group = &x.values[(item * groups + channel / (c / groups)) * each..][..each];
            let mean = group.iter().sum::<f64>() / each as f64;
            f(mean, group.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / each as f64)
        })
    };
    [of(|mean, _| mean), of(|_, variance| (variance + f64::from(EPS)).sqrt().recip())]
}

/// `kernel` in `dtype`, and what it is then.
fn rounded(kernel: &Array, dtype: DType) -> (Vec<u8>, Array) {
    let numbers = kernel.f32();
    match dtype {
        DType::F16 => {
            let halves: Vec<f16> = numbers.iter().map(|&x| f16::from_f32(x)).collect();
            (bytes_of(&halves, f16::to_ne_bytes), kernel.map(|x| f64::from(f16::from_f64(x))))
        }
        DType::BF16 => {
            let halves: Vec<bf16> = numbers.iter().map(|&x| bf16::from_f32(x)).collect();
            (bytes_of(&halves, bf16::to_ne_bytes), kernel.map(|x| f64::from(bf16::from_f32(x as f32))))
        }
        _ => (bytes_of(&numbers, f32::to_ne_bytes), kernel.clone()),
    }
}

impl Case {
    /// The result by `kernel`, and by plain loops in double precision.
    fn run(&self, kernel: Kernel, twist: &Twist) -> (Array, Array) {
        let mut rig = Rig::new();
        let [.., c, _] = self.input;
        let x = Operand::new(&rig, self.input, twist, self.seed);
        let [kw, kh] = self.side;
        let weights = Array::random([kw, kh, c, self.outputs], self.seed ^ 1).map(|x| x / 4.0);
        let (bytes, weights) = rounded(&weights, self.dtype);
        let vector = |len, seed: u64| Array::random([len, 1, 1, 1], self.seed ^ seed);
        let (bias, norm_weight, norm_bias) = (vector(self.outputs, 2), vector(c, 3), vector(c, 4));
        let stats = self.groups.map(|groups| statistics(&x.array, groups));
        let activated = match &stats {
            None => x.array.clone(),
            Some([mean, scale]) => Array::from_fn(self.input, |[i, j, k, l]| {
                let normal = (x.array.at([i, j, k, l]) - mean.at([0, 0, k, l])) * scale.at([0, 0, k, l]);
                let y = normal * norm_weight.at([k, 0, 0, 0]) + norm_bias.at([k, 0, 0, 0]);
                y / (1.0 + (-y).exp())
            }),
        };
        let mut expected = self.plain(&activated, &weights, &bias);
        let added = Array::random(expected.dims, self.seed ^ 5);
        if self.added {
            expected = Array::from_fn(expected.dims, |i| expected.at(i) + added.at(i));
        }

        let weights = rig.place(self.dtype, [kw, kh, c, self.outputs], &bytes);
        let [bias, norm_weight, norm_bias, added] = [&bias, &norm_weight, &norm_bias, &added].map(|a| rig.f32(a));
        let found = rig.run(|g| {
            g.set_kernel(Some(kernel));
            let x = x.tensor(g)?;
            let normal = match self.groups {
                None => None,
                Some(groups) => {
                    let (mean, scale) = g.group_statistics(x, groups, EPS)?.unwrap();
                    Some(Normalisation { mean, scale, weight: g.leaf(&norm_weight)?, bias: g.leaf(&norm_bias)? })
                }
            };
            let Case { stride, beside, around, doubled, .. } = *self;
            let (kernel, bias) = (g.leaf(&weights)?, g.leaf(&bias)?);
            let convolution = Convolution { kernel, bias: Some(bias), stride, beside, around, doubled, odd: false };
            let added = self.added.then(|| g.leaf(&added)).transpose()?;
            Ok(g.convolve(&convolution, x, normal.as_ref(), added)?.unwrap())
        });
        (found.unwrap(), expected)
    }

    fn plain(&self, x: &Array, kernel: &Array, bias: &Array) -> Array {
        let ([w, h, c, n], [kw, kh]) = (self.input, self.side);
        let (first, size, half) = match self.doubled {
            None => (0, [w, h], 1),
            Some([first, rows]) => (first, [2 * w, rows], 2),
        };
        let [above, below] = self.around;
        let result =
            [(size[0] + 2 * self.beside - kw) / self.stride + 1, (size[1] + above + below - kh) / self.stride + 1];
        Array::from_fn([result[0], result[1], self.outputs, n], |[column, row, out, item]| {
            let mut sum = bias.at([out, 0, 0, 0]);
            for (i, j, channel) in (0..kw).flat_map(|i| (0..kh).flat_map(move |j| (0..c).map(move |l| (i, j, l)))) {
                let x0 = (column * self.stride + i).checked_sub(self.beside).filter(|x0| *x0 < size[0]);
                let y0 = (row * self.stride + j).checked_sub(above).filter(|y0| *y0 < size[1]);
                if let (Some(x0), Some(y0)) = (x0, y0) {
                    sum += kernel.at([i, j, channel, out]) * x.at([x0 / half, (y0 + first) / half, channel, item]);
                }
            }
            sum
        })
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let dtype = prop_oneof![Just(DType::F32), Just(DType::F16), Just(DType::BF16)];
    let shape = (1..24usize, 1..12usize, 1..5usize, 1..10usize, 1..3usize, 1..14usize);
    let how = (1..6usize, 1..6usize, 1..3usize, 0..3usize, [0..3usize, 0..3usize]);
    (shape, how, (any::<bool>(), 0..2usize), dtype, any::<bool>(), any::<bool>(), any::<u64>()).prop_map(
        |(
            (w, h, each, groups, n, outputs),
            (kw, kh, stride, beside, around),
            (doubled, skip),
            dtype,
            norm,
            added,
            seed,
        )| {
            // The kernel fits.
            let (w, h) = (w + kw, h + kh);
            Case {
                input: [w, h, each * groups, n],
                outputs,
                side: [kw, kh],
                stride,
                beside,
                around,
                doubled: doubled.then_some([skip, 2 * h - skip]),
                dtype,
                groups: norm.then_some(groups),
                added,
                seed,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn own_convolutions(case in cases(), twist in Twist::any()) {
        for kernel in Kernel::available() {
            let (found, expected) = case.run(kernel, &twist);
            assert_close("convolve", &expected, &found, 5e-5);
        }
    }
}

/// More channels, outputs and pixels than are taken at a time, and none of them a multiple of it.
#[test]
fn more_than_one_of_everything() {
    for (stride, doubled) in [(1, None), (2, None), (1, Some([1, 17]))] {
        let case = Case {
            input: [139 * 2, 9, 40, 1],
            outputs: 101,
            side: [3, 3],
            stride,
            beside: 1,
            around: [1, 0],
            doubled,
            dtype: DType::F16,
            groups: Some(4),
            added: true,
            seed: 7,
        };
        for kernel in Kernel::available() {
            let (found, expected) = case.run(kernel, &Twist::NONE);
            assert_close("convolve", &expected, &found, 2e-4);
        }
    }
}

/// A tile with every pixel beside the picture.
#[test]
fn zeros_alone() {
    let case = Case {
        input: [253, 1, 3, 1],
        outputs: 2,
        side: [1, 1],
        stride: 1,
        beside: 2,
        around: [2, 2],
        doubled: None,
        dtype: DType::F32,
        groups: None,
        added: false,
        seed: 3,
    };
    for kernel in Kernel::available() {
        let (found, expected) = case.run(kernel, &Twist::NONE);
        assert_close("convolve", &expected, &found, 1e-5);
    }
}

/// Some rows of a picture, with their neighbours above and below, are the rows of the whole to the bit.
#[test]
fn rows_equal_the_whole() {
    let mut rig = Rig::new();
    let (x, kernel) = (Array::random([37, 29, 40, 1], 1), Array::random([3, 3, 40, 20], 2));
    let (place, kernel, bias) = (rig.f32(&x), rig.f32(&kernel), rig.f32(&Array::random([20, 1, 1, 1], 3)));
    let [weight, shift] = [4, 5].map(|seed| rig.f32(&Array::random([40, 1, 1, 1], seed)));
    let mut rows = |of: Range<usize>| {
        let around = [usize::from(of.start == 0), usize::from(of.end == 29)];
        rig.run(|g| {
            let x = g.leaf(&place)?;
            let (mean, scale) = g.group_statistics(x, 4, EPS)?.unwrap();
            let normal = Normalisation { mean, scale, weight: g.leaf(&weight)?, bias: g.leaf(&shift)? };
            let (first, last) = (of.start - (1 - around[0]), of.end + (1 - around[1]));
            let (kernel, bias) = (g.leaf(&kernel)?, g.leaf(&bias)?);
            let odd = of.start % 2 == 1;
            let convolution =
                Convolution { kernel, bias: Some(bias), stride: 1, beside: 1, around, doubled: None, odd };
            Ok(g.convolve(&convolution, g.slice(x, 1, first, last - first)?, Some(&normal), None)?.unwrap())
        })
        .unwrap()
    };
    let whole = rows(0..29);
    for part in [0..1, 0..13, 5..6, 11..28, 28..29] {
        let found = rows(part.clone());
        let expected = Array::from_fn(found.dims, |[i, j, k, l]| whole.at([i, j + part.start, k, l]));
        assert_eq!(found, expected, "{part:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut rig = Rig::new();
    let x = rig.f32(&Array::random([8, 6, 4, 1], 1));
    let kernel = rig.f32(&Array::random([3, 3, 4, 5], 2));
    let [bias, short] = [5, 4].map(|len| rig.f32(&Array::random([len, 1, 1, 1], 3)));
    let mut refused = |bias: &_, change: fn(Convolution) -> Convolution| {
        let convolved = rig.run(|g| {
            let (kernel, bias) = (g.leaf(&kernel)?, g.leaf(bias)?);
            let convolution = Convolution {
                kernel,
                bias: Some(bias),
                stride: 1,
                beside: 1,
                around: [1, 1],
                doubled: None,
                odd: false,
            };
            Ok(g.convolve(&change(convolution), g.leaf(&x)?, None, None)?.unwrap())
        });
        convolved.map(|_| ())
    };
    refused(&bias, |as_it_is| as_it_is).unwrap();
    refused(&short, |as_it_is| as_it_is).unwrap_err();
    for change in [
        (|c| Convolution { stride: 0, ..c }) as fn(Convolution) -> Convolution,
        |c| Convolution { stride: 3, ..c },
        |c| Convolution { beside: usize::MAX, ..c },
        |c| Convolution { around: [0, usize::MAX], ..c },
        |c| Convolution { doubled: Some([0, 13]), ..c },
        |c| Convolution { doubled: Some([usize::MAX, 2]), ..c },
        |c| Convolution { doubled: Some([0, 0]), around: [0, 0], ..c },
        |c| Convolution { kernel: c.bias.unwrap(), ..c },
    ] {
        refused(&bias, change).unwrap_err();
    }
    for (groups, eps) in [(0, EPS), (3, EPS), (4, f32::NAN), (4, -1.0)] {
        rig.run(|g| Ok(g.group_statistics(g.leaf(&x)?, groups, eps)?.unwrap().0)).unwrap_err();
    }
    rig.assert_works();
}
