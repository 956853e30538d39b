//! Small arrays in double precision: operands of operations, and plain loops that say what should come out.

/// Extents in ggml order, fastest first.
pub(crate) type Dims = [usize; 4];

/// Numbers with their extents.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Array {
    pub(crate) dims: Dims,
    pub(crate) values: Vec<f64>,
}

/// All indices below `dims`, in the order in which numbers are stored.
pub(crate) fn indices(dims: Dims) -> impl Iterator<Item = Dims> {
    let [n0, n1, n2, n3] = dims;
    (0..n0 * n1 * n2 * n3).map(move |i| [i % n0, i / n0 % n1, i / (n0 * n1) % n2, i / (n0 * n1 * n2)])
}

impl Array {
    /// The array whose number at each index is `f` of the index.
    pub(crate) fn from_fn(dims: Dims, f: impl FnMut(Dims) -> f64) -> Array {
        Array { dims, values: indices(dims).map(f).collect() }
    }

    /// Numbers from -2 to 2 that single precision holds exactly.
    pub(crate) fn random(dims: Dims, seed: u64) -> Array {
        let mut state = seed;
        Array::from_fn(dims, |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            f64::from((state >> 40) as u32) / f64::from(1u32 << 22) - 2.0
        })
    }

    pub(crate) fn from_f32(dims: Dims, values: &[f32]) -> Array {
        assert_eq!(dims.iter().product::<usize>(), values.len());
        Array { dims, values: values.iter().map(|&value| f64::from(value)).collect() }
    }

    pub(crate) fn f32(&self) -> Vec<f32> {
        self.values.iter().map(|&value| value as f32).collect()
    }

    pub(crate) fn at(&self, [i0, i1, i2, i3]: Dims) -> f64 {
        let [n0, n1, n2, _] = self.dims;
        self.values[i0 + n0 * (i1 + n1 * (i2 + n2 * i3))]
    }

    /// The number at `index` of the array repeated without end.
    pub(crate) fn repeated(&self, index: Dims) -> f64 {
        self.at(std::array::from_fn(|i| index[i] % self.dims[i]))
    }

    pub(crate) fn map(&self, f: impl Fn(f64) -> f64) -> Array {
        Array { dims: self.dims, values: self.values.iter().map(|&value| f(value)).collect() }
    }

    /// `f` of each row.
    pub(crate) fn map_rows(&self, f: impl Fn(&[f64]) -> Vec<f64>) -> Array {
        Array { dims: self.dims, values: self.values.chunks(self.dims[0]).flat_map(f).collect() }
    }

    /// Dimension `i` moved to place `axes[i]`.
    pub(crate) fn permute(&self, axes: Dims) -> Array {
        let mut dims = [0; 4];
        (0..4).for_each(|i| dims[axes[i]] = self.dims[i]);
        Array::from_fn(dims, |index| self.at(axes.map(|axis| index[axis])))
    }

    /// `len` of the extent of dimension `dim`, from `start` on.
    pub(crate) fn slice(&self, dim: usize, start: usize, len: usize) -> Array {
        let mut dims = self.dims;
        dims[dim] = len;
        Array::from_fn(dims, |mut index| {
            index[dim] += start;
            self.at(index)
        })
    }

    /// The same numbers under other extents.
    pub(crate) fn reshape(&self, dims: Dims) -> Array {
        assert_eq!(dims.iter().product::<usize>(), self.values.len());
        Array { dims, values: self.values.clone() }
    }
}

/// Fails where a number of `found` is further than `tolerance` from that of `expected`, relative to the larger of the
/// latter and 1.
#[track_caller]
pub(crate) fn assert_close(what: &str, expected: &Array, found: &Array, tolerance: f64) {
    assert_eq!(expected.dims, found.dims, "{what}");
    for (index, (expected, found)) in indices(expected.dims).zip(expected.values.iter().zip(&found.values)) {
        let error = (expected - found).abs() / expected.abs().max(1.0);
        assert!(error <= tolerance, "{what}: {found} at {index:?} and not {expected} ({error:.1e} > {tolerance:.0e})");
    }
}

/// Fails where the squared errors of `found` are more than `most` of the squares of `expected`.
#[track_caller]
pub(crate) fn assert_nmse(what: &str, expected: &Array, found: &Array, most: f64) {
    assert_eq!(expected.dims, found.dims, "{what}");
    let nmse = pinhole_quant::metrics::nmse(&expected.f32(), &found.f32());
    let nmse = nmse.unwrap_or_else(|| panic!("{what}: not finite"));
    assert!(nmse <= most, "{what}: nmse {nmse:.1e} is above {most:.0e}");
}
