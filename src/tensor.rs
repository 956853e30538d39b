//! Shapes: ggml order, fastest dimension first, with checked sizes.

use std::fmt;

use pinhole_quant::DType;

/// How many dimensions ggml tensors have.
pub const MAX_DIMS: usize = 4;

/// The extent of a tensor, fastest dimension first (the reverse of PyTorch's order).
///
/// A matrix that maps `k` inputs to `m` outputs is `[k, m]`. Trailing dimensions that are not named are 1, so
/// `[3]` and `[3, 1]` compare equal.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape([usize; MAX_DIMS]);

impl Shape {
    /// The shape with these extents, or `None` where there are more than [`MAX_DIMS`] of them, one is zero, or their
    /// product overflows `i64` (ggml's own limit).
    pub fn new(dims: &[usize]) -> Option<Shape> {
        if dims.len() > MAX_DIMS {
            return None;
        }
        let mut extents = [1; MAX_DIMS];
        extents[..dims.len()].copy_from_slice(dims);
        let mut product = 1i64;
        for &extent in &extents {
            product = product.checked_mul(i64::try_from(extent).ok()?)?;
        }
        (product > 0).then_some(Shape(extents))
    }

    /// All four extents, fastest first.
    pub fn dims(&self) -> [usize; MAX_DIMS] {
        self.0
    }

    /// The length of a row: the fastest extent.
    pub fn row(&self) -> usize {
        self.0[0]
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.0[1] * self.0[2] * self.0[3]
    }

    /// How many numbers there are.
    pub fn elements(&self) -> usize {
        self.row() * self.rows()
    }

    /// How many dimensions are named, trailing ones aside: `[3, 1, 2, 1]` has 3, a single number has 1.
    pub fn rank(&self) -> usize {
        (1..MAX_DIMS).rev().find(|&i| self.0[i] > 1).map_or(1, |i| i + 1)
    }

    /// The shape of this with the rows of `more` below; of vectors, with its numbers behind. `None` where rows differ.
    pub fn stacked(&self, more: Shape) -> Option<Shape> {
        let (last, mut dims) = (self.rank().max(more.rank()) - 1, self.0);
        dims[last] = dims[last].checked_add(more.0[last])?;
        let others_agree = (0..MAX_DIMS).all(|i| i == last || self.0[i] == more.0[i]);
        if others_agree { Shape::new(&dims) } else { None }
    }

    /// Bytes of a contiguous tensor of this shape, or `None` where a block of `dtype` does not divide the row or the
    /// size overflows.
    pub fn bytes(&self, dtype: DType) -> Option<usize> {
        dtype.row_bytes(self.row())?.checked_mul(self.rows())
    }
}

impl<const N: usize> PartialEq<[usize; N]> for Shape {
    fn eq(&self, other: &[usize; N]) -> bool {
        Shape::new(other) == Some(*self)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:?}", &self.0[..self.rank()]))
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailing_ones_do_not_matter() {
        assert_eq!(Shape::new(&[3]), Shape::new(&[3, 1, 1]));
        assert_eq!(Shape::new(&[3, 1, 2]).map(|s| s.rank()), Some(3));
        assert_eq!(Shape::new(&[3, 4]).map(|s| s.to_string()), Some("[3, 4]".into()));
    }

    #[test]
    fn impossible_shapes_are_refused() {
        assert_eq!(Shape::new(&[0]), None);
        assert_eq!(Shape::new(&[1, 2, 3, 4, 5]), None);
        assert_eq!(Shape::new(&[usize::MAX, 2]), None);
        assert_eq!(Shape::new(&[1 << 31, 1 << 31, 4]), None);
    }

    #[test]
    fn rows_go_below_rows() {
        let stacked = |one: &[usize], more: &[usize]| Shape::new(one)?.stacked(Shape::new(more)?);
        assert_eq!(stacked(&[4, 2], &[4, 3]), Shape::new(&[4, 5]));
        assert_eq!(stacked(&[4], &[3]), Shape::new(&[7]));
        assert_eq!(stacked(&[4, 2], &[5, 2]), None);
        assert_eq!(stacked(&[4, usize::MAX >> 3], &[4, 2]), None);
    }

    #[test]
    fn bytes_need_whole_blocks() {
        let shape = Shape::new(&[40, 2]).unwrap();
        assert_eq!(shape.bytes(DType::F32), Some(320));
        assert_eq!(shape.bytes(DType::Q8_0), None);
        assert_eq!(Shape::new(&[64, 3]).unwrap().bytes(DType::Q8_0), Some(3 * 68));
    }
}
