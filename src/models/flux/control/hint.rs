//! From a picture's pixels to tokens: XLabs' `input_hint_block` (diffusers' `ControlNetConditioningEmbedding`).

use std::ops::Range;

use crate::Result;
use crate::ggml::Tensor;
use crate::models::layers::Conv2d;
use crate::stage::{Block, Build, Port};
use crate::weights::Scope;

/// How many convolutions there are.
const CONVOLUTIONS: usize = 8;

/// Those that halve the picture: each second one, from the third on.
const STRIDES: [usize; CONVOLUTIONS] = [1, 1, 2, 1, 2, 1, 2, 1];

/// How far a convolution looks beyond a row.
const HALO: usize = 1;

/// Convolutions with SiLU between them, and 2x2 patches of what they leave.
pub(super) struct Hint {
    convolutions: Vec<Conv2d>,
    patch: usize,
    from: Port,
    to: Port,
}

impl Hint {
    /// How many pixels become one, in both directions.
    pub(super) const FACTOR: usize = 8;

    /// From `inputs` channels to `channels`, in patches of `patch` by `patch`. The names are those of XLabs, whose list has the
    /// functions between the convolutions as well.
    pub(super) fn declare(
        s: &mut Scope<'_>,
        (inputs, channels): (usize, usize),
        patch: usize,
        (from, to): (Port, Port),
    ) -> Result<Hint> {
        let mut convolutions = Vec::with_capacity(CONVOLUTIONS);
        for (i, stride) in STRIDES.into_iter().enumerate() {
            let of = if i == 0 { inputs } else { channels };
            convolutions.push(Conv2d::declare(&mut s.sub(2 * i), of, channels, 3)?.with(stride, 1));
        }
        Ok(Hint { convolutions, patch, from, to })
    }

    /// `[w, h, C, 1]` as tokens `[C p p, (w/p)(h/p), 1]`: channel by channel, the patch row by row.
    fn tokens(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        let (g, p) = (b.g, self.patch);
        let [w, h, channels, _] = g.shape(x)?.dims();
        let x = g.reshape(g.contiguous(x)?, &[p, w / p, p, h / p * channels])?; // [dx, X, dy, Y C]
        let x = g.contiguous(g.permute(x, [0, 2, 1, 3])?)?; // [dx, dy, X, Y C]
        let x = g.reshape(x, &[p * p, w / p * (h / p), channels])?;
        let x = g.contiguous(g.permute(x, [0, 2, 1, 3])?)?; // [dx dy, C, X Y]
        g.reshape(x, &[p * p * channels, w / p * (h / p), 1])
    }
}

/// Some rows of a picture, of so many.
struct Rows {
    rows: Range<usize>,
    of: usize,
}

impl Rows {
    /// The rows of the map before a convolution that these rows behind it are made of: from a row on that the convolution begins a row of
    /// its own with.
    fn before(&self, stride: usize) -> Rows {
        let of = self.of * stride;
        let start = (self.rows.start * stride).saturating_sub(HALO) / stride * stride;
        Rows { rows: start..((self.rows.end - 1) * stride + 1 + HALO).min(of), of }
    }
}

impl Hint {
    /// What the convolutions leave of the rows `wanted`, `[w, n, C, 1]`.
    fn encoded(&self, b: &Build<'_>, wanted: Rows) -> Result<Tensor> {
        let mut maps = vec![wanted];
        for stride in STRIDES.into_iter().rev() {
            maps.extend(maps.last().map(|rows| rows.before(stride)));
        }
        maps.reverse();
        let of = |x, start, count| b.g.contiguous(b.g.slice(x, 1, start, count)?);
        let mut x = b.read(self.from)?;
        if let Some(Rows { rows, .. }) = maps.first().filter(|first| first.rows.len() < first.of) {
            x = of(x, rows.start, rows.len())?;
        }
        for (i, (convolution, pair)) in self.convolutions.iter().zip(maps.windows(2)).enumerate() {
            if i > 0 {
                x = b.g.silu(x)?;
            }
            x = convolution.build(b, x)?;
            // Rows at the ends have seen zeros where the picture goes on.
            let (first, wanted) = (pair[0].rows.start / STRIDES[i], &pair[1].rows);
            let [_, found, ..] = b.g.shape(x)?.dims();
            if found != wanted.len() {
                x = of(x, wanted.start - first, wanted.len())?;
            }
        }
        Ok(x)
    }
}

impl Block for Hint {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let ([width, height, ..], [_, tokens, ..]) = (b.shape(self.from)?.dims(), b.shape(self.to)?.dims());
        let columns = width / (Hint::FACTOR * self.patch);
        // As many rows of tokens at a time as other stages compute tokens.
        let at_once = b.token_ranges(tokens).first().map_or(tokens, Range::len);
        let (rows, each) = (tokens / columns, (at_once / columns).max(1));
        for start in (0..rows).step_by(each) {
            let end = rows.min(start + each);
            let wanted = Rows { rows: self.patch * start..self.patch * end, of: height / Hint::FACTOR };
            b.write_tokens(self.to, start * columns, self.tokens(b, self.encoded(b, wanted)?)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_reach_as_far_as_convolutions_look() {
        let before = |rows: Range<usize>, stride| Rows { rows, of: 20 }.before(stride).rows;
        assert_eq!(before(4..8, 1), 3..9);
        assert_eq!(before(0..20, 1), 0..20);
        // Row 4 is made of rows 7 to 9: from row 6 on, the second of what comes out is right.
        assert_eq!(before(4..8, 2), 6..16);
        assert_eq!(before(0..20, 2), 0..40);
    }
}
