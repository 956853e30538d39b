//! What [branches](crate::stage::Branch) add to the products of [`Linear`](super::layers::Linear) and
//! [`Conv2d`](super::layers::Conv2d). Shapes are in ggml order.

use std::ops::Range;

use pinhole_quant::DType;

use crate::ggml::Tensor;
use crate::stage::{Branch, Build, Form};
use crate::weights::WeightId;
use crate::{Error, Result};

/// Inputs of a [`Role::WideMatMul`](crate::weights::Role::WideMatMul) are divided by this before they meet an F16 matrix, for
/// which ggml rounds them to F16: T5's reach above F16's 65504. A power of two, so that nothing but the smallest numbers is
/// rounded.
pub(super) const WIDE_SCALE: f32 = 64.0;

/// A branch with everything computed that does not depend on which outputs are asked for.
struct Begun<'a> {
    branch: &'a Branch,
    /// What comes before the last step, or the result itself.
    inner: Tensor,
    /// The last matrix of a chain, with which `inner` is multiplied.
    last: Option<WeightId>,
}

/// The branches of one matrix, for one input.
pub(super) struct Matrix<'a, 'b> {
    pub(super) b: &'a Build<'b>,
    /// The matrix itself.
    pub(super) weight: WeightId,
    pub(super) branches: &'a [Branch],
    /// `[inputs, ..]`
    pub(super) x: Tensor,
    /// Whether inputs may exceed what F16 can hold.
    pub(super) wide: bool,
}

impl Matrix<'_, '_> {
    /// `y [range, ..]`, the outputs `range` of the product without a bias, with all that branches add to them.
    pub(super) fn added(&self, y: Tensor, range: &Range<usize>) -> Result<Tensor> {
        let mut begun = Vec::new();
        let mut ends = vec![range.start, range.end];
        for branch in self.branches {
            let rows = branch.rows.start.max(range.start)..branch.rows.end.min(range.end);
            if !rows.is_empty() {
                ends.extend([rows.start, rows.end]);
                begun.push(self.begin(branch, y, range)?);
            }
        }
        ends.sort_unstable();
        ends.dedup();
        let mut whole = None;
        for ends in ends.windows(2) {
            let rows = ends[0]..ends[1];
            let mut part =
                if rows == *range { y } else { self.b.g.slice(y, 0, rows.start - range.start, rows.len())? };
            for begun in &begun {
                if begun.branch.rows.start <= rows.start && rows.end <= begun.branch.rows.end {
                    part = self.b.g.add(part, self.outputs(begun, &rows, range)?)?;
                }
            }
            whole = Some(whole.map_or(Ok(part), |before| self.b.g.concat(before, part, 0))?);
        }
        Ok(whole.unwrap_or(y))
    }

    fn begin<'n>(&self, branch: &'n Branch, y: Tensor, range: &Range<usize>) -> Result<Begun<'n>> {
        let g = self.b.g;
        let x = match branch.intake {
            Some(intake) => g.mul(self.x, self.b.weight(intake)?)?,
            None => self.x,
        };
        let (inner, last) = match &branch.form {
            Form::Chain(chain) => {
                let (last, before) = chain.split_last().map_or((None, &[][..]), |(last, before)| (Some(*last), before));
                let (x, factor) = self.narrowed(x, chain)?;
                let mut inner = x;
                for &id in before {
                    inner = g.mul_mat(self.b.weight(id)?, inner)?;
                }
                (g.scale(inner, branch.scale * factor)?, last)
            }
            Form::Kronecker { left, right } => {
                let (x, factor) = self.narrowed(x, right)?;
                (g.scale(self.kronecker(left, right, x)?, branch.scale * factor)?, None)
            }
            Form::Product => match branch.intake {
                None => (g.scale(y, branch.scale)?, None),
                Some(_) => {
                    let weight = g.slice(self.b.weight(self.weight)?, 1, range.start, range.len())?;
                    let (x, factor) = self.narrowed(x, &[self.weight])?;
                    (g.scale(g.mul_mat(weight, x)?, branch.scale * factor)?, None)
                }
            },
        };
        Ok(Begun { branch, inner, last })
    }

    /// `x`, and what its products are to be multiplied with: smaller where numbers would leave F16's range.
    fn narrowed(&self, x: Tensor, chain: &[WeightId]) -> Result<(Tensor, f32)> {
        if self.wide {
            for &id in chain {
                if self.b.g.dtype(self.b.weight(id)?)? == DType::F16 {
                    return Ok((self.b.g.scale(x, 1.0 / WIDE_SCALE)?, WIDE_SCALE));
                }
            }
        }
        Ok((x, 1.0))
    }

    /// What a branch adds to the outputs `rows`. Its product with the weight itself has the outputs `range`.
    fn outputs(&self, begun: &Begun<'_>, rows: &Range<usize>, range: &Range<usize>) -> Result<Tensor> {
        let (b, branch) = (self.b, begun.branch);
        let inside = rows.start - branch.rows.start;
        let from = match branch.form {
            Form::Product => rows.start - range.start,
            _ => branch.from + inside,
        };
        let some = |tensor, dim| match b.g.shape(tensor)?.dims()[dim] == rows.len() {
            true => Ok(tensor),
            false => b.g.slice(tensor, dim, from, rows.len()),
        };
        let outputs = match begun.last {
            Some(last) => b.g.mul_mat(some(b.weight(last)?, 1)?, begun.inner)?,
            None => some(begun.inner, 0)?,
        };
        match branch.gain {
            Some(gain) => b.g.mul(outputs, b.g.slice(b.weight(gain)?, 0, inside, rows.len())?),
            None => Ok(outputs),
        }
    }

    /// All outputs of a Kronecker product: inputs and outputs are matrices, one side of them for each factor.
    fn kronecker(&self, left: &[WeightId], right: &[WeightId], x: Tensor) -> Result<Tensor> {
        let g = self.b.g;
        let [inputs, n, m, _] = g.shape(x)?.dims();
        let within = right.first().map_or(Ok(1), |&id| Ok(g.shape(self.b.weight(id)?)?.row()))?;
        let mut y = g.reshape(x, &[within, inputs / within.max(1), n * m])?; // [I2, I1, N]
        for &id in right {
            y = g.mul_mat(self.b.weight(id)?, y)?;
        }
        y = g.contiguous(g.permute(y, [1, 0, 2, 3])?)?; // [I1, O2, N]
        for &id in left {
            y = g.mul_mat(self.b.weight(id)?, y)?;
        }
        y = g.contiguous(g.permute(y, [1, 0, 2, 3])?)?; // [O2, O1, N]
        let [within, blocks, ..] = g.shape(y)?.dims();
        g.reshape(y, &[within * blocks, n, m])
    }
}

/// The branches of one convolution, for one input.
pub(super) struct Kernel<'a, 'b> {
    pub(super) b: &'a Build<'b>,
    pub(super) branches: &'a [Branch],
    /// `[w, h, inputs, n]`
    pub(super) x: Tensor,
    pub(super) stride: usize,
    /// Columns of zeros on either side, and rows above and below.
    pub(super) padding: [usize; 2],
    /// How many rows of the result on either side are another strip's, where the strip has neighbours.
    pub(super) halo: usize,
}

impl Kernel<'_, '_> {
    /// `y [w', h', outputs, n]`, the convolution without its bias, with all that branches add.
    pub(super) fn added(&self, y: Tensor) -> Result<Tensor> {
        let (b, g) = (self.b, self.b.g);
        let mut sum = y;
        for branch in self.branches {
            let per_channel = |id| {
                let factors = b.weight(id)?;
                g.reshape(factors, &[1, 1, g.shape(factors)?.elements()])
            };
            let x = match branch.intake {
                Some(intake) => g.mul(self.x, per_channel(intake)?)?,
                None => self.x,
            };
            let mut outputs = match &branch.form {
                Form::Chain(chain) => self.chain(chain, x)?,
                Form::Kronecker { left, right } => self.kronecker(left, right, x)?,
                Form::Product if branch.intake.is_none() => y,
                Form::Product => return Err(Error::graph("conv_2d", "a kernel whose inputs have factors")),
            };
            outputs = g.scale(outputs, branch.scale)?;
            if let Some(gain) = branch.gain {
                outputs = g.mul(outputs, per_channel(gain)?)?;
            }
            sum = g.add(sum, outputs)?;
        }
        Ok(sum)
    }

    fn chain(&self, kernels: &[WeightId], x: Tensor) -> Result<Tensor> {
        let g = self.b.g;
        let kernels = kernels.iter().map(|&id| self.b.weight(id)).collect::<Result<Vec<_>>>()?;
        let mut spatial = 0;
        for (i, &kernel) in kernels.iter().enumerate().rev() {
            let [w, h, ..] = g.shape(kernel)?.dims();
            spatial = if w * h > 1 { i } else { spatial };
        }
        let mut y = x;
        for (i, &kernel) in kernels.iter().enumerate() {
            y = match i == spatial {
                true => {
                    let y = g.conv_2d_padded(kernel, y, self.stride, self.padding)?;
                    if self.halo > 0 { self.b.crop(y, self.halo)? } else { y }
                }
                false => g.conv_2d(kernel, y, 1, 0)?,
            };
        }
        Ok(y)
    }

    fn kronecker(&self, left: &[WeightId], right: &[WeightId], x: Tensor) -> Result<Tensor> {
        let g = self.b.g;
        let [w, h, inputs, n] = g.shape(x)?.dims();
        let mut within = 1;
        if let Some(&first) = right.first() {
            within = g.shape(self.b.weight(first)?)?.dims()[2];
        }
        let blocks = inputs / within.max(1);
        let y = self.chain(right, g.reshape(x, &[w, h, within, blocks * n])?)?; // [w', h', O2, I1 n]
        let [w, h, within, _] = g.shape(y)?.dims();
        let mut y = g.reshape(y, &[w * h * within, blocks, n])?;
        y = g.contiguous(g.permute(y, [1, 0, 2, 3])?)?; // [I1, w' h' O2, n]
        for &id in left {
            y = g.mul_mat(self.b.weight(id)?, y)?;
        }
        let [blocks, ..] = g.shape(y)?.dims();
        y = g.contiguous(g.permute(y, [1, 0, 2, 3])?)?; // [w' h' O2, O1, n]
        g.reshape(y, &[w, h, within * blocks, n])
    }
}
