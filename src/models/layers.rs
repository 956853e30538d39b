//! The layers that models share. Shapes are in ggml order.

use std::cell::Cell;
use std::ops::Range;

use pinhole_quant::DType;
use serde::{Deserialize, Serialize};

use super::branches::{Kernel, Matrix, WIDE_SCALE};
use crate::ggml::{Convolution, Graph, Normalisation, Tensor};
use crate::stage::{Build, FeatureMap, Form, GroupStatistics};
use crate::weights::{Role, Scope, WeightId};
use crate::{Error, Result, reserve};

/// `y = W x + b`: the only way to a matrix, so that a side branch, a kernel or a chunked product needs no word in a model.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    weight: WeightId,
    bias: Option<WeightId>,
    wide: bool,
}

impl Linear {
    /// `inputs` to `outputs`, with a bias.
    pub fn declare(scope: &mut Scope<'_>, inputs: usize, outputs: usize, role: Role) -> Result<Linear> {
        let weight = scope.weight("weight", &[inputs, outputs], role)?;
        let bias = scope.weight("bias", &[outputs], Role::Vector)?;
        Ok(Linear { weight, bias: Some(bias), wide: role == Role::WideMatMul })
    }

    /// `inputs` to `outputs`, without a bias.
    pub fn declare_unbiased(scope: &mut Scope<'_>, inputs: usize, outputs: usize, role: Role) -> Result<Linear> {
        let weight = scope.weight("weight", &[inputs, outputs], role)?;
        Ok(Linear { weight, bias: None, wide: role == Role::WideMatMul })
    }

    /// `x [inputs, ..]` gives `[outputs, ..]`.
    pub fn build(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        let (weight, bias) = (b.weight(self.weight)?, self.bias.map(|bias| b.weight(bias)).transpose()?);
        let outputs = b.g.shape(weight)?.dims()[1];
        self.with_branches(b, weight, x, bias, &(0..outputs))
    }

    /// Only the outputs of `range`.
    pub fn build_outputs(&self, b: &Build<'_>, x: Tensor, range: Range<usize>) -> Result<Tensor> {
        let of = |weight, dim| b.g.slice(b.weight(weight)?, dim, range.start, range.len());
        let (weight, bias) = (of(self.weight, 1)?, self.bias.map(|bias| of(bias, 0)).transpose()?);
        self.with_branches(b, weight, x, bias, &range)
    }

    /// The outputs `range`, whose parts are `weight` and `bias`.
    fn with_branches(
        &self,
        b: &Build<'_>,
        weight: Tensor,
        x: Tensor,
        bias: Option<Tensor>,
        range: &Range<usize>,
    ) -> Result<Tensor> {
        let branches = b.branches(self.weight);
        if !branches.iter().any(|branch| branch.rows.start < range.end && range.start < branch.rows.end) {
            return self.product(b, weight, x, bias);
        }
        let y = Matrix { b, weight: self.weight, branches, x, wide: self.wide }
            .added(self.product(b, weight, x, None)?, range)?;
        bias.map_or(Ok(y), |bias| b.g.add(y, bias))
    }

    fn product(&self, b: &Build<'_>, weight: Tensor, x: Tensor, bias: Option<Tensor>) -> Result<Tensor> {
        if self.wide && b.g.dtype(weight)? == DType::F16 {
            let y = b.g.scale(b.g.mul_mat(weight, b.g.scale(x, 1.0 / WIDE_SCALE)?)?, WIDE_SCALE)?;
            return bias.map_or(Ok(y), |bias| b.g.add(y, bias));
        }
        match bias {
            Some(bias) => b.g.linear(weight, x, bias),
            None => b.g.mul_mat(weight, x),
        }
    }
}

/// Layer normalisation with scale and shift.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm {
    weight: WeightId,
    bias: WeightId,
    eps: f32,
}

impl LayerNorm {
    /// Over rows of `width`.
    pub fn declare(scope: &mut Scope<'_>, width: usize, eps: f32) -> Result<LayerNorm> {
        let weight = scope.weight("weight", &[width], Role::Vector)?;
        Ok(LayerNorm { weight, bias: scope.weight("bias", &[width], Role::Vector)?, eps })
    }

    /// `x [width, ..]`, normalised.
    pub fn build(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        let scaled = b.g.mul(b.g.norm(x, self.eps)?, b.weight(self.weight)?)?;
        b.g.add(scaled, b.weight(self.bias)?)
    }
}

/// Root-mean-square normalisation with a scale.
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm {
    weight: WeightId,
    eps: f32,
}

impl RmsNorm {
    /// Over rows of `width`; `name` is that of the scale, `weight` or `scale`.
    pub fn declare(scope: &mut Scope<'_>, name: &str, width: usize, eps: f32) -> Result<RmsNorm> {
        Ok(RmsNorm { weight: scope.weight(name, &[width], Role::Vector)?, eps })
    }

    /// `x [width, ..]`, normalised.
    pub fn build(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        b.g.mul(b.g.rms_norm(x, self.eps)?, b.weight(self.weight)?)
    }
}

/// Group normalisation of `[w, h, c, n]` with scale and shift per channel.
#[derive(Clone, Copy, Debug)]
pub struct GroupNorm {
    weight: WeightId,
    bias: WeightId,
    channels: usize,
    groups: usize,
    eps: f32,
}

impl GroupNorm {
    /// Over `groups` groups of `channels` channels.
    pub fn declare(scope: &mut Scope<'_>, channels: usize, groups: usize, eps: f32) -> Result<GroupNorm> {
        let weight = scope.weight("weight", &[channels], Role::Vector)?;
        let bias = scope.weight("bias", &[channels], Role::Vector)?;
        Ok(GroupNorm { weight, bias, channels, groups, eps })
    }

    /// `x [w, h, channels, n]`, normalised.
    pub fn build(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        self.scaled(b, b.g.group_norm(x, self.groups, self.eps)?)
    }

    /// `x`, some rows of `map`, normalised as the whole of `map` is: by the same steps, so that it is rounded the same.
    pub fn build_rows(&self, b: &Build<'_>, map: impl Into<FeatureMap>, x: Tensor) -> Result<Tensor> {
        match self.statistics(b, map, x)? {
            Some((mean, scale)) => self.scaled(b, b.g.mul(b.g.sub(x, mean)?, scale)?),
            None => self.build(b, x),
        }
    }

    /// Mean and scale of all of `map`, where `x` are some rows of it; `None` where ggml normalises a whole map at once.
    fn statistics(&self, b: &Build<'_>, map: impl Into<FeatureMap>, x: Tensor) -> Result<Option<(Tensor, Tensor)>> {
        let GroupNorm { groups, eps, .. } = *self;
        match b.statistics(map, GroupStatistics { groups, eps })? {
            None => b.g.group_statistics(x, groups, eps),
            known => Ok(known),
        }
    }

    /// What a convolution has to know to apply it.
    fn normalisation(&self, b: &Build<'_>, (mean, scale): (Tensor, Tensor)) -> Result<Normalisation> {
        Ok(Normalisation { mean, scale, weight: b.weight(self.weight)?, bias: b.weight(self.bias)? })
    }

    fn scaled(&self, b: &Build<'_>, normal: Tensor) -> Result<Tensor> {
        b.g.add(b.g.mul(normal, self.per_channel(b, self.weight)?)?, self.per_channel(b, self.bias)?)
    }

    fn per_channel(&self, b: &Build<'_>, weight: WeightId) -> Result<Tensor> {
        b.g.reshape(b.weight(weight)?, &[1, 1, self.channels])
    }
}

/// A square convolution.
#[derive(Clone, Copy, Debug)]
pub struct Conv2d {
    weight: WeightId,
    bias: Option<WeightId>,
    channels: usize,
    stride: usize,
    padding: usize,
}

impl Conv2d {
    /// A kernel of `size x size`, with zeros around so that a stride of 1 keeps the picture's size.
    pub fn declare(scope: &mut Scope<'_>, inputs: usize, outputs: usize, size: usize) -> Result<Conv2d> {
        let weight = scope.weight("weight", &[size, size, inputs, outputs], Role::ConvKernel)?;
        let bias = Some(scope.weight("bias", &[outputs], Role::Vector)?);
        Ok(Conv2d { weight, bias, channels: outputs, stride: 1, padding: size / 2 })
    }

    /// The same without a bias.
    pub fn without_bias(scope: &mut Scope<'_>, inputs: usize, outputs: usize, size: usize) -> Result<Conv2d> {
        Conv2d::kernel(scope, "weight", (inputs, outputs), size)
    }

    /// The same with a kernel that is called `name`.
    pub(super) fn kernel(
        scope: &mut Scope<'_>,
        name: &str,
        (inputs, outputs): (usize, usize),
        size: usize,
    ) -> Result<Conv2d> {
        let weight = scope.weight(name, &[size, size, inputs, outputs], Role::ConvKernel)?;
        Ok(Conv2d { weight, bias: None, channels: outputs, stride: 1, padding: size / 2 })
    }

    /// The same with another stride and padding.
    #[must_use]
    pub fn with(self, stride: usize, padding: usize) -> Conv2d {
        Conv2d { stride, padding, ..self }
    }

    /// `x [w, h, inputs, n]` gives `[w', h', outputs, n]`.
    pub fn build(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        let y = match b.g.convolve(&self.convolution(b, [self.padding; 2])?, x, None, None)? {
            Some(y) => y,
            None => self.biased(b, b.g.conv_2d(b.weight(self.weight)?, x, self.stride, self.padding)?)?,
        };
        self.with_branches(b, x, y, self.padding, 0)
    }

    /// `x`, the strip's rows and [`halo`](Self::halo) more but at the picture's edges, gives the strip's rows. For a
    /// stride of 1.
    pub fn build_rows(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        let y = match b.g.convolve(&self.convolution(b, self.zeros(b))?, x, None, None)? {
            Some(y) => y,
            None => self.by_ggml(b, x)?,
        };
        let zeros = self.zeros_by_ggml(b);
        self.with_branches(b, x, y, zeros, if zeros > 0 { self.padding } else { 0 })
    }

    /// As [`build_rows`](Self::build_rows), with `added` added.
    pub(super) fn build_rows_added(&self, b: &Build<'_>, x: Tensor, added: Tensor) -> Result<Tensor> {
        if b.branches(self.weight).is_empty()
            && let Some(y) = b.g.convolve(&self.convolution(b, self.zeros(b))?, x, None, Some(added))?
        {
            return Ok(y);
        }
        b.g.add(self.build_rows(b, x)?, added)
    }

    /// As [`build_rows`](Self::build_rows), of `x` normalised by `norm` as all of `map`, and through SiLU, with `added` added.
    pub fn build_activated(
        &self,
        b: &Build<'_>,
        norm: &GroupNorm,
        map: impl Into<FeatureMap>,
        x: Tensor,
        added: Option<Tensor>,
    ) -> Result<Tensor> {
        self.build_with(b, norm, norm.statistics(b, map, x)?, x, added)
    }

    /// Of `x`, a whole map, normalised by `norm` and through SiLU, with `added` added.
    pub fn build_normed(&self, b: &Build<'_>, norm: &GroupNorm, x: Tensor, added: Option<Tensor>) -> Result<Tensor> {
        self.build_with(b, norm, b.g.group_statistics(x, norm.groups, norm.eps)?, x, added)
    }

    fn build_with(
        &self,
        b: &Build<'_>,
        norm: &GroupNorm,
        statistics: Option<(Tensor, Tensor)>,
        x: Tensor,
        added: Option<Tensor>,
    ) -> Result<Tensor> {
        // A branch takes the normalised map as well: it has to be there.
        let alone = b.branches(self.weight).is_empty();
        if let Some(statistics) = statistics.filter(|_| alone) {
            let normal = norm.normalisation(b, statistics)?;
            if let Some(y) = b.g.convolve(&self.convolution(b, self.zeros(b))?, x, Some(&normal), added)? {
                return Ok(y);
            }
        }
        let normal = match statistics {
            Some((mean, scale)) => norm.scaled(b, b.g.mul(b.g.sub(x, mean)?, scale)?)?,
            None => norm.build(b, x)?,
        };
        let activated = b.g.silu(normal)?;
        let y = if alone { self.by_ggml(b, activated)? } else { self.build_rows(b, activated)? };
        added.map_or(Ok(y), |added| b.g.add(added, y))
    }

    /// As [`build_rows`](Self::build_rows), of the rows of `x` that [`Reach::Half`](crate::stage::Reach::Half) read, with every pixel doubled both ways.
    pub fn build_doubled(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        let [_, h, ..] = b.g.shape(x)?.dims();
        let doubled = b.rows_of_doubled(h, self.padding)?;
        if !b.branches(self.weight).is_empty() {
            return self.build_rows(b, b.g.slice(b.g.upscale_2x(x)?, 1, doubled[0], doubled[1])?);
        }
        let convolution = Convolution { doubled: Some(doubled), ..self.convolution(b, self.zeros(b))? };
        match b.g.convolve(&convolution, x, None, None)? {
            Some(y) => Ok(y),
            None => self.by_ggml(b, b.g.slice(b.g.upscale_2x(x)?, 1, doubled[0], doubled[1])?),
        }
    }

    /// Of the rows of `x` that [`Reach::TwiceAbove`](crate::stage::Reach::TwiceAbove) of [`halo`](Self::halo) read. For a stride of 2, with
    /// zeros on both sides of a map of even extents.
    pub fn build_halved(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        // The last row has a neighbour below it, which belongs to the same pair.
        let (at_top, _) = b.at_edges();
        let zeros = if at_top { self.padding } else { 0 };
        let y = match b.g.convolve(&self.convolution(b, [zeros, 0])?, x, None, None)? {
            Some(y) => y,
            None => {
                let kernel = b.weight(self.weight)?;
                self.biased(b, b.g.conv_2d_padded(kernel, x, self.stride, [self.padding, zeros])?)?
            }
        };
        self.with_branches(b, x, y, zeros, 0)
    }

    /// Of every pixel of `x` doubled both ways; `[w, h]` columns and rows of it count: all of them, or all except the last.
    pub fn build_doubled_to(&self, b: &Build<'_>, x: Tensor, [w, h]: [usize; 2]) -> Result<Tensor> {
        let [columns, ..] = b.g.shape(x)?.dims();
        // Pinhole's kernels leave out rows only, and a branch takes the doubled map as well.
        if w == 2 * columns && b.branches(self.weight).is_empty() {
            let convolution = Convolution { doubled: Some([0, h]), ..self.convolution(b, [self.padding; 2])? };
            if let Some(y) = b.g.convolve(&convolution, x, None, None)? {
                return Ok(y);
            }
        }
        let doubled = b.g.slice(b.g.slice(b.g.upscale_2x(x)?, 0, 0, w)?, 1, 0, h)?;
        self.build(b, b.g.contiguous(doubled)?)
    }

    fn convolution(&self, b: &Build<'_>, around: [usize; 2]) -> Result<Convolution> {
        let (kernel, bias) = (b.weight(self.weight)?, self.bias.map(|bias| b.weight(bias)).transpose()?);
        let odd = b.begins_odd();
        Ok(Convolution { kernel, bias, stride: self.stride, beside: self.padding, around, doubled: None, odd })
    }

    /// Rows of zeros above and below the strip: where it has no neighbours.
    fn zeros(&self, b: &Build<'_>) -> [usize; 2] {
        let (top, bottom) = b.at_edges();
        [top, bottom].map(|at_edge| if at_edge { self.padding } else { 0 })
    }

    /// Rows of zeros above and below, by ggml, which knows one number for both.
    fn zeros_by_ggml(&self, b: &Build<'_>) -> usize {
        self.zeros(b).into_iter().max().unwrap_or(0)
    }

    /// `y`, the convolution of `x`, with all that branches add. They are computed with `rows` rows of zeros above and below, and
    /// are then cut as a strip with `halo` rows more.
    fn with_branches(&self, b: &Build<'_>, x: Tensor, y: Tensor, rows: usize, halo: usize) -> Result<Tensor> {
        let branches = b.branches(self.weight);
        if branches.is_empty() {
            return Ok(y);
        }
        let kernel = Kernel { b, branches, x, stride: self.stride, padding: [self.padding, rows], halo };
        // Only a product of its own asks for what the convolution is without its bias.
        if branches.iter().all(|branch| branch.form != Form::Product) {
            return kernel.added(y);
        }
        let Some(bias) = self.bias_by_channel(b)? else { return kernel.added(y) };
        b.g.add(kernel.added(b.g.sub(y, bias)?)?, bias)
    }

    /// [`build_rows`](Self::build_rows) where pinhole has no kernel for it.
    fn by_ggml(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        let zeros = self.zeros_by_ggml(b);
        let y = b.g.conv_2d_padded(b.weight(self.weight)?, x, self.stride, [self.padding, zeros])?;
        // Zeros go above and below: on the side that has neighbours they made rows that are none.
        let y = if zeros > 0 { b.crop(y, self.padding)? } else { y };
        self.biased(b, y)
    }

    /// How many rows above and below a row it reads.
    pub fn halo(&self) -> usize {
        self.padding
    }

    fn biased(&self, b: &Build<'_>, y: Tensor) -> Result<Tensor> {
        self.bias_by_channel(b)?.map_or(Ok(y), |bias| b.g.add(y, bias))
    }

    /// The bias, `[1, 1, outputs]`.
    fn bias_by_channel(&self, b: &Build<'_>) -> Result<Option<Tensor>> {
        self.bias.map(|bias| b.g.reshape(b.weight(bias)?, &[1, 1, self.channels])).transpose()
    }
}

/// A function between two linear layers, by its name in transformers' configurations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x * sigmoid(1.702 x)`
    #[default]
    QuickGelu,
    /// GELU by the error function.
    Gelu,
    /// GELU by the tanh approximation.
    #[serde(alias = "gelu_pytorch_tanh")]
    GeluNew,
    /// `x * sigmoid(x)`
    Silu,
}

impl Activation {
    /// Applies it to every element.
    pub fn build(self, g: &Graph, x: Tensor) -> Result<Tensor> {
        match self {
            Activation::QuickGelu => g.gelu_quick(x),
            Activation::Gelu => g.gelu_erf(x),
            Activation::GeluNew => g.gelu_tanh(x),
            Activation::Silu => g.silu(x),
        }
    }
}

/// The last result that was computed, and what it was computed of: what is asked for twice is one operation.
pub struct Last<K>(Cell<Option<(K, Tensor)>>);

impl<K> Default for Last<K> {
    fn default() -> Last<K> {
        Last(Cell::new(None))
    }
}

impl<K: Copy + PartialEq> Last<K> {
    /// What `compute` gives for `key`.
    ///
    /// # Errors
    /// What `compute` returns.
    pub fn of(&self, key: K, compute: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
        if let Some((known, result)) = self.0.get()
            && known == key
        {
            return Ok(result);
        }
        let result = compute()?;
        self.0.set(Some((key, result)));
        Ok(result)
    }
}

/// The sinusoidal embedding of `t`: `width` numbers, an even count, cosines first, with frequencies from 1 down to 1/10000; in f32
/// as diffusers' `get_timestep_embedding` computes it.
///
/// Exponentials, cosines and sines are taken in double precision and rounded once. In single precision, the last digit depends on the
/// system's C library, and products of 8-bit activations make that a picture that differs between systems by 3 in 255.
pub fn sinusoid(t: f32, width: usize) -> Vec<f32> {
    let half = width / 2;
    let angle = |i: usize| {
        let frequency = f64::from(-(10000f32.ln()) * i as f32 / half as f32).exp() as f32;
        f64::from(t * frequency)
    };
    let cos = (0..half).map(|i| angle(i).cos() as f32);
    cos.chain((0..half).map(|i| angle(i).sin() as f32)).collect()
}

/// `x [heads * d, tokens, batch]` as `[d, tokens, heads, batch]`, where attention wants its heads: a view.
pub fn split_heads(g: &Graph, x: Tensor, heads: usize) -> Result<Tensor> {
    g.permute(g.split_rows(x, heads)?, [0, 2, 1, 3])
}

/// `[d, heads, tokens, batch]`, as attention leaves its result, as `[heads * d, tokens, batch]`.
pub fn join_heads(g: &Graph, x: Tensor) -> Result<Tensor> {
    let [d, heads, tokens, batch] = g.shape(x)?.dims();
    g.reshape(x, &[d * heads, tokens, batch])
}

/// `softmax(scale * q k^T + bias) v` with the scores in memory: `q`, `k`, `v` are `[d, tokens, heads, batch]`, `bias`
/// `[tokens, tokens, heads or 1, 1]`. Gives `[d, heads, tokens, batch]`. For short texts, where the scores are small and
/// the bias differs by head.
pub fn attention_with_bias(g: &Graph, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: f32) -> Result<Tensor> {
    let scores = g.mul_mat(k, q)?; // [tokens (keys), tokens (queries), heads, batch]
    let shares = g.soft_max(scores, Some(bias), scale)?;
    let v = g.contiguous(g.permute(v, [1, 0, 2, 3])?)?; // [tokens, d, heads, batch]
    let mixed = g.mul_mat(v, shares)?; // [d, tokens, heads, batch]
    g.contiguous(g.permute(mixed, [0, 2, 1, 3])?)
}

/// The tables of [`Graph::rotate_pairs`], `[d, tokens]` each, `d` the sum of `axes`: position `p` on an axis of width `w` turns
/// pair `i` of that axis by `p * theta^(-2i/w)`, computed in f64 as diffusers does.
///
/// `positions` holds one coordinate per axis for every token.
///
/// # Errors
/// [`Error::Graph`] where the coordinates do not match the axes.
pub fn rotary_tables<N: Copy + Into<f64>>(
    axes: &[usize],
    theta: f64,
    positions: &[impl AsRef<[N]>],
) -> Result<(Vec<f32>, Vec<f32>)> {
    if positions.iter().any(|position| position.as_ref().len() != axes.len()) {
        return Err(Error::graph("rotary", format!("positions do not have {} coordinates", axes.len())));
    }
    let numbers = positions.len().saturating_mul(axes.iter().sum());
    let mut cos = reserve::room("the rotary tables", numbers)?;
    let mut sin = reserve::room("the rotary tables", numbers)?;
    for position in positions {
        for (&width, &coordinate) in axes.iter().zip(position.as_ref()) {
            for pair in 0..width / 2 {
                let angle = coordinate.into() / theta.powf(2.0 * pair as f64 / width as f64);
                cos.extend([angle.cos() as f32; 2]);
                sin.extend([-angle.sin() as f32, angle.sin() as f32]);
            }
        }
    }
    Ok((cos, sin))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn tables_turn_pairs_by_their_axis() {
        let (cos, sin) = rotary_tables(&[2, 4], 10000.0, &[vec![1, 2]]).unwrap();
        assert_eq!(cos.len(), 6);
        assert!((cos[0] - 1f32.cos()).abs() < 1e-7 && (sin[0] + 1f32.sin()).abs() < 1e-7);
        assert!((sin[1] - 1f32.sin()).abs() < 1e-7);
        assert!((cos[4] - 0.02f32.cos()).abs() < 1e-7 && (sin[5] - 0.02f32.sin()).abs() < 1e-7);
        assert!(rotary_tables(&[2, 4], 10000.0, &[vec![1]]).is_err());
    }
}
